"""One file from the node to here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.checksums import InBackground, differing, hash_stretch, local_blocks, node_blocks
from ssm_proxy.file_copy.context import AgainNeeded, Context, LinkFace, explain, outcome_of
from ssm_proxy.file_copy.local_file import (
    CAREFUL,
    LocalTarget,
    SharedFile,
    find_local_part,
    is_ours_alone,
    look_at_local_target,
    open_part,
)
from ssm_proxy.file_copy.names import part_path
from ssm_proxy.file_copy.node_files import read_range, read_whole
from ssm_proxy.file_copy.regular_file import MOST_REPAIRS, PERMISSIONS, RegularFile
from ssm_proxy.file_copy.values import FileError, FileOutcome, FileState, SourceFile
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection
from ssm_proxy.sftp.packets import Attributes

_NEW_PART = os.O_RDWR | os.O_CREAT | os.O_EXCL | CAREFUL


class Download(RegularFile):
    """A regular file, of whatever size.

    Args:
        file: what is copied, and where to.
        context: shared by all files.
    """

    def __init__(self, file: SourceFile, context: Context) -> None:
        super().__init__(file, context)
        self._times = file.times
        self._target: LocalTarget | None = None
        self._part: bytes | None = None
        self._output: SharedFile | None = None
        self._is_fresh = True
        self._received: dict[Range, bytes] = {}  # digests, while nothing better is known to verify by
        self._is_read_again = False  # only to have those, as what came first was not digested

    may_be_written_late = False

    @property
    def path_on_node(self) -> bytes:
        """What ``settle`` compares: the source."""
        return self.file.source

    @property
    def checked_path(self) -> bytes:
        """What is compared, on the node."""
        return self.file.source

    # --- small files ------------------------------------------------------------------------------------------------

    async def copy_whole(self, link: LinkFace) -> bool:
        """Receive the file into a part; put it in place unless it is to be verified first, which is the answer.

        Raises:
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        sftp = link.sftp
        if self._target is None:
            self._target = LocalTarget(self.file.target, None)
            if not self.file.is_new:
                self._target = look_at_local_target(self.file.target)
        handle = await sftp.open(self.file.source, packets.OPEN_READ)
        try:
            whole = await self._read_whole(sftp, handle)
        finally:
            closed = sftp.close_handle(handle)
        self._grew(len(whole))
        output = self._make_part()
        try:
            output.write_at(0, whole)
            self._set_attributes()
        finally:
            output.close()
        await closed
        self._context.moved(len(whole))
        if self._context.wants_checksum(is_split=False):
            self._digest = hashlib.sha256(whole).digest()
            return True
        self._put_in_place()
        return False

    async def _read_whole(self, sftp: SftpConnection, handle: bytes) -> bytes:
        """Read the file as it is at one moment, as far as its size and its time tell; of a log, its beginning.

        Raises:
            FileError: it changes all the time, and not only by growing.
        """
        before = (self.file.size, self.file.times[1])
        only_grows = True
        for _ in range(1 + MOST_REPAIRS):
            data, after = await read_whole(sftp, handle, before[0])
            state = (after.size or 0, (after.times or self.file.times)[1])
            self._check_small(state[0])
            if state == before or not state[0]:  # files of /proc are said to be empty
                return data
            only_grows = only_grows and state[0] > before[0]
            before = state
        if only_grows:
            return data
        raise FileError("it changes all the time while it is read; nothing was put in its place")

    def _make_part(self) -> SharedFile:
        assert self._target is not None
        self.remove_part()
        self._part = part_path(self._target.path)
        permissions = self.file.permissions & PERMISSIONS
        if self._target.existing is not None and not self._context.options.preserve:
            # Nobody may read the part who may not read the file that it becomes.
            permissions = self._target.existing.st_mode & PERMISSIONS
        try:
            fd = os.open(self._part, _NEW_PART, permissions)
        except PermissionError as error:
            raise FileError("nothing can be put into its folder here: permission denied") from error
        self._output = SharedFile(fd)
        if self.is_split:
            is_ours_alone(fd)
        else:
            self._context.small_part(self._part)
        return self._output

    async def is_there_already(self, link: LinkFace) -> bool:
        """Whether the target has the size of the source, so that it is worth comparing."""
        try:
            found = os.stat(self.file.target)
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == self.file.size

    def local_digest(self) -> bytes:
        """Give the digest of the target, for a comparison with the source."""
        with open(self.file.target, "rb") as file:
            return hashlib.sha256(file.read()).digest()

    async def digest_read_back(self, link: LinkFace) -> bytes:
        """Give the digest of the part as it is read back from the disk."""
        assert self._part is not None
        with open(self._part, "rb") as file:
            return hashlib.sha256(file.read()).digest()

    async def is_settled(self, link: LinkFace) -> bool:
        return False  # no link can be lost in a rename here

    async def put_settled(self, link: LinkFace) -> None:
        """Put a part in place that was compared and found good."""
        self._is_verified = True
        self._put_in_place()

    # --- large files ------------------------------------------------------------------------------------------------

    async def prepare(self, link: LinkFace) -> None:
        """Look at source and target, make the part or find one that is there, and cut what is to come into ranges.

        Raises:
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        found = await link.sftp.stat(self.file.source)
        if found.size is None:
            raise FileError("the node does not tell its size")
        self._grew(found.size)
        self._times = found.times or self._times
        size = self._size
        self._target = look_at_local_target(self.file.target)
        if self._context.options.resume and self._resume(link, size):
            return
        folder = os.path.dirname(self._target.path) or b"."
        if hasattr(os, "statvfs"):
            free = os.statvfs(folder)
            if free.f_blocks and free.f_bavail * free.f_frsize < size:
                raise FileError(
                    f"the disk here has room for {free.f_bavail * free.f_frsize} bytes, and {size} are needed"
                )
        output = self._make_part()
        assert self._part is not None
        self._context.keep_part(self._part)
        output.truncate(size)
        self._set([(0, size)])

    def _resume(self, link: LinkFace, size: int) -> bool:
        """Go on with what is there; give whether anything is."""
        assert self._target is not None
        if not self._context.has_shell:
            return False
        if self._target.existing is not None and self._target.existing.st_size == size:
            there = SharedFile(os.open(self._target.path, os.O_RDONLY))
            try:
                missing = self._missing(link, there, size)
            finally:
                there.close()
            if missing is None:
                return False
            if not missing:
                self._is_there = self._is_verified = True
                self._context.found(size)
                self._set([])
                return True
        if self._part is None:
            found = find_local_part(self._target.path)
            if found is None or not self._take_over(found):
                return False
        assert self._part is not None
        assert self._output is not None
        self._is_fresh = False
        self._context.keep_part(self._part)
        self._output.truncate(size)
        missing = self._missing(link, self._output, size)
        if missing is None:
            self._leave_part()
            return False
        there_bytes = size - sum(each[1] for each in missing)
        self._context.found(there_bytes)
        self._context.notice(f"{self.shown_source}: {there_bytes} of {size} bytes are there already")
        self._set(missing)
        return True

    def _take_over(self, found: bytes) -> bool:
        """Make a part that is there ours, under a new name; not one that another copy writes to."""
        assert self._target is not None
        try:
            fd = open_part(found)
        except OSError:
            return False
        if not is_ours_alone(fd):
            os.close(fd)
            self._context.notice(f"{self.shown_source}: another copy is at work on the part that is there")
            return False
        self._part = part_path(self._target.path)
        self._output = SharedFile(fd)
        os.rename(found, self._part)
        return True

    def _leave_part(self) -> None:
        """Leave a part alone that cannot be compared now; a new one will be made."""
        assert self._part is not None
        assert self._output is not None
        self._context.leave_part(self.shown_source, self._part)
        self._output.close()
        self._part = self._output = None

    def _missing(self, link: LinkFace, file: SharedFile, size: int) -> list[tuple[int, int]] | None:
        """Give the blocks of a file here that are not as on the node; None if the node cannot tell."""
        ours = InBackground(lambda: local_blocks(file, size))
        theirs = node_blocks(link.shell, self.file.source, size) if self._context.has_shell else None
        mine = ours.result()
        if theirs is None:
            self._context.no_shell(link.shell)
            return None
        return differing(mine, theirs, size)

    async def copy_range(self, link: LinkFace, piece: Range) -> int:
        """Receive a piece and write it; give the bytes that it was.

        Raises:
            FileError, OSError, SftpStatus: the file cannot be copied.
        """
        handle = await link.handle((self, self._repairs), self.file.source, packets.OPEN_READ)
        data = await read_range(link.sftp, handle, piece)
        if len(data) < piece.size:
            raise FileError("it became shorter while it was read; nothing was put in its place")
        if self._context.wants_checksum(is_split=True) and not self._context.has_shell:
            digest = hashlib.sha256(data).digest()
            with self._lock:
                self._received[piece] = digest
        assert self._output is not None
        if not (self._is_fresh and data.count(0) == len(data)):  # holes stay holes
            self._output.write_at(piece.offset, data)
        return 0 if self._is_read_again else piece.size

    async def finish(self, link: LinkFace) -> None:
        """Verify, set attributes, put in place.

        Raises:
            AgainNeeded: some pieces have to be received again.
            FileError, OSError, SftpStatus: it cannot be copied.
        """
        if self._is_there:
            await self.keep_attributes(link)
            return
        found = await link.sftp.stat(self.file.source)
        if (found.size or 0) < self._size:
            raise FileError("it became shorter while it was read; nothing was put in its place")
        has_changed = found.size != self._size or (found.times or self._times)[1] != self._times[1]
        if has_changed and not self._is_calm:
            self._is_calm = True  # what a slow link has read before the change is written before the next round ends
            self._set([])
            raise AgainNeeded
        if has_changed or self._context.wants_checksum(is_split=True):
            self._verify(link, has_changed, found)
        if (found.size or 0) > self._size:
            self._context.notice(
                f"{self.shown_source} grew while it was read; its first {self._size} bytes were copied"
            )
        self._set_attributes()
        assert self._output is not None
        self._output.flush()
        self._put_in_place()

    def _verify(self, link: LinkFace, has_changed: bool, found: Attributes) -> None:
        assert self._output is not None
        missing = self._missing(link, self._output, self._size)
        if missing is None:
            if has_changed:
                raise FileError("it changed while it was read; nothing was put in its place")
            missing = self._read_back(self._output)
        whole = [(0, self._size)]
        if missing is None and not self._is_read_again:
            self._is_fresh = False
            self._is_read_again = True
            self._set(whole)
            raise AgainNeeded
        self._is_read_again = False
        if missing or missing is None:
            self._times = found.times or self._times
            self._is_fresh = False
            self._repair(whole if missing is None else missing)
        self._is_verified = True

    def _read_back(self, output: SharedFile) -> list[tuple[int, int]] | None:
        """Compare what is on the disk here with what was received; give what differs.

        Gives None if some of it came before it was known that there is no shell: then all has to come once more.
        """
        with self._lock:
            received = dict(self._received)
        covered = {piece.offset: piece for piece in received}
        bad = []
        position = 0
        while position < self._size:
            piece = covered.get(position)
            if piece is None:
                return None
            if hash_stretch(output, piece.offset, piece.size) != received[piece]:
                bad.append((piece.offset, piece.size))
            position += piece.size
        return bad

    # --- the end ----------------------------------------------------------------------------------------------------

    def _set_attributes(self) -> None:
        """Set what is wanted beyond that with which the part was made."""
        assert self._part is not None
        assert self._target is not None
        existing = self._target.existing
        if existing is not None:
            with contextlib.suppress(OSError):  # it takes root, or nothing is changed by it
                os.chown(self._part, existing.st_uid, existing.st_gid)
        if self._context.options.preserve:
            os.chmod(self._part, self.file.permissions & PERMISSIONS)
            os.utime(self._part, self._times)
        elif existing is not None:
            os.chmod(self._part, existing.st_mode & PERMISSIONS)

    def _put_in_place(self) -> None:
        assert self._part is not None
        assert self._target is not None
        os.replace(self._part, self._target.path)
        self._context.drop_part(self._part)
        self._part = None

    async def abandon(self, link: LinkFace) -> None:
        """Remove what there is of a file that will not be copied."""
        self.remove_part()

    def remove_part(self) -> None:
        """Remove what there is of it."""
        part, self._part = self._part, None
        if part is not None:
            if self._output is not None:
                self._output.close()
            self._context.drop_part(part)
            with contextlib.suppress(OSError):
                os.unlink(part)

    def close(self) -> None:
        """Let go of the target."""
        self.is_over = True
        if self._output is not None:
            self._output.close()

    async def keep_attributes(self, link: LinkFace) -> None:
        """Give what is there already the source's permissions and times, if they are to be kept."""
        if self._context.options.preserve:
            os.chmod(self.file.target, self.file.permissions & PERMISSIONS)
            os.utime(self.file.target, self._times)

    def failure(self, error: Exception) -> FileOutcome:
        what = "it cannot be written" if isinstance(error, OSError) else "it cannot be read"
        return outcome_of(self.file, FileState.FAILED, error=explain(error, what))
