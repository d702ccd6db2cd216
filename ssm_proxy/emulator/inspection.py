"""Read messages as the agent does, and note what a client did wrong even where the agent would forgive it.

The agent's own parser is followed here, not the strict one of ``ssm_proxy.wire``: it takes any header length, does not
compare digests and cuts nothing (docs/PROTOCOL.md section 3.3).
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from typing import NamedTuple

from ssm_proxy.wire.constants import HEADER_LENGTH, SCHEMA_VERSION, MessageType

_HEADER = struct.Struct(">I32sIQqQ16s32sI")
_U32 = struct.Struct(">I")
_SMALLEST = 117
_CLIENT_TYPES = frozenset({MessageType.INPUT, MessageType.ACKNOWLEDGE})
_NAMES = {name.encode().ljust(32): name for name in _CLIENT_TYPES}


class ReadMessage(NamedTuple):
    """What the agent looks at."""

    message_type: str
    sequence_number: int
    message_id: bytes
    payload_type: int
    payload: bytes


class DeafeningMessage(Exception):
    """A header length beyond the end: it ends the reading thread of the agent for good (3.4)."""


def read_message(data: bytes, defects: Counter[str]) -> ReadMessage | None:
    """Parse one message; None is a message that the agent logs and drops.

    Args:
        data: the whole WebSocket message.
        defects: counts by name what a client must not do; names ending in "ignored" cost it the message.

    Raises:
        DeafeningMessage: the agent would not read anything after this.
    """
    size = len(data)
    if size < _SMALLEST:
        defects["message shorter than its header, ignored"] += 1
        return None
    header_length, name, schema, created, sequence, _flags, wire_id, digest, payload_type = _HEADER.unpack_from(data)
    if header_length == 0:
        defects["header length 0, ignored"] += 1
        return None
    kind = _NAMES.get(name)
    if kind is None:
        kind = name.strip(b"\x00").strip().decode("ascii", "replace")
        if not kind:
            defects["empty message type, ignored"] += 1
            return None
        if kind in _CLIENT_TYPES:
            defects["message type not padded with spaces"] += 1
    if created == 0:
        defects["created date 0, ignored"] += 1
        return None
    if header_length + 4 > size:
        defects["header length beyond the end, deafens the agent"] += 1
        raise DeafeningMessage
    payload = data[header_length + 4 :]
    if kind in _CLIENT_TYPES:
        if header_length != HEADER_LENGTH:
            defects["header length is not 116"] += 1
        elif _U32.unpack_from(data, HEADER_LENGTH)[0] != len(payload):
            defects["payload length is not what follows"] += 1
        if schema != SCHEMA_VERSION:
            defects["schema version is not 1"] += 1
        if not payload:
            defects["empty payload"] += 1
        elif hashlib.sha256(payload).digest() != digest:
            defects["wrong payload digest"] += 1
        if kind == MessageType.ACKNOWLEDGE and payload_type != 0:
            defects["acknowledge with a payload type"] += 1
    return ReadMessage(kind, sequence, wire_id[8:] + wire_id[:8], payload_type, payload)
