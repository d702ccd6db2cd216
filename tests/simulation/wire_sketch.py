"""The binary message once more, after the sketch in docs/PROTOCOL.md section 3.5 and without the package.

The model agent and the golden tests use it, so that a mistake of the package's codec cannot agree with itself.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from typing import NamedTuple


class Frame(NamedTuple):
    kind: str
    payload: bytes
    seq: int = 0
    payload_type: int = 0
    flags: int = 0
    uid: uuid.UUID = uuid.UUID(int=0)
    created: int = 1_700_000_000_000
    schema: int = 1


def pack(frame: Frame, *, header_length: int = 116, digest: bytes | None = None, length: int | None = None) -> bytes:
    pad = b" " if header_length == 116 else b"\0"
    head = struct.pack(">I", header_length) + frame.kind.encode("ascii").ljust(32, pad)
    head += struct.pack(">IQqQ", frame.schema, frame.created, frame.seq, frame.flags)
    head += frame.uid.bytes[8:] + frame.uid.bytes[:8]
    head += hashlib.sha256(frame.payload).digest() if digest is None else digest
    if header_length == 116:
        head += struct.pack(">I", frame.payload_type)
    return head + struct.pack(">I", len(frame.payload) if length is None else length) + frame.payload


def unpack(data: bytes) -> Frame:
    (header_length,) = struct.unpack(">I", data[:4])
    assert header_length == 116
    schema, created, seq, flags = struct.unpack(">IQqQ", data[36:64])
    payload_type, length = struct.unpack(">II", data[112:120])
    payload = data[120:]
    assert length == len(payload)
    assert data[80:112] == hashlib.sha256(payload).digest()
    kind = data[4:36].decode("ascii").rstrip(" ")
    return Frame(kind, payload, seq, payload_type, flags, uuid.UUID(bytes=data[72:80] + data[64:72]), created, schema)


def acknowledge(frame: Frame, uid: uuid.UUID) -> bytes:
    payload = (
        f'{{"AcknowledgedMessageType":"{frame.kind}","AcknowledgedMessageId":"{frame.uid}",'
        f'"AcknowledgedMessageSequenceNumber":{frame.seq},"IsSequentialMessage":true}}'
    )
    return pack(Frame("acknowledge", payload.encode(), flags=3, uid=uid))


def acknowledged_number(frame: Frame) -> int:
    number = json.loads(frame.payload)["AcknowledgedMessageSequenceNumber"]
    assert isinstance(number, int)
    return number


def output(seq: int, payload: bytes, payload_type: int = 1) -> bytes:
    """Give an output message, its id made from its number."""
    return pack(Frame("output_stream_data", payload, seq, payload_type, int(seq == 0), uuid.UUID(int=abs(seq))))


def input_acknowledge(number: int) -> bytes:
    """Give the agent's acknowledge of an input message; only the number counts."""
    return acknowledge(Frame("input_stream_data", b"", number), uuid.UUID(int=number))


def handshake_request(session_type: str = "Port", properties: object = None, *more: object) -> bytes:
    """Give the payload of a HandshakeRequest for one session type and any further actions."""
    properties = {"portNumber": "22"} if properties is None and session_type == "Port" else properties
    first = {"ActionType": "SessionType", "ActionParameters": {"SessionType": session_type, "Properties": properties}}
    return json.dumps({"AgentVersion": "3.3.0.0", "RequestedClientActions": [first, *more]}).encode()
