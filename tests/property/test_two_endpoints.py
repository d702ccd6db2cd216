"""The data channel against the model agent over links that lose, repeat and reorder, under any sequence of events.

At rest everything arrived once and in order, both ways, and nothing is unacknowledged.
"""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation.fixed_window import FixedWindow
from simulation.model_agent import ModelAgent
from simulation.pair import PAUSE, START, make_channel

from ssm_proxy.channel.data_channel import MAX_PAYLOAD_BYTES
from ssm_proxy.channel.events import MessageDropped, OutputReceived, PublicationChanged, SessionStarted

WINDOW = 20 * MAX_PAYLOAD_BYTES
SIZES = st.integers(1, 5000)


class TwoEndpoints(RuleBasedStateMachine):
    """The rules move single messages; nothing happens by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = make_channel(window=FixedWindow(WINDOW))
        self.agent = ModelAgent()
        self.now = 1.0
        self.up: list[bytes] = []  # under way to the agent
        self.down: list[bytes] = []
        self.connected = True
        self.sent_up = bytearray()
        self.sent_down = bytearray()
        self.received = bytearray()
        self.bytes = random.Random(1)

    @initialize()
    def begin(self) -> None:
        self.channel.open("token", self.now)
        self.agent.start(self.now)
        self.settle()

    def settle(self) -> None:
        """Do what the driver does after any call."""
        if self.connected:
            self.up += self.channel.messages_to_send(self.now)
        for event in self.channel.events():
            if isinstance(event, OutputReceived):
                self.received += event.payload
            else:
                assert isinstance(event, SessionStarted | PublicationChanged | MessageDropped), event
        out = self.agent.take()
        if self.connected:
            self.down += out

    # --- the two ends -----------------------------------------------------------------------------------------------

    @rule(size=SIZES)
    def send_input(self, size: int) -> None:
        data = self.bytes.randbytes(min(size, self.channel.capacity()))
        self.sent_up += data
        self.channel.send_input(data, self.now)
        self.settle()

    @precondition(lambda self: self.channel.is_started)
    @rule(size=SIZES)
    def send_output(self, size: int) -> None:
        data = self.bytes.randbytes(size)
        self.sent_down += data
        self.agent.send(data, self.now)
        self.settle()

    @rule(milliseconds=st.integers(1, 3000))
    def advance_time(self, milliseconds: int) -> None:
        # The handshake has a bounded time (45 s), which is not what is tried here.
        self.now += (milliseconds if self.channel.is_started else min(milliseconds, 500)) / 1000
        self.agent.advance(self.now)
        if self.connected:
            self.channel.handle_deadline(self.now)
        self.settle()

    # --- the link ---------------------------------------------------------------------------------------------------

    def deliver(self, data: bytes, *, is_input: bool) -> None:
        if is_input:
            self.agent.receive(data, self.now)
            self.agent.advance(self.now)
        else:
            self.channel.receive(data, self.now)
        self.settle()

    @rule(count=st.integers(1, 10))
    def deliver_input(self, count: int) -> None:
        for _ in range(min(count, len(self.up))):
            self.deliver(self.up.pop(0), is_input=True)

    @rule(count=st.integers(1, 10))
    def deliver_output(self, count: int) -> None:
        for _ in range(min(count, len(self.down))):
            self.deliver(self.down.pop(0), is_input=False)

    @rule(data=st.data(), is_input=st.booleans(), what=st.sampled_from(["drop", "duplicate", "overtake"]))
    def mishap(self, data: st.DataObject, is_input: bool, what: str) -> None:
        queue = self.up if is_input else self.down
        if not queue:
            return
        at = data.draw(st.integers(0, len(queue) - 1))
        if what == "drop":
            del queue[at]
        elif what == "duplicate":
            queue.append(queue[at])
        else:
            queue.insert(0, queue.pop(at))

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        self.up.clear()
        self.down.clear()
        self.agent.receive(PAUSE, self.now)

    @precondition(lambda self: not self.connected)
    @rule()
    def resume(self) -> None:
        self.connected = True
        self.channel.open("token", self.now)
        self.agent.receive(START, self.now)
        self.settle()

    @rule(data=st.sampled_from([PAUSE, START]), to_client=st.booleans())
    def publication(self, data: bytes, to_client: bool) -> None:
        self.deliver(data, is_input=not to_client)

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def both_ways_a_prefix_has_arrived(self) -> None:
        assert self.sent_up.startswith(self.agent.received)
        assert self.sent_down.startswith(self.received)
        assert self.agent.discarded_bytes == 0

    @invariant()
    def the_window_holds(self) -> None:
        assert 0 <= self.channel.capacity() <= WINDOW
        assert len(self.sent_up) - len(self.agent.received) <= WINDOW

    @invariant()
    def no_deadline_lies_in_the_past(self) -> None:
        deadline = self.channel.next_deadline()
        assert not self.connected or deadline is None or deadline > self.now
        assert not self.channel.is_closed

    def teardown(self) -> None:
        """Let the link be good from now on: all comes to rest, and soon."""
        if not self.connected:
            self.resume()
        for data in (START,):
            self.deliver(data, is_input=False)
            self.deliver(data, is_input=True)
        for _ in range(3000):
            while self.up or self.down:
                if self.up:
                    self.deliver(self.up.pop(0), is_input=True)
                if self.down:
                    self.deliver(self.down.pop(0), is_input=False)
            due = [self.agent.next_deadline(), self.channel.next_deadline() or float("inf")]
            if min(due) == float("inf"):
                break
            self.now = max(self.now, min(due)) + 0.001
            self.agent.advance(self.now)
            self.channel.handle_deadline(self.now)
            self.settle()
        assert self.channel.is_started
        assert self.agent.received == self.sent_up
        assert self.received == self.sent_down
        assert self.channel.is_drained
        assert self.agent.is_drained
        assert self.channel.capacity() == WINDOW


TestTwoEndpoints = TwoEndpoints.TestCase
TestTwoEndpoints.settings = settings(max_examples=60, stateful_step_count=50)
