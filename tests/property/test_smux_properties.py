"""smux: any cut of any stream, and many streams at once against a model of the agent's end with a codec of its own."""

from __future__ import annotations

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation.smux_sketch import FIN, NOP, PSH, SYN, UPD, ModelServer, pack, parse

from ssm_proxy.errors import RemoteProtocolError
from ssm_proxy.mux import session as module
from ssm_proxy.mux.session import (
    PATIENCE,
    ClosingAnswered,
    MuxSession,
    StreamClosedByPeer,
    StreamDataReceived,
    StreamGivenUp,
)
from ssm_proxy.wire.smux import Frame, FrameDecoder

ALL = 10**9
"""Bytes: more than any example writes."""
IDS = st.sampled_from([0, 2, 3, 5, 7, 2**32 - 1])
FRAMES = st.one_of(
    st.builds(pack, st.sampled_from([SYN, FIN, NOP]), IDS),
    st.builds(pack, st.just(PSH), IDS, st.binary(max_size=40)),
    st.builds(pack, st.just(UPD), IDS, st.binary(min_size=8, max_size=8)),
)
STREAMS = st.one_of(
    st.binary(max_size=60), st.builds(b"".join, st.lists(st.one_of(FRAMES, FRAMES, st.binary(max_size=9))))
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(stream)) for place in places} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def decode(pieces: list[bytes]) -> tuple[list[object], bool]:
    """Give what came out, one entry for each byte of data, and whether the stream was refused."""
    decoder = FrameDecoder()
    frames: list[Frame] = []
    is_refused = False
    try:
        for piece in pieces:
            decoder.feed(piece, frames)
    except RemoteProtocolError:
        is_refused = True
    flat: list[object] = []
    for command, stream_id, data in frames:
        assert data or command != PSH
        flat += [(stream_id, byte) for byte in data] if command == PSH else [(command, stream_id, data)]
    return flat, is_refused


@given(stream=STREAMS, places=st.lists(st.integers(0, 200)))
def test_any_cut_of_any_bytes_gives_what_the_sketch_reads(stream: bytes, places: list[int]) -> None:
    ours, is_refused = decode(cut(stream, places))
    whole, size, is_wrong = parse(stream)
    assert is_refused == is_wrong
    theirs: list[object] = []
    for command, stream_id, data in whole:
        if command == PSH:
            theirs += [(stream_id, byte) for byte in data]
        elif command != UPD:
            theirs.append((command, stream_id, data))
    assert ours[: len(theirs)] == theirs
    # Behind the last whole frame there may be the beginning of one more PSH.
    begun = stream[size + 8 :] if not is_wrong and stream[size + 1 : size + 2] == b"\2" else b""
    assert [each[1] for each in ours[len(theirs) :]] == list(begun)  # type: ignore[index]


class ManyStreams(RuleBasedStateMachine):
    """Two ends and the two streams of bytes between them; the rules move pieces of any size.

    The bounds of memory are made small, so that they are met all the time.
    """

    MAX_UNDELIVERED = 3000
    RESUME = 300
    MAX_STREAMS = 12

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch.object(module, "MAX_UNDELIVERED_BYTES", self.MAX_UNDELIVERED),
            mock.patch.object(module, "RESUME_BYTES", self.RESUME),
            mock.patch.object(module, "MAX_STREAMS", self.MAX_STREAMS),
            mock.patch.object(module, "MAX_STREAM_QUEUED_BYTES", 3000),
            mock.patch.object(module, "MIN_STREAM_QUEUED_BYTES", 500),
            mock.patch.object(module, "MAX_QUEUED_BYTES", 10_000),
        ]
        for patch in self.patches:
            patch.start()
        self.now = 1.0
        self.session = MuxSession(False, self.now)
        self.agent = ModelServer()
        self.up = bytearray()  # under way to the agent
        self.sent_up: dict[int, bytearray] = {}
        self.got_up: dict[int, bytearray] = {}
        self.sent_down: dict[int, bytearray] = {}
        self.got_down: dict[int, bytearray] = {}
        self.local: dict[int, bytearray] = {}  # open here -> what its reader has not taken
        self.ended: set[int] = set()  # open here, closed by the agent
        self.closed_locally: set[int] = set()
        self.given_up: set[int] = set()
        self.full_since: float | None = None
        self.served_at: dict[int, float] = {}
        self.count = 0

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            for patch in self.patches:
                patch.stop()

    def pattern(self, size: int) -> bytes:
        """Give bytes that hardly repeat, so that none can take the place of others."""
        self.count += 1
        return (self.count.to_bytes(3, "big") * (size // 3 + 1))[:size]

    def choose(self, data: st.DataObject, among: object) -> int:
        return data.draw(st.sampled_from(sorted(among)))  # type: ignore[call-overload, no-any-return]

    # --- local connections ------------------------------------------------------------------------------------------

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.connect()
        self.exchange()

    @precondition(lambda self: self.session.may_open)
    @rule()
    def connect(self) -> None:
        stream_id = self.session.open_stream()
        assert stream_id not in self.local
        self.local[stream_id] = bytearray()
        self.sent_up[stream_id] = bytearray()
        self.sent_down[stream_id] = bytearray()
        self.got_down[stream_id] = bytearray()

    @precondition(lambda self: self.local)
    @rule(data=st.data(), size=st.integers(1, 4000))
    def write_locally(self, data: st.DataObject, size: int) -> None:
        stream_id = self.choose(data, self.local)
        block = self.pattern(min(size, self.session.stream_room(stream_id)))
        self.session.send(stream_id, block)
        self.sent_up[stream_id] += block

    @precondition(lambda self: self.local)
    @rule(data=st.data(), size=st.integers(1, 4000))
    def read_locally(self, data: st.DataObject, size: int) -> None:
        self.take_locally(self.choose(data, self.local), size)

    def take_locally(self, stream_id: int, size: int) -> None:
        waiting = self.local[stream_id]
        block = bytes(waiting[:size])
        del waiting[:size]
        self.got_down[stream_id] += block
        self.session.consumed(stream_id, len(block))

    @precondition(lambda self: self.local)
    @rule(data=st.data())
    def close_locally(self, data: st.DataObject) -> None:
        stream_id = self.choose(data, self.local)
        self.session.close_stream(stream_id)
        self.closed_locally.add(stream_id)
        del self.local[stream_id]

    # --- the agent --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.agent.open)
    @rule(data=st.data(), size=st.integers(1, 4000))
    def agent_reads(self, data: st.DataObject, size: int) -> None:
        self.read_at_agent(self.choose(data, self.agent.open), size)

    def read_at_agent(self, stream_id: int, size: int) -> None:
        self.got_up.setdefault(stream_id, bytearray()).extend(self.agent.read(stream_id, size))

    @precondition(lambda self: self.agent.open)
    @rule(data=st.data(), size=st.integers(1, 4000))
    def agent_writes(self, data: st.DataObject, size: int) -> None:
        self.write_at_agent(self.choose(data, self.agent.open), size)

    def write_at_agent(self, stream_id: int, size: int) -> None:
        block = self.pattern(size)
        self.agent.write(stream_id, block)
        self.sent_down[stream_id] += block

    @precondition(lambda self: self.agent.open and not self.session.is_full)
    @rule(data=st.data())
    def agent_floods(self, data: st.DataObject) -> None:
        self.write_at_agent(self.choose(data, self.agent.open), 2 * self.MAX_UNDELIVERED)
        self.exchange()

    @precondition(lambda self: self.agent.open)
    @rule(data=st.data())
    def agent_closes(self, data: st.DataObject) -> None:
        self.agent.close(self.choose(data, self.agent.open))

    # --- the way ----------------------------------------------------------------------------------------------------

    @rule(limit=st.integers(0, 6000))
    def send(self, limit: int) -> None:
        pending = self.session.pending_bytes
        data = self.session.data_to_send(limit)
        assert len(data) <= limit
        assert len(data) == limit or self.session.pending_bytes == 0, "there was more to send"
        assert bool(data) == bool(pending and limit)
        self.up += data

    @precondition(lambda self: self.up)
    @rule(size=st.integers(1, 6000))
    def arrive_at_agent(self, size: int) -> None:
        self.agent.receive(bytes(self.up[:size]))
        del self.up[:size]

    @precondition(lambda self: self.agent.out and not self.session.is_full)
    @rule(size=st.integers(1, 6000))
    def arrive_here(self, size: int) -> None:
        data = bytes(self.agent.out[:size])
        del self.agent.out[:size]
        self.session.receive(data, self.now)
        self.take_events()

    @rule()
    def exchange(self) -> None:
        """Move all there is, as far as there is room for it."""
        self.send(6000)
        self.agent.receive(bytes(self.up))
        self.up.clear()
        while self.agent.out and not self.session.is_full:
            self.arrive_here(1000)

    @rule(seconds=st.sampled_from([0.5, 3.0, PATIENCE, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.session.next_deadline()
        is_due = deadline is not None and deadline <= self.now
        self.session.handle_deadline(self.now)
        before = len(self.given_up)
        self.take_events()
        assert (len(self.given_up) > before) == is_due
        if is_due:
            assert not self.session.is_full

    # --- what is told -----------------------------------------------------------------------------------------------

    def take_events(self) -> None:
        for event in self.session.events():
            stream_id = event.stream_id
            if isinstance(event, ClosingAnswered):
                assert stream_id not in self.local
                continue
            assert stream_id in self.local, "of no interest any more"
            if isinstance(event, StreamDataReceived):
                assert stream_id not in self.ended
                self.local[stream_id] += event.data
                self.served_at[stream_id] = self.now
            elif isinstance(event, StreamClosedByPeer):
                assert stream_id not in self.ended
                self.ended.add(stream_id)
                # A FIN is behind all data of its stream.
                assert self.got_down[stream_id] + self.local[stream_id] == self.sent_down[stream_id]
            else:
                self.check_given_up(event)

    def check_given_up(self, event: StreamGivenUp) -> None:
        waiting = self.local.pop(event.stream_id)
        assert event.undelivered_bytes == len(waiting)
        assert all(len(other) <= len(waiting) for other in self.local.values()), "another reader is further behind"
        assert any(not other for other in self.local.values()), "nobody starved"
        assert self.full_since is not None
        assert self.now >= self.full_since + PATIENCE
        self.given_up.add(event.stream_id)

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def memory_is_bounded(self) -> None:
        undelivered = sum(map(len, self.local.values()))
        assert undelivered < self.MAX_UNDELIVERED + 6000
        if self.session.is_full:
            assert undelivered > self.MAX_UNDELIVERED - self.RESUME
            self.full_since = self.now if self.full_since is None else self.full_since
        else:
            assert undelivered < self.MAX_UNDELIVERED
            self.full_since = None
        largest = self.MAX_STREAMS * 3000
        assert self.session.pending_bytes <= largest + 16 * self.MAX_STREAMS + 512 + 8
        for stream_id in self.local:
            assert 0 <= self.session.stream_room(stream_id) <= 3000

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        if not self.session.is_full:
            return
        starving = [
            stream_id
            for stream_id, waiting in self.local.items()
            if not waiting and stream_id not in self.ended and stream_id not in self.served_at
        ]
        deadline = self.session.next_deadline()
        if starving:  # opened, and nothing came yet
            assert deadline is not None
            assert deadline <= self.now + PATIENCE

    @invariant()
    def a_prefix_has_arrived_in_order(self) -> None:
        for stream_id, got in self.got_up.items():
            assert self.sent_up[stream_id].startswith(got)
        for stream_id, got in self.got_down.items():
            assert self.sent_down[stream_id].startswith(got)

    def settle(self) -> None:
        """Let everybody read and everything arrive."""
        rounds = 0
        while self.session.pending_bytes or self.up or self.agent.out or any(self.local.values()):
            rounds += 1
            assert rounds < 10_000, "it never comes to rest"
            self.up += self.session.data_to_send(5000)
            self.agent.receive(bytes(self.up))
            self.up.clear()
            for stream_id in list(self.agent.open):
                self.read_at_agent(stream_id, ALL)
            for stream_id in list(self.local):
                self.take_locally(stream_id, ALL)
            if not self.session.is_full:
                self.session.receive(bytes(self.agent.out[:5000]), self.now)
                del self.agent.out[:5000]
            self.take_events()
        for stream_id in list(self.agent.open):
            self.read_at_agent(stream_id, ALL)
        assert not self.session.is_full
        assert self.agent.closed_by_client == self.closed_locally | self.ended | self.given_up
        for stream_id in self.agent.open:
            assert self.got_up.get(stream_id, b"") == self.sent_up[stream_id]
            if stream_id in self.local:
                assert self.got_down[stream_id] == self.sent_down[stream_id]
        assert set(self.agent.seen) == set(self.sent_up)
        assert self.session.may_open == (len(self.local) < self.MAX_STREAMS)


ManyStreams.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestManyStreams = ManyStreams.TestCase
