"""JSON and flag payloads against docs/PROTOCOL.md sections 2.2, 4, 5.2 and 6; official bytes are in tests/golden."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest

from ssm_proxy.errors import MalformedMessage
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
    encode_open_data_channel,
    format_uuid,
)

STRICT_DECODERS = [
    decode_acknowledge,
    decode_handshake_request,
    decode_handshake_response,
    decode_handshake_complete,
]
NOT_OBJECTS = [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe\xfd", b"{}{}", b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("decode", STRICT_DECODERS)
@pytest.mark.parametrize("payload", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
def test_what_is_no_json_object_is_malformed(decode: Callable[[bytes], object], payload: bytes) -> None:
    with pytest.raises(MalformedMessage) as info:
        decode(payload)
    assert len(str(info.value)) < 100


def test_format_uuid() -> None:
    value = uuid.UUID("00112233-4455-4677-8899-aabbccddeeff")
    assert format_uuid(value.bytes) == str(value)


class TestAcknowledge:
    def test_literal(self) -> None:
        acknowledge = Acknowledge("output_stream_data", "877acf2d-0754-4f9c-a6ea-d553288021d5", 10)
        assert encode_acknowledge(acknowledge) == (
            b'{"AcknowledgedMessageType":"output_stream_data",'
            b'"AcknowledgedMessageId":"877acf2d-0754-4f9c-a6ea-d553288021d5",'
            b'"AcknowledgedMessageSequenceNumber":10,"IsSequentialMessage":true}'
        )

    def test_not_sequential(self) -> None:
        acknowledge = Acknowledge("output_stream_data", "id", 0, is_sequential=False)
        assert decode_acknowledge(encode_acknowledge(acknowledge)) == acknowledge

    def test_names_are_read_whatever_their_case_and_unknown_ones_ignored(self) -> None:
        payload = b'{"new":[1],"acknowledgedmessagesequencenumber": 7, "ACKNOWLEDGEDMESSAGETYPE":"t"}'
        assert decode_acknowledge(payload) == Acknowledge("t", "", 7)

    def test_the_exact_name_wins(self) -> None:
        payload = b'{"acknowledgedmessagesequencenumber":1,"AcknowledgedMessageSequenceNumber":2}'
        assert decode_acknowledge(payload).sequence_number == 2

    @pytest.mark.parametrize("number", ["-1", "1.5", "true", "null", '"3"', "[]", str(2**63), "1e3", "NaN", "9" * 5000])
    def test_without_a_usable_number_it_is_malformed(self, number: str) -> None:
        with pytest.raises(MalformedMessage):
            decode_acknowledge(f'{{"AcknowledgedMessageSequenceNumber":{number}}}'.encode())

    def test_without_any_number_it_is_malformed(self) -> None:
        with pytest.raises(MalformedMessage):
            decode_acknowledge(b'{"AcknowledgedMessageType":"input_stream_data"}')

    def test_the_largest_number(self) -> None:
        payload = encode_acknowledge(Acknowledge("t", "i", 2**63 - 1))
        assert decode_acknowledge(payload).sequence_number == 2**63 - 1


class TestChannelClosed:
    def test_members(self) -> None:
        closed = ChannelClosedPayload(
            session_id="s", output="why", message_id="m", destination_id="d", schema_version=2, created_date="c"
        )
        payload = encode_channel_closed(closed)
        assert json.loads(payload) == {
            "MessageType": "channel_closed",
            "MessageId": "m",
            "DestinationId": "d",
            "SessionId": "s",
            "SchemaVersion": 2,
            "CreatedDate": "c",
            "Output": "why",
        }
        assert b" " not in payload
        assert decode_channel_closed(payload) == closed

    @pytest.mark.parametrize("payload", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
    def test_what_cannot_be_read_is_a_normal_end(self, payload: bytes) -> None:
        assert decode_channel_closed(payload) == ChannelClosedPayload(session_id="")

    def test_members_of_the_wrong_type_are_as_if_absent(self) -> None:
        payload = b'{"Output":5,"SchemaVersion":"1","SessionId":null}'
        assert decode_channel_closed(payload) == ChannelClosedPayload(session_id="")


class TestFlag:
    @pytest.mark.parametrize(("flag", "payload"), [(1, b"\0\0\0\1"), (2, b"\0\0\0\2"), (3, b"\0\0\0\3")])
    def test_is_big_endian(self, flag: int, payload: bytes) -> None:
        assert encode_flag(flag) == payload
        assert decode_flag(payload) == flag

    def test_unknown_flags_are_numbers_too(self) -> None:
        assert decode_flag(b"\xff\xff\xff\xff") == 2**32 - 1

    @pytest.mark.parametrize("payload", [b"", b"\0\0\1", b"\0\0\0\0\1"])
    def test_not_four_bytes(self, payload: bytes) -> None:
        with pytest.raises(MalformedMessage):
            decode_flag(payload)


class TestHandshakeRequest:
    def test_literal(self) -> None:
        request = HandshakeRequest(
            agent_version="3.3.987.0",
            requested_actions=[
                RequestedAction(
                    action_type="SessionType",
                    parameters={"SessionType": "Port", "Properties": {"portNumber": "22"}},
                )
            ],
        )
        payload = encode_handshake_request(request)
        assert payload == (
            b'{"AgentVersion":"3.3.987.0","RequestedClientActions":[{"ActionType":"SessionType",'
            b'"ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"22"}}}]}'
        )
        decoded = decode_handshake_request(payload)
        assert decoded.agent_version == "3.3.987.0"
        assert decoded.requested_actions[0].parameter("sessiontype") == "Port"
        assert decoded.requested_actions[0].parameter("Properties") == {"portNumber": "22"}
        assert decoded.requested_actions[0].parameter("absent") is None

    @pytest.mark.parametrize("actions", ["null", "[]"])
    def test_without_actions(self, actions: str) -> None:
        payload = f'{{"AgentVersion":"3","RequestedClientActions":{actions}}}'.encode()
        assert decode_handshake_request(payload) == HandshakeRequest(agent_version="3", requested_actions=())

    def test_empty_object(self) -> None:
        assert decode_handshake_request(b"{}") == HandshakeRequest(agent_version="", requested_actions=())

    @pytest.mark.parametrize("actions", ["5", '"x"', "[5]", "[null]", '{"a":1}'])
    def test_actions_that_are_no_list_of_objects(self, actions: str) -> None:
        with pytest.raises(MalformedMessage):
            decode_handshake_request(f'{{"RequestedClientActions":{actions}}}'.encode())

    def test_members_of_the_wrong_type_are_as_if_absent(self) -> None:
        payload = b'{"AgentVersion":3,"RequestedClientActions":[{"ActionType":7,"ActionParameters":"x"}]}'
        request = decode_handshake_request(payload)
        assert request == HandshakeRequest(agent_version="", requested_actions=(RequestedAction(action_type=""),))


class TestHandshakeResponse:
    def test_literal(self) -> None:
        response = HandshakeResponse(
            client_version="1.2.764.0",
            processed_actions=[
                ProcessedAction(action_type="SessionType", status=1),
                ProcessedAction(action_type="KMSEncryption", status=3, result={"a": 1}, error="no"),
            ],
        )
        payload = encode_handshake_response(response)
        assert payload == (
            b'{"ClientVersion":"1.2.764.0","ProcessedClientActions":['
            b'{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""},'
            b'{"ActionType":"KMSEncryption","ActionStatus":3,"ActionResult":{"a":1},"Error":"no"}],"Errors":null}'
        )
        decoded = decode_handshake_response(payload)
        assert decoded.processed_actions == tuple(response.processed_actions)
        assert decoded.errors is None

    def test_errors(self) -> None:
        response = HandshakeResponse(client_version="", processed_actions=(), errors=("a", "b"))
        assert decode_handshake_response(encode_handshake_response(response)) == response

    @pytest.mark.parametrize("status", ["null", '"1"', "1.0", "true"])
    def test_a_status_that_is_no_number_counts_as_failed(self, status: str) -> None:
        payload = f'{{"ProcessedClientActions":[{{"ActionStatus":{status}}}]}}'.encode()
        assert decode_handshake_response(payload).processed_actions[0].status == 2

    @pytest.mark.parametrize("actions", ["5", "[5]", '{"a":1}'])
    def test_actions_that_are_no_list_of_objects(self, actions: str) -> None:
        with pytest.raises(MalformedMessage):
            decode_handshake_response(f'{{"ProcessedClientActions":{actions}}}'.encode())


class TestHandshakeComplete:
    def test_literal(self) -> None:
        complete = HandshakeComplete(time_to_complete_ns=44028485)
        payload = b'{"HandshakeTimeToComplete":44028485,"CustomerMessage":""}'
        assert encode_handshake_complete(complete) == payload
        assert decode_handshake_complete(payload) == complete

    @pytest.mark.parametrize("elapsed", ["null", "1.5", '"1"', "true"])
    def test_a_time_that_is_no_number_counts_as_none(self, elapsed: str) -> None:
        payload = f'{{"HandshakeTimeToComplete":{elapsed},"CustomerMessage":"hello"}}'.encode()
        assert decode_handshake_complete(payload) == HandshakeComplete(time_to_complete_ns=0, customer_message="hello")


def test_open_data_channel_has_the_official_members_in_order() -> None:
    text = encode_open_data_channel(token="AAEA", request_id="9b7", client_id="3f0", client_version="1.2.764.0")
    assert text == (
        '{"MessageSchemaVersion":"1.0","RequestId":"9b7","TokenValue":"AAEA","ClientId":"3f0","ClientVersion":"1.2.764.0"}'
    )
