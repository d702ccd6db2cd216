"""The recorded port forwardings, played by the multiplexer: the official client's bytes, message for message."""

from __future__ import annotations

import pytest
from golden.transcripts import Record, frames
from simulation import smux_sketch
from simulation.smux_sketch import FIN, PSH, SYN

from ssm_proxy.mux.session import ClosingAnswered, MuxSession, StreamClosedByPeer, StreamDataReceived
from ssm_proxy.wire.smux import Frame, FrameDecoder, encode_header

NAMES = ["forward-mux", "forward-mux-refused", "forward-remote-host"]


def smux_records(name: str) -> list[Record]:
    kinds = ("input_stream_data", "output_stream_data")
    return [record for record in frames(name) if record.kind in kinds and record.payload_type == 1]


def stream_of(name: str, sender: str) -> bytes:
    return b"".join(record.payload for record in smux_records(name) if record.sender == sender)


def replay(name: str, piece_bytes: int) -> tuple[list[bytes], MuxSession, list[object]]:
    """Do what the official client's user did, when it did it.

    Returns:
        What was sent in place of each message of the client; the session; all events.
    """
    session = MuxSession(keepalive=False, now=0.0)
    messages: list[bytes] = []
    events: list[object] = []
    for record in smux_records(name):
        if record.sender == "agent":
            for start in range(0, len(record.payload), piece_bytes):
                session.receive(record.payload[start : start + piece_bytes], record.t)
            events += session.events()
            continue
        for command, stream_id, data in smux_sketch.parse(record.payload)[0]:
            if command == SYN:
                assert session.open_stream() == stream_id
            elif command == PSH:
                session.send(stream_id, data)
            else:
                session.close_stream(stream_id)
        messages.append(session.data_to_send(1024))
    return messages, session, events


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sender", ["client", "agent"])
def test_frames_decode_and_encode_back(name: str, sender: str) -> None:
    stream = stream_of(name, sender)
    expected, size, is_wrong = smux_sketch.parse(stream)
    assert (size, is_wrong) == (len(stream), False)
    decoded: list[Frame] = []
    FrameDecoder().feed(stream, decoded)
    assert decoded == expected
    assert b"".join(encode_header(*frame[:2], len(frame.data)) + frame.data for frame in decoded) == stream


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("name", NAMES)
def test_we_send_what_the_official_client_sent(name: str, piece_bytes: int) -> None:
    messages, session, _ = replay(name, piece_bytes)
    theirs = [record.payload for record in smux_records(name) if record.sender == "client"]
    assert len(theirs) >= 3
    assert messages == theirs
    assert session.pending_bytes == 0


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("name", NAMES)
def test_local_connections_get_what_the_agent_sent(name: str, piece_bytes: int) -> None:
    _, _, events = replay(name, piece_bytes)
    ours: dict[int, bytes] = {}
    closed = set()
    for event in events:
        if isinstance(event, StreamDataReceived):
            assert event.stream_id not in closed
            ours[event.stream_id] = ours.get(event.stream_id, b"") + event.data
        else:
            assert isinstance(event, StreamClosedByPeer | ClosingAnswered)
            closed.add(event.stream_id)
    theirs: dict[int, bytes] = {}
    ended = set()
    for command, stream_id, data in smux_sketch.parse(stream_of(name, "agent"))[0]:
        if command == PSH:
            theirs[stream_id] = theirs.get(stream_id, b"") + data
        else:
            assert command == FIN
            ended.add(stream_id)
    assert ours == theirs
    assert ended == closed


def test_the_recordings_hold_what_they_are_for() -> None:
    answers = stream_of("forward-mux", "agent")
    assert answers.count(b"HTTP/1.0 200 OK") == 3
    assert answers.count(b"404 File not found") == 1
    assert b"hello-web" in stream_of("forward-remote-host", "agent")
    assert stream_of("forward-mux-refused", "agent") == smux_sketch.pack(FIN, 3)
