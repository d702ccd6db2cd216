"""JSON and flag payloads of the data channel, to values and back.

Both official programs are written in Go and match member names without regard to case: the exact spelling is written,
any is read, unknown members are ignored (docs/PROTOCOL.md section 0).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import ActionStatus, MessageType

_U32 = struct.Struct(">I")
_I64_MAX = 2**63 - 1


def _object(payload: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(payload.decode())  # from text: guessing the encoding of bytes takes half of the time
    except (ValueError, RecursionError) as error:  # ValueError covers bad JSON and bad UTF-8
        raise MalformedMessage(f"the payload of {what} is not JSON") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"the payload of {what} is not a JSON object")
    return value


def _member(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    if name in values:
        return values[name]
    wanted = name.lower()
    for key, value in values.items():
        if key.lower() == wanted:
            return value
    return default


def _text(values: Mapping[str, Any], name: str) -> str:
    value = _member(values, name)
    return value if isinstance(value, str) else ""


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def format_uuid(value: bytes) -> str:
    """Give the hyphenated lower-case text of a 16-byte UUID."""
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


# --- acknowledge ---------------------------------------------------------------------------------------------------


class Acknowledge(NamedTuple):
    """Says that one stream message was received (5.2). Receivers look at the sequence number only."""

    message_type: str
    message_id: str
    sequence_number: int
    is_sequential: bool = True


def encode_acknowledge(acknowledge: Acknowledge) -> bytes:
    """Give the JSON payload of an acknowledge, members in the official order and without spaces."""
    kind, message_id, sequence_number, is_sequential = acknowledge
    return (
        f'{{"AcknowledgedMessageType":"{kind}","AcknowledgedMessageId":"{message_id}",'
        f'"AcknowledgedMessageSequenceNumber":{sequence_number},'
        f'"IsSequentialMessage":{"true" if is_sequential else "false"}}}'
    ).encode()


def decode_acknowledge(payload: bytes) -> Acknowledge:
    """Parse an acknowledge.

    Raises:
        MalformedMessage: not a JSON object, or no usable sequence number.
    """
    values = _object(payload, MessageType.ACKNOWLEDGE)
    number = _member(values, "AcknowledgedMessageSequenceNumber")
    if type(number) is not int or not 0 <= number <= _I64_MAX:
        raise MalformedMessage("an acknowledge without a sequence number")
    return Acknowledge(
        _text(values, "AcknowledgedMessageType"),
        _text(values, "AcknowledgedMessageId"),
        number,
        _member(values, "IsSequentialMessage", True) is not False,
    )


# --- channel_closed ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChannelClosedPayload:
    """The end of the session, told by the service (4.1)."""

    session_id: str
    output: str = ""
    """Reason for the user; empty for a normal end."""
    message_id: str = ""
    destination_id: str = ""
    schema_version: int = 1
    created_date: str = ""


def encode_channel_closed(closed: ChannelClosedPayload) -> bytes:
    return _compact(
        {
            "MessageType": MessageType.CHANNEL_CLOSED,
            "MessageId": closed.message_id,
            "DestinationId": closed.destination_id,
            "SessionId": closed.session_id,
            "SchemaVersion": closed.schema_version,
            "CreatedDate": closed.created_date,
            "Output": closed.output,
        }
    )


def decode_channel_closed(payload: bytes) -> ChannelClosedPayload:
    """Parse a channel_closed; one that cannot be read is a normal end, as for the official client (4.1)."""
    try:
        values = _object(payload, MessageType.CHANNEL_CLOSED)
    except MalformedMessage:
        values = {}
    schema_version = _member(values, "SchemaVersion", 1)
    return ChannelClosedPayload(
        session_id=_text(values, "SessionId"),
        output=_text(values, "Output"),
        message_id=_text(values, "MessageId"),
        destination_id=_text(values, "DestinationId"),
        schema_version=schema_version if isinstance(schema_version, int) else 1,
        created_date=_text(values, "CreatedDate"),
    )


# --- flags and size ------------------------------------------------------------------------------------------------


def encode_flag(flag: int) -> bytes:
    """Give the four bytes of a FLAG payload, big-endian (4.3)."""
    return _U32.pack(flag)


def decode_flag(payload: bytes) -> int:
    """Parse a FLAG payload; the number may be one that we do not know.

    Raises:
        MalformedMessage: not exactly four bytes.
    """
    if len(payload) != _U32.size:
        raise MalformedMessage(f"a flag of {len(payload)} bytes")
    number: int = _U32.unpack(payload)[0]
    return number


# --- handshake -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RequestedAction:
    """One thing that the agent asks of the client (6.3)."""

    action_type: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def parameter(self, name: str) -> Any:
        """Give a member of the parameters whatever its case, or None."""
        return _member(self.parameters, name)


@dataclass(frozen=True, kw_only=True)
class HandshakeRequest:
    agent_version: str
    requested_actions: Sequence[RequestedAction]


@dataclass(frozen=True, kw_only=True)
class ProcessedAction:
    """Our answer to one requested action (6.4)."""

    action_type: str
    status: int
    result: Any = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class HandshakeResponse:
    client_version: str
    processed_actions: Sequence[ProcessedAction]
    errors: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class HandshakeComplete:
    time_to_complete_ns: int
    customer_message: str = ""


def encode_handshake_request(request: HandshakeRequest) -> bytes:
    return _compact(
        {
            "AgentVersion": request.agent_version,
            "RequestedClientActions": [
                {"ActionType": action.action_type, "ActionParameters": action.parameters}
                for action in request.requested_actions
            ],
        }
    )


def decode_handshake_request(payload: bytes) -> HandshakeRequest:
    """Parse what the agent asks for.

    Raises:
        MalformedMessage: not the JSON of a handshake request.
    """
    values = _object(payload, "HandshakeRequest")
    actions = _member(values, "RequestedClientActions") or []
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise MalformedMessage("the requested actions of a HandshakeRequest are no list of objects")
    requested = []
    for action in actions:
        parameters = _member(action, "ActionParameters")
        requested.append(
            RequestedAction(
                action_type=_text(action, "ActionType"),
                parameters=parameters if isinstance(parameters, dict) else {},
            )
        )
    return HandshakeRequest(agent_version=_text(values, "AgentVersion"), requested_actions=tuple(requested))


def encode_handshake_response(response: HandshakeResponse) -> bytes:
    return _compact(
        {
            "ClientVersion": response.client_version,
            "ProcessedClientActions": [
                {
                    "ActionType": action.action_type,
                    "ActionStatus": int(action.status),
                    "ActionResult": action.result,
                    "Error": action.error,
                }
                for action in response.processed_actions
            ],
            "Errors": None if response.errors is None else list(response.errors),
        }
    )


def decode_handshake_response(payload: bytes) -> HandshakeResponse:
    """Parse a client's answer (the emulator's side).

    Raises:
        MalformedMessage: not the JSON of a handshake response.
    """
    values = _object(payload, "HandshakeResponse")
    actions = _member(values, "ProcessedClientActions") or []
    errors = _member(values, "Errors")
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise MalformedMessage("the processed actions of a HandshakeResponse are no list of objects")
    processed = []
    for action in actions:
        status = _member(action, "ActionStatus")
        processed.append(
            ProcessedAction(
                action_type=_text(action, "ActionType"),
                status=status if type(status) is int else ActionStatus.FAILED,
                result=_member(action, "ActionResult"),
                error=_text(action, "Error"),
            )
        )
    return HandshakeResponse(
        client_version=_text(values, "ClientVersion"),
        processed_actions=tuple(processed),
        errors=tuple(str(error) for error in errors) if isinstance(errors, list) else None,
    )


def encode_handshake_complete(complete: HandshakeComplete) -> bytes:
    return _compact(
        {"HandshakeTimeToComplete": complete.time_to_complete_ns, "CustomerMessage": complete.customer_message}
    )


def decode_handshake_complete(payload: bytes) -> HandshakeComplete:
    """Parse the end of the handshake.

    Raises:
        MalformedMessage: not a JSON object.
    """
    values = _object(payload, "HandshakeComplete")
    elapsed = _member(values, "HandshakeTimeToComplete", 0)
    return HandshakeComplete(
        time_to_complete_ns=elapsed if type(elapsed) is int else 0,
        customer_message=_text(values, "CustomerMessage"),
    )


# --- opening -------------------------------------------------------------------------------------------------------


def encode_open_data_channel(*, token: str, request_id: str, client_id: str, client_version: str) -> str:
    """Give the one text message that opens a WebSocket (2.2). Its answer is silence, or a closed socket."""
    return json.dumps(
        {
            "MessageSchemaVersion": "1.0",
            "RequestId": request_id,
            "TokenValue": token,
            "ClientId": client_id,
            "ClientVersion": client_version,
        },
        separators=(",", ":"),
    )
