"""Commands and shells of the embedded SSH server: a child process joined to an SSH channel, memory bounded."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol

import asyncssh

from ssm_proxy.emulator.terminal import (
    home_folder,
    login_environment,
    set_terminal_size,
    signal_group,
    start_on_terminal,
)

_LOG = logging.getLogger("ssm_proxy.emulator.ssh")
_PIECE_BYTES: Final = 65_536
_AFTER_HANGUP_S: Final = 5.0
"""A program may put in order what it has: rsync keeps its part. sshd would leave it all the time."""
_AFTER_EXIT_S: Final = 1.0

SshProcess = asyncssh.SSHServerProcess[bytes]


class _ByteReader(Protocol):
    async def read(self, size: int, /) -> bytes: ...


class _ByteWriter(Protocol):
    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


async def run_process(process: SshProcess) -> None:
    """Run what the client asked for, a command or a shell, with a terminal or without, and report its end."""
    shell = pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    if process.command is None:
        arguments = [f"-{Path(shell).name}"]
    else:
        arguments = [Path(shell).name, "-c", process.command]
    _LOG.info("= ssh %s", "shell" if process.command is None else "command")
    run = _run_with_pipes if process.term_type is None else _run_with_terminal
    try:
        status = await run(process, shell, arguments)
    except OSError as error:
        process.stderr.write(f"{error}\n".encode())
        status = 127
    if status < 0:
        process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
    else:
        process.exit(status)


async def _run_with_pipes(process: SshProcess, shell: str, arguments: list[str]) -> int:
    child = await asyncio.create_subprocess_exec(
        *arguments,
        executable=shell,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd=home_folder(),
        env=_environment(process),
        limit=_PIECE_BYTES,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    outputs = (_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
    return await _attend(process, child, _feed_pipe(process, child, child.stdin), outputs)


async def _run_with_terminal(process: SshProcess, shell: str, arguments: list[str]) -> int:
    child, terminal = await start_on_terminal(shell, arguments, _environment(process), process.term_size)
    try:
        feed = _feed(process, child, terminal.write, terminal.number)
        return await _attend(process, child, feed, (_pump(terminal, process.stdout),))
    finally:
        terminal.close()


async def _attend(
    process: SshProcess,
    child: Process,
    feed: Coroutine[Any, Any, None],
    outputs: tuple[Coroutine[Any, Any, None], ...],
) -> int:
    """Wait for the end of the output and of the child; a client that goes away takes the child with it."""
    feeding = asyncio.ensure_future(feed)
    pumping = asyncio.ensure_future(_all(outputs))
    gone = asyncio.ensure_future(process.wait_closed())
    tasks = [feeding, pumping, gone]
    try:
        await asyncio.wait({pumping, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not pumping.done():
            signal_group(child, signal.SIGHUP)
            await asyncio.wait({pumping}, timeout=_AFTER_EXIT_S)
        elif pumping.exception() is not None:
            signal_group(child, signal.SIGHUP)
        ending = asyncio.ensure_future(_exited(child))
        tasks.append(ending)
        await asyncio.wait({ending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            signal_group(child, signal.SIGHUP)
            await asyncio.wait({ending}, timeout=_AFTER_HANGUP_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if child.returncode is None:
            signal_group(child, signal.SIGKILL)
            await child.wait()
        # asyncio keeps the pipes of a child that is dead until they were read to their end, which a reader that was
        # told to pause never does; there is no public way to say that nobody will.
        child._transport.close()  # type: ignore[attr-defined]
    assert child.returncode is not None
    return child.returncode


async def _all(pumps: tuple[Coroutine[Any, Any, None], ...]) -> None:
    await asyncio.gather(*pumps)


async def _exited(child: Process) -> None:
    await child.wait()


async def _feed_pipe(process: SshProcess, child: Process, pipe: asyncio.StreamWriter) -> None:
    async def write(data: bytes) -> None:
        pipe.write(data)
        await pipe.drain()

    await _feed(process, child, write, None)
    pipe.close()


async def _feed(
    process: SshProcess, child: Process, write: Callable[[bytes], Awaitable[None]], terminal: int | None
) -> None:
    """Carry what the client types, its signals and its window sizes."""
    try:
        while True:
            try:
                data = await process.stdin.read(_PIECE_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                if terminal is not None:
                    set_terminal_size(terminal, change.term_size)
                continue
            except asyncssh.BreakReceived:
                signal_group(child, signal.SIGINT)
                continue
            except asyncssh.SignalReceived as received:
                number = getattr(signal, f"SIG{received.signal}", None)
                if isinstance(number, signal.Signals):
                    signal_group(child, number)
                continue
            if not data:
                break
            await write(data)
    except (OSError, asyncssh.Error):
        pass  # the child does not read any more, or the client has gone: the outputs tell the rest


async def _pump(reader: _ByteReader, writer: _ByteWriter) -> None:
    while data := await reader.read(_PIECE_BYTES):
        writer.write(data)
        await writer.drain()


def _environment(process: SshProcess) -> dict[str, str]:
    """Give a login's environment, with what an ordinary server accepts from the client."""
    environment = login_environment()
    for name, value in process.env.items():
        text_name, text = _text(name), _text(value)
        if text_name in ("LANG", "GIT_PROTOCOL") or text_name.startswith("LC_"):
            environment[text_name] = text
    if process.term_type is not None:
        environment["TERM"] = process.term_type
    address = process.get_extra_info("peername")
    if address:
        environment["SSH_CLIENT"] = f"{address[0]} {address[1]} 22"
        environment["SSH_CONNECTION"] = f"{address[0]} {address[1]} 127.0.0.1 22"
    return environment


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
