"""``ssm-proxy forward``: many connections over one session, whatever they and the network do."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import os
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
from forwards import echo, forwarding, receive_all, receive_exactly, serving
from nodes import EMBEDDED, MIB, MakeUser, StartEmulator, User, free_port, tool, wait_until

from ssm_proxy.emulator import Emulator, Faults, Node
from ssm_proxy.transport.forwarding import QUIET_TIME

pytestmark = pytest.mark.integration
BODY = os.urandom(MIB)
OLD_AGENT = "3.0.196.0"
"""The last one without the multiplexer."""


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator, EMBEDDED)


def test_curl_gets_a_page_from_a_real_http_server(user: User, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(BODY)

    class Pages(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    def serve(connection: socket.socket) -> None:
        Pages(connection, ("", 0), None)  # type: ignore[arg-type]

    with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward:
        for _ in range(3):
            done = subprocess.run(
                [tool("curl"), "-sS", f"http://127.0.0.1:{forward.port}/page"],
                capture_output=True,
                timeout=30,
                check=True,
            )
            assert done.stdout == BODY


def test_it_tells_where_it_listens(user: User) -> None:
    port = free_port()
    with serving(echo) as remote, forwarding(user, f"{port}:{remote}") as forward:
        assert forward.lines == [f"127.0.0.1:{port} -> port {remote} of {EMBEDDED}"]


def test_two_hundred_connections_at_once(user: User) -> None:
    def use(number: int) -> None:
        with forward.connect(30) as connection:
            line = b"%d" % number * 500
            connection.sendall(line)
            assert receive_exactly(connection, len(line)) == line
            everybody.wait(60)  # all are open at the same time

    everybody = threading.Barrier(200)
    with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward, ThreadPoolExecutor(200) as pool:
        list(pool.map(use, range(200)))


@pytest.mark.parametrize(("limit", "waits"), [("-Sn 128", False), ("-n 100", True)])
def test_they_are_served_with_few_descriptors_too(user: User, limit: str, waits: bool) -> None:
    """The soft limit is raised; where the hard one does not allow that, connections wait for others to end."""

    def use(_: int) -> None:
        with forward.connect(60) as connection:
            assert _send(connection, b"hello") == b"hello"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with (
        serving(echo) as remote,
        forwarding(user, f"0:{remote}", before=["sh", "-c", f'ulimit {limit} && exec "$@"', "sh"]) as forward,
        ThreadPoolExecutor(150) as pool,
    ):
        connections = [forward.connect(60) for _ in range(150)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if waits:
            assert "ulimit -n" in forward.wait_for_line("have to wait")
        for connection in connections:
            connection.close()
        list(pool.map(use, range(150)))


def test_many_connections_over_a_bad_link(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    faults = Faults(lose=0.02, duplicate=0.02, reorder=0.02, delay_ms=5)
    user = new_user(start_emulator(faults=faults, seed=1))

    def use(number: int) -> None:
        with forward.connect(60) as connection:
            data = os.urandom(20_000 + number)
            assert _send(connection, data) == data

    with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward, ThreadPoolExecutor(20) as pool:
        list(pool.map(use, range(40)))


def _send(connection: socket.socket, data: bytes) -> bytes:
    """Send, and receive as much from an echo, both at once."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(receive_exactly, connection, len(data))
        connection.sendall(data)
        return answer.result(60)


@pytest.mark.parametrize("manner", [None, "reset", "close-1000"])
def test_big_transfers_both_ways_also_over_lost_connections(emulator: Emulator, user: User, manner: str | None) -> None:
    data = os.urandom(12 * MIB)
    with (
        serving(echo) as remote,
        forwarding(user, f"0:{remote}") as forward,
        forward.connect(60) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(receive_exactly, connection, len(data))
        for start in range(0, len(data), 4 * MIB):
            connection.sendall(data[start : start + 4 * MIB])
            if manner is not None:
                wait_until(lambda: emulator.drop_connections("client", manner), "there is one to cut")  # type: ignore[arg-type]
        assert hashlib.sha256(answer.result(60)).digest() == hashlib.sha256(data).digest()


def test_a_short_request_does_not_wait_for_a_long_upload(user: User) -> None:
    with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward:
        stop = threading.Event()

        def upload() -> None:
            with forward.connect(30) as connection:
                while not stop.is_set():
                    assert _send(connection, BODY) == BODY

        with ThreadPoolExecutor(1) as pool:
            uploading = pool.submit(upload)
            for _ in range(20):
                with forward.connect() as connection:
                    connection.sendall(b"ping")
                    assert receive_exactly(connection, 4) == b"ping"
            stop.set()
            uploading.result(60)


class TestEndsOfConnections:
    def test_the_destination_closes_first(self, user: User) -> None:
        def serve(connection: socket.socket) -> None:
            connection.sendall(BODY)

        with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward:
            for _ in range(3):
                with forward.connect() as connection:
                    assert receive_all(connection) == BODY

    def test_nothing_is_lost_when_it_closes_while_the_program_still_sends(self, user: User) -> None:
        def serve(connection: socket.socket) -> None:
            connection.recv(1)
            connection.sendall(BODY)
            connection.shutdown(socket.SHUT_WR)
            receive_all(connection)

        def send(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):  # closed in the end
                while True:
                    connection.sendall(b"x" * 10_000)

        with (
            serving(serve) as remote,
            forwarding(user, f"0:{remote}") as forward,
            ThreadPoolExecutor(1) as pool,
            forward.connect() as connection,
        ):
            sending = pool.submit(send, connection)
            assert receive_all(connection) == BODY
            sending.result(30)

    def test_a_program_that_sends_no_more_still_gets_its_answer(self, user: User) -> None:
        def serve(connection: socket.socket) -> None:
            receive_exactly(connection, 4)
            go_on.get(timeout=30)
            connection.sendall(BODY)

        go_on: SimpleQueue[None] = SimpleQueue()
        with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect() as connection:
            connection.sendall(b"GET\n")
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):  # neither closed nor answered
                connection.recv(1)
            connection.settimeout(30)
            go_on.put(None)
            assert receive_all(connection) == BODY

    def test_a_program_that_has_gone_is_told_to_the_destination_after_a_while(self, user: User) -> None:
        with serving(self._tell_the_end) as remote, forwarding(user, f"0:{remote}") as forward:
            with forward.connect() as connection:
                connection.sendall(b"last words")
                assert receive_exactly(connection, 10) == b"last words"
                closed = time.monotonic()
            data, told = self.heard.get(timeout=60)
            assert data == b"last words"
            assert told - closed > 1, "it may still want an answer"

    @pytest.mark.parametrize("kind", ["port", "socket"])
    def test_one_that_resets_its_connection_or_leaves_a_socket_is_told_at_once(
        self, user: User, tmp_path: Path, kind: str
    ) -> None:
        local = "0" if kind == "port" else str(user.folder / "s")
        with serving(self._tell_the_end) as remote, forwarding(user, f"{local}:{remote}") as forward:
            with forward.connect() as connection:
                connection.sendall(b"x")
                assert receive_exactly(connection, 1) == b"x"
                if kind == "port":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                closed = time.monotonic()
            data, told = self.heard.get(timeout=60)
            assert data == b"x"
            assert told - closed < QUIET_TIME, "not as one that only sends no more"

    @pytest.fixture(autouse=True)
    def _heard(self) -> None:
        self.heard: SimpleQueue[tuple[bytes, float]] = SimpleQueue()

    def _tell_the_end(self, connection: socket.socket) -> None:
        data = connection.recv(65536)
        connection.sendall(data)
        connection.recv(1)  # raises if it was reset, which would not be told
        self.heard.put((data, time.monotonic()))


def test_a_refused_connection_is_reset_and_told_and_the_next_may_succeed(user: User) -> None:
    remote = free_port()
    with forwarding(user, f"0:{remote}") as forward:
        with forward.connect() as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert "the agent could not connect" in forward.wait_for_line(f"port {remote} of {EMBEDDED}")
        with serving(echo, remote), forward.connect() as connection:
            assert _send(connection, b"now") == b"now"


def test_a_reader_that_stands_still_does_not_stop_the_others(user: User) -> None:
    def serve(connection: socket.socket) -> None:
        size = int(connection.recv(20))
        connection.sendall(bytes(size))

    with (
        serving(serve) as remote,
        forwarding(user, f"0:{remote}") as forward,
        forward.connect() as stalled,
    ):
        stalled.sendall(b"%d" % (8 * MIB))
        stalled.recv(1)
        for _ in range(10):
            with forward.connect() as connection:
                connection.sendall(b"1000")
                assert len(receive_all(connection)) == 1000
        assert len(receive_all(stalled)) == 8 * MIB - 1


@pytest.mark.slow
def test_one_that_stands_still_for_long_is_given_up_when_memory_is_at_its_bound(user: User) -> None:
    def serve(connection: socket.socket) -> None:
        size = int(connection.recv(20))
        for _ in range(0, size, MIB):
            connection.sendall(bytes(MIB))

    with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect() as stalled:
        stalled.sendall(b"%d" % (64 * MIB))
        stalled.recv(1)
        with forward.connect(60) as connection:
            connection.sendall(b"%d" % (32 * MIB))
            assert len(receive_all(connection)) == 32 * MIB
        assert "a connection was reset" in forward.wait_for_line("took nothing")


def test_a_unix_socket_is_for_its_owner_and_removed_at_the_end(user: User) -> None:
    path = user.folder / "s.sock"
    with serving(echo) as remote, forwarding(user, f"{path}:{remote}") as forward:
        assert path.stat().st_mode & 0o777 == 0o600
        assert forward.lines == [f"{path} -> port {remote} of {EMBEDDED}"]
        with forward.connect() as connection:
            assert _send(connection, BODY) == BODY
    assert not path.exists()


def test_several_specs(emulator: Emulator, user: User) -> None:
    def serve_name(name: bytes) -> object:
        return lambda connection: connection.sendall(name)

    with (
        serving(serve_name(b"one")) as one,  # type: ignore[arg-type]
        serving(serve_name(b"two")) as two,  # type: ignore[arg-type]
    ):
        first, second = free_port(), free_port()
        before = len(emulator.sessions())
        with forwarding(user, f"{first}:{one}", f"{second}:{two}"):
            assert len(emulator.sessions()) - before == 2
            for port, name in ((first, b"one"), (second, b"two")):
                with socket.create_connection(("127.0.0.1", port), 30) as connection:
                    assert receive_all(connection) == name


class TestRemoteHosts:
    def test_the_node_looks_up_the_name(self, start_emulator: StartEmulator, new_user: MakeUser) -> None:
        emulator = start_emulator(nodes=(Node(node_id=EMBEDDED, hosts={"db.internal": "127.0.0.1"}),))
        user = new_user(emulator)
        with serving(echo) as remote, forwarding(user, f"0:db.internal:{remote}") as forward:
            assert forward.lines[0].endswith(f" -> db.internal:{remote} through {EMBEDDED}")
            with forward.connect() as connection:
                assert _send(connection, b"hello") == b"hello"


class TestOldAgents:
    """The basic kind: one connection at a time."""

    @pytest.fixture
    def user(self, start_emulator: StartEmulator, new_user: MakeUser) -> User:
        return new_user(start_emulator(agent_version=OLD_AGENT))

    def test_one_connection_after_the_other(self, user: User) -> None:
        with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward:
            assert any("one connection at a time" in line for line in forward.lines)
            for number in range(3):
                with forward.connect(30) as connection:
                    data = b"%d" % number * 100_000
                    assert _send(connection, data) == data

    def test_a_second_one_waits_for_the_first(self, user: User) -> None:
        with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward:
            first, second = forward.connect(), forward.connect()
            with first, second:
                assert _send(first, b"first") == b"first"
                second.sendall(b"second")
                second.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    second.recv(1)
                first.shutdown(socket.SHUT_RDWR)
                first.close()
                second.settimeout(30)
                assert receive_exactly(second, 6) == b"second"

    def test_what_a_server_says_first_waits_for_the_first_connection(self, user: User) -> None:
        def serve(connection: socket.socket) -> None:
            connection.sendall(b"220 hello\n")
            connection.recv(1)

        with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect() as connection:
            assert receive_exactly(connection, 10) == b"220 hello\n"


def test_a_session_gets_over_a_long_break_with_connections_waiting(emulator: Emulator, user: User) -> None:
    with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect(30) as connection:
        assert _send(connection, b"before") == b"before"
        assert emulator.drop_connections() == 1
        connection.sendall(b"during")
        with forward.connect(30) as another:
            another.sendall(b"another")
            assert receive_exactly(another, 7) == b"another"
        assert receive_exactly(connection, 6) == b"during"


def test_http_over_kept_connections(user: User) -> None:
    class Pages(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def serve(connection: socket.socket) -> None:
        Pages(connection, ("", 0), None)  # type: ignore[arg-type]

    with serving(serve) as remote, forwarding(user, f"0:{remote}") as forward:
        client = http.client.HTTPConnection("127.0.0.1", forward.port, timeout=30)
        for size in (0, 1, 1000, MIB):
            client.request("POST", "/", BODY[:size])
            assert client.getresponse().read() == BODY[:size]
        client.close()


def test_nothing_listens_any_more_afterwards(user: User) -> None:
    port = free_port()
    with serving(echo) as remote, forwarding(user, f"{port}:{remote}"):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    wait_until(lambda: not user.processes(), "the process is gone")
