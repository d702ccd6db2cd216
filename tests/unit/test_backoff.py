"""Pauses between attempts."""

from __future__ import annotations

import random

from ssm_proxy.transport.backoff import FIRST_DELAY, LARGEST_DELAY, Backoff


def delays(seed: int, count: int = 12) -> list[float]:
    backoff = Backoff(random.Random(seed))
    return [backoff.next_delay() for _ in range(count)]


def test_pauses_double_up_to_a_limit_within_the_upper_half_of_their_range() -> None:
    for seed in range(50):
        limit = FIRST_DELAY
        for delay in delays(seed):
            assert limit / 2 <= delay <= limit
            limit = min(LARGEST_DELAY, limit * 2)
        assert limit == LARGEST_DELAY


def test_two_tunnels_do_not_knock_together() -> None:
    assert all(abs(one - other) > 1e-6 for one, other in zip(delays(1), delays(2), strict=True))


def test_a_reset_starts_from_short_pauses() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(12):
        backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() <= FIRST_DELAY
