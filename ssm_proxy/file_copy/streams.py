"""Standard input to a file of the node, and a file of the node to standard output: what has no name here.

Pieces come and go in order, and neither can be had twice: so what was read is kept until it has arrived, and what
arrived early until its turn comes; both bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.checksums import MIB, node_blocks
from ssm_proxy.file_copy.context import Context, LinkFace, explain
from ssm_proxy.file_copy.names import part_path, shown
from ssm_proxy.file_copy.node_files import (
    Existing,
    check_written,
    is_in_place,
    look_at_target,
    make_part,
    put_in_place,
    read_range,
    why_not_written,
)
from ssm_proxy.file_copy.regular_file import PERMISSIONS
from ssm_proxy.file_copy.values import RANGE_BYTES, FileError, FileOutcome, FileState
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

MOST_WAITING = 128
"""Pieces that are held: 16 MiB."""
STEP_S = 0.2
NEW_FILE = 0o666
_BLOCK = 4 * MIB
"""Streams are compared by blocks of one size, because their own is not known at first."""


class _Digests:
    """SHA-256 of each block of a stream whose size is not known yet; the smallest blocks are joined at the end."""

    def __init__(self) -> None:
        self._now = hashlib.sha256()
        self._left = _BLOCK
        self.done: list[bytes] = []

    def update(self, data: bytes) -> None:
        while data:
            piece, data = data[: self._left], data[self._left :]
            self._now.update(piece)
            self._left -= len(piece)
            if not self._left:
                self.end()

    def end(self) -> None:
        if self._left < _BLOCK:
            self.done.append(self._now.digest())
            self._now = hashlib.sha256()
            self._left = _BLOCK


class _Stream:
    """What both have in common for those who hand out work."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.lock = threading.Lock()
        self.given_back: deque[Range] = deque()
        self.is_verified = False
        self.digests = _Digests()

    @property
    def wants_verification(self) -> bool:
        return self.context.wants_checksum(is_split=True)

    def verify(self, link: LinkFace, path: bytes, size: int) -> None:
        """Compare with the node.

        Raises:
            FileError: it is not the same, and cannot be copied again.
        """
        theirs = node_blocks(link.shell, path, size, block=_BLOCK) if self.context.has_shell else None
        if theirs is None:
            self.context.has_shell = False
            why = link.shell.refusal or "the node computes no checksums"
            self.context.notice(f"the stream was not verified: {why}")
        elif theirs != self.digests.done:
            raise FileError("it arrived damaged, or changed meanwhile: the checksums differ")
        else:
            self.is_verified = True


class FromInput:
    """A stream to a file of the node.

    Args:
        fd: where it comes from.
        target: absolute path on the node.
        context: of the copy.
        wake: called when there is something to take.
    """

    is_split = True
    wants_check = False
    may_be_written_late = True
    shown_source = "-"

    def __init__(self, fd: int, target: bytes, context: Context, wake: Callable[[], None]) -> None:
        self._fd = fd
        self._target = target
        self._stream = _Stream(context)
        self._wake = wake
        self._existing: Existing | None = None
        self._part: bytes | None = None
        self._waiting: deque[Range] = deque()
        self._data: dict[Range, bytes] = {}
        self._position = 0
        self._has_ended = False
        self._arrived = threading.Condition(self._stream.lock)
        self._error: OSError | None = None
        self._rename_sent = False
        self._reader: threading.Thread | None = None
        self.is_over = False

    @property
    def size(self) -> int:
        """What has come so far: it brings sessions as it grows, and a short one none but the first."""
        return self._position

    def _read(self) -> None:
        """Read ahead. The thread is a daemon: nothing can end it while nobody writes."""
        try:
            while not self.is_over and (data := self._read_some()):
                piece = Range(self._position, len(data))
                self._stream.digests.update(data)
                with self._arrived:
                    while len(self._data) >= MOST_WAITING and not self.is_over:
                        self._arrived.wait(STEP_S)
                    self._data[piece] = data
                    self._waiting.append(piece)
                    self._position += len(data)
                self._stream.context.counted_more(len(data))
                self._wake()
        except OSError as error:
            self._error = error
        self._stream.digests.end()
        self._has_ended = True
        self._wake()

    def _read_some(self) -> bytes:
        while True:
            try:
                return os.read(self._fd, RANGE_BYTES)
            except BlockingIOError:  # somebody made it so; nothing else tells when there is something
                select.select([self._fd], [], [], STEP_S)

    async def prepare(self, link: LinkFace) -> None:
        self._target, self._existing = await look_at_target(link.sftp, self._target)
        if self._part is None:
            self._part = part_path(self._target)
        # Nobody may read the part who may not read the file that it becomes.
        permissions = NEW_FILE if self._existing is None else self._existing.attributes.permissions
        permissions = NEW_FILE if permissions is None else permissions & PERMISSIONS
        await link.sftp.close_handle(await make_part(link.sftp, self._part, permissions))
        if self._reader is None:
            self._stream.context.begin_useless(self)
            self._reader = threading.Thread(target=self._read, name="ssm-proxy copy input", daemon=True)
            self._reader.start()

    def take_range(self) -> Range | None:
        with self._stream.lock:
            for waiting in (self._stream.given_back, self._waiting):
                if waiting:
                    return waiting.popleft()
        return None

    def give_back(self, piece: Range) -> None:
        with self._stream.lock:
            self._stream.given_back.append(piece)

    @property
    def has_all_ranges(self) -> bool:
        with self._stream.lock:
            return self._has_ended and not self._waiting and not self._stream.given_back

    async def copy_range(self, link: LinkFace, piece: Range) -> int:
        with self._stream.lock:
            data = self._data.get(piece)
        part = self._part
        if part is None:
            raise FileError("it is over already")
        if data is None:  # another link had it, too, and was faster
            return 0
        handle = await link.handle(self, part, packets.OPEN_WRITE)
        size = link.sftp.write_bytes
        writes = [
            link.sftp.write(handle, piece.offset + start, data[start : start + size])
            for start in range(0, len(data), size)
        ]
        try:
            for each in writes:
                await each
        except SftpStatus as error:
            raise await why_not_written(link.sftp, error, part) from error
        with self._arrived:
            self._data.pop(piece, None)
            self._arrived.notify_all()
        return piece.size

    async def finish(self, link: LinkFace) -> None:
        if self._error is not None:
            raise self._error
        assert self._part is not None
        if self._rename_sent and await is_in_place(link.sftp, self._part, self._target, self._position):
            return
        await self._store(link, self._part)
        if self._stream.wants_verification and not self._stream.is_verified:
            self._stream.verify(link, self._part, self._position)
        if self._existing is not None:
            await self._set_attributes(link.sftp, self._part, self._existing.attributes)
        self._rename_sent = True
        await put_in_place(link.sftp, self._part, self._target)

    async def _store(self, link: LinkFace, part: bytes) -> None:
        """Learn of errors that a network file system or a quota has only when what was written is stored.

        The stream cannot be had again once its target is replaced.
        """
        sftp = link.sftp
        handle = await link.handle(self, part, packets.OPEN_WRITE)
        try:
            is_stored = await sftp.fsync(handle)
        except SftpStatus as error:
            raise await why_not_written(sftp, error, part) from error
        if not is_stored:
            await check_written(sftp, part)

    async def _set_attributes(self, sftp: SftpConnection, part: bytes, attributes: Attributes) -> None:
        """Give the part owner and permissions of what it replaces."""
        with contextlib.suppress(SftpStatus):  # it takes root, or nothing is changed by it
            await sftp.setstat(part, Attributes(owner=attributes.owner))
        if attributes.permissions is not None:  # after the owner, as another one may clear bits
            await sftp.setstat(part, Attributes(permissions=attributes.permissions & PERMISSIONS))

    async def abandon(self, link: LinkFace) -> None:
        self.is_over = True
        part, self._part = self._part, None
        if part is not None:
            with contextlib.suppress(SftpStatus):
                await link.sftp.remove(part)

    def close(self) -> None:
        self.is_over = True

    def outcome(self) -> FileOutcome:
        return FileOutcome(
            source="-",
            target=shown(self._target),
            state=FileState.COPIED,
            size=self._position,
            verified=self._stream.is_verified,
        )

    def failure(self, error: Exception) -> FileOutcome:
        why = explain(error, "standard input cannot be copied")
        return FileOutcome(source="-", target=shown(self._target), state=FileState.FAILED, error=why)


class ToOutput:
    """A file of the node to a stream.

    Args:
        fd: where it goes.
        source: absolute path on the node.
        size: of it in bytes, as far as is known; looked at again when it begins.
        context: of the copy.
        wake: called when more may be taken.
        is_wanted: asked while waiting for whoever reads the output.
        nobody_reads: called when whoever read the output has gone: the copy has to be ended then.
    """

    is_split = True
    wants_check = False
    may_be_written_late = False

    def __init__(
        self,
        fd: int,
        source: bytes,
        size: int,
        context: Context,
        wake: Callable[[], None],
        is_wanted: Callable[[], bool],
        nobody_reads: Callable[[], None],
    ) -> None:
        self._fd = fd
        self._source = source
        self._is_wanted = is_wanted
        self._nobody_reads = nobody_reads
        self._stream = _Stream(context)
        self._wake = wake
        self._size = size
        self._is_size_told = True
        self._next = 0
        self._written = 0
        self._waiting: dict[int, bytes] = {}
        self._arrived = threading.Condition(self._stream.lock)
        self._error: OSError | None = None
        self._writer: threading.Thread | None = None
        self.is_over = False

    @property
    def shown_source(self) -> str:
        return shown(self._source)

    @property
    def size(self) -> int:
        return self._size

    async def prepare(self, link: LinkFace) -> None:
        found = await link.sftp.stat(self._source)
        if found.is_folder:
            raise FileError("it is a folder")
        if not found.is_regular:
            raise FileError("it is no regular file")
        if self._writer is None:
            self._size = found.size or 0
            self._is_size_told = self._size > 0
            self._stream.context.counted_more(self._size)
            self._writer = threading.Thread(target=self._write, name="ssm-proxy copy output", daemon=True)
            self._writer.start()

    def take_range(self) -> Range | None:
        with self._stream.lock:
            if self._stream.given_back:
                return self._stream.given_back.popleft()
            if self._next >= self._size or self._next - self._written >= MOST_WAITING * RANGE_BYTES:
                return None
            piece = Range(self._next, min(RANGE_BYTES, self._size - self._next))
            self._next += piece.size
            return piece

    def give_back(self, piece: Range) -> None:
        with self._stream.lock:
            self._stream.given_back.append(piece)

    @property
    def has_all_ranges(self) -> bool:
        with self._stream.lock:
            if self._error is not None:
                return True
            # To wait for whoever reads the output is no link's work.
            return self._next >= self._size and not self._stream.given_back and self._written >= self._size

    async def copy_range(self, link: LinkFace, piece: Range) -> int:
        if self._error is not None:
            raise self._error
        handle = await link.handle(self, self._source, packets.OPEN_READ)
        data = await read_range(link.sftp, handle, piece)
        if len(data) < piece.size:
            raise FileError("it became shorter while it was read; what was written is not all of it")
        self._take(piece.offset, data)
        return piece.size

    def _take(self, offset: int, data: bytes) -> None:
        with self._arrived:
            if offset >= self._written:
                self._waiting.setdefault(offset, data)
            self._arrived.notify_all()

    def _write(self) -> None:
        """Write what has arrived, in order. The thread is a daemon: nothing can end it while nobody reads."""
        try:
            while not self.is_over:
                with self._arrived:
                    data = self._waiting.get(self._written)
                    if data is None:
                        self._arrived.wait(STEP_S)
                        continue
                self._write_all(data)
                self._stream.digests.update(data)
                with self._arrived:
                    del self._waiting[self._written]
                    self._written += len(data)
                    self._arrived.notify_all()
                self._wake()
        except (BrokenPipeError, ConnectionResetError):  # head has seen enough
            self._nobody_reads()
            self._wake()
        except OSError as error:
            self._error = error
            self._wake()

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody made it so; nothing else tells when there is room
                select.select([], [self._fd], [], STEP_S)

    async def finish(self, link: LinkFace) -> None:
        await self._read_on(link)
        while True:
            with self._arrived:
                if self._error is not None:
                    raise self._error
                if self._written >= self._size:
                    break
                self._arrived.wait(STEP_S)
            if not self._is_wanted():
                raise FileError("it was interrupted; what was written is not all of it")
        self._stream.digests.end()
        if self._stream.wants_verification:
            self._stream.verify(link, self._source, self._size)

    async def _read_on(self, link: LinkFace) -> None:
        """Read what the file holds beyond the size that it was said to have: files of /proc say 0."""
        if self._is_size_told:
            return
        handle = await link.handle(self, self._source, packets.OPEN_READ)
        while data := await link.sftp.read(handle, self._size, link.sftp.read_bytes):
            self._take(self._size, data)
            self._size += len(data)
            self._stream.context.counted_more(len(data))
            self._stream.context.moved(len(data))

    async def abandon(self, link: LinkFace) -> None:
        self.is_over = True

    def close(self) -> None:
        self.is_over = True

    def outcome(self) -> FileOutcome:
        return FileOutcome(
            source=self.shown_source,
            target="-",
            state=FileState.COPIED,
            size=self._size,
            verified=self._stream.is_verified,
        )

    def failure(self, error: Exception) -> FileOutcome:
        what = "standard output cannot be written" if isinstance(error, OSError) else "it cannot be read"
        return FileOutcome(source=self.shown_source, target="-", state=FileState.FAILED, error=explain(error, what))
