"""The queue for StartSession under anything that can happen: starts, ends before the turn, refusals, time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssm_proxy.aws.start_rate import first_pace, from_text, to_text

NOW = 1_700_000_000.0
ROUNDING = 1e-6
EVENTS = st.one_of(
    st.tuples(st.just("comes"), st.integers(1, 12)),
    st.tuples(st.just("leave"), st.integers(1, 2**12)),
    st.tuples(st.just("time"), st.integers(1, 3000)),
    st.tuples(st.sampled_from(["refused", "answered"]), st.just(0)),
)


@example([("answered", 0), ("time", 378), ("comes", 3), ("leave", 4)])  # the third is a rounding away from its place
@given(st.lists(EVENTS, max_size=60))
def test_no_turn_is_used_twice_and_none_is_kept_for_who_has_gone(events: list[tuple[str, int]]) -> None:
    pace, now = first_pace(NOW), NOW
    waiting: dict[str, float] = {}
    """Holder -> number, of those whose turn has not come."""
    for index, (what, amount) in enumerate(events):
        if what == "comes":
            for each in range(amount):
                holder = f"{index}/{each}"
                pace = pace.with_number(now, holder)
                # All who have gone were taken out, so this is true.
                assert pace.before(pace.last_number, now) == sum(
                    number > pace.turn_at(now) + ROUNDING for number in waiting.values()
                )
                waiting[holder] = pace.last_number
        elif what == "leave":
            gone = {each for place, each in enumerate(waiting) if amount >> (place % 12) & 1}
            turn = pace.turn_at(now)
            pace = pace.without(gone, now)
            for each in gone:
                del waiting[each]
            for each, number in waiting.items():
                moved = pace.waiting[each]
                assert moved <= number + ROUNDING
                assert moved >= number - ROUNDING or moved > turn - ROUNDING, "nobody moves up into what is over"
                waiting[each] = moved
        elif what == "time":
            now += amount / 1000
        else:
            pace = pace.throttled(now, in_turn=True) if what == "refused" else pace.succeeded(now)
        waiting = {each: number for each, number in waiting.items() if number > pace.turn_at(now)}
        numbers = sorted(waiting.values())
        assert all(later - earlier == pytest.approx(1) for earlier, later in pairwise(numbers))
        assert not numbers or numbers[-1] == pytest.approx(pace.given_out - 1)
        assert from_text(to_text(pace).encode()) == pace
