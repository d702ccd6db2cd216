"""How many sessions may be started per second, as far as the service has let us know: arithmetic only, time passed in.

A number is given out for each start, one after another, and its turn comes when the count of turns, which grows with
the rate, has reached it. A new rate moves the turns of all who wait.
"""

from __future__ import annotations

import json
import math
from typing import Final, NamedTuple

FIRST_RATE: Final = 5.0
LEAST_RATE: Final = 0.2
LARGEST_RATE: Final = 100.0
DECREASE: Final = 0.7
DECREASE_INTERVAL: Final = 1.0
"""Seconds in which further refusals are of what was under way already, and tell nothing new."""
FIRST_INCREASE: Final = 0.2
"""Per start that succeeded, while nothing is known of the limit but that it was exceeded once."""
INCREASE: Final = 0.03
MEMORY: Final = 300.0
"""Seconds after the last refusal in which there is a pace at all."""
_LONGEST_QUEUE: Final = 3600.0
"""Seconds; nobody waits for so long, so whatever says so is not ours."""
_JUMP: Final = 1.0
_VERSION: Final = 1


class Pace(NamedTuple):
    """What all processes of a user share. Times are in seconds of the wall clock."""

    rate: float
    """Starts per second."""
    turn: float
    """The number whose turn it was at ``since``."""
    since: float
    given_out: float
    """The number that is given out next."""
    throttled_at: float
    slowed_at: float
    is_searching: bool
    """Whether the rate has not been too high yet."""

    def turn_at(self, now: float) -> float:
        """Give the number whose turn it is."""
        return self.turn + self.rate * max(0.0, now - self.since)

    def is_over(self, now: float) -> bool:
        """Tell whether the last refusal is so long ago that nobody needs to wait any more."""
        return not abs(now - self.throttled_at) < MEMORY

    def is_ahead_of(self, now: float) -> bool:
        """Tell whether the clock was set back: turns would stand still until it gets here again."""
        return self.since > now + _JUMP

    @property
    def last_number(self) -> float:
        """The number that was given out last."""
        return self.given_out - 1

    def with_number(self, now: float) -> Pace:
        """Give out a number: the next one, or that of now if nobody waits."""
        pace = self.caught_up(now)
        return pace._replace(given_out=max(pace.given_out, pace.turn) + 1)

    def wait_for(self, number: float, now: float) -> float:
        """Give the seconds until the turn of a number; not above zero when it has come."""
        return (number - self.turn_at(now)) / self.rate

    def succeeded(self, now: float) -> Pace:
        """Take note of a start that came in its turn, and was answered."""
        more = FIRST_INCREASE if self.is_searching else INCREASE
        return self.caught_up(now)._replace(rate=min(self.rate + more, LARGEST_RATE))

    def throttled(self, now: float, *, in_turn: bool) -> Pace:
        """Take note of a refusal; only of one that came in its turn can be learned that the rate is too high."""
        pace = self.caught_up(now)._replace(throttled_at=now)
        if not in_turn or 0 <= now - self.slowed_at < DECREASE_INTERVAL:
            return pace
        return pace._replace(rate=max(self.rate * DECREASE, LEAST_RATE), slowed_at=now, is_searching=False)

    def caught_up(self, now: float) -> Pace:
        """Count turns from now on; the rate can change without changing what was before."""
        return self._replace(turn=self.turn_at(now), since=now)


def first_pace(now: float) -> Pace:
    """Give the pace after a refusal that nobody expected."""
    return Pace(FIRST_RATE, 0.0, now, 0.0, throttled_at=now, slowed_at=0.0, is_searching=True)


def to_text(pace: Pace) -> str:
    """Write a pace down."""
    return json.dumps({"version": _VERSION, **pace._asdict()}) + "\n"


def from_text(text: bytes) -> Pace | None:
    """Read a pace; None if this is something else."""
    try:
        values = json.loads(text)
        if values.pop("version") != _VERSION:
            return None
        is_searching = values.pop("is_searching")
        numbers = {name: float(values[name]) for name in Pace._fields if name != "is_searching"}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    pace = Pace(**numbers, is_searching=is_searching is True)
    is_sound = all(math.isfinite(value) for value in numbers.values()) and LEAST_RATE <= pace.rate <= LARGEST_RATE
    return pace if is_sound and pace.given_out - pace.turn <= pace.rate * _LONGEST_QUEUE else None
