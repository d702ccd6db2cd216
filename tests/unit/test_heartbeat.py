"""When to ping and when to call a connection dead; the clock is an argument."""

from __future__ import annotations

import pytest

from ssm_proxy.transport.heartbeat import PING_INTERVAL, PONG_TIMEOUT, SUSPECT_PONG_TIMEOUT, Heartbeat


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
