"""Lines for people: form, safety, and that they never hold up the tunnel."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssm_proxy.cli.messages import (
    FLUSH_TIMEOUT,
    MAX_QUEUED_LINES,
    MAX_TEXT,
    StderrWriter,
    error_lines,
    printable,
    set_up_logging,
    stdout_is_terminal,
)
from ssm_proxy.errors import SsmProxyError

DEADLINE = 10.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    fds = os.pipe()
    yield fds
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def read_all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 65536):
        data += piece
    return data


def fill(fd: int) -> None:
    """Write until a pipe takes no more."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"." * 4096)
    os.set_blocking(fd, True)


class TestForm:
    def test_up_to_three_lines(self) -> None:
        assert error_lines(SsmProxyError("what")) == ["ssm-proxy: error: what"]
        assert error_lines(SsmProxyError("what", cause="why", hint="next")) == [
            "ssm-proxy: error: what",
            "ssm-proxy: cause: why",
            "ssm-proxy: hint: next",
        ]

    def test_a_hint_may_show_lines_to_copy(self) -> None:
        lines = error_lines(SsmProxyError("what", hint="put these:\n\n    Host i-*\n"))
        assert lines[1:] == ["ssm-proxy: hint: put these:", "", "    Host i-*"]

    def test_foreign_text_cannot_write_on_the_terminal(self) -> None:
        nasty = "\x1b]0;title\x07\x1b[2Jred\r\nssm-proxy: error: faked\u202e \x9b31m"
        for line in error_lines(SsmProxyError(nasty, cause=nasty)):
            assert line.isprintable()

    def test_long_text_is_cut(self) -> None:
        assert printable("x" * MAX_TEXT) == "x" * MAX_TEXT
        assert len(printable("x" * 100_000)) == MAX_TEXT
        assert printable("ä\n日本") == "ä 日本"


class TestWriter:
    def test_lines_arrive_in_order(self, pipe: tuple[int, int]) -> None:
        writer = StderrWriter(pipe[1])
        for number in range(100):
            writer.write(f"line {number} ä")
        writer.flush()
        os.close(pipe[1])
        assert read_all(pipe[0]).decode().splitlines() == [f"line {number} ä" for number in range(100)]

    def test_several_lines_at_once_on_a_terminal_begin_in_its_first_column(self) -> None:
        ours, terminal = os.openpty()
        try:
            tty.setraw(terminal)  # as ssh has it
            writer = StderrWriter(terminal)
            writer.write("one\ntwo")
            writer.flush()
            assert os.read(ours, 100) == b"one\r\ntwo\r\n"
        finally:
            os.close(ours)
            os.close(terminal)

    def test_nobody_reads(self, pipe: tuple[int, int]) -> None:
        fill(pipe[1])
        writer = StderrWriter(pipe[1])
        began = time.monotonic()
        writer.write("line 0")
        while not writer._lines.empty():  # the thread has it in its hands, and cannot get rid of it
            assert time.monotonic() - began < 10
        began = time.monotonic()
        for number in range(1, MAX_QUEUED_LINES + 500):
            writer.write(f"line {number}")
        writer.write("two\nmore")
        assert time.monotonic() - began < 1, "writing must never wait for a reader"
        # Now somebody reads: what was queued comes, and then how many are missing.
        received = b""
        while f"\nline {MAX_QUEUED_LINES}\n".encode() not in received:
            received += os.read(pipe[0], 65536)
        writer.write("last")
        while b"\nlast\n" not in received:
            received += os.read(pipe[0], 65536)
        *lines, note, _ = received[received.index(b"line 0") :].decode().splitlines()
        assert lines == [f"line {number}" for number in range(MAX_QUEUED_LINES + 1)]
        assert note == "ssm-proxy: 501 lines were dropped here: nobody read them"
        writer.flush()

    @pytest.mark.parametrize("count", [1, MAX_QUEUED_LINES + 500])
    def test_flush_has_an_end_although_nobody_reads(self, pipe: tuple[int, int], count: int) -> None:
        fill(pipe[1])
        writer = StderrWriter(pipe[1])
        for _ in range(count):
            writer.write("x")
        began = time.monotonic()
        writer.flush(0.1)
        assert time.monotonic() - began < 1
        received = b""
        while received.count(b"x\n") < min(count, MAX_QUEUED_LINES):
            received += os.read(pipe[0], 65536)
        writer.flush()

    def read_slowly(self, fd: int, is_over: threading.Event) -> tuple[threading.Thread, bytearray]:
        """Read 4 KiB each hundredth of a second, as long as there is something."""
        received = bytearray()

        def read() -> None:
            while not is_over.wait(0.01) and (data := os.read(fd, 4096)):
                received.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        return reader, received

    def test_flush_waits_for_a_slow_reader(self, pipe: tuple[int, int]) -> None:
        lines = [f"{number:099}" for number in range(3000)]
        writer = StderrWriter(pipe[1])
        writer.write("\n".join(lines[:2900]))  # one entry, which takes longer than the timeout
        for line in lines[2900:]:
            writer.write(line)
        reader, received = self.read_slowly(pipe[0], threading.Event())
        writer.flush(0.2)
        os.close(pipe[1])
        reader.join(DEADLINE)
        assert received.decode().splitlines() == lines

    def test_flush_does_not_wait_for_ever_for_a_slow_reader(
        self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ssm_proxy.cli.messages.LONGEST_FLUSH", 0.3)
        writer = StderrWriter(pipe[1])
        writer.write("x" * 2_000_000)
        is_over = threading.Event()
        reader, received = self.read_slowly(pipe[0], is_over)
        began = time.monotonic()
        writer.flush()
        assert 0.2 < time.monotonic() - began < 2
        is_over.set()
        reader.join(DEADLINE)
        assert len(received) < 2_000_000
        while len(received) < 2_000_001:
            received.extend(os.read(pipe[0], 65536))
        writer.flush()

    def test_a_standard_error_that_ssh_made_non_blocking(self, pipe: tuple[int, int]) -> None:
        os.set_blocking(pipe[1], False)
        writer = StderrWriter(pipe[1])
        count = 900
        for _ in range(count):
            writer.write("x" * 199)
        data = b""
        while len(data) < count * 200:
            data += os.read(pipe[0], 65536)
        assert data == (b"x" * 199 + b"\n") * count
        writer.flush()

    def test_a_reader_that_has_gone(self, pipe: tuple[int, int]) -> None:
        os.close(pipe[0])
        writer = StderrWriter(pipe[1])
        began = time.monotonic()
        for _ in range(10):
            writer.write("x")
        writer.flush()
        assert time.monotonic() - began < 2 * FLUSH_TIMEOUT + 1

    def test_nothing_written_is_nothing_started(self) -> None:
        before = threading.active_count()
        StderrWriter().flush()
        assert threading.active_count() == before


class TestLogging:
    @pytest.fixture
    def logger(self) -> Iterator[logging.Logger]:
        logger = logging.getLogger("ssm_proxy")
        yield logger
        for handler in tuple(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True

    @pytest.mark.parametrize(("verbosity", "level"), [(1, logging.INFO), (2, logging.DEBUG), (3, 5), (4, 5)])
    def test_levels(self, logger: logging.Logger, pipe: tuple[int, int], verbosity: int, level: int) -> None:
        writer = StderrWriter(pipe[1])
        set_up_logging(verbosity, None, writer)
        logging.getLogger("ssm_proxy.transport").log(level, "shown")
        logging.getLogger("ssm_proxy.transport").log(level - 1, "hidden")
        writer.flush()
        os.close(pipe[1])
        (line,) = read_all(pipe[0]).decode().splitlines()
        assert line.endswith(" ssm_proxy.transport: shown")

    def test_none_without_being_asked(self, logger: logging.Logger) -> None:
        before = list(logger.handlers)
        set_up_logging(0, None, StderrWriter())
        assert logger.handlers == before

    def test_a_file_instead_of_standard_error(
        self, logger: logging.Logger, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        writer = StderrWriter()
        set_up_logging(0, str(tmp_path / "log"), writer)
        logger.info("the service said \x1b[2J and\nssm_proxy: faked")
        writer.flush()
        assert capfd.readouterr() == ("", "")
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert "\x1b" not in line

    def test_libraries_are_not_logged(self, logger: logging.Logger, pipe: tuple[int, int]) -> None:
        writer = StderrWriter(pipe[1])
        set_up_logging(3, None, writer)
        logging.getLogger("botocore.auth").warning("StringToSign")
        logging.getLogger("websocket").warning("request header")
        writer.flush()
        os.close(pipe[1])
        assert read_all(pipe[0]) == b""

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file"):
            set_up_logging(1, str(tmp_path / "missing" / "log"), StderrWriter())


def test_a_closed_stdout_is_no_terminal() -> None:
    assert not stdout_is_terminal()
