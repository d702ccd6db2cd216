"""Processes of a managed node, on a pseudo-terminal of their own or without one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import signal
import struct
import sys
import termios
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final

_TAKE_TERMINAL: Final = (
    "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execvp(sys.argv[1],sys.argv[2:])"
)
"""Runs in a fresh interpreter between fork and shell. A preexec_fn would run in the forked copy of a process with
threads, which is not safe."""
_KEPT_VARIABLES: Final = ("PATH", "LANG", "TZ", "TMPDIR")
_GOODBYE_S: Final = 1.0
WindowSize = tuple[int, int, int, int]


class Descriptor:
    """One end of a pipe or of a terminal; what its other end wrote waits in the kernel until it is read.

    Not asyncio's own streams: those forget what they hold when a terminal reports its end as an error.
    """

    def __init__(self, number: int) -> None:
        os.set_blocking(number, False)
        self._number = number
        self._loop = asyncio.get_running_loop()

    @property
    def number(self) -> int:
        """Of the descriptor; negative once it is closed."""
        return self._number

    async def read(self, size: int) -> bytes:
        """Wait for data; empty is the end: nobody has the other end open any more, or :meth:`close` was called."""
        while self._number >= 0:
            try:
                return os.read(self._number, size)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except OSError:  # EIO is how a terminal of Linux says it
                break
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of it; waits while the other end's queue is full.

        Raises:
            OSError: it is closed.
        """
        while data:
            if self._number < 0:
                raise BrokenPipeError("the descriptor is closed")
            try:
                data = data[os.write(self._number, data) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], object]) -> None:
        ready = asyncio.Event()
        number = self._number
        add(number, ready.set)
        try:
            await ready.wait()
        finally:
            if self._number == number:  # else it is closed, and the number perhaps another's
                remove(number)

    def close(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            self._loop.remove_reader(number)
            self._loop.remove_writer(number)
            os.close(number)


async def start_on_terminal(
    program: str, arguments: Sequence[str], environment: Mapping[str, str], size: WindowSize = (0, 0, 0, 0)
) -> tuple[Process, Descriptor]:
    """Start a program, found on PATH, on a terminal and in a session of its own.

    Args:
        program: name or path.
        arguments: with the name that it is told to have.
        environment: all of it.
        size: as for `set_terminal_size`.

    Raises:
        OSError: there is no terminal left, or no process.
    """
    leader, follower = os.openpty()
    try:
        set_terminal_size(leader, size)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-c", _TAKE_TERMINAL, program, *arguments),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            cwd=home_folder(),
            env=environment,
        )
    except BaseException:
        os.close(leader)
        raise
    finally:
        os.close(follower)
    return process, Descriptor(leader)


async def end_process(process: Process) -> None:
    """End a process that leads its group, if it still runs: with SIGHUP, and with SIGKILL a second later."""
    for number in (signal.SIGHUP, signal.SIGKILL):
        if process.returncode is None:
            signal_group(process, number)
            waiting = asyncio.ensure_future(process.wait())
            try:
                await asyncio.wait({waiting}, timeout=_GOODBYE_S)
            finally:
                waiting.cancel()


def signal_group(process: Process, number: signal.Signals) -> None:
    """Send a signal to the group that a process leads, unless it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def set_terminal_size(terminal: int, size: WindowSize) -> None:
    """Set columns, rows, and width and height in pixels; each is a u16, larger ones lose their upper bits."""
    columns, rows, width, height = (each & 0xFFFF for each in size)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


def home_folder() -> str:
    """Give the home of the node's users: that of whoever started the emulator, or what its HOME says."""
    home = os.path.expanduser("~")
    return home if os.path.isdir(home) else "/"


def login_environment() -> dict[str, str]:
    """Give what every process of a node finds in its environment; nothing secret of the emulator's own."""
    user = pwd.getpwuid(os.getuid())
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    shell = user.pw_shell or "/bin/sh"
    return kept | {"HOME": home_folder(), "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": shell}
