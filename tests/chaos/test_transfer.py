"""The chaos transfer in small: every kind of cut but the silent one, accidents to messages all the while."""

from __future__ import annotations

from collections import Counter

import pytest
from nodes import MIB

from chaos import transfer
from chaos.storm import Cut, draw_cuts
from chaos.world import Tunnel, World
from ssm_proxy.emulator import Faults
from ssm_proxy.transport.heartbeat import SILENCE_BEFORE_PING, SUSPECT_PONG_TIMEOUT

pytestmark = pytest.mark.integration
SIZE = 12 * MIB
CUTS = 12
MOST_GROWTH_MIB = 10
"""Buffers that fill once; less than a copy of what passes."""


@pytest.mark.parametrize(("direction", "seed"), [("up", 1), ("down", 2)])
def test_a_transfer_through_many_cuts(direction: str, seed: int) -> None:
    cuts = draw_cuts(seed, SIZE, CUTS, blackholes=0)
    report = transfer.run(direction, SIZE, cuts, seed=seed, sample_s=0.1, say=print)
    assert report["cuts_in_all"] == CUTS
    assert len(report["cuts"]) == 5
    assert report["connections"] == 1 + sum(cut.side == "client" for cut in cuts)
    repeats = "repeats_received_by_the_agent" if direction == "up" else "repeats_sent_by_the_agent"
    assert report[repeats] > 0, "nothing was lost: the cuts prove nothing"
    assert report["memory"]["largest_less_median_mib"] < MOST_GROWTH_MIB


def test_a_connection_that_falls_silent() -> None:
    size = 2 * MIB
    cuts = draw_cuts(1, size, 1, blackholes=1)
    report = transfer.run("down", size, cuts, seed=1, say=print)
    assert report["cuts"] == {"client, blackhole": 1}
    assert report["connections"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_agent_that_stands_still_is_no_loss(direction: str) -> None:
    """Longer than silence takes to become a loss: the service answers the pings meanwhile."""
    with World(1) as world, Tunnel(world.new_user()) as tunnel:
        world.emulator.set_faults(Faults(stall_agent_s=2 * (SILENCE_BEFORE_PING + SUSPECT_PONG_TIMEOUT)))
        tunnel.carry(direction, 4 * MIB, 1)
        assert [session.connections for session in world.emulator.sessions()] == [1]


def test_a_schedule_repeats_with_its_seed_and_lies_within_the_transfer() -> None:
    cuts = draw_cuts(7, SIZE, 200, blackholes=3)
    assert cuts == draw_cuts(7, SIZE, 200, blackholes=3) != draw_cuts(8, SIZE, 200, blackholes=3)
    assert [cut.at_byte for cut in cuts] == sorted(cut.at_byte for cut in cuts)
    assert 0 <= cuts[0].at_byte < cuts[-1].at_byte < SIZE
    kinds = Counter(cut.kind for cut in cuts)
    assert kinds.pop("client, blackhole") == 3
    assert len(kinds) == 5
    assert min(kinds.values()) >= 39
    assert {cut.refuse_resume for cut in cuts} == {"", "error", "throttle"}
    assert any(cut.resume_delay_s for cut in cuts)


def test_a_cut_tells_what_it_is() -> None:
    cut = Cut(
        at_byte=5,
        side="client",
        manner="fin",
        agent_away_s=0.0,
        refuse_resume="error",
        refuse_resume_times=2,
        resume_delay_s=0.0,
    )
    assert str(cut).strip() == "5 client, fin, ResumeSession: error 2 times"
