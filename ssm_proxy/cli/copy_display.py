"""How a copy looks: a bar on a terminal, a line for each file elsewhere, or JSON for programs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ssm_proxy.cli import messages
from ssm_proxy.file_copy.values import CopyResult, FileOutcome, FileState, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    from ssm_proxy.errors import SsmProxyError

LONGEST_NAME = 24
WORTH_SAYING_S = 3.0
"""That nothing moves."""
_NEVER_BLOCKS = 512
"""What POSIX lets nobody wait for who was told that a pipe takes something (PIPE_BUF)."""
_STEP_S = 0.1
_PATIENCE_S = 0.5
"""With a reader of JSON that has stopped, once a signal has come; in all."""
_UNITS = ("kB", "MB", "GB", "TB")
_USUAL_COLUMNS, _USUAL_ROWS = 79, 24
"""Of a terminal that does not know its own: a serial line, ``script``, the first moment of a container."""


class Display(Protocol):
    """What the copy tells, shown."""

    def show(self, progress: Progress) -> None: ...

    def notify(self, text: str) -> None:
        """Show a person one line. May be called from any thread."""
        ...

    def done(self, result: CopyResult) -> None: ...

    def failed(self, error: SsmProxyError) -> None: ...

    def interrupted(self, name: str, result: CopyResult | None, left: str) -> None:
        """A signal ends it. Persons have heard so from the copy itself, and what is left.

        Args:
            name: of the signal.
            result: what was copied until then; None: nothing could begin.
            left: what to do about the rest.
        """


@contextlib.contextmanager
def make_display(
    stderr: messages.StderrWriter,
    *,
    as_json: bool,
    is_quiet: bool,
    output: int = 1,
    is_ending: Callable[[], bool] = lambda: False,
) -> Iterator[Display]:
    """Give the display that fits: where standard error is a terminal, a bar.

    Args:
        stderr: where lines go.
        as_json: lines of JSON instead, to ``output``.
        is_quiet: no bar.
        output: the descriptor of standard output.
        is_ending: whether a signal has come.
    """
    if as_json:
        yield JsonDisplay(output, is_ending)
        return
    if is_quiet or not sys.stderr.isatty():
        yield LineDisplay(stderr)
        return
    bar = BarDisplay()
    try:
        yield bar
    finally:
        bar.close()


class JsonDisplay:
    """A line of JSON on standard output for each file and notice, and one at the end.

    Args:
        output: descriptor.
        is_ending: whether a signal has come, so that a reader who has stopped is not waited for.
    """

    def __init__(self, output: int = 1, is_ending: Callable[[], bool] = lambda: False) -> None:
        self._output = output
        self._is_ending = is_ending
        self._writing = threading.Lock()
        self._unwritten = b""
        self._patience = _PATIENCE_S
        self._is_given_up = False
        self._told: set[str] = set()  # types of the lines that are written, or will be before any other

    def show(self, progress: Progress) -> None:
        if progress.outcome is not None:
            self._write(_file_values(progress.outcome))
        if progress.notice is not None:
            self.notify(progress.notice)

    def notify(self, text: str) -> None:
        self._write({"type": "notice", "text": text})

    def done(self, result: CopyResult) -> None:
        self._write(_result_values(result))

    def failed(self, error: SsmProxyError) -> None:
        result = getattr(error, "result", None)
        if isinstance(result, CopyResult):
            self._write(_result_values(result))
        self._write({"type": "error", "message": error.message, "cause": error.cause, "hint": error.hint})

    def interrupted(self, name: str, result: CopyResult | None, left: str) -> None:
        error = {"type": "error", "message": f"interrupted by {name}", "cause": None, "hint": left}
        if result is None or "summary" in self._told:  # it came while the end was told
            self._write(error)
        else:
            self._write(_result_values(result), error)

    def _write(self, *several: dict[str, Any]) -> None:
        with self._writing:
            if self._is_given_up:
                return
            for values in several:
                if "error" not in self._told:  # which is the last; a thread that is slow to end may still say something
                    self._unwritten += f"{json.dumps(values)}\n".encode()  # behind what a signal left
                    self._told.add(values["type"])
            try:
                while self._unwritten:
                    self._wait_for_reader()
                    with contextlib.suppress(BlockingIOError):  # somebody made it so, and another one writes to it, too
                        self._unwritten = self._unwritten[os.write(self._output, self._unwritten[:_NEVER_BLOCKS]) :]
            except (OSError, ValueError):  # who started us does not read it any more, or closed it
                self._is_given_up = True

    def _wait_for_reader(self) -> None:
        """Return when as much as ``_NEVER_BLOCKS`` can be written without waiting.

        While a write blocks nothing can be ended in order, and after a signal nobody may be left to read.

        Raises:
            TimeoutError: nobody reads, and the program is about to end.
        """
        while sys.platform != "win32":  # whose pipes cannot be asked
            if select.select([], [self._output], [], _STEP_S)[1]:
                return
            if self._is_ending():
                self._patience -= _STEP_S  # not the time that this process was held up
                if self._patience <= 0:
                    raise TimeoutError


class LineDisplay:
    """A plain line on standard error for each file, and one at the end."""

    def __init__(self, stderr: messages.StderrWriter) -> None:
        self._stderr = stderr
        self._lines: list[str] = []  # several small files end at once, and are told at once

    def show(self, progress: Progress) -> None:
        if progress.outcome is not None:
            self._lines.append(file_line(progress.outcome))
            return
        self._write_lines()
        if progress.notice is not None:
            self.notify(progress.notice)

    def _write_lines(self) -> None:
        if self._lines:
            self._stderr.write("\n".join(self._lines))
            self._lines.clear()

    def notify(self, text: str) -> None:
        self._stderr.write(f"ssm-proxy: {messages.printable(text)}")

    def done(self, result: CopyResult) -> None:
        self._write_lines()
        self._stderr.write(summary(result))

    def failed(self, error: SsmProxyError) -> None:
        self._write_lines()
        result = getattr(error, "result", None)
        if isinstance(result, CopyResult):
            self._stderr.write(summary(result))

    def interrupted(self, name: str, result: CopyResult | None, left: str) -> None:
        self._write_lines()


class BarDisplay:
    """One line that changes: how much, how fast, how long, over how many sessions. Failures and notices go above it."""

    def __init__(self) -> None:
        self._moved_at = time.monotonic()

    @cached_property
    def _bar(self) -> tqdm[Any]:
        """Drawn when there is something to show: until then a person may be asked for a passphrase on that line."""
        from tqdm import tqdm

        has_size = _has_size(sys.stderr)
        return tqdm(
            total=None,
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            dynamic_ncols=has_size,  # of one without, tqdm takes -1 for both and shows nothing
            ncols=None if has_size else _USUAL_COLUMNS,
            nrows=None if has_size else _USUAL_ROWS,
            file=sys.stderr,
            leave=False,
            miniters=0,  # also while nothing moves
            mininterval=0.1,
            desc="connecting",
            smoothing=0.1,
        )

    def show(self, progress: Progress) -> None:
        bar = self._bar
        if progress.outcome is not None:  # how far all is follows by itself
            if progress.outcome.state is FileState.FAILED:
                self._above(file_line(progress.outcome))
            return
        if progress.notice is not None:
            self.notify(progress.notice)
        if not progress.total_files:
            return
        bar.total = progress.total_bytes
        if progress.total_files > 1 or progress.is_counting or not progress.current:  # none: what there is has failed
            files = f"{progress.done_files}/{progress.total_files}{'+' if progress.is_counting else ''} files"
        else:
            files = _short(progress.current)
        bar.set_description_str(files, refresh=False)
        now = time.monotonic()
        if progress.done_bytes != bar.n:
            self._moved_at = now
        doing = _sessions(progress.sessions)
        if now - self._moved_at >= WORTH_SAYING_S:  # the rate beside it is of what came before
            is_all_there = progress.done_bytes >= progress.total_bytes and not progress.is_counting
            doing += ", verifying" if is_all_there else f", nothing for {now - self._moved_at:.0f} s"
        bar.set_postfix_str(doing, refresh=False)
        bar.n = progress.done_bytes
        bar.update(0)

    def done(self, result: CopyResult) -> None:
        self.close()
        self._above(summary(result))

    def failed(self, error: SsmProxyError) -> None:
        self.close()
        result = getattr(error, "result", None)
        if isinstance(result, CopyResult):
            self._above(summary(result))

    def interrupted(self, name: str, result: CopyResult | None, left: str) -> None:
        self.close()

    def notify(self, text: str) -> None:
        self._above(f"ssm-proxy: {messages.printable(text)}")

    def close(self) -> None:
        if "_bar" in vars(self):
            self._bar.close()

    def _above(self, line: str) -> None:
        if "_bar" in vars(self):
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


def file_line(outcome: FileOutcome) -> str:
    """Say in a line what has become of a file."""
    names = f"{messages.printable(outcome.source)} -> {messages.printable(outcome.target)}"
    if outcome.state is FileState.FAILED:
        return f"ssm-proxy: {messages.printable(outcome.source)}: {messages.printable(outcome.error or 'failed')}"
    if outcome.state is FileState.UNCHANGED:
        return f"{names}  {size_text(outcome.size)}, there already"
    return f"{names}  {size_text(outcome.size)}{', verified' if outcome.verified else ''}"


def summary(result: CopyResult) -> str:
    """Say in a line what the copy came to."""
    parts = [f"copied {_files(result.files)}, {size_text(result.copied_bytes)}"]
    parts.append(f"in {result.seconds:.1f} s ({result.megabytes_per_second:.2f} MB/s, {_sessions(result.sessions)})")
    text = " ".join(parts)
    if result.unchanged:
        text += f"; {_files(result.unchanged)} there already"
    if result.failures:
        text += f"; {_files(len(result.failures))} not copied"
    return text


def size_text(size: int) -> str:
    """Give a size with three digits or so."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def _has_size(terminal: TextIO) -> bool:
    try:
        return all(os.get_terminal_size(terminal.fileno()))
    except (OSError, ValueError):  # it cannot be asked, as tqdm will find
        return True


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _sessions(count: int) -> str:
    return f"{count} session{'' if count == 1 else 's'}"


def _short(name: str) -> str:
    name = messages.printable(name)
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _file_values(outcome: FileOutcome) -> dict[str, Any]:
    return {
        "type": "file",
        "source": outcome.source,
        "target": outcome.target,
        "state": outcome.state.value,
        "bytes": outcome.size,
        "verified": outcome.verified,
        "error": outcome.error,
    }


def _result_values(result: CopyResult) -> dict[str, Any]:
    return {
        "type": "summary",
        "files": result.files,
        "unchanged": result.unchanged,
        "failed": len(result.failures),
        "bytes": result.copied_bytes,
        "total_bytes": result.total_bytes,
        "seconds": round(result.seconds, 3),
        "mb_per_s": round(result.megabytes_per_second, 3),
        "sessions": result.sessions,
    }
