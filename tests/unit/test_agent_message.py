"""The binary message against docs/PROTOCOL.md section 3."""

from __future__ import annotations

import hashlib
import struct
import uuid

import pytest
from simulation import wire_sketch
from simulation.wire_sketch import Frame

from ssm_proxy.errors import DigestMismatch, LocalProtocolError, MalformedMessage, RemoteProtocolError
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.payloads import Acknowledge, encode_acknowledge, format_uuid

# The worked example of section 3.5.
EXAMPLE = bytes.fromhex(
    """
    00 00 00 74 69 6e 70 75 74 5f 73 74 72 65 61 6d
    5f 64 61 74 61 20 20 20 20 20 20 20 20 20 20 20
    20 20 20 20 00 00 00 01 00 00 01 8b cf e5 68 7b
    00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 00
    88 99 aa bb cc dd ee ff 00 11 22 33 44 55 46 77
    36 74 c1 3c 3e b4 2e f3 2e ff d1 27 a6 89 c6 11
    81 91 a8 11 bc a3 35 ff a3 f5 09 ef f0 51 d2 53
    00 00 00 01 00 00 00 06 6c 73 20 2d 6c 0d
    """
)
EXAMPLE_ACKNOWLEDGE = (
    bytes.fromhex(
        """
        00 00 00 74 61 63 6b 6e 6f 77 6c 65 64 67 65 20
        20 20 20 20 20 20 20 20 20 20 20 20 20 20 20 20
        20 20 20 20 00 00 00 01 00 00 01 8b cf e5 69 c8
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03
        81 23 45 67 89 ab cd ef 01 23 45 67 89 ab 4d ef
        b8 b7 ae 2a 35 af 48 11 5f 29 68 f2 cd 59 d2 45
        14 f9 1f c9 09 27 42 d7 54 cc 53 6f ff 01 84 8d
        00 00 00 00 00 00 00 af
        """
    )
    + b'{"AcknowledgedMessageType":"input_stream_data",'
    + b'"AcknowledgedMessageId":"00112233-4455-4677-8899-aabbccddeeff",'
    + b'"AcknowledgedMessageSequenceNumber":3,"IsSequentialMessage":true}'
)
EXAMPLE_ID = uuid.UUID("00112233-4455-4677-8899-aabbccddeeff").bytes
EXAMPLE_MESSAGE = AgentMessage("input_stream_data", b"ls -l\r", EXAMPLE_ID, 1_700_000_000_123, 3, 1)


def message(**changes: object) -> AgentMessage:
    return EXAMPLE_MESSAGE._replace(**changes)  # type: ignore[arg-type]


class TestWorkedExample:
    def test_encodes_to_the_literal_bytes(self) -> None:
        assert len(EXAMPLE) == 126
        assert encode_agent_message(EXAMPLE_MESSAGE) == EXAMPLE

    def test_decodes_to_the_value(self) -> None:
        assert decode_agent_message(EXAMPLE) == EXAMPLE_MESSAGE

    def test_its_acknowledge_is_295_bytes(self) -> None:
        payload = encode_acknowledge(Acknowledge("input_stream_data", format_uuid(EXAMPLE_ID), 3))
        message_id = uuid.UUID("01234567-89ab-4def-8123-456789abcdef").bytes
        acknowledge = AgentMessage("acknowledge", payload, message_id, 1_700_000_000_456, flags=3)
        assert len(EXAMPLE_ACKNOWLEDGE) == 295
        assert encode_agent_message(acknowledge) == EXAMPLE_ACKNOWLEDGE
        assert decode_agent_message(EXAMPLE_ACKNOWLEDGE) == acknowledge

    def test_cut_at_every_byte_it_is_rejected(self) -> None:
        for end in range(len(EXAMPLE)):
            with pytest.raises(MalformedMessage if end < 120 else DigestMismatch):
                decode_agent_message(EXAMPLE[:end])

    def test_trailing_bytes_belong_to_the_payload_and_so_break_the_digest(self) -> None:
        with pytest.raises(DigestMismatch):
            decode_agent_message(EXAMPLE + b"x")

    def test_text_messages_are_the_same_bytes(self) -> None:
        # Some relays hand WebSocket data over as a bytearray or a view of one.
        assert decode_agent_message(bytes(bytearray(EXAMPLE))).payload == b"ls -l\r"


class TestShortHeader:
    """Messages that the service makes itself (3.2): HeaderLength 112, NUL padding, no PayloadType."""

    @pytest.mark.parametrize("kind", ["channel_closed", "start_publication", "pause_publication", "interactive_shell"])
    @pytest.mark.parametrize("payload", [b'{"MessageType":"x"}', b"{}", b"\0", b""])
    def test_is_read_and_written(self, kind: str, payload: bytes) -> None:
        uid = uuid.UUID("00112233-4455-4677-8899-aabbccddeeff")
        data = wire_sketch.pack(Frame(kind, payload, uid=uid, created=1), header_length=112)
        assert len(data) == 116 + len(payload)
        assert data[4 + len(kind) : 36].strip(b"\0") == b""
        decoded = decode_agent_message(data)
        assert decoded == AgentMessage(kind, payload, EXAMPLE_ID, 1, header_length=112)
        assert encode_agent_message(decoded) == data

    def test_literal_bytes(self) -> None:
        digest = hashlib.sha256(b"{}").digest()
        data = (
            b"\0\0\0\x70channel_closed"
            + bytes(18)
            + b"\0\0\0\x01"
            + bytes(7)
            + b"\x05"
            + bytes(16)
            + bytes(16)
            + digest
        ) + b"\0\0\0\x02{}"
        assert decode_agent_message(data) == AgentMessage("channel_closed", b"{}", bytes(16), 5, header_length=112)

    def test_cut_short_it_is_rejected(self) -> None:
        data = wire_sketch.pack(Frame("channel_closed", b'{"Output":""}'), header_length=112)
        for end in range(len(data)):
            with pytest.raises(MalformedMessage if end < 116 else DigestMismatch):
                decode_agent_message(data[:end])


class TestChecks:
    """The table of section 3.3."""

    def test_header_length_zero(self) -> None:
        with pytest.raises(MalformedMessage):
            decode_agent_message(bytes(4) + EXAMPLE[4:])

    @pytest.mark.parametrize("header_length", [1, 4, 36, 100, 111, 113, 115])
    def test_header_length_that_no_message_has(self, header_length: int) -> None:
        with pytest.raises(MalformedMessage, match="neither 112 nor 116"):
            decode_agent_message(struct.pack(">I", header_length) + EXAMPLE[4:])

    @pytest.mark.parametrize("header_length", [123, 124, 200, 2**31, 2**32 - 1])
    def test_header_length_beyond_the_end(self, header_length: int) -> None:
        """It kills the reader of both official programs (3.4)."""
        with pytest.raises(MalformedMessage, match="outside"):
            decode_agent_message(struct.pack(">I", header_length) + EXAMPLE[4:])

    def test_a_longer_header_than_today_is_skipped(self) -> None:
        data = struct.pack(">I", 120) + EXAMPLE[4:116] + b"new!" + EXAMPLE[116:]
        decoded = decode_agent_message(data)
        assert (decoded.payload, decoded.payload_type, decoded.header_length) == (b"ls -l\r", 1, 120)

    @pytest.mark.parametrize("padding", [b" ", b"\0", b"\n"])
    def test_empty_message_type(self, padding: bytes) -> None:
        with pytest.raises(MalformedMessage, match="type is empty"):
            decode_agent_message(EXAMPLE[:4] + padding * 32 + EXAMPLE[36:])

    def test_padding_of_either_kind_is_stripped_from_both_ends(self) -> None:
        field = b"\0\0 input_stream_data \0\0".ljust(32, b"\0")
        assert decode_agent_message(EXAMPLE[:4] + field + EXAMPLE[36:]).message_type == "input_stream_data"

    def test_message_type_that_is_not_ascii(self) -> None:
        with pytest.raises(MalformedMessage, match="not ASCII"):
            decode_agent_message(EXAMPLE[:4] + b"\xff" + EXAMPLE[5:])

    def test_created_date_zero(self) -> None:
        with pytest.raises(MalformedMessage, match="no created date"):
            decode_agent_message(EXAMPLE[:40] + bytes(8) + EXAMPLE[48:])

    def test_wrong_digest(self) -> None:
        with pytest.raises(DigestMismatch, match="number 3"):
            decode_agent_message(EXAMPLE[:80] + bytes(32) + EXAMPLE[112:])

    def test_wrong_digest_of_an_empty_payload_is_not_looked_at(self) -> None:
        data = wire_sketch.pack(Frame("output_stream_data", b""), digest=bytes(32))
        assert decode_agent_message(data).payload == b""

    def test_an_empty_payload_that_says_it_has_a_length_is_a_cut_message(self) -> None:
        with pytest.raises(DigestMismatch):
            decode_agent_message(EXAMPLE[:120])

    def test_payload_length_is_not_used_to_cut(self) -> None:
        for length in (0, 1, 5, 7, 2**32 - 1):
            data = wire_sketch.pack(Frame("output_stream_data", b"abcdef"), length=length)
            assert decode_agent_message(data).payload == b"abcdef"

    @pytest.mark.parametrize("kind", ["start_publication", "pause_publication"])
    def test_publication_messages_skip_digest_and_date(self, kind: str) -> None:
        data = wire_sketch.pack(Frame(kind, b"{}", created=0), digest=bytes(32))
        assert decode_agent_message(data).message_type == kind

    @pytest.mark.parametrize("size", [0, 1, 115])
    def test_shorter_than_any_header(self, size: int) -> None:
        with pytest.raises(MalformedMessage, match=f"of {size} bytes"):
            decode_agent_message(EXAMPLE[:size])

    def test_smallest_messages(self) -> None:
        assert decode_agent_message(wire_sketch.pack(Frame("x", b""))).payload == b""  # 120 bytes
        assert decode_agent_message(wire_sketch.pack(Frame("x", b""), header_length=112)).payload == b""  # 116 bytes

    @pytest.mark.parametrize("size", [1025, 60_000, 5_000_000])
    def test_any_size_is_taken(self, size: int) -> None:
        """No limit is in either program (10.3)."""
        payload = bytes(size)
        assert decode_agent_message(wire_sketch.pack(Frame("output_stream_data", payload))).payload == payload

    def test_negative_sequence_number_is_signed(self) -> None:
        assert decode_agent_message(wire_sketch.pack(Frame("output_stream_data", b"x", -1))).sequence_number == -1

    def test_unknown_types_are_decoded_all_the_same(self) -> None:
        decoded = decode_agent_message(wire_sketch.pack(Frame("something_new", b"x", payload_type=99)))
        assert (decoded.message_type, decoded.payload_type) == ("something_new", 99)

    def test_errors_are_the_remotes_fault(self) -> None:
        assert issubclass(MalformedMessage, RemoteProtocolError)
        assert issubclass(DigestMismatch, RemoteProtocolError)


class TestEncodeRefuses:
    @pytest.mark.parametrize(
        "changes",
        [
            {"message_type": ""},
            {"message_type": "x" * 33},
            {"message_type": "é"},
            {"created_date_ms": 0},
            {"created_date_ms": -1},
            {"message_id": b"short"},
            {"header_length": 120},
            {"header_length": 0},
            {"sequence_number": 2**63},
            {"flags": -1},
            {"payload_type": 2**32},
            {"schema_version": -1},
            {"header_length": 112, "flags": 2**64},
        ],
    )
    def test_what_does_not_fit(self, changes: dict[str, object]) -> None:
        with pytest.raises(LocalProtocolError):
            encode_agent_message(message(**changes))

    def test_edges_fit(self) -> None:
        edge = message(message_type="x" * 32, sequence_number=2**63 - 1, flags=2**64 - 1, payload_type=2**32 - 1)
        assert decode_agent_message(encode_agent_message(edge)) == edge

    def test_the_error_does_not_quote_the_payload(self) -> None:
        with pytest.raises(LocalProtocolError) as info:
            encode_agent_message(message(payload=b"secret", flags=-1))
        assert "secret" not in f"{info.value.message} {info.value.cause} {info.value.hint}"


def test_no_error_of_decoding_quotes_the_payload() -> None:
    for data in (EXAMPLE[:80] + bytes(32) + EXAMPLE[112:], EXAMPLE[:125], EXAMPLE[:40] + bytes(8) + EXAMPLE[48:]):
        with pytest.raises(RemoteProtocolError) as info:
            decode_agent_message(data)
        assert "ls -l" not in str(info.value)
