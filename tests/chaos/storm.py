"""Cuts by a schedule: drawn from a seed before the transfer begins, made when so many bytes have passed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nodes import wait_until

from chaos.world import Tunnel
from ssm_proxy.emulator import Emulator, Faults
from ssm_proxy.emulator.faults import MANNERS

WEATHER = Faults(lose=0.0005, duplicate=0.002, reorder=0.002, drop_acknowledges=0.0005, fragment=0.02)
"""What happens to messages all the time, between the cuts as well."""
AT_ONCE = tuple(manner for manner in MANNERS if manner != "blackhole")
_RECONNECT_S = 90.0
"""A black hole takes longest: 45 s until it is noticed at worst."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One cut, and what awaits the client when it resumes."""

    at_byte: int
    side: str
    manner: str
    """Of the client's side; the agent's connection has only one."""
    agent_away_s: float
    refuse_resume: str
    refuse_resume_times: int
    resume_delay_s: float

    @property
    def kind(self) -> str:
        return "agent" if self.side == "agent" else f"client, {self.manner}"

    def __str__(self) -> str:
        what = f"agent away for {self.agent_away_s:.2f} s" if self.side == "agent" else self.kind
        if self.refuse_resume:
            what += f", ResumeSession: {self.refuse_resume} {self.refuse_resume_times} times"
        if self.resume_delay_s:
            what += f", ResumeSession after {self.resume_delay_s:.1f} s"
        return f"{self.at_byte:>12} {what}"


def draw_cuts(seed: int, size: int, count: int, blackholes: int) -> list[Cut]:
    """Draw the cuts of one transfer of ``size`` bytes, in their order; the same for the same arguments."""
    source = random.Random(seed)
    kinds = ["blackhole"] * blackholes + list(
        itertools.islice(itertools.cycle((*AT_ONCE, "agent")), count - blackholes)
    )
    source.shuffle(kinds)
    cuts = []
    for at_byte, kind in zip(sorted(source.randrange(size * 95 // 100) for _ in kinds), kinds, strict=True):
        weather = source.random()
        refusal = "" if kind == "agent" or weather > 0.2 else source.choice(("error", "throttle"))
        cuts.append(
            Cut(
                at_byte=at_byte,
                side="agent" if kind == "agent" else "client",
                manner="reset" if kind == "agent" else kind,
                agent_away_s=source.uniform(0.02, 0.3),
                refuse_resume=refusal,
                refuse_resume_times=source.randint(1, 3) if refusal else 0,
                resume_delay_s=source.uniform(0.1, 1.0) if kind != "agent" and 0.2 < weather < 0.3 else 0.0,
            )
        )
    return cuts


class Storm:
    """Makes the cuts of a schedule on the emulator's only session.

    Args:
        emulator: what is cut.
        tunnel: what must survive.
        cuts: see :func:`draw_cuts`.
        weather: in force from the start.
    """

    def __init__(self, emulator: Emulator, tunnel: Tunnel, cuts: Sequence[Cut], weather: Faults) -> None:
        self._emulator = emulator
        self._tunnel = tunnel
        self._cuts = list(cuts)
        self._weather = weather
        self._connections = 1
        self.made: Counter[str] = Counter()
        emulator.set_faults(weather)

    def reached(self, position: int) -> None:
        """Make the cuts that are due after so many bytes, each as soon as there is a connection to cut."""
        while self._cuts and self._cuts[0].at_byte <= position:
            self._make(self._cuts.pop(0))

    def wait_until_connected(self) -> None:
        """Wait for the connection that follows the last cut; no other one may have come."""
        wait_until(lambda: self._client_connections() >= self._connections, "the client is connected", _RECONNECT_S)
        assert self._client_connections() == self._connections, "it connected anew although nothing was cut"

    def _make(self, cut: Cut) -> None:
        self.wait_until_connected()
        self._emulator.set_faults(
            replace(
                self._weather,
                agent_away_s=cut.agent_away_s,
                refuse_resume=cut.refuse_resume,
                refuse_resume_times=cut.refuse_resume_times,
                resume_delay_s=cut.resume_delay_s,
            )
        )
        # An agent may still be away since the cut before.
        wait_until(lambda: self._emulator.drop_connections(cut.side, cut.manner) == 1, f"it can be cut: {cut}")
        self.made[cut.kind] += 1
        if cut.side == "client":
            self._connections += 1

    def _client_connections(self) -> int:
        self._tunnel.check_alive()
        return self._emulator.sessions()[-1].connections
