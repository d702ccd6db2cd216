"""How ``ssm-proxy forward`` begins and ends: readiness, commands, signals, errors, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
from forwards import INTERRUPTED, command, echo, forwarding, json_lines, receive_all, run, serving, start
from nodes import EMBEDDED, MIB, MakeUser, StartEmulator, User, free_port, open_sessions, wait_until
from terminals import terminal as open_terminal

from ssm_proxy.emulator import Emulator, Faults, Node

pytestmark = pytest.mark.integration
PORT_ERROR = 10
OLD_AGENT = "3.0.196.0"
READ = (
    "import os, socket, sys\n"
    "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)\n"
    "print(connection.recv(100).decode(), os.environ['SSM_PROXY_PORT_0'] == sys.argv[1], flush=True)\n"
)
WITH_PATIENCE = (
    sys.executable,
    "-c",
    "import sys\n"
    "from ssm_proxy.cli import forward_supervisor\n"
    "from ssm_proxy.cli.main import main\n"
    "from ssm_proxy.transport import probe\n"
    "probe.PATIENCE = forward_supervisor.COMMAND_DRAIN_TIME = 60.0\n"
    "sys.exit(main(sys.argv[2:]))\n",
)
"""Runs ssm-proxy so that it waits for an answer, or for what was sent last, for as long as a slow machine takes."""
TOLD_OF = (
    "import signal, sys, time\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\n"  # one that comes before it is waited for is kept
    "print('ready', flush=True)\n"
    "signal.sigwait([{number}])\n"
    "print('told', flush=True)\n"
    "time.sleep(0.3)\n"  # nobody ends at once
    "sys.exit(3)\n"
)


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator, EMBEDDED)


def greet(connection: socket.socket) -> None:
    connection.sendall(b"hello")
    receive_all(connection)


def python(code: str, *arguments: str) -> list[str]:
    return ["--", sys.executable, "-c", code, *arguments]


class TestReadiness:
    def test_a_server_that_speaks_first_has_answered(self, user: User) -> None:
        with serving(greet) as remote, start(user, f"0:{remote}", "--ready-json", before=WITH_PATIENCE) as process:
            (line,) = json_lines(process, 1)
            with socket.create_connection((line["address"], line["port"]), 30) as connection:
                assert connection.recv(5) == b"hello"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == INTERRUPTED
        assert line == {
            "index": 0,
            "spec": f"0:{remote}",
            "address": "127.0.0.1",
            "port": line["port"],
            "target": EMBEDDED,
            "remote_host": None,
            "remote_port": remote,
            "probe": "answered",
        }

    def test_each_listener_has_a_line(self, user: User) -> None:
        path = user.folder / "s"
        with (
            serving(greet) as one,
            serving(greet) as other,
            start(user, "--ready-json", f"0:{one}", f"{path}:{other}", before=WITH_PATIENCE) as process,
        ):
            first, second = json_lines(process, 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        assert (first["probe"], second["probe"]) == ("answered", "answered")
        assert (second["socket"], "port" in second) == (str(path), False)

    def test_a_server_that_waits_has_not_refused(self, user: User) -> None:
        with serving(echo) as remote, start(user, f"0:{remote}", "--ready-json") as process:
            (line,) = json_lines(process, 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == INTERRUPTED
        assert line["probe"] == "not refused"

    @pytest.mark.parametrize("version", ["3.3.0.0", OLD_AGENT])
    def test_a_refused_probe_is_an_error(self, start_emulator: StartEmulator, new_user: MakeUser, version: str) -> None:
        user = new_user(start_emulator(agent_version=version, faults=Faults(refused_delay_s=0.1)))
        remote = free_port()
        done = run(user, "--ready-json", f"0:{remote}", *python("raise SystemExit(0)"), before=WITH_PATIENCE)
        assert (done.returncode, done.stdout) == (PORT_ERROR, "")
        assert f"port {remote} of {EMBEDDED}" in done.stderr

    def test_old_agents_too(self, start_emulator: StartEmulator, new_user: MakeUser) -> None:
        user = new_user(start_emulator(agent_version=OLD_AGENT))
        with serving(greet) as remote, start(user, f"0:{remote}", "--ready-json", before=WITH_PATIENCE) as process:
            (line,) = json_lines(process, 1)
            with socket.create_connection((line["address"], line["port"]), 30) as connection:
                assert connection.recv(5) == b"hello"  # the probe has not taken it away
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == INTERRUPTED
        assert line["probe"] == "answered"


class TestCommands:
    def test_it_runs_inside_and_its_status_is_ours(self, user: User) -> None:
        with serving(greet) as remote:
            done = run(user, f"0:{remote}", *python(READ + "sys.exit(7)", "{port}"))
        assert (done.returncode, done.stdout, done.stderr) == (7, "hello True\n", "")

    def test_one_that_a_signal_ends(self, user: User) -> None:
        done = run(user, "0:22", *python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
        assert (done.returncode, done.stderr) == (128 + signal.SIGKILL, "")

    def test_options_behind_the_dashes_are_its_own(self, user: User) -> None:
        done = run(user, "0:22", "--", "echo", "--ready-json", "--", "-v", "{port} {port}")
        assert done.returncode == 0, done.stderr
        words = done.stdout.split()
        assert words[:3] == ["--ready-json", "--", "-v"]
        assert words[3] == words[4] != "0"

    @pytest.mark.parametrize(
        ("words", "said"), [(["--"], "no command"), (["--", "no-such-program"], "no-such-program")]
    )
    def test_one_that_does_not_exist_costs_no_session(
        self, emulator: Emulator, user: User, words: list[str], said: str
    ) -> None:
        before = len(emulator.sessions())
        done = run(user, "0:22", *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(emulator.sessions()) == before

    @pytest.mark.parametrize("size", [20, MIB])
    @pytest.mark.parametrize("version", ["3.3.0.0", OLD_AGENT])
    def test_what_it_sent_last_arrives(
        self, start_emulator: StartEmulator, new_user: MakeUser, version: str, size: int
    ) -> None:
        user = new_user(start_emulator(agent_version=version, faults=Faults(delay_ms=50)))
        arrived: SimpleQueue[int] = SimpleQueue()
        send = (
            "import socket, sys\n"
            "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "connection.sendall(bytes(int(sys.argv[2])))\n"
        )
        with serving(lambda connection: arrived.put(len(receive_all(connection)))) as remote:
            done = run(user, f"0:{remote}", *python(send, "{port}", str(size)), before=WITH_PATIENCE)
            while (received := arrived.get(timeout=30)) == 0:
                pass  # old agents connect once in advance
        assert (received, done.returncode) == (size, 0)
        if version != OLD_AGENT:
            assert done.stderr == ""

    def test_that_is_not_awaited_for_ever(self, start_emulator: StartEmulator, new_user: MakeUser) -> None:
        user = new_user(start_emulator(faults=Faults(bandwidth=20_000, queue_bytes=500_000)))
        code = (
            "import socket, sys\n"
            "socket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(bytes(1_000_000))\n"
            "sys.exit(3)\n"
        )
        with serving(receive_all) as remote:
            done = run(user, f"0:{remote}", *python(code, "{port}"), timeout=60)
        assert done.returncode == 3
        assert "may not have arrived" in done.stderr

    def test_one_that_ignores_a_hang_up_is_terminated(self, user: User) -> None:
        ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        code = ignoring + TOLD_OF.format(number=int(signal.SIGTERM))
        with start(user, "0:22", *python(code)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGHUP)
            assert process.communicate(timeout=20) == ("told\n", "")
        assert process.returncode == 128 + signal.SIGHUP

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
    def test_a_signal_is_passed_on(self, user: User, name: str) -> None:
        number = getattr(signal, name)
        with start(user, "0:22", *python(TOLD_OF.format(number=int(number)))) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.communicate(timeout=30) == ("told\n", "")
        assert process.returncode == 128 + number

    def test_ctrl_c_is_for_the_command(self, user: User) -> None:
        """As a terminal does it: to all processes of the group."""
        code = TOLD_OF.format(number=int(signal.SIGINT))
        with subprocess.Popen(
            command(user, "0:22", *python(code)),
            env=user.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("told\n", "")
        assert process.returncode == 3

    def test_on_a_terminal_ctrl_c_reaches_it_once(self, user: User) -> None:
        code = (
            "import signal, time\n"
            "told = []\n"
            "signal.signal(signal.SIGINT, lambda *_: told.append(1))\n"
            "print('ready', flush=True)\n"
            "while not told: time.sleep(0.05)\n"
            "time.sleep(1)\n"  # for a second one
            "raise SystemExit(len(told))\n"
        )
        with open_terminal(command(user, "0:22", *python(code)), user.environment) as terminal:
            terminal.expect(rb"127.0.0.1:\d+ -> port 22 of ")
            terminal.expect(b"ready")
            terminal.type(b"\x03")
            assert terminal.end() == 1

    def test_it_is_ended_with_the_tunnel(self, emulator: Emulator, user: User) -> None:
        with start(user, "0:22", *python("import time; print('ready', flush=True); time.sleep(60)")) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            _end_sessions(emulator)
            _, errors = process.communicate(timeout=30)
        assert process.returncode in (9, PORT_ERROR)
        assert errors.startswith("ssm-proxy: error: ")
        wait_until(lambda: not user.processes(), "the command is gone")


def _end_sessions(emulator: Emulator) -> None:
    """Have the service end all sessions."""
    emulator.set_faults(Faults(idle_timeout_s=0.01))
    wait_until(lambda: not open_sessions(emulator), "the service ends them")
    emulator.set_faults(Faults())


class TestEnds:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
    def test_signals(self, emulator: Emulator, user: User, name: str) -> None:
        number = getattr(signal, name)
        with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect() as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            assert forward.end(number) == (128 + number, [])
            with pytest.raises(ConnectionResetError):  # cut off, and it shows
                connection.recv(1)
        wait_until(lambda: not open_sessions(emulator), "the sessions are over")

    def test_a_signal_while_it_still_connects(self, user: User) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(20)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with start(user, "0:22", "--endpoint-url", url) as process, silent.accept()[0]:  # it asks, and waits
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == INTERRUPTED

    def test_the_service_ends_the_session(self, emulator: Emulator, user: User) -> None:
        with serving(echo) as remote, forwarding(user, f"0:{remote}") as forward, forward.connect() as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            _end_sessions(emulator)
            _, errors = forward.process.communicate(timeout=30)
            assert forward.process.returncode in (9, PORT_ERROR)
            assert "ssm-proxy: error: " in errors
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""

    def test_a_session_that_was_in_use_was_no_refused_port(
        self, start_emulator: StartEmulator, new_user: MakeUser
    ) -> None:
        emulator = start_emulator()
        user = new_user(emulator)
        with (
            serving(echo) as remote,
            forwarding(user, f"0:{remote}") as forward,
            forward.connect() as connection,
        ):
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            emulator.set_faults(Faults(idle_timeout_s=0.5))  # now: there may be more than that before
            _, errors = forward.process.communicate(timeout=20)
            assert forward.process.returncode == 9
            assert "the service ended the session" in errors

    def test_one_session_that_cannot_start_ends_all(self, emulator: Emulator, user: User) -> None:
        path = user.folder / "s"
        # The second one is refused by the document's own pattern, or by the agent at its start.
        done = run(user, f"{path}:22", "0:169.254.169.254:80")
        assert done.returncode == PORT_ERROR, done.stderr
        assert "169.254.169.254 is forbidden" in done.stderr
        assert not path.exists()
        wait_until(lambda: not open_sessions(emulator), "the sessions are over")

    def test_an_unknown_target(self, emulator: Emulator, user: User) -> None:
        done = run(user, "0:22", target="i-00000000000000000")
        assert (done.returncode, done.stdout) == (4, "")
        assert "i-00000000000000000" in done.stderr


class TestListenErrors:
    """Each is an error of its own, and costs no session."""

    @pytest.fixture(autouse=True)
    def _no_session(self, emulator: Emulator) -> object:
        before = len(emulator.sessions())
        yield
        assert len(emulator.sessions()) == before

    def check(self, user: User, spec: str, *said: str, status: int = PORT_ERROR) -> None:
        done = run(user, spec)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("ssm-proxy: error: ")
        for each in said:
            assert each in done.stderr

    def test_port_in_use(self, user: User) -> None:
        with serving(echo) as port:
            self.check(user, f"{port}:80", f"127.0.0.1:{port}", "another program", "0 takes a free one")

    def test_no_such_address(self, user: User) -> None:
        self.check(user, "192.0.2.1:8080:80", "no such address")

    def test_no_such_folder(self, user: User) -> None:
        self.check(user, f"{user.folder}/none/s:80", "folder does not exist")

    def test_a_path_that_is_too_long(self, user: User) -> None:
        self.check(user, f"{user.folder}/{'x' * 120}:80", "too long")

    def test_a_file_is_not_replaced(self, user: User) -> None:
        path = user.folder / "file"
        path.write_text("precious")
        self.check(user, f"{path}:80", "is no socket")
        assert path.read_text() == "precious"

    def test_a_live_socket_is_not_replaced(self, user: User) -> None:
        path = user.folder / "s"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            self.check(user, f"{path}:80", "another program listens there")
        assert path.exists()

    def test_the_same_port_twice(self, user: User) -> None:
        port = free_port()
        done = run(user, f"{port}:80", f"127.0.0.1:{port}:81")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"'{port}:80' and '127.0.0.1:{port}:81' listen at the same place" in done.stderr

    def test_a_bad_spec(self, user: User) -> None:
        self.check(user, "8080", "8080", "PORT:HOSTPORT", status=2)


def test_a_socket_that_was_left_behind_is_replaced(user: User) -> None:
    path = user.folder / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    with serving(echo) as remote, forwarding(user, f"{path}:{remote}") as forward, forward.connect() as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_what_goes_through_is_in_no_log(user: User, tmp_path: Path) -> None:
    log = tmp_path / "log"
    secret = os.urandom(16).hex().encode()
    with (
        serving(echo) as remote,
        forwarding(user, f"0:{remote}", "-vv", f"--log-file={log}") as forward,
        forward.connect() as connection,
    ):
        connection.sendall(secret)
        assert connection.recv(100) == secret
    text = log.read_text()
    assert "session started" in text
    assert secret.decode() not in text


def test_a_session_for_each_spec_with_the_document_it_needs(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(nodes=(Node(node_id=EMBEDDED, hosts={"db.internal": "127.0.0.1"}),))
    user = new_user(emulator)
    with serving(greet) as remote:
        done = run(
            user, "--ready-json", f"0:{remote}", f"0:db.internal:{remote}", "--reason", "ticket 4711", *python("")
        )
    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(map(json.loads, done.stdout.splitlines()), key=lambda line: int(line["index"]))
    assert [line["remote_host"] for line in lines] == [None, "db.internal"]
    assert len(emulator.sessions()) == 2
