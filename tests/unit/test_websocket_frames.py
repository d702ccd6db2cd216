"""Frames against websocket-client, which plays the other side of the coding, and a second opinion on the parsing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import NamedTuple

import pytest
import websocket
from hypothesis import example, given
from hypothesis import strategies as st
from websocket import ABNF
from websocket_peer import BINARY, CLOSE, PING, PONG, TEXT, frame

from ssm_proxy.errors import RemoteProtocolError
from ssm_proxy.transport import frames
from ssm_proxy.transport.frames import MAX_CONTROL_BYTES, FrameParser, code_frames

CONTINUATION = 0
SIZES = [*range(10), 124, 125, 126, 127, 128, 1144, 65535, 65536, 65537, 70_001]


class Outcome(NamedTuple):
    messages: list[bytes]
    ping: bytes | None
    close: bytes | None
    is_refused: bool


class Library:
    """websocket-client's parser, which gives one frame after the other out of given bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._buffer = websocket.frame_buffer(self._read, True)

    def _read(self, size: int) -> bytes:
        data = self._data[self._position : self._position + size]
        if not data:
            raise BlockingIOError
        self._position += len(data)
        return data

    def next(self) -> ABNF | None:
        """Give the next frame, None if there is no whole one."""
        try:
            return self._buffer.recv_frame()  # type: ignore[no-any-return,unused-ignore]
        except BlockingIOError:
            return None


def by_the_library(data: bytes) -> Outcome:
    """Parse with websocket-client, and with what RFC 6455 demands beyond it: 5.1, 5.4 and 5.5."""
    library = Library(data)
    messages: list[bytes] = []
    ping = close = None
    fragments: list[bytes] | None = None
    while True:
        try:
            found = library.next()
        except websocket.WebSocketProtocolException as error:
            if "lose" not in str(error):
                return Outcome(messages, ping, close, True)
            # A code that must not be sent, but an end like any other.
            found = ABNF(1, 0, 0, 0, ABNF.OPCODE_CLOSE, 0, b"any")
        if found is None:
            return Outcome(messages, ping, close, False)
        payload: bytes = found.data  # type: ignore[assignment,unused-ignore]
        is_control = found.opcode >= CLOSE
        if found.mask_value or (is_control and (not found.fin or len(payload) > MAX_CONTROL_BYTES)):
            return Outcome(messages, ping, close, True)
        if found.opcode == PING:
            ping = payload
        elif found.opcode == CLOSE:
            return Outcome(messages, ping, b"any", False)
        elif found.opcode != PONG:
            if (found.opcode == CONTINUATION) != (fragments is not None):
                return Outcome(messages, ping, close, True)
            fragments = [*(fragments or []), payload]
            if found.fin:
                messages.append(b"".join(fragments))
                fragments = None


def parse(pieces: Iterable[bytes]) -> Outcome:
    parser = FrameParser()
    messages: list[bytes] = []
    is_refused = False
    try:
        for piece in pieces:
            parser.feed(piece, messages)
    except RemoteProtocolError:
        is_refused = True
    return Outcome(messages, parser.unanswered_ping, None if parser.close_payload is None else b"any", is_refused)


def long_form(payload: bytes, opcode: int) -> bytes:
    """Give a frame whose length is written in more bytes than it needs."""
    return bytes((0x80 | opcode, 127)) + len(payload).to_bytes(8, "big") + payload


def masked(payload: bytes) -> bytes:
    return code_frames(BINARY, [payload])[0]


PAYLOADS = st.one_of(st.binary(max_size=8), st.sampled_from(SIZES).map(lambda size: b"x" * size))
CONTROL_PAYLOADS = st.one_of(st.just(b""), st.just(b"\x03\xe8"), st.binary(max_size=125))
MESSAGES = PAYLOADS.map(frame)
USUAL = st.one_of(
    MESSAGES,
    MESSAGES,
    MESSAGES,
    st.builds(frame, PAYLOADS, st.just(TEXT)),
    st.builds(frame, CONTROL_PAYLOADS, st.sampled_from([PING, PONG])),
    st.builds(long_form, st.binary(max_size=5), st.sampled_from([TEXT, BINARY, PING])),
    st.lists(PAYLOADS, min_size=2, max_size=4).map(
        lambda parts: b"".join(
            frame(part, CONTINUATION if place else BINARY, fin=place == len(parts) - 1)
            + (frame(b"between", PING) if place == 0 else b"")
            for place, part in enumerate(parts)
        )
    ),
)
UNUSUAL = st.one_of(
    USUAL,
    st.builds(frame, PAYLOADS, st.integers(0, 15), fin=st.booleans(), rsv=st.sampled_from([0, 0, 0, 1, 2, 4])),
    st.builds(frame, st.binary(max_size=3), st.sampled_from([CONTINUATION, BINARY]), fin=st.booleans()),
    st.builds(frame, CONTROL_PAYLOADS, st.just(CLOSE)),
    PAYLOADS.map(masked),
)


class TestParsing:
    @given(
        st.one_of(st.lists(USUAL, max_size=8), st.lists(UNUSUAL, max_size=8)).map(b"".join),
        st.lists(st.integers(1, 200), max_size=30),
        st.integers(1, 200_000),
        st.integers(0, 3),
    )
    @example(frame(b"a", fin=False) + frame(b"b") + frame(b"c", CONTINUATION), [], 1000, 0)
    @example(b"".join(map(frame, (b"a" * 130, b"", b"b"))) + frame(b"c", PING), [1] * 200, 1, 0)
    def test_any_frames_however_cut_are_what_the_library_makes_of_them(
        self, data: bytes, cuts: list[int], step: int, missing: int
    ) -> None:
        """A run of small reads first, then reads of one size; the last frame may be cut off."""
        expected = by_the_library(data)
        pieces = []
        position = 0
        for size in cuts:
            pieces.append(data[position : position + size])
            position += size
        step = max(step, len(data) // 500)
        pieces += [data[start : start + step] for start in range(position, len(data), step)]
        assert b"".join(pieces) == data
        assert parse(pieces) == expected
        if missing and not expected.is_refused and expected.close is None:
            whole = data + frame(b"the last")
            assert parse([whole[:-missing], whole[-missing:]]) == parse([whole])
            assert parse([whole[:-missing]]).messages == expected.messages

    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_any_bytes(self, data: bytes, step: int) -> None:
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        found, expected = parse(pieces), by_the_library(data)
        assert found.messages == expected.messages
        # What is wrong shows in the header; the library looks when all is there.
        assert found.is_refused >= expected.is_refused
        assert found.is_refused or found == expected

    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            (frame(b"", rsv=4)[:2], "reserved bits are set, but no extension was agreed upon"),
            (frame(b"", 3)[:2], "unknown opcode 3"),
            (b"\x82\x80", "it is masked, which only clients may do"),
            (b"\x89\x7e\x00\x7e", "a control frame of 126 bytes"),
            (b"\x88\x7f" + b"\xff" * 8, "a control frame of 18446744073709551615 bytes"),
            (b"\x09\x00", "a control frame in fragments"),
        ],
    )
    def test_a_refusal_says_why_and_needs_the_header_only(self, data: bytes, cause: str) -> None:
        with pytest.raises(RemoteProtocolError) as caught:
            FrameParser().feed(data, [])
        assert caught.value.cause == cause

    def test_nothing_is_kept_behind_the_end(self) -> None:
        parser = FrameParser()
        messages: list[bytes] = []
        parser.feed(frame(b"\x03\xe8", CLOSE) + frame(b"more"), messages)
        parser.feed(frame(b"more") + b"\x82", messages)
        assert messages == []
        assert parser.close_payload == b"\x03\xe8"

    @pytest.mark.parametrize(
        ("head", "piece"),
        [
            pytest.param(frame(b"", fin=False), frame(b"ab", CONTINUATION, fin=False), id="fragments of two bytes"),
            pytest.param(frame(b"", fin=False), frame(b"", CONTINUATION, fin=False), id="empty fragments"),
            pytest.param(b"\x82\x7f" + (65536).to_bytes(8, "big"), b"ab", id="one frame, two bytes at a time"),
            pytest.param(b"", frame(b"x" * 125, PING), id="pings"),
        ],
    )
    def test_what_is_kept_is_bounded(self, monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes) -> None:
        """Small pieces must not cost many times their size."""
        monkeypatch.setattr(frames, "MAX_MESSAGE_BYTES", 65536)
        parser = FrameParser()
        tracemalloc.start()
        try:
            parser.feed(head, [])
            for _ in range(32_767):
                parser.feed(piece, [])
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 2 * 65536

    def test_fragments_that_add_up_are_refused(self) -> None:
        parser = FrameParser()
        parser.feed(frame(b"", fin=False), [])
        fragment = frame(b"x" * 1024, CONTINUATION, fin=False)
        for _ in range(8 * 1024):
            parser.feed(fragment, [])
        with pytest.raises(RemoteProtocolError, match="8389632 bytes; none may be larger than 8388608"):
            parser.feed(fragment, [])


class TestCoding:
    @given(st.lists(st.one_of(st.binary(max_size=300), PAYLOADS), max_size=5), st.sampled_from([TEXT, BINARY, PING]))
    def test_the_library_reads_what_was_coded(self, payloads: list[bytes], opcode: int) -> None:
        library = Library(b"".join(code_frames(opcode, payloads)))
        for payload in payloads:
            found = library.next()
            assert found is not None
            assert (found.opcode, found.fin, found.mask_value, found.data) == (opcode, 1, 1, payload)
        assert library.next() is None

    @pytest.mark.parametrize("size", SIZES)
    def test_every_length(self, size: int) -> None:
        payload = bytes(range(256)) * (size // 256 + 1)
        (coded,) = code_frames(BINARY, [payload[:size]])
        reference = ABNF.create_frame(payload[:size], BINARY)
        reference.get_mask_key = lambda _: coded[len(coded) - size - 4 : len(coded) - size]
        assert coded == reference.format()

    def test_every_frame_has_a_key_of_its_own(self) -> None:
        """Each of its bytes takes many values; 1,000 frames repeat a key once in about 9,000 runs."""
        keys = [coded[2:6] for _ in range(10) for coded in code_frames(BINARY, [b"same"] * 100)]
        assert len(set(keys)) >= 999
        for place in range(4):
            assert len({key[place] for key in keys}) > 200
