"""Forwarding by ssh itself, many connections over one session; and how ssh ends it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from nodes import EMBEDDED, MIB, MakeUser, User, ending, free_port, open_sessions, wait_until

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration
SIGNALLED = (0, 255)
"""With -N, later versions of ssh take SIGTERM for success."""
BODY = os.urandom(MIB)
GONE_WITHIN = 9.0
"""Less than the proxy would wait for more output if it took the end of ssh for the end of its input."""


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 32


@contextlib.contextmanager
def serve(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Serve on a port of loopback, which is a port of the node as well."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def forwarding(user: User, *options: str, port: int) -> Iterator[None]:
    """Run ``ssh -N`` until the end of the block; the local port listens."""
    process = user.start("-N", "-o", "ExitOnForwardFailure=yes", *options, user.host)
    with process:
        try:
            wait_until(lambda: process.poll() is not None or listens(port), "the local port listens")
            yield
            process.send_signal(signal.SIGTERM)
            ended = time.monotonic()
            status, errors = ending(process)
            assert (status in SIGNALLED, errors) == (True, "")
            assert time.monotonic() - ended < GONE_WITHIN
        finally:
            process.kill()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def echo(connection: socket.socket, data: bytes) -> bytes:
    """Send, and receive as much, both at once."""
    connection.settimeout(30)
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        piece = connection.recv(65536)
        assert piece
        received += piece
    sender.join()
    return bytes(received)


def test_a_local_port_carries_several_connections(user: User) -> None:
    port = free_port()

    def use(number: int) -> bool:
        data = bytes([number]) + os.urandom(MIB // 2)
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            return hashlib.sha256(echo(connection, data)).digest() == hashlib.sha256(data).digest()

    with (
        serve(_Echo) as remote,
        forwarding(user, "-L", f"127.0.0.1:{port}:127.0.0.1:{remote}", port=port),
        ThreadPoolExecutor(6) as threads,
    ):
        assert list(threads.map(use, range(6))) == [True] * 6


def test_http_through_a_local_port(user: User) -> None:
    port = free_port()
    with serve(_Page) as remote, forwarding(user, "-L", f"127.0.0.1:{port}:127.0.0.1:{remote}", port=port):
        for _ in range(3):
            page = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            with contextlib.closing(page):
                page.request("GET", "/")
                with page.getresponse() as answer:
                    assert answer.read() == BODY


def test_a_socks_port(user: User) -> None:
    port = free_port()
    with (
        serve(_Echo) as remote,
        forwarding(user, "-D", f"127.0.0.1:{port}", port=port),
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.settimeout(30)
        connection.sendall(b"\x05\x01\x00")
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + remote.to_bytes(2, "big"))
        assert connection.recv(10)[:2] == b"\x05\x00"
        assert echo(connection, BODY) == BODY


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_ssh_ends_everything(emulator: Emulator, new_user: MakeUser, name: str) -> None:
    user = new_user(emulator, EMBEDDED)
    port = free_port()
    process = user.start("-N", "-L", f"127.0.0.1:{port}:127.0.0.1:1", user.host)
    with process:
        wait_until(lambda: listens(port), "the local port listens")
        process.send_signal(getattr(signal, name))
        status, errors = ending(process, GONE_WITHIN)
        assert status in SIGNALLED or -status == getattr(signal, name)
        # ssh may tell of the connection to port 1, by which the test found that it listens
        assert [line for line in errors.splitlines() if not line.startswith("channel ")] == []
    wait_until(lambda: not user.processes(), "the proxy is gone", GONE_WITHIN)
    wait_until(lambda: not open_sessions(emulator), "the session is terminated")
