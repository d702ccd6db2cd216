"""Order, retransmission and capacity under any sequence of events."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from simulation import wire_sketch
from simulation.fixed_window import FixedWindow
from simulation.pair import make_channel

from ssm_proxy.channel.events import SessionFailed
from ssm_proxy.channel.incoming import Incoming
from ssm_proxy.channel.outgoing import Outgoing
from ssm_proxy.channel.rtt import RoundTrip
from ssm_proxy.wire.agent_message import AgentMessage

COMPLETE = b'{"HandshakeTimeToComplete":1,"CustomerMessage":""}'


def message(number: int) -> AgentMessage:
    return AgentMessage("output_stream_data", b"%d" % number, bytes(16), 1, number, 1)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(-2, n - 1), max_size=80))))
def test_any_order_and_duplication_delivers_once_and_in_order(case: tuple[int, list[int]]) -> None:
    count, arrivals = case
    incoming = Incoming()
    delivered: list[int] = []
    acknowledged = set()
    for number in [*arrivals, *range(count)]:  # at last the sender's timer brings every one
        acknowledge, ready = incoming.accept(message(number))
        delivered += [m.sequence_number for m in ready]
        assert acknowledge == (number >= 0)
        acknowledged.add(number)
        assert delivered == list(range(len(delivered)))
        assert incoming.expected_sequence_number == len(delivered)
        # What is delivered was there, and what was there without a hole is delivered.
        assert all(n in acknowledged for n in range(len(delivered)))
        assert len(delivered) not in acknowledged
    assert delivered == list(range(count))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 1024)),
            st.tuples(st.just("acknowledge"), st.integers(-1, 40)),
            st.tuples(st.just("advance"), st.integers(0, 3000)),
            st.tuples(st.just("resend_all"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_what_is_unacknowledged_is_exactly_what_was_sent_and_not_acknowledged(steps: list[tuple[str, int]]) -> None:
    outgoing = Outgoing(FixedWindow(), RoundTrip())
    expected: dict[int, int] = {}
    now = 0.0
    for what, value in steps:
        if what == "add":
            number = outgoing.next_sequence_number
            expected[number] = value
            outgoing.add(b"%d" % number, value, now)
        elif what == "acknowledge":
            assert outgoing.acknowledge(value, now) == (expected.pop(value, None) is not None)
        elif what == "advance":
            now += value / 1000
        else:
            assert [int(data) for data in outgoing.resend_all(now)] == sorted(expected)
        again = [int(data) for data in outgoing.retransmissions(now)]
        assert len(again) == len(set(again))
        assert set(again) <= set(expected)
        assert outgoing.unacknowledged_bytes == sum(expected.values())
        assert outgoing.is_empty == (not expected)
        deadline = outgoing.deadline()
        assert (deadline is None) == (not expected)
        assert deadline is None or now < deadline <= now + 5.0
    # Whatever happened: the head comes again when its time has come, and a resume brings all.
    if expected:
        deadline = outgoing.deadline()
        assert deadline is not None
        assert outgoing.retransmissions(deadline) == [b"%d" % min(expected)]


@given(
    st.integers(1, 8000),
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 5000)),
            st.tuples(st.just("acknowledge"), st.integers(0, 20)),
            st.tuples(st.just("advance"), st.integers(0, 500)),
            st.tuples(st.just("shrink"), st.integers(0, 8000)),
            st.tuples(st.just("resume"), st.just(0)),
            st.tuples(st.just("pause"), st.just(0)),
            st.tuples(st.just("start"), st.just(0)),
        ),
        max_size=40,
    ),
)
@example(100, [("send", 100), ("send", 1), ("acknowledge", 1), ("advance", 500)])
def test_capacity_is_the_window_less_what_was_taken_and_never_negative(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    window = FixedWindow(limit)
    channel = make_channel(window=window)
    channel.open("token", 0.0)
    channel.receive(wire_sketch.output(0, wire_sketch.handshake_request(), 5), 0.0)
    channel.messages_to_send(0.0)
    channel.receive(wire_sketch.input_acknowledge(0), 0.0)
    channel.receive(wire_sketch.output(1, COMPLETE, 7), 0.0)
    taken = sent = 0
    unacknowledged: dict[int, int] = {}
    now = 0.0
    for what, value in steps:
        if what == "send":
            value = min(value, channel.capacity())
            channel.send_input(bytes(value), now)
            taken += value
        elif what == "acknowledge" and value > 0:
            channel.receive(wire_sketch.input_acknowledge(value), now)
            taken -= unacknowledged.pop(value, 0)
        elif what == "advance":
            now += value / 1000
            channel.handle_deadline(now)
        elif what == "shrink":
            window.limit_bytes = value
        elif what == "resume":
            channel.open("token", now)
        elif what in ("pause", "start"):
            channel.receive(wire_sketch.pack(wire_sketch.Frame(f"{what}_publication", b"{}")), now)
        for data in channel.messages_to_send(now):
            frame = wire_sketch.unpack(data)
            if frame.kind == "input_stream_data" and frame.seq > sent:
                assert frame.seq == sent + 1
                sent = frame.seq
                unacknowledged[sent] = len(frame.payload)
        assert channel.capacity() == max(0, window.limit_bytes - taken)
        deadline = channel.next_deadline()
        assert deadline is None or deadline > now, "a deadline in the past makes the driver spin"


@given(st.lists(st.binary(max_size=200) | st.integers(0, 8), max_size=30))
def test_whatever_arrives_the_channel_raises_nothing(arrivals: list[bytes | int]) -> None:
    """Bytes are noise; numbers are good messages with a payload that may not fit their type."""
    channel = make_channel()
    channel.open("token", 0.0)
    for at, arrival in enumerate(arrivals):
        data = arrival if isinstance(arrival, bytes) else wire_sketch.output(at % 4, b"{}", arrival + 3)
        channel.receive(data, float(at))
        channel.handle_deadline(float(at))
        channel.messages_to_send(float(at))
        events = channel.events()
        assert channel.is_closed == any(isinstance(event, SessionFailed) for event in events)
        if channel.is_closed:
            break
