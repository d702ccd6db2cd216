"""What the runs stand on: an emulator, a real sshd, users with real ssh; tunnels that carry bytes; memory over time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nodes import (
    MIB,
    REAL,
    Process,
    User,
    check_processes,
    check_sessions,
    ending,
    make_user,
    tool,
)

from bench.sshd import Key, Sshd
from chaos import far_end
from chaos.far_end import PIECE_BYTES, READY, pieces
from ssm_proxy.emulator import Emulator, EmulatorOptions, Node

WITHIN = 120.0
"""Longer than any fault may take: a transfer that does not move for so long has failed."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class World:
    """One emulator and its users; at the end of the ``with`` block no process and no session may be left.

    Args:
        seed: of the emulator's accidents.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._stack = contextlib.ExitStack()
        self._users: list[User] = []

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssm-chaos-")))
            for name in ("ssh", "ssh-keygen", "sshd"):
                tool(name)
            self._key = Key.make(self._folder / "id_ed25519")
            (self._folder / "sshd").mkdir()
            self._sshd = stack.enter_context(Sshd(self._folder / "sshd", self._key.public))
            node = Node(node_id=REAL, ssh_address=("127.0.0.1", self._sshd.port))
            self.emulator = stack.enter_context(
                Emulator(
                    EmulatorOptions(nodes=[node], authorized_keys=self._key.public, agent_pace_s=0.0, seed=self._seed)
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                for user in self._users:
                    check_processes(user)
                check_sessions(self.emulator)

    def new_user(self) -> User:
        folder = self._folder / str(len(self._users))
        self._users.append(make_user(folder, host=REAL, key=self._key, emulator=self.emulator, sshd=self._sshd))
        return self._users[-1]


def ignore(position: int) -> None:
    pass


class Tunnel:
    """One ssh through one proxy to the far end, which carries transfers one after the other; a context manager."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._errors = user.folder / "ssh.log"

    def __enter__(self) -> Tunnel:
        with self._errors.open("wb") as errors:
            self._ssh = self._user.start(self._user.host, f"exec {sys.executable} {far_end.__file__}", stderr=errors)
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        self._sink, self._source = self._ssh.stdin.fileno(), self._ssh.stdout.fileno()
        os.set_blocking(self._sink, False)
        try:
            assert self._read_line() == READY, self.said()
            self.proxy = self._user.proxy()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                assert ending(self._ssh) == (0, ""), self.said()
        finally:
            self.kill()

    def kill(self) -> None:
        with self._ssh as ssh:
            ssh.kill()

    def check_alive(self) -> None:
        assert self._ssh.poll() is None, f"ssh ended too early: {self.said()}"

    def said(self) -> str:
        """Give what ssh and the proxy wrote to standard error."""
        return self._errors.read_text()

    def up(self, size: int, seed: int, reached: Callable[[int], None] = ignore) -> None:
        """Send bytes to the node, and compare checksums; ``reached`` hears after each piece how many have left."""
        digest = hashlib.sha256()
        self._write(f"up {size} {seed}\n".encode())
        position = 0
        for piece in pieces(size, seed):
            digest.update(piece)
            self._write(piece)
            position += len(piece)
            reached(position)
        self._compare(digest.hexdigest())

    def down(self, size: int, seed: int, reached: Callable[[int], None] = ignore) -> None:
        """Fetch bytes from the node, and compare checksums; ``reached`` hears after each piece how many have come."""
        digest = hashlib.sha256()
        self._write(f"down {size} {seed}\n".encode())
        position = 0
        while position < size:
            piece = self._read(min(PIECE_BYTES, size - position))
            digest.update(piece)
            position += len(piece)
            reached(position)
        self._compare(digest.hexdigest())

    def carry(self, direction: str, size: int, seed: int, reached: Callable[[int], None] = ignore) -> None:
        (self.up if direction == "up" else self.down)(size, seed, reached)

    def _compare(self, here: str) -> None:
        there = self._read_line().decode().strip()
        assert there == here, f"SHA-256 here {here}, there {there}: {self.said()}"

    def _read_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self._read(1)
        return line

    def _read(self, size: int) -> bytes:
        self._wait(self._source, selectors.EVENT_READ)
        data = os.read(self._source, size)
        assert data, f"ssh ended too early: {self.said()}"
        return data

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._sink, selectors.EVENT_WRITE)
            try:
                left = left[os.write(self._sink, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise AssertionError(f"ssh ended too early: {self.said()}") from None

    def _wait(self, descriptor: int, event: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            assert selector.select(WITHIN), f"nothing moved for {WITHIN:.0f} s: {self.said()}"


@dataclass
class Memory:
    """Resident memory of a process over time; a context manager that looks at it in a thread."""

    process: Process
    interval_s: float = 1.0
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, MiB."""

    def __enter__(self) -> Memory:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        statm = Path(f"/proc/{self.process.pid}/statm")
        is_over = False
        while True:
            with contextlib.suppress(OSError):
                resident = int(statm.read_text().split()[1]) * _PAGE_BYTES / MIB
                self.samples.append((round(time.monotonic() - began, 2), round(resident, 2)))
            if is_over:
                return
            is_over = self._over.wait(self.interval_s)

    def summary(self) -> dict[str, float | str]:
        values = [value for _, value in self.samples]
        middle = statistics.median(values)
        return {
            "peak_mib": round(self.process.peak_bytes() / MIB, 1),
            "median_mib": round(middle, 1),
            "largest_less_median_mib": round(max(values) - middle, 1),
            "curve_mib": ", ".join(f"{values[each * (len(values) - 1) // 9]:.0f}" for each in range(10)),
        }
