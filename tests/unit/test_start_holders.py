"""Who waits for the turn of a start: real processes, killed, and what /proc may look like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ssm_proxy.aws import start_holders
from ssm_proxy.aws.start_holders import find_ended, new_holder

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")

HOLD = (
    "import sys\n"
    "from ssm_proxy.aws.start_holders import new_holder\n"
    "print(new_holder(), flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process, and its name as a holder."""
    arguments = [sys.executable, "-c", HOLD]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_no_two_have_the_same_name(other: tuple[subprocess.Popen[str], str]) -> None:
    assert len({new_holder(), new_holder(), other[1]}) == 3


@linux
def test_a_process_that_was_killed_has_ended_also_if_nobody_collects_it(
    other: tuple[subprocess.Popen[str], str],
) -> None:
    process, holder = other
    mine = new_holder()
    assert find_ended([holder, mine]) == set()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert find_ended([holder, mine]) == {holder}
    process.wait()
    assert find_ended([holder, mine]) == {holder}


@linux
def test_an_id_that_was_given_to_another_process_is_noticed(other: tuple[subprocess.Popen[str], str]) -> None:
    place, pid, began, count = other[1].split("-")
    assert int(pid) == other[0].pid
    assert find_ended([f"{place}-{pid}-{int(began) - 1}-{count}"])
    assert find_ended([f"{place}-{pid}-{began}-7"]) == set()


@linux
def test_processes_of_another_place_are_not_judged() -> None:
    _, pid, began, count = new_holder().split("-")
    assert find_ended([f"00000000-{pid}-{int(began) - 1}-{count}"]) == set()


@linux
@pytest.mark.parametrize(
    "change", ["{0}-{1}-{2}", "{0}-0-{2}-0", "{0}--1-{2}-0", "{0}-99999999999-1-0", "{0}-1-1-0\n", "{0}-²-1-0", "", "-"]
)
def test_what_is_no_name_is_not_judged(change: str) -> None:
    assert find_ended([change.format(*new_holder().split("-"))]) == set()


@linux
def test_a_process_that_cannot_be_looked_at_lives(monkeypatch: Any, other: tuple[subprocess.Popen[str], str]) -> None:
    monkeypatch.setattr(start_holders, "_read_process", lambda _: None)
    assert find_ended([other[1]]) == set()


def no_proc(path: str) -> str:
    raise FileNotFoundError(path)


def proc_of_others(path: str) -> str:
    return "1" if path == "/proc/self" else "pid:[1]"


@pytest.mark.parametrize("readlink", [no_proc, proc_of_others])
def test_where_ids_mean_nothing_a_name_is_chance_and_nobody_is_judged(
    monkeypatch: Any, other: tuple[subprocess.Popen[str], str], readlink: Any
) -> None:
    other[0].kill()
    other[0].wait()
    monkeypatch.setattr(os, "readlink", readlink)
    names = {new_holder(), new_holder()}
    assert len(names) == 2
    assert all("-" not in each for each in names)
    assert find_ended([other[1], *names]) == set()


@linux
def test_a_kernel_without_time_namespaces(monkeypatch: Any) -> None:
    readlink = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: no_proc(path) if path.endswith("/time") else readlink(path))
    assert new_holder().count("-") == 3
