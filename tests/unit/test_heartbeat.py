"""When to ping and when to call a connection dead; the clock is an argument."""

from __future__ import annotations

import pytest

from ssm_proxy.transport.heartbeat import (
    PING_INTERVAL,
    PONG_TIMEOUT,
    SILENCE_BEFORE_PING,
    SUSPECT_PONG_TIMEOUT,
    Heartbeat,
)


@pytest.fixture
def heartbeat() -> Heartbeat:
    """Pinged at 100 after 10 bytes."""
    heartbeat = Heartbeat(100.0, 1000.0)
    assert heartbeat.is_due(100.0)
    heartbeat.pinged(100.0, 10)
    return heartbeat


def test_a_ping_every_25_seconds(heartbeat: Heartbeat) -> None:
    assert PING_INTERVAL == 25.0
    assert not heartbeat.is_dead(100.1, 12, is_listening=True)
    assert heartbeat.deadline == 125.0
    assert not heartbeat.is_due(124.9)
    assert heartbeat.is_due(125.0)


def test_silence_is_death_at_the_deadline(heartbeat: Heartbeat) -> None:
    assert heartbeat.deadline == 100.0 + PONG_TIMEOUT
    assert not heartbeat.is_dead(119.9, 10, is_listening=True)
    assert heartbeat.is_dead(120.0, 10, is_listening=True)


def test_whatever_arrives_is_life(heartbeat: Heartbeat) -> None:
    assert not heartbeat.is_dead(500.0, 11, is_listening=True)
    assert not heartbeat.is_dead(501.0, 11, is_listening=True)


def test_while_nothing_is_read_silence_proves_nothing(heartbeat: Heartbeat) -> None:
    assert not heartbeat.is_dead(120.0, 10, is_listening=False)
    # Reading again: what came meanwhile is about to be read, so the old deadline must not strike.
    assert not heartbeat.is_dead(120.1, 10, is_listening=True)
    heartbeat.pinged(125.0, 10)
    assert heartbeat.is_dead(145.0, 10, is_listening=True)


def test_a_suspect_connection_has_less_time(heartbeat: Heartbeat) -> None:
    heartbeat.pinged(110.0, 10, is_suspect=True)
    assert heartbeat.deadline == 110.0 + SUSPECT_PONG_TIMEOUT
    assert heartbeat.is_dead(115.0, 10, is_listening=True)


def test_silence_after_messages_is_asked_about_once(heartbeat: Heartbeat) -> None:
    heartbeat.heard(101.0)
    heartbeat.heard(102.0)
    assert not heartbeat.is_dead(102.0, 20, is_listening=True)
    silent_at = 102.0 + SILENCE_BEFORE_PING
    assert heartbeat.deadline == silent_at
    assert not heartbeat.is_due(silent_at - 0.1)
    assert heartbeat.is_due(silent_at)
    assert heartbeat.is_silent(silent_at)
    heartbeat.pinged(silent_at, 20, is_suspect=True)
    assert not heartbeat.is_due(silent_at)
    assert not heartbeat.is_dead(silent_at + 4.9, 20, is_listening=True)
    assert heartbeat.is_dead(silent_at + 5.0, 20, is_listening=True)
    assert not heartbeat.is_dead(silent_at + 5.0, 22, is_listening=True), "the pong is an answer"
    assert heartbeat.deadline == silent_at + PING_INTERVAL, "but no message: it is not asked again"


def test_the_silence_of_the_connection_before_is_forgotten_with_it(heartbeat: Heartbeat) -> None:
    heartbeat.heard(101.0)
    heartbeat.pinged(108.0, 0)
    assert not heartbeat.is_silent(108.0)
    assert heartbeat.deadline == 108.0 + PONG_TIMEOUT


@pytest.mark.parametrize(
    ("now", "wall", "slept"),
    [
        (125.0, 1025.0, 0.0),
        (125.0, 1025.0 + 3600, 3600.0),
        (125.0, 1029.0, 0.0),  # a correction
        (125.0, 25.0, 0.0),  # set back
    ],
)
def test_sleep_is_what_only_the_wall_clock_saw(heartbeat: Heartbeat, now: float, wall: float, slept: float) -> None:
    assert heartbeat.slept(now, wall) == slept
    assert heartbeat.slept(now + 1, wall + 1) == 0.0, "told once"
