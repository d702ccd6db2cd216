"""A command that runs while something of ours lives: started, told of signals, waited for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from ssm_proxy.errors import UsageError

EXIT_SIGNAL_BASE = 128
END_TIMEOUT = 5.0
"""What a command gets between SIGTERM and SIGKILL."""
OTHER_SIGNAL_TIMEOUT = 1.0
"""What it gets before SIGTERM where another signal, which it may ignore, was to end it."""


def check_command(arguments: Sequence[str]) -> None:
    """Check that a command can be found, before anything is done for it.

    Raises:
        UsageError: it cannot.
    """
    if not arguments:
        raise UsageError("there is no command after --")
    if shutil.which(arguments[0]) is None:
        raise UsageError(f"{arguments[0]!r} cannot be run", cause="there is no such program on the PATH")


class ChildCommand:
    """One running command, on our own standard input, output and error.

    Args:
        arguments: program and arguments.
        environment: added to our own.
        ended: called from a thread with its exit status: its own, or 128 and the number of the signal that ended it.

    Raises:
        UsageError: the system cannot start it.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], ended: Callable[[int], None]) -> None:
        try:
            self._process = subprocess.Popen(arguments, env={**os.environ, **environment})
        except OSError as error:
            raise UsageError(f"{arguments[0]!r} cannot be run", cause=error.strerror) from error
        self._ended = ended
        self._told: int | None = None
        self._thread = threading.Thread(target=self._wait, name="ssm-proxy command", daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        """Pass on a signal, except one that the terminal gave it already, as it does with Ctrl-C.

        Who sent a signal cannot be seen: a SIGINT for us alone looks like Ctrl-C if we are in a terminal's foreground.
        """
        if number == signal.SIGINT and _is_in_foreground():
            return
        if number != signal.SIGINT:
            self._told = number
        with contextlib.suppress(OSError):
            self._process.send_signal(number)

    def end(self) -> None:
        """Have it end, by SIGTERM unless it ends by a signal that it was told. Blocks for some seconds at most."""
        if self._told not in (None, signal.SIGTERM):
            self._thread.join(OTHER_SIGNAL_TIMEOUT)
        if self._told != signal.SIGTERM and self._thread.is_alive():
            self.signal(signal.SIGTERM)
        self._thread.join(END_TIMEOUT)
        if self._thread.is_alive():
            self._process.kill()

    def _wait(self) -> None:
        status = self._process.wait()
        self._ended(status if status >= 0 else EXIT_SIGNAL_BASE - status)


def _is_in_foreground() -> bool:
    """Whether a terminal gives Ctrl-C to our process group, hence to the command too."""
    if os.name != "posix":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
