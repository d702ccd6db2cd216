"""The contract of a ProxyCommand, held by the real process between plain pipes; no ssh in between to smooth it over."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from nodes import but_for_breaks, free_port, wait_until

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node, Parameter, SessionDocument
from ssm_proxy.emulator.certificates import make_server_context

pytestmark = pytest.mark.integration

NODE = "i-0123456789abcdef0"
OFFLINE = "i-0ffffffffffffffff"
GREETING = b"SSH-2.0-echo\r\n"
GONE_WITHIN = 9.0
"""Less than the proxy waits for more output after the end of its input; its own bounds are known to tests/unit."""
TIMEOUT = 30
PROXY = (sys.executable, "-m", "ssm_proxy", "proxy")
PATIENT = (
    sys.executable,
    "-c",
    "import sys\n"
    "from ssm_proxy.cli.main import main\n"
    "from ssm_proxy.transport import bridge\n"
    "bridge.END_TIMEOUT = bridge.SIGNAL_END_TIMEOUT = 60.0\n"
    "sys.exit(main(['proxy', *sys.argv[1:]]))\n",
)
"""The same, which waits for the service's answer to TerminateSession for as long as a slow machine takes to give it."""


class EchoServer:
    """Greets, and sends back what it gets; ``quit`` at the end of what arrives makes it say goodbye and close."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._run)
        self._is_over = False

    def __enter__(self) -> EchoServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        socket.create_connection(self.address).close()
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._is_over:
                connection.close()
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(GREETING)
            last = b""
            while data := connection.recv(65536):
                connection.sendall(data)
                last = (last + data)[-4:]  # it may come in pieces
                if last == b"quit":
                    connection.sendall(b" goodbye")
                    return


class Proxy:
    """A running ``ssm-proxy proxy``."""

    def __init__(self, environment: Mapping[str, str], *arguments: str, command: tuple[str, ...] = PROXY) -> None:
        self.process = subprocess.Popen(
            [*command, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        left = memoryview(data)
        while left:  # not all of it, where a signal comes meanwhile
            left = left[self.process.stdin.write(left) or 0 :]

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes, or what comes before the end."""
        assert self.process.stdout is not None
        fd, data, until = self.process.stdout.fileno(), b"", time.monotonic() + TIMEOUT
        while len(data) < size:
            assert select.select([fd], [], [], max(0.0, until - time.monotonic()))[0], f"only {data[-200:]!r} came"
            piece = os.read(fd, size - len(data))
            if not piece:
                break
            data += piece
        return data

    def greet(self) -> Proxy:
        assert self.read(len(GREETING)) == GREETING, self.process.stderr and self.process.stderr.read()
        return self

    def vanish(self) -> None:
        """Close both pipes, as the system does for a killed ssh."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    def end(self, within: float = TIMEOUT) -> tuple[int, bytes, list[str]]:
        """Wait for the end; give status, the rest of standard output, and what was said, but for breaks."""
        assert self.process.stderr is not None
        status = self.process.wait(within)
        out = b""
        if self.process.stdout is not None and not self.process.stdout.closed:
            out = self.process.stdout.read()
        return status, out, but_for_breaks(self.process.stderr.read().decode()).splitlines()

    def clean_up(self) -> None:
        with self.process:
            self.process.terminate()  # so that it ends its session: one that failed must not fail those that follow
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()


StartProxy = Callable[..., Proxy]


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture(scope="module")
def running(echo: EchoServer) -> Iterator[Emulator]:
    parameters = {"portNumber": Parameter(default="22")}
    shell = SessionDocument(session_type="Standard_Stream", parameters=parameters)
    options = EmulatorOptions(
        nodes=(Node(node_id=NODE, ssh_address=echo.address), Node(node_id=OFFLINE, is_online=False)),
        agent_pace_s=0.0,
        require_signed_open=True,
        documents={"Shell": shell},
    )
    with Emulator(options) as emulator:
        yield emulator


@pytest.fixture
def emulated(running: Emulator) -> Iterator[Emulator]:
    """The shared emulator, without faults before and after, and with no session left open."""
    before = {each.session_id for each in running.sessions()}
    yield running
    running.set_faults(Faults())
    wait_until(lambda: not open_sessions(running, but=before), "no session is left open")


def open_sessions(emulator: Emulator, *, but: Collection[str] = ()) -> list[str]:
    return [
        each.session_id
        for each in emulator.sessions()
        if each.status not in ("Terminated", "Failed") and each.session_id not in but
    ]


@pytest.fixture
def environment(running: Emulator, tmp_path: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SSM_PROXY_")) and not name.lower().endswith("_proxy")
    }
    return {
        **kept,
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **running.environment(),
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[StartProxy]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, changes: Mapping[str, str] | None = None, **options: Any) -> Proxy:
            proxy = Proxy({**environment, **(changes or {})}, *(arguments or (NODE,)), **options)
            stack.callback(proxy.clean_up)
            return proxy

        yield start


class TestStreams:
    def test_the_bytes_and_nothing_else(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        every = bytes(range(256)) + b"\r\n\n\r\x1a\x04\xff\xfe"
        proxy.write(every)
        assert proxy.read(len(every)) == every
        proxy.write(b"quit")
        assert proxy.end() == (0, b"quit goodbye", [])
        assert emulated.sessions()[-1].details == ""

    def test_one_byte_at_a_time_is_not_held_back(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        for byte in b"interactive":
            proxy.write(bytes([byte]))
            assert proxy.read(1) == bytes([byte])
        proxy.write(b"quit")
        assert proxy.end()[0] == 0

    def test_noise_of_libraries_is_kept_out(self, emulated: Emulator, start: StartProxy) -> None:
        code = (
            "import os, subprocess, sys\n"
            "from ssm_proxy.aws.control_plane import BotocoreControlPlane as plane\n"
            "from ssm_proxy.cli.main import main\n"
            "real = plane.start_session\n"
            "def noisy(self, **request):\n"
            "    print('printed', flush=True)\n"
            "    os.write(1, b'written\\n')\n"
            "    subprocess.run(['/bin/sh', '-c', 'echo from a child; cat'], check=True)\n"
            "    return real(self, **request)\n"
            "plane.start_session = noisy\n"
            "sys.exit(main(['proxy', *sys.argv[1:]]))\n"
        )
        proxy = start(command=(sys.executable, "-c", code)).greet()
        proxy.write(b"quit")
        status, out, lines = proxy.end()
        assert (status, out) == (0, b"quit goodbye")
        assert lines == ["printed", "written", "from a child"]

    def test_a_log_stays_out_as_well(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start(NODE, "-vvv", "--timing").greet()
        proxy.write(b"quit")
        status, out, lines = proxy.end()
        assert (status, out) == (0, b"quit goodbye")
        assert any("session started" in line for line in lines)
        assert any("timing: first output" in line for line in lines)


class TestSignals:
    def test_those_of_the_terminal_do_nothing(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
            proxy.process.send_signal(number)
            proxy.write(b"still here")
            assert proxy.read(10) == b"still here"
        proxy.write(b"quit")
        assert proxy.end() == (0, b"quit goodbye", [])

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_an_end_that_ends_the_session(
        self, emulated: Emulator, start: StartProxy, number: int, status: int
    ) -> None:
        proxy = start(command=PATIENT).greet()
        proxy.process.send_signal(number)
        assert proxy.end(GONE_WITHIN) == (status, b"", [])
        assert open_sessions(emulated) == [], "before the process ends, not some time after"

    def test_one_that_comes_when_the_end_has_begun_changes_nothing(self, emulated: Emulator, start: StartProxy) -> None:
        """As paramiko does it: it closes the pipes and sends SIGTERM, both at once."""
        proxy = start().greet()
        proxy.vanish()
        while proxy.process.poll() is None:
            proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.returncode in (0, 143)

    def test_a_hangup_that_is_ignored_from_the_start_stays_ignored(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start(NODE, command=("nohup", *PROXY)).greet()
        proxy.process.send_signal(signal.SIGHUP)
        proxy.write(b"still here")
        assert proxy.read(10) == b"still here"
        proxy.write(b"quit")
        assert proxy.end() == (0, b"quit goodbye", [])

    def test_while_the_service_has_gone_silent(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        emulated.drop_connections("client", "blackhole")
        proxy.write(b"x" * 100_000)
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.end(GONE_WITHIN)[0] == 143


class TestEnds:
    def test_a_port_that_says_nothing_to_somebody_who_says_nothing(self, start: StartProxy) -> None:
        """What one tries by hand to see whether sshd is there."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            proxy = start(NODE, str(silent.getsockname()[1]))
            assert proxy.process.stdin is not None
            proxy.process.stdin.close()
            status, out, lines = proxy.end()
        assert (status, out) == (10, b"")
        assert any("nothing came from port" in line for line in lines)

    def test_a_reader_that_vanishes(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start(command=PATIENT).greet()
        proxy.vanish()
        assert proxy.end(GONE_WITHIN) == (0, b"", [])
        assert open_sessions(emulated) == []

    def test_a_parent_that_is_killed(self, emulated: Emulator, environment: dict[str, str]) -> None:
        code = (
            "import subprocess, sys\n"
            "proxy = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "proxy.stdout.readline()\n"
            "print(proxy.pid, flush=True)\n"
            "proxy.wait()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, *PATIENT, NODE], env=environment, stdout=subprocess.PIPE
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert open_sessions(emulated)
            parent.kill()
        wait_until(lambda: not is_running(pid), "the orphan ends", GONE_WITHIN)
        assert open_sessions(emulated) == []

    def test_what_was_read_before_the_end_of_input_arrives(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        data = os.urandom(300_000) + b"quit"
        reader: list[bytes] = []
        thread = threading.Thread(target=lambda: reader.append(proxy.read(len(data) + len(b" goodbye"))))
        thread.start()
        proxy.write(data)
        assert proxy.process.stdin is not None
        proxy.process.stdin.close()
        thread.join(TIMEOUT)
        assert reader == [data + b" goodbye"]
        assert proxy.end() == (0, b"", [])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


class TestLoss:
    @pytest.mark.parametrize("manner", ["reset", "fin", "close-1000", "close-1001"])
    def test_both_directions_go_on_byte_exact(self, emulated: Emulator, start: StartProxy, manner: str) -> None:
        proxy = start().greet()
        data = os.urandom(2_000_000)
        writer = threading.Thread(target=proxy.write, args=(data,))
        writer.start()
        received = b""
        for connections in range(1, 5):
            received += proxy.read(400_000)
            wait_until(lambda n=connections: emulated.sessions()[-1].connections == n, "it is connected again")
            assert emulated.drop_connections("client", manner) == 1
        received += proxy.read(400_000)
        writer.join(TIMEOUT)
        assert received == data
        wait_until(lambda: emulated.sessions()[-1].connections == 5, "it is connected again")
        proxy.write(b"quit")
        assert proxy.end() == (0, b"quit goodbye", [])

    def test_a_session_that_is_gone(self, emulated: Emulator, start: StartProxy) -> None:
        proxy = start().greet()
        emulated.set_faults(Faults(refuse_resume="gone"))
        emulated.drop_connections("client", "reset")
        status, out, lines = proxy.end()
        assert (status, out) == (9, b"")
        assert lines[0] == f"ssm-proxy: error: the session to {NODE} is over"
        check_form(lines)


def check_form(lines: list[str]) -> None:
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("ssm-proxy: error: ")
    for line in lines:
        assert line.startswith("ssm-proxy: ")
        assert not line.endswith(".") or line.startswith("ssm-proxy: cause: "), "the service's own words may"


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "faults", "status", "text"),
        [
            ([OFFLINE], Faults(), 4, OFFLINE),
            ([NODE, str(free_port())], Faults(), 10, "did not answer"),
            ([NODE], Faults(refuse_open=-1), 6, "ssmmessages:OpenDataChannel"),
            ([NODE], Faults(deny="StartSession"), 5, "ssm:StartSession"),
            ([NODE, "--document-name", "No-Such-Document"], Faults(), 5, "No-Such-Document"),
            ([NODE, "--endpoint-url", f"http://127.0.0.1:{free_port()}"], Faults(), 6, "127.0.0.1"),
            ([NODE, "--endpoint-url", "http://no-such-host.invalid"], Faults(), 6, "no-such-host.invalid"),
            ([NODE, "--stream-endpoint-url", "ws://gate.invalid"], Faults(), 5, "gate.invalid"),
            ([NODE, "--profile", "nobody"], Faults(), 3, "nobody"),
        ],
    )
    def test_each_has_its_status_and_says_why(
        self, emulated: Emulator, start: StartProxy, arguments: list[str], faults: Faults, status: int, text: str
    ) -> None:
        emulated.set_faults(faults)
        found, out, lines = start(*arguments, changes={"AWS_MAX_ATTEMPTS": "1"}).end()
        assert (found, out) == (status, b"")
        check_form(lines)
        assert text in "\n".join(lines)

    def test_a_document_that_opens_something_else(self, emulated: Emulator, start: StartProxy) -> None:
        status, out, lines = start(NODE, "--document-name", "Shell").end()
        assert (status, out) == (7, b"")
        check_form(lines)
        assert "a tunnel needs 'Port'" in lines[1]


class InspectingProxy:
    """A company's proxy: wants credentials, opens the TLS of everybody with a certificate of its own, looks inside.

    Args:
        target: where everything goes, as plain text.
        context: its certificate, for the one name that exists behind it.
    """

    CREDENTIALS = "user@corp:pa ss"

    def __init__(self, target: tuple[str, int], context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += connection.recv(1)
            self.requests.append(request.decode().split("\r\n")[0])
            wanted = b"Proxy-Authorization: Basic " + base64.b64encode(self.CREDENTIALS.encode())
            if wanted.lower() not in request.lower():
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with (
                self._context.wrap_socket(connection, server_side=True) as inner,
                socket.create_connection(self._target) as target,
            ):
                inner.setblocking(False)
                while True:
                    ready = select.select([inner, target], [], [], TIMEOUT)[0]
                    if target in ready and not self._copy(target.recv(65536), inner):
                        return
                    if inner in ready or inner.pending():
                        try:
                            data = inner.recv(65536)
                        except ssl.SSLWantReadError:
                            continue
                        if not self._copy(data, target):
                            return

    @staticmethod
    def _copy(data: bytes, sink: socket.socket) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[sink.send(view) :]
            except (ssl.SSLWantWriteError, BlockingIOError):
                select.select([], [sink], [], TIMEOUT)
        return bool(data)


class TestThroughAProxy:
    @pytest.fixture
    def proxy(self, running: Emulator, tmp_path: Path) -> Iterator[InspectingProxy]:
        context, _ = make_server_context(tmp_path, "gate.invalid")
        host, _, port = running.endpoint_url.removeprefix("http://").rpartition(":")
        proxy = InspectingProxy((host, int(port)), context)
        yield proxy
        proxy.close()

    def begin(self, start: StartProxy, proxy: InspectingProxy, user: str, tmp_path: Path, **changes: str) -> Proxy:
        return start(
            NODE,
            "--endpoint-url",
            "https://gate.invalid",
            "--stream-endpoint-url",
            "wss://gate.invalid",
            changes={
                "HTTPS_PROXY": f"http://{user}@127.0.0.1:{proxy.port}",
                "AWS_CA_BUNDLE": str(tmp_path / "ca.pem"),
                "AWS_MAX_ATTEMPTS": "1",
                **changes,
            },
        )

    def test_api_and_data_channel_take_the_same_way(
        self, emulated: Emulator, start: StartProxy, proxy: InspectingProxy, tmp_path: Path
    ) -> None:
        running = self.begin(start, proxy, "user%40corp:pa%20ss", tmp_path).greet()
        data = os.urandom(500_000)
        writer = threading.Thread(target=running.write, args=(data,))
        writer.start()
        assert running.read(len(data)) == data
        writer.join(TIMEOUT)
        running.write(b"quit")
        assert running.end() == (0, b"quit goodbye", [])
        assert len(proxy.requests) >= 2, "one for StartSession, one for the WebSocket"
        assert {request.rpartition(" ")[0] for request in proxy.requests} == {"CONNECT gate.invalid:443"}

    def test_no_proxy_is_honoured(
        self, emulated: Emulator, start: StartProxy, proxy: InspectingProxy, tmp_path: Path
    ) -> None:
        running = self.begin(start, proxy, "user%40corp:pa%20ss", tmp_path, NO_PROXY="gate.invalid")
        status, _, lines = running.end()
        assert status == 6
        assert "gate.invalid" in lines[0]
        assert proxy.requests == []

    def test_a_refusal_shows_no_password(
        self, emulated: Emulator, start: StartProxy, proxy: InspectingProxy, tmp_path: Path
    ) -> None:
        status, _, lines = self.begin(start, proxy, "mallory:hush", tmp_path).end()
        assert status == 6
        check_form(lines)
        assert "hush" not in "\n".join(lines)

    def test_an_inspecting_proxy_that_nobody_trusts(
        self, emulated: Emulator, start: StartProxy, proxy: InspectingProxy, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        make_server_context(tmp_path / "other", "gate.invalid")
        bundle = str(tmp_path / "other" / "ca.pem")
        status, _, lines = self.begin(start, proxy, "user%40corp:pa%20ss", tmp_path, AWS_CA_BUNDLE=bundle).end()
        assert status == 6
        check_form(lines)
        assert "AWS_CA_BUNDLE" in "\n".join(lines)
