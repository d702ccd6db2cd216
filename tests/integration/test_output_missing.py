"""Output that was lost just before the end, with no time to send it again: whoever wanted it is told.

How it gets lost: so much of it that the agent, which repeats some ten messages a second and waits two seconds for what
is not acknowledged, cannot repeat a tenth. What is sent behind it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forwards import serving
from nodes import EMBEDDED, BecomeUser, MakeUser, StartEmulator, User, wait_until

import ssm_proxy
from ssm_proxy.emulator import Emulator, Faults

pytestmark = pytest.mark.integration
WITHIN = 20.0
LOST_MESSAGES = 400
LOST = b"lost, but for its first words " * (LOST_MESSAGES * 1024 // 30)
BEHIND = b"behind it"
MESSAGE = f"some of what {EMBEDDED} sent did not arrive"
CAUSE = "it was lost on the way just before the end, and the agent had no time to send it again"


@pytest.fixture
def service(start_emulator: StartEmulator) -> Emulator:
    return start_emulator()


@pytest.fixture
def user(service: Emulator, new_user: MakeUser) -> User:
    return new_user(service)


def sent(emulator: Emulator) -> int:
    return emulator.sessions()[-1].output_messages


def lose_what_follows(emulator: Emulator, send: Callable[[], None]) -> None:
    """Have something sent that is lost whole, and go on when the agent has sent it."""
    before = sent(emulator)
    emulator.set_faults(Faults(lose=1.0, direction="output"))
    send()
    wait_until(lambda: sent(emulator) >= before + LOST_MESSAGES - 2, "it was sent, and lost")
    emulator.set_faults(Faults())


class Destination:
    """A server on the node that greets; it sends what will be lost, something behind it, and closes, when told to."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._may_send = threading.Event()
        self.has_lost = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(b"hello")
        assert self._may_send.wait(WITHIN)
        lose_what_follows(self._emulator, lambda: connection.sendall(LOST))
        self.has_lost.set()
        connection.sendall(BEHIND)
        assert self.may_close.wait(WITHIN)

    def send(self) -> None:
        """Go on: whoever is connected has its greeting."""
        self._may_send.set()


@pytest.fixture
def destination(service: Emulator) -> Destination:
    return Destination(service)


@pytest.fixture
def port(destination: Destination) -> Iterator[int]:
    with serving(destination.serve) as port:
        yield port


def is_cut(data: bytes) -> bool:
    return len(data) < len(LOST) and LOST.startswith(data)


def start(user: User, arguments: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(["ssm-proxy", *arguments], env=user.environment, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("command", ["proxy", "start-session"])
def test_a_raw_port_session(user: User, destination: Destination, port: int, command: str) -> None:
    arguments = {
        "proxy": ["proxy", EMBEDDED, str(port)],
        "start-session": shlex.split(
            f"start-session --target {EMBEDDED} --document-name AWS-StartSSHSession --parameters portNumber={port}"
        ),
    }[command]
    with start(user, arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"hello"
        destination.send()
        output, errors = process.stdout.read(), process.stderr.read().decode()
        assert process.wait(WITHIN) == 9
    assert is_cut(output)
    assert errors.splitlines() == [
        f"ssm-proxy: error: {MESSAGE}",
        f"ssm-proxy: cause: {CAUSE}",
        "ssm-proxy: hint: what was received is not all; run it again",
    ]


def test_a_python_program(service: Emulator, destination: Destination, port: int, become_user: BecomeUser) -> None:
    become_user(service)
    received = b""
    with ssm_proxy.connect(EMBEDDED, port=port) as connection:
        connection.settimeout(WITHIN)
        assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
        destination.send()
        with pytest.raises(ssm_proxy.SessionEnded) as caught:  # noqa: PT012 - what came before is part of it
            while piece := connection.recv(65536):
                received += piece
        assert connection.error is caught.value
    assert (caught.value.message, caught.value.cause) == (MESSAGE, CAUSE)
    assert is_cut(received)


def test_an_asyncio_program(service: Emulator, destination: Destination, port: int, become_user: BecomeUser) -> None:
    become_user(service)

    async def program() -> None:
        reader, writer = await ssm_proxy.open_connection(EMBEDDED, port=port)
        with contextlib.closing(writer):
            assert await reader.readexactly(5) == b"hello"
            destination.send()
            with pytest.raises(ssm_proxy.SessionEnded) as caught:
                await asyncio.wait_for(reader.read(), WITHIN)
        assert caught.value.message == MESSAGE
        context = caught.value.__context__
        assert isinstance(context, asyncio.IncompleteReadError)
        assert is_cut(context.partial)

    asyncio.run(program())


def test_a_program_that_has_closed_its_end(
    service: Emulator, destination: Destination, port: int, become_user: BecomeUser
) -> None:
    become_user(service)
    destination.may_close.clear()  # the program is the first one to do so
    with ssm_proxy.connect(EMBEDDED, port=port) as connection:
        connection.settimeout(WITHIN)
        assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
        destination.send()
        assert destination.has_lost.wait(WITHIN)
        connection.close()
        destination.may_close.set()
    assert connection.error is None


@pytest.mark.parametrize("command", ["shell", "exec"])
def test_a_terminal_on_the_node(service: Emulator, user: User, tmp_path: Path, command: str) -> None:
    """The shell's output, or its lack, is all that its user has; exec tells that the status is missing."""
    begun, go, end = (tmp_path / name for name in ("begun", "go", "end"))
    script = tmp_path / "script"
    script.write_text(
        f"stty raw -echo\n: > {begun}\nuntil [ -e {go} ]; do sleep 0.05; done\n"
        f"head -c {LOST_MESSAGES * 1024} /dev/zero\nuntil [ -e {end} ]; do sleep 0.05; done\necho behind it\n"
    )
    arguments = {"shell": ["shell", EMBEDDED], "exec": ["exec", "-t", EMBEDDED, "--", "sh", str(script)]}[command]
    with start(user, arguments) as process:
        assert process.stdin is not None
        if command == "shell":
            process.stdin.write(f"exec sh {script}\n".encode())
            process.stdin.flush()
        wait_until(begun.exists, "the command runs")
        lose_what_follows(service, go.touch)
        end.touch()
        _, errors = process.communicate(timeout=WITHIN)
    lines = errors.decode().splitlines()
    if command == "shell":
        assert (process.returncode, lines[0]) == (9, f"ssm-proxy: error: {MESSAGE}")
    else:
        what = "the session ended, and the command's exit status did not come"
        assert (process.returncode, lines[0]) == (255, f"ssm-proxy: error: {what}")
    assert lines[1] == f"ssm-proxy: cause: {CAUSE}"
    assert len(lines) == 3
