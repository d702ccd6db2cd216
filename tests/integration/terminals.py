"""A terminal with somebody in front of it: what the tests of ``shell`` and ``exec -t`` stand on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from typing import Any

from nodes import WITHIN

PROMPT = rb"[$#] $"
"""What a shell shows, at the end of the screen, while it waits for a command."""

_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\nos.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program in the foreground of a terminal of its own, and the keys and the screen of that terminal."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], *, columns: int = 100, rows: int = 30):
        self._leader, self._follower = pty.openpty()
        self.resize(columns, rows)
        self._before = self.settings()
        self.screen = b""
        """All that was shown so far and not yet looked at by ``expect``."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
            env=environment,
            stdin=self._follower,
            stdout=self._follower,
            stderr=self._follower,
            start_new_session=True,
        )

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._follower)

    @property
    def is_raw(self) -> bool:
        return not self.settings()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def is_as_before(self) -> bool:
        return self.settings() == self._before

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Type, or paste, and look at the screen meanwhile: a terminal that nobody looks at takes nothing."""
        left = memoryview(keys)
        deadline = time.monotonic() + WITHIN
        while left:
            assert time.monotonic() < deadline, f"{len(left)} keys were not taken"
            readable, writable, _ = select.select([self._leader], [self._leader], [], 0.1)
            if readable:
                self._look()
            if writable:
                left = left[os.write(self._leader, left[:512]) :]

    def expect(self, pattern: bytes, within: float = WITHIN) -> re.Match[bytes]:
        """Look at the screen until it shows this; what comes behind it is for the next call."""
        deadline = time.monotonic() + within
        while not (found := re.search(pattern, self.screen, re.DOTALL)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} within {within} s: {self.screen[-500:]!r}"
            if select.select([self._leader], [], [], left)[0]:
                self._look()
        self.screen = self.screen[found.end() :]
        return found

    def end(self, within: float = WITHIN) -> int:
        """Look at the screen until the program ends; give its exit status."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.screen[-500:]!r}"
            if select.select([self._leader], [], [], 0.02)[0]:
                self._look()
        while select.select([self._leader], [], [], 0)[0]:
            self._look()
        return self.process.returncode

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._follower)
        os.close(self._leader)
        self._leader = self._follower = -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._leader >= 0:
            self.hang_up()

    def _look(self) -> None:
        self.screen += os.read(self._leader, 65536)


@contextlib.contextmanager
def terminal(arguments: list[str], environment: Mapping[str, str], **options: int) -> Iterator[Terminal]:
    """Open a terminal with a program in it; kill it at the end."""
    opened = Terminal(arguments, environment, **options)
    try:
        yield opened
    finally:
        opened.close()
