"""How many sessions may be started per second, as far as the service has let us know: arithmetic only, time passed in.

A number is given out for each start, one after another, and its turn comes when the count of turns, which grows with
the rate, has reached it. A new rate moves the turns of all who wait. Whoever leaves the queue before its turn has no
number any more, and all behind it get the one before theirs.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
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
LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks, of whomever, whether those who wait are still there."""
MOST_LISTED: Final = 1000
_LONGEST_HOLDER: Final = 64
_JUMP: Final = 1.0
_ROUNDING: Final = 1e-6
VERSION: Final = 2
"""Part of the file's name: older versions of this program share a budget of their own."""


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
    looked_at: float = 0.0
    """When somebody looked whether those who wait are still there."""
    unlisted: float = 0.0
    """The last number that was given out to somebody for whom the list had no place."""
    waiting: Mapping[str, float] = {}
    """Holder -> number, of all whose turn has not come yet, and some whose turn has."""

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

    def with_number(self, now: float, holder: str) -> Pace:
        """Give out a number: the next one, or that of now if nobody waits."""
        pace = self.caught_up(now)
        number = max(pace.given_out, pace.turn)
        # A whole turn more, so that a holder who is not listed any more has also waited for its chance share of one.
        waiting = {each: of_it for each, of_it in pace.waiting.items() if of_it + 1 > pace.turn}
        if len(waiting) >= MOST_LISTED:
            return pace._replace(given_out=number + 1, unlisted=number, waiting=waiting)
        return pace._replace(given_out=number + 1, waiting={**waiting, holder: number})

    def is_due_for_look(self, number: float, now: float) -> bool:
        """Tell whether it is time to see if those who wait before a number are still there."""
        turn = self.turn_at(now)
        return not abs(now - self.looked_at) < LOOK_INTERVAL and any(
            turn < each < number for each in self.waiting.values()
        )

    def without(self, gone: Collection[str], now: float) -> Pace:
        """Take holders from the queue who will not use their turn; those behind them move up."""
        pace = self.caught_up(now)
        if pace.unlisted > pace.turn:  # one that could not be moved: its number would be given out twice
            return pace
        waiting = dict(pace.waiting)
        # A turn that has come may have been used.
        free = sorted(number for number in (waiting.pop(each, pace.turn) for each in gone) if number > pace.turn)
        return pace._replace(
            given_out=pace.given_out - len(free),
            waiting={each: number - bisect_left(free, number) for each, number in waiting.items()},
        )

    def before(self, number: float, now: float) -> int:
        """Count those whose turn comes before that of a number, and has not come yet."""
        return max(0, math.ceil(number - self.turn_at(now) - _ROUNDING) - 1)

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
    return json.dumps({"version": VERSION, **pace._asdict()}) + "\n"


def from_text(text: bytes) -> Pace | None:
    """Read a pace; None if this is something else."""
    try:
        values = json.loads(text)
        if values.pop("version") != VERSION:
            return None
        is_searching = values.pop("is_searching")
        waiting = {holder: float(number) for holder, number in values.pop("waiting").items()}
        numbers = {name: float(values[name]) for name in Pace._fields if name not in ("is_searching", "waiting")}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    pace = Pace(**numbers, is_searching=is_searching is True, waiting=waiting)
    is_sound = (
        all(math.isfinite(value) for value in numbers.values())
        and LEAST_RATE <= pace.rate <= LARGEST_RATE
        and pace.given_out - pace.turn <= pace.rate * _LONGEST_QUEUE
        and len(waiting) <= MOST_LISTED
        and all(len(holder) <= _LONGEST_HOLDER for holder in waiting)
        and all(-math.inf < number < pace.given_out + 1 for number in waiting.values())
    )
    return pace if is_sound else None
