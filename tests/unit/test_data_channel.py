"""The data channel as its driver sees it: messages in, messages and events out, time as an argument."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import wire_sketch
from simulation.fixed_window import FixedWindow
from simulation.pair import PAUSE, START, make_channel
from simulation.wire_sketch import Frame

from ssm_proxy.channel import cipher
from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.channel.data_channel import (
    HANDSHAKE_TIMEOUT,
    MAX_PAYLOAD_BYTES,
    MAX_REJECTED_IN_A_ROW,
    PAUSE_LAPSE,
    RECENT_ACKNOWLEDGES,
    SETTLE_TIME,
    DataChannel,
)
from ssm_proxy.channel.events import (
    ChannelClosed,
    DataKeyNeeded,
    ErrorOutputReceived,
    Event,
    ExitCodeReceived,
    FlagReceived,
    MessageDropped,
    OutputReceived,
    PublicationChanged,
    SessionFailed,
    SessionStarted,
)
from ssm_proxy.channel.incoming import MAX_STORED_BYTES
from ssm_proxy.errors import (
    AcknowledgeTimeout,
    ChallengeFailed,
    DecryptionFailed,
    EncryptionError,
    HandshakeFailed,
    RemoteProtocolError,
    SsmProxyError,
)
from ssm_proxy.wire.constants import CLIENT_VERSION
from ssm_proxy.wire.shell_payloads import TerminalSize, decode_challenge, encode_challenge

COMPLETE = b'{"HandshakeTimeToComplete":1,"CustomerMessage":""}'
KMS_ACTION = {"ActionType": "KMSEncryption", "ActionParameters": {"KMSKeyId": "arn", "Challenge": "AAAA"}}
SETTLED = 2.0


class Side:
    """A channel and what came out of it."""

    def __init__(self, *, window: FixedWindow | None = None, is_open: bool = True) -> None:
        self.channel: DataChannel = make_channel(window=window)
        if is_open:
            self.channel.open("token", 0.0)

    def receive(self, *messages: bytes, now: float = 1.0) -> list[Event]:
        for data in messages:
            self.channel.receive(data, now)
        return self.channel.events()

    def sent(self, now: float = 1.0) -> list[Frame]:
        return [wire_sketch.unpack(data) for data in self.channel.messages_to_send(now)]

    def start(self, now: float = 1.0) -> None:
        """Go through the handshake until input may flow (``SETTLED``)."""
        self.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5), now=now)
        self.sent(now)
        self.receive(wire_sketch.output(1, COMPLETE, 7), wire_sketch.input_acknowledge(0), now=now)
        self.sent(now)
        assert self.channel.is_started

    def wait(self, now: float) -> list[Event]:
        """Let time pass the way a driver does."""
        while (deadline := self.channel.next_deadline()) is not None and deadline <= now:
            self.channel.handle_deadline(deadline)
            self.channel.messages_to_send(deadline)
        return self.channel.events()


@pytest.fixture
def started() -> Side:
    side = Side()
    side.start()
    return side


def acknowledged(frames: list[Frame]) -> list[int]:
    return [wire_sketch.acknowledged_number(frame) for frame in frames if frame.kind == "acknowledge"]


def inputs(frames: list[Frame]) -> list[tuple[int, int, bytes]]:
    return [(f.seq, f.payload_type, f.payload) for f in frames if f.kind == "input_stream_data"]


def failure(events: list[Event]) -> SsmProxyError:
    assert isinstance(events[-1], SessionFailed)
    return events[-1].error


def dropped(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, MessageDropped)]


class TestOpening:
    def test_the_text_message(self) -> None:
        side = Side(is_open=False)
        opening = json.loads(side.channel.open("the-token", 0.0))
        assert list(opening) == ["MessageSchemaVersion", "RequestId", "TokenValue", "ClientId", "ClientVersion"]
        assert (opening["MessageSchemaVersion"], opening["TokenValue"]) == ("1.0", "the-token")
        assert opening["ClientVersion"] == CLIENT_VERSION
        again = json.loads(side.channel.open("another", 1.0))
        assert again["ClientId"] == opening["ClientId"]
        assert again["RequestId"] != opening["RequestId"]
        assert again["TokenValue"] == "another"

    def test_nothing_else_leaves_before_the_agent_speaks(self) -> None:
        side = Side()
        side.channel.send_input(b"early", 0.0)
        assert side.sent(10.0) == []
        assert not side.channel.is_drained
        assert not side.channel.is_started

    def test_the_agent_has_a_bounded_time_to_start(self) -> None:
        side = Side()
        assert side.channel.next_deadline() == HANDSHAKE_TIMEOUT
        side.channel.handle_deadline(HANDSHAKE_TIMEOUT - 0.001)
        assert side.channel.events() == []
        side.channel.handle_deadline(HANDSHAKE_TIMEOUT)
        error = failure(side.channel.events())
        assert isinstance(error, HandshakeFailed)
        assert error.cause
        assert error.hint
        assert side.channel.next_deadline() is None

    def test_an_answered_request_does_not_stop_that_clock(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        side.sent()
        events = side.wait(HANDSHAKE_TIMEOUT)
        assert isinstance(failure(events), HandshakeFailed)

    def test_a_completed_handshake_does(self, started: Side) -> None:
        assert started.wait(10 * HANDSHAKE_TIMEOUT) == []
        assert started.channel.next_deadline() is None


class TestHandshake:
    def test_request_is_acknowledged_first_then_answered_once(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        frames = side.sent()
        assert [(frame.kind, frame.payload_type, frame.flags) for frame in frames] == [
            ("acknowledge", 0, 3),
            ("input_stream_data", 6, 0),
        ]
        assert frames[1].seq == 0
        assert json.loads(frames[1].payload)["ProcessedClientActions"][0]["ActionStatus"] == 1
        assert side.sent() == []

    def test_the_end_starts_the_session(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(properties={"portNumber": "2222"}), 5))
        events = side.receive(wire_sketch.output(1, b'{"CustomerMessage":"welcome"}', 7))
        assert events == [SessionStarted("Port", {"portNumber": "2222"}, "3.3.0.0", "welcome")]
        assert side.channel.is_started

    def test_the_two_may_come_in_either_order(self) -> None:
        side = Side()
        assert side.receive(wire_sketch.output(1, COMPLETE, 7)) == []
        events = side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        assert [type(event) for event in events] == [SessionStarted]
        assert acknowledged(side.sent()) == [1, 0]

    def test_a_repeat_of_the_request_is_only_acknowledged(self) -> None:
        side = Side()
        request = wire_sketch.output(0, wire_sketch.handshake_request(), 5)
        side.receive(request)
        side.sent()
        assert side.receive(request, request) == []
        frames = side.sent()
        assert acknowledged(frames) == [0, 0]
        assert inputs(frames) == []

    def test_a_second_request_is_acknowledged_and_not_answered(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        side.sent()
        assert dropped(side.receive(wire_sketch.output(1, wire_sketch.handshake_request(), 5)))
        frames = side.sent()
        assert (acknowledged(frames), inputs(frames)) == ([1], [])

    def test_a_request_after_the_end_is_not_answered_either(self, started: Side) -> None:
        assert dropped(started.receive(wire_sketch.output(2, wire_sketch.handshake_request(), 5)))
        assert inputs(started.sent()) == []

    def test_a_second_end_is_acknowledged_and_ignored(self, started: Side) -> None:
        assert dropped(started.receive(wire_sketch.output(2, COMPLETE, 7))) == ["a second completion of the handshake"]
        assert acknowledged(started.sent()) == [2]

    def test_an_end_that_cannot_be_read_is_an_end(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        events = side.receive(wire_sketch.output(1, b"{broken", 7))
        assert events == [SessionStarted("Port", {"portNumber": "22"}, "3.3.0.0", "")]

    @pytest.mark.parametrize("payload", [b"", b"{broken", b"[]", b'{"RequestedClientActions":7}', b"\xff\xff"])
    def test_a_request_that_cannot_be_read_fails_the_session(self, payload: bytes) -> None:
        side = Side()
        error = failure(side.receive(wire_sketch.output(0, payload, 5)))
        assert isinstance(error, HandshakeFailed)
        assert acknowledged(side.sent()) == [0]

    @pytest.mark.parametrize("session_type", ["Standard_Stream", "NonInteractiveCommands", "Unheard_Of", ""])
    def test_a_refusal_reaches_the_agent_before_the_session_fails(self, session_type: str) -> None:
        side = Side()
        events = side.receive(wire_sketch.output(0, wire_sketch.handshake_request(session_type), 5))
        assert isinstance(failure(events), HandshakeFailed)
        frames = side.sent()
        assert [frame.kind for frame in frames] == ["acknowledge", "input_stream_data"]
        assert json.loads(frames[1].payload)["ProcessedClientActions"][0]["ActionStatus"] == 2
        assert side.sent() == []

    def test_an_unknown_action_is_refused_as_unsupported(self) -> None:
        side = Side()
        unknown = {"ActionType": "Teleport", "ActionParameters": None}
        events = side.receive(wire_sketch.output(0, wire_sketch.handshake_request("Port", None, unknown), 5))
        assert "Teleport" in failure(events).message
        actions = json.loads(side.sent()[1].payload)["ProcessedClientActions"]
        assert [action["ActionStatus"] for action in actions] == [1, 3]

    def test_an_end_without_any_session_type_fails_the_session(self) -> None:
        side = Side()
        assert side.receive(wire_sketch.output(0, b'{"AgentVersion":"3.3.0.0"}', 5)) == []
        error = failure(side.receive(wire_sketch.output(1, COMPLETE, 7)))
        assert "without naming a session type" in error.message

    def test_output_first_is_a_shell_and_refused(self) -> None:
        side = Side()
        events = side.receive(wire_sketch.output(0, b"$ "))
        assert isinstance(failure(events), HandshakeFailed)
        assert acknowledged(side.sent()) == [0]

    def test_output_first_is_a_shell_where_those_are_taken(self) -> None:
        channel = make_channel(check_session=lambda session_type, properties: None)
        channel.open("token", 0.0)
        channel.receive(wire_sketch.output(0, b"$ "), 1.0)
        assert channel.events() == [SessionStarted("Standard_Stream", None, "", ""), OutputReceived(b"$ ")]
        channel.send_input(b"ls\n", 1.0)
        assert len(channel.messages_to_send(1.0)) == 2

    @pytest.mark.parametrize("payload_type", [0, 3, 7, 8, 10, 11, 99])
    def test_any_other_beginning_is_neither_acknowledged_nor_counted(self, payload_type: int) -> None:
        side = Side()
        events = side.receive(wire_sketch.output(0, b"{}", payload_type))
        assert dropped(events) == [f"the session begins with payload type {payload_type}"]
        assert side.sent() == []
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        assert acknowledged(side.sent()) == [0]

    def test_output_between_request_and_end_fails_the_session(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        assert isinstance(failure(side.receive(wire_sketch.output(1, b"too soon"))), HandshakeFailed)


class TestSettling:
    """An agent announces the end of the handshake before it takes data (6.2)."""

    def test_input_waits_after_the_handshake(self, started: Side) -> None:
        started.channel.send_input(b"hello", 1.0)
        assert started.channel.next_deadline() == 1.0 + SETTLE_TIME
        assert started.sent(1.0 + SETTLE_TIME - 0.001) == []
        assert inputs(started.sent(1.0 + SETTLE_TIME)) == [(1, 1, b"hello")]

    def test_the_first_output_ends_the_wait(self, started: Side) -> None:
        started.channel.send_input(b"hello", 1.01)
        assert started.receive(wire_sketch.output(2, b"SSH-2.0-x\r\n"), now=1.02) == [OutputReceived(b"SSH-2.0-x\r\n")]
        assert inputs(started.sent(1.02)) == [(1, 1, b"hello")]

    def test_an_empty_output_does_not(self, started: Side) -> None:
        started.channel.send_input(b"hello", 1.01)
        assert started.receive(wire_sketch.output(2, b""), now=1.02) == []
        frames = started.sent(1.02)
        assert (acknowledged(frames), inputs(frames)) == ([2], [])

    def test_what_waited_leaves_in_order_and_before_what_is_new(self, started: Side) -> None:
        started.channel.send_input(b"a" * 1500, 1.0)
        started.channel.send_input(b"b", 1.0)
        started.channel.send_input(b"c", SETTLED)
        assert inputs(started.sent(SETTLED)) == [
            (1, 1, b"a" * 1024),
            (2, 1, b"a" * 476),
            (3, 1, b"b"),
            (4, 1, b"c"),
        ]

    def test_input_before_the_handshake_waits_too(self) -> None:
        side = Side()
        side.channel.send_input(b"early", 0.5)
        side.start()
        assert inputs(side.sent(SETTLED)) == [(1, 1, b"early")]


class TestInput:
    def test_is_cut_at_1024_bytes(self, started: Side) -> None:
        data = bytes(range(256)) * 10
        started.channel.send_input(data, SETTLED)
        frames = started.sent(SETTLED)
        assert [len(frame.payload) for frame in frames] == [MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, 512]
        assert b"".join(frame.payload for frame in frames) == data
        assert [frame.seq for frame in frames] == [1, 2, 3]
        assert {(frame.flags, frame.payload_type, frame.kind) for frame in frames} == {(0, 1, "input_stream_data")}
        assert len({frame.uid for frame in frames}) == 3

    def test_a_lone_line_feed_stays_one(self, started: Side) -> None:
        """The official client makes a carriage return of it (12.4)."""
        started.channel.send_input(b"\n", SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"\n")]

    @pytest.mark.parametrize("now", [1.0, SETTLED])
    def test_no_bytes_make_no_message(self, started: Side, now: float) -> None:
        started.channel.send_input(b"", now)
        assert started.sent(SETTLED) == []
        assert started.channel.is_drained

    def test_is_drained_when_the_last_byte_is_acknowledged(self, started: Side) -> None:
        assert started.channel.is_drained
        started.channel.send_input(b"x", 1.0)
        assert not started.channel.is_drained  # it waits
        started.sent(SETTLED)
        assert not started.channel.is_drained  # it is under way
        started.receive(wire_sketch.input_acknowledge(1), now=SETTLED)
        assert started.channel.is_drained

    def test_a_lost_message_is_sent_again_by_the_timer_byte_for_byte(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        first = started.channel.messages_to_send(SETTLED)
        deadline = started.channel.next_deadline()
        assert deadline is not None
        assert started.channel.messages_to_send(deadline - 0.001) == []
        assert started.channel.messages_to_send(deadline) == first
        assert started.channel.retransmission_count == 1

    @pytest.mark.parametrize("number", [0, 7, 2**63 - 1])
    def test_an_acknowledge_of_an_unknown_number_changes_nothing(self, started: Side, number: int) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.sent(SETTLED)
        assert started.receive(wire_sketch.input_acknowledge(number), now=SETTLED) == []
        assert not started.channel.is_drained

    def test_an_acknowledge_counts_whatever_else_it_says(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.sent(SETTLED)
        payload = b'{"AcknowledgedMessageType":"nonsense","AcknowledgedMessageSequenceNumber":1}'
        started.receive(wire_sketch.pack(Frame("acknowledge", payload, seq=1)), now=SETTLED)
        assert started.channel.is_drained

    def test_an_acknowledge_that_cannot_be_read_is_dropped(self, started: Side) -> None:
        for payload in (b"", b"{}", b'{"AcknowledgedMessageSequenceNumber":-1}'):
            assert dropped(started.receive(wire_sketch.pack(Frame("acknowledge", payload))))

    def test_round_trip_time_is_that_of_the_acknowledges(self, started: Side) -> None:
        before = started.channel.round_trip_time
        started.channel.send_input(b"x", SETTLED)
        started.receive(wire_sketch.input_acknowledge(1), now=SETTLED + 0.9)
        assert started.channel.round_trip_time > before

    def test_it_gives_up_after_five_minutes_without_any_acknowledge(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        now = SETTLED
        while not started.channel.is_closed:
            deadline = started.channel.next_deadline()
            assert deadline is not None
            assert deadline > now or now == SETTLED
            now = deadline
            started.channel.handle_deadline(now)
            started.channel.messages_to_send(now)
        assert 240 < now < 330
        error = failure(started.channel.events())
        assert isinstance(error, AcknowledgeTimeout)
        assert error.hint

    def test_a_laptop_that_slept_gives_up_nothing(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.sent(SETTLED)
        for now in (10_000.0, 20_000.0):
            started.channel.handle_deadline(now)
            assert len(started.channel.messages_to_send(now)) == 1
        assert not started.channel.is_closed


class TestCapacity:
    def test_is_the_window_less_what_is_under_way_or_waiting(self) -> None:
        side = Side(window=FixedWindow(10_000))
        assert side.channel.capacity() == 10_000
        side.channel.send_input(bytes(4000), 0.0)
        assert side.channel.capacity() == 6000
        side.start()
        assert side.channel.capacity() == 6000
        side.sent(SETTLED)
        assert side.channel.capacity() == 6000
        side.channel.send_input(bytes(6000), SETTLED)
        assert side.channel.capacity() == 0

    def test_grows_with_acknowledges_only(self) -> None:
        side = Side(window=FixedWindow(3000))
        side.start()
        side.channel.send_input(bytes(3000), SETTLED)
        side.sent(SETTLED)
        side.sent(SETTLED + 60)
        assert side.channel.capacity() == 0
        side.receive(wire_sketch.input_acknowledge(2), now=SETTLED)
        assert side.channel.capacity() == 1024
        side.receive(wire_sketch.input_acknowledge(2), now=SETTLED)
        assert side.channel.capacity() == 1024
        side.receive(wire_sketch.input_acknowledge(1), wire_sketch.input_acknowledge(3), now=SETTLED)
        assert side.channel.capacity() == 3000

    def test_is_never_negative(self) -> None:
        window = FixedWindow(1000)
        side = Side(window=window)
        side.channel.send_input(bytes(5000), 0.0)
        assert side.channel.capacity() == 0
        side.start()
        window.limit_bytes = 10
        side.sent(SETTLED)
        assert side.channel.capacity() == 0

    def test_is_nothing_once_the_session_is_over(self, started: Side) -> None:
        started.receive(wire_sketch.pack(Frame("channel_closed", b"{}")))
        assert started.channel.capacity() == 0


class TestOutput:
    """What the receiver does with stream messages (5.3)."""

    def test_in_order(self, started: Side) -> None:
        events = started.receive(wire_sketch.output(2, b"a"), wire_sketch.output(3, b"b"))
        assert events == [OutputReceived(b"a"), OutputReceived(b"b")]
        assert acknowledged(started.sent()) == [2, 3]

    def test_acknowledges_name_number_type_and_id(self, started: Side) -> None:
        data = wire_sketch.output(2, b"a")
        started.receive(data)
        (frame,) = started.sent()
        assert (frame.seq, frame.flags, frame.payload_type) == (0, 3, 0)
        expected = wire_sketch.acknowledge(wire_sketch.unpack(data), frame.uid)
        assert frame.payload == wire_sketch.unpack(expected).payload

    def test_ahead_of_order_is_acknowledged_at_once_and_delivered_later(self, started: Side) -> None:
        assert started.receive(wire_sketch.output(4, b"c"), wire_sketch.output(3, b"b")) == []
        assert acknowledged(started.sent()) == [4, 3]
        events = started.receive(wire_sketch.output(2, b"a"))
        assert events == [OutputReceived(b"a"), OutputReceived(b"b"), OutputReceived(b"c")]
        assert acknowledged(started.sent()) == [2]

    def test_repeats_are_acknowledged_again(self, started: Side) -> None:
        data = wire_sketch.output(2, b"a")
        assert started.receive(data, data, data) == [OutputReceived(b"a")]
        assert acknowledged(started.sent()) == [2, 2, 2]

    def test_a_full_store_is_silent(self, started: Side) -> None:
        half = bytes(MAX_STORED_BYTES // 2)
        started.receive(wire_sketch.output(4, half), wire_sketch.output(5, half))
        started.sent()
        assert dropped(started.receive(wire_sketch.output(6, b"x")))
        assert started.sent() == []
        started.receive(wire_sketch.output(2, b"x"), wire_sketch.output(3, b"x"))
        started.sent()
        started.receive(wire_sketch.output(6, b"x"))
        assert acknowledged(started.sent()) == [6]

    def test_a_negative_number_is_silent(self, started: Side) -> None:
        assert dropped(started.receive(wire_sketch.output(-1, b"x")))
        assert started.sent() == []

    def test_oversized_output_is_delivered(self, started: Side) -> None:
        payload = bytes(1_000_000)
        assert started.receive(wire_sketch.output(2, payload)) == [OutputReceived(payload)]

    @pytest.mark.parametrize("payload_type", [0, 2, 3, 4, 6, 9, 13, 2**32 - 1])
    def test_an_unknown_payload_type_is_acknowledged_and_ignored(self, started: Side, payload_type: int) -> None:
        events = started.receive(wire_sketch.output(2, b"x", payload_type), wire_sketch.output(3, b"y"))
        assert dropped(events) == [f"unknown payload type {payload_type}"]
        assert events[-1] == OutputReceived(b"y")
        assert acknowledged(started.sent()) == [2, 3]

    def test_flags(self, started: Side) -> None:
        flag = wire_sketch.output(2, struct.pack(">I", 3), 10)
        assert started.receive(flag) == [FlagReceived(3)]
        assert started.receive(wire_sketch.output(3, struct.pack(">I", 77), 10)) == [FlagReceived(77)]
        assert acknowledged(started.sent()) == [2, 3]

    def test_a_broken_flag_in_a_stored_run_holds_nothing_up(self, started: Side) -> None:
        stored = [wire_sketch.output(4, b"\0\0\3", 10), wire_sketch.output(3, b"b"), wire_sketch.output(5, b"d")]
        assert started.receive(*stored) == []
        events = started.receive(wire_sketch.output(2, b"a"))
        assert events == [
            OutputReceived(b"a"),
            OutputReceived(b"b"),
            MessageDropped("a flag of 3 bytes"),
            OutputReceived(b"d"),
        ]
        assert started.receive(wire_sketch.output(6, b"e")) == [OutputReceived(b"e")]


class TestRejected:
    """What is no good message is dropped without an answer; its sender's timer brings it again (3.3)."""

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"hello",
            wire_sketch.output(2, b"payload")[:-1],
            wire_sketch.output(2, b"payload")[:120],
            wire_sketch.output(2, b"payload") + b"x",
            wire_sketch.pack(Frame("output_stream_data", b"x", 2, 1), digest=bytes(32)),
            wire_sketch.pack(Frame("output_stream_data", b"x", 2, 1, created=0)),
            struct.pack(">I", 4000) + wire_sketch.output(2, b"payload")[4:],
            bytes(4) + wire_sketch.output(2, b"payload")[4:],
        ],
        ids=["empty", "text", "truncated", "no payload", "oversized", "digest", "date", "beyond", "zero"],
    )
    def test_is_dropped_and_not_acknowledged(self, started: Side, data: bytes) -> None:
        assert len(dropped(started.receive(data))) == 1
        assert started.sent() == []
        assert started.receive(wire_sketch.output(2, b"payload")) == [OutputReceived(b"payload")]

    @pytest.mark.parametrize("kind", ["input_stream_data", "agent_session_state", "interactive_shell", "brand_new"])
    def test_an_unknown_message_type_is_ignored(self, started: Side, kind: str) -> None:
        assert dropped(started.receive(wire_sketch.pack(Frame(kind, b"x", 2, 1)))) == [f"unknown message type {kind!r}"]
        assert started.sent() == []

    def test_a_hundred_in_a_row_fail_the_session(self, started: Side) -> None:
        events = started.receive(*[b"garbage"] * (MAX_REJECTED_IN_A_ROW - 1))
        assert len(dropped(events)) == MAX_REJECTED_IN_A_ROW - 1
        error = failure(started.receive(b"garbage"))
        assert isinstance(error, RemoteProtocolError)
        assert error.cause
        assert started.channel.is_closed

    def test_a_good_one_between_them_starts_the_count_anew(self, started: Side) -> None:
        for _ in range(3):
            started.receive(*[b"garbage"] * (MAX_REJECTED_IN_A_ROW - 1))
            started.receive(wire_sketch.input_acknowledge(0))
        assert not started.channel.is_closed

    def test_nothing_of_a_payload_shows_in_events_about_it(self, started: Side) -> None:
        broken = wire_sketch.pack(Frame("output_stream_data", b"secret", 2, 1), digest=bytes(32))
        unknown = wire_sketch.output(2, b"secret", 12)
        assert "secret" not in repr(started.receive(broken, unknown))


class TestPause:
    def test_holds_back_input_but_not_acknowledges(self, started: Side) -> None:
        messages = wire_sketch.output(2, b"out"), PAUSE
        assert started.receive(*messages, now=SETTLED)[-1] == PublicationChanged(paused=True)
        started.channel.send_input(b"x", SETTLED)
        frames = started.sent(SETTLED)
        assert (acknowledged(frames), inputs(frames)) == ([2], [])
        assert started.receive(START, now=SETTLED + 1) == [PublicationChanged(paused=False)]
        assert inputs(started.sent(SETTLED + 1)) == [(1, 1, b"x")]

    def test_holds_back_what_is_numbered_but_not_sent(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.receive(PAUSE, now=SETTLED)
        assert started.sent(SETTLED) == []
        started.receive(START, now=SETTLED + 0.01)
        assert inputs(started.sent(SETTLED + 0.01)) == [(1, 1, b"x")]

    def test_holds_back_retransmissions(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.sent(SETTLED)
        started.receive(PAUSE, now=SETTLED)
        assert started.sent(SETTLED + 20) == []
        started.receive(START, now=SETTLED + 20)
        assert inputs(started.sent(SETTLED + 20)) == [(1, 1, b"x")]

    def test_lapses_by_itself(self, started: Side) -> None:
        started.receive(PAUSE, now=SETTLED)
        started.channel.send_input(b"x", SETTLED)
        lapse = SETTLED + PAUSE_LAPSE
        assert started.channel.next_deadline() == lapse
        started.channel.handle_deadline(lapse - 0.001)
        assert started.sent(lapse - 0.001) == []
        started.channel.handle_deadline(lapse)
        assert started.channel.events() == [PublicationChanged(paused=False)]
        assert inputs(started.sent(lapse)) == [(1, 1, b"x")]

    def test_whatever_the_agent_says_ends_it(self, started: Side) -> None:
        """As the agent takes it; nobody knows whether a start follows."""
        started.channel.send_input(b"x", SETTLED)
        (frame,) = started.sent(SETTLED)
        acknowledge = wire_sketch.acknowledge(frame, uuid.UUID(int=1))
        for number, message in enumerate((acknowledge, wire_sketch.output(2, b"out"))):
            started.receive(PAUSE, now=SETTLED + number)
            started.channel.send_input(b"y", SETTLED + number)
            assert PublicationChanged(paused=False) in started.receive(message, now=SETTLED + number)
            assert inputs(started.sent(SETTLED + number))[-1] == (2 + number, 1, b"y")

    def test_another_pause_begins_its_time_anew(self, started: Side) -> None:
        started.receive(PAUSE, now=SETTLED)
        started.receive(PAUSE, now=SETTLED + 10)
        assert started.channel.next_deadline() == SETTLED + 10 + PAUSE_LAPSE

    @pytest.mark.parametrize("sent_before", [False, True])
    def test_does_not_keep_the_timer_busy(self, started: Side, sent_before: bool) -> None:
        """A deadline in the past would make the driver spin for as long as the pause lasts."""
        if sent_before:
            started.channel.send_input(b"x", SETTLED)
            started.sent(SETTLED)
        started.receive(PAUSE, now=SETTLED)
        started.channel.send_input(b"y", SETTLED)
        assert started.channel.next_deadline() == SETTLED + PAUSE_LAPSE

    def test_a_resume_ends_it(self, started: Side) -> None:
        started.receive(PAUSE, now=SETTLED)
        started.channel.send_input(b"x", SETTLED)
        started.channel.open("token", SETTLED + 1)
        assert inputs(started.sent(SETTLED + 1)) == [(1, 1, b"x")]

    def test_with_a_short_header_as_the_service_sends_it(self, started: Side) -> None:
        short = [
            wire_sketch.pack(Frame(kind, b"{}", created=0), header_length=112, digest=bytes(32))
            for kind in ("pause_publication", "start_publication")
        ]
        assert started.receive(*short) == [PublicationChanged(paused=True), PublicationChanged(paused=False)]

    def test_does_not_hold_up_the_handshake(self) -> None:
        side = Side()
        side.receive(PAUSE, wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        assert [payload_type for _, payload_type, _ in inputs(side.sent())] == [6]

    def test_loses_nothing(self, started: Side) -> None:
        started.channel.send_input(b"a", SETTLED)
        started.receive(PAUSE, now=SETTLED)
        started.channel.send_input(b"b", SETTLED)
        started.receive(START, now=SETTLED + 5)
        started.channel.send_input(b"c", SETTLED + 5)
        first = {seq: payload for seq, _, payload in inputs(started.sent(SETTLED + 5))}
        assert first == {1: b"a", 2: b"b", 3: b"c"}


class TestResume:
    def test_all_that_is_unacknowledged_leaves_at_once_and_in_order(self, started: Side) -> None:
        started.channel.send_input(bytes(5 * 1024), SETTLED)
        before = started.channel.messages_to_send(SETTLED)
        started.receive(wire_sketch.input_acknowledge(3), now=SETTLED)
        started.channel.open("token", SETTLED + 100)
        sent = started.channel.messages_to_send(SETTLED + 100)
        assert [data for data in sent if wire_sketch.unpack(data).kind == "input_stream_data"] == [
            *before[:2],
            *before[3:],
        ]
        assert started.channel.messages_to_send(SETTLED + 100) == []

    def test_what_was_never_handed_out_leaves_once(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.channel.open("token", SETTLED + 1)
        assert inputs(started.sent(SETTLED + 1)) == [(1, 1, b"x")]

    def test_the_last_acknowledges_are_said_again_once(self, started: Side) -> None:
        started.receive(wire_sketch.output(2, b"a"))
        started.sent(SETTLED)
        started.receive(wire_sketch.output(3, b"b"))
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [0, 1, 2, 3]
        assert acknowledged(started.sent(SETTLED)) == []

    def test_no_more_acknowledges_are_said_again_than_are_kept(self, started: Side) -> None:
        last = 2 + RECENT_ACKNOWLEDGES
        started.receive(*(wire_sketch.output(number, b"a") for number in range(2, last + 1)))
        started.sent(SETTLED)
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == list(range(3, last + 1))

    def test_what_left_before_an_answered_ping_is_not_said_again(self, started: Side) -> None:
        started.receive(wire_sketch.output(2, b"a"))
        started.sent(SETTLED)
        started.receive(wire_sketch.output(3, b"b"))  # whose acknowledge was not taken yet
        started.channel.ping_sent()
        started.sent(SETTLED)
        started.receive(wire_sketch.output(4, b"c"))
        started.sent(SETTLED)
        started.channel.ping_answered()
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [3, 4]

    def test_a_second_ping_before_the_answer_proves_nothing_more(self, started: Side) -> None:
        started.channel.ping_sent()
        started.receive(wire_sketch.output(2, b"a"))
        started.sent(SETTLED)
        started.channel.ping_sent()
        started.channel.ping_answered()
        started.channel.ping_answered()
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [2]

    def test_a_ping_that_the_lost_connection_left_unanswered_is_forgotten(self, started: Side) -> None:
        started.channel.ping_sent()
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [0, 1]
        started.channel.ping_answered()
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [0, 1]

    def test_more_than_are_kept_before_a_ping_are_no_more_than_are_kept(self, started: Side) -> None:
        last = 2 + RECENT_ACKNOWLEDGES
        started.receive(*(wire_sketch.output(number, b"a") for number in range(2, last + 1)))
        started.sent(SETTLED)
        started.channel.ping_sent()
        started.receive(wire_sketch.output(last + 1, b"a"))
        started.sent(SETTLED)
        started.channel.ping_answered()
        started.channel.open("token", SETTLED)
        assert acknowledged(started.sent(SETTLED)) == [last + 1]

    def test_numbers_go_on_and_there_is_no_second_handshake(self, started: Side) -> None:
        started.channel.open("token", SETTLED)
        assert inputs(started.sent(SETTLED)) == []
        assert started.channel.is_started
        started.channel.send_input(b"x", SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"x")]
        assert started.receive(wire_sketch.output(2, b"y"), now=SETTLED) == [OutputReceived(b"y")]

    def test_an_answer_to_the_handshake_goes_out_again(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        first = inputs(side.sent())
        side.channel.open("token", 2.0)
        assert inputs(side.sent(2.0)) == first
        assert side.channel.next_deadline() is not None


class TestPace:
    def test_after_the_end_of_input_nothing_waits_for_the_pace(self, started: Side) -> None:
        channel = started.channel
        channel.send_input(bytes(20_000), SETTLED)
        window = channel._window
        assert isinstance(window, FixedWindow)
        window.pace = 1000.0
        assert channel.input_room(SETTLED) == 0
        started.sent(SETTLED)
        for number in range(1, 21):
            started.receive(wire_sketch.input_acknowledge(number), now=SETTLED)
        assert channel.next_deadline() is not None
        channel.end_input()
        assert channel.next_deadline() is None


class TestTerminate:
    def test_sends_the_flag(self, started: Side) -> None:
        started.channel.terminate(SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, 10, b"\0\0\0\2")]
        assert not started.channel.is_drained

    def test_comes_behind_input_that_is_under_way(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.channel.terminate(SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"x"), (2, 10, b"\0\0\0\2")]

    def test_comes_behind_input_that_still_waits(self, started: Side) -> None:
        started.channel.send_input(b"x", 1.0)
        started.channel.terminate(1.0)
        assert started.sent(1.0) == []
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"x"), (2, 10, b"\0\0\0\2")]
        assert started.sent(SETTLED) == []

    def test_before_the_session_has_started_there_is_nothing_to_say(self) -> None:
        side = Side()
        side.channel.terminate(0.0)
        assert side.sent() == []
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        side.sent()
        side.channel.terminate(1.0)
        assert side.sent() == []

    def test_after_its_end_neither(self, started: Side) -> None:
        started.receive(wire_sketch.pack(Frame("channel_closed", b"{}")))
        started.channel.terminate(SETTLED)
        assert started.sent(SETTLED) == []


def closed(payload: bytes, **options: int) -> bytes:
    return wire_sketch.pack(Frame("channel_closed", payload), **options)  # type: ignore[arg-type]


class TestChannelClosed:
    @pytest.mark.parametrize("header_length", [112, 116])
    @pytest.mark.parametrize(
        ("payload", "reason"), [(b'{"Output":""}', ""), (b'{"Output":"idle"}', "idle"), (b"{", "")]
    )
    def test_ends_the_session(self, started: Side, payload: bytes, reason: str, header_length: int) -> None:
        assert started.receive(closed(payload, header_length=header_length)) == [ChannelClosed(reason)]
        assert started.channel.is_closed
        assert started.channel.next_deadline() is None

    def test_may_come_before_anything_else(self) -> None:
        side = Side()
        assert side.receive(closed(b'{"Output":"no such document"}')) == [ChannelClosed("no such document")]

    def test_output_before_it_is_delivered_and_acknowledged(self, started: Side) -> None:
        events = started.receive(wire_sketch.output(2, b"bye"), closed(b"{}"))
        assert events == [OutputReceived(b"bye"), ChannelClosed("")]
        assert acknowledged(started.sent()) == [2]

    def test_output_that_is_missing_at_the_end_is_known_by_what_came_behind_it(self, started: Side) -> None:
        lost = wire_sketch.output(3, b"lost")
        events = started.receive(wire_sketch.output(2, b"before"), wire_sketch.output(4, b"behind"), closed(b"{}"))
        assert events == [OutputReceived(b"before"), ChannelClosed("")]
        assert started.channel.output_is_missing
        assert started.receive(lost) == [], "nothing follows an end"
        assert started.channel.output_is_missing

    def test_output_that_came_late_is_not_missing(self, started: Side) -> None:
        started.receive(wire_sketch.output(3, b"behind"))
        assert started.channel.output_is_missing
        assert started.receive(wire_sketch.output(2, b"late"), closed(b"{}")) == [
            OutputReceived(b"late"),
            OutputReceived(b"behind"),
            ChannelClosed(""),
        ]
        assert not started.channel.output_is_missing

    def test_output_may_be_missing_before_the_session_has_begun(self) -> None:
        side = Side()
        assert side.receive(wire_sketch.output(1, b"of a shell without handshake"), closed(b"{}")) == [
            ChannelClosed("")
        ]
        assert side.channel.output_is_missing

    @pytest.mark.parametrize("end", [closed(b"{}"), b"garbage"], ids=["closed", "failed"])
    def test_nothing_happens_after_an_end(self, started: Side, end: bytes) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.receive(*[end] * MAX_REJECTED_IN_A_ROW, now=SETTLED)
        started.sent(SETTLED)
        assert started.channel.is_closed
        after: list[Callable[[], object]] = [
            lambda: started.channel.receive(wire_sketch.output(2, b"late"), 3.0),
            lambda: started.channel.receive(b"garbage", 3.0),
            lambda: started.channel.handle_deadline(1000.0),
            lambda: started.channel.send_input(b"late", 3.0),
        ]
        for call in after:
            call()
            assert started.channel.events() == []
            assert started.sent(1000.0) == []
            assert started.channel.next_deadline() is None

    def test_input_that_was_ready_still_leaves_when_the_session_fails(self, started: Side) -> None:
        started.channel.send_input(b"x", SETTLED)
        started.receive(*[b"garbage"] * MAX_REJECTED_IN_A_ROW, now=SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"x")]

    def test_a_failure_in_a_stored_run_ends_the_run(self) -> None:
        side = Side()
        side.receive(wire_sketch.output(1, b"$ "), wire_sketch.output(2, b"$ "))
        events = side.receive(wire_sketch.output(0, b"{broken", 5))
        assert [type(event) for event in events] == [SessionFailed]


class TestCommands:
    def test_standard_error_and_exit_code(self, started: Side) -> None:
        events = started.receive(
            wire_sketch.output(2, b"out"),
            wire_sketch.output(3, b"err", 11),
            wire_sketch.output(4, b"", 11),
            wire_sketch.output(5, b"EXIT_CODE: 3", 12),
        )
        assert events == [
            OutputReceived(b"out"),
            ErrorOutputReceived(b"err"),
            ErrorOutputReceived(b""),
            ExitCodeReceived(3),
        ]
        assert acknowledged(started.sent()) == [2, 3, 4, 5]

    @pytest.mark.parametrize("payload_type", [11, 12])
    def test_nothing_of_them_counts_before_the_session_has_started(self, payload_type: int) -> None:
        side = Side()
        side.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5))
        events = side.receive(wire_sketch.output(1, b"EXIT_CODE: 3", payload_type))
        assert dropped(events) == [f"payload type {payload_type} before the session has started"]
        assert not side.channel.is_closed


class TestSize:
    SIZE = (3, b'{"cols":80,"rows":24}')

    def test_leaves_at_once_where_input_may(self, started: Side) -> None:
        started.sent(SETTLED)
        started.channel.send_size(TerminalSize(columns=80, rows=24), SETTLED)
        assert inputs(started.sent(SETTLED)) == [(1, *self.SIZE)]

    def test_waits_for_the_start_and_goes_before_the_input(self) -> None:
        side = Side()
        side.channel.send_input(b"ls\n", 0.0)
        side.channel.send_size(TerminalSize(columns=300, rows=100), 0.0)
        side.channel.send_size(TerminalSize(columns=80, rows=24), 0.5)
        assert side.sent(0.5) == []
        side.start()
        assert inputs(side.sent(SETTLED)) == [(1, *self.SIZE), (2, 1, b"ls\n")]

    def test_waits_alone_too(self, started: Side) -> None:
        started.channel.send_size(TerminalSize(columns=80, rows=24), 1.0)
        assert started.channel.next_deadline() == 1.0 + SETTLE_TIME
        assert inputs(started.sent(1.0 + SETTLE_TIME)) == [(1, *self.SIZE)]

    def test_waits_for_the_first_output_of_a_shell_without_handshake(self) -> None:
        channel = make_channel(check_session=lambda session_type, properties: None)
        channel.open("token", 0.0)
        channel.send_size(TerminalSize(columns=80, rows=24), 0.0)
        channel.receive(wire_sketch.output(0, b"$ "), 1.0)
        frames = [wire_sketch.unpack(data) for data in channel.messages_to_send(1.0)]
        assert inputs(frames) == [(0, *self.SIZE)]

    def test_waits_while_paused(self, started: Side) -> None:
        started.receive(PAUSE, now=SETTLED)
        started.channel.send_size(TerminalSize(columns=80, rows=24), SETTLED)
        assert started.sent(SETTLED) == []
        started.receive(START, now=SETTLED + 1)
        assert inputs(started.sent(SETTLED + 1)) == [(1, *self.SIZE)]


class TestFlags:
    FLAG = (10, b"\0\0\0\x01")

    def test_leaves_at_once_after_the_start(self, started: Side) -> None:
        started.channel.send_flag(1, 1.0)
        assert inputs(started.sent()) == [(1, *self.FLAG)]

    def test_waits_behind_the_input(self, started: Side) -> None:
        started.channel.send_input(b"last", 1.0)
        started.channel.send_flag(1, 1.0)
        assert inputs(started.sent(1.0)) == []
        assert inputs(started.sent(SETTLED)) == [(1, 1, b"last"), (2, *self.FLAG)]

    def test_waits_for_the_start(self) -> None:
        side = Side()
        side.channel.send_flag(1, 0.0)
        assert side.sent(0.0) == []
        side.start()
        assert inputs(side.sent(SETTLED)) == [(1, *self.FLAG)]


class TestHandshakeTimeout:
    @pytest.mark.parametrize("timeout", [5.0, None])
    def test_is_what_was_asked_for(self, timeout: float | None) -> None:
        channel = make_channel(handshake_timeout=timeout)
        channel.open("token", 1.0)
        assert channel.next_deadline() == (None if timeout is None else 1.0 + timeout)
        channel.handle_deadline(1e6)
        events = channel.events()
        if timeout is None:
            assert events == []
        else:
            assert "within 5 seconds" in str(failure(events).cause)

    def test_a_handshake_that_has_begun_has_to_end(self) -> None:
        """Silence may be that of a shell without handshake; after a request it is none."""
        side = Side(is_open=False)
        side.channel = make_channel(handshake_timeout=None)
        side.channel.open("token", 0.0)
        assert side.wait(1000.0) == []
        side.receive(
            wire_sketch.output(0, wire_sketch.handshake_request(), 5), wire_sketch.input_acknowledge(0), now=1000.0
        )
        side.sent(1000.0)
        assert side.wait(1000.0 + HANDSHAKE_TIMEOUT - 0.1) == []
        assert isinstance(failure(side.wait(1000.0 + HANDSHAKE_TIMEOUT)), HandshakeFailed)


KEY = DataKey(bytes(range(64)), b"wrapped")
CUSTOMER = b'{"HandshakeTimeToComplete":1,"CustomerMessage":"This session is encrypted using AWS KMS."}'


class EncryptedSide(Side):
    """A channel of an encrypted shell, with the agent's cipher beside."""

    def __init__(self, session_type: str = "Standard_Stream") -> None:
        super().__init__(is_open=False)
        self.channel = make_channel(check_session=lambda session_type, properties: None)
        self.channel.open("token", 0.0)
        self.agent = PayloadCipher(DataKey(KEY.plaintext[32:] + KEY.plaintext[:32], b""), 0)
        self.request = wire_sketch.output(0, wire_sketch.handshake_request(session_type, None, KMS_ACTION), 5)

    def challenge(self) -> bytes:
        return wire_sketch.output(1, encode_challenge(self.agent.encrypt(b"c" * 64)), 8)

    def start(self, now: float = 1.0) -> None:
        self.receive(self.request, now=now)
        self.channel.provide_data_key(KEY, now)
        self.receive(wire_sketch.input_acknowledge(0), self.challenge(), now=now)
        self.sent(now)
        self.receive(wire_sketch.input_acknowledge(1), wire_sketch.output(2, CUSTOMER, 7), now=now)
        self.sent(now)
        assert self.channel.is_started


@pytest.fixture
def encrypted() -> EncryptedSide:
    side = EncryptedSide()
    side.start()
    return side


class TestEncryption:
    @pytest.mark.parametrize("session_type", ["Standard_Stream", "Port"])
    def test_the_whole_way(self, session_type: str) -> None:
        side = EncryptedSide(session_type)
        assert side.receive(side.request) == [DataKeyNeeded("arn", "AAAA")]
        frames = side.sent()
        assert (acknowledged(frames), inputs(frames)) == ([0], [])
        side.channel.provide_data_key(KEY, 1.0)
        ((number, payload_type, response),) = inputs(side.sent())
        assert (number, payload_type) == (0, 6)
        result = json.loads(response)["ProcessedClientActions"][1]["ActionResult"]
        assert result == {
            "KMSCipherTextKey": "d3JhcHBlZA==",
            "KMSCipherTextHash": None,
            "ChallengeAcknowledgement": True,
        }
        assert side.receive(side.challenge()) == []
        frames = side.sent()
        assert acknowledged(frames) == [1]
        ((number, payload_type, answer),) = inputs(frames)
        assert (number, payload_type) == (1, 9)
        assert side.agent.decrypt(decode_challenge(answer)) == b"c" * 64
        (started,) = side.receive(wire_sketch.output(2, CUSTOMER, 7))
        assert isinstance(started, SessionStarted)
        assert started.customer_message == "This session is encrypted using AWS KMS."

    def test_data_is_encrypted_both_ways(self, encrypted: EncryptedSide) -> None:
        agent = encrypted.agent
        events = encrypted.receive(
            wire_sketch.output(3, agent.encrypt(b"$ ")),
            wire_sketch.output(4, agent.encrypt(b"oops"), 11),
            wire_sketch.output(5, agent.encrypt(b"EXIT_CODE: 9"), 12),
            wire_sketch.output(6, agent.encrypt(b"")),
        )
        assert events == [OutputReceived(b"$ "), ErrorOutputReceived(b"oops"), ExitCodeReceived(9)]
        encrypted.channel.send_input(b"a" * 1500, 1.0)
        sent = inputs(encrypted.sent())
        assert [len(payload) for _, _, payload in sent] == [1024 + 28, 476 + 28]
        assert b"".join(agent.decrypt(payload) for _, _, payload in sent) == b"a" * 1500

    def test_input_that_waited_for_the_start_is_encrypted_too(self) -> None:
        side = EncryptedSide()
        side.channel.send_size(TerminalSize(columns=80, rows=24), 0.0)
        side.channel.send_input(b"early", 0.0)
        side.receive(side.request)
        side.channel.send_input(b" bird", 1.0)
        side.start()
        size, *rest = inputs(side.sent(SETTLED))
        assert size == (2, 3, b'{"cols":80,"rows":24}')
        assert b"".join(side.agent.decrypt(payload) for _, _, payload in rest) == b"early bird"

    def test_flags_and_sizes_are_not_encrypted(self, encrypted: EncryptedSide) -> None:
        encrypted.sent(SETTLED)
        encrypted.channel.send_size(TerminalSize(columns=80, rows=24), SETTLED)
        encrypted.channel.terminate(SETTLED)
        sent = inputs(encrypted.sent(SETTLED))
        assert sent == [(2, 3, b'{"cols":80,"rows":24}'), (3, 10, b"\0\0\0\x02")]
        assert encrypted.receive(wire_sketch.output(3, b"\0\0\0\x03", 10)) == [FlagReceived(3)]

    def test_what_is_sent_again_is_the_same(self, encrypted: EncryptedSide) -> None:
        encrypted.channel.send_input(b"x", SETTLED)
        first = encrypted.sent(SETTLED)
        encrypted.channel.open("another", 3.0)
        assert inputs(encrypted.sent(3.0)) == inputs(first)

    @pytest.mark.parametrize("payload_type", [1, 11, 12])
    @pytest.mark.parametrize("payload", [b"", b"plain text", b"EXIT_CODE: 0", bytes(100)])
    def test_what_is_not_encrypted_ends_the_session_and_is_not_shown(
        self, encrypted: EncryptedSide, payload_type: int, payload: bytes
    ) -> None:
        (event,) = encrypted.receive(wire_sketch.output(3, payload, payload_type), wire_sketch.output(4, b"more"))
        assert isinstance(event, SessionFailed)
        assert isinstance(event.error, DecryptionFailed)
        assert encrypted.channel.is_closed
        assert "plain" not in repr(event)

    def test_what_was_good_before_is_delivered(self, encrypted: EncryptedSide) -> None:
        good = wire_sketch.output(3, encrypted.agent.encrypt(b"good"))
        events = encrypted.receive(wire_sketch.output(4, b"bad"), good)
        assert events[0] == OutputReceived(b"good")
        assert isinstance(failure(events), DecryptionFailed)

    def test_output_instead_of_a_handshake_s_end_ends_the_session(self) -> None:
        side = EncryptedSide()
        side.receive(side.request)
        assert isinstance(failure(side.receive(wire_sketch.output(1, b"plain"))), HandshakeFailed)
        side = EncryptedSide()
        side.receive(side.request)
        side.channel.provide_data_key(KEY, 1.0)
        events = side.receive(wire_sketch.output(1, side.agent.encrypt(b"too soon")))
        assert isinstance(failure(events), HandshakeFailed)
        assert len(events) == 1

    def test_an_end_of_the_handshake_without_challenge_ends_the_session(self) -> None:
        side = EncryptedSide()
        side.receive(side.request)
        side.channel.provide_data_key(KEY, 1.0)
        assert isinstance(failure(side.receive(wire_sketch.output(1, CUSTOMER, 7))), ChallengeFailed)

    def test_a_wrong_challenge_ends_the_session(self) -> None:
        side = EncryptedSide()
        side.receive(side.request)
        side.channel.provide_data_key(DataKey(bytes(64), b"wrapped"), 1.0)
        side.sent()
        assert isinstance(failure(side.receive(side.challenge())), ChallengeFailed)
        assert inputs(side.sent()) == []

    def test_without_a_key_the_agent_hears_why_and_the_session_ends(self) -> None:
        side = EncryptedSide()
        side.receive(side.request)
        side.sent()
        error = EncryptionError("access denied: kms:GenerateDataKey", cause="no policy")
        side.channel.refuse_data_key(error, 1.0)
        assert failure(side.channel.events()) is error
        ((_, _, response),) = inputs(side.sent())
        actions = json.loads(response)["ProcessedClientActions"]
        assert [action["ActionStatus"] for action in actions] == [1, 2]
        assert actions[1]["Error"] == "access denied: kms:GenerateDataKey: no policy"

    def test_a_key_that_comes_too_late_is_ignored(self) -> None:
        side = EncryptedSide()
        side.receive(side.request)
        side.wait(HANDSHAKE_TIMEOUT + 1)
        assert side.channel.is_closed
        side.channel.provide_data_key(KEY, HANDSHAKE_TIMEOUT + 1)
        side.channel.refuse_data_key(EncryptionError("late"), HANDSHAKE_TIMEOUT + 1)
        assert inputs(side.sent()) == []
        assert side.channel.events() == []

    def test_a_key_that_is_used_up_ends_the_session(
        self, encrypted: EncryptedSide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cipher, "MOST_MESSAGES", 3)  # the challenge was one
        encrypted.channel.send_input(b"a" * 5000, SETTLED)
        assert isinstance(failure(encrypted.channel.events()), EncryptionError)
        assert len(inputs(encrypted.sent(SETTLED))) == 2

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([1, 5, 6, 7, 8, 10, 11, 12, 99]),
                st.sampled_from([b"", b"plain", b"{}", CUSTOMER, b"EXIT_CODE: 0", bytes(92), "challenge", "output"]),
            ),
            max_size=12,
        ),
        st.integers(min_value=0, max_value=4),
        st.booleans(),
    )
    def test_whatever_comes_only_what_the_agent_encrypted_is_shown(
        self, messages: list[tuple[int, bytes | str]], key_at: int, is_started: bool
    ) -> None:
        side = EncryptedSide()
        if is_started:
            side.start()
        else:
            side.receive(side.request)
        events: list[Event] = []
        sealed = 0
        for number, (payload_type, payload) in enumerate(messages, 3 if is_started else 1):
            if number == key_at:
                side.channel.provide_data_key(KEY, 1.0)
            if payload == "challenge":
                payload = encode_challenge(side.agent.encrypt(b"c" * 64))
            elif payload == "output":
                payload = side.agent.encrypt(b"from the agent")
                sealed += 1
            assert isinstance(payload, bytes)
            events += side.receive(wire_sketch.output(number, payload, payload_type))
            side.sent()
        shown = [event for event in events if isinstance(event, OutputReceived | ErrorOutputReceived)]
        assert len(shown) <= sealed
        assert {event.payload for event in shown} <= {b"from the agent"}
        assert not any(isinstance(event, ExitCodeReceived) for event in events)
        if shown and not is_started:
            assert any(isinstance(event, SessionStarted) for event in events)
        assert sum(isinstance(event, SessionFailed) for event in events) <= 1
