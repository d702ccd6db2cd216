"""The user's budget of StartSession calls: its file, its folder, and what becomes of a start, on real files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_service import SESSION, Answer, Service, clear_environment, error, running, write_config
from botocore.config import Config

from ssm_proxy.aws import start_budget, start_rate
from ssm_proxy.aws.control_plane import BotocoreControlPlane, StartedSession
from ssm_proxy.errors import Throttled

REFUSED = error("ThrottlingException", "Rate exceeded")
STARTED = Answer(body=SESSION)


@pytest.fixture(autouse=True)
def home(monkeypatch: Any, tmp_path: Path) -> Path:
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(start_rate, "FIRST_RATE", 50.0)  # nobody wants to wait for a test
    return tmp_path


def plane(service: Service, **options: Any) -> BotocoreControlPlane:
    return BotocoreControlPlane(**{"region": "eu-west-1", "endpoint_url": service.url, **options})


def start(control_plane: BotocoreControlPlane, given_up: threading.Event | None = None) -> StartedSession:
    return control_plane.start_session(
        target="i-0123456789abcdef0", document_name=None, parameters={}, reason=None, given_up=given_up
    )


def state_files(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "ssm-proxy").glob("starts-*.json"))


def state_file(home: Path) -> Path:
    (found,) = state_files(home)
    return found


def pace_in(path: Path) -> start_rate.Pace:
    found = start_rate.from_text(path.read_bytes())
    assert found is not None
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class StoppedClock:
    """The module ``time``, with the time of day standing still; all else goes on."""

    def __init__(self) -> None:
        self._now = time.time()

    def time(self) -> float:
        return self._now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def stop_turns(monkeypatch: Any) -> float:
    """Have the queue stand from now on, however long the test takes: those who are before can be counted.

    Returns:
        The time that it is.
    """
    clock = StoppedClock()
    monkeypatch.setattr(start_budget, "time", clock)
    return clock.time()


def holder_of_an_ended_process() -> str:
    program = "from ssm_proxy.aws.start_holders import new_holder\nprint(new_holder())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def write_queue(path: Path, *, length: float = 500.0, now: float | None = None) -> None:
    """Have hundreds wait: nobody who comes now has its turn within minutes."""
    pace = start_rate.first_pace(time.time() if now is None else now)._replace(rate=1.0, given_out=length)
    path.write_text(start_rate.to_text(pace))


def test_while_nobody_is_refused_there_is_no_file(home: Path) -> None:
    with running(STARTED) as service:
        start(plane(service))
    assert not (home / ".cache").exists()


def test_while_nobody_is_refused_nothing_is_imported_for_it(home: Path) -> None:
    program = (
        "import sys\n"
        "from ssm_proxy.aws.control_plane import BotocoreControlPlane\n"
        "plane = BotocoreControlPlane(region='eu-west-1', endpoint_url=sys.argv[1])\n"
        "plane.start_session(target='i-0', document_name=None, parameters={}, reason=None)\n"
        "print([name for name in ('filelock', 'asyncio', 'ssm_proxy.aws.start_rate') if name in sys.modules])\n"
    )
    with running(STARTED) as service:
        done = subprocess.run(
            [sys.executable, "-c", program, service.url], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout == "[]\n"


def test_a_refused_start_is_repeated_in_its_turn_and_leaves_a_file_for_the_others(home: Path) -> None:
    with running(REFUSED, REFUSED, STARTED) as service:
        start(plane(service))
        assert len(service.requests) == 3
    path = state_file(home)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert mode(path.with_name("starts.lock")) == 0o600
    pace = pace_in(path)
    assert pace.given_out >= 2
    assert pace.rate < 50.0  # the second refusal came in turn
    assert sorted(each.suffix for each in path.parent.iterdir()) == [".json", ".lock"]


def test_other_processes_take_numbers(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        before = pace_in(state_file(home))
        start(plane(service))
        after = pace_in(state_file(home))
    assert after.given_out >= before.given_out + 1
    assert after.rate == pytest.approx(before.rate + 0.2)


def test_threads_of_one_process_take_numbers_too(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        shared = plane(service)
        start(shared)
        before = pace_in(state_file(home)).given_out
        threads = [threading.Thread(target=start, args=(shared,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(service.requests) == 2 + 16
    assert pace_in(state_file(home)).given_out >= before + 16


def test_it_is_repeated_more_often_than_other_failures(home: Path) -> None:
    with running(*[REFUSED] * 9, STARTED) as service:
        start(plane(service))
        assert len(service.requests) == 10


@pytest.mark.parametrize("mode", ["legacy", "standard"])
def test_so_it_is_with_a_session_of_boto3_whose_default_is_another(home: Path, monkeypatch: Any, mode: str) -> None:
    monkeypatch.setenv("AWS_RETRY_MODE", mode)
    with running(*[REFUSED] * 9, STARTED) as service:
        start(plane(service, botocore_session=boto3.Session()._session))
        assert len(service.requests) == 10


def by_environment(home: Path, monkeypatch: Any, attempts: int) -> boto3.Session:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(attempts))
    return boto3.Session()


def by_profile(home: Path, monkeypatch: Any, attempts: int) -> boto3.Session:
    write_config(home, config=f"[default]\nmax_attempts={attempts}\n")
    return boto3.Session()


def by_client_config(home: Path, monkeypatch: Any, attempts: int) -> boto3.Session:
    session = boto3.Session()
    session._session.set_default_client_config(Config(retries={"total_max_attempts": attempts}))
    return session


def by_retries_of_client_config(home: Path, monkeypatch: Any, attempts: int) -> boto3.Session:
    session = boto3.Session()
    session._session.set_default_client_config(Config(retries={"max_attempts": attempts - 1}))
    return session


def by_session_variable(home: Path, monkeypatch: Any, attempts: int) -> boto3.Session:
    session = boto3.Session()
    session._session.set_config_variable("max_attempts", attempts)
    return session


BY_MEANS = [by_environment, by_profile, by_client_config, by_retries_of_client_config, by_session_variable]


@pytest.mark.parametrize("attempts", [1, 2, 6])
@pytest.mark.parametrize("choose", BY_MEANS)
def test_who_has_chosen_the_number_of_attempts_gets_that(
    home: Path, monkeypatch: Any, choose: Callable[[Path, Any, int], boto3.Session], attempts: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's pauses
    monkeypatch.setattr(start_budget, "PATIENCE", 60.0)
    session = choose(home, monkeypatch, attempts)
    options = [{"botocore_session": session._session}]
    if choose in (by_environment, by_profile):
        options.append({})
    for each in options:
        with running(REFUSED) as service:
            with pytest.raises(Throttled, match=f"throttled, also at attempt {attempts}"):
                start(plane(service, **each))
            assert len(service.requests) == attempts
    assert len(state_files(home)) == len(options), "the others are told all the same"


def test_it_ends_with_an_error_that_says_how_many_are_before(home: Path, monkeypatch: Any) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        write_queue(state_file(home), now=stop_turns(monkeypatch))
        monkeypatch.setattr(start_budget, "PATIENCE", 0.2)
        with pytest.raises(Throttled) as caught:
            start(plane(service))
        assert len(service.requests) == 2
    assert caught.value.cause == "499 are before it, and the service takes about 1.0 per second"
    assert "ControlMaster" in (caught.value.hint or "")


def test_a_person_is_told_and_waiting_ends_when_nobody_wants_the_session(home: Path) -> None:
    given_up = threading.Event()
    told: list[str] = []

    def notify(text: str) -> None:
        told.append(text)
        given_up.set()

    with running(REFUSED, STARTED) as service:
        start(plane(service))
        write_queue(state_file(home))
        with pytest.raises(Throttled, match="given up before its turn"):
            start(plane(service, notify=notify), given_up)
        assert len(service.requests) == 2
    (text,) = told
    assert text.startswith("StartSession is throttled; this one goes out in about ")
    assert text.endswith(" are before it")


WAIT = (
    "import sys\n"
    "from ssm_proxy.aws.control_plane import BotocoreControlPlane\n"
    "plane = BotocoreControlPlane(region='eu-west-1', endpoint_url=sys.argv[1],\n"
    "                             notify=lambda _: print('waits', flush=True))\n"
    "plane.start_session(target='i-0', document_name=None, parameters={}, reason=None)\n"
)
"""A program that takes a number, and says so when it waits for long."""


def waiting_processes(service: Service, count: int) -> list[subprocess.Popen[bytes]]:
    arguments = [sys.executable, "-c", WAIT, service.url]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
    return processes


def look_again(path: Path) -> None:
    """Have it be time to look whether those who wait are still there."""
    path.write_text(start_rate.to_text(pace_in(path)._replace(looked_at=0.0)))


def told_before(service: Service) -> str:
    """Come to the queue, and give what is told of those who are before; nobody waits for it."""
    given_up = threading.Event()
    told: list[str] = []

    def notify(text: str) -> None:
        told.append(text)
        given_up.set()

    with pytest.raises(Throttled, match="given up before its turn"):
        start(plane(service, notify=notify), given_up)
    (text,) = told
    return text.partition(" s, ")[2]


@pytest.mark.skipif(sys.platform != "linux", reason="who has ended is known on Linux only")
def test_the_turns_of_processes_that_were_killed_are_skipped(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        # A hundred of whom nobody knows: no turn of the processes comes while the test runs.
        path.write_text(start_rate.to_text(start_rate.first_pace(time.time())._replace(rate=0.2, given_out=100.0)))
        processes = waiting_processes(service, 4)
        before = pace_in(path)
        assert sorted(before.waiting.values()) == [100, 101, 102, 103]
        try:
            last = max(before.waiting, key=lambda each: before.waiting[each])
            for process in processes:
                if f"-{process.pid}-" not in last:
                    process.kill()
                    os.waitid(
                        os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
                    )  # a container may have nobody who collects
            look_again(path)
            told = told_before(service)
            after = pace_in(path)
        finally:
            for process in processes:
                with process:
                    process.kill()
    assert after.waiting == {last: 100}
    assert after.given_out == 101, "and the one who came to look has gone too"
    (count, _, text) = told.partition(" ")
    # Its number was 101. It may have come to be told a little later than the file was written.
    assert (int(count) <= after.before(101, after.since), text) == (True, "are before it")


@pytest.mark.skipif(sys.platform != "linux", reason="who has ended is known on Linux only")
def test_one_who_waits_moves_up_when_those_before_it_have_ended(home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(start_budget, "PATIENCE", 20.0)  # less than the turns of all of them
    monkeypatch.setattr(start_rate, "LOOK_INTERVAL", 1e9)
    told: list[str] = []

    def notify(text: str) -> None:
        told.append(text.partition(" s, ")[2])
        monkeypatch.setattr(start_rate, "LOOK_INTERVAL", 0.0)

    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        ended = holder_of_an_ended_process()
        now = time.time()
        pace = start_rate.first_pace(now)._replace(rate=1.0, looked_at=now)
        for each in range(101):
            pace = pace.with_number(now, f"{ended}{each}")
        path.write_text(start_rate.to_text(pace))
        start(plane(service, notify=notify))
        assert len(service.requests) == 3
        (before, _, text) = told[0].partition(" ")
        assert (90 < int(before) <= 100, text) == (True, "are before it")
    assert pace_in(path).given_out < 50


def test_who_gives_up_gives_its_number_back(home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(start_budget, "PATIENCE", 0.2)
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        write_queue(path, now=stop_turns(monkeypatch))
        assert told_before(service) == "499 are before it"
        assert pace_in(path).given_out == 500
        with pytest.raises(Throttled):
            start(plane(service))
        assert pace_in(path).given_out == 500
        assert pace_in(path).waiting == {}


def test_the_turns_of_others_whose_end_nobody_here_can_see_stay(home: Path, monkeypatch: Any) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        now = stop_turns(monkeypatch)
        pace = start_rate.first_pace(now)._replace(rate=0.2)
        for holder in ("00000000-999999-1-0", "0123456789abcdef", "", "a-b"):
            pace = pace.with_number(now, holder)
        path.write_text(start_rate.to_text(pace))
        assert told_before(service) == "3 are before it"
        assert pace_in(path).waiting == pace.waiting


def test_files_of_long_ago_are_removed_when_a_new_one_is_made(home: Path) -> None:
    folder = home / ".cache" / "ssm-proxy"
    folder.mkdir(parents=True)
    long_ago = time.time() - 25 * 3600
    old = ["starts-0123456789abcdef.json", "starts-0123456789abcdef.lock", "starts-0123456789abcdef.json.new"]
    others = ["starts-0123456789abcdef.txt", "starts-1.json", "starts.json", "known_hosts"]
    young = ["starts-fedcba9876543210.json", "starts-fedcba9876543210.lock"]
    for name in (*old, *others, *young):
        (folder / name).touch()
        if name not in young:
            os.utime(folder / name, (long_ago, long_ago))
    a_folder = folder / "starts-00000000000000ff.json"
    a_folder.mkdir()
    os.utime(a_folder, (long_ago, long_ago))
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        (made,) = [each for each in state_files(home) if each.name not in (*others, *young, a_folder.name)]
        os.utime(made, (long_ago, long_ago))
        (folder / old[0]).touch()
        os.utime(folder / old[0], (long_ago, long_ago))
        start(plane(service))
        assert (folder / old[0]).exists(), "nobody was refused"
    left = {*others, *young, old[0], made.name, "starts.lock", a_folder.name}
    assert {each.name for each in folder.iterdir()} == left


def test_the_turn_comes_sooner_when_the_rate_grows(home: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(start_budget, "_LONGEST_NAP", 0.5)
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        write_queue(path, length=200.0)  # more than this test has

        def hurry(_text: str) -> None:
            path.write_text(start_rate.to_text(pace_in(path)._replace(rate=100.0)))

        start(plane(service, notify=hurry))


def test_a_clock_that_was_set_back_holds_nobody_up(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        later = time.time() + 200
        path.write_text(start_rate.to_text(start_rate.first_pace(later)._replace(given_out=2.0)))
        start(plane(service))
        assert pace_in(path).since < later


def test_an_old_file_is_not_even_read(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        write_queue(path)
        os.utime(path, (time.time() - 301, time.time() - 301))
        before = path.read_bytes()
        start(plane(service))
    assert path.read_bytes() == before


def test_a_pace_that_is_over_is_replaced(home: Path) -> None:
    with running(REFUSED, STARTED, REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        path.write_text(start_rate.to_text(pace_in(path)._replace(throttled_at=time.time() - 301, given_out=700.0)))
        start(plane(service))
    assert pace_in(path).given_out < 10


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"x" * 100_000])
def test_a_corrupt_file_is_ignored_and_replaced(home: Path, content: bytes) -> None:
    with running(REFUSED, STARTED, STARTED, REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        path.write_bytes(content)
        start(plane(service))
        assert path.read_bytes() == content
        start(plane(service))
        assert len(service.requests) == 5
    assert pace_in(path).rate > 0


def no_home(home: Path, monkeypatch: Any) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))


def a_link(home: Path, monkeypatch: Any) -> None:
    (home / ".cache").mkdir()
    (home / "elsewhere").mkdir()
    (home / ".cache" / "ssm-proxy").symlink_to(home / "elsewhere")


def somebody_else(home: Path, monkeypatch: Any) -> None:
    (home / ".cache" / "ssm-proxy").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


def no_locks(home: Path, monkeypatch: Any) -> None:
    import filelock

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("this file system has no locks")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)


@pytest.mark.parametrize("prepare", [no_home, a_link, somebody_else, no_locks])
def test_without_a_safe_place_there_is_no_budget_and_the_session_starts(
    home: Path, monkeypatch: Any, prepare: Callable[[Path, Any], None]
) -> None:
    prepare(home, monkeypatch)
    with running(REFUSED, STARTED) as service:
        start(plane(service))  # by botocore's own repeats
        assert len(service.requests) == 2
    assert state_files(home) == []


def test_a_folder_that_others_could_read_is_closed(home: Path) -> None:
    folder = home / ".cache" / "ssm-proxy"
    folder.mkdir(parents=True, mode=0o755)
    with running(REFUSED, STARTED) as service:
        start(plane(service))
    assert mode(folder) == 0o700


def test_the_runtime_folder_comes_first_if_it_is_ours(home: Path, monkeypatch: Any) -> None:
    (home / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    with running(REFUSED, STARTED) as service:
        start(plane(service))
    assert len(list((home / "run" / "ssm-proxy").glob("starts-*.json"))) == 1
    assert state_files(home) == []
    for unusable in ("relative", str(home / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert start_budget._folder() == str(home / ".cache" / "ssm-proxy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    assert start_budget._folder() == str(home / "cache" / "ssm-proxy")


def test_accounts_regions_and_endpoints_have_budgets_of_their_own(home: Path, monkeypatch: Any) -> None:
    with running(REFUSED, STARTED, REFUSED, STARTED, REFUSED, STARTED, REFUSED, STARTED) as service:
        start(plane(service))
        start(plane(service, region="eu-west-2"))
        monkeypatch.setenv("AWS_ACCOUNT_ID", "123456789012")
        start(plane(service))
        assert len(state_files(home)) == 3
    with running(REFUSED, STARTED) as other:
        start(plane(other))
    assert len(state_files(home)) == 4


def test_a_process_that_was_killed_frees_the_lock_and_one_that_hangs_holds_nobody_up(home: Path) -> None:
    with running(REFUSED, STARTED) as service:
        start(plane(service))
        path = state_file(home)
        program = (
            "import sys, time\nfrom filelock import FileLock\nlock = FileLock(sys.argv[1])\nlock.acquire()\n"
            "print('held', flush=True)\ntime.sleep(600)\n"
        )
        arguments = [sys.executable, "-c", program, str(path.with_name("starts.lock"))]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"held\n"
                before = pace_in(path)
                start(plane(service))
                assert pace_in(path) == before, "it went out without a number"
            finally:
                holder.kill()
        start(plane(service))
        assert pace_in(path).given_out > before.given_out
