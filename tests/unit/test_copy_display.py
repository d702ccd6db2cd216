"""How a copy looks: lines, JSON, sizes, and the bar as far as it can be seen without a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from ssm_proxy.cli import copy_display
from ssm_proxy.cli.commands import cp
from ssm_proxy.cli.copy_display import BarDisplay, JsonDisplay, LineDisplay, file_line, make_display, size_text, summary
from ssm_proxy.errors import CopyError
from ssm_proxy.file_copy.values import CopyIncomplete, CopyResult, FileOutcome, FileState, Progress

WITHIN = 30
COPIED = FileOutcome(source="a", target="/b", state=FileState.COPIED, size=1500, verified=True)
FAILED = FileOutcome(source="a\x1b[2J", target="/b", state=FileState.FAILED, error="the disk\nis full")
RESULT = CopyResult(copied_bytes=2_500_000, total_bytes=3_000_000, files=2, unchanged=1, seconds=2.0, sessions=4)
PROGRESS = Progress(
    total_bytes=10, done_bytes=5, total_files=1, done_files=0, sessions=1, is_counting=False, current="name"
)


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (1050, "1.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (10**6, "1.0 MB"),
        (268_435_456, "268.4 MB"),
        (10**9, "1.0 GB"),
        (10**12, "1.0 TB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (COPIED, "a -> /b  1.5 kB, verified"),
        (replace(COPIED, verified=False), "a -> /b  1.5 kB"),
        (replace(COPIED, state=FileState.UNCHANGED), "a -> /b  1.5 kB, there already"),
        (replace(FAILED, source="a", error="why"), "ssm-proxy: a: why"),
        (replace(FAILED, source="a", error=None), "ssm-proxy: a: failed"),
    ],
)
def test_a_line_for_each_file(outcome: FileOutcome, line: str) -> None:
    assert file_line(outcome) == line


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\rb", "caf\udce9", "\u202eexe.txt", "\x9b31m"])
def test_no_name_does_anything_to_the_terminal(name: str) -> None:
    for outcome in (replace(COPIED, source=name, target=name), replace(FAILED, source=name, error=name)):
        line = file_line(outcome)
        assert line.isprintable()
        line.encode()


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (RESULT, "copied 2 files, 2.5 MB in 2.0 s (1.25 MB/s, 4 sessions); 1 file there already"),
        (
            replace(RESULT, files=1, unchanged=0, sessions=1, failures=[FAILED, FAILED]),
            "copied 1 file, 2.5 MB in 2.0 s (1.25 MB/s, 1 session); 2 files not copied",
        ),
        (
            replace(RESULT, copied_bytes=0, files=0, unchanged=0, seconds=0.0),
            "copied 0 files, 0 B in 0.0 s (0.00 MB/s, 4 sessions)",
        ),
    ],
)
def test_the_last_line(result: CopyResult, line: str) -> None:
    assert summary(result) == line


def test_lines() -> None:
    stderr = Lines()
    display = LineDisplay(stderr)  # type: ignore[arg-type]
    display.show(PROGRESS)
    display.show(replace(PROGRESS, outcome=COPIED))
    display.show(replace(PROGRESS, notice="say\nso"))
    display.done(RESULT)
    display.failed(CopyError("no"))
    display.failed(CopyIncomplete("no", result=RESULT))
    assert len(stderr.lines) == 4
    assert stderr.lines[0] == file_line(COPIED)
    assert stderr.lines[1].startswith("ssm-proxy: say")
    assert stderr.lines[2:] == [summary(RESULT)] * 2
    assert not any("\n" in line for line in stderr.lines)


def test_files_that_end_at_once_are_told_at_once() -> None:
    stderr = Lines()
    display = LineDisplay(stderr)  # type: ignore[arg-type]
    other = replace(COPIED, target="/c")
    display.show(replace(PROGRESS, outcome=COPIED))
    display.show(replace(PROGRESS, outcome=other))
    assert not stderr.lines
    display.show(PROGRESS)
    display.show(PROGRESS)
    assert stderr.lines == [f"{file_line(COPIED)}\n{file_line(other)}"]


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(data) or len(data))
    display = JsonDisplay()
    display.show(PROGRESS)
    display.show(replace(PROGRESS, outcome=replace(COPIED, source="caf\udce9\n")))
    display.show(replace(PROGRESS, notice="note"))
    display.done(RESULT)
    display.failed(CopyIncomplete("no", result=replace(RESULT, failures=[FAILED]), cause="c", hint="h"))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in written)
    file, notice, done, incomplete, error = map(json.loads, written)
    assert file == {
        "type": "file",
        "source": "caf\udce9\n",
        "target": "/b",
        "state": "copied",
        "bytes": 1500,
        "verified": True,
        "error": None,
    }
    assert notice == {"type": "notice", "text": "note"}
    assert done == {
        "type": "summary",
        "files": 2,
        "unchanged": 1,
        "failed": 0,
        "bytes": 2_500_000,
        "total_bytes": 3_000_000,
        "seconds": 2.0,
        "mb_per_s": 1.25,
        "sessions": 4,
    }
    assert incomplete["failed"] == 1
    assert error == {"type": "error", "message": "no", "cause": "c", "hint": "h"}


SIGNALLED = {"type": "error", "message": "interrupted by SIGINT", "cause": None, "hint": "again"}


def test_json_of_a_copy_that_a_signal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(data) or len(data))

    def told(*, result: CopyResult | None, before: Callable[[JsonDisplay], None]) -> list[dict[str, object]]:
        written.clear()
        display = JsonDisplay()
        before(display)
        display.interrupted("SIGINT", result, "again")
        display.notify("too late")
        return [json.loads(line) for line in b"".join(written).splitlines()]

    summed_up, error = told(result=RESULT, before=lambda _: None)
    assert (summed_up["type"], summed_up["files"], summed_up["bytes"]) == ("summary", 2, 2_500_000)
    assert error == SIGNALLED
    assert told(result=None, before=lambda _: None) == [SIGNALLED], "nothing had begun"
    assert told(result=RESULT, before=lambda display: display.done(RESULT)) == [summed_up, SIGNALLED], "one summary"
    (failed,) = told(result=None, before=lambda display: display.failed(CopyError("no")))
    assert failed["message"] == "no", "one error"


def test_a_signal_is_told_to_a_person_by_the_copy() -> None:
    stderr = Lines()
    display = LineDisplay(stderr)  # type: ignore[arg-type]
    display.show(replace(PROGRESS, outcome=COPIED))
    display.interrupted("SIGINT", RESULT, "again")
    assert stderr.lines == [file_line(COPIED)]


def test_a_long_line_of_json_is_written_in_full_to_a_reader_that_takes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    written = bytearray()

    calls = iter(range(1000))

    def write_little(_fd: int, data: bytes) -> int:
        if next(calls) % 3 == 1:
            raise BlockingIOError
        written.extend(data[:100])
        return min(100, len(data))

    monkeypatch.setattr(os, "write", write_little)
    monkeypatch.setattr("select.select", lambda *_: ([], [1], []))
    JsonDisplay().show(replace(PROGRESS, notice="x" * 1000))
    assert json.loads(written) == {"type": "notice", "text": "x" * 1000}


def test_json_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_fd: int, _data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    display = JsonDisplay()
    for _ in range(2):
        display.done(RESULT)
    JsonDisplay(-1).done(RESULT)


COPYING = """
import sys, time
from ssm_proxy.api import copying
from ssm_proxy.cli import copy_display
from ssm_proxy.cli.main import main
from ssm_proxy.file_copy.values import Progress

PROGRESS = Progress(
    total_bytes=1,
    done_bytes=0,
    total_files=1,
    done_files=0,
    sessions=1,
    is_counting=False,
    current="",
    notice={notice!r},
)

def copy_with(sources, destination, options, access, show, **_):
    try:
        for _ in range({lines}):
            show(PROGRESS)
        time.sleep(60)
    except BaseException:
        for _ in range(1000):
            show(PROGRESS)
        raise

copying.copy_with = copy_with
copy_display._PATIENCE_S = {patience}
sys.exit(main(["cp", "--json", "file", "i-0123456789abcdef0:"]))
"""


def held(fd: int) -> int:
    """Give how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("size", [100, 5000])
@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize("is_read", [True, False])
def test_a_signal_ends_it_although_nobody_reads_its_json(size: int, is_full: bool, is_read: bool) -> None:
    """In the middle of a write or between two of them; what is read afterwards is in full lines."""
    lines = 100_000 if is_full else 5
    patience = WITHIN if is_read else copy_display._PATIENCE_S  # its reader may be slow here, but it is there
    program = COPYING.format(notice="x" * size, lines=lines, patience=patience)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            before, until = -1, time.monotonic() + WITHIN
            while not before == (now := held(process.stdout.fileno())) > 0:  # it stands still
                assert time.monotonic() < until
                before = now
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            output = process.stdout.read() if is_read else b""
            assert process.wait(WITHIN) == 143
        finally:
            process.kill()
    if not is_read:
        return
    *notices, error = [json.loads(line) for line in output.splitlines()]
    assert {each["text"] for each in notices} == {"x" * size}
    assert len(notices) > 1000
    assert (error["type"], error["message"]) == ("error", "interrupted by SIGTERM")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with make_display(Lines(), as_json=False, is_quiet=False) as display:  # type: ignore[arg-type]
        assert isinstance(display, BarDisplay)
        display.show(replace(PROGRESS, total_files=0))
        display.show(PROGRESS)
        display.show(replace(PROGRESS, total_files=3, done_files=1, is_counting=True, done_bytes=10, sessions=2))
        display.show(replace(PROGRESS, outcome=COPIED))
        display.show(replace(PROGRESS, outcome=FAILED))
        display.show(replace(PROGRESS, notice="a\x1bb"))
        display.done(RESULT)
        display.failed(CopyIncomplete("no", result=RESULT))
        display.failed(CopyError("no"))
    text = terminal.getvalue()
    assert "connecting" in text
    assert file_line(COPIED) not in text  # the bar says so
    assert file_line(FAILED) in text
    assert summary(RESULT) in text
    assert "\x1b[2J" not in text
    assert "a\x1bb" not in text


@pytest.mark.parametrize(
    ("columns", "rows", "width"), [(0, 0, 79), (0, 24, 79), (100, 0, 79), (100, 24, 99)], ids=lambda each: str(each)
)
def test_a_terminal_that_does_not_know_its_size_has_a_bar(
    columns: int, rows: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(follower, "w") as terminal, os.fdopen(leader, "rb", buffering=0) as screen:
        monkeypatch.setattr("sys.stderr", terminal)
        with make_display(Lines(), as_json=False, is_quiet=False) as display:  # type: ignore[arg-type]
            display.show(PROGRESS)
            time.sleep(0.15)
            display.show(PROGRESS)
            terminal.flush()
            shown = b""
            while not re.search(rb"50%[^\r]*\]", shown):
                assert select.select([screen], [], [], WITHIN)[0], shown
                shown += screen.read(65536)
    assert {len(bar) for bar in re.findall(r"name: +50%[^\r]*\]", shown.decode())} == {width}


@pytest.mark.parametrize(("done", "text"), [(5, "2 sessions, nothing for "), (10, "2 sessions, verifying")])
def test_the_bar_goes_on_while_nothing_moves(monkeypatch: pytest.MonkeyPatch, done: int, text: str) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(copy_display, "WORTH_SAYING_S", 0.2)
    with make_display(Lines(), as_json=False, is_quiet=False) as display:  # type: ignore[arg-type]
        display.show(replace(PROGRESS, done_bytes=done))
        assert text not in terminal.getvalue()
        until = time.monotonic() + 20
        while text not in terminal.getvalue():
            assert time.monotonic() < until, terminal.getvalue()
            display.show(replace(PROGRESS, done_bytes=done, sessions=2))
            time.sleep(0.05)


def test_the_bar_of_a_file_that_failed_before_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with make_display(Lines(), as_json=False, is_quiet=False) as display:  # type: ignore[arg-type]
        display.show(replace(PROGRESS, total_bytes=0, done_bytes=0, done_files=1, current=""))
        time.sleep(0.15)
        display.show(replace(PROGRESS, total_bytes=0, done_bytes=0, done_files=1, current=""))
    assert "\r1/1 files: 0.00B [" in terminal.getvalue()


def test_a_long_name_keeps_its_end_in_the_bar() -> None:
    assert copy_display._short("x" * 24) == "x" * 24
    assert copy_display._short("y" + "x" * 24) == "…" + "x" * 23


@pytest.mark.parametrize(
    ("as_json", "is_quiet", "kind"),
    [(True, False, JsonDisplay), (False, True, LineDisplay), (False, False, LineDisplay)],
)
def test_the_display_that_fits(as_json: bool, is_quiet: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal() if is_quiet else io.StringIO())
    with make_display(Lines(), as_json=as_json, is_quiet=is_quiet) as display:  # type: ignore[arg-type]
        assert isinstance(display, kind)


def test_what_many_sessions_tell_at_the_same_time_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    notify = cp._Notices(shown.append)
    for text in ("connection lost", "connection lost", "resumed", "connection lost"):
        notify(text)
    assert shown == ["connection lost", "resumed"]
    monkeypatch.setattr(cp, "SAID_ONCE_WITHIN_S", 0.0)
    notify("connection lost")
    assert shown == ["connection lost", "resumed", "connection lost"]
