"""A data channel and a model agent, joined by links on a virtual clock. No real time passes."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from simulation import wire_sketch
from simulation.fixed_window import FixedWindow
from simulation.model_agent import ModelAgent
from simulation.wire_sketch import Frame

from ssm_proxy.channel.data_channel import HANDSHAKE_TIMEOUT, DataChannel
from ssm_proxy.channel.events import Event, OutputReceived
from ssm_proxy.channel.window import Window
from ssm_proxy.sessions.port import check_stream_session

PAUSE = wire_sketch.pack(Frame("pause_publication", b"{}"))
START = wire_sketch.pack(Frame("start_publication", b"{}"))


def make_channel(
    *,
    window: Window | None = None,
    check_session: Callable[[str, object], str | None] = check_stream_session,
    handshake_timeout: float | None = HANDSHAKE_TIMEOUT,
) -> DataChannel:
    """Give a channel whose ids and dates are the same in every run."""
    ids = itertools.count(1)
    return DataChannel(
        check_session=check_session,
        window=window or FixedWindow(),
        new_message_id=lambda: uuid.UUID(int=(1 << 127) + next(ids)).bytes,
        wall_clock_ms=lambda: 1_700_000_000_000,
        handshake_timeout=handshake_timeout,
    )


@dataclass(kw_only=True)
class Link:
    """One direction: seconds of latency, bytes per second, and the share of messages that meet with an accident."""

    latency: float = 0.01
    bandwidth: float = math.inf
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    lose_next: Callable[[Frame], bool] = lambda frame: False
    free_at: float = 0.0
    sent_count: int = 0


class Pair:
    """Steps from one event to the next, whichever side it is on."""

    def __init__(
        self,
        *,
        agent: ModelAgent | None = None,
        up: Link | None = None,
        down: Link | None = None,
        window: Window | None = None,
        seed: int = 0,
        session_type: str = "Port",
    ) -> None:
        self.channel = make_channel(window=window)
        self.agent = agent or ModelAgent()
        self.up = up or Link()
        self.down = down or Link()
        self.random = random.Random(seed)
        self.now = 1000.0
        self.events: list[Event] = []
        self.received = bytearray()
        self.upload = b""
        self.uploaded = 0
        self.most_unacknowledged = 0
        self.step_count = 0
        self._connected = True
        self._under_way: list[tuple[float, int, bytes, bool]] = []
        self._order = itertools.count()
        self.opening = self.channel.open("token", self.now)
        self.agent.start(self.now, session_type)
        self.settle()

    # --- what tests do ----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Offer input; it is read as the channel has room for it."""
        self.upload += data
        self.settle()

    def cut(self) -> None:
        """Break the client's connection: what is under way on it is gone, and the service pauses the agent."""
        self._under_way.clear()
        self._connected = False
        self.agent.receive(PAUSE, self.now)
        self.settle()

    def resume(self) -> None:
        self._connected = True
        self.opening = self.channel.open("another token", self.now)
        self.agent.receive(START, self.now)
        self.settle()

    def run(self, until: Callable[[], bool] | None = None, *, at_most: float = 60.0) -> float:
        """Step until the condition holds, by default until all is quiet; return the seconds it took."""
        begin = self.now
        done = until or (lambda: self._next_event() == math.inf)
        while not done():
            when = self._next_event()
            assert when < math.inf, "nothing will ever happen any more"
            assert when <= begin + at_most, f"not done after {at_most} s; next event at +{when - begin:.3f} s"
            self.advance_to(when)
        return self.now - begin

    def advance_to(self, when: float) -> None:
        """Move the clock, doing on the way what is due."""
        while (following := self._next_event()) <= when:
            self.step_count += 1
            assert self.step_count < 200_000, "the timers run wild"
            self.now = max(self.now, following)
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, data, is_input = heapq.heappop(self._under_way)
                if is_input:
                    self.agent.receive(data, self.now)
                else:
                    self.channel.receive(data, self.now)
                self.settle()
            self.agent.advance(self.now)
            deadline = self.channel.next_deadline()
            if deadline is not None and deadline <= self.now and self._connected:
                self.channel.handle_deadline(self.now)
            self.settle()
        self.now = max(self.now, when)

    # --- the works --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Do what the driver does after any call, on both sides."""
        while (room := self.channel.input_room(self.now)) and self.uploaded < len(self.upload):
            chunk = self.upload[self.uploaded : self.uploaded + min(room, 65536)]
            self.uploaded += len(chunk)
            self.channel.send_input(chunk, self.now)
        if self._connected:
            for data in self.channel.messages_to_send(self.now):
                self._carry(self.up, data, is_input=True)
        for event in self.channel.events():
            if isinstance(event, OutputReceived):
                self.received += event.payload
            else:
                self.events.append(event)
        self.most_unacknowledged = max(self.most_unacknowledged, self.uploaded - len(self.agent.received))
        for data in self.agent.take():
            if self._connected:
                self._carry(self.down, data, is_input=False)

    def _carry(self, link: Link, data: bytes, *, is_input: bool) -> None:
        link.sent_count += 1
        if link.lose_next(wire_sketch.unpack(data)) or self.random.random() < link.loss:
            return
        link.free_at = max(link.free_at, self.now) + len(data) / link.bandwidth
        arrival = link.free_at + link.latency
        if self.random.random() < link.reorder:
            arrival += self.random.uniform(0, 3 * link.latency + 0.01)
        for _ in range(2 if self.random.random() < link.duplicate else 1):
            heapq.heappush(self._under_way, (arrival, next(self._order), data, is_input))

    def _next_event(self) -> float:
        own = self.channel.next_deadline() if self._connected else None
        due = [math.inf if own is None else own, self.agent.next_deadline()]
        if self._under_way:
            due.append(self._under_way[0][0])
        return min(due)

    @property
    def is_at_rest(self) -> bool:
        return (
            self.uploaded == len(self.upload)
            and self.channel.is_drained
            and self.agent.is_drained
            and not self._under_way
        )
