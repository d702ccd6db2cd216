"""Where everything is measured: a real sshd, and real ssh that reaches it in several ways.

Emulator, shaped link, sshd, ssh and proxy are processes of their own. The process that measures only waits, and its
processor time is counted nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.processes import descendants, is_running
from bench.rows import BenchError
from bench.sshd import SYSTEM_FOLDERS, Key, Sshd

NODE = "i-0123456789abcdef0"
MIB = 1024 * 1024
STEP_TIMEOUT = 900.0
_START_TIMEOUT = 30.0
_END_TIMEOUT = 20.0
_DROPPED_VARIABLES = ("AWS_", "SSM_PROXY_", "SSH_")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way in which ssh reaches the node."""

    config: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ssh to the node with nothing to read; it must succeed."""
        done = subprocess.run(
            ["ssh", "-F", self.config, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT,
        )
        if done.returncode != 0:
            raise BenchError(f"ssh failed ({done.returncode}): {done.stderr}")
        return done

    def start(
        self, *arguments: str | Path, stdin: int | IO[bytes] = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["ssh", "-F", self.config, *arguments], env=self.environment, stdin=stdin, stdout=stdout, bufsize=0
        )


class Connection:
    """One ssh connection that is open for as long as the ``with`` block lasts; commands share it (ControlMaster).

    So what is measured is the stream, and the start of a connection is measured on its own.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._folder = tempfile.TemporaryDirectory(prefix="ssm-")  # short: it holds a control socket
        self._socket = Path(self._folder.name) / "c"
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Connection:
        master = self._master = self._start_master("-M", "-S", str(self._socket))
        try:
            wait_until(lambda: self._socket.exists() or master.poll() is not None, "ssh connects")
            if master.poll() is not None:
                raise BenchError(f"ssh does not connect ({master.returncode})")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start_master(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self._route.start(*arguments, "-N", NODE)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._master is not None
        children = descendants(self._master.pid)
        _end(self._master)
        # ssh ends its ProxyCommand but does not wait for it; it must not run into the next measurement.
        wait_until(lambda: not any(map(is_running, children)), "the proxy ends")
        self._folder.cleanup()

    @property
    def proxy_pid(self) -> int:
        """The ProxyCommand's process: ssh starts it with exec, so that it is the only child."""
        assert self._master is not None
        children = descendants(self._master.pid)
        if len(children) != 1:
            raise BenchError(f"ssh has {len(children)} child processes instead of its ProxyCommand alone")
        return children[0]

    @contextlib.contextmanager
    def running(
        self, command: str, stdin: int | IO[bytes] = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command on the node over this connection, and over no other; kill it at the end of the block."""
        arguments = ("-S", self._socket, "-o", "ProxyCommand=false", NODE, command)
        with self._route.start(*arguments, stdin=stdin, stdout=stdout) as process:
            try:
                yield process
            finally:
                process.kill()


class Prompt(Connection):
    """A connection as people have it open: begun by a session with a terminal, whose program is an echo.

    ssh makes a difference: of a connection that began with a terminal it keeps at most 16 KiB in a queue of its own, of
    others 128 KiB, which no ProxyCommand can let anything pass.
    """

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Input and output are pipes; the terminal is the node's."""
        assert self._master is not None
        return self._master

    def __enter__(self) -> Prompt:
        super().__enter__()
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"ready\n"):
            if not select.select([self.process.stdout], [], [], _START_TIMEOUT)[0]:
                raise BenchError("the terminal session does not begin")
            line += os.read(self.process.stdout.fileno(), 1)
        return self

    def _start_master(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = "stty raw -echo; echo ready; exec cat"
        return self._route.start(*arguments, "-tt", NODE, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Lab:
    """The node's sshd and the ways to it; a context manager.

    Raises:
        BenchError: a program is missing.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.proxy = Path(sysconfig.get_path("scripts")) / "ssm-proxy"
        if not self.proxy.exists():
            raise BenchError("ssm-proxy is not installed: pip install -e '.[emulator]'")

    def __enter__(self) -> Lab:
        try:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ssm-bench-")))
            self._key = Key.make(self.folder / "id_ed25519")
            self._sshd = self._stack.enter_context(Sshd(self.folder, self._key.public))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            self._stack.close()
            raise BenchError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's AWS settings, proxies and SSH agent."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_DROPPED_VARIABLES) and not name.lower().endswith("_proxy")
        }
        return kept | {
            "PATH": kept.get("PATH", os.defpath) + SYSTEM_FOLDERS,
            "AWS_CONFIG_FILE": str(self.folder / "aws_config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "aws_credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def plain(self) -> Route:
        """Straight over TCP."""
        return self._route("plain", f"HostName 127.0.0.1\nPort {self._sshd.port}", {})

    @contextlib.contextmanager
    def tunnel(
        self,
        *,
        pacing: str = "none",
        faults: Mapping[str, int] | None = None,
        options: str = "",
        nodes: Sequence[str] = (NODE,),
    ) -> Iterator[Route]:
        """Through the proxy and an emulator.

        Args:
            pacing: the agent's, see ``ssm-proxy emulator --help``.
            faults: see there too.
            options: of the proxy.
            nodes: their ids; one sshd stands behind all of them.
        """
        with self.emulator(pacing=pacing, faults=faults, nodes=nodes) as environment:
            proxy = f"{shlex.quote(str(self.proxy))} proxy {options} %h %p"
            yield self._route("tunnel", f"ProxyCommand {proxy}", environment)

    @contextlib.contextmanager
    def emulator(
        self, *, pacing: str, faults: Mapping[str, int] | None = None, nodes: Sequence[str] = (NODE,)
    ) -> Iterator[dict[str, str]]:
        """Run an emulator; give the variables that point a client at it. Arguments as for ``tunnel``."""
        command = [str(self.proxy), "emulator", "--json", "--agent-pacing", pacing]
        for node in nodes:
            command += ["--node", f"{node}=127.0.0.1:{self._sshd.port}"]
        for name, value in (faults or {}).items():
            command += ["--fault", f"{name}={value}"]
        with self.announced(command) as (line, _):
            yield json.loads(line)["environment"]

    @contextlib.contextmanager
    def shaped(self, *, bandwidth: int, delay_ms: int, queue_bytes: int) -> Iterator[Route]:
        """Over TCP, with the rate, the delay and the queue that an emulated link has."""
        program = str(Path(__file__).with_name("shaped_link.py"))
        command = [sys.executable, program, *map(str, (self._sshd.port, bandwidth, delay_ms, queue_bytes))]
        with self.announced(command) as (line, _):
            yield self._route("shaped", f"HostName 127.0.0.1\nPort {int(line)}", {})

    @contextlib.contextmanager
    def announced(self, command: list[str], environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
        """Run a server; give the line by which it says that it is ready, and its process."""
        environment = self.environment | (environment or {})
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline() if select.select([process.stdout], [], [], _START_TIMEOUT)[0] else ""
                if not line:
                    raise BenchError(f"{command[1:3]} does not start")
                yield line, process.pid
            finally:
                _end(process)

    def _route(self, name: str, way: str, environment: dict[str, str]) -> Route:
        config = self.folder / f"ssh_config_{name}"
        config.write_text(
            f"{way}\nIdentityFile {self._key.private}\nIdentitiesOnly yes\nIdentityAgent none\nBatchMode yes\n"
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\nCompression no\n"
        )
        return Route(config=config, environment=self.environment | environment)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_END_TIMEOUT)


def wait_until(condition: Callable[[], object], what: str, within: float = _START_TIMEOUT) -> None:
    """Ask again and again until the answer is true.

    Raises:
        BenchError: it was not in time.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {within:g} s: {what}")
        time.sleep(0.01)
