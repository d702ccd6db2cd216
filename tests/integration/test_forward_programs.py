"""What people send through a forwarded port, while the session's connection is lost again and again.

Each server cuts the connection itself, in the middle of its answers: so it happens while something is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import http.server
import itertools
import os
import select
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import websocket
from aiohttp import WSMsgType, web
from forwards import forwarding, receive_all, receive_exactly, serving
from nodes import EMBEDDED, MIB, REAL, MakeUser, StartEmulator, User, exchange, quiet, tool, wait_until

from bench.sshd import Sshd
from ssm_proxy.emulator import Emulator, Faults
from ssm_proxy.emulator.certificates import make_server_context

pytestmark = pytest.mark.integration
CUTS = 3
BAD_LINK = Faults(lose=0.02, duplicate=0.01, reorder=0.05, delay_ms=2)


class Cutter:
    """Cuts the session's connection every so many calls, ``CUTS`` times in all. Threads may share one."""

    def __init__(self, emulator: Emulator, every: int) -> None:
        self._emulator = emulator
        self._every = every
        self._lock = threading.Lock()
        self._calls = 0
        self._manners = itertools.cycle(("reset", "close-1000"))
        self.cuts = 0

    def __call__(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls % self._every == 0 and self.cuts < CUTS:
                manner = next(self._manners)
                wait_until(lambda: self._emulator.drop_connections("client", manner), "there is a connection to cut")
                self.cuts += 1


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator, EMBEDDED)


# --- a database -----------------------------------------------------------------------------------------------------

PROTOCOL_3 = 3 << 16
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
NEWS = b"\0\0\0\x07news\0something happened\0"
"""Process, channel and text of a notification, which the server sends without being asked."""


def message(kind: bytes, payload: bytes = b"") -> bytes:
    """Give a message of PostgreSQL's protocol 3: its kind, its length with itself counted, and the payload."""
    return kind + struct.pack(">i", len(payload) + 4) + payload


def receive_message(connection: socket.socket) -> tuple[bytes, bytes]:
    kind, size = struct.unpack(">ci", receive_exactly(connection, 5))
    assert 4 <= size <= 2 * MIB, "what stands here is no length"
    return kind, receive_exactly(connection, size - 4)


def rows(count: int, size: int) -> list[bytes]:
    return [(b"%d " % number * size)[:size] for number in range(count)]


class Database:
    """Speaks enough of PostgreSQL's protocol 3 for psql. Its queries: ``rows COUNT SIZE``, and ``hash`` with a text."""

    def __init__(self, between_rows: Callable[[], None]) -> None:
        self._between_rows = between_rows

    def serve(self, connection: socket.socket) -> None:
        while True:
            size, code = struct.unpack(">ii", receive_exactly(connection, 8))
            rest = receive_exactly(connection, size - 8)
            if code == PROTOCOL_3:
                break
            assert (code in (SSL_REQUEST, GSS_REQUEST), rest) == (True, b"")
            connection.sendall(b"N")
        assert rest.endswith(b"\0\0")
        connection.sendall(message(b"R", bytes(4)))  # nobody has to prove who he is
        for name, value in ((b"server_version", b"15.0"), (b"client_encoding", b"UTF8")):
            connection.sendall(message(b"S", name + b"\0" + value + b"\0"))
        connection.sendall(message(b"K", bytes(8)) + message(b"Z", b"I") + message(b"A", NEWS))
        while True:
            kind, payload = receive_message(connection)
            if kind == b"X":
                assert payload == b""
                return
            assert (kind, payload[-1:]) == (b"Q", b"\0")
            self._answer(connection, *payload[:-1].removesuffix(b";").split(b" ", 1))
            connection.sendall(message(b"Z", b"I"))

    def _answer(self, connection: socket.socket, verb: bytes, rest: bytes) -> None:
        answer = [hashlib.sha256(rest).hexdigest().encode()] if verb == b"hash" else rows(*map(int, rest.split()))
        connection.sendall(message(b"T", struct.pack(">h", 1) + b"x\0" + struct.pack(">ihihih", 0, 0, 25, -1, -1, 0)))
        for row in answer:
            self._between_rows()
            connection.sendall(message(b"D", struct.pack(">hi", 1, len(row)) + row))
        connection.sendall(message(b"C", b"SELECT %d\0" % len(answer)))


class Client:
    """A client of the database that looks at every length."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        startup = struct.pack(">i", PROTOCOL_3) + b"user\0somebody\0database\0some\0\0"
        connection.sendall(struct.pack(">ii", 8, SSL_REQUEST))
        assert receive_exactly(connection, 1) == b"N"
        connection.sendall(struct.pack(">i", len(startup) + 4) + startup)
        kinds = [receive_message(connection)[0] for _ in range(5)]
        assert kinds == [b"R", b"S", b"S", b"K", b"Z"]
        assert receive_message(connection) == (b"A", NEWS)

    def query(self, text: bytes) -> list[bytes]:
        self._connection.sendall(message(b"Q", text + b"\0"))
        answer = []
        kind, payload = receive_message(self._connection)
        assert (kind, payload[:4]) == (b"T", b"\0\x01x\0")
        while (received := receive_message(self._connection))[0] == b"D":
            count, size = struct.unpack(">hi", received[1][:6])
            assert (count, size) == (1, len(received[1]) - 6)
            answer.append(received[1][6:])
        assert received == (b"C", b"SELECT %d\0" % len(answer))
        assert receive_message(self._connection) == (b"Z", b"I")
        return answer

    def end(self) -> None:
        self._connection.sendall(message(b"X"))
        assert receive_all(self._connection) == b""


def use_database(emulator: Emulator, user: User) -> None:
    """Ask small and big questions over three connections at once."""

    def use(number: int) -> None:
        with forward.connect(60) as connection:
            client = Client(connection)
            for count, size in ((1, 0), (300, 20 + number), (40, 5000), (2, 300_000)):
                assert client.query(b"rows %d %d" % (count, size)) == rows(count, size)
            text = (b"%d" % number) * 400_000
            assert client.query(b"hash " + text) == [hashlib.sha256(text).hexdigest().encode()]
            client.end()

    cut = Cutter(emulator, every=250)
    with (
        serving(Database(cut).serve) as remote,
        forwarding(user, f"0:{remote}") as forward,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(use, range(3)))
    assert cut.cuts == CUTS


def test_a_database(emulator: Emulator, user: User) -> None:
    use_database(emulator, user)


def test_a_database_over_a_bad_link(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(faults=BAD_LINK, seed=1)
    use_database(emulator, new_user(emulator))


def test_psql(emulator: Emulator, user: User) -> None:
    """The real client: it asks for TLS first, and is told the notification."""
    cut = Cutter(emulator, every=100)
    queries = [f"rows {number} {number + 1};" for number in range(30)]
    with serving(Database(cut).serve) as remote, forwarding(user, f"0:{remote}") as forward:
        done = subprocess.run(
            [tool("psql"), "-X", "-At", "-h", "127.0.0.1", "-p", str(forward.port), "-U", "somebody", "-d", "some"],
            env={**user.environment, "PGCONNECT_TIMEOUT": "30"},
            input="\n".join(queries).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    news, *lines = sorted(quiet(done).splitlines(), key=lambda line: not line.startswith(b"Asynchronous"))
    assert b'"news" with payload "something happened"' in news
    assert lines == [row for number in range(30) for row in rows(number, number + 1)]
    assert cut.cuts == CUTS


# --- the Web --------------------------------------------------------------------------------------------------------


def test_thousands_of_requests_on_kept_and_on_new_connections(emulator: Emulator, user: User) -> None:
    class Pages(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            cut()
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(body)))
            self.end_headers()
            self.wfile.write(body + body)

        def log_message(self, *_: object) -> None:
            pass

    def serve(connection: socket.socket) -> None:
        Pages(connection, ("", 0), None)  # type: ignore[arg-type]

    def request(client: http.client.HTTPConnection, number: int, headers: dict[str, str]) -> None:
        body = b"%d " % number * (number % 100)
        client.request("POST", "/", body, headers)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, body + body)

    def connect() -> contextlib.closing[http.client.HTTPConnection]:
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", forward.port, timeout=60))

    def load(worker: int) -> None:
        with connect() as kept:
            for number in range(worker * 1000, worker * 1000 + 125):
                request(kept, number, {})
                with connect() as another:
                    request(another, number, {"Connection": "close"})

    cut = Cutter(emulator, every=500)
    with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward, ThreadPoolExecutor(8) as pool:
        list(pool.map(load, range(8)))
    assert cut.cuts == CUTS


@contextlib.contextmanager
def websocket_server(before_answer: Callable[[], None]) -> Iterator[int]:
    """Greet, then send every message back, as text or as bytes."""

    async def talk(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(max_msg_size=0)
        await response.prepare(request)
        await response.send_str("hello")
        async for each in response:
            await asyncio.to_thread(before_answer)
            if each.type is WSMsgType.TEXT:
                await response.send_str(each.data)
            else:
                await response.send_bytes(each.data)
        return response

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/", talk)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield runner.addresses[0][1]
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_websocket(emulator: Emulator, user: User) -> None:
    cut = Cutter(emulator, every=8)
    with (
        websocket_server(cut) as remote,
        forwarding(user, f"0:{remote}") as forward,
        contextlib.closing(websocket.create_connection(f"ws://127.0.0.1:{forward.port}/", timeout=30)) as client,
    ):
        assert client.recv() == "hello"
        for size in (0, 1, 125, 126, 65535, 65536, 300_000) * 4:
            data = os.urandom(size)
            client.send_binary(data)
            assert client.recv() == data
            client.send("ä" * size)
            assert client.recv() == "ä" * size
    assert cut.cuts == CUTS


# --- protocols that notice a single wrong byte ----------------------------------------------------------------------


def test_tls(emulator: Emulator, user: User, tmp_path: Path) -> None:
    context, authority = make_server_context(tmp_path, "localhost")
    cut = Cutter(emulator, every=50)
    ends: list[str] = []

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as secured:
            while data := secured.recv(65536):
                cut()
                secured.sendall(data)
            ends.append("announced")
            secured.unwrap().close()

    data = os.urandom(4 * MIB)
    with (
        serving(serve) as remote,
        forwarding(user, f"0:{remote}") as forward,
        ssl.create_default_context(cafile=authority).wrap_socket(
            forward.connect(60), server_hostname="localhost"
        ) as connection,
    ):
        assert hashlib.sha256(echoed(connection, data)).digest() == hashlib.sha256(data).digest()
        connection.unwrap().close()  # waits for the server's announcement
        assert ends == ["announced"]
    assert cut.cuts == CUTS


def echoed(connection: ssl.SSLSocket, data: bytes) -> bytes:
    """Send data while as much is received; in one thread, as OpenSSL must not read and write at the same time."""
    received = bytearray()
    connection.setblocking(False)
    with memoryview(data) as view:
        sent = 0
        while len(received) < len(data):
            before = sent + len(received)
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if sent < len(data):
                    sent += connection.send(view[sent : sent + 65536])
            with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                received += connection.recv(65536)
            if sent + len(received) == before:
                writers = [connection] if sent < len(data) else []
                assert any(select.select([connection], writers, [], 60)), "nothing moves"
    connection.settimeout(60)
    return bytes(received)


def test_ssh(emulator: Emulator, sshd: Sshd, new_user: MakeUser) -> None:
    user = new_user(emulator, REAL)
    data = os.urandom(CUTS * MIB)
    cut = Cutter(emulator, every=1)
    with forwarding(user, f"0:{sshd.port}", target=REAL) as forward:
        there = ("-p", str(forward.port), "-o", f"HostKeyAlias={REAL}", "127.0.0.1")
        with user.start(*there, "cat") as process:
            try:
                received = b""
                for start in range(0, len(data), MIB):
                    received += exchange(process, data[start : start + MIB], size=1)
                    cut()  # most of the answer is still under way
                received += exchange(process, b"", size=len(data) - len(received))
                assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
            finally:
                process.kill()
        assert quiet(user.run("ssh", *there, "echo once more")) == b"once more\n"
    assert cut.cuts == CUTS
