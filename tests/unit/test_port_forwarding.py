"""The forwarding application, both kinds: real sockets and a real channel, with the time as an argument."""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from simulation import wire_sketch
from simulation.pair import make_channel
from unit import smux_peer
from unit.smux_peer import NOP, SYN, Frame
from unit.test_listener import no_descriptors

from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.errors import RemotePortRefused, RemoteProtocolError, TransportTimeout
from ssm_proxy.sessions.port import check_forwarding_session
from ssm_proxy.transport import basic_forwarding, forwarding
from ssm_proxy.transport.acceptor import RETRY_AFTER, Forward
from ssm_proxy.transport.basic_forwarding import BasicForwarding
from ssm_proxy.transport.forwarding import LINGER_TIME, QUIET_TIME, MuxForwarding, make_forwarding
from ssm_proxy.transport.listener import bind_port
from ssm_proxy.transport.poller import HANGUP, READ, make_poller
from ssm_proxy.transport.probe import PATIENCE
from ssm_proxy.wire.constants import Flag

PROPERTIES = {"portNumber": "80", "type": "LocalPortForwarding"}
START = 100.0
MIB = 1024 * 1024


class Rig:
    """A forwarding whose agent is the test: what it sent is read frame by frame, and acknowledged at once."""

    def __init__(self, *, version: str = "3.3.0.0", probe: bool = False) -> None:
        self.channel = make_channel(check_session=check_forwarding_session)
        self.channel.open("token", START)
        request = wire_sketch.handshake_request("Port", PROPERTIES)
        self.channel.receive(wire_sketch.output(0, request, 5), START)
        self.channel.receive(wire_sketch.output(1, b"{}", 7), START)
        self.listener = bind_port("127.0.0.1", 0)
        self.notes: list[str] = []
        self.told: list[str] = []
        self.poller = make_poller()
        self.stream = b""
        self.flags: list[int] = []
        self.acknowledges = True
        self._unacknowledged: list[int] = []
        self.now = START + 1
        self._ending, self.tell_ending = socket.socketpair()
        event = SessionStarted("Port", PROPERTIES, version, "")
        self.application = make_forwarding(
            self.channel,
            event,
            Forward(
                self.listener,
                "port 80 of i-1",
                self.notes.append,
                lambda: self.told.append("listening"),
                (lambda result: self.told.append(result)) if probe else None,
                lambda has_received: self.told.append("closed, was used" if has_received else "closed"),
                self._ending,
                lambda: self.told.append("drained"),
            ),
        )
        self.application.started(event, self.now)
        self.turn()

    def close(self) -> None:
        self.application.close()
        self._ending.close()
        self.tell_ending.close()

    def turn(self, after: float = 0.0, *, is_connected: bool = True) -> None:
        """Let time pass, then one turn of the loop."""
        self.now += after
        self.application.watch(self.poller, self.now)
        ready = self.poller.wait(0)
        self.application.turn(ready, self.now, is_connected=is_connected)
        if is_connected:
            self._send()

    def until(self, condition: Callable[[], object]) -> None:
        """Take turns until something is so; the time stands still, but sockets take a moment."""
        for _ in range(1000):
            if condition():
                return
            self.turn()
            select.select([], [], [], 0.001)
        raise AssertionError("it did not happen")

    def _send(self) -> None:
        for data in self.channel.messages_to_send(self.now):
            frame = wire_sketch.unpack(data)
            if frame.kind != "input_stream_data":
                continue
            if frame.payload_type == 1:
                self.stream += frame.payload
            elif frame.payload_type == 10:
                self.flags.append(int.from_bytes(frame.payload, "big"))
            self._unacknowledged.append(frame.seq)
        if self.acknowledges:
            self.acknowledge()

    def acknowledge(self, but: int = 0) -> None:
        """Acknowledge what was received, the last messages excepted."""
        count = len(self._unacknowledged) - but
        for seq in self._unacknowledged[:count]:
            self.channel.receive(wire_sketch.input_acknowledge(seq), self.now)
        del self._unacknowledged[:count]

    @property
    def frames(self) -> list[Frame]:
        return smux_peer.frames(self.stream)

    def finished(self) -> list[int]:
        return smux_peer.finished(self.stream)

    def receive(self, *frames: bytes) -> None:
        """Have the agent send frames."""
        self.application.output(list(frames), self.now)
        self.turn()

    def connect(self) -> socket.socket:
        program = socket.create_connection(("127.0.0.1", self.listener.port), 5)
        program.settimeout(5)
        return program

    @contextmanager
    def connected(self, stream_id: int = 3) -> Iterator[socket.socket]:
        """Connect, until the agent has heard of it."""
        with self.connect() as program:
            self.until(lambda: Frame(SYN, stream_id) in self.frames)
            yield program


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**changes: object) -> Rig:
        rigs.append(Rig(**changes))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def read_until_reset(program: socket.socket) -> bytes:
    """Read to an end that must be an error."""
    data = bytearray()
    while True:
        try:
            piece = program.recv(MIB)
        except ConnectionResetError:
            return bytes(data)
        assert piece, f"an end in order after {len(data)} bytes"
        data += piece


class TestConnections:
    def test_it_listens_when_the_session_has_begun(self, rig: Rig) -> None:
        assert rig.told == ["listening"]
        assert isinstance(rig.application, MuxForwarding)

    def test_each_connection_is_a_stream(self, rig: Rig) -> None:
        with rig.connected(3) as first, rig.connected(5) as second:
            first.sendall(b"one")
            second.sendall(b"two")
            rig.until(lambda: smux_peer.data_of(rig.stream) == {3: b"one", 5: b"two"})
            rig.receive(smux_peer.psh(5, b"to two") + smux_peer.psh(3, b"to one"))
            assert (first.recv(10), second.recv(10)) == (b"to one", b"to two")

    def test_frames_may_be_cut_anywhere(self, rig: Rig) -> None:
        with rig.connected() as program:
            data = smux_peer.psh(3, b"hello") + smux_peer.fin(3)
            rig.receive(*(data[position : position + 1] for position in range(len(data))))
            assert program.recv(10) == b"hello"
            assert program.recv(10) == b""

    def test_all_of_a_long_upload_leaves(self, rig: Rig) -> None:
        with rig.connected() as program, ThreadPoolExecutor(1) as pool:
            data = bytes(range(256)) * 8192
            sending = pool.submit(program.sendall, data)
            rig.until(lambda: sending.done() and smux_peer.data_of(rig.stream).get(3) == data)

    def test_a_slow_reader_holds_everything_up_until_it_has_taken_enough(self, rig: Rig) -> None:
        with rig.connected() as program:
            rig.receive(smux_peer.psh(3, bytes(24 * MIB)))
            assert rig.application.is_full
            left = 24 * MIB
            while left:
                left -= len(program.recv(MIB))
                rig.turn()
            assert not rig.application.is_full

    def test_what_is_no_frame_ends_the_session(self, rig: Rig) -> None:
        with pytest.raises(RemoteProtocolError):
            rig.application.output([b"HTTP/1.1 400 Bad Request\r\n"], rig.now)

    def test_frames_for_streams_that_are_not_there_are_ignored(self, rig: Rig) -> None:
        rig.receive(smux_peer.psh(77, b"x") + smux_peer.fin(77))

    def test_no_more_is_read_than_the_channel_takes(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.setblocking(False)
            sent = 0
            for _ in range(50):
                with suppress(BlockingIOError):
                    sent += program.send(bytes(MIB))
                rig.turn(is_connected=False)  # nothing leaves, nothing is acknowledged
            assert sent < 30 * MIB
            queued = rig.application._mux.pending_bytes  # type: ignore[union-attr]
            assert queued <= 128 * 1024
            (fd,) = rig.application._by_fd  # type: ignore[union-attr]
            rig.application.turn({fd: READ}, rig.now, is_connected=False)  # does not look like the end
            program.setblocking(True)
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: len(smux_peer.data_of(rig.stream).get(3, b"")) == sent)


class TestEndOfInput:
    def test_a_connection_lives_until_it_was_quiet_for_a_while(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.sendall(b"GET")
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.turn(QUIET_TIME - 0.1)
            assert rig.finished() == []
            rig.receive(smux_peer.psh(3, b"answer"))  # begins the time anew
            rig.turn(QUIET_TIME - 0.1)
            assert rig.finished() == []
            assert program.recv(10) == b"answer"
            rig.turn(0.2)
            assert rig.finished() == [3]
            with pytest.raises(ConnectionResetError):  # the answer may not be whole
                program.recv(10)

    def test_the_while_is_shorter_when_others_have_to_wait(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssm_proxy.mux.session.MAX_STREAMS", 2)
        with rig.connected(3) as first:
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() == rig.now + QUIET_TIME)
            with rig.connected(5), rig.connect():
                rig.turn()
                assert rig.application.deadline() == rig.now + forwarding.QUIET_TIME_IF_FULL
                rig.turn(forwarding.QUIET_TIME_IF_FULL)
                rig.until(lambda: Frame(SYN, 7) in rig.frames)
                assert rig.finished() == [3]

    def test_without_a_connection_nobody_is_quiet(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.turn(1, is_connected=False)
            rig.turn(QUIET_TIME * 5)
            assert rig.finished() == []
            rig.turn(QUIET_TIME - 0.1)
            assert rig.finished() == []
            rig.turn(0.2)
            assert rig.finished() == [3]

    def test_one_that_is_still_reading_is_not_quiet(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.receive(smux_peer.psh(3, bytes(8 * MIB)))
            assert rig.application.wants_write
            rig.turn(QUIET_TIME * 5)
            assert rig.finished() == []

    def test_a_program_that_has_gone_is_told_at_once(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
        rig.receive(smux_peer.psh(3, b"too late"))
        rig.until(lambda: rig.finished() == [3])

    def test_what_has_not_reached_the_agent_is_not_waited_for(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.sendall(b"x" * 50_000)
            program.shutdown(socket.SHUT_WR)
            rig.acknowledges = False
            rig.until(lambda: len(smux_peer.data_of(rig.stream).get(3, b"")) == 50_000)
            rig.turn(QUIET_TIME * 5)
            rig.turn(QUIET_TIME * 5)
            assert rig.finished() == []
            rig.acknowledge()
            rig.turn()
            assert rig.application.deadline() == rig.now + QUIET_TIME

    def test_what_others_send_all_the_time_does_not_prolong_it(self, rig: Rig) -> None:
        with rig.connected(3) as program, rig.connected(5) as other:
            rig.acknowledges = False
            program.sendall(b"0")
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application._undelivered)  # type: ignore[union-attr]
            other.sendall(b"1")
            rig.until(lambda: smux_peer.data_of(rig.stream) == {3: b"0", 5: b"1"})
            rig.acknowledge(but=1)
            assert not rig.channel.is_drained
            rig.turn()
            rig.turn(QUIET_TIME)
            assert rig.finished() == [3]

    def test_while_nothing_is_received_nobody_is_quiet(self, rig: Rig) -> None:
        with rig.connected(3), rig.connected(5) as other:
            other.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.turn(QUIET_TIME / 2)
            rig.receive(smux_peer.psh(3, bytes(24 * MIB)))
            assert rig.application.is_full
            rig.turn(QUIET_TIME - 1)
            assert rig.application.is_full
            assert rig.finished() == []

    def test_a_new_one_does_not_take_over_what_befell_its_descriptor(self, rig: Rig) -> None:
        with rig.connected(3) as first:
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            (fd,) = rig.application._by_fd  # type: ignore[union-attr]
            with rig.connect() as second:
                second.shutdown(socket.SHUT_WR)
                rig.application.output([smux_peer.fin(3)], rig.now)  # closes the first one
                rig.application.turn({fd: HANGUP, rig.listener.fileno(): READ}, rig.now, is_connected=True)
                assert list(rig.application._by_fd) == [fd]  # type: ignore[union-attr]
                rig.turn()
                assert rig.finished() == [3]


class TestEndOfThePrograms:
    """The command that they were for has ended; what they left is still to arrive."""

    def test_what_was_just_sent_arrives(self, rig: Rig) -> None:
        with rig.connect() as program:
            program.sendall(b"last words")
        rig.tell_ending.close()
        rig.until(lambda: rig.finished() == [3])
        assert smux_peer.data_of(rig.stream) == {3: b"last words"}
        rig.turn()
        assert "drained" not in rig.told  # the destination may not have it yet
        rig.receive(smux_peer.fin(3))
        assert rig.told == ["listening", "drained"]
        with pytest.raises(OSError):
            rig.connect()
        rig.turn()
        assert rig.told == ["listening", "drained"]

    def test_who_came_at_the_last_moment_is_accepted(self, rig: Rig) -> None:
        with rig.connect() as program:
            program.sendall(b"last words")
        rig.application.turn({rig._ending.fileno(): READ}, rig.now, is_connected=True)  # only that was seen
        rig.until(lambda: rig.finished() == [3])
        assert smux_peer.data_of(rig.stream) == {3: b"last words"}

    def test_much_too(self, rig: Rig) -> None:
        data = bytes(range(256)) * 8192
        with rig.connect() as program, ThreadPoolExecutor(1) as pool:
            sending = pool.submit(program.sendall, data)
            rig.until(sending.done)
        rig.tell_ending.close()
        rig.until(lambda: rig.finished() == [3])
        assert smux_peer.data_of(rig.stream) == {3: data}

    def test_it_is_not_over_before_the_agent_has_it(self, rig: Rig) -> None:
        rig.acknowledges = False
        with rig.connected() as program:
            program.sendall(b"last words")
        rig.tell_ending.close()
        rig.until(lambda: rig.finished() == [3])
        rig.receive(smux_peer.fin(3))
        assert rig.told == ["listening"]
        rig.acknowledge()
        rig.turn()
        assert rig.told == ["listening", "drained"]

    def test_nothing_is_nothing_to_wait_for(self, rig: Rig) -> None:
        with rig.connected():  # by a program that lives on, and is silent
            rig.tell_ending.close()
            rig.turn()
            assert rig.told == ["listening", "drained"]

    def test_one_after_the_other_with_old_agents(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(version="3.0.196.0")
        for word in (b"one", b"two"):
            with rig.connect() as program:
                program.sendall(word)
        rig.tell_ending.close()
        rig.until(lambda: "drained" in rig.told)
        assert rig.stream == b"onetwo"
        assert rig.flags == [Flag.DISCONNECT_TO_PORT] * 2


class TestEndOfOutput:
    def test_all_is_delivered_before_the_end(self, rig: Rig) -> None:
        with rig.connected() as program:
            rig.receive(smux_peer.psh(3, bytes(8 * MIB)) + smux_peer.fin(3))
            assert rig.finished() == [3]
            assert rig.application.wants_write
            data = b""
            while len(data) < 8 * MIB:
                data += program.recv(MIB)
                rig.turn()
            assert program.recv(1) == b""
            rig.until(lambda: rig.application.deadline() is not None)

    def test_a_program_that_does_not_close_is_closed(self, rig: Rig) -> None:
        with rig.connected() as program:
            rig.receive(smux_peer.psh(3, b"all") + smux_peer.fin(3))
            assert rig.application.deadline() == rig.now + LINGER_TIME
            program.sendall(b"more")  # thrown away: nobody wants it
            rig.turn()
            rig.turn(LINGER_TIME)
            assert rig.application.deadline() is None
            assert program.recv(10) == b"all"
            assert program.recv(10) == b""
            assert smux_peer.data_of(rig.stream) == {}

    @pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what was not taken")
    def test_a_slow_reader_that_keeps_sending_gets_all(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # does not grow: not all can be on its side
            rig.receive(smux_peer.psh(3, bytes(8 * MIB)) + smux_peer.fin(3))
            size = 0
            while rig.application.wants_write:
                size += len(program.recv(MIB))
                rig.turn()
            for _ in range(5):  # the system's buffer is still full
                program.sendall(b"go on")
                rig.turn(LINGER_TIME + 0.1)
            while data := program.recv(MIB):
                size += len(data)
            assert size == 8 * MIB

    @pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what was not taken")
    def test_but_not_for_ever(self, rig: Rig) -> None:
        with rig.connected() as program:
            program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            rig.receive(smux_peer.psh(3, bytes(8 * MIB)) + smux_peer.fin(3))
            while rig.application.wants_write:
                program.recv(MIB)
                rig.turn()
            rig.turn(LINGER_TIME)
            assert rig.application.deadline() == rig.now + LINGER_TIME
            rig.turn(forwarding.LINGER_LIMIT)
            assert rig.application.deadline() is None


class TestRefusals:
    def refuse(self, rig: Rig, stream_id: int) -> None:
        rig.application.flag(Flag.CONNECT_TO_PORT_ERROR, rig.now)
        rig.receive(smux_peer.fin(stream_id))

    def test_the_program_sees_an_error_and_the_user_a_line(self, rig: Rig) -> None:
        with rig.connected() as program:
            self.refuse(rig, 3)
            with pytest.raises(ConnectionResetError):
                program.recv(1)
        assert rig.notes == [
            f"{rig.listener.name}: a connection was refused: the agent could not connect to port 80 of i-1"
        ]

    def test_many_are_told_together(self, rig: Rig) -> None:
        for number in range(5):
            with rig.connected(3 + 2 * number):
                self.refuse(rig, 3 + 2 * number)
        assert len(rig.notes) == 1
        deadline = rig.application.deadline()
        assert deadline == rig.now + forwarding.REFUSALS_TOLD_EVERY
        rig.turn(forwarding.REFUSALS_TOLD_EVERY)
        assert len(rig.notes) == 2
        assert "4 connections were refused" in rig.notes[1]
        assert rig.application.deadline() is None

    def test_one_that_had_data_was_not_the_refused_one(self, rig: Rig) -> None:
        with rig.connected(3) as first, rig.connected(5) as second:
            rig.application.flag(Flag.CONNECT_TO_PORT_ERROR, rig.now)
            rig.receive(smux_peer.psh(3, b"x") + smux_peer.fin(3) + smux_peer.fin(5))
            assert first.recv(1) == b"x"
            assert first.recv(1) == b""
            with pytest.raises(ConnectionResetError):
                second.recv(1)

    def test_one_whose_program_has_left_takes_its_refusal_with_it(self, rig: Rig) -> None:
        with rig.connected(3) as first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rig.until(lambda: rig.finished() == [3])
        self.refuse(rig, 3)
        assert len(rig.notes) == 1
        with rig.connected(5) as program:
            rig.receive(smux_peer.fin(5))
            assert program.recv(1) == b""
        assert len(rig.notes) == 1

    def test_a_late_refusal_of_the_probe_is_nobody_elses(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        rig.turn()
        rig.turn(PATIENCE)
        assert rig.told == ["listening", "not refused"]
        self.refuse(rig, 3)
        with rig.connected(5) as program:
            rig.receive(smux_peer.fin(5))
            assert program.recv(1) == b""

    def test_the_next_one_that_closes_without_a_word_was_not_refused(self, rig: Rig) -> None:
        with rig.connected(3):
            self.refuse(rig, 3)
        with rig.connected(5) as program:
            rig.receive(smux_peer.fin(5))
            assert program.recv(1) == b""


class TestProbes:
    def test_an_answer(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        rig.receive(smux_peer.psh(3, b"220 hello"))
        assert rig.told == ["listening", "answered"]
        rig.turn()
        assert rig.finished() == [3]

    def test_a_server_that_closes_was_reached_too(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        rig.receive(smux_peer.fin(3))
        assert rig.told == ["listening", "answered"]

    def test_silence(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        rig.turn()
        deadline = rig.application.deadline()
        assert deadline is not None
        rig.turn(deadline - rig.now)
        assert rig.told == ["listening", "not refused"]
        assert rig.finished() == [3]  # in the same turn

    def test_silence_of_old_agents_means_nothing(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True, version="3.0.196.0")
        rig.turn()
        rig.turn(PATIENCE)
        assert rig.told == ["listening", "unknown"]

    def test_a_refusal_ends_the_session(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        rig.application.flag(Flag.CONNECT_TO_PORT_ERROR, rig.now)
        with pytest.raises(RemotePortRefused):
            rig.receive(smux_peer.fin(3))

    def test_connections_do_not_wait_for_it(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(probe=True)
        with rig.connected(5) as program:
            rig.receive(smux_peer.psh(5, b"hello"))
            assert program.recv(10) == b"hello"


class TestTheSession:
    def test_a_closed_one_still_delivers_and_takes_nobody_new(self, rig: Rig) -> None:
        with rig.connected() as program:
            rig.receive(smux_peer.psh(3, bytes(8 * MIB)))
            rig.application.closed("over")
            assert rig.told == ["listening", "closed, was used"]
            with pytest.raises(OSError):
                rig.connect()
            size = 0
            assert rig.application.wants_write
            while size < 8 * MIB:
                size += len(program.recv(MIB))
                rig.turn(is_connected=False)
            assert not rig.application.wants_write
            rig.application.close()
            assert read_until_reset(program) == b""

    def test_its_end_resets_what_is_open(self, rig: Rig) -> None:
        with rig.connected() as program:
            rig.application.close()
            with pytest.raises(ConnectionResetError):
                program.recv(1)

    def test_keepalive_of_older_agents(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(version="3.1.1000.0")
        for _ in range(2):
            deadline = rig.application.deadline()
            assert deadline is not None
            rig.turn(deadline - rig.now)
        assert [frame.command for frame in rig.frames] == [NOP, NOP]
        with pytest.raises(TransportTimeout):
            rig.turn(30)

    def test_their_silence_counts_only_while_connected(self, make_rig: Callable[..., Rig]) -> None:
        rig = make_rig(version="3.1.1000.0")
        rig.turn(100, is_connected=False)
        rig.turn(1)
        rig.turn(20)
        with pytest.raises(TransportTimeout):
            rig.turn(10)

    def test_connections_wait_while_there_is_no_descriptor(self, rig: Rig) -> None:
        with rig.connect() as program:
            program.sendall(b"x")
            with no_descriptors():
                rig.until(lambda: rig.notes)
                rig.turn()
            assert "ulimit -n" in rig.notes[0]
            assert rig.application.deadline() == rig.now + RETRY_AFTER
            rig.turn(RETRY_AFTER)
            rig.until(lambda: smux_peer.data_of(rig.stream) == {3: b"x"})
        assert len(rig.notes) == 1

    def test_a_reader_that_stands_still_is_given_up_when_others_starve(self, rig: Rig) -> None:
        with rig.connected(3) as stalled, rig.connected(5) as other:
            rig.receive(smux_peer.psh(3, bytes(24 * MIB)))
            assert rig.application.is_full
            other.sendall(b"GET")
            rig.until(lambda: 5 in smux_peer.data_of(rig.stream))
            deadline = rig.application.deadline()
            assert deadline is not None
            rig.turn(deadline - rig.now)
            assert not rig.application.is_full
            assert "a connection was reset" in rig.notes[0]
            rig.receive(smux_peer.psh(5, b"answer"))
            assert other.recv(10) == b"answer"
            assert len(read_until_reset(stalled)) < 24 * MIB


class TestBasic:
    """Old agents: one connection at a time."""

    @pytest.fixture
    def rig(self, make_rig: Callable[..., Rig]) -> Rig:
        return make_rig(version="3.0.196.0")

    def connection(self, rig: Rig) -> object:
        assert isinstance(rig.application, BasicForwarding)
        return rig.application._connection

    def test_bytes_as_they_are(self, rig: Rig) -> None:
        with rig.connect() as program:
            program.sendall(b"hello")
            rig.until(lambda: rig.stream == b"hello")
            rig.receive(b"wor", b"ld")
            assert program.recv(10) == b"world"
        assert "one connection at a time" in rig.notes[0]

    def test_what_comes_before_anybody_connects_waits(self, rig: Rig) -> None:
        rig.receive(b"220 hello")
        assert not rig.application.is_full
        rig.receive(bytes(basic_forwarding.MAX_PENDING_BYTES))
        assert rig.application.is_full
        with rig.connect() as program:
            rig.until(lambda: self.connection(rig))
            assert program.recv(9) == b"220 hello"
            size = 0
            while size < basic_forwarding.MAX_PENDING_BYTES:
                size += len(program.recv(MIB))
                rig.turn()
            assert not rig.application.is_full

    def test_the_next_one_is_taken_when_the_agent_has_left_the_first(self, rig: Rig) -> None:
        with rig.connect() as first:
            rig.until(lambda: self.connection(rig))
            first.sendall(b"one")
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.turn(basic_forwarding.QUIET_TIME - 0.1)
            assert rig.flags == []
            rig.receive(b"answer")
            assert first.recv(10) == b"answer"
            rig.turn(basic_forwarding.QUIET_TIME)
            assert rig.flags == [Flag.DISCONNECT_TO_PORT]
            with pytest.raises(ConnectionResetError):
                first.recv(10)
        with rig.connect() as second:
            second.sendall(b"two")
            rig.until(lambda: rig.stream == b"onetwo")

    def test_somebody_who_waits_shortens_it(self, rig: Rig) -> None:
        with rig.connect() as first, rig.connect() as second:
            first.sendall(b"one")
            second.sendall(b"two")
            rig.until(lambda: rig.stream == b"one")
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() == rig.now + basic_forwarding.QUIET_TIME_IF_SOMEBODY_WAITS)
            rig.turn(basic_forwarding.QUIET_TIME_IF_SOMEBODY_WAITS)
            rig.until(lambda: rig.stream == b"onetwo")

    def test_who_has_waited_waits_no_more_when_accepted(self, rig: Rig) -> None:
        with rig.connect() as first:
            rig.until(lambda: self.connection(rig))
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            fd = self.connection(rig).fileno()  # type: ignore[attr-defined]
            with rig.connect() as second:
                rig.application.turn({fd: HANGUP, rig.listener.fileno(): READ}, rig.now, is_connected=True)
                rig.until(lambda: self.connection(rig))
                second.shutdown(socket.SHUT_WR)
                rig.until(lambda: rig.application.deadline() == rig.now + basic_forwarding.QUIET_TIME)

    def test_without_a_connection_nobody_is_quiet(self, rig: Rig) -> None:
        with rig.connect() as program:
            rig.until(lambda: self.connection(rig))
            program.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.turn(1, is_connected=False)
            rig.turn(basic_forwarding.QUIET_TIME * 5)
            assert rig.flags == []
            rig.turn(basic_forwarding.QUIET_TIME - 0.1)
            assert rig.flags == []

    def test_late_output_is_not_for_the_next_one(self, rig: Rig) -> None:
        with rig.connect() as first:
            rig.until(lambda: self.connection(rig))
            first.shutdown(socket.SHUT_WR)
            rig.until(lambda: rig.application.deadline() is not None)
            rig.now += basic_forwarding.QUIET_TIME
            rig.application.turn({}, rig.now, is_connected=True)  # the flag is on its way
            rig.application.output([b"late"], rig.now)
        with rig.connect() as second:
            rig.until(lambda: self.connection(rig))
            rig.receive(b"new")
            assert second.recv(10) == b"new"
            assert rig.flags == [Flag.DISCONNECT_TO_PORT]

    def test_a_program_that_has_gone(self, rig: Rig) -> None:
        with rig.connect():
            rig.until(lambda: self.connection(rig))
        rig.receive(b"x")
        rig.receive(b"y")
        rig.until(lambda: rig.flags == [Flag.DISCONNECT_TO_PORT])
