"""One copy, from its sources to its result. Runs in the calling thread, which also hears how far it is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from ssm_proxy.errors import CopyError, SsmProxyError
from ssm_proxy.file_copy.board import UPLOADED_FILES_WORTH_A_LINK, Board
from ssm_proxy.file_copy.context import Context, FileCopy, explain
from ssm_proxy.file_copy.download import Download
from ssm_proxy.file_copy.names import shown
from ssm_proxy.file_copy.node import Node
from ssm_proxy.file_copy.plan_download import expand, plan_download
from ssm_proxy.file_copy.plan_upload import Tell, plan_upload
from ssm_proxy.file_copy.pool import Opener, Pool
from ssm_proxy.file_copy.reporter import Reporter
from ssm_proxy.file_copy.streams import FromInput, ToOutput
from ssm_proxy.file_copy.upload import Upload
from ssm_proxy.file_copy.values import (
    MOST_SESSIONS,
    CopyIncomplete,
    CopyOptions,
    CopyResult,
    FileOutcome,
    FileState,
    NobodyReads,
    Progress,
    SourceFile,
)
from ssm_proxy.sftp.connection import SftpStatus

STEP_S = 0.1


class _End(Protocol):
    def finish(self, failure: Callable[[bytes, bytes, str], None]) -> None: ...


Plan = Callable[[Node, Tell], _End]


class Engine:
    """Copies over links that it opens itself.

    Args:
        opener: makes connections; called from several threads, the first time from the caller's.
        options: how to copy.
        reporter: told from the thread that called ``upload`` or ``download``; several times a second, and of each file
            at its end.
        taken: the names that sources of the same copy, from other nodes, have in its destination; added to.
    """

    def __init__(self, opener: Opener, options: CopyOptions, reporter: Reporter, taken: set[bytes]) -> None:
        most = options.sessions or MOST_SESSIONS
        self._options = options
        self._reporter = reporter
        self._taken = taken
        self._board = Board()
        self._context = Context(options, is_striped=most > 1)
        self._pool = Pool(opener, self._board, self._context, most=most)
        self._node = Node(self._pool, self._is_wanted)
        self._is_planned = False
        self._is_unread = False
        self._end: _End | None = None
        self._planning_error: Exception | None = None
        self._were_all_found = False  # when it ended with an error
        self._failures: list[FileOutcome] = []
        self._files = 0
        self._unchanged = 0
        self._bytes_in_place = 0
        self._untold: deque[FileOutcome] = deque()
        self._began = time.monotonic()
        self._ended_at: float | None = None

    def upload(self, sources: Sequence[bytes], destination: bytes) -> CopyResult:
        """Copy from here to the node.

        Raises:
            CopyIncomplete: some files were not copied.
            SsmProxyError: nothing could be, or it could not go on.
            KeyboardInterrupt: Ctrl-C; nothing half is left under a final name.
        """
        self._board.files_worth_a_link = UPLOADED_FILES_WORTH_A_LINK
        self._pool.saves_processor = self._options.sessions is None
        return self._copy(lambda node, tell: plan_upload(node, sources, destination, self._options, tell), Upload)

    def download(self, sources: Sequence[bytes], destination: bytes) -> CopyResult:
        """Copy from the node to here. Raises as ``upload``."""
        return self._copy(lambda node, tell: plan_download(node, sources, destination, self._options, tell), Download)

    def upload_stream(self, fd: int, destination: bytes) -> CopyResult:
        """Copy what a descriptor gives to a file of the node. Raises as ``upload``."""

        def plan(node: Node, tell: Tell) -> _End:
            target = node.absolute(destination)
            found = node.stat(target)
            if destination.endswith(b"/") or (found is not None and found.is_folder):
                raise CopyError(
                    f"{shown(destination)} is a folder", hint="standard input has no name: give the file one, too"
                )
            self._context.counted(0)
            self._board.add(FromInput(fd, target, self._context, self._board.wake))
            return _NoEnd()

        self._pool.saves_processor = self._options.sessions is None
        return self._copy(plan, Upload)

    def download_stream(self, source: bytes, fd: int) -> CopyResult:
        """Copy a file of the node to a descriptor.

        Raises:
            NobodyReads: of that descriptor any more.
            CopyIncomplete, SsmProxyError, KeyboardInterrupt: as ``upload``.
        """

        def nobody_reads() -> None:
            self._is_unread = True

        def plan(node: Node, tell: Tell) -> _End:
            found = expand(node, source)
            if len(found) != 1:
                raise CopyError(
                    f"{shown(source)} is {'nothing' if not found else 'several files'} on the node",
                    hint="one file can be written to standard output",
                )
            self._context.counted(0)
            path, attributes = found[0]
            size = attributes.size or 0
            self._board.add(ToOutput(fd, path, size, self._context, self._board.wake, self._is_wanted, nobody_reads))
            return _NoEnd()

        return self._copy(plan, Download)

    def unfinished(self) -> list[SourceFile] | None:
        """Give the files that a copy which ended with an error did not bring to their end; None: not all were found."""
        return [cast("FileCopy", job).file for job in self._board.unfinished()] if self._were_all_found else None

    def _is_wanted(self) -> bool:
        return not self._board.is_cancelled

    def _copy(self, plan: Plan, make_job: Callable[[SourceFile, Context], FileCopy]) -> CopyResult:
        self._began = time.monotonic()
        self._pool.open_first()
        planner = threading.Thread(target=self._plan, args=(plan, make_job), name="ssm-proxy copy plan", daemon=True)
        planner.start()
        try:
            while not self._board.is_over:
                if self._is_unread:
                    raise NobodyReads("nobody reads standard output any more")
                self._pool.manage(time.monotonic())
                self._tell()
                self._board.wait_for_news(STEP_S)
            if self._planning_error is not None:
                raise self._planning_error
            self._finish_folders()
            self._tell()
            self._node.close()
            self._pool.close()
        except SsmProxyError as error:
            self._were_all_found = self._is_planned and self._planning_error is None
            self._stop(planner)
            # Else it is not ours to change; or nothing has failed, and nobody wants to hear of what was given up.
            if error is not self._reporter.error and not isinstance(error, NobodyReads):
                if self._context.parts:
                    resume = _resume_hint(self._context.parts)
                    error.hint = resume if error.hint is None else f"{error.hint}; {resume}"
                self._tell()
            raise
        except BaseException:
            self._stop(planner)
            with contextlib.suppress(Exception):  # of the callback: it comes too late
                self._tell()
                self._context.notice(f"interrupted; {self.what_is_left()}")
                self._tell()
            raise
        finally:
            self._ended_at = time.monotonic()
        result = self.result()
        if result.failures:
            raise incomplete(result)
        return result

    def result(self) -> CopyResult:
        """Give what was copied until now: also of a copy that ended with an error."""
        return CopyResult(
            copied_bytes=self._context.moved_bytes,
            total_bytes=self._bytes_in_place,
            files=self._files,
            unchanged=self._unchanged,
            failures=self._failures,
            seconds=(self._ended_at or time.monotonic()) - self._began,
            sessions=self._pool.most_at_once,
        )

    @property
    def has_parts(self) -> bool:
        """Whether there is what ``--resume`` can go on from."""
        return bool(self._context.parts_in_use())

    def what_is_left(self) -> str:
        """Say what an interrupted copy leaves, and what to do with it."""
        if parts := self._context.parts_in_use():
            return _resume_hint(parts)
        if self._context.total_files > 1:  # some may be complete without our having heard of it
            return "the same command with --resume leaves out what is in place"
        if self._files or self._unchanged:
            return "what was to be copied is in place"
        return "no file was completed: the same command begins anew"

    def _finish_folders(self) -> None:
        """Set permissions and times of folders, which takes links as well."""
        end = self._end
        if end is None:
            return
        errors: list[Exception] = []

        def finish() -> None:
            try:
                end.finish(self._left_out)
            except Exception as error:  # noqa: BLE001 - the boundary of a thread: raised again below
                errors.append(error)

        finisher = threading.Thread(target=finish, name="ssm-proxy copy folders", daemon=True)
        finisher.start()
        while finisher.is_alive():
            self._pool.manage(time.monotonic())
            finisher.join(STEP_S)
        if errors:
            raise errors[0]

    def _stop(self, planner: threading.Thread) -> None:
        self._board.cancel()
        self._pool.close()
        for job in self._board.unfinished():
            cast("FileCopy", job).close()
        self._context.remove_small_parts()
        planner.join(2.0)

    def _plan(self, plan: Plan, make_job: Callable[[SourceFile, Context], FileCopy]) -> None:
        def found(file: SourceFile) -> None:
            self._context.counted(file.size)
            self._board.add(make_job(file, self._context))

        try:
            self._end = plan(self._node, Tell(file=found, failure=self._left_out, taken=self._taken))
        except SftpStatus as error:
            self._planning_error = CopyError("the node refused", cause=explain(error, "its files cannot be looked at"))
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: ``_copy`` raises it again
            self._planning_error = error
        self._is_planned = True
        if self._planning_error is not None:
            self._board.cancel()
        else:
            self._board.planned()

    def _left_out(self, source: bytes, target: bytes, text: str) -> None:
        self._context.counted(0)  # it is told as a file, so it is one of them
        self._context.tell(FileOutcome(source=shown(source), target=shown(target), state=FileState.FAILED, error=text))

    def _tell(self) -> None:
        outcomes, notices = self._context.take_outcomes()
        self._untold.extend(outcomes)
        for outcome in outcomes:
            if outcome.state is FileState.FAILED:
                self._failures.append(outcome)
            else:
                self._bytes_in_place += outcome.size
                self._files += outcome.state is FileState.COPIED
                self._unchanged += outcome.state is FileState.UNCHANGED
        for notice in notices:
            self._reporter.tell(self._state(notice=notice))
        while self._untold:  # a signal may end this in the middle; the rest is told then
            self._reporter.tell(self._state(outcome=self._untold.popleft()))
        self._reporter.tell(self._state())

    def _state(self, *, outcome: FileOutcome | None = None, notice: str | None = None) -> Progress:
        context = self._context
        return Progress(
            total_bytes=context.total_bytes,
            done_bytes=context.done_bytes,
            total_files=context.total_files,
            done_files=self._files + self._unchanged + len(self._failures),
            sessions=self._pool.working,
            is_counting=not self._is_planned,
            current=context.current,
            outcome=outcome,
            notice=notice,
        )


class _NoEnd:
    def finish(self, failure: Callable[[bytes, bytes, str], None]) -> None:
        """Do nothing: there are no folders."""


def _resume_hint(parts: set[bytes]) -> str:
    names = sorted(parts)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"what is there already is kept ({shown(names[0])}{more}): the same command with --resume goes on from it"


def incomplete(result: CopyResult) -> CopyIncomplete:
    """Give the error for a result with failures."""
    first = result.failures[0]
    count = len(result.failures)
    what = f"{first.source} was not copied" if count == 1 else f"{count} files or folders were not copied"
    done = result.files + result.unchanged
    return CopyIncomplete(
        what,
        result=result,
        cause=first.error if count == 1 else f"the first of them, {first.source}: {first.error}",
        hint=f"{done} other file{' is' if done == 1 else 's are'} in place" if done else None,
    )
