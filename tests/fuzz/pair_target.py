"""The data channel against the emulator's agent over a link that loses, repeats, reorders and breaks as the input says.

While the input lasts, what has arrived is a prefix of what was sent, both ways. Then the link is good, and all of it
has to arrive soon.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable

from fuzz.channel_target import make_window
from fuzz.choices import Choices
from simulation import wire_sketch
from simulation.wire_sketch import Frame

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import OutputReceived, SessionFailed
from ssm_proxy.emulator.agent_channel import TICK_S, AgentChannel
from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.wire.constants import PayloadType

_PAUSE = wire_sketch.pack(Frame("pause_publication", b"{}"))
_START = wire_sketch.pack(Frame("start_publication", b"{}"))
_COMPLETE = b'{"HandshakeTimeToComplete":1,"CustomerMessage":""}'
_SIZES = (1, 2, 100, 1023, 1024, 1025, 3000, 10_000)
_LATENESS_S = (0.0, 0.001, 0.02, 0.3, 1.5)
_MOST_OPERATIONS = 150
_MOST_ROUNDS = 20_000
_SOON_S = 600.0
"""Of virtual time, in which all has to have arrived over a good link."""


class LossyPair:
    """Two ends, and messages under way by the time at which they arrive."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.window = make_window(choices)
        if self.window.limit_bytes < 1024:  # some room is needed for anything to move
            self.window = make_window(Choices(b"\x05\x00"))
        ids = itertools.count(1)
        self.channel = DataChannel(
            check_session=check_stream_session,
            window=self.window,
            new_message_id=lambda: next(ids).to_bytes(16, "big"),
            wall_clock_ms=lambda: 1_700_000_000_000,
        )
        self.defects: Counter[str] = Counter()
        self.agent = AgentChannel(self.take_input, self.defects, ChannelCounts())
        self.random = random.Random(1)
        self.now = 1000.0
        self.next_tick = self.now + TICK_S
        self.up: list[tuple[float, int, bytes]] = []
        self.down: list[tuple[float, int, bytes]] = []
        self.order = itertools.count()
        self.lateness_s = 0.0
        self.loss = 0
        self.is_connected = True
        self.is_answered = False
        self.sent_up = bytearray()
        self.sent_down = bytearray()
        self.taken = bytearray()
        self.received = bytearray()
        self.channel.open("token", self.now)
        self.agent_sends(PayloadType.HANDSHAKE_REQUEST, wire_sketch.handshake_request())

    # --- the ends ---------------------------------------------------------------------------------------------------

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if payload_type == PayloadType.HANDSHAKE_RESPONSE:
            assert not self.is_answered, "a second answer blocks the agent"
            self.is_answered = True
            self.agent_sends(PayloadType.HANDSHAKE_COMPLETE, _COMPLETE)
        else:
            assert payload_type == PayloadType.OUTPUT
            self.taken += payload
        return True

    def agent_sends(self, payload_type: int, payload: bytes) -> None:
        message = self.agent.send(payload_type, payload, self.now)
        if message is not None:
            self.carry(self.down, [message])

    def settle(self) -> None:
        if self.is_connected:
            self.carry(self.up, self.channel.messages_to_send(self.now))
            self.channel.input_room(self.now)  # as the driver asks, which moves the deadline of the pace
        for event in self.channel.events():
            assert not isinstance(event, SessionFailed), event
            if isinstance(event, OutputReceived):
                self.received += event.payload
        self.carry(self.down, self.agent.take_replies())
        self.carry(self.down, self.agent.repeat_lost(self.now))
        assert self.sent_up.startswith(self.taken)
        assert self.sent_down.startswith(self.received)

    # --- the link ---------------------------------------------------------------------------------------------------

    def carry(self, queue: list[tuple[float, int, bytes]], messages: list[bytes]) -> None:
        if not self.is_connected:
            return
        for data in messages:
            copies = 1
            if self.loss and self.random.random() < 0.5:
                fate = self.choices.byte()
                copies = 0 if fate < self.loss else 2 if fate > 0xF0 else 1
            for _ in range(copies):
                late = self.random.random() * self.lateness_s
                queue.append((self.now + 0.01 + late, next(self.order), data))
        queue.sort()

    def advance(self, seconds: float) -> None:
        """Move the clock, doing on the way what is due."""
        until = self.now + seconds
        for _ in range(_MOST_ROUNDS):
            due = self.next_event()
            if due > until:
                break
            self.now = max(self.now, due)
            while self.up and self.up[0][0] <= self.now:
                self.agent.receive(self.up.pop(0)[2], self.now)
            while self.down and self.down[0][0] <= self.now:
                self.channel.receive(self.down.pop(0)[2], self.now)
            if self.next_tick <= self.now:
                self.next_tick = self.now + TICK_S
                if (message := self.agent.resend_due(self.now)) is not None:
                    self.carry(self.down, [message])
            if self.is_connected:
                self.channel.handle_deadline(self.now)
            self.settle()
        else:
            raise AssertionError("the timers run wild")
        self.now = until

    def next_event(self) -> float:
        due = [self.next_tick, *(queue[0][0] for queue in (self.up, self.down) if queue)]
        if self.is_connected and (deadline := self.channel.next_deadline()) is not None:
            due.append(deadline)
        return min(due)

    # --- operations -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        began = self.now
        for _ in range(_MOST_OPERATIONS):
            # The handshake has its own limit of time, which is not what is tried here.
            if self.choices.is_over or (not self.channel.is_started and self.now - began > 20):
                break
            self.operation(self.choices.byte())
            self.settle()
        self.finish()

    def operation(self, kind: int) -> None:
        choices = self.choices
        what = kind & 15
        if what < 4:
            size = min(choices.one_of(_SIZES), self.channel.capacity())
            data = self.random.randbytes(size)
            self.sent_up += data
            self.channel.send_input(data, self.now)
        elif what < 7 and self.channel.is_started:
            data = self.random.randbytes(choices.one_of(_SIZES))
            self.sent_down += data
            for start in range(0, len(data), 1024):
                self.agent_sends(PayloadType.OUTPUT, data[start : start + 1024])
        elif what < 11:
            self.advance(choices.byte() / 200)
        elif what == 11:
            self.lateness_s = choices.one_of(_LATENESS_S)
        elif what == 12:
            self.loss = min(choices.byte(), 0x80)
        elif what == 13 and self.is_connected:
            self.cut()
        elif what == 14 and not self.is_connected:
            self.resume()
        elif what == 15:
            if choices.below(2):
                self.channel.receive(choices.one_of((_PAUSE, _START)), self.now)
            else:
                self.agent.receive(choices.one_of((_PAUSE, _START)), self.now)

    def cut(self) -> None:
        self.is_connected = False
        self.up.clear()
        self.down.clear()
        self.agent.receive(_PAUSE, self.now)

    def resume(self) -> None:
        self.is_connected = True
        self.channel.open("another", self.now)
        self.agent.receive(_START, self.now)
        self.settle()

    def finish(self) -> None:
        self.loss = 0
        self.lateness_s = 0.0
        if not self.is_connected:
            self.resume()
        self.channel.receive(_START, self.now)
        self.agent.receive(_START, self.now)
        self.settle()
        until = self.now + _SOON_S
        while not self.is_at_rest() and self.now < until:
            self.advance(1.0)
        assert self.channel.is_started
        assert self.taken == self.sent_up
        assert self.received == self.sent_down
        assert self.is_at_rest()
        assert self.channel.capacity() == self.window.limit_bytes
        assert self.channel.next_deadline() is None
        assert not self.defects, self.defects

    def is_at_rest(self) -> bool:
        return not self.up and not self.down and self.channel.is_drained and self.agent.all_acknowledged


def check_pair(data: bytes) -> None:
    LossyPair(Choices(data)).run()


TARGETS: dict[str, Callable[[bytes], None]] = {"pair": check_pair}
