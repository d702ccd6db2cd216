"""Spreads what may be sent over time.

A window alone lets messages leave in clumps: as many as the last clump of acknowledges. A clump makes a short queue of
its own, which looks to the congestion window like a full link.
"""

from __future__ import annotations

import math

SMALLEST_BURST_BYTES = 16 * 1024
BURST_TIME = 0.004
"""Timers of operating systems are good to a millisecond or two; what they overslept may be made up for. Where the clock
itself moves in larger steps (15.6 ms on Windows), two of those."""
SHORTEST_WAIT = 0.0001


class Pacer:
    """A budget of bytes that grows with time. Times are seconds of one monotonic clock.

    Args:
        clock_step: seconds by which that clock moves at a time.
    """

    def __init__(self, clock_step: float = 0.0) -> None:
        self._burst_time = max(BURST_TIME, 2 * clock_step)
        self._budget = float(SMALLEST_BURST_BYTES)
        self._at = 0.0

    def room(self, now: float, pace: float) -> float:
        """Give how many bytes may leave now, at ``pace`` bytes per second."""
        if pace == math.inf:
            return math.inf
        most = max(SMALLEST_BURST_BYTES, pace * self._burst_time)
        self._budget = min(most, self._budget + pace * max(0.0, now - self._at))
        self._at = now
        return self._budget

    def spend(self, size: int) -> None:
        """Take note of bytes that leave."""
        self._budget -= size

    def ready_at(self, size: int, pace: float) -> float | None:
        """Give the time at which ``size`` bytes, no more than the smallest burst, may leave; None if they may now."""
        if self._budget >= size or pace == math.inf:
            return None
        # A missing fraction of a byte would give the time that it is now, at which there is still no room.
        return self._at + max(SHORTEST_WAIT, (size - self._budget) / pace)
