"""The opening of a WebSocket against real listeners, well-behaved and hostile."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from websocket_peer import (
    DEADLINE,
    Answer,
    FrameReader,
    ScriptedServer,
    answer_with,
    frame,
    queued_bytes,
    read_request,
    receive,
    upgrade,
)

from ssm_proxy.emulator.certificates import make_server_context
from ssm_proxy.errors import (
    ConfigurationError,
    ConnectFailed,
    OpeningRefused,
    SsmProxyError,
    TransportClosed,
    TransportTimeout,
)
from ssm_proxy.transport.opening import MAX_ANSWER_BYTES, UNSENT_BYTES, open_websocket
from ssm_proxy.transport.poller import make_poller
from ssm_proxy.transport.websocket import SEND_CHUNK_BYTES, WebSocketTransport


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return make_server_context(tmp_path_factory.mktemp("authority"), "127.0.0.1")


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

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
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
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso",
            "HTTP/1.1 two hundred\r\n\r\n",
            "HTTP/1.1 503 Busy\r\nContent-Length: much\r\n\r\n",
            "HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\ncut",
            "HTTP/1.1 302 Go\r\nSet-Cookie: a/b=1\r\n\r\n",
        ],
    )
    def test_an_answer_that_is_no_upgrade(self, text: str) -> None:
        with ScriptedServer(answer_with(text)) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, ConnectFailed)

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


def drip(pieces: list[bytes]) -> Answer:
    """Answer piece by piece, each well within the time of a step, all of them well beyond it."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)
            threading.Event().wait(0.05)

    return answer


def flood(head: bytes, piece: bytes) -> Answer:
    """Answer without end."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return answer


class TestHostileAnswer:
    """What must end soon, by name, and without much being kept; none of it shows what the other side said."""

    @pytest.mark.parametrize(
        ("head", "piece"),
        [
            pytest.param(b"", b"garbage without a line end ", id="garbage"),
            pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n", b"X-Header: secret\r\n", id="headers"),
            pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nX-Header: ", b"secret" * 100, id="one header"),
            pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n", b"Set-Cookie: a=secret\r\n", id="cookies"),
            pytest.param(b"HTTP/1.1 503 No\r\nContent-Length: 1000000000000\r\n\r\n", b"secret" * 100, id="body"),
        ],
    )
    def test_one_without_end(self, head: bytes, piece: bytes) -> None:
        with ScriptedServer(flood(head, piece)) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, ConnectFailed)
        assert error.cause == f"the answer is longer than {MAX_ANSWER_BYTES} bytes"

    def test_a_byte_at_a_time(self) -> None:
        with ScriptedServer(drip([b"HTTP/1.1 101 Switching Protocols\r\n", *[b"x"] * 200])) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/", timeout=0.3)
        assert isinstance(error, TransportTimeout)

    def test_a_byte_at_a_time_over_tls(self, authority: tuple[ssl.SSLContext, Path]) -> None:
        with ScriptedServer(drip([b"H"] * 200), authority[0]) as server:
            error = refusal(f"wss://127.0.0.1:{server.port}/", ca_bundle=str(authority[1]), timeout=0.5)
        assert isinstance(error, TransportTimeout)

    def test_a_byte_at_a_time_of_tls_itself(self) -> None:
        record = b"\x16\x03\x03\x40\x00" + bytes(200)  # a handshake record that never becomes complete
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    drip([bytes([byte]) for byte in record])(connection, b"")

            thread = threading.Thread(target=serve)
            thread.start()
            error = refusal(f"wss://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.3)
            thread.join(DEADLINE)
        assert not thread.is_alive()
        assert isinstance(error, TransportTimeout)

    @pytest.mark.parametrize(
        "header",
        [
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
            b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n",
            b"Sec-WebSocket-Protocol: chat\r\n",
        ],
    )
    def test_what_was_not_offered_cannot_be_chosen(self, header: bytes) -> None:
        with ScriptedServer(lambda connection, request: upgrade(connection, request, more_headers=header)) as server:
            error = refusal(f"ws://127.0.0.1:{server.port}/")
        assert isinstance(error, ConnectFailed)
        assert "not offered" in (error.cause or "")

    def test_an_end_right_after_the_upgrade(self) -> None:
        with ScriptedServer(upgrade) as server:
            transport = open_at(f"ws://127.0.0.1:{server.port}/")
            with pytest.raises(TransportClosed, match="broke"):
                receive(transport, 1)
            transport.close()

    def test_an_end_before_the_request_is_read(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

            thread = threading.Thread(target=serve)
            thread.start()
            error = refusal(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
            thread.join(DEADLINE)
        assert isinstance(error, ConnectFailed)

    def test_the_host_of_a_redirect_hears_nothing(self) -> None:
        """Neither the signature, which is a header, nor the token, which would be said on an open connection."""
        with ScriptedServer(echo) as elsewhere:
            text = f"HTTP/1.1 307 Go\r\nLocation: ws://127.0.0.1:{elsewhere.port}/\r\n\r\n"
            with ScriptedServer(answer_with(text)) as server:
                error = refusal(f"ws://127.0.0.1:{server.port}/", headers={"Authorization": "AWS4 x"})
            assert isinstance(error, ConnectFailed)
            assert "ws://" not in (error.cause or "")
            assert elsewhere.requests == []


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such option")
def test_little_waits_in_the_system_when_the_other_side_stands_still() -> None:
    released = threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        upgrade(connection, request)
        released.wait(DEADLINE)

    with ScriptedServer(answer) as server:
        transport = open_at(f"ws://127.0.0.1:{server.port}/")
        transport.send([b"x" * 1144] * 10_000)
        queued = queued_bytes(transport)
        poller = make_poller()
        poller.set(transport.fileno(), write=True)
        while poller.wait(0.2):  # until TCP has filled the buffer of the other side
            transport.flush()
        # That buffer may take a MiB on some system; without the option, ours would take 4 MB more on this one.
        assert queued - queued_bytes(transport) < 1024 * 1024 + UNSENT_BYTES + 2 * SEND_CHUNK_BYTES
        transport.close()
        released.set()


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

    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            ("HTTP/1.1 503 secret\r\n\r\n", "it answered HTTP 503"),
            ("HTTP/1.1 302 Login\r\nLocation: http://secret/\r\n\r\n", "it answered HTTP 302"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "its answer is no HTTP"),
            ("HTTP/1.1 2000 Much\r\n\r\n", "its answer is no HTTP"),
            ("HTTP/1.1 ", "its answer is no HTTP"),
            ("", "its answer is no HTTP"),
        ],
    )
    def test_any_other_answer_is_told_without_its_text(self, text: str, cause: str) -> None:
        with ScriptedServer(answer_with(text)) as proxy:
            error = refusal("ws://ssmmessages.invalid/", proxy_url=f"http://127.0.0.1:{proxy.port}")
        assert isinstance(error, ConnectFailed)
        assert error.cause == cause

    def test_an_answer_without_end(self) -> None:
        with ScriptedServer(flood(b"HTTP/1.1 200 OK\r\n", b"X-Header: secret\r\n")) as proxy:
            error = refusal("ws://ssmmessages.invalid/", proxy_url=f"http://127.0.0.1:{proxy.port}")
        assert isinstance(error, ConnectFailed)
        assert error.cause == f"the answer is longer than {MAX_ANSWER_BYTES} bytes"

    def test_an_answer_a_byte_at_a_time(self) -> None:
        with ScriptedServer(drip([b"HTTP/1.1 200 OK\r\n", *[b"x"] * 200])) as proxy:
            error = refusal("ws://ssmmessages.invalid/", proxy_url=f"http://127.0.0.1:{proxy.port}", timeout=0.3)
        assert isinstance(error, TransportTimeout)
        assert f"the proxy 127.0.0.1:{proxy.port}" in error.message

    def test_an_address_with_colons_is_bracketed(self) -> None:
        with ScriptedServer(answer_with("HTTP/1.1 502 No\r\n\r\n")) as proxy:
            refusal("ws://[::1]:81/", proxy_url=f"http://127.0.0.1:{proxy.port}")
        assert proxy.requests[0].startswith(b"CONNECT [::1]:81 HTTP/1.1\r\nHost: [::1]:81\r\n")

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
        "url",
        [
            "https://mallory:hush@proxy:3128",
            "socks5://mallory:hush@proxy",
            "http://mallory:hush@proxy:0x1",
            "http://mallory:hush@[proxy",
        ],
    )
    def test_a_kind_of_proxy_that_is_not_supported(self, url: str) -> None:
        error = refusal("ws://127.0.0.1:1/", proxy_url=url)
        assert isinstance(error, ConfigurationError)
        assert "hush" not in f"{error.message} {error.cause} {error.hint}"

    def test_a_user_that_is_no_utf_8_goes_to_the_proxy_as_it_is(self) -> None:
        with ScriptedServer(answer_with("HTTP/1.1 407 No\r\n\r\n")) as proxy:
            refusal("ws://ssmmessages.invalid/", proxy_url=f"http://\udcff:hush@127.0.0.1:{proxy.port}")
        assert b"\r\nProxy-Authorization: Basic " + base64.b64encode(b"\xff:hush") in proxy.requests[0]

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
