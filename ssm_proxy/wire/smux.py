"""smux version 1: the frames that carry many connections in one port session. Little-endian, unlike all around them.

    offset  size  field
         0     1  version, 1
         1     1  command
         2     2  length of the data that follows
         4     4  stream id
         8     n  data

Source: amazon-ssm-agent, vendor/github.com/xtaci/smux/frame.go and session.go; docs/PROTOCOL.md section 8.8.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from ssm_proxy.errors import LocalProtocolError, RemoteProtocolError

VERSION: Final = 1
HEADER_BYTES: Final = 8
MAX_DATA_BYTES: Final = 65535
"""What the length field can say, and receivers accept."""
MAX_SENT_DATA_BYTES: Final = 32768
"""Where the official senders cut."""
MAX_STREAM_ID: Final = 2**32 - 1

SYN: Final = 0
"""Opens a stream; there is no answer."""
FIN: Final = 1
"""The sender has closed the stream, both ways (12.15)."""
PSH: Final = 2
"""Data."""
NOP: Final = 3
"""Keepalive; its stream id is 0."""
UPD: Final = 4
"""Window update of version 2: never sent in version 1, and read past by its readers."""

_HEADER = Struct("<BBHI")
_UPD_BYTES = 8
_LENGTHS = {SYN: 0, FIN: 0, NOP: 0, UPD: _UPD_BYTES}
"""Official readers take what follows a header from its command alone: another length would put us apart from them."""


class Frame(NamedTuple):
    """What was read of one frame: all of it or, of a PSH, as much of its data as has come."""

    command: int
    stream_id: int
    data: bytes = b""


def encode_header(command: int, stream_id: int, length: int = 0) -> bytes:
    """Give the 8 bytes in front of ``length`` bytes of data.

    Raises:
        LocalProtocolError: a number that does not fit its field.
    """
    if length > MAX_DATA_BYTES or not 0 <= stream_id <= MAX_STREAM_ID:
        raise LocalProtocolError(f"no smux frame has {length} bytes of data and stream id {stream_id}")
    return _HEADER.pack(VERSION, command, length, stream_id)


class FrameDecoder:
    """Takes the stream of frames, cut anywhere. Keeps less than one header: data is handed on as it comes."""

    def __init__(self) -> None:
        self._header = bytearray()  # one that is not complete yet
        self._left = 0  # bytes that still follow the latest header
        self._stream_id: int | None = None  # whose they are; None if nobody wants them

    def feed(self, data: bytes, frames: list[Frame]) -> None:
        """Take bytes; append what they hold. A PSH may come as several, never as one without data.

        The decoder is of no use after an error; ``frames`` then holds what came before it.

        Raises:
            RemoteProtocolError: another version, an unknown command, or a length that the command cannot have.
        """
        size = len(data)
        position = 0
        while position < size:
            if self._left:
                end = min(size, position + self._left)
                self._left -= end - position
                if self._stream_id is not None:
                    frames.append(Frame(PSH, self._stream_id, data[position:end]))
                position = end
                continue
            if self._header or size - position < HEADER_BYTES:
                end = min(size, position + HEADER_BYTES - len(self._header))
                self._header += data[position:end]
                if len(self._header) < HEADER_BYTES:
                    return
                version, command, length, stream_id = _HEADER.unpack(self._header)
                self._header.clear()
            else:
                end = position + HEADER_BYTES
                version, command, length, stream_id = _HEADER.unpack_from(data, position)
            position = end
            if version != VERSION:
                raise _no_frame(f"version {version}; only version {VERSION} is known")
            if command == PSH:
                self._stream_id = stream_id
            elif length != _LENGTHS.get(command):
                raise _no_frame(f"command {command} with {length} bytes")
            elif command == UPD:
                self._stream_id = None
            else:
                frames.append(Frame(command, stream_id))
            self._left = length


def _no_frame(cause: str) -> RemoteProtocolError:
    return RemoteProtocolError("the agent sent what is no smux frame", cause=cause)
