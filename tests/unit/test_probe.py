"""What a probe takes for an answer."""

from __future__ import annotations

from ssm_proxy.transport.probe import ANSWERED, NOT_REFUSED, PATIENCE, Probe


def test_anything_from_the_destination_is_an_answer() -> None:
    probe = Probe(3)
    probe.look(1.0, is_sent=False, is_connected=True)
    assert (probe.result, probe.deadline()) == (None, None)
    probe.answered()
    assert probe.result == ANSWERED


def test_silence_counts_from_when_the_agent_has_it() -> None:
    probe = Probe(3)
    probe.look(1.0, is_sent=True, is_connected=True)
    assert probe.deadline() == 1.0 + PATIENCE
    probe.look(1.0 + PATIENCE - 0.01, is_sent=True, is_connected=True)
    assert probe.result is None
    probe.look(1.0 + PATIENCE, is_sent=True, is_connected=True)
    assert probe.result == NOT_REFUSED


def test_silence_says_nothing_without_a_connection() -> None:
    probe = Probe(3)
    probe.look(1.0, is_sent=True, is_connected=True)
    probe.look(1.5, is_sent=True, is_connected=False)
    assert probe.deadline() is None
    probe.look(5.0, is_sent=True, is_connected=True)
    assert probe.deadline() == 5.0 + PATIENCE
    assert probe.result is None
