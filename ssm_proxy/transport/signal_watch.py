"""Signals as something that a poller can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None
"""What ``signal.signal`` takes and gives; None: not set by Python."""


def numbers_of(names: Sequence[str]) -> list[int]:
    """Give the signals of these names that this system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def not_ignored(names: Sequence[str]) -> list[int]:
    """Give those that are not ignored from the start: nohup means it."""
    return [number for number in numbers_of(names) if signal.getsignal(number) is not signal.SIG_IGN]


def change_handlers(handlers: Mapping[int, Handler]) -> None:
    """Change what signals do, for the main thread only; never from a signal's own handler.

    Python takes note of a signal first and looks for its handler later. If none is there any more then, it writes a
    traceback ("ignored due to race condition") to standard error: so no signal comes while this changes, and no handler
    ignores others, of which one may have come together with its own.
    """
    mask = getattr(signal, "pthread_sigmask", None)
    before = mask(signal.SIG_BLOCK, handlers) if mask else ()
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)


def ignore_signals(names: Sequence[str]) -> None:
    """Have nothing happen at these signals from now on; as ``change_handlers``, from the main thread."""
    change_handlers(dict.fromkeys(numbers_of(names), signal.SIG_IGN))


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
        for number in not_ignored(names):
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
        if self._was_interrupted and signal.SIGINT in self._before:
            self._before[signal.SIGINT] = signal.SIG_IGN
        change_handlers(self._before)
        self._before = {}
        self._reader.close()
        self._writer.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(number)
        self._was_interrupted = self._was_interrupted or number == signal.SIGINT
        with contextlib.suppress(OSError):  # full: it is awake already
            self._writer.send(b"\0")
