"""What there is to copy from here to the node: one file after the other, and the folders that are made for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ssm_proxy.errors import CopyError
from ssm_proxy.file_copy.context import explain
from ssm_proxy.file_copy.names import join, last_name, shown
from ssm_proxy.file_copy.node import AT_ONCE, Node
from ssm_proxy.file_copy.regular_file import PERMISSIONS
from ssm_proxy.file_copy.values import CopyOptions, SourceError, SourceFile, whole_seconds
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

ENTERABLE = 0o700
"""What a folder needs while files are put into it."""
SAME_NAME = "an earlier source of this copy has the same name; copy this one by itself, to another name"


class Tell(NamedTuple):
    """Whom a planner tells what it finds."""

    file: Callable[[SourceFile], None]
    failure: Callable[[bytes, bytes, str], None]
    """Source, target and why: something is left out."""
    taken: set[bytes]
    """The names that sources of this copy have in its destination; from other nodes, too."""

    def takes(self, source: bytes, target: bytes) -> bool:
        """Take a name in the destination for a source, unless an earlier one has it, which is told."""
        name = os.path.basename(target)
        if name in self.taken:
            self.failure(source, target, SAME_NAME)
            return False
        self.taken.add(name)
        return True


class _Folder(NamedTuple):
    source: bytes
    target: bytes
    status: os.stat_result
    above: _Folder | None

    def is_its_own_ancestor(self) -> bool:
        folder = self.above
        while folder is not None:
            if (folder.status.st_dev, folder.status.st_ino) == (self.status.st_dev, self.status.st_ino):
                return True
            folder = folder.above
        return False


def plan_upload(
    node: Node, sources: Sequence[bytes], destination: bytes, options: CopyOptions, tell: Tell
) -> FolderEnd:
    """Find all files, and make the folders for them.

    Args:
        node: the other side.
        sources: paths here.
        destination: path on the node.
        options: how to copy.
        tell: told of each file, as soon as its folder is there.

    Returns:
        What is left to be done when all files are in place.

    Raises:
        CopyError: the destination cannot be one.
    """
    target = node.absolute(destination)
    found = _look(node, target)
    is_folder = found is not None and found.is_folder
    if not is_folder and (len(sources) > 1 or destination.endswith(b"/")):
        raise CopyError(
            f"{shown(destination)} is no folder on the node",
            cause="it is not there" if found is None else "it is a file",
            hint="make it first, for instance with: ssh NODE mkdir -p FOLDER",
        )
    end = FolderEnd(node, options)
    roots: list[_Folder] = []
    for source in sources:
        try:
            status = os.stat(source)
            name = last_name(source) if is_folder else b""
        except OSError as error:
            tell.failure(source, target, explain(error, "it cannot be read"))
            continue
        except SourceError as error:
            tell.failure(source, target, error.text)
            continue
        place = join(target, name)
        if not stat.S_ISDIR(status.st_mode):
            _tell_file(tell, source, place, status, is_new=False, is_source=True)
        elif not options.recursive:
            tell.failure(source, place, "it is a folder; -r copies folders")
        elif is_folder and not name:  # what is in it is put beside the other sources, so each has a name to take
            end.made(place, status, is_new=False)
            roots += _enter(_Folder(source, place, status, None), tell, is_new=False, are_sources=True)
        elif tell.takes(source, place):
            roots.append(_Folder(source, place, status, None))
    _walk(node, roots, tell, end)
    return end


def _look(node: Node, path: bytes) -> Attributes | None:
    try:
        return node.stat(path)
    except SftpStatus as error:
        raise CopyError(f"{shown(path)} cannot be looked at", cause=explain(error, "stat")) from error


def _tell_file(
    tell: Tell, source: bytes, target: bytes, status: os.stat_result, *, is_new: bool, is_source: bool
) -> None:
    if not stat.S_ISREG(status.st_mode):
        tell.failure(source, target, "it is no regular file, and was left out")
        return
    if is_source and not tell.takes(source, target):
        return
    tell.file(
        SourceFile(
            source=source,
            target=target,
            size=status.st_size,
            permissions=stat.S_IMODE(status.st_mode),
            times=(whole_seconds(status.st_atime), whole_seconds(status.st_mtime)),
            is_new=is_new,
        )
    )


def _walk(node: Node, roots: list[_Folder], tell: Tell, end: FolderEnd) -> None:
    """Go through the folders level by level: those of one level are made at once."""
    level = roots
    while level:
        below: list[_Folder] = []
        for start in range(0, len(level), AT_ONCE):
            for folder, is_new in _make(node, level[start : start + AT_ONCE], tell):
                end.made(folder.target, folder.status, is_new=is_new)
                below += _enter(folder, tell, is_new=is_new)
        level = below


def _make(node: Node, folders: list[_Folder], tell: Tell) -> list[tuple[_Folder, bool]]:
    """Make folders on the node; give those that are there now, and whether each is new."""

    made = []
    results = node.call_all([partial(_make_one, folder=folder) for folder in folders])
    for folder, result in zip(folders, results, strict=True):
        if isinstance(result, SftpStatus):
            tell.failure(folder.source, folder.target, explain(result, "the folder cannot be made"))
        else:
            made.append((folder, bool(result)))
    return made


async def _make_one(sftp: SftpConnection, folder: _Folder) -> bool:
    permissions = stat.S_IMODE(folder.status.st_mode) & PERMISSIONS | ENTERABLE
    try:
        await sftp.make_folder(folder.target, Attributes(permissions=permissions))
    except SftpStatus as error:
        try:
            found = await sftp.stat(folder.target)
        except SftpStatus:
            raise error from None  # why it could not be made says more
        if not found.is_folder:
            raise SftpStatus(packets.FAILURE, "there is a file of that name") from None
        return False
    return True


def _enter(folder: _Folder, tell: Tell, *, is_new: bool, are_sources: bool = False) -> list[_Folder]:
    """Tell of a folder's files; give the folders in it. Each may be a source of its own."""
    below = []
    try:
        with os.scandir(folder.source) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        tell.failure(folder.source, folder.target, explain(error, "it cannot be read"))
        return []
    for entry in found:
        target = join(folder.target, entry.name)
        try:
            status = entry.stat()
        except OSError as error:
            why = explain(error, "it cannot be read")
            tell.failure(entry.path, target, f"it is a link to nothing: {why}" if entry.is_symlink() else why)
            continue
        if stat.S_ISDIR(status.st_mode):
            inner = _Folder(entry.path, target, status, folder)
            if inner.is_its_own_ancestor():
                tell.failure(entry.path, target, "it is a link to a folder that it is in")
            elif not are_sources or tell.takes(entry.path, target):
                below.append(inner)
        else:
            _tell_file(tell, entry.path, target, status, is_new=is_new, is_source=are_sources)
    return below


class FolderEnd:
    """Permissions and times of folders, which are set when everything is in them."""

    def __init__(self, node: Node, options: CopyOptions) -> None:
        self._node = node
        self._preserve = options.preserve
        self._folders: list[tuple[bytes, Attributes]] = []

    def made(self, target: bytes, status: os.stat_result, *, is_new: bool) -> None:
        """Take note of a folder."""
        permissions = stat.S_IMODE(status.st_mode) & PERMISSIONS
        if self._preserve:
            times = (whole_seconds(status.st_atime), whole_seconds(status.st_mtime))
            self._folders.append((target, Attributes(permissions=permissions, times=times)))
        elif is_new and permissions & ENTERABLE != ENTERABLE:
            self._folders.append((target, Attributes(permissions=permissions)))

    def finish(self, failure: Callable[[bytes, bytes, str], None]) -> None:
        """Set them, the deepest first."""
        while self._folders:
            some = [self._folders.pop() for _ in range(min(AT_ONCE, len(self._folders)))]
            results = self._node.call_all([partial(_set, target=each[0], attributes=each[1]) for each in some])
            for (target, _), result in zip(some, results, strict=True):
                if isinstance(result, SftpStatus):
                    failure(target, target, explain(result, "permissions and times of the folder cannot be set"))


async def _set(sftp: SftpConnection, target: bytes, attributes: Attributes) -> None:
    if attributes.times is None and attributes.permissions is not None:  # what the node's umask left of them
        made = (await sftp.stat(target)).permissions
        attributes = Attributes(permissions=attributes.permissions & (PERMISSIONS if made is None else made))
    await sftp.setstat(target, attributes)
