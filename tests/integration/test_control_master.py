"""One session for many connections: ControlMaster and ControlPersist."""

from __future__ import annotations

import os
import subprocess

import pytest
from nodes import EMBEDDED, MIB, MakeUser, StartEmulator, User, open_sessions, quiet, session_states, wait_until

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration


def make_sharing_user(emulator: Emulator, new_user: MakeUser, host: str, persist: str) -> User:
    user = new_user(emulator, host)
    settings = f"ControlMaster auto\nControlPath {user.folder}/c\nControlPersist {persist}\n"
    user.config.write_text(settings + user.config.read_text())
    return user


def test_many_commands_over_one_session(emulator: Emulator, new_user: MakeUser, host: str) -> None:
    user = make_sharing_user(emulator, new_user, host, "60")
    before = len(session_states(emulator))
    data = os.urandom(MIB)
    assert user.output("echo first") == b"first\n"
    master = user.processes()
    assert user.output("cat", data=data) == data
    assert user.ssh("exit 7").returncode == 7
    quiet(user.run("scp", user.config, user.remote(user.folder / "copy")))
    assert (user.folder / "copy").read_bytes() == user.config.read_bytes()
    assert user.processes() == master, "nothing but the master and its proxy stays"
    assert len(session_states(emulator)) == before + 1

    check = user.run("ssh", "-O", "check", user.host)
    assert (check.returncode, check.stderr[:14]) == (0, b"Master running")
    leave = user.run("ssh", "-O", "exit", user.host)
    assert (leave.returncode, leave.stderr) == (0, b"Exit request sent.\r\n")
    wait_until(lambda: not user.processes(), "master and proxy are gone")
    wait_until(lambda: not open_sessions(emulator), "the session is terminated")


def test_the_master_in_the_background_lets_go_of_standard_error(
    emulator: Emulator, new_user: MakeUser, host: str
) -> None:
    user = make_sharing_user(emulator, new_user, host, "60")
    with subprocess.Popen(
        user.command("ssh", user.host, "echo first"),
        env=user.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as first:
        # Both pipes end although the master lives on: whoever waits for their end, as Ansible does, is not held up.
        assert first.communicate(timeout=60) == (b"first\n", b"")
    assert os.readlink(f"/proc/{user.proxy().pid}/fd/2") == os.devnull
    data = os.urandom(2 * MIB)
    assert user.output("cat", data=data) == data
    user.run("ssh", "-O", "exit", user.host)


def test_the_master_leaves_by_itself(emulator: Emulator, new_user: MakeUser) -> None:
    user = make_sharing_user(emulator, new_user, EMBEDDED, "1")
    assert user.output("echo first") == b"first\n"
    wait_until(lambda: not user.processes(), "master and proxy are gone")
    wait_until(lambda: not open_sessions(emulator), "the session is terminated")


def test_without_it_each_command_has_a_session(user: User, emulator: Emulator) -> None:
    before = len(session_states(emulator))
    assert user.output("echo one") == b"one\n"
    assert user.output("echo two") == b"two\n"
    assert session_states(emulator)[before:] == ["Terminated", "Terminated"]


def test_an_error_is_seen_although_standard_error_is_thrown_away(
    start_emulator: StartEmulator, new_user: MakeUser
) -> None:
    emulator = start_emulator()
    emulator.set_online(EMBEDDED, False)
    user = make_sharing_user(emulator, new_user, EMBEDDED, "60")
    done = user.ssh("true")
    assert done.returncode == 255
    assert b"ssm-proxy: error: target '" + EMBEDDED.encode() + b"' is not connected to Session Manager" in done.stderr
    assert b"ssm-proxy: hint: check that region and account are right" in done.stderr
    wrong = user.run("ssh", "-o", "ProxyCommand=ssm-proxy proxy web-7 %p", user.host, "true")
    assert b":11: ssm-proxy: error: 'web-7' is not the id of a managed node" in wrong.stderr
    # Where standard error is read, it is said there and nowhere else.
    plain = user.ssh("true", "-o", "ControlPath=none")
    assert plain.stderr.count(b"is not connected to Session Manager") == 1
    assert plain.stderr.startswith(b"ssm-proxy: error: ")
