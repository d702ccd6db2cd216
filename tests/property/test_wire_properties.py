"""Codec: what is encoded decodes to itself, and any bytes decode or raise a ProtocolError, nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from simulation import wire_sketch
from simulation.wire_sketch import Frame

from ssm_proxy.errors import ProtocolError
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.payloads import (
    Acknowledge,
    ChannelClosedPayload,
    HandshakeComplete,
    HandshakeRequest,
    HandshakeResponse,
    ProcessedAction,
    RequestedAction,
    decode_acknowledge,
    decode_channel_closed,
    decode_flag,
    decode_handshake_complete,
    decode_handshake_request,
    decode_handshake_response,
    encode_acknowledge,
    encode_channel_closed,
    encode_flag,
    encode_handshake_complete,
    encode_handshake_request,
    encode_handshake_response,
)
from ssm_proxy.wire.shell_payloads import (
    AgentSessionState,
    TerminalSize,
    decode_agent_session_state,
    decode_challenge,
    decode_exit_code,
    decode_size,
    encode_agent_session_state,
    encode_challenge,
    encode_exit_code,
    encode_size,
)

U32 = st.integers(0, 2**32 - 1)
KINDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=32)
TEXTS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
MEMBERS = st.sampled_from(
    [
        "AcknowledgedMessageSequenceNumber",
        "AcknowledgedMessageType",
        "ActionParameters",
        "ActionStatus",
        "ActionType",
        "AgentVersion",
        "Challenge",
        "CustomerMessage",
        "Errors",
        "HandshakeTimeToComplete",
        "IsSequentialMessage",
        "Output",
        "ProcessedClientActions",
        "RequestedClientActions",
        "SchemaVersion",
        "SessionState",
        "cols",
        "requestedclientactions",
        "rows",
    ]
)
NEARLY = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=5), max_leaves=12
)
MESSAGES = st.builds(
    AgentMessage,
    message_type=KINDS,
    payload=st.binary(max_size=2000),
    message_id=st.binary(min_size=16, max_size=16),
    created_date_ms=st.integers(1, 2**64 - 1),
    sequence_number=st.integers(-(2**63), 2**63 - 1),
    payload_type=U32,
    flags=st.integers(0, 2**64 - 1),
    schema_version=U32,
    header_length=st.just(116),
)
DECODERS: list[Callable[[bytes], object]] = [
    decode_agent_message,
    decode_acknowledge,
    decode_channel_closed,
    decode_flag,
    decode_handshake_request,
    decode_handshake_response,
    decode_handshake_complete,
    decode_size,
    decode_challenge,
    decode_exit_code,
    decode_agent_session_state,
]


@given(MESSAGES)
def test_messages_come_back(message: AgentMessage) -> None:
    data = encode_agent_message(message)
    assert decode_agent_message(data) == message
    assert wire_sketch.unpack(data).payload == message.payload


@given(MESSAGES)
def test_short_messages_come_back(message: AgentMessage) -> None:
    short = message._replace(header_length=112, payload_type=0)
    assert decode_agent_message(encode_agent_message(short)) == short


@given(st.builds(Acknowledge, KINDS, KINDS, st.integers(0, 2**63 - 1), st.booleans()))
def test_acknowledges_come_back(acknowledge: Acknowledge) -> None:
    assert decode_acknowledge(encode_acknowledge(acknowledge)) == acknowledge


@given(
    st.builds(
        ChannelClosedPayload,
        session_id=TEXTS,
        output=TEXTS,
        message_id=TEXTS,
        destination_id=TEXTS,
        schema_version=st.integers(),
        created_date=TEXTS,
    )
)
def test_channel_closed_comes_back(closed: ChannelClosedPayload) -> None:
    assert decode_channel_closed(encode_channel_closed(closed)) == closed


@given(U32)
def test_flags_come_back(flag: int) -> None:
    assert decode_flag(encode_flag(flag)) == flag


@given(
    TEXTS,
    st.lists(
        st.builds(RequestedAction, action_type=TEXTS, parameters=st.dictionaries(TEXTS, JSON, max_size=3)), max_size=3
    ),
)
def test_handshake_requests_come_back(version: str, actions: list[RequestedAction]) -> None:
    request = HandshakeRequest(agent_version=version, requested_actions=tuple(actions))
    assert decode_handshake_request(encode_handshake_request(request)) == request


@given(
    TEXTS,
    st.lists(st.builds(ProcessedAction, action_type=TEXTS, status=st.integers(), result=JSON, error=TEXTS), max_size=3),
    st.none() | st.lists(TEXTS, max_size=3).map(tuple),
)
def test_handshake_responses_come_back(
    version: str, actions: list[ProcessedAction], errors: tuple[str, ...] | None
) -> None:
    response = HandshakeResponse(client_version=version, processed_actions=tuple(actions), errors=errors)
    assert decode_handshake_response(encode_handshake_response(response)) == response


@given(st.builds(HandshakeComplete, time_to_complete_ns=st.integers(), customer_message=TEXTS))
def test_handshake_completions_come_back(complete: HandshakeComplete) -> None:
    assert decode_handshake_complete(encode_handshake_complete(complete)) == complete


@given(st.builds(TerminalSize, columns=U32, rows=U32))
def test_sizes_come_back(size: TerminalSize) -> None:
    assert decode_size(encode_size(size)) == size


@given(st.binary(max_size=200))
def test_challenges_come_back(challenge: bytes) -> None:
    assert decode_challenge(encode_challenge(challenge)) == challenge


@given(st.integers(-(2**31), 2**32 - 1))
def test_exit_codes_come_back(exit_code: int) -> None:
    assert decode_exit_code(encode_exit_code(exit_code)) == exit_code


@given(st.builds(AgentSessionState, session_id=TEXTS, state=st.text(min_size=1, max_size=20)))
def test_session_states_come_back(state: AgentSessionState) -> None:
    assert decode_agent_session_state(encode_agent_session_state(state)) == state


@pytest.mark.parametrize("decode", DECODERS)
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"[" * 5000)
@example(data=b'{"AcknowledgedMessageSequenceNumber":' + b"1" * 5000 + b"}")
@example(data=b'{"Challenge":"\\ud800"}')
@example(data=b"EXIT_CODE: " + b"1" * 5000)
def test_any_bytes_decode_or_are_a_protocol_error(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode(data)


@pytest.mark.parametrize("decode", [decode for decode in DECODERS[1:] if decode not in (decode_flag, decode_exit_code)])
@given(value=NEARLY)
def test_any_json_decodes_or_is_a_protocol_error(decode: Callable[[bytes], object], value: object) -> None:
    with contextlib.suppress(ProtocolError):
        decode(json.dumps(value).encode())


@given(st.data())
def test_a_damaged_message_decodes_or_is_a_protocol_error(data: st.DataObject) -> None:
    whole = bytearray(
        wire_sketch.pack(Frame("output_stream_data", data.draw(st.binary(min_size=1, max_size=50)), 3, 1))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        message = decode_agent_message(damaged)
    except ProtocolError:
        return
    assert damaged.endswith(message.payload)
