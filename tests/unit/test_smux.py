"""The codec of smux frames: examples of docs/PROTOCOL.md section 8.8, any cut, and what is refused."""

from __future__ import annotations

import pytest

from ssm_proxy.errors import LocalProtocolError, RemoteProtocolError
from ssm_proxy.wire.smux import FIN, NOP, PSH, SYN, UPD, Frame, FrameDecoder, encode_header

OPEN_3 = bytes.fromhex("0100000003000000")
HELLO_3 = bytes.fromhex("01020500 03000000 68656c6c6f")
STREAM = (
    OPEN_3 + HELLO_3 + b"\1\3\0\0\0\0\0\0" + b"\1\4\x08\0\3\0\0\0upd-skip" + b"\1\2\0\0\3\0\0\0" + b"\1\1\0\0\3\0\0\0"
)


def decode(*pieces: bytes) -> list[Frame]:
    """Decode with one decoder; parts of one PSH that follow each other are joined."""
    decoder = FrameDecoder()
    frames: list[Frame] = []
    for piece in pieces:
        decoder.feed(piece, frames)
    joined: list[Frame] = []
    for frame in frames:
        if joined and joined[-1].command == frame.command == PSH and joined[-1].stream_id == frame.stream_id:
            joined[-1] = frame._replace(data=joined[-1].data + frame.data)
        else:
            joined.append(frame)
    return joined


def test_the_examples_of_the_protocol_reference() -> None:
    assert encode_header(SYN, 3) == OPEN_3
    assert encode_header(PSH, 3, 5) + b"hello" == HELLO_3
    assert decode(OPEN_3) == [Frame(SYN, 3)]
    assert decode(HELLO_3) == [Frame(PSH, 3, b"hello")]


def test_numbers_are_little_endian_and_of_full_width() -> None:
    assert encode_header(PSH, 0x01020304, 0xFFFE) == bytes.fromhex("0102feff04030201")
    data = bytes(65535)
    assert decode(bytes.fromhex("0102ffffffffffff") + data) == [Frame(PSH, 2**32 - 1, data)]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_cuts_do_not_matter(size: int) -> None:
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert decode(*pieces) == [Frame(SYN, 3), Frame(PSH, 3, b"hello"), Frame(NOP, 0), Frame(FIN, 3)]


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_cut_at_any_place_does_not_matter(at: int) -> None:
    assert decode(STREAM[:at], b"", STREAM[at:]) == decode(STREAM)


def test_data_is_handed_on_before_its_frame_is_whole() -> None:
    assert decode(encode_header(PSH, 5, 65535) + b"early") == [Frame(PSH, 5, b"early")]
    assert decode(encode_header(PSH, 5, 65535)) == []


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        ("0000000003000000", "version 0"),
        ("0202010003000000", "version 2"),
        ("0105000003000000", "command 5 with 0 bytes"),
        ("01ff000003000000", "command 255 with 0 bytes"),
        ("0100010003000000", "command 0 with 1 bytes"),
        ("0101ffff03000000", "command 1 with 65535 bytes"),
        ("0103080000000000", "command 3 with 8 bytes"),
        ("0104000003000000", "command 4 with 0 bytes"),
        ("0104090003000000", "command 4 with 9 bytes"),
    ],
)
def test_what_is_no_frame_is_refused_behind_what_was_one(header: str, cause: str) -> None:
    frames: list[Frame] = []
    with pytest.raises(RemoteProtocolError) as info:
        FrameDecoder().feed(HELLO_3 + bytes.fromhex(header), frames)
    assert frames == [Frame(PSH, 3, b"hello")]
    assert cause in str(info.value.cause)


def test_a_window_update_of_version_2_is_read_past() -> None:
    assert decode(encode_header(UPD, 3, 8), b"12345678" + OPEN_3) == [Frame(SYN, 3)]


@pytest.mark.parametrize(("stream_id", "length"), [(3, 65536), (2**32, 0), (-1, 0)])
def test_what_fits_no_header_is_our_mistake(stream_id: int, length: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_header(PSH, stream_id, length)
