"""The pace of StartSession calls: arithmetic on a clock that is passed in, and many processes on one that jumps."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ssm_proxy.aws import start_budget, start_rate
from ssm_proxy.aws.start_rate import (
    FIRST_RATE,
    LARGEST_RATE,
    LEAST_RATE,
    LOOK_INTERVAL,
    MEMORY,
    MOST_LISTED,
    Pace,
    first_pace,
    from_text,
    to_text,
)

NOW = 1_700_000_000.0


def test_numbers_come_one_after_another() -> None:
    pace = first_pace(NOW)
    waits = []
    for each in range(4):
        pace = pace.with_number(NOW, str(each))
        waits.append(pace.wait_for(pace.last_number, NOW))
    assert waits == [pytest.approx(each / FIRST_RATE) for each in range(4)]
    assert pace.wait_for(pace.last_number, NOW + 1) < 0


def test_nothing_is_saved_up_while_nobody_waits() -> None:
    pace = first_pace(NOW).with_number(NOW, "before")
    later = NOW + 100
    waits = []
    for each in range(3):
        pace = pace.with_number(later, str(each))
        waits.append(pace.wait_for(pace.last_number, later))
    assert waits == [pytest.approx(each / FIRST_RATE, abs=1e-6) for each in range(3)]


def test_a_new_rate_moves_the_turns_of_those_who_wait() -> None:
    pace = first_pace(NOW)._replace(given_out=100.0)
    assert pace.wait_for(50.0, NOW + 2) == pytest.approx(8.0)
    slower = pace.throttled(NOW + 2, in_turn=True)
    assert slower.wait_for(50.0, NOW + 2) == pytest.approx(40 / (FIRST_RATE * 0.7))
    assert slower.wait_for(10.0, NOW + 2) == pytest.approx(0.0)


def test_only_a_refusal_in_turn_slows_down_and_only_once_a_second() -> None:
    pace = first_pace(NOW)
    assert pace.throttled(NOW + 5, in_turn=False).rate == FIRST_RATE
    assert pace.throttled(NOW + 5, in_turn=False).throttled_at == NOW + 5
    once = pace.throttled(NOW + 5, in_turn=True)
    assert once.rate == pytest.approx(FIRST_RATE * 0.7)
    assert once.throttled(NOW + 5.9, in_turn=True).rate == once.rate
    assert once.throttled(NOW + 6, in_turn=True).rate == pytest.approx(FIRST_RATE * 0.49)
    assert once.throttled(NOW + 1, in_turn=True).rate < once.rate, "the clock was set back"


def test_it_grows_fast_until_it_was_too_high_and_slowly_then() -> None:
    pace = first_pace(NOW)
    assert pace.succeeded(NOW).rate == pytest.approx(FIRST_RATE + 0.2)
    assert pace.throttled(NOW, in_turn=True).succeeded(NOW).rate == pytest.approx(FIRST_RATE * 0.7 + 0.03)


def test_bounds() -> None:
    pace = first_pace(NOW)
    for step in range(1, 60):
        pace = pace.throttled(NOW + 2 * step, in_turn=True)
    assert pace.rate == LEAST_RATE
    assert pace._replace(rate=LARGEST_RATE).succeeded(NOW).rate == LARGEST_RATE


def test_it_is_over_after_minutes_without_a_refusal() -> None:
    pace = first_pace(NOW)
    assert not pace.is_over(NOW + MEMORY - 1)
    assert pace.is_over(NOW + MEMORY)
    assert pace.is_over(NOW - MEMORY), "the clock was set back by more than that"


def test_a_clock_that_was_set_back_is_noticed() -> None:
    pace = first_pace(NOW)._replace(given_out=10.0)
    assert not pace.is_ahead_of(NOW - 0.5)
    assert pace.is_ahead_of(NOW - 100)
    assert pace.wait_for(1.0, NOW - 100) == pace.wait_for(1.0, NOW - 50), "turns stand still"
    assert pace.caught_up(NOW - 100).wait_for(1.0, NOW - 50) < 0


def test_written_and_read() -> None:
    pace = first_pace(NOW).with_number(NOW + 0.1, "who").throttled(NOW + 0.2, in_turn=True)
    assert from_text(to_text(pace).encode()) == pace


def queue(count: int) -> Pace:
    """Have so many wait, whose names are their numbers."""
    pace = first_pace(NOW)
    for number in range(count):
        pace = pace.with_number(NOW, str(number))
    return pace


def test_who_waits_moves_up_when_somebody_before_has_gone() -> None:
    pace = queue(6).without({"1", "2", "4", "unknown"}, NOW)
    assert pace.waiting == {"0": 0, "3": 1, "5": 2}
    assert pace.given_out == 3
    pace = pace.with_number(NOW, "new")
    assert pace.last_number == pace.waiting["new"] == 3


def test_a_turn_that_has_come_may_have_been_used_and_is_not_given_again() -> None:
    later = NOW + 2.5 / FIRST_RATE
    pace = queue(6).without({"1", "2", "3"}, later)
    assert pace.waiting == {"0": 0, "4": 3, "5": 4}
    assert pace.turn == pytest.approx(2.5)
    assert pace.given_out == 5


def test_a_queue_in_which_everybody_has_gone_holds_nobody_up() -> None:
    later = NOW + 2 / FIRST_RATE
    pace = queue(50).without({str(each) for each in range(50)}, later).with_number(later, "new")
    assert list(pace.waiting) == ["new"]
    assert pace.wait_for(pace.last_number, later) <= 1 / FIRST_RATE
    assert pace.before(pace.last_number, later) == 0


def test_those_before_are_counted() -> None:
    pace = queue(6)
    assert [pace.before(number, NOW) for number in (0, 1, 2, 5)] == [0, 0, 1, 4]
    assert pace.before(5, NOW + 2.5 / FIRST_RATE) == 2
    assert pace.before(5, NOW + 100) == 0


def test_it_is_looked_now_and_then_whether_those_before_are_still_there() -> None:
    pace = queue(3)._replace(looked_at=NOW)
    later = NOW + LOOK_INTERVAL - 0.01
    assert not pace._replace(rate=0.2).is_due_for_look(2, later)
    later = NOW + LOOK_INTERVAL
    assert pace._replace(rate=0.2).is_due_for_look(2, later)
    assert not pace._replace(rate=0.2).is_due_for_look(1, later), "nobody is before it"
    assert not pace.is_due_for_look(2, later), "the turns before it have come"
    assert pace._replace(rate=0.2, looked_at=NOW + 500).is_due_for_look(2, NOW), "the clock was set back"


def test_the_list_is_bounded_and_nobody_moves_up_past_who_is_not_in_it() -> None:
    pace = queue(MOST_LISTED + 2)
    assert len(pace.waiting) == MOST_LISTED
    assert pace.given_out == MOST_LISTED + 2
    assert pace.without({"5"}, NOW)._replace(turn=0.0, since=NOW) == pace
    later = NOW + (MOST_LISTED + 1) / FIRST_RATE
    pace = pace.with_number(later, "a").with_number(later, "b").with_number(later, "c")
    assert pace.without({"b"}, later).waiting["c"] == pace.waiting["b"]


def test_who_had_its_turn_leaves_the_list_once_its_share_of_chance_is_over_too() -> None:
    assert "0" in queue(3).with_number(NOW + 0.9 / FIRST_RATE, "new").waiting
    assert "0" not in queue(3).with_number(NOW + 1.1 / FIRST_RATE, "new").waiting


def test_the_longest_list_can_be_read() -> None:
    pace = first_pace(NOW)._replace(turn=1e5 / 3, given_out=1e5 / 3)
    for each in range(MOST_LISTED):
        pace = pace.with_number(NOW, f"{each:064}")
    text = to_text(pace).encode()
    assert len(text) < start_budget._LARGEST_FILE
    assert from_text(text) == pace


def test_the_version_is_part_of_the_name_of_the_file() -> None:
    assert str(start_rate.VERSION) == start_budget._VERSION


GOOD = json.loads(to_text(queue(2)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"1",
        b"null",
        b"[" * 100_000,
        json.dumps({}).encode(),
        *(json.dumps({name: value for name, value in GOOD.items() if name != left_out}).encode() for left_out in GOOD),
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in (
                {"version": 1},
                {"waiting": []},
                {"waiting": {"0": None}},
                {"waiting": {"0": "nan"}},
                {"waiting": {"0": 1e9}},
                {"waiting": {"0" * 65: 0}},
                {"waiting": {str(each): 0 for each in range(1001)}},
                {"rate": 0},
                {"rate": -5},
                {"rate": 1e9},
                {"rate": "NaN"},
                {"rate": None},
                {"since": "inf"},
                {"turn": [1]},
                {"since": 10**400},
                {"given_out": 1e9},
            )
        ),
    ],
)
def test_what_is_no_pace_is_none(text: bytes) -> None:
    assert from_text(text) is None


class Run(NamedTuple):
    last: float
    throttled: int
    most_refusals: int


def run(count: int, answered: Callable[[float], bool], *, pace: Pace | None = None, seed: int = 1) -> Run:
    """Let many processes start at once, as ``start_budget`` has them."""
    chance = random.Random(seed)
    events: list[tuple[float, int, str, float, bool]] = [(NOW, number, "try", 0.0, False) for number in range(count)]
    refusals = [0] * count
    last = NOW
    while events:
        now, number, what, turn, in_turn = heapq.heappop(events)
        if what == "try":
            if pace is None:
                heapq.heappush(events, (now + 0.05, number, "answer", 0.0, False))
            else:
                pace = pace.with_number(now, f"{number}/{refusals[number]}")
                heapq.heappush(events, (now, number, "wait", pace.last_number + chance.random() * 0.5, True))
        elif what == "wait":
            assert pace is not None
            wait = pace.wait_for(turn, now)
            nap = 0.05 if wait <= 1e-6 else min(wait, max(0.5, min(wait / 4, 5.0)))
            heapq.heappush(events, (now + nap, number, "answer" if wait <= 1e-6 else "wait", turn, in_turn))
        elif answered(now):
            last = max(last, now)
            pace = pace.succeeded(now) if in_turn and pace is not None else pace
        else:
            refusals[number] += 1
            pace = first_pace(now) if pace is None else pace.throttled(now, in_turn=in_turn)
            heapq.heappush(events, (now, number, "try", 0.0, False))
    return Run(last - NOW, sum(refusals), max(refusals))


def service(rate: float, burst: int) -> Callable[[float], bool]:
    level, at = 0.0, NOW

    def answered(now: float) -> bool:
        nonlocal level, at
        level, at = max(0.0, level - rate * (now - at)), now
        if level > burst - 1:
            return False
        level += 1
        return True

    return answered


@pytest.mark.parametrize(
    ("count", "rate", "burst"), [(40, 10, 10), (300, 10, 10), (300, 3, 3), (300, 50, 50), (16, 2, 2)]
)
def test_hundreds_at_once_get_through_near_the_rate_of_the_service(count: int, rate: float, burst: int) -> None:
    for seed in range(5):
        found = run(count, service(rate, burst), seed=seed)
        ideal = (count - burst) / rate
        assert found.last < 1.7 * ideal + 8
        # The first wave cannot be helped: nobody knew. After it few are refused.
        assert found.throttled - (count - burst) < 0.15 * count + 12


@pytest.mark.parametrize(("count", "rate", "burst"), [(40, 10, 10), (300, 10, 10), (300, 3, 3)])
def test_who_comes_later_is_hardly_ever_refused(count: int, rate: float, burst: int) -> None:
    for seed in range(5):
        found = run(count, service(rate, burst), pace=first_pace(NOW), seed=seed)
        assert found.throttled < 0.1 * count + 10
        assert found.most_refusals < 6
