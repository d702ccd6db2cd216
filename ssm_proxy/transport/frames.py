"""WebSocket frames (RFC 6455, section 5), the client's side: codes ours, cuts the server's out of what arrives.

No extension is ever offered, so every reserved bit is an error (docs/PROTOCOL.md section 2.1).
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache

from ssm_proxy.errors import RemoteProtocolError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""No official program sends a thousandth of this; it bounds what a broken or hostile peer can make us keep."""
MAX_CONTROL_BYTES = 125

_FINAL = 0x80
_RESERVED = 0x70
_OPCODE = 0x0F
_IS_CONTROL = 0x08
_OPCODES = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_WHOLE_BINARY = _FINAL | BINARY
_LENGTH_BYTES = {126: 2, 127: 8}
"""A length field of 7 bits that does not hold the length -> bytes of the one behind it that does."""


def code_frames(opcode: int, payloads: list[bytes]) -> list[bytes]:
    """Give one whole, masked frame for each payload. Each has a fresh random key."""
    keys = struct.unpack(f"<{len(payloads)}I", os.urandom(4 * len(payloads)))
    frames = []
    for payload, key in zip(payloads, keys, strict=True):
        prefix, ones, padded_size, size = _shape(opcode, len(payload))
        # One exclusive-or of long integers: a loop in Python over the bytes would take a hundred times as long.
        number = int.from_bytes(prefix + payload, "little") ^ (key * ones)
        frames.append(number.to_bytes(padded_size, "little")[:size])
    return frames


@lru_cache(maxsize=256)
def _shape(opcode: int, payload_size: int) -> tuple[bytes, int, int, int]:
    """Give what all frames of one size have in common.

    Returns:
        The header with zeros in place of the key; an integer that times a key is that key wherever it belongs in the
        frame, its own place included; the frame's size in whole keys; its size.
    """
    if payload_size < 126:
        header = bytes((_FINAL | opcode, 0x80 | payload_size))
    elif payload_size < 65536:
        header = bytes((_FINAL | opcode, 0x80 | 126)) + payload_size.to_bytes(2, "big")
    else:
        header = bytes((_FINAL | opcode, 0x80 | 127)) + payload_size.to_bytes(8, "big")
    keys = 1 + (payload_size + 3) // 4
    ones = int.from_bytes(bytes(len(header)) + b"\1\0\0\0" * keys, "little")
    return header + bytes(4), ones, len(header) + 4 * keys, len(header) + 4 + payload_size


class FrameParser:
    """Takes a server's bytes as they come; gives whole messages, and remembers what control frames said.

    A frame is refused as soon as its header is there. Behind an error or a close frame nothing is parsed any more.
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # a frame that is not complete yet
        self._wanted = 0  # size at which there is something to do with the rest
        self._message: bytearray | None = None  # the fragments so far of one that is not complete
        self.unanswered_ping: bytes | None = None
        """Payload of the latest ping, until whoever answers it takes it away; earlier ones need no answer (5.5.3)."""
        self.was_answered = False
        """Whether a pong came, until whoever waits for it takes note."""
        self.close_payload: bytes | None = None
        """Payload of the close frame, which is the last frame."""

    def feed(self, data: bytes, messages: list[bytes]) -> None:
        """Take bytes; append the messages, text or binary, that they complete.

        Raises:
            RemoteProtocolError: a frame that RFC 6455 does not allow a server, or a message that is too large.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        size = len(data)
        position = 0
        while (end := position + 2) <= size and self.close_payload is None:
            first = data[position]
            length = data[position + 1]
            start = end
            if length > MAX_CONTROL_BYTES:
                start += _length_bytes(length)
                if start > size:
                    end = start
                    break
                length = int.from_bytes(data[end:start], "big")
            end = start + length
            if first == _WHOLE_BINARY and self._message is None and end <= size:
                messages.append(data[start:end])
            else:
                self._check(first, length)
                if end > size:
                    break
                self._take(first, data[start:end], messages)
            position = end
        if position < size and self.close_payload is None:
            self._rest += data[position:]
            self._wanted = end - position

    def _check(self, first: int, length: int) -> None:
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise _no_frame("reserved bits are set, but no extension was agreed upon")
        if opcode not in _OPCODES:
            raise _no_frame(f"unknown opcode {opcode}")
        if opcode & _IS_CONTROL:
            if length > MAX_CONTROL_BYTES:
                raise _no_frame(f"a control frame of {length} bytes")
            if not first & _FINAL:
                raise _no_frame("a control frame in fragments")
            return
        if (opcode == CONTINUATION) != (self._message is not None):
            raise RemoteProtocolError("the service sent the fragments of a message out of order")
        size = length + len(self._message or b"")
        if size > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(
                f"the service sent a message of {size} bytes; none may be larger than {MAX_MESSAGE_BYTES}"
            )

    def _take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        opcode = first & _OPCODE
        if opcode == PING:
            self.unanswered_ping = payload
        elif opcode == CLOSE:
            self.close_payload = payload
        elif opcode == PONG:
            self.was_answered = True
        else:
            if self._message is None:
                self._message = bytearray()
            self._message += payload
            if first & _FINAL:
                messages.append(bytes(self._message))
                self._message = None


def _length_bytes(field: int) -> int:
    extra = _LENGTH_BYTES.get(field)
    if extra is None:  # the topmost bit
        raise _no_frame("it is masked, which only clients may do")
    return extra


def _no_frame(cause: str) -> RemoteProtocolError:
    return RemoteProtocolError("the service sent what is no WebSocket frame", cause=cause)
