"""The user's terminal, or what stands in its place: raw while a session has it, and its size."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any

from ssm_proxy.errors import ConfigurationError
from ssm_proxy.transport.endpoints import InputEnd, OutputEnd
from ssm_proxy.transport.signal_watch import SignalWatch
from ssm_proxy.wire.shell_payloads import TerminalSize

SIZE_WITHOUT_TERMINAL = TerminalSize(columns=300, rows=100)
"""The official client's (8.1): wide enough that the node's programs do not cut the lines that a script will read."""
MAX_PENDING_OUTPUT_BYTES = 64 * 1024
"""What a slow terminal shows after Ctrl-C; the rest waits at the node, where Ctrl-C drops it."""
_STANDARD_FDS = (1, 0, 2)


def terminal_size(fds: Sequence[int] = _STANDARD_FDS) -> TerminalSize:
    """Give the size of the first of these descriptors that is a terminal and has one."""
    for fd in fds:
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if columns and rows:
                return TerminalSize(columns=columns, rows=rows)
    return SIZE_WITHOUT_TERMINAL


class Console:
    """Standard input and output for a session with a terminal on the node.

    If standard input is a terminal, it is raw from ``begin`` to ``restore``: every key is a byte for the node.

    Args:
        input_fd: what is typed, or piped.
        output_fd: takes the node's output.

    Raises:
        ConfigurationError: this system has no terminals of the kind.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1) -> None:
        if os.name != "posix":
            raise ConfigurationError(
                "shells need a POSIX terminal", hint="use ssh with ssm-proxy as its ProxyCommand, or WSL"
            )
        self._input_fd = input_fd
        self._size_fds = (output_fd, input_fd, *_STANDARD_FDS)
        self._settings: list[Any] | None = None
        self._own_fd: int | None = None
        self._signals = SignalWatch(("SIGWINCH", "SIGCONT"))
        try:
            self.source = InputEnd(input_fd)
            self.sink = OutputEnd(self._unshared(output_fd), max_pending=MAX_PENDING_OUTPUT_BYTES)
            self.is_terminal = os.isatty(input_fd)
        except OSError as error:
            self._signals.close()
            raise ConfigurationError("standard input or output cannot be used", cause=error.strerror) from error

    def begin(self) -> None:
        """Take the terminal: what was typed already stays, and what is typed from now on is not shown by it."""
        if self.is_terminal:
            self._make_raw()

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when ``take_change`` has something to do."""
        return self._signals.fileno()

    def take_change(self) -> bool:
        """Say whether the size may have changed; make the terminal raw again after it was in other hands."""
        signals = self._signals.take()
        if signal.SIGCONT in signals and self._settings is not None:
            self._make_raw()
        return bool(signals)

    def size(self) -> TerminalSize:
        """Give the size of the terminal."""
        return terminal_size(self._size_fds)

    def restore(self) -> None:
        """Give the terminal the settings back that it had."""
        settings, self._settings = self._settings, None
        if settings is not None:
            import termios

            # Never at the price of waiting for output that the terminal does not show, and not in the background, where
            # one would be stopped for trying: the shell that has the terminal then has made its own settings.
            with contextlib.suppress(termios.error):
                if not self._is_in_background():
                    termios.tcsetattr(self._input_fd, termios.TCSANOW, settings)

    def close(self) -> None:
        """Leave everything as it was found. May be called twice."""
        self.restore()
        self._signals.close()
        self.source.close()
        self.sink.close()
        if self._own_fd is not None:
            os.close(self._own_fd)
            self._own_fd = None

    def _is_in_background(self) -> bool:
        try:
            return os.tcgetpgrp(self._input_fd) != os.getpgrp()
        except OSError:  # not our controlling terminal, so it does not stop us
            return False

    def _make_raw(self) -> None:
        import termios
        import tty

        with contextlib.suppress(termios.error):  # it vanished: reading it will tell
            if self._settings is None:
                self._settings = termios.tcgetattr(self._input_fd)
            tty.setraw(self._input_fd, termios.TCSANOW)

    def _unshared(self, fd: int) -> int:
        """Open a terminal anew, so that only we do not block on it; it may be slow, or stand still."""
        with contextlib.suppress(OSError):
            if os.isatty(fd):
                self._own_fd = os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
                return self._own_fd
        return fd
