"""The agent's end of a multiplexed byte stream: smux, version 1. Bytes in, events out; no sockets and no clock.

Written apart from the client's on purpose, so that one mistake cannot agree with itself.

Source: amazon-ssm-agent, vendor/github.com/xtaci/smux/{frame,session,stream}.go; docs/PROTOCOL.md section 8.8.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

FRAME_BYTES: Final = 32_768
"""Where senders cut the data of a stream."""
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Shared by all streams; one that does not read stops them all."""
ACCEPT_QUEUE: Final = 1024
KEEPALIVE_S: Final = 10.0
SILENCE_S: Final = 30.0

HEADER: Final = struct.Struct("<BBHI")
"""Version, command, length of the data, stream id."""
VERSION: Final = 1
_SYN: Final = 0
_FIN: Final = 1
_PSH: Final = 2
_NOP: Final = 3
_UPD: Final = 4
_UPD_BYTES: Final = 8


class Opened(NamedTuple):
    """A SYN for a new stream: the destination is to be dialled."""

    stream_id: int


class Received(NamedTuple):
    """Data of an open stream; counts as unread until :meth:`SmuxAcceptor.release`."""

    stream_id: int
    data: bytes


class Ended(NamedTuple):
    """A FIN: the client has closed the stream, both ways."""

    stream_id: int


Event = Opened | Received | Ended


class SmuxBroken(Exception):
    """The connection cannot go on; the text is the library's."""


class SmuxAcceptor:
    """All streams of one session.

    Args:
        keepalive: send NOP and insist on frames, as between old programs (6.6).
        now: seconds of a monotonic clock.
        defects: counts by name what a client must not do, even where the library forgives it.
    """

    def __init__(self, *, keepalive: bool, now: float, defects: Counter[str]) -> None:
        self._defects = defects
        self._buffer = bytearray()
        self._streams: set[int] = set()
        self._ended: set[int] = set()
        self._latest_id = 1
        self._unread = 0
        self._unaccepted = 0
        self._next_nop = now + KEEPALIVE_S if keepalive else None
        self._next_check = now + SILENCE_S
        self._was_heard = False

    # --- frames that arrive --------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take a piece of the byte stream, cut anywhere. Nothing happens before :meth:`events`."""
        self._buffer += data

    @property
    def is_full(self) -> bool:
        """True: no frame is looked at until something was released or accepted."""
        return self._unread >= RECEIVE_BUFFER_BYTES or self._unaccepted > ACCEPT_QUEUE

    @property
    def waiting_bytes(self) -> int:
        """What was received and not looked at yet."""
        return len(self._buffer)

    def events(self) -> Iterator[Event]:
        """Read the frames that are complete, until the receive buffer is full.

        Raises:
            SmuxBroken: another version or command.
        """
        buffer = self._buffer
        while not self.is_full and len(buffer) >= HEADER.size:
            version, command, size, stream_id = HEADER.unpack_from(buffer)
            if version != VERSION or command > _UPD:
                raise SmuxBroken("invalid protocol")
            # Only PSH has data, whatever the length of another says; the eight bytes of UPD are not counted in it.
            size = size if command == _PSH else _UPD_BYTES if command == _UPD else 0
            end = HEADER.size + size
            if len(buffer) < end:
                return
            data = bytes(memoryview(buffer)[HEADER.size : end])
            del buffer[:end]
            self._was_heard = True
            event = self._take(command, stream_id, data)
            if event is not None:
                yield event

    def _take(self, command: int, stream_id: int, data: bytes) -> Event | None:
        is_open = stream_id in self._streams
        if command == _PSH:
            if len(data) > FRAME_BYTES:
                self._defects["smux data of more than 32768 bytes"] += 1
            if stream_id > self._latest_id:
                self._defects["smux data for a stream never opened, ignored"] += 1
            if stream_id in self._ended:
                self._defects["smux data after FIN, ignored"] += 1
            elif is_open and data:
                self._unread += len(data)
                return Received(stream_id, data)
        elif command == _SYN:
            if stream_id % 2 == 0 or stream_id <= self._latest_id:
                self._defects["smux stream id that is even or not a new one"] += 1
            self._latest_id = max(self._latest_id, stream_id)
            if not is_open:
                self._streams.add(stream_id)
                self._unaccepted += 1
                return Opened(stream_id)
        elif command == _FIN:
            if stream_id in self._ended or stream_id > self._latest_id:
                self._defects["smux FIN for a stream that is not open, ignored"] += 1
            elif is_open:
                self._ended.add(stream_id)
                return Ended(stream_id)
        elif command == _UPD:
            self._defects["smux window update, not of version 1, ignored"] += 1
        return None

    def release(self, size: int) -> None:
        """So many bytes of received data have been taken by their destinations, or thrown away."""
        self._unread -= size

    def accept(self) -> None:
        """Whoever dials has taken one stream out of the queue."""
        self._unaccepted -= 1

    # --- frames to send ------------------------------------------------------------------------------------------

    def close(self, stream_id: int) -> bytes:
        """Close our end. Gives the FIN to send, or nothing if the stream is closed already."""
        if stream_id not in self._streams:
            return b""
        self._streams.discard(stream_id)
        self._ended.discard(stream_id)
        return HEADER.pack(VERSION, _FIN, 0, stream_id)

    @staticmethod
    def header(stream_id: int, size: int) -> bytes:
        """Give what goes before ``size`` bytes of data, at most ``FRAME_BYTES``."""
        return HEADER.pack(VERSION, _PSH, size, stream_id)

    # --- keepalive -----------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When to call :meth:`handle_deadline`; None without keepalive."""
        return None if self._next_nop is None else min(self._next_nop, self._next_check)

    def handle_deadline(self, now: float) -> bytes:
        """Give the NOP to send, if it is time for one.

        Raises:
            SmuxBroken: no frame came for a whole period, though there was room for one.
        """
        frame = b""
        if self._next_nop is not None and now >= self._next_nop:
            self._next_nop = now + KEEPALIVE_S
            frame = HEADER.pack(VERSION, _NOP, 0, 0)
        if now >= self._next_check:
            self._next_check = now + SILENCE_S
            if not self._was_heard and not self.is_full:
                raise SmuxBroken("io: read/write on closed pipe")
            self._was_heard = False
        return frame
