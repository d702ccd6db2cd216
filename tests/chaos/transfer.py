"""One large transfer, cut again and again, with accidents to its messages all the while."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from nodes import MIB

from chaos.storm import WEATHER, Cut, Storm
from chaos.world import Memory, Tunnel, World


def run(
    direction: str, size: int, cuts: Sequence[Cut], *, seed: int, sample_s: float = 1.0, say: Callable[[str], object]
) -> dict[str, Any]:
    """Carry ``size`` bytes ``up`` or ``down`` through the cuts.

    Returns:
        What there is to report.

    Raises:
        AssertionError: the checksums differ, the transfer stood still, ssh or the proxy complained, or something was
            left behind.
    """
    with World(seed) as world:
        with Tunnel(world.new_user()) as tunnel, Memory(tunnel.proxy, sample_s) as memory:
            storm = Storm(world.emulator, tunnel, cuts, WEATHER)
            began, tenths = time.monotonic(), 0

            def reached(position: int) -> None:
                nonlocal tenths
                storm.reached(position)
                if position * 10 // size > tenths:
                    tenths = position * 10 // size
                    say(f"{tenths * 10} % after {time.monotonic() - began:.0f} s, {storm.made.total()} cuts")

            tunnel.carry(direction, size, seed, reached)
            seconds = time.monotonic() - began
            storm.wait_until_connected()
            (session,) = world.emulator.sessions()
            memory_use = memory.summary()
        assert storm.made.total() == len(cuts)
    return {
        "direction": direction,
        "size_mib": size / MIB,
        "seconds": round(seconds, 1),
        "checksums": "equal",
        "cuts": dict(sorted(storm.made.items())),
        "cuts_in_all": storm.made.total(),
        "connections": session.connections,
        "repeats_received_by_the_agent": session.repeats_received,
        "repeats_sent_by_the_agent": session.resends,
        "memory": memory_use,
        "memory_samples": memory.samples,
    }
