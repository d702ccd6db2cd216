"""Streams, turns, room and patience of the client's side of smux. A sketch of smux judges the wire, not our codec."""

from __future__ import annotations

import pytest
from simulation.smux_sketch import FIN, NOP, PSH, SYN, UPD, Frame, pack, parse

from ssm_proxy.errors import LocalProtocolError, RemoteProtocolError, TransportTimeout
from ssm_proxy.mux import session as module
from ssm_proxy.mux.session import (
    MAX_QUEUED_BYTES,
    MAX_STREAM_QUEUED_BYTES,
    MAX_STREAMS,
    MAX_UNANSWERED,
    MAX_UNDELIVERED_BYTES,
    MIN_STREAM_QUEUED_BYTES,
    PATIENCE,
    RESUME_BYTES,
    SHARED_DATA_BYTES,
    SMALLEST_CUT_BYTES,
    ClosingAnswered,
    MuxSession,
    StreamClosedByPeer,
    StreamDataReceived,
    StreamGivenUp,
)

ALL = 10**9


def make_session(*, streams: int = 0, keepalive: bool = False) -> MuxSession:
    """Give a session with streams 3, 5, ... whose SYN has left."""
    session = MuxSession(keepalive, 0.0)
    for _ in range(streams):
        session.open_stream()
    session.data_to_send(ALL)
    return session


def sent(session: MuxSession, limit: int = ALL) -> list[Frame]:
    """Take what the session sends, which are whole frames and all that it has if the limit allows."""
    data = session.data_to_send(limit)
    assert len(data) <= limit
    frames, size, is_wrong = parse(data)
    assert (size, is_wrong) == (len(data), False)
    return frames


def receive(session: MuxSession, stream_id: int, size: int, now: float = 1.0) -> None:
    while size:
        part = min(size, 65535)
        session.receive(pack(PSH, stream_id, bytes(part)), now)
        size -= part


class TestOpening:
    def test_ids_are_odd_and_begin_with_3(self) -> None:
        session = MuxSession(False, 0.0)
        assert [session.open_stream() for _ in range(3)] == [3, 5, 7]
        assert sent(session) == [(SYN, 3, b""), (SYN, 5, b""), (SYN, 7, b"")]

    def test_data_follows_its_syn_at_once(self) -> None:
        session = MuxSession(False, 0.0)
        session.send(session.open_stream(), b"GET /")
        assert session.data_to_send(ALL) == bytes.fromhex("0100000003000000 0102050003000000") + b"GET /"

    def test_there_is_a_largest_number_of_streams(self) -> None:
        session = make_session(streams=MAX_STREAMS)
        assert not session.may_open
        with pytest.raises(LocalProtocolError):
            session.open_stream()
        session.close_stream(3)
        assert not session.may_open, "its FIN has not left"
        assert sent(session) == [(FIN, 3, b"")]
        assert session.may_open
        assert session.open_stream() == 3 + 2 * MAX_STREAMS

    def test_a_closed_stream_counts_until_its_data_has_left(self) -> None:
        session = make_session(streams=MAX_STREAMS)
        session.send(3, b"x" * 5000)
        session.close_stream(3)
        session.data_to_send(4000)
        assert not session.may_open
        session.data_to_send(ALL)
        assert session.may_open

    def test_ids_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_FIRST_STREAM_ID", 2**32 - 1)
        session = MuxSession(False, 0.0)
        assert session.open_stream() == 2**32 - 1
        with pytest.raises(LocalProtocolError):
            session.open_stream()


class TestSending:
    def test_frames_are_cut_at_32768(self) -> None:
        session = make_session(streams=1)
        session.send(3, bytes(range(256)) * 256)
        frames = sent(session)
        assert [len(data) for _, _, data in frames] == [32768, 32768]
        assert b"".join(data for _, _, data in frames) == bytes(range(256)) * 256

    def test_what_was_sent_in_small_parts_leaves_as_one_frame(self) -> None:
        session = make_session(streams=1)
        for byte in b"hello":
            session.send(3, bytes((byte,)))
        assert sent(session) == [(PSH, 3, b"hello")]

    def test_streams_take_turns_with_small_frames(self) -> None:
        session = make_session(streams=3)
        session.send(3, b"a" * 20_000)
        session.send(5, b"b" * 20_000)
        session.send(7, b"c")
        frames = sent(session)
        assert [stream_id for _, stream_id, _ in frames[:5]] == [3, 5, 7, 3, 5]
        assert max(len(data) for _, _, data in frames) == SHARED_DATA_BYTES
        for stream_id, size in ((3, 20_000), (5, 20_000), (7, 1)):
            assert sum(len(data) for _, each, data in frames if each == stream_id) == size

    def test_turns_go_on_from_call_to_call(self) -> None:
        session = make_session(streams=3)
        for stream_id in (3, 5, 7):
            session.send(stream_id, bytes(10_000))
        order = [stream_id for _ in range(4) for _, stream_id, _ in sent(session, 1000)]
        assert order == [3, 5, 7, 3]

    def test_a_request_behind_uploads_waits_for_one_turn_of_each(self) -> None:
        session = make_session(streams=11)
        for stream_id in range(3, 23, 2):
            session.send(stream_id, bytes(MAX_STREAM_QUEUED_BYTES))
        session.data_to_send(100_000)
        session.send(23, b"request")
        data = session.data_to_send(10 * (SHARED_DATA_BYTES + 8) + 100)
        assert data.endswith(b"request") or b"request" in data[-200:]

    @pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 100, 519, 520, 521, 1024, 5000])
    def test_any_limit_gives_the_same_bytes_in_the_end(self, limit: int) -> None:
        session = make_session(streams=2)
        session.send(3, b"a" * 5000)
        session.send(5, b"b" * 7000)
        session.close_stream(5)
        parts = []
        while session.pending_bytes:
            part = session.data_to_send(limit)
            assert 0 < len(part) <= limit
            parts.append(part)
        assert session.data_to_send(limit) == b""
        assert all(len(part) == limit for part in parts[:-1]), "what may leave is made use of"
        frames, size, is_wrong = parse(b"".join(parts))
        assert (size, is_wrong) == (sum(map(len, parts)), False)
        assert b"".join(data for _, stream_id, data in frames if stream_id == 3) == b"a" * 5000
        assert b"".join(data for _, stream_id, data in frames if stream_id == 5) == b"b" * 7000
        assert frames[-1][:2] in ((FIN, 5), (PSH, 3))
        headers = size - 12_000
        assert headers <= 8 * (3 + 12_000 / min(SMALLEST_CUT_BYTES, SHARED_DATA_BYTES))

    def test_nothing_may_leave(self) -> None:
        session = make_session(streams=1)
        session.send(3, b"x")
        assert session.data_to_send(0) == b""
        assert session.pending_bytes == 1
        assert sent(session) == [(PSH, 3, b"x")]
        assert session.pending_bytes == 0


class TestRoom:
    def test_a_stream_alone_has_room_for_64_kib(self) -> None:
        session = make_session(streams=1)
        assert session.stream_room(3) == MAX_STREAM_QUEUED_BYTES
        session.send(3, bytes(60_000))
        assert session.stream_room(3) == MAX_STREAM_QUEUED_BYTES - 60_000
        session.data_to_send(10_008)
        assert session.stream_room(3) == MAX_STREAM_QUEUED_BYTES - 50_000

    def test_many_streams_share_and_each_keeps_some(self) -> None:
        session = make_session(streams=64)
        assert session.stream_room(3) == MAX_QUEUED_BYTES // 64
        session = make_session(streams=MAX_STREAMS)
        for stream_id in range(3, 3 + 2 * MAX_STREAMS, 2):
            assert session.stream_room(stream_id) == MIN_STREAM_QUEUED_BYTES
            session.send(stream_id, bytes(MIN_STREAM_QUEUED_BYTES))
            assert session.stream_room(stream_id) == 0
        assert session.pending_bytes == MAX_STREAMS * MIN_STREAM_QUEUED_BYTES

    def test_a_share_that_shrank_is_no_debt(self) -> None:
        session = make_session(streams=1)
        session.send(3, bytes(MAX_STREAM_QUEUED_BYTES))
        for _ in range(100):
            session.open_stream()
        assert session.stream_room(3) == 0

    def test_what_is_closed_has_none(self) -> None:
        session = make_session(streams=2)
        session.receive(pack(FIN, 3), 1.0)
        session.close_stream(5)
        assert [session.stream_room(stream_id) for stream_id in (3, 5, 99)] == [0, 0, 0]


class TestClosing:
    def test_what_was_sent_leaves_before_fin(self) -> None:
        session = make_session(streams=1)
        session.send(3, b"bye")
        session.close_stream(3)
        session.close_stream(3)
        session.send(3, b"too late")
        assert sent(session) == [(PSH, 3, b"bye"), (FIN, 3, b"")]

    def test_a_stream_that_never_left_still_says_both(self) -> None:
        session = MuxSession(False, 0.0)
        session.close_stream(session.open_stream())
        assert sent(session) == [(SYN, 3, b""), (FIN, 3, b"")]

    def test_data_of_a_closed_stream_is_dropped(self) -> None:
        session = make_session(streams=1)
        session.close_stream(3)
        session.receive(pack(PSH, 3, b"late"), 1.0)
        assert session.events() == []
        session.receive(pack(FIN, 3), 1.0)
        assert session.events() == [ClosingAnswered(3, has_received=True)]

    def test_the_answer_to_our_fin_is_told_once(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 1)
        session.events()
        for stream_id in (3, 5):
            session.close_stream(stream_id)
        assert session.unanswered_count == 2
        for _ in range(2):
            session.receive(pack(FIN, 5) + pack(FIN, 3), 1.0)
        assert session.events() == [ClosingAnswered(5, has_received=True), ClosingAnswered(3, has_received=False)]
        assert session.unanswered_count == 0

    def test_a_peer_that_never_answers_costs_bounded_memory(self) -> None:
        session = MuxSession(False, 0.0)
        for _ in range(MAX_UNANSWERED + 10):
            session.close_stream(session.open_stream())
            session.data_to_send(ALL)
        assert session.unanswered_count == MAX_UNANSWERED
        session.receive(pack(FIN, 3) + pack(FIN, 3 + 2 * 10), 1.0)
        assert session.events() == [ClosingAnswered(23, has_received=False)]

    def test_it_is_sent_when_its_last_frame_has_left(self) -> None:
        session = make_session(streams=1)
        assert session.is_sent(3)
        session.send(3, bytes(600))
        assert not session.is_sent(3)
        session.data_to_send(100)
        assert not session.is_sent(3)
        session.data_to_send(ALL)
        assert session.is_sent(3)

    def test_a_fin_of_the_peer_is_answered_and_data_before_it_is_delivered(self) -> None:
        session = make_session(streams=2)
        session.send(3, b"nobody reads this any more")
        session.receive(pack(PSH, 3, b"answer") + pack(FIN, 3) + pack(PSH, 3, b"after the end"), 1.0)
        assert session.events() == [StreamDataReceived(3, b"answer"), StreamClosedByPeer(3)]
        session.send(3, b"nor this")
        assert sent(session) == [(FIN, 3, b"")]
        session.consumed(3, 6)
        session.close_stream(3)
        session.receive(pack(FIN, 3), 1.0)
        assert session.pending_bytes == 0
        assert session.events() == []

    def test_a_stream_that_waits_for_its_turn_when_the_peer_closes_it_gets_one_turn(self) -> None:
        session = make_session(streams=1)
        session.send(3, b"x")
        session.receive(pack(FIN, 3), 1.0)
        session.close_stream(3)
        assert sent(session) == [(FIN, 3, b"")]
        for _ in range(MAX_STREAMS):
            session.open_stream()
        assert not session.may_open, "it was counted off twice"

    def test_closing_from_both_sides_at_once_needs_one_fin(self) -> None:
        session = make_session(streams=1)
        session.receive(pack(FIN, 3), 1.0)
        session.close_stream(3)
        assert sent(session) == [(FIN, 3, b"")]
        assert sent(session) == []
        assert session.may_open

    def test_a_frame_whose_beginning_has_left_is_finished(self) -> None:
        session = make_session(streams=2)
        session.send(3, b"a" * 600)
        first = session.data_to_send(100)
        session.receive(pack(FIN, 3), 1.0)
        session.send(5, b"b")
        frames, size, _ = parse(first + session.data_to_send(ALL))
        assert size == len(first) + 8 + SMALLEST_CUT_BYTES - 100 + 8 + 9
        assert frames == [(PSH, 3, b"a" * SMALLEST_CUT_BYTES), (FIN, 3, b""), (PSH, 5, b"b")]

    def test_a_hostile_fin_before_our_syn_has_left(self) -> None:
        session = MuxSession(False, 0.0)
        session.send(session.open_stream(), b"x")
        session.receive(pack(FIN, 3), 1.0)
        assert sent(session) == [(SYN, 3, b""), (FIN, 3, b"")]
        assert session.pending_bytes == 0


class TestReceiving:
    def test_streams_that_nobody_opened_are_ignored(self) -> None:
        session = make_session(streams=1)
        noise = [pack(SYN, 2), pack(PSH, 2, b"x"), pack(PSH, 99, b"x" * 70), pack(FIN, 99), pack(NOP, 0)]
        noise += [pack(SYN, 3), pack(UPD, 3, bytes(8)), pack(PSH, 3)]
        session.receive(b"".join(noise) + pack(PSH, 3, b"y"), 1.0)
        assert session.events() == [StreamDataReceived(3, b"y")]
        assert session.events() == []
        assert session.pending_bytes == 0

    def test_what_came_before_a_broken_frame_is_delivered(self) -> None:
        session = make_session(streams=1)
        with pytest.raises(RemoteProtocolError):
            session.receive(pack(PSH, 3, b"x") + pack(FIN, 3) + pack(PSH, 3, b"y", version=2), 1.0)
        assert session.events() == [StreamDataReceived(3, b"x"), StreamClosedByPeer(3)]

    def test_more_cannot_be_consumed_than_was_received(self) -> None:
        session = make_session(streams=1)
        receive(session, 3, 10)
        session.consumed(3, 10)
        session.consumed(99, 10)
        with pytest.raises(LocalProtocolError):
            session.consumed(3, 1)


class TestPatience:
    """docs/design/0008-forwarding.md: who waits for whom, how long, and who is given up."""

    def test_it_is_full_until_readers_took_enough(self) -> None:
        session = make_session(streams=2)
        receive(session, 3, MAX_UNDELIVERED_BYTES - 1)
        assert not session.is_full
        receive(session, 5, 1)
        assert session.is_full
        session.consumed(3, RESUME_BYTES - 1)
        assert session.is_full
        session.consumed(5, 1)
        assert not session.is_full
        assert session.next_deadline() is None

    def test_one_that_is_alone_may_stand_still_for_ever(self) -> None:
        session = make_session(streams=1)
        receive(session, 3, MAX_UNDELIVERED_BYTES)
        assert session.next_deadline() is None
        session.handle_deadline(1e6)
        assert session.is_full
        assert {type(event) for event in session.events()} == {StreamDataReceived}

    def test_beside_idle_connections_it_may_too(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 100, now=1.0)
        session.consumed(5, 100)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=1.1 + PATIENCE)
        assert session.next_deadline() is None
        session.handle_deadline(1e6)
        assert session.is_full

    def test_it_is_given_up_for_one_that_was_being_served(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 100, now=1.0)
        session.consumed(5, 100)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=0.9 + PATIENCE)
        due = 0.9 + 2 * PATIENCE
        assert session.next_deadline() == due
        session.events()
        session.handle_deadline(due - 0.001)
        assert session.is_full
        session.handle_deadline(due)
        assert session.events() == [StreamGivenUp(3, MAX_UNDELIVERED_BYTES)]
        assert sent(session) == [(FIN, 3, b"")]
        assert not session.is_full
        assert session.next_deadline() is None
        session.receive(pack(PSH, 3, b"late") + pack(PSH, 5, b"served"), due)
        assert session.events() == [StreamDataReceived(5, b"served")]

    @pytest.mark.parametrize("is_new", [True, False])
    def test_one_that_asks_later_waits_no_longer(self, is_new: bool) -> None:
        session = make_session(streams=2)
        receive(session, 5, 1, now=1.0)
        session.consumed(5, 1)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=100.0)
        assert session.next_deadline() is None
        if is_new:
            session.open_stream()
        else:
            session.send(5, b"request")
        assert session.next_deadline() == 100.0 + PATIENCE
        session.events()
        session.handle_deadline(500.0)
        assert session.events() == [StreamGivenUp(3, MAX_UNDELIVERED_BYTES)]

    def test_one_that_was_answered_asks_no_more(self) -> None:
        session = make_session(streams=2)
        session.send(5, b"request")
        receive(session, 5, 10, now=1.0)
        session.consumed(5, 10)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=100.0)
        assert session.next_deadline() is None

    def test_sending_nothing_is_no_asking(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 1, now=1.0)
        session.consumed(5, 1)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=100.0)
        session.send(5, b"")
        assert session.next_deadline() is None
        assert session.pending_bytes == 0

    def test_what_still_arrives_does_not_prolong_the_wait(self) -> None:
        session = make_session(streams=2)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=100.0)
        receive(session, 3, 1000, now=105.0)
        assert session.next_deadline() == 100.0 + PATIENCE

    def test_one_with_something_left_to_read_does_not_starve(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 2, now=1.0)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=1.0)
        assert session.next_deadline() is None
        session.consumed(5, 1)
        assert session.next_deadline() is None
        session.consumed(5, 1)
        assert session.next_deadline() == 1.0 + PATIENCE

    def test_one_that_was_closed_does_not_starve(self) -> None:
        session = make_session(streams=2)
        receive(session, 5, 10, now=1.0)
        session.consumed(5, 10)
        session.receive(pack(FIN, 5), 1.0)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=1.0)
        assert session.next_deadline() is None

    def test_a_slow_reader_that_takes_its_share_in_time_is_kept(self) -> None:
        session = make_session(streams=2)
        now = 1.0
        receive(session, 3, MAX_UNDELIVERED_BYTES, now)
        for _ in range(10):
            now += PATIENCE - 0.1
            session.handle_deadline(now)
            session.consumed(3, RESUME_BYTES)
            receive(session, 3, RESUME_BYTES, now)
            receive(session, 5, 10, now)
            session.consumed(5, 10)
        assert all(isinstance(event, StreamDataReceived) for event in session.events())

    def test_one_that_the_peer_has_closed_can_be_given_up_as_well(self) -> None:
        session = make_session(streams=2)
        receive(session, 3, MAX_UNDELIVERED_BYTES)
        session.receive(pack(FIN, 3), 1.0)
        session.data_to_send(ALL)
        session.events()
        session.handle_deadline(1.0 + PATIENCE)
        assert session.events() == [StreamGivenUp(3, MAX_UNDELIVERED_BYTES)]
        assert session.pending_bytes == 0, "its FIN was answered long ago"

    def test_as_many_are_given_up_as_it_takes_the_fullest_first(self) -> None:
        session = make_session(streams=101)
        share = MAX_UNDELIVERED_BYTES // 100
        for number in range(100):
            receive(session, 3 + 2 * number, share + number)
        assert session.is_full
        session.events()
        session.handle_deadline(1.0 + PATIENCE)
        assert session.events() == [StreamGivenUp(201, share + 99), StreamGivenUp(199, share + 98)]
        assert not session.is_full

    def test_closing_makes_room_too(self) -> None:
        session = make_session(streams=2)
        receive(session, 3, MAX_UNDELIVERED_BYTES)
        session.close_stream(3)
        assert not session.is_full


class TestKeepalive:
    def test_none_between_current_programs(self) -> None:
        session = make_session(streams=1)
        assert session.next_deadline() is None
        session.handle_deadline(1e6)
        assert session.pending_bytes == 0

    def test_a_nop_every_10_s(self) -> None:
        session = make_session(keepalive=True)
        for number in range(1, 10):
            assert session.next_deadline() == 10.0 * number
            session.handle_deadline(10.0 * number - 0.001)
            assert session.pending_bytes == 0
            session.handle_deadline(10.0 * number)
            assert session.pending_bytes == 8
            assert session.data_to_send(ALL) == bytes.fromhex("0103000000000000")
            assert session.pending_bytes == 0
            session.receive(pack(NOP, 0), 10.0 * number)

    def test_nops_do_not_pile_up(self) -> None:
        session = make_session(keepalive=True)
        for now in (10.0, 20.0):
            session.handle_deadline(now)
        assert session.pending_bytes == 8
        assert session.data_to_send(0) == b""
        assert sent(session) == [(NOP, 0, b"")]
        assert session.pending_bytes == 0

    def test_a_nop_does_not_cut_a_frame(self) -> None:
        session = make_session(streams=1, keepalive=True)
        session.send(3, bytes(600))
        first = session.data_to_send(100)
        session.handle_deadline(10.0)
        frames, size, is_wrong = parse(first + session.data_to_send(ALL))
        assert not is_wrong
        assert size == 3 * 8 + 600
        assert [command for command, _, _ in frames] == [PSH, NOP, PSH]

    def test_silence_of_30_s_ends_the_session(self) -> None:
        session = make_session(keepalive=True)
        session.receive(b"\1", 5.0)
        for now in (10.0, 20.0, 30.0, 34.999):
            session.handle_deadline(now)
        assert session.next_deadline() == 35.0
        with pytest.raises(TransportTimeout):
            session.handle_deadline(35.0)

    def test_a_new_connection_is_no_silence(self) -> None:
        session = make_session(keepalive=True)
        session.heard(100.0)
        session.handle_deadline(129.999)
        with pytest.raises(TransportTimeout):
            session.handle_deadline(130.0)

    def test_it_is_no_silence_that_nothing_is_received(self) -> None:
        session = make_session(streams=1, keepalive=True)
        receive(session, 3, MAX_UNDELIVERED_BYTES, now=1.0)
        now = 1.0
        for _ in range(10):
            deadline = session.next_deadline()
            assert deadline is not None
            assert deadline > now
            now = deadline
            session.handle_deadline(now)
        session.consumed(3, MAX_UNDELIVERED_BYTES)
        session.handle_deadline(now + 29.9)
        with pytest.raises(TransportTimeout):
            session.handle_deadline(now + 30.0)
