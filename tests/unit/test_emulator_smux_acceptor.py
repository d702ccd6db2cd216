"""The agent's end of the mux: frames cut anywhere, the shared buffer, closed streams, keepalive."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smux_peer import FIN, NOP, UPD, fin, frame, frames, psh, syn

from ssm_proxy.emulator.smux_acceptor import (
    ACCEPT_QUEUE,
    RECEIVE_BUFFER_BYTES,
    Ended,
    Event,
    Opened,
    Received,
    SmuxAcceptor,
    SmuxBroken,
)


def acceptor(*, keepalive: bool = False) -> SmuxAcceptor:
    return SmuxAcceptor(keepalive=keepalive, now=0.0, defects=Counter())


def take(end: SmuxAcceptor, data: bytes) -> list[Event]:
    end.receive(data)
    return list(end.events())


def test_the_examples_of_the_protocol_reference() -> None:
    end = acceptor()
    assert take(end, bytes.fromhex("01 00 00 00 03 00 00 00")) == [Opened(3)]
    assert take(end, bytes.fromhex("01 02 05 00 03 00 00 00 68 65 6c 6c 6f")) == [Received(3, b"hello")]
    assert end.header(3, 5) + b"hello" == bytes.fromhex("01 02 05 00 03 00 00 00 68 65 6c 6c 6f")
    assert end.close(3) == bytes.fromhex("01 01 00 00 03 00 00 00")


@given(st.lists(st.integers(1, 40), max_size=30))
def test_frames_may_be_cut_anywhere(sizes: list[int]) -> None:
    stream = syn(3) + psh(3, b"first") + syn(5) + psh(5, b"x" * 40_000) + fin(3) + frame(NOP, 0) + fin(5)
    whole = take(acceptor(), stream)
    assert [type(each) for each in whole] == [Opened, Received, Opened, Received, Received, Ended, Ended]
    end = acceptor()
    found = []
    at = 0
    for size in sizes:
        found += take(end, stream[at : at + size])
        at += size
    assert found + take(end, stream[at:]) == whole
    assert end.waiting_bytes == 0


def test_frames_of_unknown_streams_and_repeated_syns_are_ignored() -> None:
    defects = Counter[str]()
    end = SmuxAcceptor(keepalive=False, now=0.0, defects=defects)
    assert take(end, psh(3, b"early") + fin(3) + syn(3) + syn(3) + psh(3, b"data")) == [Opened(3), Received(3, b"data")]
    assert defects == {
        "smux data for a stream never opened, ignored": 1,
        "smux FIN for a stream that is not open, ignored": 1,
        "smux stream id that is even or not a new one": 1,
    }


def test_what_crosses_our_fin_is_no_defect() -> None:
    defects = Counter[str]()
    end = SmuxAcceptor(keepalive=False, now=0.0, defects=defects)
    take(end, syn(3))
    assert frames(end.close(3)) == [(FIN, 3, b"")]
    assert end.close(3) == b""
    assert take(end, psh(3, b"under way") + fin(3)) == []
    assert defects == {}


def test_data_after_a_fin_is_ignored_and_counted() -> None:
    defects = Counter[str]()
    end = SmuxAcceptor(keepalive=False, now=0.0, defects=defects)
    assert take(end, syn(3) + fin(3) + psh(3, b"late") + fin(3)) == [Opened(3), Ended(3)]
    assert defects == {"smux data after FIN, ignored": 1, "smux FIN for a stream that is not open, ignored": 1}
    assert frames(end.close(3)) == [(FIN, 3, b"")]


def test_a_full_receive_buffer_stops_all_streams() -> None:
    end = acceptor()
    full = take(end, syn(3) + psh(3, bytes(RECEIVE_BUFFER_BYTES)) + syn(5))
    assert len(full) == 1 + RECEIVE_BUFFER_BYTES // 32768
    assert end.is_full
    assert list(end.events()) == []
    end.release(32768)
    assert list(end.events()) == [Opened(5)]


def test_a_full_accept_queue_stops_all_streams() -> None:
    end = acceptor()
    ids = range(3, 3 + 2 * (ACCEPT_QUEUE + 10), 2)
    assert len(take(end, b"".join(map(syn, ids)))) == ACCEPT_QUEUE + 1  # the last one waits at the door of the queue
    end.accept()
    assert list(end.events()) == [Opened(ids[ACCEPT_QUEUE + 1])]


def test_a_frame_may_have_65535_bytes() -> None:
    defects = Counter[str]()
    end = SmuxAcceptor(keepalive=False, now=0.0, defects=defects)
    assert take(end, syn(3) + frame(2, 3, bytes(65535))) == [Opened(3), Received(3, bytes(65535))]
    assert defects == {"smux data of more than 32768 bytes": 1}


def test_a_window_update_is_read_and_ignored() -> None:
    end = acceptor()
    update = frame(UPD, 3)[:8] + bytes(8)
    assert take(end, syn(3) + update + psh(3, b"after")) == [Opened(3), Received(3, b"after")]


@pytest.mark.parametrize("header", [b"\x02\x00", b"\x00\x00", b"\x01\x05"], ids=["version 2", "version 0", "command 5"])
def test_another_version_or_command_breaks_the_connection(header: bytes) -> None:
    end = acceptor()
    end.receive(syn(3) + header + bytes(6))
    events = end.events()
    assert next(events) == Opened(3)
    with pytest.raises(SmuxBroken, match="invalid protocol"):
        next(events)


def test_without_keepalive_there_is_no_deadline() -> None:
    end = acceptor()
    assert end.next_deadline is None


def test_keepalive_sends_nops_and_insists_on_frames() -> None:
    end = acceptor(keepalive=True)
    assert end.next_deadline == 10.0
    assert end.handle_deadline(10.0) == bytes.fromhex("01 03 00 00 00 00 00 00")
    assert take(end, frame(NOP, 0)) == []
    for now in (20.0, 30.0, 40.0, 50.0):
        assert end.next_deadline == now
        assert frames(end.handle_deadline(now)) == [(NOP, 0, b"")]
    with pytest.raises(SmuxBroken, match="closed pipe"):
        end.handle_deadline(60.0)


def test_keepalive_is_patient_while_nothing_can_be_read() -> None:
    end = acceptor(keepalive=True)
    take(end, syn(3) + psh(3, bytes(RECEIVE_BUFFER_BYTES)))
    for now in (30.0, 60.0, 90.0):
        end.handle_deadline(now)


@given(st.lists(st.one_of(st.binary(max_size=40), st.builds(frame, st.integers(0, 5), st.integers(0, 9), st.binary()))))
def test_any_bytes_are_read_or_break_the_connection(pieces: list[bytes]) -> None:
    end = acceptor()
    try:
        for piece in pieces:
            for event in take(end, piece):
                if isinstance(event, Received):
                    end.release(len(event.data))
    except SmuxBroken:
        return
    assert end.waiting_bytes < 8 + 65_536
    assert not end.is_full
