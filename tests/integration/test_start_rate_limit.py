"""Many processes that start sessions at once, against a service that answers only so many per second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from filelock import FileLock
from nodes import EMBEDDED, BecomeUser, MakeUser, StartEmulator, User, ending, wait_until

import ssm_proxy
from ssm_proxy.aws import start_rate
from ssm_proxy.aws.start_rate import Pace, first_pace, from_text, to_text
from ssm_proxy.emulator import Emulator, Faults

pytestmark = pytest.mark.integration
HERD = Path(__file__).with_name("start_herd.py")
COUNT = 40
RATE = 10.0


def herd(user: User, count: int, **environment: str) -> int:
    """Start so many processes at once; give how many had their session."""
    done = subprocess.run(
        [sys.executable, HERD, EMBEDDED, str(count)],
        env={**user.environment, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def refused(emulator: Emulator) -> int:
    count: int = emulator.statistics()["throttled_starts"]
    return count


def state_file(user: User) -> Path:
    (found,) = (user.folder / ".cache" / "ssm-proxy").glob("starts-*.json")
    return found


def read_pace(user: User) -> Pace:
    pace = from_text(state_file(user).read_bytes())
    assert pace is not None
    return pace


def change_pace(user: User, change: Callable[[Pace], Pace]) -> None:
    """Change the file as the processes do, which may be about to."""
    path = state_file(user)
    with FileLock(path.with_name("starts.lock"), mode=0o600):
        path.with_suffix(".changed").write_text(to_text(change(read_pace(user))))
        path.with_suffix(".changed").replace(path)


def test_forty_processes_share_a_budget(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    # The first is refused however slowly they come, and from there on all know that there is a limit.
    emulator = start_emulator(faults=Faults(start_rate=RATE, throttle_start=1))
    user = new_user(emulator)
    assert herd(user, 5) == 5
    assert refused(emulator) > 0
    pace = read_pace(user)
    assert 0.5 < pace.rate < 3 * RATE

    before = refused(emulator)
    assert herd(user, COUNT) == COUNT
    with_budget = refused(emulator) - before

    # For a machine on which they come one by one: no turn comes for a second one meanwhile.
    emulator.set_faults(Faults(start_rate=RATE / 1e6))
    before = refused(emulator)
    # No folder, no budget: botocore's own repeats, and fewer of them so that this ends.
    herd(user, COUNT, XDG_CACHE_HOME="/dev/null", AWS_MAX_ATTEMPTS="2")
    without = refused(emulator) - before
    assert with_budget * 3 < without, (with_budget, without)


def proxy(user: User, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ssm-proxy", "proxy", *options, EMBEDDED],
        env=user.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def throttled(start_emulator: StartEmulator, new_user: MakeUser) -> tuple[Emulator, User]:
    """A user one of whose processes was refused, so that there is a file."""
    emulator = start_emulator(faults=Faults(throttle_start=1))
    user = new_user(emulator)
    assert herd(user, 1) == 1
    return emulator, user


def write_queue(user: User, *, length: float, rate: float = 1.0) -> None:
    """Have others wait who come first."""
    change_pace(user, lambda _: first_pace(time.time())._replace(rate=rate, given_out=length))


@pytest.mark.parametrize("manner", ["ssh goes", "a signal"])
def test_waiting_ends_at_once(throttled: tuple[Emulator, User], manner: str) -> None:
    emulator, user = throttled
    write_queue(user, length=200)
    calls = emulator.statistics()["start_calls"]
    with proxy(user) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline().decode()
            assert line.startswith("ssm-proxy: StartSession is throttled; this one goes out in about ")
            assert process.stdin is not None
            if manner == "a signal":
                process.send_signal(signal.SIGTERM)
            else:
                process.stdin.close()
                process.stdin = None
                assert process.stdout is not None
                process.stdout.close()
            status = process.wait(20)
        finally:
            process.kill()
    assert status == (128 + signal.SIGTERM if manner == "a signal" else 0)
    assert emulator.statistics()["start_calls"] == calls, "no session was started that nobody wanted"
    pace = read_pace(user)
    assert (pace.waiting, pace.given_out) == ({}, 200), "its number was given back"


def test_a_tunnel_that_waited_for_its_turn(throttled: tuple[Emulator, User]) -> None:
    _, user = throttled
    write_queue(user, length=200)  # more seconds than any machine takes to get there
    with user.start(EMBEDDED, "echo there") as ssh:
        assert ssh.stderr is not None
        assert ssh.stderr.readline().startswith(b"ssm-proxy: StartSession is throttled; this one goes out in about ")
        change_pace(user, lambda pace: pace.caught_up(time.time())._replace(rate=100))
        status, errors = ending(ssh)
    assert (status, errors) == (0, "")


def told(ssh: subprocess.Popen[bytes]) -> str:
    """Give what ssh's proxy says of its turn, without the time."""
    assert ssh.stderr is not None
    before, _, others = ssh.stderr.readline().decode().partition(" s, ")
    assert before.startswith("ssm-proxy: StartSession is throttled; this one goes out in about ")
    return others.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="who has ended is known on Linux only")
def test_the_turns_of_those_who_were_killed_are_skipped(throttled: tuple[Emulator, User]) -> None:
    emulator, user = throttled
    calls = emulator.statistics()["start_calls"]
    write_queue(user, length=20, rate=0.2)  # 100 s
    waiting = []
    numbers = []
    try:
        for _ in range(5):
            waiting.append(user.start(EMBEDDED, "true"))
            assert told(waiting[-1]).endswith(" are before it")
            numbers.append(max(read_pace(user).waiting.values()))
        assert numbers == [20, 21, 22, 23, 24]
        living = [holder for holder, number in read_pace(user).waiting.items() if number == 23]

        killed = [each for each in user.proxies() if f"-{each.pid}-" not in living[0]]
        assert len(killed) == 4
        for each in killed:
            os.kill(each.pid, signal.SIGKILL)
        wait_until(lambda: not any(each.exists() for each in killed), "the killed processes are gone")
        change_pace(user, lambda pace: pace._replace(looked_at=0.0))  # it is time to look again

        waiting.append(user.start(EMBEDDED, "true"))
        count = int(told(waiting[-1]).removesuffix(" are before it"))
        assert count <= 20, "none of those who were killed are counted"
        pace = read_pace(user)
        assert sorted(pace.waiting.values()) == [20, 21]
        assert {pace.waiting[each] for each in living} == {20}, "the order is kept"
        assert emulator.statistics()["start_calls"] == calls

        change_pace(user, lambda pace: pace.caught_up(time.time())._replace(rate=100))
        assert [ending(waiting[place], 30)[0] for place in (3, 5)] == [0, 0]
        assert emulator.statistics()["start_calls"] == calls + 2
    finally:
        for ssh in waiting:
            with ssh:
                ssh.kill()


def test_a_session_of_boto3_waits_for_its_turn_too(
    start_emulator: StartEmulator, become_user: BecomeUser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its default number of attempts is another, but nobody has chosen it."""
    emulator = start_emulator(faults=Faults(throttle_start=7))
    become_user(emulator)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(start_rate, "FIRST_RATE", 20.0)
    with ssm_proxy.connect(EMBEDDED, session=boto3.Session()) as connection:
        assert connection.recv(4) == b"SSH-"
    assert refused(emulator) == 7
