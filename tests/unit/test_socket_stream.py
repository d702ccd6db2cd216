"""A program's socket and its session: what each end of it means. Real sockets, and a channel of a few numbers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.transport import socket_stream
from ssm_proxy.transport.local_connection import LocalConnection
from ssm_proxy.transport.poller import HANGUP, PollPoller
from ssm_proxy.transport.socket_stream import LEAVE_TIME, QUIET_TIME, SocketStream


class Channel:
    """Has the room that a test gives it, and acknowledges when the test says so."""

    def __init__(self) -> None:
        self.room = 1000
        self.sent: list[bytes] = []
        self.is_drained = True
        self.is_started = True
        self.is_closed = False
        self.output_is_missing = False
        self.input_ended = False

    def input_room(self, now: float) -> int:
        return self.room

    def capacity(self) -> int:
        return self.room

    def send_input(self, data: bytes, now: float) -> None:
        self.sent.append(data)
        self.is_drained = False

    def end_input(self) -> None:
        self.input_ended = True


class World:
    """The stream, and the program's end of the pair."""

    def __init__(self) -> None:
        ours, self.program = socket.socketpair()
        ours.setblocking(False)
        self.program.settimeout(10)
        self.channel = Channel()
        self.local = LocalConnection(ours)
        self.ends: list[tuple[str, bool]] = []
        self.stream = SocketStream(
            cast(DataChannel, self.channel), self.local, begun=lambda: None, ended=lambda *end: self.ends.append(end)
        )
        self.poller = PollPoller()

    def turn(self, now: float, *, is_connected: bool = True) -> dict[int, int]:
        self.stream.watch(self.poller, now)
        ready = self.poller.wait(0)
        self.stream.turn(ready, now, is_connected=is_connected)
        return ready


@pytest.fixture(params=[True, False], ids=["hang-ups told apart", "not told apart"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """On each kind of system."""
    monkeypatch.setattr(socket_stream, "_TELLS_HANG_UP", request.param)
    world = World()
    yield world
    world.local.close()
    world.program.close()


def test_a_program_that_leaves_has_what_it_sent_delivered(world: World) -> None:
    world.program.sendall(b"x" * 1500)
    world.program.close()
    for now in (1.0, 1.1, 1.2):
        world.turn(now)
    assert sum(map(len, world.channel.sent)) == 1500
    assert not world.stream.is_over  # not acknowledged yet
    assert world.stream.deadline() == 1.0 + LEAVE_TIME
    world.channel.is_drained = True
    world.turn(1.3)
    assert world.stream.is_over


def test_but_not_for_ever(world: World) -> None:
    world.program.sendall(b"x")
    world.program.close()
    for now in (1.0, 1.1, 0.9 + LEAVE_TIME):
        world.turn(now)
        assert not world.stream.is_over
    world.turn(1.0 + LEAVE_TIME)
    assert world.stream.is_over


def test_a_hang_up_is_told_once_while_there_is_no_room(world: World) -> None:
    world.program.sendall(b"x")
    world.channel.room = 0
    world.channel.is_drained = False
    world.turn(1.0)
    world.program.close()
    told = [bool(world.turn(now).get(world.local.fileno(), 0) & HANGUP) for now in (1.1, 1.2, 1.3)]
    assert told == [True, False, False]
    world.channel.room = 1000
    world.turn(1.4)
    assert world.channel.sent == [b"x"]


def test_a_half_close_waits_for_silence(world: World) -> None:
    world.program.sendall(b"x")
    world.program.shutdown(socket.SHUT_WR)
    world.turn(1.0)
    world.turn(1.1)
    assert world.channel.input_ended
    assert world.stream.deadline() is None  # not acknowledged yet
    world.channel.is_drained = True
    world.stream.heard(2.0)
    world.stream.output([b"an answer"], 2.0)
    world.turn(2.0)
    assert world.program.recv(100) == b"an answer"
    assert world.stream.deadline() == 2.0 + QUIET_TIME
    world.turn(1.9 + QUIET_TIME)
    assert not world.stream.is_over
    world.turn(2.0 + QUIET_TIME, is_connected=False)
    assert not world.stream.is_over  # nobody could say that the node was silent
    assert world.turn(2.0 + QUIET_TIME) == {}
    assert world.stream.is_over
    assert world.stream.fell_quiet


def test_a_reader_that_does_not_keep_up_is_no_silence(world: World) -> None:
    world.program.shutdown(socket.SHUT_WR)
    world.turn(1.0)
    world.stream.output([bytes(2_000_000)], 1.0)
    assert world.stream.is_full
    assert world.stream.deadline() is None
    world.turn(1.0 + 2 * QUIET_TIME)
    assert not world.stream.is_over


def test_when_the_service_has_closed_the_program_cannot_send_but_still_receives(world: World) -> None:
    world.stream.output([bytes(2_000_000)], 1.0)
    world.stream.closed("a reason")
    assert world.ends == [("a reason", False)]
    with pytest.raises(BrokenPipeError):
        world.program.sendall(bytes(2_000_000))
    received = 0
    while received < 2_000_000:
        world.turn(1.1)
        received += len(world.program.recv(1_000_000))
    assert not world.stream.wants_write
    world.stream.finish()
    assert world.program.recv(1) == b""


def test_a_program_that_still_takes_output_is_told_that_some_is_missing(world: World) -> None:
    world.channel.output_is_missing = True
    world.program.shutdown(socket.SHUT_WR)
    world.stream.closed("")
    assert world.ends == [("", True)]


def test_one_that_has_closed_its_end_wanted_no_more_of_it(world: World) -> None:
    world.channel.output_is_missing = True
    world.program.close()  # which no turn has noticed yet
    world.stream.closed("")
    assert world.ends == [("", False)]
