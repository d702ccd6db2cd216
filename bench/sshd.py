"""A real sshd on loopback, and keys for it. The integration tests use it too."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import descendants

SYSTEM_FOLDERS = ":/usr/sbin:/sbin"
"""Where sshd is found, and not on everybody's PATH."""
_START_TIMEOUT = 60.0
_given_ports: set[int] = set()


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + SYSTEM_FOLDERS)


def _ports_to_choose_from() -> range:
    """Give ports that the system gives only to who asks for them by number."""
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except OSError:
        first, last = 32768, 65535  # of all systems
    return max(range(20_000, first), range(last + 1, 65_536), key=len) or range(20_000, 65_536)


def free_port() -> int:
    """Give a port that nobody has, and another one each time.

    Not one that the system chooses: it might choose the same one for somebody else before it is used.
    """
    chance = random.SystemRandom()  # other processes draw as well, and may have got the same seed
    ports = _ports_to_choose_from()
    for _ in range(1000):
        port = chance.choice(ports)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port
    raise RuntimeError(f"no port of {ports} is free")


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Give a port that no other program is given meanwhile, while many take any free one.

    Connections to it are refused, unless somebody listens who names it and sets SO_REUSEADDR, as servers do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":  # there two sockets cannot have it
            holder.close()
        yield port


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key pair in OpenSSH's files."""

    private: Path

    @property
    def public(self) -> Path:
        return self.private.with_name(self.private.name + ".pub")

    @classmethod
    def make(cls, path: Path) -> Key:
        return cls.make_of_kind(path, "ed25519")

    @classmethod
    def make_of_kind(cls, path: Path, kind: str, *options: str, passphrase: str = "") -> Key:
        """Make a key of a kind that ``ssh-keygen -t`` knows."""
        command = ["ssh-keygen", "-q", "-t", kind, *options, "-N", passphrase, "-C", "test", "-f", path]
        subprocess.run(command, check=True)
        return cls(private=path)


class Sshd:
    """OpenSSH's server as the current user, for as long as the ``with`` block lasts.

    Args:
        folder: where its files go; must exist.
        authorized_keys: public keys that it lets in.
        settings: lines for its configuration, in place of those that are usual here.

    Raises:
        FileNotFoundError: there is no sshd.
        RuntimeError: it does not start; the text is its log.
    """

    def __init__(self, folder: Path, authorized_keys: Path, settings: Sequence[str] = ()) -> None:
        program = find_program("sshd")
        if program is None:
            raise FileNotFoundError("sshd was not found; install openssh-server")
        self._program = program
        self._folder = folder
        self._authorized_keys = authorized_keys
        self._settings = settings
        self._log = folder / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.host_key = Key.make(folder / "sshd_host_key")
        self._stack = contextlib.ExitStack()
        self.port = self._stack.enter_context(reserved_port())  # also while it is killed and not started again yet

    def __enter__(self) -> Sshd:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates its privileges
        home = self._folder / "home"  # bash reads start-up files there for each command: those of nobody
        home.mkdir(exist_ok=True)
        config = self._folder / "sshd_config"
        usual = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.host_key.private}",
            f"AuthorizedKeysFile {self._authorized_keys}",
            f"PidFile {self._folder / 'sshd.pid'}",
            f"SetEnv HOME={home}",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100",  # its default drops some of many connections that begin at once
            "Subsystem sftp internal-sftp",
            "PrintMotd no",
            "AcceptEnv LANG LC_* GIT_PROTOCOL",
        ]
        given = {line.split()[0] for line in self._settings} - {"HostKey"}
        lines = [*self._settings, *(line for line in usual if line.split()[0] not in given)]
        config.write_text("\n".join(lines) + "\n")
        settings = subprocess.run([self._program, "-T", "-f", config], capture_output=True, text=True, check=True)
        if "persourcepenalties" in settings.stdout:  # new servers shun an address whose connections break
            config.write_text("\n".join([*lines, "PerSourcePenalties no"]) + "\n")
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                [self._program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError(f"sshd does not start: {self._log.read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stack.close()

    def kill(self) -> None:
        """End the server and what it started for its connections, without a word."""
        assert self._process is not None
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
