"""Every recorded frame decodes to the expected value and encodes back to the same bytes."""

from __future__ import annotations

import json
import struct

import pytest
from golden.transcripts import NAMES, Record, frames
from simulation import wire_sketch

from ssm_proxy.errors import DigestMismatch, MalformedMessage
from ssm_proxy.wire.agent_message import decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import Flag, PayloadType
from ssm_proxy.wire.payloads import (
    decode_acknowledge,
    decode_channel_closed,
    decode_flag,
    decode_handshake_complete,
    decode_handshake_request,
    decode_handshake_response,
    encode_acknowledge,
    encode_flag,
    encode_handshake_complete,
    encode_handshake_request,
    encode_handshake_response,
)
from ssm_proxy.wire.shell_payloads import (
    SessionState,
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

UNCHECKED = {"start_publication", "pause_publication"}


def payloads(payload_type: int, *, sender: str, message_type: str = "") -> list[Record]:
    """Give the frames of one payload type (of one message type outside the stream) that an official program made."""
    return [
        record
        for name in NAMES
        if not (name == "shell-encrypted" and sender == "client")  # not the official client there
        for record in frames(name)
        if record.payload_type == payload_type and record.sender == sender and message_type in ("", record.kind)
    ]


def test_the_recordings_are_complete() -> None:
    assert len(NAMES) == 12
    assert sum(len(frames(name)) for name in NAMES) > 600


@pytest.mark.parametrize("name", NAMES)
def test_frames_decode_to_the_expected_value_and_encode_back(name: str) -> None:
    for record in frames(name):
        message = decode_agent_message(record.data)
        values = record.values
        assert message.message_type == values["type"]
        assert message.sequence_number == values["seq"]
        assert message.payload_type == values["payload_type"]
        assert len(message.payload) == values["length"]
        other = wire_sketch.unpack(record.data)
        assert message.message_type == other.kind
        assert message.payload == other.payload
        assert message.sequence_number == other.seq
        assert message.payload_type == other.payload_type
        assert message.flags == other.flags
        assert message.message_id == other.uid.bytes
        assert message.created_date_ms == other.created
        assert message.schema_version == other.schema
        assert message.header_length == 116
        assert encode_agent_message(message) == record.data
        assert wire_sketch.pack(other) == record.data


@pytest.mark.parametrize("name", NAMES)
def test_header_flags_are_the_official_ones(name: str) -> None:
    for record in frames(name):
        if record.sender == "service" or (name == "shell-encrypted" and record.sender == "client"):
            continue
        flags = {"input_stream_data": 0, "output_stream_data": int(record.seq == 0)}.get(record.kind, 3)
        assert decode_agent_message(record.data).flags == flags


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_cut_anywhere_is_rejected(name: str) -> None:
    seen = set()
    for record in frames(name):
        shape = (record.kind, record.payload_type, len(record.data))
        if shape in seen:  # what a cut does depends on these alone
            continue
        seen.add(shape)
        for end in range(len(record.data)):
            cut = record.data[:end]
            if record.kind in UNCHECKED and end >= 120:  # no digest is compared in these (3.3)
                assert decode_agent_message(cut).payload == record.payload[: end - 120]
                continue
            with pytest.raises(MalformedMessage if end < 120 else DigestMismatch):
                decode_agent_message(cut)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_with_trailing_bytes_is_rejected(name: str) -> None:
    for record in frames(name):
        longer = record.data + b"\0"
        if record.kind in UNCHECKED:
            assert decode_agent_message(longer).payload == record.payload + b"\0"
            continue
        with pytest.raises(DigestMismatch):
            decode_agent_message(longer)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_payload_bit_never_gets_past_the_digest(name: str) -> None:
    for record in frames(name):
        if record.kind in UNCHECKED:
            continue
        for at in (120, 120 + len(record.payload) // 2, len(record.data) - 1):
            flipped = bytearray(record.data)
            flipped[at] ^= 1 << (record.number % 8)
            with pytest.raises(DigestMismatch):
                decode_agent_message(bytes(flipped))


@pytest.mark.parametrize("sender", ["client", "agent"])
def test_acknowledges_are_the_official_bytes(sender: str) -> None:
    recorded = payloads(0, sender=sender, message_type="acknowledge")
    assert len(recorded) > 100
    for record in recorded:
        acknowledge = decode_acknowledge(record.payload)
        assert acknowledge._asdict() == {
            "message_type": "output_stream_data" if sender == "client" else "input_stream_data",
            "message_id": json.loads(record.payload)["AcknowledgedMessageId"],
            "sequence_number": wire_sketch.acknowledged_number(wire_sketch.unpack(record.data)),
            "is_sequential": True,
        }
        assert encode_acknowledge(acknowledge) == record.payload


def test_handshake_requests_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.HANDSHAKE_REQUEST, sender="agent")
    assert len(recorded) >= 10
    for record in recorded:
        request = decode_handshake_request(record.payload)
        assert request.agent_version == "3.3.0.0"
        assert request.requested_actions[0].action_type == "SessionType"
        assert encode_handshake_request(request) == record.payload


def test_handshake_responses_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.HANDSHAKE_RESPONSE, sender="client")
    assert len(recorded) >= 9
    for record in recorded:
        response = decode_handshake_response(record.payload)
        assert response.client_version == "1.2.677.0"
        assert [(action.action_type, action.status) for action in response.processed_actions] == [("SessionType", 1)]
        assert response.errors is None
        assert encode_handshake_response(response) == record.payload


def test_handshake_completions_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.HANDSHAKE_COMPLETE, sender="agent")
    assert len(recorded) >= 10
    messages = set()
    for record in recorded:
        complete = decode_handshake_complete(record.payload)
        assert complete.time_to_complete_ns > 0
        messages.add(complete.customer_message)
        assert encode_handshake_complete(complete) == record.payload
    assert messages == {"", "This session is encrypted using AWS KMS."}


def test_flags_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.FLAG, sender="agent") + payloads(PayloadType.FLAG, sender="client")
    assert recorded
    for record in recorded:
        assert decode_flag(record.payload) in set(Flag)
        assert (
            encode_flag(decode_flag(record.payload)) == record.payload == struct.pack(">I", decode_flag(record.payload))
        )


def test_channel_closed_is_read() -> None:
    recorded = payloads(0, sender="service", message_type="channel_closed")
    assert recorded
    for record in recorded:
        closed = decode_channel_closed(record.payload)
        values = json.loads(record.payload)
        assert (closed.session_id, closed.output, closed.created_date) == (
            values["SessionId"],
            "",
            values["CreatedDate"],
        )
        assert (closed.message_id, closed.destination_id) == (values["MessageId"], "mi-0123456789abcdef0")
        assert closed.schema_version == 1


def test_sizes_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.SIZE, sender="client")
    assert len(recorded) >= 2
    for record in recorded:
        size = decode_size(record.payload)
        assert size == TerminalSize(columns=300, rows=100)  # what the official client takes without a terminal
        assert encode_size(size) == record.payload


def test_exit_codes_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.EXIT_CODE, sender="agent")
    assert [decode_exit_code(record.payload) for record in recorded] == [7]
    assert [encode_exit_code(7)] == [record.payload for record in recorded]


def test_challenge_requests_are_the_official_bytes() -> None:
    recorded = payloads(PayloadType.ENC_CHALLENGE_REQUEST, sender="agent")
    assert recorded
    for record in recorded:
        challenge = decode_challenge(record.payload)
        assert len(challenge) == 92
        assert encode_challenge(challenge) == record.payload


def test_a_challenge_response_that_the_agent_took_is_read() -> None:
    recorded = [record for record in frames("shell-encrypted") if record.values.get("payload_type") == 9]
    assert recorded
    for record in recorded:
        challenge = decode_challenge(record.payload)
        assert len(challenge) == 92
        assert encode_challenge(challenge) == record.payload.replace(b" ", b"")  # not the official client's spaces


def test_session_states_are_the_official_bytes() -> None:
    recorded = payloads(0, sender="agent", message_type="agent_session_state")
    assert len(recorded) > len(NAMES)
    states = set()
    for record in recorded:
        state = decode_agent_session_state(record.payload)
        assert state.session_id == json.loads(record.payload)["SessionId"]
        states.add(state.state)
        assert encode_agent_session_state(state) == record.payload
    assert states == {SessionState.CONNECTED, SessionState.TERMINATING}
