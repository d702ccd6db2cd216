"""Whole sessions on a virtual clock: long waits cost no time, and every run is the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

import pytest
from simulation import wire_sketch
from simulation.fixed_window import FixedWindow
from simulation.model_agent import ModelAgent
from simulation.pair import PAUSE, START, Link, Pair
from simulation.wire_sketch import Frame

from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.channel.data_channel import MAX_UNACKNOWLEDGED_MESSAGES, SETTLE_TIME
from ssm_proxy.channel.events import MessageDropped, PublicationChanged, SessionFailed, SessionStarted
from ssm_proxy.errors import AcknowledgeTimeout, HandshakeFailed


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def started(**options: object) -> Pair:
    """Give a pair that is past its handshake and its settling."""
    pair = Pair(**options)  # type: ignore[arg-type]
    pair.run(lambda: pair.channel.is_started)
    pair.advance_to(pair.now + SETTLE_TIME)
    return pair


def transfer(pair: Pair, up: bytes, down: bytes, *, at_most: float = 60.0) -> float:
    """Send both ways until all is acknowledged and quiet; return the seconds it took."""
    pair.agent.send(down, pair.now)
    pair.send(up)
    took = pair.run(lambda: pair.is_at_rest, at_most=at_most)
    assert bytes(pair.agent.received) == up
    assert bytes(pair.received) == down
    pair.run()
    assert pair.channel.next_deadline() is None
    return took


def once(condition: Callable[[Frame], bool]) -> Callable[[Frame], bool]:
    """Give a condition that holds for the first match only."""
    left = [True]

    def lose(frame: Frame) -> bool:
        if left[0] and condition(frame):
            left[0] = False
            return True
        return False

    return lose


def is_acknowledge_of(number: int) -> Callable[[Frame], bool]:
    return lambda frame: frame.kind == "acknowledge" and wire_sketch.acknowledged_number(frame) == number


class TestGoodLink:
    def test_a_session_from_end_to_end(self) -> None:
        pair = started()
        assert [type(event) for event in pair.events] == [SessionStarted]
        transfer(pair, some_bytes(300_000), some_bytes(200_000))
        assert pair.channel.retransmission_count == 0
        pair.channel.terminate(pair.now)
        pair.settle()
        pair.run()
        assert pair.agent.flags == [b"\0\0\0\2"]
        assert pair.channel.is_drained

    @pytest.mark.parametrize("latency", [0.0, 0.001, 0.05, 0.3, 2.0])
    def test_at_any_distance(self, latency: float) -> None:
        pair = started(up=Link(latency=latency), down=Link(latency=latency))
        took = transfer(pair, some_bytes(600_000), some_bytes(50_000))
        assert took <= 4 * latency + 4 * latency + 1.0  # two windows, each a round trip, and the timers' spare repeats
        assert pair.channel.retransmission_count <= (0 if latency < 0.1 else 15)  # of about 590 messages

    def test_round_trip_time_settles_at_the_links(self) -> None:
        pair = started(up=Link(latency=0.03), down=Link(latency=0.05))
        transfer(pair, some_bytes(200_000), b"")
        assert pair.channel.round_trip_time == pytest.approx(0.08, abs=0.005)

    @pytest.mark.parametrize("latency", [0.12, 0.4])
    def test_keystrokes_on_a_slow_path_are_not_repeated_for_ever(self, latency: float) -> None:
        pair = started(up=Link(latency=latency), down=Link(latency=latency))
        for count in range(50):
            pair.send(b"k")
            pair.run()
            if count == 10:
                learned = pair.channel.retransmission_count
        assert pair.channel.retransmission_count == learned <= 6
        assert pair.channel.round_trip_time == pytest.approx(2 * latency, rel=0.1)

    def test_nothing_is_sent_while_there_is_nothing_to_say(self) -> None:
        pair = started()
        transfer(pair, b"x", b"y")
        before = (pair.up.sent_count, pair.down.sent_count)
        pair.advance_to(pair.now + 24 * 3600)
        assert (pair.up.sent_count, pair.down.sent_count) == before
        assert not pair.channel.is_closed

    def test_a_narrow_link_is_filled_and_not_flooded(self) -> None:
        pair = started(up=Link(latency=0.02, bandwidth=1_000_000.0), window=FixedWindow(64 * 1024))
        took = transfer(pair, some_bytes(1_000_000), b"")
        assert took < 1.35  # headers included, the link was never idle
        assert pair.channel.retransmission_count == 0


class TestHandshake:
    @pytest.mark.parametrize(
        ("direction", "condition"),
        [
            ("down", lambda frame: frame.payload_type == 5),
            ("up", is_acknowledge_of(0)),
            ("up", lambda frame: frame.payload_type == 6),
            ("down", is_acknowledge_of(0)),
            ("down", lambda frame: frame.payload_type == 7),
            ("up", is_acknowledge_of(1)),
        ],
        ids=["request", "its acknowledge", "response", "its acknowledge ", "complete", "its acknowledge  "],
    )
    def test_each_message_may_be_lost(self, direction: str, condition: Callable[[Frame], bool]) -> None:
        pair = Pair(**{direction: Link(lose_next=once(condition))})
        pair.send(b"hello")
        took = pair.run(lambda: pair.is_at_rest)
        assert took < 1.0
        assert pair.agent.received == b"hello"
        transfer_more = some_bytes(5000)
        pair.agent.send(transfer_more, pair.now)
        pair.run(lambda: pair.is_at_rest)
        assert pair.received == transfer_more

    def test_a_dead_link_ends_in_time(self) -> None:
        pair = Pair(down=Link(loss=1.0))
        pair.run(lambda: pair.channel.is_closed, at_most=45.1)
        (failure,) = pair.events
        assert isinstance(failure, SessionFailed)
        assert isinstance(failure.error, HandshakeFailed)

    def test_a_slow_agent_is_waited_for(self) -> None:
        pair = started(agent=ModelAgent(complete_after=14.0))
        transfer(pair, b"hello", b"there")

    @pytest.mark.parametrize("session_type", ["Standard_Stream", "NonInteractiveCommands"])
    def test_another_session_type_fails_at_once(self, session_type: str) -> None:
        pair = Pair(session_type=session_type)
        pair.run(lambda: pair.channel.is_closed)
        (failure,) = pair.events
        assert isinstance(failure, SessionFailed)
        assert session_type in str(failure.error.cause)


class TestAgentNotReady:
    """HandshakeComplete is announced slightly before the agent takes data; both halves of section 6.2."""

    @pytest.mark.parametrize("discards_for", [0.0, 0.001, 0.01, 0.05])
    def test_nothing_is_thrown_away_at_loopback_speed(self, discards_for: float) -> None:
        pair = Pair(agent=ModelAgent(discards_for=discards_for), up=Link(latency=0.0), down=Link(latency=0.0))
        pair.send(b"SSH-2.0-client\r\n")
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.discarded_bytes == 0
        assert pair.agent.received == b"SSH-2.0-client\r\n"
        assert pair.channel.retransmission_count == 0

    def test_a_server_that_speaks_first_ends_the_wait(self) -> None:
        agent = ModelAgent(discards_for=0.002, refuses_for=0.003, speaks=b"SSH-2.0-server\r\n")
        pair = Pair(agent=agent, up=Link(latency=0.0), down=Link(latency=0.0))
        pair.send(b"SSH-2.0-client\r\n")
        assert pair.run(lambda: pair.is_at_rest) < 0.02
        assert (agent.discarded_bytes, agent.refused_count) == (0, 0)
        assert pair.received == b"SSH-2.0-server\r\n"
        assert agent.received == b"SSH-2.0-client\r\n"

    @pytest.mark.parametrize("latency", [0.0, 0.02])
    @pytest.mark.parametrize("refuses_for", [0.15, 1.0, 8.0])
    def test_data_that_is_refused_until_the_dial_is_done_comes_again(self, refuses_for: float, latency: float) -> None:
        agent = ModelAgent(refuses_for=refuses_for)
        pair = Pair(agent=agent, up=Link(latency=latency), down=Link(latency=latency))
        data = some_bytes(20_000)
        pair.send(data)
        took = pair.run(lambda: pair.is_at_rest)
        assert took <= 2 * refuses_for + 0.5  # the probe's interval doubles
        assert agent.received == data
        assert agent.refused_count >= 1
        assert pair.channel.retransmission_count <= 15


class TestLoss:
    @pytest.mark.parametrize("seed", range(4))
    def test_one_percent_both_ways(self, seed: int) -> None:
        pair = started(
            up=Link(latency=0.02, loss=0.01, bandwidth=4e6),
            down=Link(latency=0.02, loss=0.01, bandwidth=4e6),
            seed=seed,
        )
        size = 500_000
        took = transfer(pair, some_bytes(size), b"")
        assert took < 2.0
        # One in a hundred lost each way: some two in a hundred sent twice.
        assert pair.channel.retransmission_count <= 0.05 * size / 1024

    @pytest.mark.parametrize("seed", range(3))
    def test_five_percent_of_everything_both_ways_at_once(self, seed: int) -> None:
        bad = {"loss": 0.05, "reorder": 0.05, "duplicate": 0.05}
        pair = started(up=Link(**bad), down=Link(**bad), seed=seed)  # type: ignore[arg-type]
        # The agent repairs its losses one by one (5.5): give it time.
        transfer(pair, some_bytes(150_000), some_bytes(60_000), at_most=300.0)

    @pytest.mark.parametrize("seed", range(3))
    def test_half_of_everything(self, seed: int) -> None:
        pair = Pair(up=Link(loss=0.5), down=Link(loss=0.5), seed=seed)
        pair.send(some_bytes(20_000))
        pair.run(lambda: pair.is_at_rest, at_most=120.0)
        assert pair.agent.received == some_bytes(20_000)

    def test_a_lost_acknowledge_for_output_does_not_block_the_agent(self) -> None:
        """The official client never acknowledges a repeat, after which the agent repairs nothing any more (5.3)."""
        pair = started(up=Link(lose_next=once(is_acknowledge_of(5))))
        transfer(pair, b"", some_bytes(20_000))
        assert pair.agent.repeat_count == 1

    def test_a_whole_flight_is_repaired_in_a_few_round_trips(self) -> None:
        blackout = [False]
        pair = started(up=Link(latency=0.05, lose_next=lambda frame: blackout[0]), down=Link(latency=0.05))
        transfer(pair, some_bytes(50_000), b"")
        data = some_bytes(512 * 1024)
        blackout[0] = True
        pair.agent.received.clear()
        pair.send(data)  # all of it leaves at once, and is lost
        blackout[0] = False
        sent_before = pair.up.sent_count
        took = pair.run(lambda: pair.is_at_rest)
        assert took <= pair.channel.round_trip_time + 0.2 + 12 * 0.1  # a timeout, then doubling from one: 512 = 2 ** 9
        assert pair.up.sent_count - sent_before <= 1.1 * 512
        assert pair.agent.received[-len(data) :] == data

    def test_a_single_loss_is_repaired_in_about_a_round_trip(self) -> None:
        pair = started(
            up=Link(latency=0.2, lose_next=once(lambda frame: frame.seq == 40 and frame.payload_type == 1)),
            down=Link(latency=0.2),
        )
        for _ in range(10):  # until the round trip is known
            pair.send(b"x")
            pair.run()
        before = pair.channel.retransmission_count
        pair.agent.received.clear()
        took = transfer(pair, some_bytes(100_000), b"")
        assert took < 3 * 0.4  # by its timer it would take longer
        assert pair.channel.retransmission_count == 1 + before

    def test_a_lost_tail_is_repaired_by_the_timer(self) -> None:
        pair = started(up=Link(lose_next=once(lambda frame: frame.seq == 10)))
        took = transfer(pair, some_bytes(10 * 1024), b"")
        assert took < 0.5
        assert pair.channel.retransmission_count == 1


class TestStandstill:
    @pytest.mark.parametrize("seconds", [5.0, 60.0, 200.0])
    def test_an_agent_that_stands_still_is_probed_and_not_flooded(self, seconds: float) -> None:
        pair = started(up=Link(latency=0.02), down=Link(latency=0.02, bandwidth=5e6))
        transfer(pair, some_bytes(50_000), b"")
        data = some_bytes(1_000_000)
        pair.agent.received.clear()
        pair.agent.stall()
        pair.send(data)
        pair.advance_to(pair.now + seconds)
        probes = pair.channel.retransmission_count
        assert probes <= 6 + seconds / 5
        pair.agent.wake(pair.now)
        pair.settle()
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received[-len(data) :] == data
        assert pair.channel.retransmission_count - probes <= 5

    def test_an_agent_that_never_wakes_ends_the_session_after_minutes(self) -> None:
        pair = started()
        pair.agent.stall()
        pair.send(b"x")
        took = pair.run(lambda: pair.channel.is_closed, at_most=400.0)
        assert 240 < took < 330
        failure = pair.events[-1]
        assert isinstance(failure, SessionFailed)
        assert isinstance(failure.error, AcknowledgeTimeout)

    def test_a_full_window_stops_reading_and_goes_on(self) -> None:
        pair = started(window=FixedWindow(32 * 1024))
        pair.agent.stall()
        data = some_bytes(500_000)
        pair.send(data)
        pair.advance_to(pair.now + 30)
        assert pair.channel.capacity() == 0
        assert pair.uploaded == 32 * 1024
        pair.agent.wake(pair.now)
        pair.settle()
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received == data
        assert pair.most_unacknowledged <= 32 * 1024

    def test_memory_stays_bounded_by_the_window(self) -> None:
        pair = started(up=Link(bandwidth=2e6), window=FixedWindow(128 * 1024))
        transfer(pair, some_bytes(1_000_000), b"")
        assert pair.most_unacknowledged <= 128 * 1024


class TestResume:
    @pytest.mark.parametrize("gap", [0.05, 10.0, 800.0])
    def test_in_the_middle_of_transfers_both_ways(self, gap: float) -> None:
        slow = {"latency": 0.03, "bandwidth": 1e6}
        pair = started(up=Link(**slow), down=Link(**slow))
        up, down = some_bytes(400_000), some_bytes(100_000)
        pair.agent.send(down, pair.now)
        pair.send(up)
        for after in (0.05, 0.2, 0.4):
            pair.advance_to(pair.now + after)
            pair.cut()
            pair.advance_to(pair.now + gap)
            pair.resume()
        pair.run(lambda: pair.is_at_rest, at_most=120.0)
        assert pair.agent.received == up
        assert pair.received == down
        assert not [event for event in pair.events if isinstance(event, SessionFailed | MessageDropped)]

    def test_what_was_under_way_is_back_in_one_flight(self) -> None:
        pair = started(up=Link(latency=0.1), down=Link(latency=0.1))
        data = some_bytes(400_000)
        pair.send(data)
        pair.advance_to(pair.now + 0.05)
        pair.cut()
        pair.advance_to(pair.now + 60)
        before = pair.up.sent_count
        pair.resume()
        took = pair.run(lambda: pair.is_at_rest)
        assert took < 0.25  # one round trip; the official client would need some 40 s
        assert pair.up.sent_count - before == 391 + 2  # and the two acknowledges of the handshake
        assert pair.agent.received == data

    def test_acknowledges_that_were_lost_cost_the_agent_one_round_trip(self) -> None:
        pair = started(up=Link(latency=0.1), down=Link(latency=0.1))
        data = some_bytes(200 * 1024)
        pair.agent.send(data, pair.now)
        pair.settle()
        pair.run(lambda: pair.received == data)
        pair.cut()  # with every acknowledge under way
        pair.advance_to(pair.now + 5)
        pair.resume()
        took = pair.run(lambda: pair.agent.is_drained)
        assert took < 0.5  # its own timer would bring the 200 messages again one by one, for 20 s

    def test_during_the_handshake(self) -> None:
        pair = Pair(agent=ModelAgent(complete_after=1.0))
        pair.send(b"hello")
        pair.advance_to(pair.now + 0.015)  # the request has arrived, the response is on its way
        pair.cut()
        pair.advance_to(pair.now + 3)
        pair.resume()
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received == b"hello"


class TestPause:
    def test_both_sides_may_be_paused_and_lose_nothing(self) -> None:
        pair = started()
        up, down = some_bytes(100_000), some_bytes(50_000)
        pair.agent.send(down[:20_000], pair.now)
        pair.send(up[:50_000])
        pair.channel.receive(PAUSE, pair.now)
        pair.agent.receive(PAUSE, pair.now)
        pair.agent.send(down[20_000:], pair.now)
        pair.send(up[50_000:])
        pair.advance_to(pair.now + 20)
        pair.channel.receive(START, pair.now)
        pair.agent.receive(START, pair.now)
        pair.settle()
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received == up
        assert pair.received == down

    def test_one_that_is_never_taken_back_lapses(self) -> None:
        pair = started()
        pair.channel.receive(PAUSE, pair.now)
        pair.send(b"hello")
        took = pair.run(lambda: pair.is_at_rest)
        assert 29 < took < 31
        assert pair.agent.received == b"hello"
        changes = [event.paused for event in pair.events if isinstance(event, PublicationChanged)]
        assert changes == [True, False]


class TestWithTheCongestionWindow:
    """What the classes above show of one part each, with the window that the program has."""

    LINK: ClassVar = {"latency": 0.025, "bandwidth": 1e6}

    def pair(self, **options: object) -> Pair:
        return started(window=CongestionWindow(), **({"up": Link(**self.LINK), "down": Link(**self.LINK)} | options))

    def test_an_agent_whose_disk_is_slow_for_a_minute(self) -> None:
        pair = self.pair()
        transfer(pair, some_bytes(3_000_000), b"")
        window = pair.channel.window_bytes
        data = some_bytes(4_000_000)
        pair.agent.received.clear()
        pair.send(data)
        pair.advance_to(pair.now + 1)
        pair.agent.stall()
        pair.advance_to(pair.now + 60)
        probes = pair.channel.retransmission_count
        assert probes <= 18  # one at a time, soon every five seconds
        pair.agent.wake(pair.now)
        pair.settle()
        took = pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received == data
        assert pair.channel.retransmission_count - probes <= 5
        assert took < 7  # 3 MB at 0.87 MB/s: it is as fast as before
        assert pair.channel.window_bytes > window / 2

    def test_a_pause_of_twenty_seconds_in_the_middle_of_an_upload(self) -> None:
        pair = self.pair()
        data = some_bytes(3_000_000)
        pair.send(data)
        pair.advance_to(pair.now + 1)
        pair.agent.stall()
        pair.advance_to(pair.now + 1)  # what it had said has arrived
        pair.channel.receive(PAUSE, pair.now)
        pair.settle()
        sent = pair.up.sent_count
        pair.advance_to(pair.now + 20)
        assert pair.up.sent_count == sent
        pair.agent.wake(pair.now)
        pair.channel.receive(START, pair.now)
        pair.settle()
        assert pair.run(lambda: pair.is_at_rest) < 4
        assert pair.agent.received == data

    @pytest.mark.parametrize("seed", range(5))
    def test_five_percent_of_everything_both_ways(self, seed: int) -> None:
        bad = {"loss": 0.05, "reorder": 0.05, "duplicate": 0.05, **self.LINK}
        pair = self.pair(up=Link(**bad), down=Link(**bad), seed=seed)
        transfer(pair, some_bytes(500_000), some_bytes(100_000), at_most=300.0)

    def test_what_was_under_way_is_back_within_round_trips_of_a_resume(self) -> None:
        pair = self.pair()
        data = some_bytes(3_000_000)
        pair.send(data)
        pair.advance_to(pair.now + 2)
        in_flight = pair.channel.window_bytes
        assert in_flight > 50_000
        pair.cut()
        pair.advance_to(pair.now + 60)
        pair.resume()
        arrived = len(pair.agent.received)
        took = pair.run(lambda: len(pair.agent.received) >= arrived + in_flight + 1)
        assert took < 0.05 + in_flight / 0.8e6 + 0.2
        pair.run(lambda: pair.is_at_rest)
        assert pair.agent.received == data

    def test_acknowledges_do_not_wait_behind_data(self) -> None:
        pair = self.pair()
        pair.send(some_bytes(2_000_000))
        pair.advance_to(pair.now + 1)
        pair.channel.receive(wire_sketch.output(2, b"x"), pair.now)
        assert len(pair.channel.acknowledges_to_send()) == 1

    def test_thousands_of_keystrokes_are_no_more_than_a_receiver_can_put_in_order(self) -> None:
        pair = self.pair()
        transfer(pair, some_bytes(3_000_000), b"")
        pair.agent.stall()
        count = 0
        while pair.channel.capacity():
            pair.channel.send_input(b"k", pair.now)
            count += 1
        assert count <= MAX_UNACKNOWLEDGED_MESSAGES


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> tuple[float, int, int]:
        pair = started(up=Link(loss=0.1, reorder=0.1), down=Link(loss=0.1), seed=seed)
        transfer(pair, some_bytes(30_000), some_bytes(3_000), at_most=120.0)
        return pair.now, pair.up.sent_count, pair.down.sent_count

    assert run(1) == run(1)
    assert run(1) != run(2)
