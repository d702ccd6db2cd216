"""Timer arithmetic of docs/PROTOCOL.md section 5.6, with the numbers worked out by hand."""

from __future__ import annotations

import pytest

from ssm_proxy.channel.rtt import RoundTrip


def test_initial_values() -> None:
    round_trip = RoundTrip()
    assert (round_trip.smoothed, round_trip.variation, round_trip.timeout) == (0.1, 0.0, 0.2)


def test_one_sample() -> None:
    round_trip = RoundTrip()
    round_trip.add_sample(0.3)
    assert round_trip.variation == pytest.approx(0.05)  # 3/4 * 0 + 1/4 * |0.1 - 0.3|
    assert round_trip.smoothed == pytest.approx(0.125)  # 7/8 * 0.1 + 1/8 * 0.3
    assert round_trip.timeout == pytest.approx(0.325)  # 0.125 + 4 * 0.05


def test_a_second_sample_uses_the_smoothed_value_before_it() -> None:
    round_trip = RoundTrip()
    round_trip.add_sample(0.3)
    round_trip.add_sample(0.1)
    assert round_trip.variation == pytest.approx(0.04375)  # 3/4 * 0.05 + 1/4 * |0.125 - 0.1|
    assert round_trip.smoothed == pytest.approx(0.121875)
    assert round_trip.timeout == pytest.approx(0.296875)


def test_granularity_is_ten_milliseconds() -> None:
    round_trip = RoundTrip()
    for _ in range(300):
        round_trip.add_sample(0.2)
    assert round_trip.variation == pytest.approx(0.0, abs=1e-6)
    assert round_trip.timeout == pytest.approx(0.21)


def test_timeout_is_at_most_a_second() -> None:
    round_trip = RoundTrip()
    round_trip.add_sample(30.0)
    assert round_trip.timeout == 1.0


def test_timeout_is_at_least_a_tick_of_the_official_programs() -> None:
    round_trip = RoundTrip()
    for _ in range(300):
        round_trip.add_sample(0.001)
    assert round_trip.timeout == 0.1


def test_minimum_is_the_smallest_sample() -> None:
    round_trip = RoundTrip()
    assert round_trip.minimum == float("inf")
    for age in (0.3, 0.02, 0.5):
        round_trip.add_sample(age)
    assert round_trip.minimum == 0.02
