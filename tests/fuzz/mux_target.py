"""smux: any bytes in any pieces against the sketch, and a session under any list of operations beside a hostile agent.

What the session sends goes to the model of the agent's end, which judges it, whatever nonsense the agent answers.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

from fuzz.choices import Choices
from simulation.smux_sketch import FIN, PSH, SYN, UPD, ModelServer, pack, parse

from ssm_proxy.errors import RemoteProtocolError, TransportTimeout
from ssm_proxy.mux import session as module
from ssm_proxy.mux.session import PATIENCE, ClosingAnswered, MuxSession, StreamClosedByPeer, StreamDataReceived
from ssm_proxy.wire.smux import Frame as DecodedFrame
from ssm_proxy.wire.smux import FrameDecoder

_SIZES = (0, 1, 7, 8, 9, 100, 511, 512, 520, 1024, 4096, 5000, 40_000)
_STEPS = (0.0, 0.5, 3.0, PATIENCE, 30.0, 3600.0)
_SMALL_BOUNDS = {"MAX_UNDELIVERED_BYTES": 3000, "RESUME_BYTES": 300, "MAX_STREAMS": 6, "MAX_STREAM_QUEUED_BYTES": 9000}
"""Otherwise no input of a fuzzer would ever meet them."""
_MOST_OPERATIONS = 300


def check_decoder(data: bytes) -> None:
    """The first byte says how many follow that are places to cut at; the rest is the stream."""
    count = data[0] & 15 if data else 0
    stream = data[1 + count :]
    ends = sorted({*data[1 : 1 + count], len(stream)})
    decoder = FrameDecoder()
    frames: list[DecodedFrame] = []
    is_refused = False
    try:
        for start, end in zip([0, *ends], ends, strict=False):
            decoder.feed(stream[start:end], frames)
    except RemoteProtocolError:
        is_refused = True
    expected, size, is_wrong = parse(stream)
    assert is_refused == is_wrong
    begun = stream[size + 8 :] if not is_wrong and stream[size + 1 : size + 2] == bytes((PSH,)) else b""
    assert _flat(frames) == [*_flat(expected), *([int.from_bytes(stream[size + 4 : size + 8], "little")] * len(begun))]
    assert b"".join(frame.data for frame in frames) == b"".join(d for c, _, d in expected if c == PSH) + begun


def _flat(frames: list[DecodedFrame] | list[tuple[int, int, bytes]]) -> list[object]:
    """Give the stream's id for each byte of data, and commands as they are, so that cuts inside a PSH do not show."""
    flat: list[object] = []
    for command, stream_id, data in frames:
        if command == PSH:
            flat += [stream_id] * len(data)
        elif command != UPD:
            flat.append((command, stream_id))
    return flat


class Machine:
    """A session, its driver and the model of the agent."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.now = 1000.0
        self.session = MuxSession(bool(choices.below(2)), self.now)
        self.agent = ModelServer()
        self.undelivered: dict[int, int] = {}  # of the streams that are open here
        self.closed_by_peer: set[int] = set()
        self.latest = 1
        self.is_over = False

    def run(self) -> None:
        for _ in range(_MOST_OPERATIONS):
            if self.choices.is_over or self.is_over:
                break
            self.operation(self.choices.byte() & 15)
            self.drive()
        while self.session.pending_bytes:
            self.send(1000)
        for stream_id in self.agent.seen:
            is_open = stream_id in self.undelivered and stream_id not in self.closed_by_peer
            assert is_open != (stream_id in self.agent.closed_by_client)

    def operation(self, kind: int) -> None:
        choices = self.choices
        stream_id = 3 + 2 * choices.below(8)
        if kind < 2:
            self.open()
        elif kind < 5:
            self.session.send(stream_id, bytes(min(choices.one_of(_SIZES), self.session.stream_room(stream_id))))
        elif kind == 5:
            self.session.close_stream(stream_id)
            self.undelivered.pop(stream_id, None)
            self.closed_by_peer.discard(stream_id)
        elif kind < 8:
            count = min(choices.one_of(_SIZES), self.undelivered.get(stream_id, 0))
            self.session.consumed(stream_id, count)
            if stream_id in self.undelivered:
                self.undelivered[stream_id] -= count
        elif kind < 10:
            self.receive(pack(PSH, stream_id, bytes(choices.one_of(_SIZES))))
        elif kind == 10:
            self.receive(pack(choices.one_of((SYN, FIN, FIN, UPD)), stream_id))
        elif kind == 11:
            self.receive(choices.take(choices.byte()))
        elif kind < 14:
            self.send(choices.one_of(_SIZES))
        elif kind == 14:
            self.advance(self.now + choices.one_of(_STEPS))
        else:
            self.advance(max(self.now, self.session.next_deadline() or 0.0))

    def open(self) -> None:
        if self.session.may_open:
            stream_id = self.session.open_stream()
            assert stream_id == self.latest + 2
            self.latest = stream_id
            self.undelivered[stream_id] = 0

    def receive(self, data: bytes) -> None:
        if self.session.is_full and self.choices.below(4):  # the driver may be late
            return
        try:
            self.session.receive(data, self.now)
        except RemoteProtocolError:
            self.is_over = True

    def send(self, limit: int) -> None:
        pending = self.session.pending_bytes
        data = self.session.data_to_send(limit)
        assert len(data) <= limit
        assert bool(data) == bool(pending and limit)
        self.agent.receive(data)

    def advance(self, now: float) -> None:
        self.now = now
        try:
            self.session.handle_deadline(now)
        except TransportTimeout:
            self.is_over = True
            return
        deadline = self.session.next_deadline()
        assert deadline is None or deadline > now, "a deadline in the past makes the driver spin"

    def drive(self) -> None:
        for event in self.session.events():
            stream_id = event.stream_id
            if isinstance(event, StreamDataReceived):
                assert event.data
                assert stream_id not in self.closed_by_peer
                self.undelivered[stream_id] += len(event.data)
            elif isinstance(event, StreamClosedByPeer):
                assert stream_id not in self.closed_by_peer
                self.closed_by_peer.add(stream_id)
            elif isinstance(event, ClosingAnswered):
                assert stream_id not in self.undelivered
            else:
                assert event.undelivered_bytes == self.undelivered.pop(stream_id)
                assert self.undelivered, "it was alone"
                self.closed_by_peer.discard(stream_id)
        for stream_id in self.undelivered:
            room = self.session.stream_room(stream_id)
            assert 0 <= room <= module.MAX_STREAM_QUEUED_BYTES
            assert not room or stream_id not in self.closed_by_peer
        waiting = sum(self.undelivered.values())
        assert self.session.is_full or waiting < module.MAX_UNDELIVERED_BYTES
        assert not self.session.is_full or waiting > module.MAX_UNDELIVERED_BYTES - module.RESUME_BYTES


def check_session(data: bytes) -> None:
    with mock.patch.multiple(module, **_SMALL_BOUNDS):
        Machine(Choices(data)).run()


TARGETS: dict[str, Callable[[bytes], None]] = {"smux": check_decoder, "mux": check_session}
