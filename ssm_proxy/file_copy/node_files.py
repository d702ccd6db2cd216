"""Files of the node: what is at the target of an upload, how it is replaced, how a piece is read."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.names import is_part_of, part_path
from ssm_proxy.file_copy.values import GROWTH_LIMIT, FileError
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

QUIET_S = 2.5
"""SFTP's times have whole seconds."""


class Existing(NamedTuple):
    """A regular file that will be replaced."""

    path: bytes
    """Where it really is: symbolic links are followed, as by everything that writes to a file."""
    attributes: Attributes


async def look_at_target(sftp: SftpConnection, target: bytes) -> tuple[bytes, Existing | None]:
    """Give the path that is to be replaced, and what is there now.

    Raises:
        FileError: it is something that a file must not replace, or nobody may write to it.
        SftpStatus: as the server says.
    """
    try:
        found = await sftp.lstat(target)
    except SftpStatus as error:
        if error.is_missing:
            return target, None
        raise
    if found.is_link:
        target = await sftp.real_path(target)
        try:
            found = await sftp.lstat(target)
        except SftpStatus as error:
            if error.is_missing:
                return target, None
            raise
    if found.is_folder:
        raise FileError("there is a folder of that name on the node")
    if not found.is_regular:
        raise FileError("what is there on the node is no regular file, and is left alone")
    try:  # a rename would replace it all the same
        await sftp.close_handle(await sftp.open(target, packets.OPEN_WRITE))
    except SftpStatus as error:
        if error.code == packets.PERMISSION_DENIED:
            raise FileError("the file on the node is read-only") from error
        # Otherwise it may be a program that runs: nobody writes to that, but it may be replaced.
    return target, Existing(target, found)


async def find_part(sftp: SftpConnection, target: bytes, in_use: Collection[bytes]) -> bytes | None:
    """Give the largest part that an interrupted copy to the same target left; none that another user put there."""
    folder, _, _ = target.rpartition(b"/")
    folder = folder or b"/"
    ours = {path.rpartition(b"/")[2] for path in in_use}
    try:
        found = [
            (attributes.size or 0, name, attributes.owner)
            for name, attributes in await sftp.list_folder(folder)
            if is_part_of(name, target) and attributes.is_regular and name not in ours
        ]
        if any(owner is not None for _, _, owner in found):
            user = await _user_of_new_files(sftp, target)
            found = [each for each in found if each[2] is None or user is None or each[2][0] == user]
    except SftpStatus:  # nothing can be known of it; it may take files all the same, and a plain copy never asks
        return None
    return folder.rstrip(b"/") + b"/" + max(found, key=lambda each: each[0])[1] if found else None


async def _user_of_new_files(sftp: SftpConnection, target: bytes) -> int | None:
    """Give the number of the user who owns what we make beside a target; None if the server does not tell.

    Only a file tells it: SFTP has no word for who has logged in, and file servers may have another user for root.

    Raises:
        SftpStatus: nothing can be made there.
    """
    probe = part_path(target)
    flags = packets.OPEN_WRITE | packets.OPEN_CREATE | packets.OPEN_EXCLUSIVE
    handle = await sftp.open(probe, flags, Attributes(permissions=0o600))
    looked, closed, removed = sftp.fstat(handle), sftp.close_handle(handle), sftp.remove(probe)
    await closed
    await removed
    owner = (await looked).owner
    return None if owner is None else owner[0]


async def is_quiet(sftp: SftpConnection, path: bytes) -> bool:
    """Watch a file for a moment; give whether nobody writes to it, as a copy that still runs would."""
    before = await sftp.lstat(path)
    time.sleep(QUIET_S)  # the link has nothing better to do: it is about to compute checksums
    return await sftp.lstat(path) == before


async def make_part(sftp: SftpConnection, part: bytes, permissions: int) -> bytes:
    """Make an empty file, or empty what there is of it; give a handle to write to it.

    Raises:
        FileError: nobody may make a file in that folder.
        SftpStatus: as the server says.
    """
    flags = packets.OPEN_WRITE | packets.OPEN_CREATE | packets.OPEN_TRUNCATE
    try:
        return await sftp.open(part, flags, Attributes(permissions=permissions))
    except SftpStatus as error:
        if error.code == packets.PERMISSION_DENIED:
            raise FileError("nothing can be put into its folder on the node: permission denied") from error
        raise


async def check_written(sftp: SftpConnection, part: bytes) -> None:
    """Learn of writes to a part that failed late: file systems of the network and quotas tell when a handle is closed.

    Raises:
        FileError, SftpStatus: one did.
    """
    handle = await sftp.open(part, packets.OPEN_WRITE)
    try:
        await sftp.close_handle(handle)
    except SftpStatus as error:
        raise await why_not_written(sftp, error, part) from error


async def put_in_place(sftp: SftpConnection, part: bytes, target: bytes) -> None:
    """Rename a part to its final name, in place of what is there.

    Raises:
        SftpStatus: as the server says.
    """
    if not sftp.can_replace:
        # Not at once: for a moment there is neither. No server that is in use today needs this.
        try:
            await sftp.remove(target)
        except SftpStatus as error:
            if not error.is_missing:
                raise
    await sftp.rename(part, target)


async def is_in_place(sftp: SftpConnection, part: bytes, target: bytes, size: int) -> bool:
    """Whether a link that was lost while it put a part in place had done it."""
    try:
        await sftp.lstat(part)
    except SftpStatus as error:
        return error.is_missing and (await sftp.stat(target)).size == size
    return False


async def why_not_written(sftp: SftpConnection, error: SftpStatus, path: bytes) -> Exception:
    """Give the error of a write with its reason, which the protocol's one code for all failures hides."""
    if error.code == packets.FAILURE:
        free = await sftp.free_bytes(path.rpartition(b"/")[0] or b"/")
        if free is not None and free < 64 * 1024:
            return FileError("the node's disk is full")
        # It may have been full a moment ago: what else could not be written has been removed meanwhile.
        now = "" if free is None else f"; {free} bytes are free now"
        return FileError(f"the node could not write it: its disk was full, or a quota is used up{now}")
    return error


async def read_range(sftp: SftpConnection, handle: bytes, piece: Range) -> bytes:
    """Read a piece of a file of the node; less only where the file ends."""
    size = sftp.read_bytes
    starts = range(piece.offset, piece.offset + piece.size, size)
    ends = piece.offset + piece.size
    reads = [sftp.read(handle, start, min(size, ends - start)) for start in starts]
    data = b""
    pieces = []
    for start, read in zip(starts, reads, strict=True):
        wanted = min(size, ends - start)
        data = await read
        while data and len(data) < wanted:  # a server may give less than it was asked for
            more = await sftp.read(handle, start + len(data), wanted - len(data))
            if not more:
                break
            data += more
        pieces.append(data)
        if len(data) < wanted:
            break
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_whole(sftp: SftpConnection, handle: bytes, size: int) -> tuple[bytes, Attributes]:
    """Read a small file to its end; give its attributes, too, as they are behind what was read.

    Args:
        size: what it is said to have.

    Raises:
        FileError: it became shorter meanwhile, or it grows.
    """
    step = sftp.read_bytes
    starts = range(0, size, step)
    reads = [sftp.read(handle, start, min(step, size - start)) for start in starts]
    looked = sftp.fstat(handle)
    pieces = []
    position = 0
    is_cut_off = False
    for start, read in zip(starts, reads, strict=True):
        wanted = min(step, size - start)
        data = await read
        if is_cut_off:
            continue
        if len(data) < wanted:
            data += await read_range(sftp, handle, Range(start + len(data), wanted - len(data)))
            is_cut_off = len(data) < wanted
        pieces.append(data)
        position += len(data)
    try:
        after = await looked
    except SftpStatus:  # what it does not tell has not changed
        after = Attributes(size=size)
    if is_cut_off:
        if after.size == size and not await sftp.read(handle, position, 1):
            return b"".join(pieces), after  # files of /sys say 4096, whatever is in them
        if ((await sftp.fstat(handle)).size or 0) < size:
            raise FileError("it became shorter while it was read; nothing was put in its place")
    if not after.size:
        while data := await sftp.read(handle, position, step):
            pieces.append(data)
            position += len(data)
            if position > GROWTH_LIMIT:
                raise FileError("it grows while it is read")
    return b"".join(pieces), after
