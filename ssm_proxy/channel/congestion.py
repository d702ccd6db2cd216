"""The congestion window: as much in flight as the link carries, and a few hundredths of a second's queue on top.

It looks at delay alone, in the manner of Vegas and FAST TCP. Loss says nothing here: below us TCP repairs what the link
loses, and what the service loses is no sign of a full link. The round trip of every message is measured; what exceeds
the smallest one known is queueing delay. Each round (the time in which a message sent at its beginning is acknowledged)
the window moves towards what makes that delay the *target*:

    window = rate x (smallest round trip + target),    rate = window / round trip

The target falls with the square root of our own rate. Two tunnels on one link see the same queue, so the slower one is
below its target while the faster one is above: they meet. A constant target would leave any division as it is.

    GROWING --queue seen--> STEADY --queue stays short--> GROWING
    STEADY --every ten seconds--> EMPTYING --queue is empty--> MEASURING --one round--> REFILLING --> STEADY

*Growing* adds a share of what is acknowledged, up to doubling in each round trip, less where the round trip is long:
what overshoots before the first sign of a queue is back stays below `FIRST_OVERSHOOT`.

*Emptying and measuring* is how the smallest round trip stays known: a tunnel that starts while another one keeps a
queue would take that queue for the length of the way. A smallest round trip is forgotten after two such periods,
because networks change.

The choice and its alternatives are in docs/design/0007-congestion-by-delay.md; its behaviour is tested, and drawn, by
the simulation of a shared link in tests/simulation.
"""

from __future__ import annotations

import math
from enum import Enum

MESSAGE_BYTES = 1024
SMALLEST_WINDOW = 2 * MESSAGE_BYTES
LARGEST_WINDOW = 9_000 * MESSAGE_BYTES
"""Every receiver can put 10,000 messages in order (docs/PROTOCOL.md section 10.2)."""
INITIAL_WINDOW = 10 * MESSAGE_BYTES
"""As TCP begins (RFC 6928)."""
SMALLEST_TARGET = 0.010
TARGET_FACTOR = 12.0
"""In seconds times the root of bytes per second: with it the target is 48 ms at 0.1 MB/s, 22 at 1 MB/s, 13 at 20."""
LARGEST_TARGET = 0.2
FIRST_OVERSHOOT = 0.25
LATER_OVERSHOOT = 0.06
"""Queueing delay in seconds: how much more than the link carries may be in flight before the first sign of a queue is
back. In the beginning, when everybody waits and the link may carry a thousand times as much, it may be more."""
SLOWEST_FIRST_GROWTH = 0.25
"""For round trips so long that nobody types over them, but somebody waits for a copy."""
SHORT_QUEUE = 0.6
"""Share of the target below which the link may carry more than we know."""
SHORT_ROUNDS = 2
SEVERE_QUEUE = 3.0
"""Multiple of the target beyond which a whole round is too long to wait."""
LONG_QUEUE = 1.5
LONG_ROUNDS = 6
"""A queue of that multiple of the target that stays for so many rounds is perhaps none: the way may have become
longer. Measure it."""
UNUSED_TIME = 10.0
"""A window that was not filled for so long says nothing of the link any more (as in RFC 7661)."""
RATE_TIME = 0.1
"""The least time over which a rate is measured; and a round trip, because what a sender sends comes in clumps."""
MEASURE_INTERVAL = 10.0
MEASURE_INTERVAL_ROUNDS = 25
FIRST_MEASURE_ROUNDS = 6
LARGEST_DIP = 0.1
"""How much of the link's time, in seconds, is left empty to measure; no more than `DIP_SHARE` of the round trip."""
DIP_SHARE = 0.6
MEASURE_ATTEMPTS = 4
SMALLEST_ROUND_TRIP = 1e-4
"""A clock that moves in steps, as that of Windows does, may show none at all; rates are divided by it."""
LOOK_AT = 4
"""Acknowledges whose smallest round trip counts as one observation while a round lasts: single ones come late."""
PACE_ABOVE_RATE = 1.25
"""A whole window leaves in less than the smallest round trip: the window is what binds, the pace only spreads."""


class _Phase(Enum):
    GROWING = "growing"
    STEADY = "steady"
    EMPTYING = "emptying"
    MEASURING = "measuring"
    REFILLING = "refilling"


_GROWING, _STEADY, _EMPTYING, _MEASURING, _REFILLING = _Phase


class CongestionWindow:
    """Bounds the bytes in flight by the delay that they cause. See the module."""

    def __init__(self) -> None:
        self._round_minimum = math.inf
        self.forget(0.0)

    @property
    def limit_bytes(self) -> int:
        return int(self._limit)

    @property
    def phase(self) -> str:
        """What it is doing, for a log or a plot."""
        return self._phase.value

    def forget(self, now: float) -> None:
        """Begin anew: what was learned may be of another network."""
        self._limit = float(INITIAL_WINDOW)
        self.pace = math.inf
        self._phase = _GROWING
        self._gain = 1.0
        self._smallest = math.inf  # round trip since the last measurement
        self._smallest_before = math.inf  # in the period before
        self._full_at = now
        self._measured_for = 0.0  # seconds under load since the last measurement
        self._has_measured = False
        self._goal = 0.0
        self._rate_before = 0.0
        self._good_rate = 0.0  # the latest one at which the delay was about what was wanted
        self._attempts = 0
        self._short_rounds = 0
        self._long_rounds = 0
        self._delivered = 0
        self._mark = (now, 0)
        self._observed = math.inf
        self._observed_count = 0
        self._begin_round(now)

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float, in_flight_bytes: int) -> None:
        phase = self._phase
        if phase is _EMPTYING:
            # Half of what is acknowledged is replaced, so that what remains in flight has no gap.
            self._limit = max(self._goal, self._limit - size_bytes / 2)
            if self._limit == self._goal and in_flight_bytes <= self._goal + size_bytes:
                self._phase = _MEASURING
                self._begin_round(now)
                return
        elif phase is _REFILLING:
            self._limit = min(self._goal, self._limit + size_bytes / 2)
            if self._limit == self._goal:
                self._phase = _STEADY
                self._begin_round(now)
                return
        self._delivered += size_bytes
        if round_trip is None:
            return
        round_trip = max(round_trip, SMALLEST_ROUND_TRIP)
        if in_flight_bytes + MESSAGE_BYTES >= 0.75 * self._limit:
            self._was_full = True
        if round_trip < self._round_minimum:
            self._round_minimum = round_trip
        if round_trip < self._observed:
            self._observed = round_trip
        self._observed_count += 1
        if self._observed_count >= LOOK_AT:
            self._look(now)
        if self._phase is _GROWING and self._was_full:
            self._limit = min(LARGEST_WINDOW, self._limit + size_bytes * self._gain)
        if now - round_trip >= self._round_began:
            self._end_round(now)

    # --- within a round ---------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """See whether the last few acknowledges call for something before the round is over."""
        observed, self._observed, self._observed_count = self._observed, math.inf, 0
        base = self._base()
        delay = observed - base
        if self._phase is _GROWING:
            self._gain = self._growth(base)
            self._set_pace(base)
            if delay > _target(self._limit / observed):
                self._stop_growing(now, base)
        elif now - self._mark[0] >= max(RATE_TIME, base):
            began, delivered = self._mark
            self._mark = (now, self._delivered)
            if self._phase is _STEADY and self._was_full:
                # A link that suddenly carries less acknowledges at its new rate at once, but a round lasts as long as
                # its queue has become.
                rate = (self._delivered - delivered) / (now - began)
                target = _target(rate)
                if delay > SEVERE_QUEUE * target:
                    goal = rate * (base + target)
                    if goal < self._limit:
                        self._set_limit(goal)
                        self._begin_round(now)

    def _stop_growing(self, now: float, base: float) -> None:
        self._smallest = min(self._smallest, base)
        self._phase = _STEADY
        self._short_rounds = 0
        self._mark = (now, self._delivered)
        if not self._has_measured:
            # Others may have been there before us: find out soon.
            soon = self._measure_interval(base) - FIRST_MEASURE_ROUNDS * base - 2 * RATE_TIME
            self._measured_for = max(self._measured_for, soon)
        self._begin_round(now)

    # --- round by round ---------------------------------------------------------------------------------------------

    def _begin_round(self, now: float) -> None:
        self._round_began = now
        self._round_minimum = math.inf
        self._was_full = False

    def _end_round(self, now: float) -> None:
        round_trip = self._round_minimum
        duration = now - self._round_began
        was_full = self._was_full
        self._begin_round(now)
        if self._phase is _MEASURING:
            self._end_measuring(round_trip, now)
        elif self._phase in (_GROWING, _STEADY):
            self._smallest = min(self._smallest, round_trip)
            if was_full:  # else the window was not what held us back, and nothing can be learned of it
                self._full_at = now
                self._measured_for += duration
                if self._phase is _STEADY:
                    self._adapt(round_trip)
            elif now - self._full_at > UNUSED_TIME and self._limit > INITIAL_WINDOW:
                self.forget(now)

    def _adapt(self, round_trip: float) -> None:
        base = self._base()
        rate = self._limit / round_trip
        target = _target(rate)
        delay = round_trip - base
        # Judged by the rate before: a longer way brings the rate down, and the target of a low rate is long as well.
        if delay > LONG_QUEUE * _target(max(rate, self._good_rate)):
            self._long_rounds += 1
        else:
            self._long_rounds = 0
            self._good_rate = rate
        interval = self._measure_interval(base)
        if delay < SHORT_QUEUE * target and self._short_rounds == 0 and self._has_measured:
            interval *= 0.5  # somebody else measures: to see the way empty, all have to do it at once
        if self._measured_for >= interval or self._long_rounds >= LONG_ROUNDS:
            self._attempts = 0
            self._long_rounds = 0
            self._begin_emptying(rate)
            return
        goal = rate * (base + target)
        if delay < SHORT_QUEUE * target:
            self._short_rounds += 1
            if self._short_rounds > 0:
                self._set_limit(min(goal, self._limit * (1 + self._growth(base))))
            if self._short_rounds >= SHORT_ROUNDS:
                self._phase = _GROWING
                self._gain = self._growth(base)
                self._observed, self._observed_count = math.inf, 0
        else:
            self._short_rounds = 0
            share = 1.0 if delay > 2 * target else 0.5
            self._set_limit(self._limit + share * (goal - self._limit))

    # --- measuring the smallest round trip --------------------------------------------------------------------------

    def _begin_emptying(self, rate: float) -> None:
        base = self._base()
        self._phase = _EMPTYING
        self._attempts += 1
        self._rate_before = rate
        self._goal = max(SMALLEST_WINDOW, rate * (base - min(DIP_SHARE * base, LARGEST_DIP)))

    def _end_measuring(self, round_trip: float, now: float) -> None:
        base = self._base()
        emptied = self._limit
        rate = self._rate_before
        excess = round_trip - base
        if excess > 0.01 + _target(rate) / 2:
            if self._attempts < MEASURE_ATTEMPTS and self._goal > SMALLEST_WINDOW:
                # The rate was not what it seemed, so that was not empty.
                self._begin_emptying(self._limit / round_trip)
                return
            if excess > LONG_QUEUE * _target(max(rate, self._good_rate)):
                # The way has become longer: nothing that was known of it holds.
                self.forget(now)
                return
        self._smallest_before, self._smallest = self._smallest, round_trip
        self._good_rate = rate
        self._measured_for = 0.0
        self._has_measured = True
        self._short_rounds = -1  # the first round still shows the emptiness that was made
        self._phase = _REFILLING
        base = self._base()
        self._set_limit(rate * (base + _target(rate)))  # whose pace will be needed
        self._goal = self._limit
        self._limit = min(emptied, self._goal)

    # --- small things -----------------------------------------------------------------------------------------------

    def _base(self) -> float:
        """Give the smallest round trip that is known."""
        return min(self._smallest, self._smallest_before, self._round_minimum)

    def _growth(self, base: float) -> float:
        """Give the share by which the window may grow in a round trip."""
        if self._has_measured:
            return min(1.0, LATER_OVERSHOOT / base)
        return min(1.0, max(SLOWEST_FIRST_GROWTH, FIRST_OVERSHOOT / base))

    def _measure_interval(self, base: float) -> float:
        return max(MEASURE_INTERVAL, MEASURE_INTERVAL_ROUNDS * base)

    def _set_limit(self, limit: float) -> None:
        self._limit = min(LARGEST_WINDOW, max(SMALLEST_WINDOW, limit))
        self._set_pace(self._base())

    def _set_pace(self, base: float) -> None:
        share = 1 + self._gain if self._phase is _GROWING else PACE_ABOVE_RATE
        self.pace = share * self._limit / base


def _target(rate: float) -> float:
    """Give the queueing delay, in seconds, that a tunnel of this rate in bytes per second is to cause."""
    return min(LARGEST_TARGET, SMALLEST_TARGET + TARGET_FACTOR / math.sqrt(max(rate, 1.0)))
