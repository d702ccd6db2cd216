"""Fixtures of the tests with real programs. What they are made of is in nodes.py."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from copies import Copier, InTheMiddle
from nodes import (
    EMBEDDED,
    HYBRID,
    REAL,
    BecomeUser,
    Key,
    MakeUser,
    Sshd,
    StartEmulator,
    TimeBegins,
    User,
    check_processes,
    check_sessions,
    make_user,
    tool,
    wait_until,
)

from ssm_proxy.api import asyncio_streams, commands, session_thread
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that both servers let in."""
    tool("ssh")
    tool("ssh-keygen")
    return Key.make(tmp_path_factory.mktemp("key") / "id_ed25519")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Iterator[Sshd]:
    """A real sshd for everybody."""
    tool("sshd")
    with Sshd(tmp_path_factory.mktemp("sshd"), key.public) as server:
        yield server


def _options(key: Key, sshd: Sshd, **changes: Any) -> EmulatorOptions:
    nodes = (
        Node(node_id=EMBEDDED),
        Node(node_id=HYBRID),
        Node(node_id=REAL, ssh_address=("127.0.0.1", sshd.port)),
    )
    return EmulatorOptions(**{"nodes": nodes, "authorized_keys": key.public, "agent_pace_s": 0.0, **changes})


@pytest.fixture(scope="session")
def shared_emulator(key: Key, sshd: Sshd) -> Iterator[Emulator]:
    with Emulator(_options(key, sshd, require_signed_open=True)) as shared:
        yield shared


@pytest.fixture
def emulator(shared_emulator: Emulator) -> Iterator[Emulator]:
    """An emulator without faults and without pauses, for all tests that leave it so. No session may be left open."""
    yield shared_emulator
    shared_emulator.set_faults(Faults())  # not for the tests that come after
    check_sessions(shared_emulator)


@pytest.fixture
def start_emulator(key: Key, sshd: Sshd) -> Iterator[StartEmulator]:
    """Start emulators for one test: takes what EmulatorOptions take. At the end no session may be left open."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> Emulator:
            running = stack.enter_context(Emulator(_options(key, sshd, **changes)))
            stack.callback(check_sessions, running)
            return running

        yield start


@pytest.fixture(params=[EMBEDDED, REAL], ids=["embedded", "sshd"])
def host(request: pytest.FixtureRequest) -> str:
    """A managed node; each test that asks for it runs against both kinds."""
    node: str = request.param
    return node


@pytest.fixture
def new_user(key: Key, sshd: Sshd, start_emulator: StartEmulator) -> Iterator[MakeUser]:
    """Make users of an emulator: takes what make_user takes. At the end no process of theirs may be left."""
    users: list[User] = []
    # Not pytest's folder: its path may be too long for a control socket.
    with tempfile.TemporaryDirectory(prefix="ssm-") as folder:

        def make(emulator: Emulator | None, host: str = EMBEDDED, **changes: Any) -> User:
            place = Path(folder) / str(len(users))
            users.append(make_user(place, host=host, key=key, emulator=emulator, **{"sshd": sshd, **changes}))
            return users[-1]

        yield make
        for user in users:
            check_processes(user)


@pytest.fixture
def user(emulator: Emulator, host: str, new_user: MakeUser) -> User:
    """A user of the shared emulator, on each kind of node."""
    return new_user(emulator, host)


@pytest.fixture
def copier(user: User, emulator: Emulator) -> Copier:
    """Somebody who copies to and from each kind of node."""
    return Copier(user=user, emulator=emulator)


@pytest.fixture
def real(emulator: Emulator, new_user: MakeUser) -> Copier:
    """Somebody who copies to and from a real sshd."""
    return Copier(user=new_user(emulator, REAL), emulator=emulator)


@pytest.fixture
def in_the_middle(monkeypatch: pytest.MonkeyPatch) -> InTheMiddle:
    """Have something done while large files are copied."""
    return InTheMiddle(monkeypatch)


@pytest.fixture
def become_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BecomeUser:
    """Make this very process a user of an emulator, one with no other AWS settings."""

    def become(emulator: Emulator) -> None:
        for name in os.environ:
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        settings = {
            "AWS_CONFIG_FILE": str(tmp_path / "aws_config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws_credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            **emulator.environment(),
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture
def time_begins(monkeypatch: pytest.MonkeyPatch) -> TimeBegins:
    """Have the time that a program gives a session begin when something has come true, however long that took."""
    start = SessionThread.start

    def begin_when(is_true: Callable[[SessionThread], object]) -> None:
        def start_and_wait(self: SessionThread) -> None:
            start(self)
            wait_until(lambda: is_true(self), "the time begins")

        monkeypatch.setattr(SessionThread, "start", start_and_wait)
        for module in (session_thread, commands, asyncio_streams):
            monkeypatch.setattr(module, "STOP_TIMEOUT", 60.0)  # its end tells what kept it from beginning

    return begin_when
