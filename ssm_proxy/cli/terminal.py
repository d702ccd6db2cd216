"""Leaves the user's terminal as it was found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


class TerminalGuard:
    """Remembers the settings of the controlling terminal, if there is one.

    A credential provider may switch its echo off to ask for an MFA code, in a thread that does not outlive us: when ssh
    is interrupted then, nobody else would switch it on again.
    """

    def __init__(self) -> None:
        self._settings: list[Any] | None = None
        with contextlib.suppress(ImportError, OSError):
            import termios

            with contextlib.suppress(termios.error), _terminal() as fd:
                self._settings = termios.tcgetattr(fd)

    def restore(self) -> None:
        """Switch the echo on again, if it was on and is not now, and nothing else: ssh has settings of its own."""
        if self._settings is None:
            return
        with contextlib.suppress(ImportError, OSError):
            import termios

            with contextlib.suppress(termios.error), _terminal() as fd:
                if os.tcgetpgrp(fd) != os.getpgrp():
                    return  # in the background one would be stopped for trying
                now = termios.tcgetattr(fd)
                is_canonical = now[3] & termios.ICANON  # in raw mode the terminal is in ssh's hands
                if is_canonical and self._settings[3] & termios.ECHO and not now[3] & termios.ECHO:
                    now[3] |= termios.ECHO
                    termios.tcsetattr(fd, termios.TCSANOW, now)


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)
