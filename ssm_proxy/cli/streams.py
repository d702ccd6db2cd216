"""Standard input, output and error, taken care of before anything else runs.

What a session carries must reach nobody else: a credential program that reads standard input would take bytes of ssh's,
one that prints would put its own between them. And a descriptor that is closed at the start would become that of some
socket of ours, which then is read and written as if it were the user's.
"""

from __future__ import annotations

import os
import sys

from ssm_proxy.errors import UsageError

_STANDARD_FDS = (0, 1, 2)


def guard_streams() -> None:
    """Open nothing, /dev/null, in the place of each standard descriptor that is closed."""
    for fd in _STANDARD_FDS:
        if not _is_open(fd):
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != fd:
                os.dup2(nothing, fd, inheritable=True)
                os.close(nothing)
            else:
                os.set_inheritable(fd, True)


def check_output() -> None:
    """Make sure that there is a standard output.

    Raises:
        UsageError: it is closed.
    """
    if not _is_open(1):
        raise UsageError("standard output is closed", hint="redirect it to /dev/null if nobody wants it")


def claim_streams() -> tuple[int, int]:
    """Take standard input and output for the session alone.

    Whatever a library or a credential program prints goes to standard error from here on, and none of them can read a
    byte of what was typed or piped in.

    Returns:
        Two descriptors that are nobody else's: for input, and for output.

    Raises:
        UsageError: one of them is closed.
    """
    if not (_is_open(0) and _is_open(1)):
        raise UsageError(
            "standard input or output is closed",
            hint="redirect it from or to /dev/null if nobody wants it; ssm-proxy proxy is for ssh to start, as its "
            "ProxyCommand",
        )
    guard_streams()
    input_fd = os.dup(0)
    output_fd = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    _set_binary(input_fd, output_fd)
    return input_fd, output_fd


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _set_binary(*fds: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        for fd in fds:
            msvcrt.setmode(fd, os.O_BINARY)
