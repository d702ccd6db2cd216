"""Both pollers over real descriptors."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller, PollPoller, SelectPoller, make_poller

DEADLINE = 10.0


@pytest.fixture(params=[SelectPoller, PollPoller])
def poller(request: pytest.FixtureRequest) -> Poller:
    if request.param is PollPoller and not hasattr(select, "poll"):
        pytest.skip("this system has no poll")
    poller: Poller = request.param()
    return poller


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def test_reports_what_was_asked_for_only(poller: Poller, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    poller.set(reader, read=True)
    poller.set(writer, write=True)
    assert poller.wait(DEADLINE) == {writer: WRITE}
    os.write(writer, b"x")
    assert poller.wait(DEADLINE) == {writer: WRITE, reader: READ}
    poller.set(writer)
    assert poller.wait(DEADLINE) == {reader: READ}
    poller.set(reader)
    assert poller.wait(0) == {}


def test_one_descriptor_for_both(poller: Poller) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.set(ours.fileno(), read=True, write=True)
        assert poller.wait(DEADLINE) == {ours.fileno(): WRITE}
        theirs.send(b"x")
        assert poller.wait(DEADLINE) == {ours.fileno(): READ | WRITE}


def test_removed_is_forgotten(poller: Poller, pipe: tuple[int, int]) -> None:
    poller.set(pipe[1], write=True)
    poller.remove(pipe[1])
    poller.remove(pipe[1])
    assert poller.wait(0) == {}


def test_the_end_of_input_can_be_read(poller: Poller, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    poller.set(reader, read=True)
    os.close(writer)
    assert poller.wait(DEADLINE)[reader] & (READ | HANGUP)


def test_a_timeout_is_never_cut_short(poller: Poller, pipe: tuple[int, int]) -> None:
    poller.set(pipe[0], read=True)
    for timeout in (0.0004, 0.0015, 0.02):
        began = time.monotonic()
        assert poller.wait(timeout) == {}
        assert time.monotonic() - began >= timeout, "waking early means waking again and again"


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this system has no poll")
class TestPoll:
    def test_is_what_this_system_uses(self) -> None:
        assert isinstance(make_poller(), PollPoller)

    def test_a_vanished_reader_is_noticed_without_anything_to_write(self, pipe: tuple[int, int]) -> None:
        poller = PollPoller()
        poller.set(pipe[1])
        assert poller.wait(0) == {}
        os.close(pipe[0])
        assert poller.wait(DEADLINE) == {pipe[1]: HANGUP}

    def test_no_timeout_waits_for_an_event(self, pipe: tuple[int, int]) -> None:
        poller = PollPoller()
        poller.set(pipe[1], write=True)
        assert poller.wait(None) == {pipe[1]: WRITE}

    def test_a_reused_number_is_watched_anew(self) -> None:
        poller = PollPoller()
        first, other = socket.socketpair()
        number = first.fileno()
        poller.set(number, read=True)
        poller.remove(number)
        first.close()
        second, another = socket.socketpair()
        with other, second, another:
            poller.set(second.fileno(), read=True)
            another.send(b"x")
            assert poller.wait(DEADLINE) == {second.fileno(): READ}
