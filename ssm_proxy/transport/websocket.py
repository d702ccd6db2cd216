"""One open WebSocket, used without blocking; the door at which the exceptions of the socket stop.

The socket is driven here and not by websocket-client, whose ``send`` and ``recv`` make several system calls for each
message; one call moves many messages. How it is opened is in ``opening``, what its frames look like in ``frames``.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import deque

from ssm_proxy.errors import TransportClosed, TransportError
from ssm_proxy.transport.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameParser, code_frames

READ_BYTES = 64 * 1024
MAX_READS_IN_A_ROW = 4
SEND_CHUNK_BYTES = 16 * 1024
"""What is offered to the socket in one call: one TLS record. A write that TLS refused has to be repeated with the same
bytes, so nothing can be put ahead of them any more; more than a record would delay what is urgent and win nothing."""
PING_PAYLOAD = b"keepalive"
_CLOSE_NORMAL = b"\x03\xe8"
_NOTHING = memoryview(b"")


class WebSocketTransport:
    """An open WebSocket whose calls never block.

    What is sent is queued in two lanes; ``flush`` writes what the socket takes, the lane ahead first. ``flush`` and
    ``receive`` raise :class:`TransportClosed` once the connection has ended, in whatever way: any close code is routine
    (2.5).
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._ahead: deque[bytes] = deque()
        self._behind: deque[bytes] = deque()
        self._leaving = _NOTHING  # whole frames when they were taken from the lanes
        self._queued_ahead_bytes = 0
        self._parser = FrameParser()
        self._ended: TransportClosed | None = None
        self.bytes_received = 0
        """Counts all that was read from the connection: a sign of life."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` has something left to do."""
        return bool(self._leaving or self._ahead or self._behind) or self._parser.unanswered_ping is not None

    @property
    def queued_ahead_bytes(self) -> int:
        """Bytes of the lane ahead that have not begun to leave."""
        return self._queued_ahead_bytes

    def send(self, messages: list[bytes]) -> None:
        """Queue binary messages, in order."""
        self._queue(self._behind, BINARY, messages)

    def send_ahead(self, messages: list[bytes]) -> None:
        """Queue binary messages, in order, ahead of all that ``send`` queued and that has not begun to leave.

        At most ``SEND_CHUNK_BYTES`` have begun to leave, or one message if it is larger.
        """
        self._queue(self._ahead, BINARY, messages)

    def send_text(self, text: str) -> None:
        """Queue one text message ahead."""
        self._queue(self._ahead, TEXT, [text.encode()])

    def ping(self) -> None:
        """Queue a ping (2.3) ahead."""
        self._queue(self._ahead, PING, [PING_PAYLOAD])

    def flush(self) -> None:
        """Write what the socket takes now.

        Raises:
            TransportClosed: the connection has ended.
        """
        while self._leaving or self._load():
            try:
                sent = self._socket.send(self._leaving)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except (OSError, ValueError) as error:
                self._drop_queues()
                raise TransportClosed("the connection broke while sending", cause=describe(error)) from error
            self._leaving = self._leaving[sent:]

    def receive(self) -> list[bytes]:
        """Give the messages that have arrived, without waiting for more.

        Raises:
            TransportClosed: the connection has ended, and everything before that was given.
            RemoteProtocolError: what arrived is no WebSocket, or a message is larger than any should be.
        """
        if self._ended is not None:
            raise self._ended
        messages: list[bytes] = []
        for _ in range(MAX_READS_IN_A_ROW):
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except (OSError, ValueError) as error:
                self._ended = TransportClosed("the connection broke", cause=describe(error))
                break
            if not data:
                self._ended = TransportClosed("the connection broke", cause="it ended without a close frame")
                break
            self.bytes_received += len(data)
            self._parser.feed(data, messages)
            if (payload := self._parser.close_payload) is not None:
                self._ended = TransportClosed("the service closed the connection", cause=_close_text(payload))
                break
        if self._ended is not None and not messages:
            raise self._ended
        return messages

    def take_pong(self) -> bool:
        """Give whether a ping was answered since the last call."""
        was_answered, self._parser.was_answered = self._parser.was_answered, False
        return was_answered

    @property
    def has_more(self) -> bool:
        """Whether ``receive`` has more to tell although the socket has nothing new: TLS buffers whole records, and
        behind the last messages stands the end."""
        if self._ended is not None:
            return True
        pending = getattr(self._socket, "pending", None)
        return bool(pending and pending())

    def close(self) -> None:
        """Say goodbye, behind all that is queued, if the socket takes it, and close. Never blocks, never raises."""
        with contextlib.suppress(TransportError):
            self._queue(self._behind, CLOSE, [_CLOSE_NORMAL])
            self.flush()
        self._drop_queues()
        with contextlib.suppress(OSError):
            self._socket.close()

    def _queue(self, lane: deque[bytes], opcode: int, payloads: list[bytes]) -> None:
        frames = code_frames(opcode, payloads)
        lane.extend(frames)
        if lane is self._ahead:
            self._queued_ahead_bytes += sum(map(len, frames))

    def _load(self) -> bool:
        """Take from the lanes what leaves next; return whether there is anything."""
        if (payload := self._parser.unanswered_ping) is not None:
            self._parser.unanswered_ping = None
            self._queue(self._ahead, PONG, [payload])
        frames: list[bytes] = []
        room = SEND_CHUNK_BYTES
        while lane := self._ahead or self._behind:
            size = len(lane[0])
            room -= size
            if frames and room < 0:
                break
            frames.append(lane.popleft())
            if lane is self._ahead:
                self._queued_ahead_bytes -= size
        self._leaving = memoryview(b"".join(frames))
        return bool(frames)

    def _drop_queues(self) -> None:
        self._ahead.clear()
        self._behind.clear()
        self._leaving = _NOTHING
        self._queued_ahead_bytes = 0
        self._parser.unanswered_ping = None


def describe(error: BaseException) -> str:
    """Give an operating system's or TLS library's reason in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate not trusted: " + error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def _close_text(data: bytes) -> str:
    if len(data) < 2:
        return "close frame without a code"
    code = int.from_bytes(data[:2], "big")
    reason = data[2:].decode("utf-8", "replace")
    return f"close frame with code {code}" + (f" ({reason!r})" if reason else "")
