"""ssh itself: bytes, exit status, terminal, ends; by examples/ssh_config, to names that nothing can resolve."""

from __future__ import annotations

import os
import subprocess

import pytest
from nodes import EMBEDDED, HYBRID, MIB, MakeUser, Sshd, StartEmulator, User, ending, exchange, session_states

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("status", [0, 3, 255])
def test_exit_status_is_the_remote_commands_own(user: User, status: int) -> None:
    done = user.ssh(f"exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_output_and_errors_stay_apart(user: User) -> None:
    done = user.ssh("echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


def test_every_byte_value_goes_there_and_back(user: User) -> None:
    data = bytes(range(256)) * 100
    assert user.output("cat; echo end", data=data) == data + b"end\n"


def test_blocks_from_one_byte_to_256_kib_come_back_as_they_are_sent(user: User) -> None:
    with user.open("echo ready; exec cat") as process:
        for size in (1, 10, 100, 1000, 1023, 1024, 1025, 32768, 65536, 262144):
            block = b"\n" if size == 1 else os.urandom(size)
            assert exchange(process, block, size=size) == block, size
        assert ending(process) == (0, "")


def test_one_megabyte_of_line_feeds(user: User) -> None:
    assert user.output("cat", data=b"\n" * MIB) == b"\n" * MIB


def test_a_terminal_of_the_remote_side_and_ctrl_c_in_it(user: User) -> None:
    script = "trap 'echo interrupted; exit 7' INT; test -t 0 && test -t 1 && echo ready; sleep 30 & wait"
    process = user.start("-tt", user.host, script)
    with process:
        exchange(process, b"", until=b"ready\r\n")
        answer = exchange(process, b"\x03", until=b"interrupted\r\n")
        assert b"interrupted" in answer
        status, errors = ending(process)
    assert status == 7
    assert errors.split() in ([], ["Connection", "to", user.host, "closed."])


def test_a_command_that_closes_early_does_not_hang_on_its_input(user: User) -> None:
    done = user.ssh("head -c 10", data=b"0123456789" + b"x" * (8 * MIB))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0123456789", b"")


def test_input_from_a_file_that_the_command_ignores(user: User) -> None:
    big = user.folder / "big"
    with big.open("wb") as file:
        file.truncate(32 * MIB)
    with big.open("rb") as file:
        done = subprocess.run(
            user.command("ssh", user.host, "true"),
            env=user.environment,
            stdin=file,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_there_is_no_other_way_to_the_node(user: User, emulator: Emulator) -> None:
    direct = user.ssh("true", "-o", "ProxyCommand=none")
    assert direct.returncode == 255
    assert b"Could not resolve hostname" in direct.stderr
    before = len(session_states(emulator))
    assert user.output("echo here") == b"here\n"
    assert session_states(emulator)[before:] == ["Terminated"]


def test_a_hybrid_node(new_user: MakeUser, emulator: Emulator) -> None:
    assert new_user(emulator, HYBRID).output("echo here") == b"here\n"


def test_another_port_of_the_node(new_user: MakeUser, emulator: Emulator, sshd: Sshd) -> None:
    user = new_user(emulator, EMBEDDED)
    keys = user.folder / "other_known_hosts"
    keys.write_text(f"[{EMBEDDED}]:{sshd.port} {sshd.host_key.public.read_text()}")
    assert user.output("echo here", "-p", str(sshd.port), "-o", f"UserKnownHostsFile={keys}") == b"here\n"


def test_the_host_key_of_a_new_node_is_accepted_and_kept(new_user: MakeUser, emulator: Emulator) -> None:
    user = new_user(emulator, EMBEDDED)
    keys = user.folder / "new_known_hosts"
    first = user.ssh("true", "-o", f"UserKnownHostsFile={keys}")
    assert first.returncode == 0
    assert b"Permanently added" in first.stderr
    assert user.output("echo again", "-o", f"UserKnownHostsFile={keys}") == b"again\n"


def test_tls_with_the_authority_of_the_environment(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    user = new_user(start_emulator(tls=True, require_signed_open=True))
    assert user.output("cat", data=b"x" * MIB) == b"x" * MIB
