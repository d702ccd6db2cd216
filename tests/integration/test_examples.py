"""The Python programs in examples/, as a user would start them."""

from __future__ import annotations

import ast
import getpass
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from copies import Copier, tree
from forwards import echo, serving
from nodes import EMBEDDED, HYBRID, MIB, MakeUser, StartEmulator, User, reserved_port, wait_until
from terminals import terminal

from ssm_proxy.emulator import Emulator, Node
from ssm_proxy.emulator.certificates import make_server_context

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).parents[2] / "examples"
NOBODY = "i-00000000000000000"


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator)


def run(
    user: User, name: str, *arguments: str | Path, folder: Path | None = None, python: Sequence[str] = ()
) -> tuple[int, str, str]:
    """Run an example; give its status and what it said. A warning in it is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *python, EXAMPLES / name, *arguments],
        env=user.environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def check_refused(done: tuple[int, str, str]) -> None:
    status, output, errors = done
    assert (status, output) == (4, "")
    assert f"target '{NOBODY}' is not connected to Session Manager" in errors
    assert "check that region and account are right" in errors
    assert len(errors.splitlines()) == 1


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"all is well"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_server(context: Any = None) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_connect_tls(user: User, tmp_path: Path) -> None:
    context, authority = make_server_context(tmp_path, "localhost")
    with web_server(context) as port:
        assert run(user, "connect_tls.py", EMBEDDED, str(port), authority) == (0, "200 all is well\n", "")
    with web_server() as port:
        assert run(user, "connect_tls.py", EMBEDDED, str(port)) == (0, "200 all is well\n", "")
    for ca_file in ([], [authority]):
        with reserved_port() as port:
            status, output, errors = run(user, "connect_tls.py", EMBEDDED, str(port), *ca_file)
        assert (status, output) == (10, "")
        assert "connection refused" in errors
        assert len(errors.splitlines()) == 1


def test_asyncio_client(user: User) -> None:
    status, output, errors = run(user, "asyncio_client.py", EMBEDDED, HYBRID, NOBODY)
    assert (status, errors) == (0, "")
    first, second, third = output.splitlines()
    assert first.startswith(f"{EMBEDDED}: SSH-2.0-")
    assert second.startswith(f"{HYBRID}: SSH-2.0-")
    assert "is not connected to Session Manager" in third


def test_forward_database(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    user = new_user(start_emulator(nodes=[Node(node_id=EMBEDDED, hosts={"db.internal": "127.0.0.1"})]))
    client = (
        "import os, socket, sys\n"
        "with socket.create_connection((os.environ['PGHOST'], int(os.environ['PGPORT'])), 10) as connection:\n"
        "    connection.sendall(b'select 1')\n"
        "    print(connection.recv(8, socket.MSG_WAITALL).decode())\n"
        "sys.exit(3)\n"
    )
    with serving(echo) as port:
        command = [sys.executable, "-c", client]
        assert run(user, "forward_database.py", EMBEDDED, "db.internal", str(port), *command) == (3, "select 1\n", "")
    check_refused(run(user, "forward_database.py", NOBODY, "db.internal", "5432", "psql"))


def test_forward_database_leaves_interrupts_to_the_client(user: User) -> None:
    client = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"  # so that one before it is waited for is kept
        "print('ready', flush=True)\n"
        "signal.sigwait([signal.SIGINT])\n"
        "print('cancelled', flush=True)\n"
        "print('answer', input(), flush=True)\n"
        "sys.exit(3)\n"
    )
    program = [sys.executable, str(EXAMPLES / "forward_database.py"), EMBEDDED, "localhost", "5432"]
    with terminal([*program, sys.executable, "-c", client], user.environment) as opened:
        opened.expect(b"ready")
        opened.type(b"\x03")
        opened.expect(b"cancelled")
        opened.type(b"42\n")
        opened.expect(b"answer 42")
        assert opened.end() == 3
        assert b"Traceback" not in opened.screen
    with terminal([*program, "sleep", "60"], user.environment) as opened:
        wait_until(lambda: any(each.arguments[0] == "sleep" for each in user.processes()), "the client runs")
        opened.type(b"\x03")
        assert opened.end() == 128 + signal.SIGINT
        assert b"Traceback" not in opened.screen


def test_run_command(user: User) -> None:
    assert run(user, "run_command.py", EMBEDDED, "sh", "-c", "echo out; echo err >&2; exit 4") == (4, "out\n", "err\n")
    check_refused(run(user, "run_command.py", NOBODY, "true"))


def test_ssh_command(user: User) -> None:
    ssh_folder = user.folder / ".ssh"  # where a program that is told of no other file looks
    ssh_folder.mkdir(mode=0o700)
    (ssh_folder / "config").write_text(user.config.read_text())
    account = getpass.getuser()
    status, output, errors = run(
        user, "ssh_command.py", account, EMBEDDED, "sh", "-c", "echo 'a  b'; echo err >&2; exit 5"
    )
    assert (status, output, errors) == (5, "a  b\n", "err\n")


def test_ssh_command_whose_streams_are_full_or_silent(user: User) -> None:
    """More on standard error than SSH's window of 2 MiB before the output ends; a minute, which is a second here."""
    ssh_folder = user.folder / ".ssh"
    ssh_folder.mkdir(mode=0o700)
    (ssh_folder / "config").write_text(user.config.read_text())
    account = getpass.getuser()
    command = ["sh", "-c", f"head -c {3 * MIB} /dev/zero >&2; echo out"]
    status, output, errors = run(user, "ssh_command.py", account, EMBEDDED, *command)
    assert (status, output, len(errors)) == (0, "out\n", 3 * MIB)
    hasty = (
        "import paramiko, runpy, sys\n"
        "settimeout = paramiko.Channel.settimeout\n"
        "paramiko.Channel.settimeout = lambda self, timeout: settimeout(self, timeout and timeout / 60)\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = ["sh", "-c", "sleep 1.5; echo out"]
    done = run(user, "ssh_command.py", account, EMBEDDED, *command, python=("-c", hasty))
    assert done == (0, "out\n", "")


def test_copy_folder(real: Copier, tmp_path: Path) -> None:
    """Run what its text shows twice: the second time goes on with what is missing, and tells what cannot be had."""
    node, here = tmp_path / "node", tmp_path / "here"
    text = ast.get_docstring(ast.parse((EXAMPLES / "copy_folder.py").read_text())) or ""
    text = text.replace("ec2-user@i-0123456789abcdef0:", real.remote(node))
    fetch, send = [
        line.split()[2:] for line in text.splitlines() if line.startswith("    python examples/copy_folder.py")
    ]
    for folder in (there := node / "var/log/app", website := here / "website"):
        (folder / "folder").mkdir(parents=True)
        (folder / "large").write_bytes(os.urandom(2 * MIB))
        (folder / "folder" / "small").write_bytes(b"small")
    (node / "srv").mkdir()
    (real.user.folder / ".ssh").mkdir(mode=0o700)
    (real.user.folder / ".ssh" / "config").write_text(f"Include {real.user.config}\n")

    for words, source, shown, target in (
        (fetch, there, there, here / "logs"),
        (send, website, "website", node / "srv/website"),
    ):
        status, output, errors = run(real.user, "copy_folder.py", *words, folder=here)
        assert (status, errors) == (0, "")
        assert set(output.splitlines()[:-1]) == {f"copied: {shown}/./large", f"copied: {shown}/./folder/small"}
        assert re.fullmatch(r"2 files copied, 0 were there: \d+\.\d MB/s", output.splitlines()[-1])
        assert tree(target) == tree(source)
        (target / "folder" / "small").unlink()
        (source / "nothing").symlink_to("is not there")
        status, output, errors = run(real.user, "copy_folder.py", *words, folder=here)
        assert status == 1
        assert re.fullmatch(f"{shown}/./nothing: it is a link to nothing.*\n", errors)
        assert set(output.splitlines()) == {
            f"unchanged: {shown}/./large",
            f"copied: {shown}/./folder/small",
            f"failed: {shown}/./nothing",
        }
        (source / "nothing").unlink()
        assert tree(target) == tree(source)


def test_every_program_is_tested() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests
