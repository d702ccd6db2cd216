"""The client's side of smux version 1: streams, their turns, and how much each may hold (docs/PROTOCOL.md section 8.8).

Bytes of local connections go in by ``send`` and come out framed by ``data_to_send``; bytes from the agent go in by
``receive`` and come out by ``events``. Neither direction has a window in the protocol. What bounds memory, and what is
done about a local reader that stands still, is in docs/design/0008-forwarding.md.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ssm_proxy.errors import LocalProtocolError, TransportTimeout
from ssm_proxy.wire.smux import (
    FIN,
    HEADER_BYTES,
    MAX_SENT_DATA_BYTES,
    MAX_STREAM_ID,
    NOP,
    PSH,
    SYN,
    Frame,
    FrameDecoder,
    encode_header,
)

MAX_STREAMS = 1024
"""At once. As many wait at the agent to be dialled (8.8); local connections beyond wait in the listener's queue."""
MAX_QUEUED_BYTES = 1024 * 1024
"""Towards the agent, shared evenly by the streams, within the two limits that follow."""
MAX_STREAM_QUEUED_BYTES = 64 * 1024
MIN_STREAM_QUEUED_BYTES = 8 * 1024
SHARED_DATA_BYTES = 4 * 1024
"""Data of a frame while others wait for their turn: that long a short request stands behind each bulk upload."""
SMALLEST_CUT_BYTES = 512
"""Frames are made to end where a call's limit ends, but not smaller than this for that reason: headers cost too."""

MAX_UNANSWERED = 4 * MAX_STREAMS
"""Streams that were closed here and not yet there, of which this is remembered; what follows the protocol answers each
FIN with FIN (8.8)."""

MAX_UNDELIVERED_BYTES = 16 * 1024 * 1024
"""From the agent, of all streams together. Beyond this nothing should be received. At the agent's pace of 1 MB/s a
reader may pause for 16 s, and what its socket holds, before anybody notices."""
RESUME_BYTES = 256 * 1024
"""Local readers have to take so much before receiving goes on: one that takes less in ``PATIENCE`` stands still."""
PATIENCE = 10.0
"""Seconds that nothing is received for the sake of one slow reader while others starve."""

NOP_INTERVAL = 10.0
MAX_SILENCE = 30.0

_FIRST_STREAM_ID = 3
_NOP_FRAME = encode_header(NOP, 0)


class StreamDataReceived(NamedTuple):
    """Bytes for a local connection, in order. Tell ``MuxSession.consumed`` when they are written there."""

    stream_id: int
    data: bytes


class StreamClosedByPeer(NamedTuple):
    """The other end closed the stream, both ways; no data of it follows.

    What was received before is still to be delivered; then call ``MuxSession.close_stream``.
    """

    stream_id: int


class StreamGivenUp(NamedTuple):
    """The stream was closed because its local reader stood still while others starved. Nothing of it follows.

    Throw away what waits for the reader, and reset the local connection instead of closing it: what the reader got so
    far must not look whole.
    """

    stream_id: int
    undelivered_bytes: int


class ClosingAnswered(NamedTuple):
    """The other end has closed a stream too that ``close_stream`` had closed: it has dealt with all that was sent.

    ``has_received`` says whether any data ever came of it, however late.
    """

    stream_id: int
    has_received: bool


Event = StreamDataReceived | StreamClosedByPeer | StreamGivenUp | ClosingAnswered


class _Stream:
    __slots__ = (
        "awaits_answer",
        "has_received",
        "heard_at",
        "is_closed_by_peer",
        "is_forgotten",
        "needs_fin",
        "needs_syn",
        "queue",
        "stream_id",
        "undelivered",
    )

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.queue = bytearray()  # data that has to leave
        self.needs_syn = True
        self.needs_fin = False
        self.undelivered = 0  # bytes handed out, not yet consumed
        self.has_received = False
        self.awaits_answer = True  # opened or sent to, and nothing came since
        self.heard_at = float("-inf")
        self.is_closed_by_peer = False
        self.is_forgotten = False  # the local side is done with it; it lives until its FIN has left

    @property
    def has_turn(self) -> bool:
        return self.needs_syn or self.needs_fin or bool(self.queue)


class MuxSession:
    """All connections of one port session.

    After any call take ``events``, send what ``data_to_send`` gives, look at ``next_deadline`` and ``is_full`` anew.
    Calls about a stream that has been closed or given up are ignored: a local connection may speak before its owner has
    seen the event. Events that were taken before a stream was closed may still name it.

    Args:
        keepalive: whether the agent is so old that it expects NOPs (6.6, 12.16).
        now: seconds, monotonic, as in all calls.
    """

    def __init__(self, keepalive: bool, now: float) -> None:
        self._decoder = FrameDecoder()
        self._streams: dict[int, _Stream] = {}
        self._next_stream_id = _FIRST_STREAM_ID
        self._events: list[Event] = []

        self._unanswered: dict[int, bool] = {}  # streams closed here first, with ``has_received``, oldest first

        self._turns: deque[_Stream] = deque()  # streams with something to send, each once
        self._draining = 0  # how many of them are forgotten
        self._queued = 0  # bytes of data, and of commands, that are not framed yet
        self._rest = b""  # of a frame whose beginning has left

        self._undelivered = 0
        self._full_since: float | None = None

        self._keepalive = keepalive
        self._nop_at = now + NOP_INTERVAL
        self._needs_nop = False
        self._heard_at = now

    # --- local connections ------------------------------------------------------------------------------------------

    @property
    def may_open(self) -> bool:
        """Whether ``open_stream`` may be called; otherwise leave the local connection where it waits to be accepted."""
        return len(self._streams) + self._draining < MAX_STREAMS

    def open_stream(self) -> int:
        """Open a stream, for which the agent dials the destination; give its id. Data may follow at once.

        Raises:
            LocalProtocolError: there are ``MAX_STREAMS``, or all 2**31 ids of the session have been used.
        """
        if not self.may_open or self._next_stream_id > MAX_STREAM_ID:
            raise LocalProtocolError("no more streams may be opened in this session")
        stream = self._streams[self._next_stream_id] = _Stream(self._next_stream_id)
        self._next_stream_id += 2
        self._turns.append(stream)
        self._queued += HEADER_BYTES
        return stream.stream_id

    def stream_room(self, stream_id: int) -> int:
        """Give how many bytes to read from the local connection now for ``send``. Grows when data leaves."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_closed_by_peer:
            return 0
        share = MAX_QUEUED_BYTES // (len(self._streams) + self._draining)
        limit = max(MIN_STREAM_QUEUED_BYTES, min(share, MAX_STREAM_QUEUED_BYTES))
        return max(0, limit - len(stream.queue))

    def send(self, stream_id: int, data: bytes) -> None:
        """Take bytes for the destination, at most ``stream_room`` of them."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_closed_by_peer or not data:
            return
        if not stream.has_turn:
            self._turns.append(stream)
        stream.queue += data
        stream.awaits_answer = True
        self._queued += len(data)

    def close_stream(self, stream_id: int) -> None:
        """Close both ways: what was sent still leaves, what is undelivered is forgotten, what still comes is dropped.

        The destination may drop what it has not answered yet (12.15): where an answer is wanted, wait for
        ``StreamClosedByPeer``. Call it once for each stream that was opened, unless it was given up.
        """
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        if not stream.is_closed_by_peer:
            self._finish(stream)
            self._unanswered[stream_id] = stream.has_received
            if len(self._unanswered) > MAX_UNANSWERED:
                del self._unanswered[next(iter(self._unanswered))]
        if stream.has_turn:
            stream.is_forgotten = True
            self._draining += 1
        self._take_off(stream, stream.undelivered)

    def consumed(self, stream_id: int, count: int) -> None:
        """Say that the local reader took ``count`` bytes of what was received.

        Raises:
            LocalProtocolError: more than there were.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if count > stream.undelivered:
            raise LocalProtocolError(f"{count} bytes delivered of {stream.undelivered} received")
        self._take_off(stream, count)

    @property
    def unanswered_count(self) -> int:
        """How many streams were closed here, and the other end has not yet answered that."""
        return len(self._unanswered)

    # --- towards the agent ------------------------------------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for ``data_to_send``, the headers of data aside; 0 if there is nothing to send."""
        return self._queued + len(self._rest)

    def is_sent(self, stream_id: int) -> bool:
        """Say whether ``data_to_send`` has given all that a stream had."""
        stream = self._streams.get(stream_id)
        return stream is None or not (stream.has_turn or self._rest)

    def data_to_send(self, limit: int) -> bytes:
        """Give at most ``limit`` bytes for the channel. Streams take turns, a frame each, also from call to call."""
        out = bytearray(self._rest)
        if self._needs_nop:
            out += _NOP_FRAME
            self._needs_nop = False
            self._queued -= HEADER_BYTES
        while len(out) < limit and self._turns:
            stream = self._turns.popleft()
            self._take_turn(stream, out, limit)
            if stream.has_turn:
                self._turns.append(stream)
            elif stream.is_forgotten:
                self._draining -= 1
        self._rest = bytes(out[limit:])
        return bytes(out[:limit])

    def _take_turn(self, stream: _Stream, out: bytearray, limit: int) -> None:
        if stream.needs_syn:
            stream.needs_syn = False
            self._add_command(SYN, stream, out)
        if stream.queue:
            room = max(limit - len(out) - HEADER_BYTES, SMALLEST_CUT_BYTES)
            size = min(len(stream.queue), SHARED_DATA_BYTES if self._turns else MAX_SENT_DATA_BYTES, room)
            out += encode_header(PSH, stream.stream_id, size)
            out += stream.queue[:size]
            del stream.queue[:size]
            self._queued -= size
        if stream.needs_fin and not stream.queue:
            stream.needs_fin = False
            self._add_command(FIN, stream, out)

    def _add_command(self, command: int, stream: _Stream, out: bytearray) -> None:
        out += encode_header(command, stream.stream_id)
        self._queued -= HEADER_BYTES

    def _finish(self, stream: _Stream) -> None:
        if not stream.has_turn:
            self._turns.append(stream)
        stream.needs_fin = True
        self._queued += HEADER_BYTES

    # --- from the agent ---------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether so much waits for local readers that nothing more should be received."""
        return self._full_since is not None

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes of the session's output, cut anywhere.

        Raises:
            RemoteProtocolError: they are no smux frames. The session cannot go on; what came before is in ``events``.
        """
        self._heard_at = now
        frames: list[Frame] = []
        try:
            self._decoder.feed(data, frames)
        finally:
            for command, stream_id, payload in frames:
                stream = self._streams.get(stream_id)
                if stream is None:
                    self._receive_late(command, stream_id)
                elif stream.is_closed_by_peer:
                    continue
                elif command == PSH:
                    stream.has_received = True
                    stream.undelivered += len(payload)
                    self._undelivered += len(payload)
                    stream.awaits_answer = False
                    stream.heard_at = now
                    self._events.append(StreamDataReceived(stream_id, payload))
                elif command == FIN:
                    self._closed_by_peer(stream)
        if self._full_since is None and self._undelivered >= MAX_UNDELIVERED_BYTES:
            self._full_since = now

    def _receive_late(self, command: int, stream_id: int) -> None:
        """Take a frame of a stream that is closed here, or that never was."""
        if stream_id not in self._unanswered:
            return
        if command == PSH:
            self._unanswered[stream_id] = True
        elif command == FIN:
            self._events.append(ClosingAnswered(stream_id, self._unanswered.pop(stream_id)))

    def events(self) -> list[Event]:
        """Give what happened since the last call."""
        events, self._events = self._events, []
        return events

    def _closed_by_peer(self, stream: _Stream) -> None:
        stream.is_closed_by_peer = True
        self._finish(stream)  # first, because a stream with data waits for its turn already
        self._queued -= len(stream.queue)
        stream.queue.clear()
        self._events.append(StreamClosedByPeer(stream.stream_id))

    def _take_off(self, stream: _Stream, count: int) -> None:
        stream.undelivered -= count
        self._undelivered -= count
        if self._undelivered <= MAX_UNDELIVERED_BYTES - RESUME_BYTES:
            self._full_since = None

    # --- time -------------------------------------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """Begin to wait for a sign of the agent's multiplexer anew: a connection was opened."""
        self._heard_at = now

    def next_deadline(self) -> float | None:
        """Give the time at which ``handle_deadline`` is due if nothing else happens before. It may have passed."""
        deadlines = []
        if self._full_since is not None and self._somebody_starves(self._full_since):
            deadlines.append(self._full_since + PATIENCE)
        if self._keepalive:
            deadlines += [self._nop_at, self._heard_at + MAX_SILENCE]
        return min(deadlines, default=None)

    def handle_deadline(self, now: float) -> None:
        """Do what is due.

        Raises:
            TransportTimeout: nothing was heard of the agent's multiplexer although it should send NOPs.
        """
        while (
            self._full_since is not None
            and now >= self._full_since + PATIENCE
            and self._somebody_starves(self._full_since)
        ):
            self._give_up_the_fullest()
        if not self._keepalive:
            return
        if self._full_since is not None:
            self._heard_at = now  # nothing can be heard while nothing is received
        elif now >= self._heard_at + MAX_SILENCE:
            raise TransportTimeout(
                "the agent's end of the forwarding went silent", cause=f"no frame from it for {MAX_SILENCE:.0f} s"
            )
        if now >= self._nop_at:
            self._nop_at = now + NOP_INTERVAL
            if not self._needs_nop:
                self._needs_nop = True
                self._queued += HEADER_BYTES

    def _somebody_starves(self, full_since: float) -> bool:
        """Say whether a stream wants to receive: its reader took everything, and it was being served or it asked."""
        return any(
            not stream.undelivered
            and not stream.is_closed_by_peer
            and (stream.awaits_answer or stream.heard_at >= full_since - PATIENCE)
            for stream in self._streams.values()
        )

    def _give_up_the_fullest(self) -> None:
        stream = max(self._streams.values(), key=lambda stream: stream.undelivered)
        self._events.append(StreamGivenUp(stream.stream_id, stream.undelivered))
        self.close_stream(stream.stream_id)
