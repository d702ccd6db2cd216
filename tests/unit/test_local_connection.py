"""One connection of a local program, over real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssm_proxy.transport.local_connection import LocalConnection

BIG = os.urandom(8 * 1024 * 1024)


@pytest.fixture
def pair() -> Iterator[tuple[LocalConnection, socket.socket]]:
    """Our end, and the program's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = socket.create_connection(server.getsockname())
        connected, _ = server.accept()
    connected.setblocking(False)
    program.settimeout(10)
    connection = LocalConnection(connected)
    with program:
        yield connection, program
    connection.close()


def read(connection: LocalConnection, size: int = 1000) -> bytes:
    """Wait until it is readable, and read."""
    import select

    assert select.select([connection.fileno()], [], [], 10)[0]
    return connection.read(size)


def reset(program: socket.socket) -> None:
    program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    program.close()


Pair = tuple[LocalConnection, socket.socket]


def test_nothing_to_read_is_not_the_end(pair: Pair) -> None:
    connection, program = pair
    assert (connection.read(10), connection.input_ended) == (b"", False)
    program.sendall(b"hello")
    assert read(connection, 4) == b"hell"
    assert connection.read(4) == b"o"
    assert not connection.input_ended


def test_a_program_that_sends_no_more_can_still_read(pair: Pair) -> None:
    connection, program = pair
    program.sendall(b"x")
    program.shutdown(socket.SHUT_WR)
    assert read(connection) == b"x"
    assert not connection.input_ended
    assert read(connection) == b""
    assert (connection.input_ended, connection.is_deaf) == (True, False)
    connection.write(b"answer")
    assert program.recv(10) == b"answer"


def test_what_the_program_does_not_take_waits_and_is_counted_when_it_leaves(pair: Pair) -> None:
    connection, program = pair
    connection.write(BIG)
    assert connection.wants_write
    settled = connection.take_settled()
    assert 0 < settled < len(BIG)
    connection.write(b"more")
    received = bytearray()
    while len(received) < len(BIG) + 4:
        received += program.recv(1 << 20)
        connection.flush()
        settled += connection.take_settled()
    assert received == BIG + b"more"
    assert (settled, connection.wants_write, connection.take_settled()) == (len(BIG) + 4, False, 0)


@pytest.mark.parametrize("by", ["read", "flush", "hang_up", "write"])
def test_a_program_that_has_gone_takes_nothing_and_all_is_counted(pair: Pair, by: str) -> None:
    connection, program = pair
    connection.write(BIG)
    settled = connection.take_settled()
    reset(program)
    if by == "read":
        assert read(connection) == b""
        assert connection.input_ended
    elif by == "write":
        connection.write(b"more")
        settled -= 4
    else:
        getattr(connection, by)()
    assert (connection.is_deaf, connection.wants_write) == (True, False)
    assert settled + connection.take_settled() == len(BIG)
    connection.write(b"x")
    assert connection.take_settled() == 1


def test_the_end_of_output(pair: Pair) -> None:
    connection, program = pair
    connection.write(b"last")
    connection.finish()
    program.sendall(b"still sending")
    assert program.recv(10) == b"last"
    assert program.recv(10) == b""
    assert read(connection) == b"still sending"


def test_a_reset_is_an_error_for_the_program(pair: Pair) -> None:
    connection, program = pair
    connection.reset()
    with pytest.raises(ConnectionResetError):
        program.recv(1)


# --- one end of a pair ----------------------------------------------------------------------------------------------


@pytest.fixture
def end() -> Iterator[Pair]:
    ours, program = socket.socketpair()
    ours.setblocking(False)
    program.settimeout(10)
    connection = LocalConnection(ours)
    with program:
        yield connection, program
    connection.close()


def test_an_end_that_is_closed_is_not_one_that_sends_no_more(end: Pair) -> None:
    connection, program = end
    assert not connection.other_end_has_gone()
    program.shutdown(socket.SHUT_WR)
    assert read(connection) == b""
    assert connection.input_ended
    assert not connection.other_end_has_gone()
    program.close()
    assert connection.other_end_has_gone()


def test_what_was_not_read_does_not_make_the_end_a_reset(end: Pair) -> None:
    connection, program = end
    program.sendall(b"nobody reads this")
    connection.write(b"the last words")
    connection.close_unread()
    assert program.recv(100) == b"the last words"
    assert program.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        program.sendall(b"more")


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_program_that_waits_to_send_is_told_that_nobody_takes_it(end: Pair, timeout: float | None) -> None:
    connection, program = end
    program.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while program.send(BIG):  # until there is no room
            pass
    program.settimeout(timeout)
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(program.sendall, b"more")
        connection.refuse_input()
        with pytest.raises(BrokenPipeError):
            sending.result(20)
    connection.write(b"but this arrives")
    assert program.recv(100) == b"but this arrives"


def test_a_program_that_wants_sigpipe_does_not_die_of_our_writing() -> None:
    program = (
        "import signal, socket\n"
        "from ssm_proxy.transport.local_connection import LocalConnection\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "ours, theirs = socket.socketpair()\n"
        "connection = LocalConnection(ours)\n"
        "theirs.close()\n"
        "connection.write(b'x')\n"
        "assert connection.other_end_has_gone() and connection.is_deaf\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
