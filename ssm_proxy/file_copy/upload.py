"""One file from here to the node."""

from __future__ import annotations

import contextlib
import hashlib
import os
from enum import Enum

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.checksums import InBackground, differing, local_blocks, node_blocks
from ssm_proxy.file_copy.context import AgainNeeded, Context, LinkFace, explain, outcome_of
from ssm_proxy.file_copy.local_file import SharedFile, has_changed, open_source
from ssm_proxy.file_copy.names import part_path
from ssm_proxy.file_copy.node_files import (
    Existing,
    check_written,
    find_part,
    is_in_place,
    is_quiet,
    look_at_target,
    make_part,
    put_in_place,
    read_range,
    why_not_written,
)
from ssm_proxy.file_copy.regular_file import MOST_REPAIRS, PERMISSIONS, RegularFile
from ssm_proxy.file_copy.values import GROWTH_LIMIT, FileError, FileOutcome, FileState, SourceFile
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

_WORKABLE = 0o600
"""What a part needs while several links write to it."""


class _Phase(Enum):
    WRITING = "writing"
    READING_BACK = "reading back"


class Upload(RegularFile):
    """A regular file, of whatever size.

    Args:
        file: what is copied, and where to.
        context: shared by all files.
    """

    def __init__(self, file: SourceFile, context: Context) -> None:
        super().__init__(file, context)
        self._source: SharedFile | None = None
        self._before: os.stat_result | None = None
        self._target = file.target
        self._existing: Existing | None = None
        self._part: bytes | None = None
        self._phase = _Phase.WRITING
        self._bad: list[Range] = []
        self._is_claimed = False
        self._is_written = False
        self._rename_sent = False

    may_be_written_late = True

    @property
    def path_on_node(self) -> bytes:
        """What ``settle`` compares: the part."""
        assert self._part is not None
        return self._part

    # --- small files ------------------------------------------------------------------------------------------------

    async def copy_whole(self, link: LinkFace) -> bool:
        """Send the file to a part; put it in place unless it is to be verified first, which is the answer.

        Raises:
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        sftp = link.sftp
        data = self._read_whole()
        if not self.file.is_new:
            self._target, self._existing = await look_at_target(sftp, self.file.target)
        if self._part is not None:  # of a link that was lost; it may be read-only
            await self.abandon(link)
        part = self._part = part_path(self._target)
        handle = await make_part(sftp, part, self._first_permissions())
        owned = sftp.fsetstat(handle, Attributes(owner=self._existing.attributes.owner)) if self._existing else None
        try:
            size = sftp.write_bytes
            writes = [sftp.write(handle, start, data[start : start + size]) for start in range(0, len(data), size)]
            if (changes := self._last_attributes(None)) is not None:
                writes.append(sftp.fsetstat(handle, changes))
            writes.append(sftp.close_handle(handle))
            if owned is not None:
                with contextlib.suppress(SftpStatus):  # it takes root, or nothing is changed by it
                    await owned
            for each in writes:
                await each
        except SftpStatus as error:
            raise await why_not_written(sftp, error, part) from error
        self._context.moved(len(data))
        if self._context.wants_checksum(is_split=False):
            self._digest = hashlib.sha256(data).digest()
            return True
        await put_in_place(sftp, part, self._target)
        return False

    def _read_whole(self) -> bytes:
        """Read the file as it is at one moment."""
        with contextlib.closing(open_source(self.file.source)) as source:
            for _ in range(1 + MOST_REPAIRS):
                before = source.stat()
                self._check_small(before.st_size)
                data = source.read_all(GROWTH_LIMIT)
                if not has_changed(before, source.stat()):
                    self._grew(len(data))
                    return data
        raise FileError("it changes all the time; nothing was put in its place")

    async def is_there_already(self, link: LinkFace) -> bool:
        """Whether the target has the size of the source, so that it is worth comparing."""
        try:
            found = await link.sftp.stat(self.file.target)
        except SftpStatus:
            return False
        return found.is_regular and found.size == os.stat(self.file.source).st_size

    def local_digest(self) -> bytes:
        """Give the digest of the source, for a comparison with what is there."""
        with open(self.file.source, "rb") as file:
            return hashlib.sha256(file.read()).digest()

    @property
    def checked_path(self) -> bytes:
        """What is compared, on the node."""
        return self.file.target

    async def digest_read_back(self, link: LinkFace) -> bytes:
        """Give the digest of the part as it is read back from the node."""
        sftp = link.sftp
        handle = await sftp.open(self.path_on_node, packets.OPEN_READ)
        data = await read_range(sftp, handle, Range(0, self._size + 1))
        await sftp.close_handle(handle)
        return hashlib.sha256(data).digest()

    async def is_settled(self, link: LinkFace) -> bool:
        return self._rename_sent and await self._is_in_place(link.sftp)

    async def put_settled(self, link: LinkFace) -> None:
        """Put a part in place that was compared and found good."""
        self._is_verified = True
        assert self._part is not None
        await self._rename(link.sftp, self._part)

    # --- large files ------------------------------------------------------------------------------------------------

    async def prepare(self, link: LinkFace) -> None:
        """Open the source, make the part or find one that is there, and cut what is to be sent into ranges.

        Raises:
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        sftp = link.sftp
        source = self._source = self._source or open_source(self.file.source)
        self._before = source.stat()
        self._grew(self._before.st_size)
        size = self._size
        self._target, self._existing = await look_at_target(sftp, self.file.target)
        if self._context.options.resume and await self._resume(link, source, size):
            return
        data = source.data_stretches(size)
        free = await sftp.free_bytes(self._target.rpartition(b"/")[0] or b"/")
        needed = sum(stretch[1] for stretch in data)
        if free is not None and free < needed:
            raise FileError(f"the node's disk has room for {free} bytes, and {needed} are needed")
        if self._part is None:
            self._part = part_path(self._target)
        handle = await make_part(sftp, self._part, self._first_permissions() | _WORKABLE)
        self._context.keep_part(self._part)
        changed = sftp.fsetstat(handle, Attributes(size=size))  # holes of the source stay holes
        closed = sftp.close_handle(handle)
        await changed
        await closed
        self._context.found(size - needed)
        self._set(data)

    async def _resume(self, link: LinkFace, source: SharedFile, size: int) -> bool:
        """Go on with what is there; give whether anything is."""
        if not self._context.has_shell:
            return False
        if self._existing is not None and self._existing.attributes.size == size:
            ours = InBackground(lambda: local_blocks(source, size))
            theirs = node_blocks(link.shell, self._target, size)
            if theirs is None:
                self._context.no_shell(link.shell)
                return False
            if ours.result() == theirs:
                self._is_there = self._is_verified = True
                self._context.found(size)
                self._set([])
                return True
        if not self._is_claimed:
            found = await find_part(link.sftp, self._target, self._context.parts_in_use())
            if found is None or not await self._take_over(link.sftp, found):
                return False
        assert self._part is not None
        self._context.keep_part(self._part)
        await link.sftp.setstat(self._part, Attributes(size=size))
        ours = InBackground(lambda: local_blocks(source, size))
        theirs = node_blocks(link.shell, self._part, size)
        if theirs is None:
            self._context.no_shell(link.shell)
            self._context.leave_part(self.shown_source, self._part)
            self._part = None
            return False
        missing = differing(ours.result(), theirs, size)
        there = size - sum(each[1] for each in missing)
        self._context.found(there)
        self._context.notice(f"{self.shown_source}: {there} of {size} bytes are there already")
        self._set(missing)
        return True

    async def _take_over(self, sftp: SftpConnection, found: bytes) -> bool:
        """Make a part that is there ours, under a new name; not one that another copy or another user has."""
        if not await is_quiet(sftp, found):
            self._context.notice(f"{self.shown_source}: another copy is at work on the part that is there")
            return False
        part = part_path(self._target)
        try:
            # Only its owner may do that: what becomes the target must be nobody else's to change.
            await sftp.setstat(found, Attributes(permissions=self._first_permissions() | _WORKABLE))
            await sftp.rename(found, part)
        except SftpStatus:
            return False
        self._part = part
        self._is_claimed = True
        return True

    async def copy_range(self, link: LinkFace, piece: Range) -> int:
        """Send a piece, or compare it; give the bytes that it was.

        Raises:
            FileError, OSError, SftpStatus: the file cannot be copied.
        """
        part = self._part
        if part is None:
            raise FileError("it is over already")
        data = self._read_source(piece)
        if self._phase is _Phase.READING_BACK:
            return await self._compare_range(link, part, piece, data)
        sftp = link.sftp
        handle = await link.handle((self, self._repairs), part, packets.OPEN_WRITE)
        size = sftp.write_bytes
        writes = [
            sftp.write(handle, piece.offset + start, data[start : start + size]) for start in range(0, len(data), size)
        ]
        try:
            for each in writes:
                await each
        except SftpStatus as error:
            raise await why_not_written(sftp, error, part) from error
        return piece.size

    def _read_source(self, piece: Range) -> bytes:
        assert self._source is not None
        data = self._source.read_at(piece.offset, piece.size)
        if len(data) < piece.size:
            raise FileError("it became shorter while it was read; nothing was put in its place")
        return data

    async def _compare_range(self, link: LinkFace, part: bytes, piece: Range, data: bytes) -> int:
        handle = await link.handle((self, "back", self._repairs), part, packets.OPEN_READ)
        if await read_range(link.sftp, handle, piece) != data:
            with self._lock:
                self._bad.append(piece)
        return 0

    async def finish(self, link: LinkFace) -> None:
        """Verify, set attributes, put in place.

        Raises:
            AgainNeeded: some pieces have to be sent again, or read back.
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        if self._is_there:
            await self.keep_attributes(link)
            return
        assert self._part is not None
        sftp = link.sftp
        if self._rename_sent and await self._is_in_place(sftp):
            return
        if not self._is_verified:
            before, after = self._source_now()
            is_changed = has_changed(before, after)
            if is_changed and not self._is_calm:
                # What a slow link has read before the change is written before the next round ends.
                self._is_calm = True
                self._set([])
                raise AgainNeeded
            if is_changed or self._context.wants_checksum(is_split=True):
                await self._verify(link)
            if after.st_size > self._size:
                self._context.notice(
                    f"{self.shown_source} grew while it was read; its first {self._size} bytes were copied"
                )
        if not self._is_written:  # not again by another link: it may be read-only by then
            await check_written(sftp, self._part)
            self._is_written = True
        if self._existing is not None:
            with contextlib.suppress(SftpStatus):
                await sftp.setstat(self._part, Attributes(owner=self._existing.attributes.owner))
        if (changes := self._last_attributes(await sftp.stat(self._part))) is not None:
            await sftp.setstat(self._part, changes)
        await self._rename(sftp, self._part)

    async def _rename(self, sftp: SftpConnection, part: bytes) -> None:
        self._rename_sent = True
        await put_in_place(sftp, part, self._target)
        self._context.drop_part(part)

    async def _is_in_place(self, sftp: SftpConnection) -> bool:
        """Whether a link that was lost while it put the file in place had done it."""
        assert self._part is not None
        if not await is_in_place(sftp, self._part, self._target, self._size):
            return False
        self._context.drop_part(self._part)
        return True

    def _source_now(self) -> tuple[os.stat_result, os.stat_result]:
        """Give what the source was like at first, and what it is like now."""
        assert self._before is not None
        assert self._source is not None
        before, after = self._before, self._source.stat()
        if after.st_size < before.st_size:
            raise FileError("it became shorter while it was read; nothing was put in its place")
        return before, after

    async def _verify(self, link: LinkFace) -> None:
        assert self._source is not None
        assert self._part is not None
        source, size = self._source, self._size
        if self._phase is _Phase.READING_BACK:
            bad, self._bad, self._phase = self._bad, [], _Phase.WRITING
            differs = [(piece.offset, piece.size) for piece in bad]
        else:
            ours = InBackground(lambda: local_blocks(source, size))
            theirs = node_blocks(link.shell, self._part, size) if self._context.has_shell else None
            if theirs is None:
                self._context.no_shell(link.shell)
                self._phase = _Phase.READING_BACK
                self._set([(0, size)])
                raise AgainNeeded
            differs = differing(ours.result(), theirs, size)
        if differs:
            self._before = source.stat()
            self._repair(differs)
        self._is_verified = True

    # --- attributes -------------------------------------------------------------------------------------------------

    def _first_permissions(self) -> int:
        """Those that a part is made with: nobody may read it who may not read the file that it becomes."""
        kept = self._kept_permissions
        return self.file.permissions & PERMISSIONS if kept is None else kept

    @property
    def _kept_permissions(self) -> int | None:
        """Those of the file that is replaced, unless others are wanted."""
        if self._existing is None or self._context.options.preserve:
            return None
        permissions = self._existing.attributes.permissions
        return None if permissions is None else permissions & PERMISSIONS

    def _last_attributes(self, made: Attributes | None) -> Attributes | None:
        """Give what has to be set before the file is put in place.

        Args:
            made: what the part has now, for one that was made with more than the source's permissions.
        """
        permissions = None
        wanted = self.file.permissions & PERMISSIONS
        if self._context.options.preserve:
            permissions = wanted
        elif (kept := self._kept_permissions) is not None:
            permissions = kept
        elif made is not None and made.permissions is not None and (wanted | _WORKABLE) != wanted:
            permissions = made.permissions & wanted
        times = self.file.times if self._context.options.preserve else None
        if permissions is None and times is None:
            return None
        return Attributes(permissions=permissions, times=times)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def abandon(self, link: LinkFace) -> None:
        """Remove what there is of a file that will not be copied."""
        part, self._part = self._part, None
        if part is not None:
            self._context.drop_part(part)
            with contextlib.suppress(SftpStatus):  # it was not made, or the node lets nobody remove it
                await link.sftp.remove(part)

    def close(self) -> None:
        """Let go of the source."""
        self.is_over = True
        if self._source is not None:
            self._source.close()

    async def keep_attributes(self, link: LinkFace) -> None:
        """Give what is there already the source's permissions and times, if they are to be kept."""
        if self._context.options.preserve:
            wanted = Attributes(permissions=self.file.permissions & PERMISSIONS, times=self.file.times)
            await link.sftp.setstat(self.file.target, wanted)

    def failure(self, error: Exception) -> FileOutcome:
        what = "it cannot be read" if isinstance(error, OSError) else "it cannot be written"
        return outcome_of(self.file, FileState.FAILED, error=explain(error, what))
