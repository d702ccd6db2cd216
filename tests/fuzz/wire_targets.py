"""Decoders of the data channel: a value or a ``MalformedMessage``, and what decodes comes back from its encoding."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fuzz.choices import Choices

from ssm_proxy.channel.handshake import Handshake
from ssm_proxy.errors import DigestMismatch, LocalProtocolError, MalformedMessage
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.transport.trace import TRACE, MessageTrace
from ssm_proxy.wire import payloads, shell_payloads
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import HEADER_LENGTH, SHORT_HEADER_LENGTH, MessageType
from ssm_proxy.wire.json_text import member, parse_object, text_member

MEMBERS = (
    "AcknowledgedMessageSequenceNumber",
    "AcknowledgedMessageType",
    "AcknowledgedMessageId",
    "IsSequentialMessage",
    "ActionParameters",
    "ActionResult",
    "ActionStatus",
    "ActionType",
    "AgentVersion",
    "ClientVersion",
    "Challenge",
    "CreatedDate",
    "CustomerMessage",
    "DestinationId",
    "Error",
    "Errors",
    "HandshakeTimeToComplete",
    "KMSKeyId",
    "MessageId",
    "Output",
    "ProcessedClientActions",
    "Properties",
    "RequestedClientActions",
    "SchemaVersion",
    "SessionId",
    "SessionState",
    "SessionType",
    "cols",
    "rows",
    "type",
)
_PADDING = b"\0 \t\r\n\v\f"


def check_agent_message(data: bytes) -> None:
    """The first byte says whether the digest is made right, which no mutation would manage."""
    data, repair = data[1:], bool(data[:1] > b"\x7f")
    if repair:
        data = repair_digest(data)
    try:
        message = decode_agent_message(data)
    except (MalformedMessage, DigestMismatch):
        return
    assert data.endswith(message.payload)
    assert 0 < len(message.message_type) <= 32
    assert message.message_type.isascii()
    assert len(message.message_id) == 16
    assert -(2**63) <= message.sequence_number < 2**63
    assert message.header_length == int.from_bytes(data[:4], "big")
    assert len(data) == message.header_length + 4 + len(message.payload)
    if message.message_type not in (MessageType.START_PUBLICATION, MessageType.PAUSE_PUBLICATION):
        assert message.created_date_ms > 0
        if message.payload or any(data[message.header_length : message.header_length + 4]):
            assert sha256(message.payload).digest() == data[80:112]
    try:
        again = encode_agent_message(message)
    except LocalProtocolError:  # what only receivers must bear
        assert message.header_length not in (HEADER_LENGTH, SHORT_HEADER_LENGTH) or message.created_date_ms == 0
        return
    assert decode_agent_message(again) == message
    # Nothing was read from the wrong place: but for padding, digest and length the bytes are those that came.
    if message.header_length == HEADER_LENGTH:
        assert again[36:80] == data[36:80]
        assert again[112:116] == data[112:116]
    assert again[4:36].strip(_PADDING) == data[4:36].strip(_PADDING)


def repair_digest(data: bytes) -> bytes:
    """Give the same message with the digest that its payload needs, as far as it has a place for it."""
    if len(data) < SHORT_HEADER_LENGTH + 4:
        return data
    header_length = int.from_bytes(data[:4], "big")
    return data[:80] + sha256(data[header_length + 4 :]).digest() + data[112:]


def _payload(data: bytes) -> bytes:
    """The first byte says whether the rest is the payload itself, or choices that make JSON."""
    if data[:1] < b"\x80":
        return data[1:]
    return json.dumps(Choices(data[1:]).object(MEMBERS)).encode()


def _same(one: Any, other: Any) -> bool:
    return one == other or repr(one) == repr(other)  # NaN is no equal of itself


def _round_trip(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        try:
            value = decode(_payload(data))
        except MalformedMessage:
            return
        assert _same(decode(encode(value)), value)

    return check


def check_acknowledge(data: bytes) -> None:
    try:
        value = payloads.decode_acknowledge(_payload(data))
    except MalformedMessage:
        return
    assert type(value.sequence_number) is int
    assert 0 <= value.sequence_number < 2**63
    # The encoder is made for names and UUIDs, and escapes nothing.
    if all(text.isascii() and text.replace("_", "").replace("-", "").isalnum() for text in value[:2]):
        assert payloads.decode_acknowledge(payloads.encode_acknowledge(value)) == value


def check_channel_closed(data: bytes) -> None:
    """The one decoder that refuses nothing (4.1)."""
    value = payloads.decode_channel_closed(_payload(data))
    assert _same(payloads.decode_channel_closed(payloads.encode_channel_closed(value)), value)


def check_handshake_request(data: bytes) -> None:
    """What decodes is answered too, whatever it asks."""
    try:
        request = payloads.decode_handshake_request(_payload(data))
    except MalformedMessage:
        return
    assert _same(payloads.decode_handshake_request(payloads.encode_handshake_request(request)), request)
    handshake = Handshake(check_stream_session)
    response = handshake.answer(request)
    assert len(response.processed_actions) == len(request.requested_actions)
    is_refused = any(action.status != 1 for action in response.processed_actions)
    assert is_refused == (handshake.refusal is not None)
    assert payloads.decode_handshake_response(payloads.encode_handshake_response(response)) == response


def check_challenge(data: bytes) -> None:
    try:
        value = shell_payloads.decode_challenge(_payload(data))
    except MalformedMessage:
        return
    assert shell_payloads.decode_challenge(shell_payloads.encode_challenge(value)) == value


def check_json_text(data: bytes) -> None:
    payload = _payload(data)
    try:
        values = parse_object(payload, "a payload")
    except MalformedMessage as error:
        assert "a payload" in error.message  # noqa: PT017
        return
    for name, value in values.items():
        assert member(values, name) is value
        other = member(values, name.swapcase(), "absent")
        assert other == "absent" or any(each is other for each in values.values())
        assert isinstance(text_member(values, name), str)
    assert member(values, "no such member") is values.get("no such member")


def check_trace(data: bytes) -> None:
    """The log of messages at -vvv takes whatever arrives."""
    if data[:1] > b"\x7f":
        payload = _payload(data[1:])
        data = encode_agent_message(AgentMessage(MessageType.ACKNOWLEDGE, payload, bytes(16), 1))
    else:
        data = repair_digest(data[1:])
    logger = logging.Logger("trace", TRACE)
    handler = _Lines()
    logger.addHandler(handler)
    MessageTrace(logger).received(data)
    assert handler.lines
    assert all(len(line) < 400 for line in handler.lines)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


TARGETS: dict[str, Callable[[bytes], None]] = {
    "agent_message": check_agent_message,
    "acknowledge": check_acknowledge,
    "channel_closed": check_channel_closed,
    "flag": _round_trip(payloads.decode_flag, payloads.encode_flag),
    "handshake_request": check_handshake_request,
    "handshake_response": _round_trip(payloads.decode_handshake_response, payloads.encode_handshake_response),
    "handshake_complete": _round_trip(payloads.decode_handshake_complete, payloads.encode_handshake_complete),
    "size": _round_trip(shell_payloads.decode_size, shell_payloads.encode_size),
    "challenge": check_challenge,
    "exit_code": _round_trip(shell_payloads.decode_exit_code, shell_payloads.encode_exit_code),
    "session_state": _round_trip(shell_payloads.decode_agent_session_state, shell_payloads.encode_agent_session_state),
    "json_text": check_json_text,
    "trace": check_trace,
}
