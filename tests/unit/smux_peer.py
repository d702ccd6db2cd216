"""A client of the mux for the emulator's tests: frames by hand, as in section 8.8, nothing of the package."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import NamedTuple

SYN, FIN, PSH, NOP, UPD = range(5)


class Frame(NamedTuple):
    command: int
    stream_id: int
    data: bytes = b""


def frame(command: int, stream_id: int, data: bytes = b"") -> bytes:
    return struct.pack("<BBHI", 1, command, len(data), stream_id) + data


def syn(stream_id: int) -> bytes:
    return frame(SYN, stream_id)


def fin(stream_id: int) -> bytes:
    return frame(FIN, stream_id)


def psh(stream_id: int, data: bytes) -> bytes:
    """Give the data in frames of at most 32,768 bytes."""
    return b"".join(frame(PSH, stream_id, data[at : at + 32768]) for at in range(0, len(data), 32768))


def frames(stream: bytes) -> list[Frame]:
    """Cut all complete frames out of a byte stream."""
    found = []
    while len(stream) >= 8:
        version, command, size, stream_id = struct.unpack("<BBHI", stream[:8])
        assert version == 1
        if len(stream) < 8 + size:
            break
        found.append(Frame(command, stream_id, stream[8 : 8 + size]))
        stream = stream[8 + size :]
    return found


def data_of(stream: bytes) -> dict[int, bytes]:
    """Give the data of each stream id, joined."""
    joined: defaultdict[int, bytearray] = defaultdict(bytearray)
    for each in frames(stream):
        if each.command == PSH:
            joined[each.stream_id] += each.data
    return {stream_id: bytes(data) for stream_id, data in joined.items()}


def finished(stream: bytes) -> list[int]:
    """Give the ids of the FINs in their order."""
    return [each.stream_id for each in frames(stream) if each.command == FIN]
