"""What the tests of this folder stand on: a real sshd, a user with OpenSSH and AWS settings, and a watch over leaks.

Everything runs as the current user on loopback. Each user's processes carry a mark in their environment, by which they
are found in /proc even after whoever started them has gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import pytest

from bench.processes import all_pids, cpu_seconds, is_running, peak_bytes
from bench.sshd import SYSTEM_FOLDERS, Key, Sshd, find_program
from bench.sshd import free_port as free_port
from bench.sshd import reserved_port as reserved_port
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.emulator import Emulator, Faults

EMBEDDED = "i-0123456789abcdef0"
"""A node with the emulator's own SSH server."""
HYBRID = "mi-0123456789abcdef0"
REAL = "i-0fedcba9876543210"
"""A node that is a real sshd."""
MIB = 1024 * 1024
SSH_CONFIG = Path(__file__).resolve().parents[2] / "examples" / "ssh_config"
OVER = ("Terminated", "Failed")
WITHIN = 60.0
"""For what comes at once on a machine that has nothing else to do. It only bounds a failure: nobody waits so long."""

_MARK = "SSM_PROXY_TEST_USER"
_DROPPED_VARIABLES = ("AWS_", "SSH_", "SSM_PROXY_", "GIT_", "XDG_")
_T = TypeVar("_T")

StartEmulator = Callable[..., Emulator]
"""The fixture ``start_emulator``."""
MakeUser = Callable[..., "User"]
"""The fixture ``new_user``."""
BecomeUser = Callable[[Emulator], None]
"""The fixture ``become_user``."""
TimeBegins = Callable[[Callable[[SessionThread], object]], None]
"""The fixture ``time_begins``."""


def tool(name: str) -> str:
    """Give the path of a program, or skip the test with its name."""
    found = find_program(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def wait_until(condition: Callable[[], _T], what: str, within: float = WITHIN) -> _T:
    """Ask again and again until the answer is true; the one place where these tests wait for a condition."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return answer


# --- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process found in /proc."""

    pid: int
    arguments: tuple[str, ...]

    @property
    def is_proxy(self) -> bool:
        return "proxy" in self.arguments and any(Path(each).name == "ssm-proxy" for each in self.arguments[:3])

    def exists(self) -> bool:
        """Whether it runs; one that only waits to be collected does not."""
        return is_running(self.pid)

    def peak_bytes(self) -> int:
        """Give the most memory that it had resident."""
        return peak_bytes(self.pid)

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


def marked_processes(mark: str) -> list[Process]:
    """Give the processes whose environment has the mark, and that still run."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for pid in all_pids():
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
                found.append(Process(pid=pid, arguments=tuple(arguments)))
        except OSError:  # it has ended, or is not ours
            continue
    return found


# --- the user -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who has OpenSSH's tools, AWS settings, and ``ssm-proxy`` on the PATH; examples/ssh_config does the rest.

    Args:
        host: the managed node that the short forms below go to.
        config: includes examples/ssh_config, and adds keys only.
        environment: of everything that is started.
        mark: by which the processes are found.
        folder: a place for files; its path is short enough for a control socket.
    """

    host: str
    config: Path
    environment: Mapping[str, str]
    mark: str
    folder: Path

    def command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        return [tool(program), "-F", self.config, *arguments]

    def run(
        self, program: str, *arguments: str | Path, data: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of OpenSSH's tools to its end."""
        return subprocess.run(
            self.command(program, *arguments),
            env=self.environment,
            input=data,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def ssh(
        self, command: str, *options: str, data: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        return self.run("ssh", *options, self.host, command, data=data, timeout=timeout)

    def output(self, command: str, *options: str, data: bytes = b"", timeout: float = 60) -> bytes:
        """Run a command on the node; it must succeed, and standard error stay empty."""
        return quiet(self.ssh(command, *options, data=data, timeout=timeout))

    def start(self, *arguments: str, stderr: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """Start ssh, and leave it running."""
        return subprocess.Popen(
            self.command("ssh", *arguments),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    @contextlib.contextmanager
    def open(self, command: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start ssh with a command on the node that says ``ready`` once it runs; kill it at the end."""
        process = self.start(*options, self.host, command)
        try:
            exchange(process, b"", until=b"ready\n")
            yield process
        finally:
            with process:  # closes its pipes
                process.kill()

    def remote(self, path: Path | str) -> str:
        return f"{self.host}:{path}"

    def remote_shell(self) -> str:
        """Give the command by which other programs are to call ssh."""
        return shlex.join([tool("ssh"), "-F", str(self.config)])

    def processes(self) -> list[Process]:
        return marked_processes(self.mark)

    def proxies(self) -> list[Process]:
        return [each for each in self.processes() if each.is_proxy]

    def proxy(self) -> Process:
        """Give the one proxy there is."""
        (found,) = self.proxies()
        return found


_BREAK = re.compile(r"^ssm-proxy: (connection lost, trying to resume for .*|the session goes on)\n", re.MULTILINE)


def but_for_breaks(errors: str) -> str:
    """Leave out that a connection was lost, and that the session goes on.

    It is said of breaks of two seconds: on a busy machine any that a test makes may last so long.
    """
    return _BREAK.sub("", errors)


def quiet(done: subprocess.CompletedProcess[bytes]) -> bytes:
    """Give the output of what must have succeeded without a word on standard error, but for breaks."""
    errors = but_for_breaks(done.stderr.decode(errors="replace"))
    assert (done.returncode, errors) == (0, ""), (done.args, done.returncode, done.stderr, done.stdout[-500:])
    return done.stdout


def exchange(process: subprocess.Popen[bytes], data: bytes, *, until: bytes = b"", size: int = 0) -> bytes:
    """Write to a process and read what it answers, both at once.

    Args:
        data: all of it is written.
        until: read until the answer ends so, and nothing of what comes after it.
        size: read at least so many bytes.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)
    answer = bytearray()
    left = memoryview(data)
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        if left:
            selector.register(sink, selectors.EVENT_WRITE)
        while left or len(answer) < size or not answer.endswith(until):
            ready = selector.select(2 * WITHIN)  # twenty of them begin at once
            assert ready, (
                f"no progress: {len(left)} bytes unwritten, {len(answer)} bytes read: {bytes(answer[-200:])!r}"
            )
            for key, _ in ready:
                if key.fd == sink:
                    left = left[os.write(sink, left[:65536]) :]
                    if not left:
                        selector.unregister(sink)
                else:
                    piece = os.read(source, 1 if until else 65536)
                    assert piece, f"it ended too early: {ending(process)}"
                    answer += piece
    return bytes(answer)


def ending(process: subprocess.Popen[bytes], within: float = WITHIN) -> tuple[int, str]:
    """Wait for the end of a process; give its exit status and what it had to say, but for breaks."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
    _, errors = process.communicate(timeout=within)
    return process.returncode, but_for_breaks((errors or b"").decode(errors="replace"))


def make_user(
    folder: Path,
    *,
    host: str,
    key: Key,
    emulator: Emulator | None,
    sshd: Sshd | None = None,
    environment: Mapping[str, str] | None = None,
    known_hosts: str = "",
) -> User:
    """Make a user whose ssh takes its ProxyCommand from examples/ssh_config.

    Args:
        folder: must not exist; home and configuration.
        host: see :class:`User`.
        key: what the user proves himself with.
        emulator: whose AWS settings and host keys the user has.
        sshd: whose host key the user has too.
        environment: added to the emulator's, or instead of it.
        known_hosts: further lines of that file.
    """
    folder.mkdir()
    if emulator is not None:
        known_hosts += "\n" + emulator.known_hosts.read_text()
    if sshd is not None:
        known_hosts += f"\n{REAL} {sshd.host_key.public.read_text()}"
    (folder / "known_hosts").write_text(known_hosts)
    config = folder / "ssh_config"
    config.write_text(
        f"IdentityFile {key.private}\nIdentitiesOnly yes\nIdentityAgent none\nBatchMode yes\n"
        f"UserKnownHostsFile {folder / 'known_hosts'}\nGlobalKnownHostsFile /dev/null\nInclude {SSH_CONFIG}\n"
    )
    mark = uuid.uuid4().hex
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_DROPPED_VARIABLES) and not name.lower().endswith("_proxy")
    }
    scripts = sysconfig.get_path("scripts")
    assert shutil.which("ssm-proxy", path=scripts), f"ssm-proxy is not installed in {scripts}: pip install -e '.[test]'"
    variables |= {
        "PATH": scripts + os.pathsep + variables.get("PATH", os.defpath) + SYSTEM_FOLDERS,
        "HOME": str(folder),
        "AWS_CONFIG_FILE": str(folder / "aws_config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws_credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "LC_ALL": "C",
        _MARK: mark,
    }
    if emulator is not None:
        variables |= emulator.environment()
    variables |= environment or {}
    return User(host=host, config=config, environment=variables, mark=mark, folder=folder)


# --- what the service knows -----------------------------------------------------------------------------------------


def session_states(emulator: Emulator) -> list[str]:
    """Give the state of every session, the latest last."""
    return [session.status for session in emulator.sessions()]


def open_sessions(emulator: Emulator) -> list[str]:
    return [state for state in session_states(emulator) if state not in OVER]


def check_sessions(emulator: Emulator, within: float = WITHIN) -> None:
    """Check that no session is left open, and that the agents had nothing to complain of."""
    try:
        wait_until(lambda: not open_sessions(emulator), "no session is left open", within)
    finally:
        if open_sessions(emulator):  # not for the tests that come after
            emulator.set_faults(Faults(idle_timeout_s=0.01))
            wait_until(lambda: not open_sessions(emulator), "the service ends them")
            emulator.set_faults(Faults())
    assert [dict(session.client_defects) for session in emulator.sessions() if session.client_defects] == []


def check_processes(user: User, within: float = WITHIN) -> None:
    """Check that nothing that the user started is left, nor what that started."""
    wait_until(lambda: not user.processes(), f"nothing of {user.processes()} is left", within)
