"""JSON and flag payloads of the data channel, to values and back.

Those that only shells, commands and encrypted sessions need are in ``shell_payloads``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import ActionStatus, MessageType
from ssm_proxy.wire.json_text import compact, member, parse_object, text_member

_U32 = struct.Struct(">I")
_I64_MAX = 2**63 - 1


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
    values = parse_object(payload, MessageType.ACKNOWLEDGE)
    number = member(values, "AcknowledgedMessageSequenceNumber")
    if type(number) is not int or not 0 <= number <= _I64_MAX:
        raise MalformedMessage("an acknowledge without a sequence number")
    return Acknowledge(
        text_member(values, "AcknowledgedMessageType"),
        text_member(values, "AcknowledgedMessageId"),
        number,
        member(values, "IsSequentialMessage", True) is not False,
    )


# --- channel_closed ------------------------------------------------------------------------------------------------


class ChannelClosedPayload(NamedTuple):
    """The end of the session, told by the service (4.1)."""

    session_id: str
    output: str = ""
    """Reason for the user; empty for a normal end."""
    message_id: str = ""
    destination_id: str = ""
    schema_version: int = 1
    created_date: str = ""


def encode_channel_closed(closed: ChannelClosedPayload) -> bytes:
    return compact(
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
        values = parse_object(payload, MessageType.CHANNEL_CLOSED)
    except MalformedMessage:
        values = {}
    schema_version = member(values, "SchemaVersion", 1)
    return ChannelClosedPayload(
        session_id=text_member(values, "SessionId"),
        output=text_member(values, "Output"),
        message_id=text_member(values, "MessageId"),
        destination_id=text_member(values, "DestinationId"),
        schema_version=schema_version if isinstance(schema_version, int) else 1,
        created_date=text_member(values, "CreatedDate"),
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


class RequestedAction(NamedTuple):
    """One thing that the agent asks of the client (6.3)."""

    action_type: str
    parameters: Mapping[str, Any] = MappingProxyType({})

    def parameter(self, name: str) -> Any:
        """Give a member of the parameters whatever its case, or None."""
        return member(self.parameters, name)


class HandshakeRequest(NamedTuple):
    agent_version: str
    requested_actions: Sequence[RequestedAction]


class ProcessedAction(NamedTuple):
    """Our answer to one requested action (6.4)."""

    action_type: str
    status: int
    result: Any = None
    error: str = ""


class HandshakeResponse(NamedTuple):
    client_version: str
    processed_actions: Sequence[ProcessedAction]
    errors: Sequence[str] | None = None


class HandshakeComplete(NamedTuple):
    time_to_complete_ns: int
    customer_message: str = ""


def encode_handshake_request(request: HandshakeRequest) -> bytes:
    return compact(
        {
            "AgentVersion": request.agent_version,
            "RequestedClientActions": [
                {"ActionType": action.action_type, "ActionParameters": dict(action.parameters)}
                for action in request.requested_actions
            ],
        }
    )


def decode_handshake_request(payload: bytes) -> HandshakeRequest:
    """Parse what the agent asks for.

    Raises:
        MalformedMessage: not the JSON of a handshake request.
    """
    values = parse_object(payload, "HandshakeRequest")
    actions = member(values, "RequestedClientActions") or []
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise MalformedMessage("the requested actions of a HandshakeRequest are no list of objects")
    requested = []
    for action in actions:
        parameters = member(action, "ActionParameters")
        requested.append(
            RequestedAction(
                action_type=text_member(action, "ActionType"),
                parameters=parameters if isinstance(parameters, dict) else {},
            )
        )
    return HandshakeRequest(agent_version=text_member(values, "AgentVersion"), requested_actions=tuple(requested))


def encode_handshake_response(response: HandshakeResponse) -> bytes:
    return compact(
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
    values = parse_object(payload, "HandshakeResponse")
    actions = member(values, "ProcessedClientActions") or []
    errors = member(values, "Errors")
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise MalformedMessage("the processed actions of a HandshakeResponse are no list of objects")
    processed = []
    for action in actions:
        status = member(action, "ActionStatus")
        processed.append(
            ProcessedAction(
                action_type=text_member(action, "ActionType"),
                status=status if type(status) is int else ActionStatus.FAILED,
                result=member(action, "ActionResult"),
                error=text_member(action, "Error"),
            )
        )
    return HandshakeResponse(
        client_version=text_member(values, "ClientVersion"),
        processed_actions=tuple(processed),
        errors=tuple(str(error) for error in errors) if isinstance(errors, list) else None,
    )


def encode_handshake_complete(complete: HandshakeComplete) -> bytes:
    return compact(
        {"HandshakeTimeToComplete": complete.time_to_complete_ns, "CustomerMessage": complete.customer_message}
    )


def decode_handshake_complete(payload: bytes) -> HandshakeComplete:
    """Parse the end of the handshake.

    Raises:
        MalformedMessage: not a JSON object.
    """
    values = parse_object(payload, "HandshakeComplete")
    elapsed = member(values, "HandshakeTimeToComplete", 0)
    return HandshakeComplete(
        time_to_complete_ns=elapsed if type(elapsed) is int else 0,
        customer_message=text_member(values, "CustomerMessage"),
    )


# --- opening -------------------------------------------------------------------------------------------------------


def encode_open_data_channel(*, token: str, request_id: str, client_id: str, client_version: str) -> str:
    """Give the one text message that opens a WebSocket (2.2). Its answer is silence, or a closed socket."""
    return compact(
        {
            "MessageSchemaVersion": "1.0",
            "RequestId": request_id,
            "TokenValue": token,
            "ClientId": client_id,
            "ClientVersion": client_version,
        }
    ).decode()
