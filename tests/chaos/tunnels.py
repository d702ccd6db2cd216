"""Many tunnels at once, each with one transfer after the other, while connections break now and then."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from nodes import MIB

from chaos.storm import AT_ONCE, WEATHER
from chaos.world import Tunnel, World
from ssm_proxy.emulator import Faults

_CHANGE_S = 5.0


def run(count: int, seconds: float, size: int, *, seed: int) -> dict[str, Any]:
    """Keep ``count`` tunnels busy for so long with transfers of ``size`` bytes, up and down in turn.

    Every 5 seconds another kind of cut comes into force, which each connection suffers after so many bytes of its own.

    Raises:
        AssertionError: see :func:`chaos.transfer.run`.
    """
    source, ordinals = random.Random(seed), itertools.count()
    with World(seed) as world, contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as threads:
        tunnels = [stack.enter_context(Tunnel(world.new_user())) for _ in range(count)]
        over = threading.Event()
        jobs = [threads.submit(_work, tunnel, number, over, size) for number, tunnel in enumerate(tunnels)]
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            world.emulator.set_faults(_accidents(source, size, next(ordinals)))
            if wait(jobs, min(_CHANGE_S, left), FIRST_EXCEPTION).done:
                break  # before it is over: it has failed, as its result says
        over.set()
        moved = [job.result() for job in jobs]
        world.emulator.set_faults(Faults())
        sessions = world.emulator.sessions()
        peaks = [tunnel.proxy.peak_bytes() / MIB for tunnel in tunnels]
    return {
        "tunnels": count,
        "seconds": seconds,
        "failed": 0,
        "transfers": sum(moved),
        "moved_mib": sum(moved) * size / MIB,
        "least_moved_mib": min(moved) * size / MIB,
        "most_moved_mib": max(moved) * size / MIB,
        "reconnects": sum(session.connections - 1 for session in sessions),
        "repeats_received_by_the_agents": sum(session.repeats_received for session in sessions),
        "repeats_sent_by_the_agents": sum(session.resends for session in sessions),
        "smallest_peak_mib": round(min(peaks), 1),
        "largest_peak_mib": round(max(peaks), 1),
    }


def _accidents(source: random.Random, size: int, ordinal: int) -> Faults:
    return replace(
        WEATHER,
        drop_after_bytes=source.randrange(size // 2, size * 2),
        drop_side="agent" if ordinal % 3 == 2 else "client",
        drop_manner=source.choice(AT_ONCE),
    )


def _work(tunnel: Tunnel, number: int, over: threading.Event, size: int) -> int:
    """Give how many transfers were made."""
    count = 0
    while not over.is_set():
        tunnel.carry(("up", "down")[count % 2], size, number * 1_000_000 + count)
        count += 1
    return count
