"""Retransmission: sections 5.4, 5.5 and 5.8 of docs/PROTOCOL.md, and where we do better than the official client."""

from __future__ import annotations

import math
import random

import pytest

from ssm_proxy.channel.outgoing import GIVE_UP_AFTER_PROBES, LARGEST_PROBE_INTERVAL, Outgoing
from ssm_proxy.channel.rtt import RoundTrip


class RecordingWindow:
    """A window that remembers what it was told."""

    limit_bytes = 1 << 20
    pace = math.inf

    def __init__(self) -> None:
        self.acknowledged: list[tuple[int, float | None]] = []
        self.in_flight: list[int] = []
        self.resumed_at: list[float] = []

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float, in_flight_bytes: int) -> None:
        self.acknowledged.append((size_bytes, round_trip))
        self.in_flight.append(in_flight_bytes)

    def forget(self, now: float) -> None:
        self.resumed_at.append(now)


class Sender:
    """An ``Outgoing`` whose message number n is the text of n, 10 bytes in size."""

    def __init__(self, *, round_trip_time: float | None = None) -> None:
        self.window = RecordingWindow()
        self.round_trip = RoundTrip()
        self.outgoing = Outgoing(self.window, self.round_trip)
        if round_trip_time is not None:
            for _ in range(200):
                self.round_trip.add_sample(round_trip_time)

    def add(self, count: int, now: float) -> None:
        for _ in range(count):
            self.outgoing.add(b"%d" % self.outgoing.next_sequence_number, 10, now)

    def acknowledge(self, *numbers: int, now: float) -> None:
        for number in numbers:
            self.outgoing.acknowledge(number, now)

    def due(self, now: float) -> list[int]:
        return [int(data) for data in self.outgoing.retransmissions(now)]

    def deadline(self) -> float:
        deadline = self.outgoing.deadline()
        assert deadline is not None
        return deadline


class TestBookkeeping:
    def test_numbers_bytes_and_emptiness(self) -> None:
        sender = Sender()
        assert sender.outgoing.is_empty
        assert sender.outgoing.deadline() is None
        sender.add(3, 0.0)
        assert sender.outgoing.next_sequence_number == 3
        assert sender.outgoing.unacknowledged_bytes == 30
        sender.acknowledge(1, now=0.1)
        assert sender.outgoing.unacknowledged_bytes == 20
        sender.acknowledge(0, 2, now=0.1)
        assert sender.outgoing.is_empty
        assert sender.outgoing.unacknowledged_bytes == 0
        assert sender.outgoing.deadline() is None
        assert sender.due(100.0) == []

    @pytest.mark.parametrize("number", [-1, 1, 7, 2**63])
    def test_an_unknown_number_changes_nothing(self, number: int) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        assert not sender.outgoing.acknowledge(number, 0.1)
        assert sender.outgoing.unacknowledged_bytes == 10
        assert sender.deadline() == 0.2
        assert sender.window.acknowledged == []

    def test_an_acknowledge_counts_once(self) -> None:
        sender = Sender()
        sender.add(2, 0.0)
        assert sender.outgoing.acknowledge(0, 0.1)
        assert not sender.outgoing.acknowledge(0, 0.1)
        assert sender.outgoing.unacknowledged_bytes == 10
        assert len(sender.window.acknowledged) == 1

    def test_the_window_hears_of_sizes_round_trips_and_what_was_in_flight(self) -> None:
        sender = Sender()
        sender.add(3, 0.0)
        sender.acknowledge(0, 2, now=0.25)
        assert sender.window.acknowledged == [(10, 0.25), (10, 0.25)]
        assert sender.window.in_flight == [30, 20]

    def test_the_window_hears_of_a_resume_and_the_way_may_be_shorter_then(self) -> None:
        sender = Sender(round_trip_time=0.02)
        sender.add(1, 0.0)
        sender.outgoing.resend_all(7.0)
        assert sender.window.resumed_at == [7.0]
        assert sender.round_trip.minimum == pytest.approx(0.002)


class TestBacklogOfAResume:
    def test_it_leaves_in_order_as_far_as_the_window_allows(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.window.limit_bytes = 30
        assert [int(data) for data in sender.outgoing.resend_all(5.0)] == [0, 1, 2]
        assert sender.due(5.0) == []
        sender.acknowledge(0, now=5.1)
        assert sender.due(5.1) == [3]
        sender.acknowledge(1, 2, now=5.2)
        assert sender.due(5.2) == [4, 5]
        assert sender.outgoing.unacknowledged_bytes == 70
        assert sender.outgoing.unacknowledged_count == 7

    def test_even_a_closed_window_lets_one_leave(self) -> None:
        sender = Sender()
        sender.add(3, 0.0)
        sender.window.limit_bytes = 0
        assert [int(data) for data in sender.outgoing.resend_all(5.0)] == [0]
        sender.acknowledge(0, now=5.1)
        assert sender.due(5.1) == [1]

    def test_what_is_acknowledged_meanwhile_does_not_leave(self) -> None:
        sender = Sender()
        sender.add(5, 0.0)
        sender.window.limit_bytes = 20
        sender.outgoing.resend_all(5.0)
        assert sender.outgoing.acknowledge(3, 5.05)
        sender.acknowledge(0, 1, now=5.1)
        assert sender.due(5.1) == [2, 4]
        sender.acknowledge(2, 4, now=5.2)
        assert sender.outgoing.is_empty
        assert sender.outgoing.unacknowledged_bytes == 0

    def test_a_second_resume_begins_with_the_lowest_again(self) -> None:
        sender = Sender()
        sender.add(5, 0.0)
        sender.window.limit_bytes = 20
        sender.outgoing.resend_all(5.0)
        sender.acknowledge(0, now=5.1)
        sender.due(5.1)
        assert [int(data) for data in sender.outgoing.resend_all(9.0)] == [1, 2]

    def test_its_sendings_measure_the_round_trip(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        sender.outgoing.resend_all(5.0)
        sender.acknowledge(0, now=5.25)
        assert sender.window.acknowledged == [(10, 0.25)]
        assert sender.window.in_flight == [10]

    def test_a_flight_that_is_lost_at_once_is_repaired_in_a_few_round_trips(self) -> None:
        sender = Sender(round_trip_time=0.001)
        sender.add(200, 0.0)
        sender.outgoing.resend_all(5.0)
        now = sender.deadline()
        due = sender.due(now)
        assert due == [0]
        for _ in range(12):
            now += 0.001
            sender.acknowledge(*due, now=now)
            due = sender.due(now)
        assert sender.outgoing.is_empty


def test_a_long_silence_makes_the_window_begin_anew() -> None:
    sender = Sender()
    sender.add(1, 100.0)
    sender.acknowledge(0, now=100.1)
    before = len(sender.window.resumed_at)
    sender.add(1, 105.0)
    sender.acknowledge(1, now=105.1)
    assert len(sender.window.resumed_at) == before
    sender.add(1, 120.0)
    assert sender.window.resumed_at[before:] == [120.0]


class TestFastRetransmission:
    def test_three_later_acknowledges_are_no_proof(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.acknowledge(1, 2, 3, now=0.05)
        assert sender.due(0.05) == []

    def test_a_fourth_later_one_shows_the_hole(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.acknowledge(1, 2, 3, 4, now=0.05)
        assert sender.due(0.05) == [0]
        assert sender.outgoing.retransmission_count == 1

    def test_it_is_the_distance_that_counts_not_the_number_of_acknowledges(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.acknowledge(6, now=0.05)
        assert sender.due(0.05) == [0, 1, 2]

    def test_the_order_of_the_acknowledges_does_not_matter(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.acknowledge(9, 1, now=0.05)
        assert sender.due(0.05) == [0, 2, 3, 4, 5]

    def test_every_hole_is_filled_and_only_once(self) -> None:
        sender = Sender()
        sender.add(20, 0.0)
        sender.acknowledge(*(n for n in range(20) if n not in (3, 7, 8, 18)), now=0.05)
        assert sender.due(0.05) == [3, 7, 8]  # 18 has too few behind it
        assert sender.due(0.06) == []

    def test_a_repeat_is_lost_in_its_turn_when_newer_sendings_arrive(self) -> None:
        sender = Sender()
        sender.add(5, 0.0)
        sender.acknowledge(1, 2, 3, 4, now=0.05)
        assert sender.due(0.05) == [0]
        sender.add(4, 0.06)
        sender.acknowledge(5, 6, 7, now=0.1)
        assert sender.due(0.1) == []
        sender.acknowledge(8, now=0.11)
        assert sender.due(0.11) == [0]

    def test_the_acknowledge_of_a_repeat_proves_only_its_first_sending(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        assert sender.due(0.2) == [0]
        sender.add(6, 0.21)
        assert sender.due(0.3) == []
        sender.acknowledge(0, now=0.3)  # sent last before 1..6, first before them too: says nothing about them
        assert sender.due(0.3) == []

    def test_reordering_within_three_causes_no_repeat(self) -> None:
        sender = Sender()
        sender.add(400, 0.0)
        order = list(range(400))
        shuffle = random.Random(7)
        for start in range(0, 400, 4):
            block = order[start : start + 4]
            shuffle.shuffle(block)
            order[start : start + 4] = block
        for number in order:
            sender.acknowledge(number, now=0.05)
            assert sender.due(0.05) == []


class TestProbes:
    def test_the_head_alone_goes_out_when_nothing_is_acknowledged_for_a_timeout(self) -> None:
        sender = Sender()
        sender.add(5, 0.0)
        assert sender.deadline() == 0.2
        assert sender.due(0.19) == []
        assert sender.due(0.2) == [0]
        assert sender.due(0.2) == []

    def test_any_acknowledge_puts_it_off(self) -> None:
        sender = Sender()
        sender.add(5, 0.0)
        sender.acknowledge(2, now=0.15)
        assert sender.deadline() == pytest.approx(0.15 + sender.round_trip.timeout)
        assert sender.due(0.2) == []

    def test_the_first_message_after_a_quiet_time_starts_the_clock_anew(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        sender.acknowledge(0, now=0.1)
        sender.add(1, 500.0)
        assert sender.deadline() == pytest.approx(500.0 + sender.round_trip.timeout)

    def test_the_interval_doubles_up_to_five_seconds(self) -> None:
        sender = Sender()
        sender.add(3, 0.0)
        now, intervals = 0.0, []
        for _ in range(8):
            deadline = sender.deadline()
            intervals.append(deadline - now)
            now = deadline
            assert sender.due(now) == [0]
        assert intervals == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
        assert LARGEST_PROBE_INTERVAL == 5.0

    def test_the_acknowledge_of_a_message_that_was_sent_once_ends_the_doubling(self) -> None:
        sender = Sender()
        sender.add(3, 0.0)
        for _ in range(6):
            sender.due(sender.deadline())
        sender.acknowledge(1, now=20.0)
        assert sender.deadline() == pytest.approx(20.0 + sender.round_trip.timeout)

    def test_that_of_a_repeated_one_does_not(self) -> None:
        sender = Sender()
        sender.add(2, 0.0)
        assert sender.due(sender.deadline()) == [0]
        sender.acknowledge(0, now=0.5)
        assert sender.deadline() == pytest.approx(0.5 + 0.4)

    def test_but_it_shortens_a_very_long_one(self) -> None:
        sender = Sender()
        sender.add(2, 0.0)
        for _ in range(10):
            sender.due(sender.deadline())
        sender.acknowledge(0, now=60.0)
        assert sender.deadline() == pytest.approx(60.0 + 0.2 * 8)

    @pytest.mark.parametrize("round_trip_time", [0.25, 0.5, 0.95, 1.5])
    def test_a_round_trip_longer_than_the_first_timeout_is_learned(self, round_trip_time: float) -> None:
        """Message after message, each alone: after a few none is repeated any more."""
        sender = Sender()
        now, repeats = 0.0, []
        for number in range(30):
            sender.add(1, now)
            answer = now + round_trip_time
            count = 0
            while sender.deadline() < answer:
                count += len(sender.due(sender.deadline()))
            repeats.append(count)
            sender.acknowledge(number, now=answer)
            assert sender.due(answer) == []
            now = answer + 1.0
        assert sum(repeats[:4]) >= 1
        assert sum(repeats[4:]) <= (0 if round_trip_time < 1 else 30)  # the largest timeout is a second

    def test_the_head_is_the_lowest_number_whatever_was_repeated_before(self) -> None:
        sender = Sender()
        sender.add(8, 0.0)
        sender.acknowledge(4, 5, 6, 7, now=0.05)  # 0 to 3 remain; all of them count as lost
        assert sender.due(0.05) == [0, 1, 2, 3]
        assert sender.due(sender.deadline()) == [0]

    def test_giving_up_takes_sixty_probes_in_a_row(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        for _ in range(GIVE_UP_AFTER_PROBES):
            assert not sender.outgoing.has_given_up
            assert sender.due(sender.deadline()) == [0]
        assert sender.outgoing.has_given_up
        assert 240 < sender.deadline() < 330  # about five minutes
        sender.acknowledge(0, now=300.0)
        assert not sender.outgoing.has_given_up

    def test_a_clock_that_jumps_gives_up_nothing(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        assert sender.due(1_000_000.0) == [0]
        assert not sender.outgoing.has_given_up
        assert sender.deadline() == pytest.approx(1_000_000.4)


class TestKarnsRule:
    def test_a_message_sent_once_gives_a_sample(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        sender.acknowledge(0, now=0.3)
        assert sender.round_trip.smoothed == pytest.approx(0.125)

    def test_a_repeated_message_gives_none(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        sender.due(0.2)
        sender.acknowledge(0, now=0.21)
        assert sender.round_trip.smoothed == 0.1
        assert sender.window.acknowledged == [(10, None)]


class TestResendAll:
    def test_everything_unacknowledged_in_its_order(self) -> None:
        sender = Sender()
        sender.add(12, 0.0)
        sender.acknowledge(1, 6, 7, now=0.05)
        assert sender.due(0.05) == [0, 2, 3]  # now last in the order of sendings
        assert [int(data) for data in sender.outgoing.resend_all(9.0)] == [0, 2, 3, 4, 5, 8, 9, 10, 11]

    def test_nothing_to_resend(self) -> None:
        assert Sender().outgoing.resend_all(1.0) == []

    def test_timers_start_anew(self) -> None:
        sender = Sender()
        sender.add(2, 0.0)
        for _ in range(10):
            sender.due(sender.deadline())
        sender.outgoing.resend_all(100.0)
        assert sender.due(100.0) == []
        assert sender.deadline() == pytest.approx(100.2)

    def test_probes_before_it_do_not_count_towards_giving_up(self) -> None:
        sender = Sender()
        sender.add(1, 0.0)
        for _ in range(GIVE_UP_AFTER_PROBES - 1):
            sender.due(sender.deadline())
        sender.outgoing.resend_all(400.0)
        sender.due(sender.deadline())
        assert not sender.outgoing.has_given_up

    def test_acknowledges_on_the_new_connection_show_holes_in_it(self) -> None:
        sender = Sender()
        sender.add(10, 0.0)
        sender.outgoing.resend_all(5.0)
        sender.acknowledge(1, 2, 3, 4, now=5.05)
        assert sender.due(5.05) == [0]

    def test_old_evidence_shows_nothing_about_it(self) -> None:
        sender = Sender()
        sender.add(20, 0.0)
        sender.acknowledge(19, now=0.05)
        sender.outgoing.resend_all(5.0)
        assert sender.due(5.0) == []


class TestRecovery:
    def test_the_acknowledge_of_a_probe_lets_two_old_messages_go(self) -> None:
        sender = Sender(round_trip_time=0.05)
        sender.add(10, 0.0)
        now = sender.deadline()
        assert sender.due(now) == [0]
        sender.acknowledge(0, now=now + 0.05)
        assert sender.due(now + 0.05) == [1, 2]
        sender.acknowledge(1, 2, now=now + 0.1)
        assert sender.due(now + 0.1) == [3, 4, 5, 6]
        sender.acknowledge(3, 4, 5, 6, now=now + 0.15)
        assert sender.due(now + 0.15) == [7, 8, 9]

    def test_credit_does_not_outlast_its_batch(self) -> None:
        sender = Sender(round_trip_time=0.05)
        sender.add(2, 0.0)
        now = sender.deadline()
        assert sender.due(now) == [0]
        sender.acknowledge(0, now=now + 0.05)
        assert sender.due(now + 0.05) == [1]
        sender.add(5, now + 0.05)
        assert sender.due(now + 0.05) == []

    def test_messages_sent_after_the_probe_are_not_repeated_by_credit(self) -> None:
        sender = Sender(round_trip_time=0.02)
        sender.add(1, 0.0)
        assert sender.due(0.2) == [0]
        sender.add(5, 0.2)
        sender.acknowledge(0, now=0.25)
        assert sender.due(0.25) == []

    @pytest.mark.parametrize("behind", [0, 3])
    def test_credit_that_nothing_could_use_is_gone(self, behind: int) -> None:
        sender = Sender(round_trip_time=0.02)
        sender.add(1, 0.0)
        now = sender.deadline()
        assert sender.due(now) == [0]
        sender.add(behind, now)
        sender.acknowledge(0, now=now + 0.02)
        assert sender.due(now + 0.02) == []
        sender.add(3, now + 0.02)
        now = sender.deadline()
        assert sender.due(now) == [1]
        assert sender.due(now) == []

    def test_an_answer_sooner_than_any_round_trip_is_to_the_first_sending(self) -> None:
        sender = Sender(round_trip_time=0.1)
        sender.add(10, 0.0)
        at = sender.deadline()
        assert sender.due(at) == [0]
        sender.acknowledge(0, now=at + 0.05)  # the smallest round trip ever seen is 0.1
        assert sender.due(at + 0.05) == []

    def test_before_the_first_sample_the_timeout_stands_for_the_round_trip(self) -> None:
        sender = Sender()
        sender.add(100, 0.0)
        now = 0.0
        while sender.deadline() < 0.6:  # the real round trip
            now = sender.deadline()
            assert sender.due(now) == [0]
        repeats = 0
        for number in range(100):  # the answers to the first sendings, one after another
            sender.acknowledge(number, now=0.6 + number / 10_000)
            repeats += len(sender.due(0.6 + number / 10_000))
        assert repeats <= 2

    def test_a_lost_flight_is_repaired_in_a_few_round_trips(self) -> None:
        sender = Sender(round_trip_time=0.05)
        sender.add(512, 0.0)
        now = sender.deadline()
        arriving = sender.due(now)
        round_trips, sendings = 0, len(arriving)
        while not sender.outgoing.is_empty:
            now += 0.05
            sender.acknowledge(*arriving, now=now)
            arriving = sender.due(now)
            assert arriving or sender.outgoing.is_empty, "stands still until the next timer"
            sendings += len(arriving)
            round_trips += 1
        assert round_trips <= 10  # the official client needs 512
        assert sendings == 512  # and nothing was sent twice for it

    @pytest.mark.parametrize("batch", [1, 16, 512])
    def test_an_agent_that_stood_still_for_a_minute_is_not_flooded(self, batch: int) -> None:
        sender = Sender(round_trip_time=0.05)
        sender.add(512, 0.0)
        now, probes = 0.0, 0
        while (deadline := sender.deadline()) < 60.0:
            now = deadline
            assert sender.due(now) == [0]
            probes += 1
        assert probes <= 20
        # It wakes and acknowledges all originals in order, in batches a millisecond apart.
        now, repeats = 60.0, 0
        for start in range(0, 512, batch):
            now += 0.001
            sender.acknowledge(*range(start, start + batch), now=now)
            repeats += len(sender.due(now))
        assert sender.outgoing.is_empty
        assert repeats <= 4
