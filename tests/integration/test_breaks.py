"""Transfers during which the WebSocket breaks: nothing is lost or comes twice, and ssh notices nothing but a pause.

Each transfer must have needed so many connections: a break that did not happen proves nothing. Output comes at the pace
of a real agent. After a break the agent repeats one message every 100 ms, and those that were under way are lost:
without its pace they would be thousands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

import pytest
from nodes import (
    EMBEDDED,
    MIB,
    REAL,
    MakeUser,
    StartEmulator,
    User,
    ending,
    exchange,
    quiet,
    wait_until,
)

from ssm_proxy.emulator import Credentials, Emulator, Faults

pytestmark = pytest.mark.integration
DIRECTIONS = pytest.mark.parametrize("direction", ["up", "down"])
MANNERS = ("reset", "fin", "close-1000", "close-1001")
SIZE = {"up": 4 * MIB, "down": 2 * MIB}
PACE = 0.001
SERVICE_LOG = "ssm_proxy.emulator.service"


def transfer(user: User, direction: str, folder: Path, timeout: float = 100) -> None:
    """Copy a file with scp; it must arrive unchanged, and scp has nothing to say."""
    here, there = folder / "here", folder / "there"
    here.write_bytes(os.urandom(SIZE[direction]))
    arguments = (here, user.remote(there)) if direction == "up" else (user.remote(here), there)
    quiet(user.run("scp", *arguments, timeout=timeout))
    assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(here.read_bytes()).digest()


def connections(emulator: Emulator) -> int:
    """Give how many WebSockets the only session has had."""
    (session,) = emulator.sessions()
    return session.connections


def has_connections(emulator: Emulator, count: int) -> bool:
    return connections(emulator) == count


@DIRECTIONS
@pytest.mark.parametrize("manner", MANNERS)
def test_the_client_side_breaks_several_times(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path, direction: str, manner: str
) -> None:
    faults = Faults(drop_after_bytes=500_000, drop_times=3, drop_manner=manner)
    emulator = start_emulator(agent_pace_s=PACE, faults=faults)
    transfer(new_user(emulator, REAL), direction, tmp_path)
    assert connections(emulator) == 4


@DIRECTIONS
def test_the_client_side_breaks_once(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path, direction: str
) -> None:
    emulator = start_emulator(agent_pace_s=PACE, faults=Faults(drop_after_bytes=1_000_000, drop_times=1))
    transfer(new_user(emulator, EMBEDDED), direction, tmp_path)
    assert connections(emulator) == 2


@DIRECTIONS
def test_the_agents_side_breaks_several_times(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path, direction: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, SERVICE_LOG)
    # Output has the agent's own pace; input is held back, so that it lasts.
    faults = Faults(
        drop_every_s=0.7,
        drop_times=2,
        drop_side="agent",
        agent_away_s=0.03,  # what the agent sends meanwhile, it repeats only slowly
        direction="input",
        bandwidth=2_000_000,
        queue_bytes=20_000,
    )
    emulator = start_emulator(agent_pace_s=PACE, faults=faults)
    transfer(new_user(emulator, REAL), direction, tmp_path)
    assert connections(emulator) == 1
    assert sum("agent connection cut" in text for text in caplog.messages) == 2


@DIRECTIONS
def test_breaks_with_loss_duplicates_and_disorder_on_top(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path, direction: str
) -> None:
    faults = Faults(drop_after_bytes=700_000, drop_times=2, lose=0.005, duplicate=0.02, reorder=0.02)
    emulator = start_emulator(agent_pace_s=PACE, faults=faults, seed=1)
    transfer(new_user(emulator, REAL), direction, tmp_path)
    assert connections(emulator) == 3


def test_both_directions_at_once(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    faults = Faults(drop_after_bytes=1_000_000, drop_times=3, drop_manner="close-1000")
    emulator = start_emulator(agent_pace_s=PACE, faults=faults)
    data = os.urandom(2 * MIB)
    assert new_user(emulator, EMBEDDED).output("cat", data=data) == data
    assert connections(emulator) == 4


def test_a_break_of_an_idle_tunnel_is_not_seen(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    with new_user(emulator).open("echo ready; exec cat") as process:
        for count, manner in enumerate(MANNERS, start=2):
            emulator.drop_connections("client", manner)
            wait_until(partial(has_connections, emulator, count), "it is connected again")
            assert exchange(process, b"still here\n", until=b"\n") == b"still here\n"
        assert ending(process) == (0, "")


@pytest.mark.slow
@DIRECTIONS
def test_a_connection_that_went_silent(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path, direction: str
) -> None:
    faults = Faults(drop_after_bytes=500_000, drop_times=1, drop_manner="blackhole")
    emulator = start_emulator(agent_pace_s=PACE, faults=faults)
    transfer(new_user(emulator, REAL), direction, tmp_path, timeout=110)
    assert connections(emulator) == 2


# --- ResumeSession --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "answer"), [("throttle", "ResumeSession 400 ThrottlingException"), ("error", "ResumeSession 500")]
)
def test_resuming_is_refused_at_first(
    start_emulator: StartEmulator, new_user: MakeUser, caplog: pytest.LogCaptureFixture, refusal: str, answer: str
) -> None:
    caplog.set_level(logging.INFO, SERVICE_LOG)
    emulator = start_emulator(faults=Faults(refuse_resume=refusal))
    data = os.urandom(MIB)
    with new_user(emulator).open("echo ready; exec cat") as process:
        emulator.drop_connections("client", "reset")
        wait_until(lambda: any(answer in text for text in caplog.messages), "resuming was refused")
        emulator.set_faults(Faults())
        assert exchange(process, data, size=len(data)) == data
        assert ending(process) == (0, "")
    assert connections(emulator) == 2


def test_resuming_finds_the_session_gone(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(faults=Faults(refuse_resume="gone"))
    user = new_user(emulator)
    with user.open("echo ready; exec cat") as process:
        emulator.drop_connections("client", "close-1000")
        status, errors = ending(process)
    assert status == 255
    assert f"ssm-proxy: error: the session to {EMBEDDED} is over\n" in errors
    assert "ssm-proxy: cause: the service does not know it any more" in errors
    assert "ssm-proxy: hint: connect again" in errors


def test_the_service_ends_an_idle_session(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    with new_user(emulator).open("echo ready; exec sleep 600") as process:
        emulator.set_faults(Faults(idle_timeout_s=0.5))  # not before: ssh's beginning may be slow
        status, errors = ending(process)
    assert status == 255
    assert f"ssm-proxy: error: the service ended the session to {EMBEDDED}\n" in errors
    assert "timed out due to inactivity" in errors
    assert "ServerAliveInterval" in errors


# --- credentials ----------------------------------------------------------------------------------------------------

OLD = Credentials(access_key_id="AKIAOLD", secret_access_key="old secret", session_token="old token")
NEW = Credentials(access_key_id="AKIANEW", secret_access_key="new secret", session_token="new token")


def write_shared_file(folder: Path, credentials: Credentials) -> None:
    """Write what the AWS CLI and login tools rewrite from time to time."""
    (folder / "aws_credentials").write_text(
        f"[work]\naws_access_key_id = {credentials.access_key_id}\n"
        f"aws_secret_access_key = {credentials.secret_access_key}\naws_session_token = {credentials.session_token}\n"
    )


def write_process(folder: Path, credentials: Credentials) -> None:
    """Write a credential_process, whose credentials are about to expire each time."""
    expiration = datetime.now(timezone.utc) + timedelta(minutes=5)
    answer = {
        "Version": 1,
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "SessionToken": credentials.session_token,
        "Expiration": expiration.isoformat(),
    }
    (folder / "answer").write_text(json.dumps(answer))
    command = f"{sys.executable} -c \"print(open('{folder / 'answer'}').read())\""
    (folder / "aws_config").write_text(f"[profile work]\ncredential_process = {command}\n")


@pytest.mark.parametrize("write", [write_shared_file, write_process], ids=["shared-file", "credential-process"])
def test_credentials_change_while_the_tunnel_is_up(
    start_emulator: StartEmulator, new_user: MakeUser, write: Callable[[Path, Credentials], None]
) -> None:
    emulator = start_emulator(credentials=OLD, require_signed_open=True)
    user = new_user(emulator, environment={"AWS_PROFILE": "work"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert isinstance(user.environment, dict)
        del user.environment[name]
    write(user.folder, OLD)
    data = os.urandom(MIB)
    with user.open("echo ready; exec cat") as process:
        write(user.folder, NEW)
        emulator.rotate_credentials(NEW)
        emulator.drop_connections("client", "reset")
        assert exchange(process, data, size=len(data)) == data
        assert ending(process) == (0, "")
    assert connections(emulator) == 2


# --- many -----------------------------------------------------------------------------------------------------------


def test_ten_tunnels_break_at_once(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    users = [new_user(emulator) for _ in range(10)]
    processes = [user.start(user.host, "echo ready; exec cat") for user in users]
    try:
        with ThreadPoolExecutor(len(users)) as threads:
            list(threads.map(lambda process: exchange(process, b"", until=b"ready\n"), processes))
            assert emulator.drop_connections("client", "reset") == len(users)
            blocks = [os.urandom(100_000) for _ in users]
            jobs = zip(processes, blocks, strict=True)
            assert list(threads.map(lambda job: exchange(job[0], job[1], size=100_000), jobs)) == blocks
            endings = list(threads.map(ending, processes))
        # The shells on the node may quarrel over what they do at their start; that is theirs to tell.
        assert [(status, "ssm-proxy" in errors) for status, errors in endings] == [(0, False)] * len(users)
    finally:
        for process in processes:
            with process:
                process.kill()
    assert [session.connections for session in emulator.sessions()] == [2] * len(users)
