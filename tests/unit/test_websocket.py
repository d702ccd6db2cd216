"""WebSocketTransport over real sockets; frames are made by hand."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websocket_peer import (
    BINARY,
    CLOSE,
    DEADLINE,
    PING,
    PONG,
    TEXT,
    FrameReader,
    frame,
    queued_bytes,
    receive,
)

from ssm_proxy.emulator.certificates import make_server_context
from ssm_proxy.errors import (
    RemoteProtocolError,
    TransportClosed,
)
from ssm_proxy.transport.frames import MAX_MESSAGE_BYTES
from ssm_proxy.transport.poller import make_poller
from ssm_proxy.transport.websocket import SEND_CHUNK_BYTES, WebSocketTransport

Pair = tuple[WebSocketTransport, socket.socket]
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE)
    transport = WebSocketTransport(ours)
    with theirs:
        yield transport, theirs
    transport.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return make_server_context(tmp_path_factory.mktemp("authority"), "127.0.0.1")


@pytest.fixture
def tls_pair(authority: tuple[ssl.SSLContext, Path]) -> Iterator[Pair]:
    """Both ends of TLS over TCP on loopback, with small buffers so that writes are cut."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = socket.create_connection(listener.getsockname())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        accepted, _ = listener.accept()
    accepted.settimeout(DEADLINE)
    served: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: served.append(authority[0].wrap_socket(accepted, server_side=True)))
    thread.start()
    context = ssl.create_default_context(cafile=str(authority[1]))
    transport = WebSocketTransport(context.wrap_socket(raw, server_hostname="127.0.0.1"))
    thread.join(DEADLINE)
    with served[0]:
        yield transport, served[0]
    transport.close()


def flush_into(transport: WebSocketTransport, theirs: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Flush with a peer that reads in a thread, until so many frames have arrived."""
    reader = FrameReader()
    frames: list[tuple[int, bytes]] = []

    def read() -> None:
        while len(frames) < count:
            frames.extend(reader.feed(theirs.recv(65536)))

    thread = threading.Thread(target=read)
    thread.start()
    poller = make_poller()
    poller.set(transport.fileno(), write=True)
    while transport.wants_write:
        assert poller.wait(DEADLINE)
        transport.flush()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert reader.rest == b""
    return frames


def flush_until_it_fails(transport: WebSocketTransport) -> None:
    poller = make_poller()
    poller.set(transport.fileno(), write=True)
    while True:
        transport.flush()
        assert transport.wants_write, "the peer has gone, yet everything was sent"
        assert poller.wait(DEADLINE)


class TestSending:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 1144, 65535, 65536, 300_000])
    def test_one_masked_binary_frame_for_each_message(self, pair: Pair, size: int) -> None:
        transport, theirs = pair
        message = os.urandom(size)
        transport.send([message, b"next"])
        assert flush_into(transport, theirs, 2) == [(BINARY, message), (BINARY, b"next")]

    def test_text_and_ping(self, pair: Pair) -> None:
        transport, theirs = pair
        transport.send_text('{"a":"ä"}')
        transport.ping()
        assert transport.wants_write
        assert flush_into(transport, theirs, 2) == [(TEXT, '{"a":"ä"}'.encode()), (PING, b"keepalive")]
        assert not transport.wants_write

    @pytest.mark.parametrize("kind", ["pair", "tls_pair"])
    def test_what_the_socket_does_not_take_leaves_later(self, request: pytest.FixtureRequest, kind: str) -> None:
        transport, theirs = request.getfixturevalue(kind)
        messages = [os.urandom(1024) for _ in range(6000)]
        transport.send(messages[:3000])
        transport.flush()
        assert 0 < queued_bytes(transport) < 3000 * 1100
        transport.send(messages[3000:])  # behind a write that TLS has to repeat
        frames = flush_into(transport, theirs, 6000)
        assert [payload for _, payload in frames] == messages

    @pytest.mark.parametrize("kind", ["pair", "tls_pair"])
    def test_a_broken_connection_is_told_and_can_be_closed(self, request: pytest.FixtureRequest, kind: str) -> None:
        transport, theirs = request.getfixturevalue(kind)
        if kind == "tls_pair":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        theirs.close()
        poller = make_poller()
        poller.set(transport.fileno(), read=True)
        assert poller.wait(DEADLINE)
        transport.send([b"x" * 1024] * 1000)
        with pytest.raises(TransportClosed, match="broke while sending"):
            transport.flush()
        # Also while the error is being handled, which is when the driver closes.
        transport.send([b"x" * 1024] * 1000)
        try:
            flush_until_it_fails(transport)
        except TransportClosed:
            transport.send([b"y"])
            transport.close()

    def test_close_says_goodbye(self, pair: Pair) -> None:
        transport, theirs = pair
        transport.send([b"last"])
        transport.close()
        assert FrameReader().feed(theirs.recv(100)) == [(BINARY, b"last"), (CLOSE, b"\x03\xe8")]
        assert theirs.recv(1) == b""

    def test_close_twice_and_with_full_buffers(self, pair: Pair) -> None:
        transport, _ = pair
        transport.send([b"x" * 1024] * 3000)
        transport.close()
        transport.close()
        assert transport.fileno() == -1


class TestLanes:
    def test_ahead_goes_before_what_was_queued_earlier(self, pair: Pair) -> None:
        transport, theirs = pair
        transport.send([b"data 1", b"data 2"])
        transport.send_text("opening")
        transport.ping()
        transport.send_ahead([b"ahead 1", b"ahead 2"])
        transport.send([b"data 3"])
        theirs.sendall(frame(b"are you there", PING))
        transport.receive()
        assert flush_into(transport, theirs, 8) == [
            (TEXT, b"opening"),
            (PING, b"keepalive"),
            (BINARY, b"ahead 1"),
            (BINARY, b"ahead 2"),
            (PONG, b"are you there"),
            (BINARY, b"data 1"),
            (BINARY, b"data 2"),
            (BINARY, b"data 3"),
        ]

    def test_what_waits_ahead_is_counted_apart(self, pair: Pair) -> None:
        transport, theirs = pair
        transport.send([b"x" * 1100] * 3000)
        assert transport.queued_ahead_bytes == 0
        transport.flush()
        transport.send_ahead([b"ahead"] * 3)
        assert transport.queued_ahead_bytes == 3 * (2 + 4 + 5)
        flush_into(transport, theirs, 3003)
        assert transport.queued_ahead_bytes == 0

    def test_more_ahead_than_leaves_at_once_lets_nothing_in_between(self, pair: Pair) -> None:
        transport, theirs = pair
        ahead = [b"%d" % number + b"x" * 1100 for number in range(100)]
        transport.send([b"small"])
        transport.send_ahead(ahead)
        assert [payload for _, payload in flush_into(transport, theirs, 101)] == [*ahead, b"small"]

    @pytest.mark.parametrize("kind", ["pair", "tls_pair"])
    def test_only_what_has_begun_to_leave_goes_before(self, request: pytest.FixtureRequest, kind: str) -> None:
        transport, theirs = request.getfixturevalue(kind)
        data = [os.urandom(1100) for _ in range(6000)]
        frame_bytes = 1100 + 8
        transport.send(data)
        queued = queued_bytes(transport)
        assert queued == len(data) * frame_bytes
        transport.flush()
        taken = queued - queued_bytes(transport)
        assert 0 < taken < queued, "the socket has to refuse something"
        transport.send_ahead([b"ahead"])
        transport.ping()
        frames = flush_into(transport, theirs, len(data) + 2)
        place = frames.index((BINARY, b"ahead"))
        assert place * frame_bytes <= taken + SEND_CHUNK_BYTES
        assert frames.pop(place + 1) == (PING, b"keepalive")
        del frames[place]
        assert [payload for _, payload in frames] == data

    @pytest.mark.parametrize("kind", ["pair", "tls_pair"])
    def test_every_byte_arrives_while_the_reader_stops_and_goes_on(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        """Something is put ahead behind every write that was refused, which TLS wants repeated as it was."""
        transport, theirs = request.getfixturevalue(kind)
        theirs.setblocking(False)
        source = random.Random(5)
        reader = FrameReader()
        sent: dict[bytes, list[bytes]] = {b"d": [], b"a": []}
        arrived: dict[bytes, list[bytes]] = {b"d": [], b"a": []}
        until = time.monotonic() + DEADLINE
        refusals = 0

        def send(kind: bytes, largest: int, count: int) -> list[bytes]:
            messages = [kind + source.randbytes(source.randrange(largest)) for _ in range(count)]
            sent[kind] += messages
            return messages

        def read(size: int) -> None:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                for _, payload in reader.feed(theirs.recv(size)):
                    arrived[payload[:1]].append(payload)

        while arrived != sent or refusals < 200:
            assert time.monotonic() < until
            if refusals < 200 and queued_bytes(transport) < 100_000:
                transport.send(send(b"d", 3000, 200))
            transport.flush()
            if transport.wants_write:
                refusals += 1
                if refusals < 200:
                    transport.send_ahead(send(b"a", 300, source.randrange(3)))
                read(source.choice([10, 5000, 65536]))
            else:
                read(65536)
        assert reader.rest == b""
        assert queued_bytes(transport) == 0

    def test_a_broken_connection_leaves_nothing_queued(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.close()
        transport.send([b"x"])
        transport.send_ahead([b"y"])
        with pytest.raises(TransportClosed, match="broke while sending"):
            transport.flush()
        assert queued_bytes(transport) == 0
        assert not transport.wants_write


class TestReceiving:
    def test_nothing_is_no_message(self, pair: Pair) -> None:
        assert pair[0].receive() == []
        assert not pair[0].has_more

    @pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
    def test_frame_lengths(self, pair: Pair, size: int) -> None:
        transport, theirs = pair
        message = os.urandom(size)
        theirs.sendall(frame(message))
        assert receive(transport, 1) == [message]

    def test_thousands_of_messages_in_one_read(self, pair: Pair) -> None:
        transport, theirs = pair
        messages = [b"%d" % number for number in range(20_000)]
        theirs.sendall(b"".join(map(frame, messages)))
        received = transport.receive()
        assert len(received) > 5000
        assert received + receive(transport, 20_000 - len(received)) == messages

    def test_split_at_every_byte(self, pair: Pair) -> None:
        transport, theirs = pair
        data = frame(b"a" * 130) + frame(b"") + frame(b"mark", PING) + frame(b"b" * 5, fin=False) + frame(b"c", 0)
        messages = []
        for byte in data:
            theirs.sendall(bytes([byte]))
            messages += transport.receive()
        assert messages == [b"a" * 130, b"", b"bbbbbc"]

    def test_text_is_taken_like_binary(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(frame("ä".encode(), TEXT) + frame(b"\xff\xfe", TEXT))
        assert receive(transport, 2) == ["ä".encode(), b"\xff\xfe"]

    def test_fragments_with_a_ping_between_them(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(
            frame(b"one ", fin=False)
            + frame(b"are you there", PING)
            + frame(b"", 0, fin=False)
            + frame(b"two", 0)
            + frame(b"next")
        )
        assert receive(transport, 2) == [b"one two", b"next"]
        assert flush_into(transport, theirs, 1) == [(PONG, b"are you there")]

    @pytest.mark.parametrize("payload", [b"", b"x" * 125])
    def test_a_ping_is_answered_with_its_payload(self, pair: Pair, payload: bytes) -> None:
        transport, theirs = pair
        theirs.sendall(frame(payload, PING) + frame(b"ignored", PONG))
        assert transport.receive() == []
        assert transport.wants_write
        assert flush_into(transport, theirs, 1) == [(PONG, payload)]
        assert not transport.wants_write

    def test_of_pings_without_end_only_the_last_is_answered(self, pair: Pair) -> None:
        transport, theirs = pair
        for number in range(1000):
            theirs.sendall(frame(b"%d" % number, PING) * 10)
            assert transport.receive() == []
        assert queued_bytes(transport) == 0
        assert flush_into(transport, theirs, 1) == [(PONG, b"999")]

    def test_every_byte_counts_as_a_sign_of_life(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(frame(b"", PONG))
        assert transport.receive() == []
        assert transport.bytes_received == 2

    def test_empty_fragments_do_not_add_up(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(frame(b"a", fin=False) + frame(b"", 0, fin=False) * 10_000 + frame(b"b", 0))
        assert receive(transport, 1) == [b"ab"]

    def test_tls_with_large_records(self, tls_pair: Pair) -> None:
        transport, theirs = tls_pair
        messages = [os.urandom(size) for size in (1_000_000, 16384, 5, 16379, 40_000)]
        thread = threading.Thread(target=theirs.sendall, args=(b"".join(map(frame, messages)),))
        thread.start()
        assert receive(transport, len(messages)) == messages
        thread.join(DEADLINE)

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=60),
                st.builds(
                    frame,
                    st.binary(max_size=130),
                    st.integers(0, 15),
                    fin=st.booleans(),
                    rsv=st.sampled_from([0, 0, 0, 4]),
                ),
            ),
            max_size=8,
        )
    )
    def test_any_bytes_are_taken_or_refused_by_name(self, pieces: list[bytes]) -> None:
        ours, theirs = socket.socketpair()
        transport = WebSocketTransport(ours)
        with theirs:
            try:
                for piece in pieces:
                    theirs.sendall(piece)
                    transport.receive()
            except (TransportClosed, RemoteProtocolError):
                pass
        transport.close()


class TestEnd:
    @pytest.mark.parametrize(
        ("payload", "cause"),
        [
            (b"\x03\xe8Bye", "close frame with code 1000 ('Bye')"),
            (b"\x03\xe9", "close frame with code 1001"),
            (b"\x0f\xa0", "close frame with code 4000"),
            (b"", "close frame without a code"),
            (b"\x03\xee", "close frame with code 1006"),
            (b"\x00", "close frame without a code"),
            (b"\x03\xe8\xff", "close frame with code 1000 ('\ufffd')"),
        ],
    )
    def test_every_close_frame_is_an_end_behind_the_last_message(self, pair: Pair, payload: bytes, cause: str) -> None:
        transport, theirs = pair
        theirs.sendall(frame(b"last") + frame(payload, CLOSE) + frame(b"not any more"))
        assert transport.receive() == [b"last"]
        # The peer waits for our answer before it ends the connection, so the socket has nothing more to say.
        assert transport.has_more
        with pytest.raises(TransportClosed) as caught:
            transport.receive()
        assert caught.value.cause == cause

    def test_an_end_without_a_close_frame(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(frame(b"last") + frame(b"cut")[:4])
        theirs.close()
        assert transport.receive() == [b"last"]
        with pytest.raises(TransportClosed) as caught:
            transport.receive()
        assert caught.value.cause == "it ended without a close frame"

    def test_a_reset(self, tls_pair: Pair) -> None:
        transport, theirs = tls_pair
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        theirs.close()
        poller = make_poller()
        poller.set(transport.fileno(), read=True)
        assert poller.wait(DEADLINE)
        with pytest.raises(TransportClosed, match="broke"):
            transport.receive()

    def test_bytes_sent_before_an_end_can_be_read_after_a_failed_write(self, tls_pair: Pair) -> None:
        transport, theirs = tls_pair
        theirs.sendall(frame(b"reason"))
        theirs.close()
        poller = make_poller()
        poller.set(transport.fileno(), read=True)
        assert poller.wait(DEADLINE)
        transport.send([b"x" * 1024] * 1000)
        with pytest.raises(TransportClosed):
            flush_until_it_fails(transport)
        assert transport.receive() == [b"reason"]

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"HTTP/1.1 502 Bad Gateway\r\n\r\n" * 20, id="http"),
            pytest.param(frame(b"compressed", rsv=4), id="rsv1"),
            pytest.param(frame(b"?", 3), id="unknown opcode"),
            pytest.param(frame(b"?", 0), id="continuation of nothing"),
            pytest.param(frame(b"a", fin=False) + frame(b"b"), id="message within a message"),
            pytest.param(frame(b"a", PING, fin=False), id="ping in fragments"),
            pytest.param(b"\x82\x81maska", id="masked"),
            pytest.param(b"\x89\x7e\x00\x7ex", id="control frame of 126 bytes"),
        ],
    )
    def test_what_is_no_websocket_is_refused(self, pair: Pair, data: bytes) -> None:
        transport, theirs = pair
        theirs.sendall(data)
        with pytest.raises(RemoteProtocolError, match="the service sent"):
            transport.receive()

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"\x82\x7f" + (MAX_MESSAGE_BYTES + 1).to_bytes(8, "big") + b"x", id="at once"),
            pytest.param(b"\x82\x7f\xff" + b"\xff" * 7 + b"x", id="64 bits"),
            pytest.param(
                frame(b"x" * 1024, fin=False) + b"\x80\x7f" + MAX_MESSAGE_BYTES.to_bytes(8, "big") + b"x",
                id="in fragments",
            ),
        ],
    )
    def test_an_oversized_message_is_refused_at_its_header(self, pair: Pair, data: bytes) -> None:
        transport, theirs = pair
        theirs.sendall(data)
        with pytest.raises(RemoteProtocolError, match="none may be larger than 8388608"):
            transport.receive()
