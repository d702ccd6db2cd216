"""What the tests of ``ssm-proxy forward`` stand on: the running command, and servers for it to lead to."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodes import EMBEDDED, WITHIN, User, but_for_breaks

from ssm_proxy.cli.session_command import EXIT_SIGNAL_BASE

INTERRUPTED = EXIT_SIGNAL_BASE + signal.SIGINT
_LISTENING = re.compile(r"(?:\S*:(\d+)|(/\S+)) -> .+")


@dataclass
class Forward:
    """A running ``ssm-proxy forward`` whose listeners all listen."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """What it has said on standard error so far."""
    places: list[int | str] = field(default_factory=list)
    """Ports and paths of its listeners, in the order in which they came up."""

    @property
    def port(self) -> int:
        (port,) = self.places
        assert isinstance(port, int)
        return port

    def connect(self, timeout: float = WITHIN) -> socket.socket:
        """Connect to its only listener."""
        (place,) = self.places
        if isinstance(place, int):
            return socket.create_connection(("127.0.0.1", place), timeout)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(place)
        return connection

    def wait_for_line(self, part: str) -> str:
        """Read standard error up to the line with this text."""
        assert self.process.stderr is not None
        while line := self.process.stderr.readline():
            self.lines.append(line.rstrip("\n"))
            if part in line:
                return line
        raise AssertionError(f"no line with {part!r} in {self.lines}")

    def end(self, number: int = signal.SIGINT, within: float = WITHIN) -> tuple[int, list[str]]:
        """Send a signal; give exit status and what was said since the last line that was read, but for breaks."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=within)
        return self.process.returncode, but_for_breaks(errors).splitlines()


def command(user: User, *arguments: str, target: str = EMBEDDED) -> list[str]:
    return ["ssm-proxy", "forward", target, *arguments]


def start(user: User, *arguments: str, target: str = EMBEDDED, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start it, by another program if ``before`` names one."""
    return subprocess.Popen(
        [*before, *command(user, *arguments, target=target)],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    user: User, *arguments: str, target: str = EMBEDDED, before: Sequence[str] = (), timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, by another program if ``before`` names one."""
    return subprocess.run(
        [*before, *command(user, *arguments, target=target)],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def forwarding(user: User, *specs: str, target: str = EMBEDDED, before: Sequence[str] = ()) -> Iterator[Forward]:
    """Forward until the end of the block, which ends it by Ctrl-C: quietly."""
    process = start(user, *specs, target=target, before=before)
    watchdog = threading.Timer(200, process.kill)  # before pytest ends all
    watchdog.start()
    try:
        forward = Forward(process)
        while len(forward.places) < sum(not spec.startswith("-") for spec in specs):
            match = _LISTENING.fullmatch(forward.wait_for_line("").rstrip("\n"))
            if match is not None:
                forward.places.append(int(match[1]) if match[1] else match[2])
        yield forward
        if process.poll() is None:
            ended = forward.end()
            assert ended == (INTERRUPTED, []), ended
    finally:
        watchdog.cancel()
        process.kill()
        with process:
            pass


def json_lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return sorted((json.loads(process.stdout.readline()) for _ in range(count)), key=lambda each: each["index"])


class Server(socketserver.ThreadingTCPServer):
    """Serves each connection in a thread of its own."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, port: int, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        super().__init__(("127.0.0.1", port), socketserver.BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # A client that goes away in the middle is no failure of the server.
        with contextlib.suppress(ConnectionError):
            self._serve(request)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None], port: int = 0) -> Iterator[int]:
    """Serve on a port of loopback, which is a port of the node as well."""
    with Server(port, serve) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.port
        finally:
            server.shutdown()
            thread.join()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def receive_all(connection: socket.socket) -> bytes:
    """Read to the end."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, f"ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)
