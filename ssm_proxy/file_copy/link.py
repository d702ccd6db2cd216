"""One SSH connection that works on a copy: its SFTP channel, and the thread that serves it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ssm_proxy.errors import MalformedMessage, SsmProxyError
from ssm_proxy.file_copy.board import Board, Job, Kind, Work
from ssm_proxy.file_copy.channel import LinkLost, NodeShell, exchange, lost, move, open_sftp
from ssm_proxy.file_copy.checksums import node_files
from ssm_proxy.file_copy.context import AgainNeeded, BecameLarge, Context, FileCopy, SplitCopy
from ssm_proxy.file_copy.values import FileError
from ssm_proxy.sftp.connection import Pending, SftpConnection, SftpStatus

if TYPE_CHECKING:
    import paramiko

LEAST_UNDER_WAY = 256 * 1024
MOST_UNDER_WAY = 2 * 1024 * 1024
UNDER_WAY_S = 1.0
"""What is under way lasts for so long: enough for every round trip, and little to do again when the link is lost."""
MEMORY_UNDER_WAY = 8 * 1024 * 1024
"""Of all links together."""
CLEAN_UP_S = 3.0
BUSY_S = 2.0
"""A turn that only waits takes a quarter of a second."""
RATE_OVER_S = 0.5


class Link:
    """Takes work from the board until it is stopped or its connection ends.

    Args:
        client: connected; from now on ours.
        board: what there is to do.
        context: shared by all links.
        most_under_way: bytes.
        opened: called from the thread when the node's SFTP has answered.
        ended: called from the thread at the end, with the error if there is one.
    """

    def __init__(
        self,
        client: paramiko.SSHClient,
        board: Board,
        context: Context,
        *,
        most_under_way: int,
        opened: Callable[[], None],
        ended: Callable[[Link, SsmProxyError | None], None],
    ) -> None:
        transport = client.get_transport()
        assert transport is not None
        self.client = client
        self.transport = transport
        self._board = board
        self._context = context
        self._most_under_way = most_under_way
        self._opened = opened
        self._ended = ended
        self._is_stopped = False
        self._sftp: SftpConnection | None = None
        self.shell = NodeShell(transport, lambda: not self._is_stopped and not board.is_cancelled)
        self._handles: dict[object, Pending[bytes]] = {}
        self._under_way: set[Work] = set()
        self._load = 0
        self._failure: SsmProxyError | None = None
        self._rate = 0.0
        self._done_bytes = 0
        self._rated_at = time.monotonic()
        self.is_open = False
        """Whether the node's SFTP has answered."""
        self.has_delivered = False
        """Whether it has brought any work to its end."""
        self.heard_at = time.monotonic()
        """When the node last said something or took something, or there was nothing to hear."""
        self.answered_at = time.monotonic()
        """When it last said something."""
        self.is_being_cut = False
        self._is_probed = False
        self._turned_at = time.monotonic()
        self._is_exchanging = False
        self._thread = threading.Thread(target=self._run, name="ssm-proxy copy", daemon=True)

    @property
    def sftp(self) -> SftpConnection:
        assert self._sftp is not None
        return self._sftp

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more, and end soon."""
        self._is_stopped = True
        self._board.wake()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def probe(self) -> None:
        """Ask the node for anything as soon as there is nothing else to do; ``answered_at`` tells of its answer."""
        self._is_probed = True

    @property
    def stands_still(self) -> bool:
        """Whether an answer is awaited; not while it is busy itself, with a command on the node or checksums here."""
        return bool(self._under_way) and (self._is_exchanging or time.monotonic() - self._turned_at < BUSY_S)

    async def handle(self, owner: object, path: bytes, flags: int) -> bytes:
        """See ``LinkFace``."""
        if owner not in self._handles:
            self._handles[owner] = self.sftp.open(path, flags)
        return await self._handles[owner]

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: SsmProxyError | None = None
        try:
            self._serve()
        except LinkLost as lost_link:
            error = lost_link.error
        except SsmProxyError as failure:
            error = failure
        except Exception as bug:  # noqa: BLE001 - the boundary of a thread: it must report, whatever happened
            error = SsmProxyError(f"unexpected {type(bug).__name__} while copying; this is a bug of ssm-proxy")
            error.__cause__ = bug
        finally:
            if self._sftp is not None:
                self._sftp.close()
            for job in self._board.lost(self):
                self._give_up(cast("SplitCopy", job))
            with contextlib.suppress(Exception):  # whatever is wrong with it, it is gone
                self.client.close()
            self._ended(self, error)

    def _serve(self) -> None:
        channel, self._sftp = open_sftp(self.transport)
        self.is_open = True
        self._opened()
        while not self._is_stopped and not self._board.is_cancelled:
            now = time.monotonic()
            if now - self._turned_at > BUSY_S:
                self.heard_at = now
            self._turned_at = now
            self._take_work(now)
            if self._failure is not None and not self._board.is_cancelled:  # else it is why a command gave up
                raise self._failure
            self._close_handles()
            if self.sftp.is_idle and not self.sftp.has_data_to_send:
                self.heard_at = now
                if not self.transport.is_active():
                    raise lost(self.transport)
                if self._is_probed:
                    self._is_probed = False
                    self.sftp.start(self._ask(), lambda _error: None)
                else:
                    self._board.wait_for_work(0.1)
            else:
                self._is_exchanging = True  # which lasts where the session takes nothing any more
                data = exchange(self.transport, channel, self.sftp, self._went_on)
                self._is_exchanging = False
                if data:
                    self.heard_at = self.answered_at = time.monotonic()
                    self.sftp.receive(data)
        self._clean_up(channel)

    def _went_on(self) -> None:
        self.heard_at = time.monotonic()

    async def _ask(self) -> None:
        with contextlib.suppress(SftpStatus):
            await self.sftp.real_path(b".")

    def _take_work(self, now: float) -> None:
        limit = self._limit(now)
        while self._load < limit and (work := self._board.take(self, now)) is not None:
            self._load += work.weight
            self._under_way.add(work)
            self.sftp.start(self._do(work), lambda error, work=work: self._done(work, error))  # type: ignore[misc]

    def _limit(self, now: float) -> int:
        """How much may be under way: what the link carries in `UNDER_WAY_S`, as far as is known."""
        elapsed = now - self._rated_at
        if elapsed >= RATE_OVER_S:
            rate = self._done_bytes / elapsed
            self._rate = rate if rate > self._rate else (self._rate + rate) / 2
            self._rated_at, self._done_bytes = now, 0
        return max(LEAST_UNDER_WAY, min(self._most_under_way, int(self._rate * UNDER_WAY_S)))

    def _close_handles(self) -> None:
        for owner, opened in list(self._handles.items()):
            job = owner[0] if isinstance(owner, tuple) else owner
            if getattr(job, "is_over", True) and opened.reply is not None:
                del self._handles[owner]
                with contextlib.suppress(SftpStatus, MalformedMessage):  # it was not opened
                    self.sftp.close_handle(opened.result())

    # --- work -------------------------------------------------------------------------------------------------------

    async def _do(self, work: Work) -> None:
        if work.kind is Kind.CHECK:
            await self._check(work)
            return
        if work.kind is Kind.SETTLE:
            await self._settle(work)
            return
        job = cast("SplitCopy", work.job)
        try:
            if work.kind is Kind.WHOLE:
                self._context.began(job.shown_source)
                await self._copy_whole(_file_of(job))
            elif work.kind is Kind.PREPARE:
                self._context.began(job.shown_source)
                await job.prepare(self)
            elif work.piece is not None:
                if self._board.is_needed(work):
                    size = await job.copy_range(self, work.piece)
                    if self._board.is_needed(work):
                        self._context.moved(size)
            else:
                await self._finish(job)
        except (FileError, SftpStatus, OSError) as error:
            if work.kind is not Kind.RANGE or self._board.is_needed(work):
                await self._fail(job, error)

    async def _copy_whole(self, job: FileCopy) -> None:
        try:
            is_to_be_verified = await job.copy_whole(self)
        except BecameLarge:
            self._board.to_split(job)
            return
        if is_to_be_verified:
            self._board.to_settle(job)
        else:
            self._over(job)

    async def _finish(self, job: SplitCopy) -> None:
        try:
            await job.finish(self)
        except AgainNeeded:
            self._board.again(job)
            return
        self._over(job)

    async def _check(self, work: Work) -> None:
        """Leave out what is there already and compares equal."""
        candidates: list[FileCopy] = []
        rest: list[FileCopy] = []

        async def look_at(job: FileCopy) -> None:
            try:
                is_there = await job.is_there_already(self)
            except OSError:
                is_there = False
            (candidates if is_there else rest).append(job)

        await self.sftp.together(look_at(_file_of(job)) for job in work.jobs)
        digests: list[bytes | None] | None = None
        if candidates and self._context.has_shell:
            digests = node_files(self.shell, [job.checked_path for job in candidates])
        for job, digest in zip(candidates, digests or [None] * len(candidates), strict=True):
            try:
                is_equal = digest is not None and job.local_digest() == digest
            except OSError:
                is_equal = False
            if not is_equal:
                rest.append(job)
                continue
            try:
                await job.keep_attributes(self)
            except (SftpStatus, OSError) as error:
                await self._fail(job, error)
            else:
                self._context.tell(job.there_already())
                self._forget(job)
        self._board.to_whole(rest)

    async def _settle(self, work: Work) -> None:
        """Verify files that were copied whole, and put them in place."""
        jobs = [_file_of(job) for job in work.jobs]
        digests = node_files(self.shell, [job.path_on_node for job in jobs]) if self._context.has_shell else None
        if digests is None:
            self._context.no_shell(self.shell)
        found = zip(jobs, digests or [None] * len(jobs), strict=True)
        await self.sftp.together(self._settle_one(job, digest) for job, digest in found)

    async def _settle_one(self, job: FileCopy, digest: bytes | None) -> None:
        try:
            if not await job.is_settled(self):
                if (digest or await job.digest_read_back(self)) != job.digest:
                    raise FileError("it changed while it was copied, or arrived damaged: the checksums differ")
                await job.put_settled(self)
        except (FileError, SftpStatus, OSError) as error:
            await self._fail(job, error)
        else:
            self._over(job)

    def _over(self, job: SplitCopy) -> None:
        self._context.tell(job.outcome())
        self._forget(job)

    def _forget(self, job: SplitCopy) -> None:
        self._board.over(job)
        job.close()

    async def _fail(self, job: SplitCopy, error: Exception) -> None:
        if not self._board.fails(job):
            return
        self._context.tell(job.failure(error))  # before the copy can be over
        job.is_over = True
        try:
            await job.abandon(self)
        finally:
            self._forget(job)

    def _give_up(self, job: SplitCopy) -> None:
        """Leave a file out at which links are lost again and again. What there is of it stays: none can remove it."""
        if self._board.fails(job):
            self._context.tell(job.failure(FileError("the session was lost each time that it was tried")))
            self._forget(job)

    def _done(self, work: Work, error: BaseException | None) -> None:
        self._load -= work.weight
        self._done_bytes += work.weight
        self._under_way.discard(work)
        if error is None:
            self.has_delivered = True
            if work.kind in (Kind.PREPARE, Kind.RANGE):
                self._board.done(self, work)
            else:
                self._board.released(self, work)
        elif self._failure is None:  # told to the thread, which is in the middle of something
            if isinstance(error, LinkLost):
                self._failure = error.error
            elif isinstance(error, SsmProxyError):
                self._failure = error
            else:
                self._failure = SsmProxyError(
                    f"unexpected {type(error).__name__} while copying; this is a bug of ssm-proxy"
                )
                self._failure.__cause__ = error

    def _clean_up(self, channel: paramiko.Channel) -> None:
        """After Ctrl-C: leave no parts behind that nothing can go on from."""
        written = [
            job for work in self._board.works_of(self) if work.kind in (Kind.WHOLE, Kind.SETTLE) for job in work.jobs
        ]
        jobs = [cast("SplitCopy", job) for job in [*written, *self._board.take_unsettled()]]
        jobs += self._context.take_useless()
        self.sftp.close()
        ends: list[BaseException | None] = []
        for job in jobs:
            self.sftp.start(job.abandon(self), ends.append)
        until = time.monotonic() + CLEAN_UP_S
        with contextlib.suppress(LinkLost, SsmProxyError):
            while len(ends) < len(jobs) and time.monotonic() < until:
                move(self.transport, channel, self.sftp)


def _file_of(job: Job) -> FileCopy:
    """Give what the board holds as what it is: it knows less of it than the links do."""
    return cast("FileCopy", job)


def share_under_way(links: int) -> int:
    """Give how much each of so many links may have under way."""
    return max(LEAST_UNDER_WAY, min(MOST_UNDER_WAY, MEMORY_UNDER_WAY // max(1, links)))
