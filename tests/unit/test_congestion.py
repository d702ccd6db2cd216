"""The congestion window's single steps; how it does on links is in tests/simulation/test_shared_link.py."""

from __future__ import annotations

import math
from collections import deque

import pytest

from ssm_proxy.channel.congestion import (
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    MEASURE_INTERVAL,
    SMALLEST_WINDOW,
    CongestionWindow,
)
from ssm_proxy.channel.window import Window

MESSAGE = 1024


class Path:
    """A sender that always has something to send, and messages that come back after a time that tests choose."""

    def __init__(self, round_trip: float = 0.1, rate: float = math.inf) -> None:
        self.window = CongestionWindow()
        self.round_trip = round_trip
        self.rate = rate
        self.now = 100.0
        self.free_at = 0.0
        self.flight: deque[tuple[float, float]] = deque()
        self.window.forget(self.now)

    def run(self, seconds: float, *, demand: float = math.inf) -> None:
        until = self.now + seconds
        while True:
            while len(self.flight) * MESSAGE + MESSAGE <= min(self.window.limit_bytes, demand):
                self.free_at = max(self.free_at, self.now) + MESSAGE / self.rate
                self.flight.append((self.now, self.free_at + self.round_trip))
            sent, back = self.flight[0]
            if back > until:
                self.now = until
                return
            self.flight.popleft()
            self.now = max(self.now, back)
            self.window.on_acknowledged(MESSAGE, self.now - sent, self.now, (len(self.flight) + 1) * MESSAGE)


def test_it_is_a_window() -> None:
    window: Window = CongestionWindow()
    assert window.limit_bytes == INITIAL_WINDOW
    assert window.pace == math.inf


def test_without_a_queue_it_grows_to_what_receivers_can_reorder_and_no_further() -> None:
    path = Path()
    path.run(0.35)
    assert INITIAL_WINDOW * 4 < path.window.limit_bytes < INITIAL_WINDOW * 10
    path.run(3)
    assert path.window.limit_bytes == LARGEST_WINDOW <= 10_000 * MESSAGE


def test_it_does_not_grow_while_nobody_needs_it() -> None:
    path = Path()
    path.run(30, demand=4 * MESSAGE)
    assert path.window.limit_bytes == INITIAL_WINDOW


def test_the_pace_lets_a_whole_window_leave_within_a_round_trip() -> None:
    path = Path(rate=1e6)
    for _ in range(100):
        path.run(0.1)
        assert path.window.pace >= path.window.limit_bytes / path.round_trip


def test_it_measures_the_way_again_and_again() -> None:
    path = Path(rate=1e6)
    phases = []
    for _ in range(600):
        path.run(0.05)
        if not phases or phases[-1] != path.window.phase:
            phases.append(path.window.phase)
    assert phases[:5] == ["growing", "steady", "emptying", "measuring", "refilling"]
    assert phases.count("measuring") == 1 + int(30 / (MEASURE_INTERVAL + 1))


def test_a_longer_way_is_not_taken_for_a_queue_for_ever() -> None:
    path = Path(round_trip=0.05, rate=1e6)
    path.run(15)
    path.round_trip = 0.25
    path.run(30)
    assert path.window.limit_bytes > 0.9 * 1e6 * 0.25


def test_a_window_that_was_not_used_is_forgotten() -> None:
    path = Path(rate=1e6)
    path.run(15)
    assert path.window.limit_bytes > 4 * INITIAL_WINDOW
    path.run(12, demand=2 * MESSAGE)
    assert path.window.limit_bytes == INITIAL_WINDOW


def test_keystrokes_that_come_late_do_not_close_it() -> None:
    path = Path(rate=1e6)
    path.run(15)
    path.run(1, demand=MESSAGE)
    before = path.window.limit_bytes
    path.round_trip = 0.9
    path.run(5, demand=MESSAGE)
    assert path.window.limit_bytes == before


def test_a_shorter_way_is_believed_at_once() -> None:
    path = Path(round_trip=0.25, rate=1e6)
    path.run(15)
    path.round_trip = 0.05
    path.run(2)
    assert path.window.limit_bytes < 1e6 * 0.15


def test_a_stall_of_a_minute_does_not_close_it() -> None:
    path = Path(rate=1e6)
    path.run(15)
    before = path.window.limit_bytes
    path.round_trip, usual = 60.0, path.round_trip
    path.run(60.001)
    path.round_trip = usual
    path.run(5)
    assert path.window.limit_bytes > before / 2


def test_it_never_closes() -> None:
    path = Path(round_trip=0.01, rate=500)
    path.run(300)
    assert SMALLEST_WINDOW <= path.window.limit_bytes <= 4 * MESSAGE


def test_repeated_messages_say_nothing_of_the_delay() -> None:
    path = Path(rate=1e6)
    path.run(15)
    before = path.window.limit_bytes
    for step in range(50):
        path.window.on_acknowledged(MESSAGE, None, path.now + step, MESSAGE)
    assert path.window.limit_bytes == before


def test_but_they_do_not_keep_it_from_emptying_and_filling_again() -> None:
    path = Path(rate=1e6)
    while path.window.phase != "emptying":
        path.run(0.01)
    before = path.window.limit_bytes
    for _ in range(200):
        path.window.on_acknowledged(MESSAGE, None, path.now, MESSAGE)
    assert path.window.phase == "measuring"
    assert path.window.limit_bytes < before


def test_a_resume_forgets_everything() -> None:
    path = Path(rate=1e6)
    path.run(15)
    path.window.forget(path.now)
    assert path.window.limit_bytes == INITIAL_WINDOW
    assert path.window.phase == "growing"
    assert path.window.pace == math.inf


@pytest.mark.parametrize("round_trip", [0.0, 1e-9, 1e9])
def test_clocks_that_cannot_be_do_no_harm(round_trip: float) -> None:
    window = CongestionWindow()
    for step in range(2000):
        window.on_acknowledged(MESSAGE, round_trip, 1.0 + step * 1e-6, INITIAL_WINDOW)
        assert SMALLEST_WINDOW <= window.limit_bytes <= LARGEST_WINDOW
        assert window.pace > 0
