"""The two local ends over real pipes and sockets."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssm_proxy.transport import endpoints
from ssm_proxy.transport.endpoints import FIRST_PIPE_BYTES, MAX_PENDING_BYTES, READ_BYTES, InputEnd, OutputEnd
from ssm_proxy.transport.poller import HANGUP, READ, make_poller

DEADLINE = 10.0


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}

    def close(self, *fds: int) -> None:
        for fd in self._open & set(fds):
            self._open.remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        self.close(*tuple(self._open))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_all()


def wait_to_read(end: InputEnd) -> None:
    poller = make_poller()
    poller.set(end.fileno(), read=True)
    assert poller.wait(DEADLINE)[end.fileno()] & (READ | HANGUP)


class TestInput:
    def test_gives_what_is_there_and_never_waits(self, pipe: Pipe) -> None:
        end = InputEnd(pipe.reader)
        assert end.read(100) is None
        os.write(pipe.writer, b"hello")
        assert end.read(2) == b"he"
        assert end.read(100) == b"llo"
        assert end.read(100) is None
        pipe.close(pipe.writer)
        assert end.read(100) == b""

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux can choose the size of a pipe")
    def test_a_pipe_is_small_at_first_and_grows_when_it_is_let(self, pipe: Pipe) -> None:
        import fcntl

        def size() -> int:
            return fcntl.fcntl(pipe.reader, fcntl.F_GETPIPE_SZ)

        end = InputEnd(pipe.reader)
        assert size() == FIRST_PIPE_BYTES
        end.let_wait(2 * FIRST_PIPE_BYTES - 1)
        assert size() == FIRST_PIPE_BYTES
        end.let_wait(2 * FIRST_PIPE_BYTES)
        assert size() == 2 * FIRST_PIPE_BYTES
        for _ in range(20):
            end.let_wait(1 << 30)
        assert size() == READ_BYTES

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux can choose the size of a pipe")
    def test_a_pipe_that_holds_more_already_stays_as_it_is(self, pipe: Pipe) -> None:
        os.write(pipe.writer, b"x" * 3 * FIRST_PIPE_BYTES)
        end = InputEnd(pipe.reader)
        end.let_wait(1 << 30)
        assert end.read(READ_BYTES) == b"x" * 3 * FIRST_PIPE_BYTES

    def test_reads_a_bounded_piece_at_a_time(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * (READ_BYTES + 10))
        with (tmp_path / "file").open("rb") as file:
            end = InputEnd(file.fileno())
            assert len(end.read(10 * READ_BYTES) or b"") == READ_BYTES
            assert end.read(READ_BYTES) == b"x" * 10
            assert end.read(READ_BYTES) == b""

    def test_a_writer_that_resets_is_an_end(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        with ours:
            end = InputEnd(ours.fileno())
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            theirs.close()
            wait_to_read(end)
            assert end.read(100) == b""

    def test_the_descriptor_is_left_as_it_was_found(self, pipe: Pipe) -> None:
        end = InputEnd(pipe.reader)
        assert not os.get_blocking(pipe.reader)
        end.close()
        assert os.get_blocking(pipe.reader)
        os.set_blocking(pipe.reader, False)
        InputEnd(pipe.reader).close()
        assert not os.get_blocking(pipe.reader)

    def test_a_file_shared_with_others_is_not_changed(self, tmp_path: Path) -> None:
        with (tmp_path / "file").open("wb") as file:
            OutputEnd(file.fileno())
            assert os.get_blocking(file.fileno())
        controller, terminal = os.openpty()
        InputEnd(terminal)
        assert os.get_blocking(terminal)
        os.close(controller)
        os.close(terminal)


class TestPumpedInput:
    """Where pipes cannot be polled, a thread pumps into a socket that can."""

    @pytest.fixture(autouse=True)
    def _pumped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoints, "_CAN_POLL_PIPES", False)

    def test_bytes_and_their_end_pass_through(self, pipe: Pipe) -> None:
        end = InputEnd(pipe.reader)
        assert end.read(100) is None
        assert end.fileno() != pipe.reader
        assert os.get_blocking(pipe.reader)
        data = os.urandom(1_000_000)

        def write() -> None:
            with open(pipe.writer, "wb", closefd=False) as file:
                file.write(data)
            pipe.close(pipe.writer)

        writer = threading.Thread(target=write)
        writer.start()
        received = b""
        while True:
            wait_to_read(end)
            piece = end.read(100_000)
            if piece == b"":
                break
            received += piece or b""
        writer.join(DEADLINE)
        assert received == data
        end.close()

    def test_close_lets_the_thread_end(self, pipe: Pipe) -> None:
        before = set(threading.enumerate())
        end = InputEnd(pipe.reader)
        (thread,) = set(threading.enumerate()) - before
        end.close()
        os.write(pipe.writer, b"x")
        thread.join(DEADLINE)
        assert not thread.is_alive()


class TestOutput:
    def test_writes_at_once_what_the_reader_takes(self, pipe: Pipe) -> None:
        end = OutputEnd(pipe.writer)
        end.write(b"hello")
        assert not end.wants_write
        assert os.read(pipe.reader, 100) == b"hello"

    def test_keeps_what_the_reader_does_not_take_in_order(self, pipe: Pipe) -> None:
        end = OutputEnd(pipe.writer)
        pieces = [os.urandom(100_000) for _ in range(50)]
        for piece in pieces:
            end.write(piece)
        assert end.wants_write
        assert end.is_full
        received = b""
        while len(received) < 5_000_000:
            received += os.read(pipe.reader, 70_001)
            end.flush()
        assert received == b"".join(pieces)
        assert not end.wants_write
        assert not end.is_full

    def test_full_is_4_mib(self, pipe: Pipe) -> None:
        assert MAX_PENDING_BYTES == 512 * 1024
        end = OutputEnd(pipe.writer)
        end.write(b"x" * MAX_PENDING_BYTES)  # the pipe itself takes some
        assert not end.is_full
        end.write(b"x" * 2_000_000)
        assert end.is_full

    @pytest.mark.parametrize("is_pending", [False, True])
    def test_a_vanished_reader_is_a_quiet_end(self, pipe: Pipe, is_pending: bool) -> None:
        end = OutputEnd(pipe.writer)
        if is_pending:
            end.write(b"x" * 1_000_000)
        pipe.close(pipe.reader)
        if is_pending:
            end.flush()
        else:
            end.write(b"x")
        assert end.is_gone
        end.write(b"more")
        end.flush()
        assert not end.wants_write

    def test_the_descriptor_is_left_as_it_was_found(self, pipe: Pipe) -> None:
        end = OutputEnd(pipe.writer)
        assert not os.get_blocking(pipe.writer)
        end.close()
        assert os.get_blocking(pipe.writer)

    def test_one_socket_for_both_ends(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            other = os.dup(ours.fileno())
            source, sink = InputEnd(ours.fileno()), OutputEnd(other)
            source.close()
            sink.close()
            assert os.get_blocking(ours.fileno())
            os.close(other)
