"""However it ends, it ends soon, says why, and leaves neither a process nor a session behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import (
    EMBEDDED,
    REAL,
    WITHIN,
    Key,
    MakeUser,
    Sshd,
    StartEmulator,
    ending,
    exchange,
    open_sessions,
    quiet,
    reserved_port,
    wait_until,
)

from ssm_proxy.emulator import Emulator, Faults, Node

pytestmark = pytest.mark.integration


def test_ssh_is_killed(emulator: Emulator, new_user: MakeUser, host: str) -> None:
    user = new_user(emulator, host)
    with user.open("echo ready; exec cat") as process:
        process.kill()
        wait_until(lambda: not user.processes(), "the proxy is gone")
        wait_until(lambda: not open_sessions(emulator), "the session is terminated")


def test_ssh_is_killed_while_output_flows(emulator: Emulator, new_user: MakeUser, host: str) -> None:
    user = new_user(emulator, host)
    with user.open("echo ready; exec cat /dev/zero") as process:
        exchange(process, b"", size=2_000_000)
        process.kill()
        wait_until(lambda: not user.processes(), "the proxy is gone")
        wait_until(lambda: not open_sessions(emulator), "the session is terminated")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_proxy(emulator: Emulator, new_user: MakeUser, name: str) -> None:
    user = new_user(emulator)
    with user.open("echo ready; exec cat") as process:
        proxy = user.proxy()
        os.kill(proxy.pid, getattr(signal, name))
        wait_until(lambda: not proxy.exists(), "the proxy is gone")
        wait_until(lambda: not open_sessions(emulator), "the session is terminated")
        status, errors = ending(process)
    assert status == 255
    assert "ssm-proxy" not in errors


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGTSTP"])
def test_signals_of_the_terminal_do_not_end_the_proxy(emulator: Emulator, new_user: MakeUser, name: str) -> None:
    user = new_user(emulator)
    with user.open("echo ready; exec cat") as process:
        os.kill(user.proxy().pid, getattr(signal, name))
        assert exchange(process, b"still here\n", until=b"\n") == b"still here\n"
        assert ending(process) == (0, "")


@pytest.mark.parametrize("name", ["proxy", "exec", "forward", "cp"])
def test_two_signals_at_once(emulator: Emulator, new_user: MakeUser, tmp_path: Path, name: str) -> None:
    """As ssh's SIGHUP and somebody's SIGTERM may meet; Python handles both between the same two instructions."""
    user = new_user(emulator)
    is_running = tmp_path / "running"
    arguments = {
        "proxy": [EMBEDDED, "22"],
        "exec": [EMBEDDED, "--", "sh", "-c", f": > '{is_running}'; exec sleep 60"],
        "forward": [EMBEDDED, "0:22"],
        "cp": ["-F", str(user.config), "-", f"{EMBEDDED}:{tmp_path / 'there'}"],
    }[name]
    with subprocess.Popen(
        ["ssm-proxy", name, *arguments],
        env=user.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if name == "proxy":
            assert process.stdout.read(4) == b"SSH-"
        elif name == "forward":
            assert process.stderr.read(10) == b"127.0.0.1:"
        elif name == "exec":
            wait_until(is_running.exists, "the command runs")
        else:
            wait_until(lambda: open_sessions(emulator), "it has a session")
        process.send_signal(signal.SIGSTOP)
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=WITHIN)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGHUP)
    assert b"Traceback" not in errors


def test_the_proxy_is_killed(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    user = new_user(emulator)
    with user.open("echo ready; exec cat") as process:
        os.kill(user.proxy().pid, signal.SIGKILL)
        assert ending(process)[0] == 255
    # Nobody was left to terminate the session; the service does when it has been idle for long enough.
    emulator.set_faults(Faults(idle_timeout_s=0.1))


def test_the_reader_of_ssh_ends_while_the_node_still_sends(emulator: Emulator, new_user: MakeUser) -> None:
    user = new_user(emulator, REAL)  # the embedded server does not know what ssh then says to it (eow@openssh.com)
    with user.open("echo ready; exec cat /dev/zero") as process:
        exchange(process, b"", size=5_000_000)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.wait(WITHIN) in (255, -signal.SIGPIPE)
        wait_until(lambda: not user.processes(), "the proxy is gone")


@pytest.mark.parametrize("whole_server", [True, False], ids=["server", "connection"])
def test_sshd_is_killed(
    start_emulator: StartEmulator, new_user: MakeUser, key: Key, tmp_path: Path, whole_server: bool
) -> None:
    with Sshd(tmp_path, key.public) as server:
        emulator = start_emulator(nodes=[Node(node_id=REAL, ssh_address=("127.0.0.1", server.port))])
        user = new_user(emulator, REAL, sshd=server)
        # The parent of the shell is what sshd runs for this connection; its own parent may be one for privileges.
        with user.open("echo ready; read line; kill -9 $PPID") as process:
            if whole_server:
                server.kill()
            else:
                assert process.stdin is not None
                process.stdin.write(b"now\n")
                process.stdin.flush()
            status, errors = ending(process)
        assert status == 255
        assert errors, "ssh, if nobody else, says that the connection was lost"
        wait_until(lambda: not user.processes(), "the proxy is gone")


# --- what cannot begin ----------------------------------------------------------------------------------------------


def test_nothing_listens_on_the_port(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    user = new_user(start_emulator())
    with reserved_port() as port:
        done = user.ssh("true", "-p", str(port))
    assert done.returncode == 255
    assert f"ssm-proxy: error: port {port} of {EMBEDDED} did not answer\n" in done.stderr.decode()
    assert "ssm-proxy: cause: " in done.stderr.decode()
    assert "ssm-proxy: hint: check that sshd runs there" in done.stderr.decode()


def test_the_node_is_not_connected(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    user = new_user(start_emulator(nodes=[Node(node_id=EMBEDDED, is_online=False)]))
    done = user.ssh("true")
    assert done.returncode == 255
    assert "ssm-proxy: error: " in done.stderr.decode()
    assert "not connected" in done.stderr.decode()


def test_starting_is_throttled_at_first(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(faults=Faults(throttle_start=2))
    assert new_user(emulator).output("echo here") == b"here\n"


def test_the_opening_is_forbidden(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    user = new_user(start_emulator(faults=Faults(refuse_open=-1)))
    done = user.ssh("true")
    assert done.returncode == 255
    assert "ssmmessages:OpenDataChannel" in done.stderr.decode()


# --- the service goes away ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def emulator_process(key: Key) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Run an emulator that can be killed."""
    command = [sys.executable, "-m", "ssm_proxy", "emulator", "--json", "--authorized-keys", str(key.public)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_the_service_stops_in_an_orderly_way(key: Key, new_user: MakeUser) -> None:
    with emulator_process(key) as (service, announced):
        user = new_user(
            None, environment=announced["environment"], known_hosts=Path(announced["known_hosts"]).read_text()
        )
        with user.open("echo ready; exec cat") as process:
            service.terminate()
            assert ending(process)[0] == 255
        assert service.wait(WITHIN) == 0


def test_the_service_vanishes_for_good(key: Key, new_user: MakeUser) -> None:
    with emulator_process(key) as (service, announced):
        user = new_user(
            None, environment=announced["environment"], known_hosts=Path(announced["known_hosts"]).read_text()
        )
        assert quiet(user.ssh("echo here")) == b"here\n"
        with user.open("echo ready; exec cat") as process:
            service.kill()
            service.wait(WITHIN)
            # What a person sees after a while: that it is being tried. The process goes on trying.
            assert process.stderr is not None
            notice = process.stderr.readline().decode()
            assert notice.startswith("ssm-proxy: connection lost, trying to resume for 15 more minutes (")
            assert len(user.proxies()) == 1
            # Giving up is up to the person, although the service cannot be told.
            process.terminate()
            ending(process)
            wait_until(lambda: not user.processes(), "the proxy is gone")
