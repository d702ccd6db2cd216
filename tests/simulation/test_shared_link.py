"""The congestion window on links of every kind: it fills them, and keeps its queue short."""

from __future__ import annotations

import pytest
from simulation.shared_link import LinkShape, SharedLink

pytestmark = pytest.mark.timeout(1200)  # they compute all the time, which takes minutes on a slow machine
LEAST_SHARE = 0.90
LONGEST_QUEUE = 0.150

# rate, round trip, steady from, until
LINKS = [
    (0.1e6, 0.020, 3, 25),
    (0.1e6, 0.150, 4, 25),
    (0.1e6, 0.400, 8, 40),
    (1e6, 0.020, 2, 15),
    (1e6, 0.150, 3, 18),
    (1e6, 0.400, 8, 28),
    (20e6, 0.020, 1, 3),
    (20e6, 0.150, 4.2, 6),
    pytest.param(20e6, 0.400, 13, 20, marks=pytest.mark.integration),
]


@pytest.mark.parametrize(("rate", "round_trip", "begin", "end"), LINKS)
def test_a_link_is_filled_with_a_short_queue(rate: float, round_trip: float, begin: float, end: float) -> None:
    link = SharedLink(LinkShape(rate=rate, round_trip=round_trip)).run(end)
    assert link.share(begin) >= LEAST_SHARE
    assert link.longest_queue(begin) < LONGEST_QUEUE


@pytest.mark.parametrize(("rate", "round_trip"), [(0.1e6, 0.05), (0.1e6, 0.4), (1e6, 0.15)])
def test_messages_that_come_late_at_random_change_nothing(rate: float, round_trip: float) -> None:
    link = SharedLink(LinkShape(rate=rate, round_trip=round_trip, jitter=0.02)).run(20)
    assert link.share(8) >= LEAST_SHARE
    assert link.longest_queue(8) < LONGEST_QUEUE


@pytest.mark.parametrize(("rate", "round_trip"), [(0.1e6, 0.05), (1e6, 0.05), (1e6, 0.4)])
def test_what_overshoots_at_the_beginning_is_bounded(rate: float, round_trip: float) -> None:
    assert SharedLink(LinkShape(rate=rate, round_trip=round_trip)).run(8).longest_queue(0) < 0.3


@pytest.mark.parametrize(("rate", "round_trip"), [(1e6, 0.05), (1e6, 0.4), (2e6, 0.15)])
def test_a_rate_that_drops_to_a_tenth_and_comes_back(rate: float, round_trip: float) -> None:
    drop, back = 8.0, 18.0
    shape = LinkShape(rate=lambda now: rate / 10 if drop <= now < back else rate, round_trip=round_trip)
    link = SharedLink(shape).run(30)
    # What was in flight has to pass at a tenth of the rate: ten round trips and ten times the queue.
    settled = drop + 11 * (round_trip + 0.05) + 1
    assert link.longest_queue(settled, back) < LONGEST_QUEUE
    assert link.share(settled, back) >= LEAST_SHARE
    assert link.share(back + 25 * round_trip + 1) >= LEAST_SHARE


@pytest.mark.parametrize(("rate", "round_trip"), [(1e6, 0.05), (1e6, 0.15), (2e6, 0.05)])
def test_one_lost_message_in_a_hundred_costs_little(rate: float, round_trip: float) -> None:
    link = SharedLink(LinkShape(rate=rate, round_trip=round_trip, loss=0.01)).run(10)
    assert link.share(4) >= LEAST_SHARE
    assert link.longest_queue(4) < LONGEST_QUEUE
    messages = sum(sum(sample.rates) for sample in link.samples) / 10 / 1174
    assert link.repeats < 0.03 * messages


@pytest.mark.parametrize(("rate", "round_trip"), [(0.1e6, 0.05), (0.4e6, 0.05), (0.4e6, 0.15), (1e6, 0.02)])
@pytest.mark.parametrize("second", [0.0, 10.3])
def test_two_tunnels_share_a_link(rate: float, round_trip: float, second: float) -> None:
    link = SharedLink(LinkShape(rate=rate, round_trip=round_trip), starts=(0.0, second)).run(second + 35)
    assert link.unfairness(second + 15) < 2
    assert link.share(second + 15) >= LEAST_SHARE
    assert link.longest_queue(second + 15) < 2 * LONGEST_QUEUE  # each causes its own


def test_it_gives_way_to_traffic_that_does_not_look_at_delay() -> None:
    shape = LinkShape(rate=1e6, round_trip=0.05, other_traffic=lambda now: 5e5 if 8 <= now < 16 else 0)
    link = SharedLink(shape).run(24)
    assert 0.45 <= link.share(10, 16) <= 0.55
    assert link.longest_queue(10, 16) < LONGEST_QUEUE
    assert link.share(18) >= LEAST_SHARE


def test_a_way_that_becomes_longer_is_learned() -> None:
    # A network that changes below a connection that survives: a VPN that takes another route.
    shape = LinkShape(rate=1e6, round_trip=0.05)
    link = SharedLink(shape)
    link.at(8.0, lambda: link.change_shape(LinkShape(rate=1e6, round_trip=0.25)))
    link.run(24)
    assert link.share(14) >= LEAST_SHARE
    assert link.longest_queue(14) < LONGEST_QUEUE
