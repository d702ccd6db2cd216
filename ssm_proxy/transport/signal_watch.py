"""Signals as something that a poller can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any


@contextlib.contextmanager
def signals_wake(fd: int) -> Iterator[None]:
    """Have every signal write a byte to ``fd``, a non-blocking socket that the main thread polls the other end of.

    Python runs a handler between two instructions. For a signal that comes behind the last of them, but before the
    system call that waits, that would be after the wait. In another thread, or beside a loop that has asked for the
    same, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
    try:
        yield
    finally:
        if before == -1:
            signal.set_wakeup_fd(-1)


class SignalWatch:
    """Catches signals from now until ``close``; one that is ignored from the start stays so. For the main thread only.

    Args:
        names: of the signals; those that this system does not have are left out.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._caught: list[int] = []
        self._was_interrupted = False
        self._before: dict[int, Any] = {}
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when there is something to take."""
        return self._reader.fileno()

    def take(self) -> list[int]:
        """Give the numbers of the signals that came since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        caught, self._caught = self._caught, []
        return caught

    def close(self) -> None:
        """Let the signals do what they did before; not SIGINT, if it came: another Ctrl-C must not change the end."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT and self._was_interrupted else handler)
        self._before = {}
        self._reader.close()
        self._writer.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(number)
        self._was_interrupted = self._was_interrupted or number == signal.SIGINT
        with contextlib.suppress(OSError):  # full: it is awake already
            self._writer.send(b"\0")
