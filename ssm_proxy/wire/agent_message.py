"""The binary message that fills one WebSocket message: header, digest, payload."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from ssm_proxy.errors import DigestMismatch, LocalProtocolError, MalformedMessage
from ssm_proxy.wire.constants import (
    HEADER_LENGTH,
    MESSAGE_TYPE_BYTES,
    SCHEMA_VERSION,
    SHORT_HEADER_LENGTH,
    MessageType,
    PayloadType,
)

# HeaderLength, MessageType, SchemaVersion, CreatedDate, SequenceNumber, Flags, MessageId, PayloadDigest.
_COMMON = struct.Struct(">I32sIQqQ16s32s")
_LONG = struct.Struct(">I32sIQqQ16s32sII")
_U32 = struct.Struct(">I")
_PADDING = b"\x00 \t\r\n\v\f"
_UNCHECKED = frozenset({MessageType.START_PUBLICATION, MessageType.PAUSE_PUBLICATION})

assert _COMMON.size == SHORT_HEADER_LENGTH
assert _LONG.size == HEADER_LENGTH + 4


class AgentMessage(NamedTuple):
    """One message of the data channel. A tuple, because thousands are made in a second."""

    message_type: str
    payload: bytes
    message_id: bytes
    """16 bytes of the UUID in its normal order; the wire exchanges the halves."""
    created_date_ms: int
    """Milliseconds since the Unix epoch, never 0."""
    sequence_number: int = 0
    payload_type: int = PayloadType.NONE
    """A number, not the enum: a receiver must survive types it does not know."""
    flags: int = 0
    schema_version: int = SCHEMA_VERSION
    header_length: int = HEADER_LENGTH
    """116, or 112 in messages that the service makes itself."""


def encode_agent_message(message: AgentMessage) -> bytes:
    """Give the bytes of one binary WebSocket message.

    A header length of 112 gives the short form that the service uses (no PayloadType, NUL padding).

    Raises:
        LocalProtocolError: a field does not fit, or one that receivers insist on is empty or 0.

    Source: session-manager-plugin, src/message/messageparser.go; docs/PROTOCOL.md sections 3.1 and 3.2.
    """
    kind, payload, message_id, created, sequence, payload_type, flags, schema, header_length = message
    name = kind.encode("ascii") if kind.isascii() else b""
    if not name or len(name) > MESSAGE_TYPE_BYTES or created <= 0 or len(message_id) != 16:
        raise LocalProtocolError(
            "an agent message needs a type of 1 to 32 ASCII characters, a created date and a 16-byte id"
        )
    wire_id = message_id[8:] + message_id[:8]
    digest = hashlib.sha256(payload).digest()
    try:
        if header_length == HEADER_LENGTH:
            name = name.ljust(MESSAGE_TYPE_BYTES)
            header = _LONG.pack(
                HEADER_LENGTH, name, schema, created, sequence, flags, wire_id, digest, payload_type, len(payload)
            )
        elif header_length == SHORT_HEADER_LENGTH:
            header = _COMMON.pack(SHORT_HEADER_LENGTH, name, schema, created, sequence, flags, wire_id, digest)
            header += _U32.pack(len(payload))
        else:
            raise LocalProtocolError(f"no header is {header_length} bytes long")
    except struct.error as error:
        raise LocalProtocolError("a field of an agent message does not fit its place", cause=str(error)) from error
    return header + payload


def decode_agent_message(data: bytes) -> AgentMessage:
    """Parse one binary (or text, 2.4) WebSocket message of the data channel.

    The payload is what stands between HeaderLength + 4 and the end of the message. PayloadLength is not used to cut,
    as in both official programs: a cut-off message is caught by its digest.

    Args:
        data: the whole message.

    Raises:
        MalformedMessage: too short, a header length that points outside, an empty type or created date.
        DigestMismatch: SHA-256 of the payload is not the header's digest. Not checked for an empty payload, nor for
            ``start_publication`` and ``pause_publication``, whose payload nobody reads (3.3).

    Source: session-manager-plugin, src/message/messageparser.go; docs/PROTOCOL.md sections 3.1 to 3.4.
    """
    size = len(data)
    if size < SHORT_HEADER_LENGTH + 4:
        raise MalformedMessage(f"an agent message of {size} bytes is shorter than its header")
    header_length, name, schema, created, sequence, flags, wire_id, digest = _COMMON.unpack_from(data)
    payload_type: int = PayloadType.NONE
    if header_length >= HEADER_LENGTH:
        if header_length + 4 > size:
            raise MalformedMessage(f"header length {header_length} points outside a message of {size} bytes")
        (payload_type,) = _U32.unpack_from(data, SHORT_HEADER_LENGTH)
    elif header_length != SHORT_HEADER_LENGTH:
        raise MalformedMessage(f"header length {header_length} is neither 112 nor 116 or more")
    try:
        kind = name.strip(_PADDING).decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedMessage("the message type is not ASCII") from error
    if not kind:
        raise MalformedMessage("the message type is empty")
    payload = data[header_length + 4 :]
    if kind not in _UNCHECKED:
        if created == 0:
            raise MalformedMessage(f"{kind} has no created date")
        # A message cut off right behind its header has no payload, but still says how long it was (3.3).
        if (payload or _U32.unpack_from(data, header_length)[0]) and hashlib.sha256(payload).digest() != digest:
            raise DigestMismatch(f"the payload of {kind} number {sequence} does not have the digest of its header")
    return AgentMessage(
        kind,
        payload,
        wire_id[8:] + wire_id[:8],
        created,
        sequence,
        payload_type,
        flags,
        schema,
        header_length,
    )
