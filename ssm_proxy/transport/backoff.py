"""Growing, random pauses between attempts to reconnect."""

from __future__ import annotations

import random

FIRST_DELAY = 0.2
LARGEST_DELAY = 20.0


class Backoff:
    """Pauses that double up to a limit, each drawn from the upper half of its range.

    Without the randomness, all tunnels of a network that comes back would knock at once.
    """

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._delay = FIRST_DELAY

    def next_delay(self) -> float:
        """Give the seconds to wait before the next attempt."""
        delay = self._delay
        self._delay = min(LARGEST_DELAY, delay * 2)
        return delay * self._source.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again from short pauses, because a connection proved itself."""
        self._delay = FIRST_DELAY
