"""What a person reads: errors, notices and log lines, all on standard error.

In a ProxyCommand standard error is all that a person gets: ssh prints its own line after ours and hides our exit
status. It must never hold up the tunnel either. Whoever started ssh may not read it at all (paramiko does not), and
then a write blocks once the pipe is full: so lines go through a bounded queue to a thread of their own, and are counted
and dropped when that is full.

Form: ``ssm-proxy: error: what happened``, then a line each for cause and hint; lower case, no full stop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
import traceback
from queue import Full, Queue

from ssm_proxy.errors import SsmProxyError

SSH_CONFIG_LINES = """\
    Host i-* mi-*
        ProxyCommand ssm-proxy proxy %h %p
        ServerAliveInterval 300
"""
MAX_QUEUED_LINES = 1000
MAX_TEXT = 500
FLUSH_TIMEOUT = 0.5
LONGEST_FLUSH = 5.0
_AT_ONCE = 4096
_STEP_S = 0.05
DEBUG_VARIABLE = "SSM_PROXY_DEBUG"
_STDERR = 2


class StderrWriter:
    """Writes lines to standard error without ever making the caller wait."""

    def __init__(self, fd: int = _STDERR) -> None:
        self._fd = fd
        self._lines: Queue[str | None] = Queue(MAX_QUEUED_LINES)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._dropped = 0
        self._written_at = 0.0

    def write(self, line: str) -> None:
        """Queue a line, or several; the last newline is added."""
        with self._starting:  # two sessions of one process may speak first at the same time
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ssm-proxy stderr", daemon=True)
                self._thread.start()
        try:
            if self._dropped:
                self._lines.put_nowait(f"ssm-proxy: {self._dropped} lines were dropped here: nobody read them")
                self._dropped = 0
            self._lines.put_nowait(line)
        except Full:
            self._dropped += 1 + line.count("\n")

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> None:
        """Wait until all is written. Nothing may be written after it.

        Args:
            timeout: seconds for a reader who takes nothing; one who is slow has ``LONGEST_FLUSH`` in all.
        """
        began = time.monotonic()
        is_told = False
        while self._thread is not None and self._thread.is_alive():
            until = min(began + LONGEST_FLUSH, max(began, self._written_at) + timeout)
            step = min(_STEP_S, until - time.monotonic())
            if step <= 0:
                return
            if is_told:
                self._thread.join(step)
            else:
                with contextlib.suppress(Full):
                    self._lines.put(None, timeout=step)
                    is_told = True

    def _run(self) -> None:
        # While ssh has the terminal in raw mode, a line feed alone does not go back to the first column.
        end = "\r\n" if os.name == "posix" and _is_terminal(self._fd) else "\n"
        while (line := self._lines.get()) is not None:
            data = (line.replace("\n", end) + end).encode("utf-8", "replace")
            while data:
                try:
                    data = data[os.write(self._fd, data[:_AT_ONCE]) :]  # of a longer one no progress could be seen
                    self._written_at = time.monotonic()
                except BlockingIOError:  # ssh makes its standard error non-blocking, and it is ours as well
                    select.select([], [self._fd], [])
                except OSError:  # closed, or its reader has gone: nobody is there to tell
                    return


def printable(text: str) -> str:
    """Make foreign text safe for a terminal, and one line of bounded length.

    What the service or the node says may hold escape sequences.
    """
    if not text.isprintable():  # hardly ever, and there may be thousands of file names
        text = "".join(character if character.isprintable() else " " for character in text)
    cleaned = text.strip()
    return cleaned if len(cleaned) <= MAX_TEXT else cleaned[: MAX_TEXT - 1] + "…"


def error_lines(error: SsmProxyError) -> list[str]:
    """Give the one to three lines of an error."""
    lines = [f"ssm-proxy: error: {printable(error.message)}"]
    if error.cause:
        lines.append(f"ssm-proxy: cause: {printable(error.cause)}")
    if error.hint:
        # A hint is ours and may show lines to copy.
        first, *more = error.hint.splitlines()
        lines.append(f"ssm-proxy: hint: {printable(first)}")
        lines += [line[: len(line) - len(line.lstrip())] + printable(line) for line in more]
    return lines


def report(error: SsmProxyError) -> None:
    """Show an error."""
    _write_all(error_lines(error))
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)


def report_bug(error: Exception) -> None:
    """Show an exception that nobody expected; its traceback only when asked for, because it may quote anything."""
    _write_all(
        [
            f"ssm-proxy: error: unexpected {type(error).__name__}; this is a bug of ssm-proxy",
            f"ssm-proxy: hint: set {DEBUG_VARIABLE}=1 to see where, and report it",
        ]
    )
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)


def _write_all(lines: list[str]) -> None:
    writer = StderrWriter()
    for line in lines:
        writer.write(line)
    writer.flush()


class _LineHandler(logging.Handler):
    def __init__(self, writer: StderrWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record))


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))  # a file is shown on a terminal too, one day


def set_up_logging(verbosity: int, log_file: str | None, writer: StderrWriter) -> None:
    """Send our log lines to standard error, or to a file instead.

    Args:
        verbosity: 0 none, 1 the life of the session, 2 every message, 3 the beginning of every payload as well.
        log_file: path; a file gets at least the life of the session.
        writer: where lines for standard error go.
    """
    if not verbosity and log_file is None:
        return
    level = {0: logging.INFO, 1: logging.INFO, 2: logging.DEBUG}.get(verbosity, 5)
    handler: logging.Handler
    if log_file is not None:
        # Shown at -vvv are the beginnings of payloads: for the user's eyes only.
        os.close(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        handler = logging.FileHandler(log_file, encoding="utf-8", delay=False)
    else:
        handler = _LineHandler(writer)
    handler.setFormatter(_LineFormatter("%(asctime)s.%(msecs)03d %(name)s: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("ssm_proxy")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def stdout_is_terminal() -> bool:
    """Whether a person's terminal would be shown the bytes of the tunnel."""
    return _is_terminal(1)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
