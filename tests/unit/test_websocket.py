"""WebSocketTransport over real sockets, and the opening against real listeners; frames are made by hand."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
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
    ScriptedServer,
    answer_with,
    frame,
    read_request,
    upgrade,
)

from ssm_proxy.emulator.certificates import make_server_context
from ssm_proxy.errors import (
    ConfigurationError,
    ConnectFailed,
    OpeningRefused,
    RemoteProtocolError,
    SsmProxyError,
    TransportClosed,
    TransportTimeout,
)
from ssm_proxy.transport.poller import make_poller
from ssm_proxy.transport.websocket import MAX_MESSAGE_BYTES, WebSocketTransport, open_websocket

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


def receive(transport: WebSocketTransport, count: int) -> list[bytes]:
    """Receive as the loop does: when the poller says so, or ``has_more``."""
    poller = make_poller()
    poller.set(transport.fileno(), read=True)
    messages: list[bytes] = []
    while len(messages) < count:
        assert transport.has_more or poller.wait(DEADLINE), f"only {len(messages)} messages arrived"
        messages += transport.receive()
    return messages


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
        assert 0 < transport.queued_bytes < 3000 * 1100
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

    def test_a_ping_is_answered_with_its_payload(self, pair: Pair) -> None:
        transport, theirs = pair
        theirs.sendall(frame(b"", PING) + frame(b"x" * 125, PING) + frame(b"ignored", PONG))
        assert transport.receive() == []
        assert flush_into(transport, theirs, 2) == [(PONG, b""), (PONG, b"x" * 125)]

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
            (b"\x03\xee", "Invalid close opcode 1006"),
            (b"\x00", "Invalid close frame"),
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


# --- the opening -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def open_at(url: str, **changes: object) -> WebSocketTransport:
    options: dict[str, object] = {"headers": {}, "ca_bundle": None, "proxy_url": None, "timeout": DEADLINE}
    return open_websocket(url, **{**options, **changes})  # type: ignore[arg-type]


def refusal(url: str, **changes: object) -> SsmProxyError:
    """Open, and give the error, which must say what, why and what to do in the required form."""
    with pytest.raises(SsmProxyError) as caught:
        open_at(url, **changes)
    error = caught.value
    for text in (error.message, error.cause, error.hint):
        assert text is None or (text and not text.endswith(".") and "\n" not in text)
    return error


def echo(connection: socket.socket, request: bytes) -> None:
    """Accept, say hello, and answer the first frame with its own payload."""
    upgrade(connection, request)
    connection.sendall(frame(b"hello"))
    reader = FrameReader()
    while not (frames := reader.feed(connection.recv(65536))):
        pass
    connection.sendall(frame(frames[0][1]))


def talk(transport: WebSocketTransport) -> None:
    assert receive(transport, 1) == [b"hello"]
    transport.send([b"ping pong"])
    transport.flush()
    assert receive(transport, 1) == [b"ping pong"]
    transport.close()


class TestOpening:
    def test_the_url_goes_out_as_it_is_with_the_headers(self) -> None:
        with ScriptedServer(echo) as server:
            url = f"ws://127.0.0.1:{server.port}/v1/data-channel/user%2Fx-1?role=publish_subscribe&cell=a=b"
            talk(open_at(url, headers={"Authorization": "AWS4 x", "X-Amz-Date": "now"}))
        first, *lines = server.requests[0].decode().split("\r\n")
        assert first == "GET /v1/data-channel/user%2Fx-1?role=publish_subscribe&cell=a=b HTTP/1.1"
        names = [line.partition(":")[0].lower() for line in lines if line]
        assert "Authorization: AWS4 x" in lines
        assert "X-Amz-Date: now" in lines
        assert f"Host: 127.0.0.1:{server.port}" in lines
        assert "origin" not in names
        assert "sec-websocket-extensions" not in names, "no compression: RSV bits would be garbage"

    def test_over_tls(self, authority: tuple[ssl.SSLContext, Path]) -> None:
        with ScriptedServer(echo, authority[0]) as server:
            talk(open_at(f"wss://localhost:{server.port}/", ca_bundle=str(authority[1])))

    def test_bytes_behind_the_answer_are_not_lost(self) -> None:
        def answer(connection: socket.socket, request: bytes) -> None:
            upgrade(connection, request)
            connection.sendall(frame(b"x") * 3)

        with ScriptedServer(answer) as server:
            transport = open_at(f"ws://127.0.0.1:{server.port}/")
            assert receive(transport, 3) == [b"x"] * 3
            transport.close()

    def test_403_names_the_permission(self) -> None:
        with ScriptedServer(answer_with("HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret")) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, OpeningRefused)
        assert error.status == 403
        assert error.exit_status == 6
        assert "ssmmessages:OpenDataChannel" in (error.cause or "")
        assert "ssmmessages:OpenDataChannel" in (error.hint or "")

    @pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503])
    def test_any_other_answer_is_a_refusal_with_its_status(self, status: int) -> None:
        text = f"HTTP/1.1 {status} Whatever\r\nX-Debug: secret\r\nContent-Length: 6\r\n\r\nsecret"
        with ScriptedServer(answer_with(text)) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, OpeningRefused)
        assert error.status == status
        assert "secret" not in f"{error.message}{error.cause}{error.hint}"

    @pytest.mark.parametrize("status", [301, 302, 307])
    def test_a_redirect_is_not_followed(self, status: int) -> None:
        with ScriptedServer(echo) as elsewhere:
            location = f"ws://127.0.0.1:{elsewhere.port}/"
            text = f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            with ScriptedServer(answer_with(text)) as server:
                error = refusal(f"ws://127.0.0.1:{server.port}/", headers={"Authorization": "AWS4 x"})
            assert isinstance(error, ConnectFailed)
            assert elsewhere.requests == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            "HTTP/1.1 101 \xff\r\nno colon\r\n\r\n",
        ],
    )
    def test_an_answer_that_is_no_upgrade(self, text: str) -> None:
        with ScriptedServer(answer_with(text)) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, ConnectFailed | OpeningRefused)

    def test_silence_has_a_deadline(self) -> None:
        released = threading.Event()
        with ScriptedServer(lambda _connection, _request: released.wait(DEADLINE) and None) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/", timeout=0.1)
            released.set()
        assert isinstance(error, TransportTimeout)

    def test_nothing_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        error = refusal(f"ws://127.0.0.1:{port}/")
        assert isinstance(error, ConnectFailed)
        assert error.cause == "connection refused"
        assert "HTTPS_PROXY" in (error.hint or "")

    def test_a_name_that_does_not_resolve(self) -> None:
        error = refusal("ws://no-such-host.invalid/")
        assert isinstance(error, ConnectFailed)
        assert error.message == "the name no-such-host.invalid cannot be resolved"

    def test_an_untrusted_certificate(self, authority: tuple[ssl.SSLContext, Path]) -> None:
        with ScriptedServer(echo, authority[0]) as server:
            error = refusal(f"wss://127.0.0.1:{server.port}/")
        assert isinstance(error, ConnectFailed)
        assert error.message == "the certificate of 127.0.0.1 is not trusted"
        assert "AWS_CA_BUNDLE" in (error.hint or "")
        assert server.requests == []

    def test_tls_with_a_server_that_speaks_none(self) -> None:
        with ScriptedServer(answer_with("HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
            # The client hello ends with no blank line: the server answers when we have gone. So it must be cut short.
            error = refusal(f"wss://127.0.0.1:{server.port}/", timeout=0.1)
        assert isinstance(error, TransportTimeout | ConnectFailed)

    def test_a_ca_bundle_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "no.pem").write_text("no certificate")
        for path in (tmp_path / "missing.pem", tmp_path / "no.pem"):
            error = refusal("wss://127.0.0.1:1/", ca_bundle=str(path))
            assert isinstance(error, ConfigurationError)
            assert str(path) in error.message


class TestProxy:
    """With a small CONNECT proxy: what the environment says was decided elsewhere and must not matter here."""

    @staticmethod
    def connect_proxy(target_port: int) -> Callable[[socket.socket, bytes], None]:
        def answer(connection: socket.socket, request: bytes) -> None:
            wanted = b"Proxy-Authorization: Basic " + base64.b64encode("user@corp:p:ä ss".encode())
            if wanted not in request.split(b"\r\n"):
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nX-Hint: secret\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", target_port)) as target:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(target, connection))
                back.start()
                pump(connection, target)
                back.join(DEADLINE)

        return answer

    def test_with_credentials_through_to_tls(self, authority: tuple[ssl.SSLContext, Path]) -> None:
        with (
            ScriptedServer(echo, authority[0]) as server,
            ScriptedServer(self.connect_proxy(server.port)) as proxy,
        ):
            talk(
                open_at(
                    # The name is for the proxy to resolve; the certificate must be for it.
                    f"wss://localhost:{server.port}/",
                    ca_bundle=str(authority[1]),
                    proxy_url=f"http://user%40corp:p%3A%C3%A4%20ss@127.0.0.1:{proxy.port}",
                )
            )
        assert proxy.requests[0].startswith(f"CONNECT localhost:{server.port} HTTP/1.1\r\n".encode())
        assert b"Authorization" not in server.requests[0]

    def test_a_certificate_for_another_name(self, authority: tuple[ssl.SSLContext, Path]) -> None:
        with (
            ScriptedServer(echo, authority[0]) as server,
            ScriptedServer(self.connect_proxy(server.port)) as proxy,
        ):
            error = refusal(
                "wss://other.invalid/",
                ca_bundle=str(authority[1]),
                proxy_url=f"http://user%40corp:p%3A%C3%A4%20ss@127.0.0.1:{proxy.port}",
            )
        assert isinstance(error, ConnectFailed)
        assert "other.invalid" in (error.cause or "")
        assert server.requests == []

    def test_407_names_the_proxy_and_no_credentials(self) -> None:
        with ScriptedServer(self.connect_proxy(1)) as proxy:
            error = refusal("ws://ssmmessages.invalid/", proxy_url=f"http://mallory:hush@127.0.0.1:{proxy.port}")
        assert isinstance(error, ConnectFailed)
        assert error.message == f"the proxy 127.0.0.1:{proxy.port} did not let us through to ssmmessages.invalid"
        assert "407" in (error.cause or "")
        assert "HTTPS_PROXY" in (error.hint or "")
        assert not {"mallory", "hush", "secret"} & set(f"{error.message} {error.cause} {error.hint}".split())

    def test_an_unreachable_proxy_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        error = refusal("ws://ssmmessages.invalid/", proxy_url=f"http://mallory:hush@127.0.0.1:{port}")
        assert error.message == f"no connection to ssmmessages.invalid through the proxy 127.0.0.1:{port}"
        assert error.cause == "connection refused"

    def test_a_proxy_whose_name_does_not_resolve_is_named(self) -> None:
        error = refusal("ws://ssmmessages.invalid/", proxy_url="http://no-such-proxy.invalid:3128")
        assert error.message == "the proxy no-such-proxy.invalid:3128 cannot be resolved"
        assert "HTTPS_PROXY" in (error.hint or "")

    @pytest.mark.parametrize(
        "url", ["https://mallory:hush@proxy:3128", "socks5://mallory:hush@proxy", "http://mallory:hush@proxy:0x1"]
    )
    def test_a_kind_of_proxy_that_is_not_supported(self, url: str) -> None:
        error = refusal("ws://127.0.0.1:1/", proxy_url=url)
        assert isinstance(error, ConfigurationError)
        assert "hush" not in f"{error.message} {error.cause} {error.hint}"

    @pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy"])
    def test_no_proxy_means_none_whatever_the_environment_says(
        self, monkeypatch: pytest.MonkeyPatch, authority: tuple[ssl.SSLContext, Path], name: str
    ) -> None:
        with (
            ScriptedServer(echo, authority[0] if name == "https_proxy" else None) as server,
            ScriptedServer(answer_with("HTTP/1.1 407 No\r\n\r\n")) as proxy,
        ):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            scheme = "wss" if name == "https_proxy" else "ws"
            talk(open_at(f"{scheme}://127.0.0.1:{server.port}/", ca_bundle=str(authority[1])))
            assert proxy.requests == []

    def test_a_chosen_proxy_is_taken_whatever_the_environment_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "*")
        with ScriptedServer(answer_with("HTTP/1.1 407 No\r\n\r\n")) as proxy:
            refusal("ws://ssmmessages.invalid/", proxy_url=f"http://127.0.0.1:{proxy.port}")
            assert proxy.requests[0].startswith(b"CONNECT ssmmessages.invalid:80 ")


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_read_request_leaves_what_follows() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\nmore")
        assert read_request(ours) == b"GET / HTTP/1.1\r\n\r\n"
        assert ours.recv(4) == b"more"
