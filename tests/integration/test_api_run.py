"""`ssm_proxy.run`: a command's output and its status."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from nodes import EMBEDDED, BecomeUser, StartEmulator, TimeBegins, open_sessions, wait_until

import ssm_proxy
from bench.processes import is_running
from ssm_proxy.emulator import Credentials, Emulator, Faults

pytestmark = pytest.mark.integration


@pytest.fixture
def service(start_emulator: StartEmulator, become_user: BecomeUser) -> Emulator:
    emulator = start_emulator(require_signed_open=True)
    become_user(emulator)
    return emulator


def test_output_and_status(service: Emulator) -> None:
    argv = ["sh", "-c", 'echo out; echo err >&2; printf "$1"; exit 7', "x", "two  words {{ 'x' }}"]
    result = ssm_proxy.run(EMBEDDED, argv)
    assert (result.stdout, result.stderr, result.status) == (b"out\ntwo  words {{ 'x' }}", b"err\n", 7)
    assert result.argv == tuple(argv)
    with pytest.raises(ssm_proxy.CommandFailed, match=r"'sh' on i-0123456789abcdef0 ended with status 7") as caught:
        result.check()
    assert (caught.value.status, caught.value.stdout, caught.value.stderr) == (7, result.stdout, b"err\n")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.status = 0  # type: ignore[misc]
    assert "stdout" not in repr(result)  # it may be long, and secret
    assert ssm_proxy.run(EMBEDDED, ["true"]).check().status == 0
    assert ssm_proxy.run(EMBEDDED, ["sh", "-c", "kill -9 $$"]).status == 128 + signal.SIGKILL


def test_from_many_threads(service: Emulator) -> None:
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda number: ssm_proxy.run(EMBEDDED, ["echo", str(number)]), range(5)))
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(5)]


def test_a_command_that_takes_too_long_is_ended(service: Emulator, tmp_path: Path, time_begins: TimeBegins) -> None:
    place = tmp_path / "pid"
    time_begins(lambda thread: thread.begun.done() and place.exists() and place.read_text().endswith("\n"))
    with pytest.raises(ssm_proxy.TransportTimeout, match=r"did not end within 0\.5 s"):
        ssm_proxy.run(EMBEDDED, ["sh", "-c", f"echo $$ >{place}; exec sleep 600"], timeout=0.5)
    assert open_sessions(service) == []
    pid = int(place.read_text())
    wait_until(lambda: not is_running(pid), "the command is ended on the node")


def test_a_session_that_ends_before_its_command(service: Emulator) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ssm_proxy.run, EMBEDDED, ["sleep", "60"])
        wait_until(lambda: open_sessions(service) == ["Connected"], "the session has begun")
        service.set_faults(Faults(idle_timeout_s=0.1))
        with pytest.raises(ssm_proxy.SessionEnded, match="exit status did not come"):
            running.result()


def test_a_command_that_was_not_begun_in_time(service: Emulator, tmp_path: Path, time_begins: TimeBegins) -> None:
    place = tmp_path / "pid"
    time_begins(lambda _: open_sessions(service))
    service.set_faults(Faults(stall_agent_s=60))
    with pytest.raises(ssm_proxy.TransportTimeout, match=r"for 'touch', which was not run, within 0\.5 s"):
        ssm_proxy.run(EMBEDDED, ["touch", place], timeout=0.5)
    service.set_faults(Faults(throttle_start=-1))
    time_begins(lambda _: service.statistics()["throttled_starts"])
    with pytest.raises(ssm_proxy.Throttled, match=r"for 'touch', which was not run, within 0\.5 s") as caught:
        ssm_proxy.run(EMBEDDED, ["touch", str(place)], timeout=0.5)
    assert "StartSession is throttled" in str(caught.value.cause)
    assert not place.exists()
    assert open_sessions(service) == []


def test_its_error_reaches_the_parent_of_a_process(service: Emulator) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(ssm_proxy.CommandFailed) as caught:
            pool.submit(run_and_check, ["sh", "-c", "echo why >&2; exit 3"]).result()
        assert pool.submit(run_and_check, ["true"]).result() == 0
    assert (caught.value.status, caught.value.stderr) == (3, b"why\n")


def run_and_check(argv: list[str]) -> int:
    return ssm_proxy.run(EMBEDDED, argv).check().status


@pytest.mark.parametrize("argv", ["ls -l", b"ls", [], ["\ud800"], ["ls", 5], ["ls", b"x"], ["echo", "a\0b"], None])
def test_what_is_no_command(argv: list[str]) -> None:
    with pytest.raises(ssm_proxy.UsageError):
        ssm_proxy.run(EMBEDDED, argv)


def test_what_no_function_takes(service: Emulator) -> None:
    port = 22
    for target in (None, 5, b"i-0123456789abcdef0", ""):
        for use in (
            lambda target: ssm_proxy.connect(target),
            lambda target: ssm_proxy.run(target, ["true"]),
            lambda target: ssm_proxy.forward(target, port).__enter__(),
            lambda target: ssm_proxy.ssh_client(target),
            lambda target: asyncio.run(ssm_proxy.open_connection(target)),
        ):
            with pytest.raises(ssm_proxy.UsageError, match="is not a target"):
                use(target)
    for timeout in (-1, True, "5", float("inf"), float("nan")):
        for use in (
            lambda timeout: ssm_proxy.connect(EMBEDDED, timeout=timeout),
            lambda timeout: ssm_proxy.run(EMBEDDED, ["true"], timeout=timeout),
            lambda timeout: ssm_proxy.forward(EMBEDDED, port, timeout=timeout).__enter__(),
            lambda timeout: ssm_proxy.ssh_client(EMBEDDED, timeout=timeout),
            lambda timeout: ssm_proxy.copy("x", f"{EMBEDDED}:", timeout=timeout),
            lambda timeout: asyncio.run(ssm_proxy.open_connection(EMBEDDED, timeout=timeout)),
        ):
            with pytest.raises(ssm_proxy.UsageError, match="cannot be used"):
                use(timeout)
    for call in (
        lambda: ssm_proxy.ssh_client(EMBEDDED, timeout=None),  # type: ignore[arg-type]
        lambda: ssm_proxy.copy("x", f"{EMBEDDED}:", timeout=None),  # type: ignore[arg-type]
        lambda: ssm_proxy.ssh_client(EMBEDDED, port="22"),  # type: ignore[arg-type]
        lambda: ssm_proxy.ssh_client(EMBEDDED, username=5),  # type: ignore[arg-type]
        lambda: ssm_proxy.copy([b"x"], f"{EMBEDDED}:"),  # type: ignore[list-item]
        lambda: ssm_proxy.copy(b"x", f"{EMBEDDED}:"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ssm_proxy.UsageError):
            call()
    assert service.sessions() == []


# --- a session of boto3 -----------------------------------------------------------------------------------------------

KEYS = Credentials(access_key_id="AKIDOFTHEPROGRAM", secret_access_key="of the program", session_token="a token")


@pytest.fixture
def program_session(service: Emulator, monkeypatch: pytest.MonkeyPatch) -> boto3.Session:
    """Give a session with the only credentials and the only region that are right."""
    service.rotate_credentials(KEYS)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDWRONG")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    return boto3.Session(
        aws_access_key_id=KEYS.access_key_id,
        aws_secret_access_key=KEYS.secret_access_key,
        aws_session_token=KEYS.session_token,
        region_name="eu-west-3",
    )


def test_its_credentials_are_used_for_everything(service: Emulator, program_session: boto3.Session) -> None:
    with pytest.raises(ssm_proxy.ConfigurationError):
        ssm_proxy.run(EMBEDDED, ["true"], region="eu-west-3")
    assert ssm_proxy.run(EMBEDDED, ["echo", "hello"], session=program_session).stdout == b"hello\n"
    with ssm_proxy.connect(EMBEDDED, session=program_session) as connection:
        assert connection.recv(4) == b"SSH-"
        service.drop_connections()  # resumed with them too
        connection.sendall(b"SSH-2.0-x\r\n")
        assert connection.recv(4)
    assert {session.status for session in service.sessions()} == {"Terminated"}  # terminated with them too


def test_it_may_be_used_by_many_threads(service: Emulator, program_session: boto3.Session) -> None:
    def use(_: int) -> bytes:
        with ssm_proxy.connect(EMBEDDED, session=program_session) as connection:
            return connection.recv(4)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(use, range(6))) == {b"SSH-"}


def test_its_region_can_be_replaced(service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    without = boto3.Session(aws_access_key_id="emulator", aws_secret_access_key="emulator")
    with pytest.raises(ssm_proxy.ConfigurationError, match="region"):
        ssm_proxy.run(EMBEDDED, ["true"], session=without)
    assert ssm_proxy.run(EMBEDDED, ["true"], session=without, region="eu-west-1").status == 0


def test_what_is_no_session() -> None:
    with pytest.raises(ssm_proxy.UsageError, match="session is a str"):
        ssm_proxy.run(EMBEDDED, ["true"], session="default")
    with pytest.raises(ssm_proxy.UsageError, match="exclude each other"):
        ssm_proxy.run(EMBEDDED, ["true"], session=boto3.Session(), profile="default")
