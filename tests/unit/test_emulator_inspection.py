"""What the agent forgives, what costs the message, and what silences it for good."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from emulator_peer import input_message
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.emulator.inspection import DeafeningMessage, read_message

GOOD = input_message(7, b"payload")


def changed(offset: int, data: bytes) -> bytes:
    return GOOD[:offset] + data + GOOD[offset + len(data) :]


def defects_of(data: bytes) -> tuple[bool, list[str]]:
    defects: Counter[str] = Counter()
    message = read_message(data, defects)
    return message is not None, list(defects)


def test_a_good_message_has_no_defect() -> None:
    defects: Counter[str] = Counter()
    message = read_message(GOOD, defects)
    assert message is not None
    assert (message.message_type, message.sequence_number, message.payload_type) == ("input_stream_data", 7, 1)
    assert message.payload == b"payload"
    assert not defects


@pytest.mark.parametrize(
    ("data", "defect"),
    [
        (GOOD[:116], "message shorter than its header, ignored"),
        (changed(0, bytes(4)), "header length 0, ignored"),
        (changed(4, b" " * 32), "empty message type, ignored"),
        (changed(40, bytes(8)), "created date 0, ignored"),
    ],
)
def test_what_costs_the_message(data: bytes, defect: str) -> None:
    assert defects_of(data) == (False, [defect])


@pytest.mark.parametrize(
    ("data", "defect"),
    [
        (changed(80, bytes(32)), "wrong payload digest"),
        (changed(116, struct.pack(">I", 3)), "payload length is not what follows"),
        (changed(36, struct.pack(">I", 2)), "schema version is not 1"),
        (changed(4, b"input_stream_data".ljust(32, b"\0")), "message type not padded with spaces"),
        (GOOD[:116] + bytes(4), "empty payload"),
    ],
)
def test_what_is_forgiven_and_counted(data: bytes, defect: str) -> None:
    """Digests in particular: the agent does not compare them (docs/PROTOCOL.md section 3.3)."""
    assert defects_of(data) == (True, [defect])


def test_the_payload_starts_where_the_header_length_says() -> None:
    defects: Counter[str] = Counter()
    message = read_message(changed(0, struct.pack(">I", 118)), defects)
    assert message is not None
    assert message.payload == b"yload"
    assert "header length is not 116" in defects


def test_a_header_length_beyond_the_end_deafens() -> None:
    defects: Counter[str] = Counter()
    with pytest.raises(DeafeningMessage):
        read_message(changed(0, struct.pack(">I", 5000)), defects)
    assert list(defects) == ["header length beyond the end, deafens the agent"]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_dropped_or_deafening(data: bytes) -> None:
    try:
        read_message(data, Counter())
    except DeafeningMessage:
        assert int.from_bytes(data[:4], "big") + 4 > len(data)
