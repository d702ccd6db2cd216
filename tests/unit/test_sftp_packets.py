"""SFTP's packets: OpenSSH's own, and any bytes at all. Any bytes decode, or raise MalformedMessage."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sftp_peer import packet, text

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.packets import (
    MAX_HANDLE_BYTES,
    MAX_PACKET_BYTES,
    Attributes,
    AttributesReply,
    DataReply,
    ExtendedReply,
    HandleReply,
    NameReply,
    PacketReader,
    StatusReply,
    decode_reply,
    decode_u64s,
    decode_version,
    encode_attributes,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "sftp" / "openssh-9.2.jsonl"
RECORDS = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
FROM_SERVER = [bytes.fromhex(record["hex"]) for record in RECORDS if record["from"] == "server"]
REPLIES = FROM_SERVER[1:]
U32 = st.integers(0, 2**32 - 1)
ATTRIBUTES = st.builds(
    Attributes,
    size=st.none() | st.integers(0, 2**64 - 1),
    owner=st.none() | st.tuples(U32, U32),
    permissions=st.none() | U32,
    times=st.none() | st.tuples(U32, U32),
)
KINDS = (packets.STATUS, packets.HANDLE, packets.DATA, packets.NAME, packets.ATTRS, packets.EXTENDED_REPLY)
REQUEST = b"\0\0\0\7"


def test_the_recording_is_complete() -> None:
    assert len(REPLIES) == 28
    assert {data[4] for data in REPLIES} == set(KINDS)


def test_the_server_names_its_extensions() -> None:
    extensions = decode_version(FROM_SERVER[0][5:])
    assert extensions[b"posix-rename@openssh.com"] == b"1"
    assert extensions[b"statvfs@openssh.com"] == b"2"
    assert len(extensions) == 11


@pytest.mark.parametrize("version", [0, 2, 4, 6])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(MalformedMessage, match=f"version {version}; 3 is needed"):
        decode_version(struct.pack(">I", version))


def test_a_folder_of_the_recording_is_read() -> None:
    (listing,) = [reply for reply in map(reply_of, REPLIES) if isinstance(reply, NameReply) and len(reply.entries) > 1]
    found = dict(listing.entries)
    assert set(found) == {b".", b"..", b"there", b"moved.txt", b"dangling", b"link", b"caf\xe9", b"sub"}
    assert found[b"there"] == Attributes(size=3, owner=(0, 0), permissions=0o100600, times=(0x6B07BC03, 1600000000))
    assert found[b"there"].is_regular
    assert found[b"sub"].is_folder
    assert not found[b"sub"].is_regular
    assert found[b"link"].is_link
    assert not found[b"link"].is_regular


def test_what_tells_no_type_counts_as_a_file() -> None:
    for attributes in (Attributes(), Attributes(permissions=0o644)):
        assert attributes.is_regular
        assert not attributes.is_folder
        assert not attributes.is_link


def reply_of(data: bytes) -> packets.Reply:
    return decode_reply(data[4], data[5:])[1]


@pytest.mark.parametrize("data", REPLIES, ids=lambda data: f"{data[4]}-{int.from_bytes(data[5:9], 'big')}")
def test_a_reply_cut_anywhere_is_refused_and_what_follows_it_is_left_alone(data: bytes) -> None:
    whole = reply_of(data)
    kind, body = data[4], data[5:]
    for end in range(len(body)):
        try:
            _, reply = decode_reply(kind, body[:end])
        except MalformedMessage:
            continue
        # The only ones that may end early: a status without words, and extensions, which are not looked into.
        if isinstance(whole, StatusReply):
            assert reply in (StatusReply(whole.code, ""), whole)
        else:
            assert isinstance(reply, ExtendedReply)
    if not isinstance(whole, ExtendedReply):
        assert decode_reply(kind, body + b"more")[1] == whole


def test_each_kind_of_reply() -> None:
    assert decode_reply(101, REQUEST + struct.pack(">I", 4)) == (7, StatusReply(4, ""))
    assert decode_reply(101, REQUEST + struct.pack(">I", 4) + text(b"caf\xe9") + text(b"en")) == (
        7,
        StatusReply(4, "caf\ufffd"),
    )
    assert decode_reply(102, REQUEST + text(b"\0\1")) == (7, HandleReply(b"\0\1"))
    assert decode_reply(103, REQUEST + text(b"data")) == (7, DataReply(b"data"))
    assert decode_reply(105, REQUEST + bytes(4)) == (7, AttributesReply(Attributes()))
    assert decode_reply(201, REQUEST + b"any") == (7, ExtendedReply(b"any"))
    assert decode_reply(104, REQUEST + bytes(4)) == (7, NameReply([]))


def test_extended_attributes_are_passed_over() -> None:
    extended = struct.pack(">IQI", 0x80000001, 5, 2) + text(b"a@b") + text(b"1") + text(b"c@d") + text(b"")
    names = struct.pack(">I", 2) + (text(b"x") + text(b"") + extended) * 2
    assert decode_reply(104, REQUEST + names) == (7, NameReply([(b"x", Attributes(size=5))] * 2))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (104, struct.pack(">I", 2**32 - 1)),
        (104, struct.pack(">I", 1000) + bytes(1000)),
        (105, struct.pack(">II", 0x80000000, 2**32 - 1)),
        (105, struct.pack(">II", 0x80000000, 2**32 - 1) + bytes(100_000)),
        (103, struct.pack(">I", 2**32 - 1)),
        (101, struct.pack(">II", 0, 2**31)),
        (102, text(bytes(MAX_HANDLE_BYTES + 1))),
        (100, bytes(8)),
        (packets.VERSION_REPLY, bytes(8)),
        (0, bytes(8)),
    ],
    ids=lambda value: str(value if isinstance(value, int) else len(value)),
)
def test_what_is_announced_is_not_believed(kind: int, body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedMessage):
        decode_reply(kind, REQUEST + body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@given(st.sampled_from(KINDS) | st.integers(0, 255), st.binary(max_size=200), st.booleans())
@example(104, struct.pack(">I", 1) + text(b"") + text(b"") + struct.pack(">I", 0xFFFFFFFF), True)
def test_any_bytes_decode_or_are_refused(kind: int, body: bytes, is_numbered: bool) -> None:
    for decode in (
        lambda: decode_reply(kind, REQUEST + body if is_numbered else body),
        lambda: decode_version(body),
        lambda: decode_version(struct.pack(">I", 3) + body),
        lambda: decode_u64s(body, 5),
    ):
        with contextlib.suppress(MalformedMessage):
            decode()


@given(ATTRIBUTES)
def test_attributes_come_back_from_their_bytes(attributes: Attributes) -> None:
    encoded = encode_attributes(attributes)
    assert decode_reply(105, REQUEST + encoded) == (7, AttributesReply(attributes))


def test_times_that_have_no_place_are_bent() -> None:
    assert encode_attributes(Attributes(times=(-5, 2**40))) == struct.pack(">III", 8, 0, 2**32 - 1)


STREAM = b"".join(FROM_SERVER)
WHOLE = [(data[4], data[5:]) for data in FROM_SERVER]


def test_packets_come_whole_however_the_stream_is_cut() -> None:
    assert PacketReader().feed(STREAM) == WHOLE
    one_by_one = PacketReader()
    assert [found for byte in STREAM for found in one_by_one.feed(bytes((byte,)))] == WHOLE
    for end in range(len(STREAM)):
        reader = PacketReader()
        assert reader.feed(STREAM[:end]) + reader.feed(STREAM[end:]) == WHOLE


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=10), st.data())
def test_any_packets_come_whole_however_they_are_cut(each: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(packet(kind, body) for kind, body in each)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = PacketReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == each


@pytest.mark.parametrize("size", [0, MAX_PACKET_BYTES + 1, 2**32 - 1])
def test_an_impossible_packet_is_refused_as_soon_as_it_is_announced(size: int) -> None:
    with pytest.raises(MalformedMessage, match=f"of {size} bytes"):
        PacketReader().feed(struct.pack(">I", size))
    with pytest.raises(MalformedMessage, match=f"of {size} bytes"):
        PacketReader().feed(FROM_SERVER[0] + struct.pack(">I", size))


def test_the_largest_packet_in_the_smallest_pieces_takes_no_more_memory_than_itself() -> None:
    reader = PacketReader()
    body = bytes(30_000)
    reader.feed(struct.pack(">IB", len(body) + 1, 103))
    tracemalloc.start()
    found = [each for byte in body for each in reader.feed(bytes((byte,)))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(103, body)]
    assert peak < 5 * len(body)


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_stream_is_cut_or_refused(pieces: list[bytes]) -> None:
    reader = PacketReader()
    with contextlib.suppress(MalformedMessage):
        for piece in pieces:
            reader.feed(piece)
