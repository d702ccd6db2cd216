from __future__ import annotations

import math

import pytest

from ssm_proxy.channel.pacing import BURST_TIME, SMALLEST_BURST_BYTES, Pacer

PACE = 1_000_000.0


def test_a_burst_may_leave_at_once_and_then_time_has_to_pass() -> None:
    pacer = Pacer()
    assert pacer.room(10.0, PACE) == SMALLEST_BURST_BYTES
    pacer.spend(SMALLEST_BURST_BYTES)
    assert pacer.room(10.0, PACE) == 0
    assert pacer.room(10.005, PACE) == pytest.approx(5000)


def test_what_is_not_used_does_not_add_up() -> None:
    pacer = Pacer()
    assert pacer.room(1e6, PACE) == SMALLEST_BURST_BYTES
    assert pacer.room(2e6, 1e9) == 1e9 * BURST_TIME


def test_it_tells_when_so_much_may_leave() -> None:
    pacer = Pacer()
    pacer.room(10.0, PACE)
    assert pacer.ready_at(SMALLEST_BURST_BYTES, PACE) is None
    pacer.spend(SMALLEST_BURST_BYTES)
    at = pacer.ready_at(4000, PACE)
    assert at == pytest.approx(10.004)
    assert pacer.room(at, PACE) == pytest.approx(4000)


def test_the_time_that_it_tells_is_never_now() -> None:
    """A missing fraction of a byte must not make a driver whose clock stands still ask again and again."""
    pacer = Pacer()
    pacer.room(1000.0, PACE)
    pacer.spend(SMALLEST_BURST_BYTES - 1343)
    pacer._budget -= 1e-8
    at = pacer.ready_at(1343, PACE)
    assert at is not None
    assert at > 1000.0
    assert pacer.room(at, PACE) >= 1343


def test_more_than_there_was_can_be_spent_and_is_made_up_for() -> None:
    pacer = Pacer()
    pacer.room(10.0, PACE)
    pacer.spend(SMALLEST_BURST_BYTES + 3000)
    assert pacer.room(10.0, PACE) == -3000
    assert pacer.ready_at(1000, PACE) == pytest.approx(10.004)


def test_without_a_pace_everything_may_leave() -> None:
    pacer = Pacer()
    pacer.spend(1 << 30)
    assert pacer.room(1.0, math.inf) == math.inf
    assert pacer.ready_at(1024, math.inf) is None


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    pacer = Pacer()
    pacer.room(10.0, PACE)
    pacer.spend(SMALLEST_BURST_BYTES)
    assert pacer.room(9.0, PACE) == 0
