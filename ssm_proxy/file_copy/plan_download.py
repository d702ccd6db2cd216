"""What there is to copy from the node to here: one file after the other, and the folders that are made for them.

The names are the node's, which is not trusted with them: each has to be one name, and nothing is ever made through a
link that came with the copy, as no links are made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ssm_proxy.errors import CopyError
from ssm_proxy.file_copy.context import explain
from ssm_proxy.file_copy.names import is_safe, join, last_name, shown
from ssm_proxy.file_copy.node import AT_ONCE, Node
from ssm_proxy.file_copy.patterns import SPECIAL, Pattern
from ssm_proxy.file_copy.plan_upload import ENTERABLE, Tell
from ssm_proxy.file_copy.regular_file import PERMISSIONS
from ssm_proxy.file_copy.values import CopyOptions, SourceError, SourceFile
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

_TELLS_NOTHING = 0o644


class _Folder(NamedTuple):
    source: bytes
    target: bytes
    attributes: Attributes
    real: bytes
    """Its path on the node without symbolic links."""
    above: _Folder | None = None

    def is_below(self, real: bytes) -> bool:
        """Whether it is in a folder, or is that folder, by the way that leads to it."""
        folder: _Folder | None = self
        while folder is not None:
            if _is_within(folder.real, real):
                return True
            folder = folder.above
        return False


def plan_download(
    node: Node, sources: Sequence[bytes], destination: bytes, options: CopyOptions, tell: Tell
) -> LocalFolderEnd:
    """Find all files, and make the folders for them.

    Args:
        node: the other side.
        sources: paths or patterns on the node.
        destination: path here.
        options: how to copy.
        tell: told of each file, as soon as its folder is there.

    Returns:
        What is left to be done when all files are in place.

    Raises:
        CopyError: the destination cannot be one.
    """
    found: list[tuple[bytes, Attributes]] = []
    for source in sources:
        try:
            matches = expand(node, source or b".")  # the home folder's contents, not the folder: as for scp
        except SourceError as error:
            tell.failure(source, destination, error.text)
            continue
        if not matches:
            tell.failure(source, destination, "no such file or folder on the node")
        found += matches
    is_folder = os.path.isdir(destination)
    if not is_folder and (len(found) > 1 or destination.endswith(b"/")):
        raise CopyError(
            f"{shown(destination)} is no folder here",
            cause="it is a file" if os.path.exists(destination) else "it is not there",
            hint="make it first, for instance with: mkdir -p FOLDER",
        )
    end = LocalFolderEnd(options)
    roots: list[_Folder] = []
    for path, attributes in found:
        try:
            name = _name_of(path) if is_folder else b""
        except SourceError as error:
            tell.failure(path, destination, error.text)
            continue
        target = join(destination, name)
        if not attributes.is_folder:
            _tell_file(tell, path, target, attributes, is_new=False, is_source=True)
            continue
        if not options.recursive:
            tell.failure(path, target, "it is a folder; -r copies folders")
            continue
        try:
            folder = _Folder(path, target, attributes, node.real_path(path))
        except SftpStatus as error:
            tell.failure(path, target, explain(error, "it cannot be read"))
            continue
        if is_folder and not name:  # what is in it is put beside the other sources, so each has a name to take
            end.made(target, attributes, is_new=False)
            (entries,) = node.list_all([path])
            roots += _enter(node, folder, entries, tell, is_new=False, are_sources=True)
        elif tell.takes(path, target):
            roots.append(folder)
    _walk(node, roots, tell, end)
    return end


def expand(node: Node, pattern: bytes) -> list[tuple[bytes, Attributes]]:
    """Give what a path or pattern stands for, with links followed: what is there under a name is no pattern.

    So for each folder on the way, the user's home among them. A backslash, too, is first taken as a part of the name.

    Raises:
        SourceError: it cannot be looked at, or whose ``~name`` it is in is not known.
    """
    path = node.absolute(pattern)
    try:
        there = node.stat(path)
    except SftpStatus as error:
        why = explain(error, "it cannot be looked at")
        raise SourceError(f"{shown(path)} cannot be looked at", text=why, cause=explain(error, "stat")) from error
    if there is not None:
        return [(path, there)]
    if not SPECIAL & set(path):
        return []
    folders = [b"/"]
    for part in [part for part in path.split(b"/") if part]:
        wanted = Pattern(part)
        if not wanted.is_magic:  # without a list of the folder, which may be allowed to nobody
            folders = _named(node, folders, part, wanted.literal)
            continue
        matches = []
        for start in range(0, len(folders), AT_ONCE):
            some = folders[start : start + AT_ONCE]
            for folder, entries in zip(some, node.list_all(some), strict=True):
                if isinstance(entries, SftpStatus):  # not there, or no folder: so nothing in it matches
                    continue
                names = {name for name, _ in entries if is_safe(name)}
                chosen = [part] if part in names else sorted(filter(wanted.matches, names))
                matches += [join(folder, name) for name in chosen]
        folders = matches
    found = []
    for path, attributes in zip(folders, _behind(node, folders), strict=True):
        if not isinstance(attributes, SftpStatus):  # what may not be looked at matches nothing, as in a shell
            found.append((path, attributes))
    return found


def _named(node: Node, folders: list[bytes], name: bytes, unquoted: bytes) -> list[bytes]:
    """Give the path of a name in each folder: as it is written, or unquoted where nothing is there under that name."""
    paths = [join(folder, name) for folder in folders]
    if name == unquoted:
        return paths
    return [
        join(folder, unquoted) if isinstance(found, SftpStatus) else path
        for folder, path, found in zip(folders, paths, _behind(node, paths), strict=True)
    ]


def _name_of(path: bytes) -> bytes:
    """Give the name of a source in the destination.

    Raises:
        SourceError: there is none that is safe to use.
    """
    name = last_name(path)
    if name and not is_safe(name):
        raise SourceError(f"{shown(path)} has a name that cannot be used here", text="its name cannot be used here")
    return name


def _tell_file(
    tell: Tell, source: bytes, target: bytes, attributes: Attributes, *, is_new: bool, is_source: bool
) -> None:
    if not attributes.is_regular:
        tell.failure(source, target, "it is no regular file, and was left out")
        return
    if is_source and not tell.takes(source, target):
        return
    permissions = _TELLS_NOTHING if attributes.permissions is None else stat.S_IMODE(attributes.permissions)
    tell.file(
        SourceFile(
            source=source,
            target=target,
            size=attributes.size or 0,
            permissions=permissions,
            times=attributes.times or (0, 0),
            is_new=is_new,
        )
    )


def _walk(node: Node, roots: list[_Folder], tell: Tell, end: LocalFolderEnd) -> None:
    """Go through the folders level by level: those of one level are listed at once."""
    level = roots
    while level:
        below: list[_Folder] = []
        for start in range(0, len(level), AT_ONCE):
            some = []
            for folder in level[start : start + AT_ONCE]:
                try:
                    some.append((folder, _make(folder.target, folder.attributes)))
                except OSError as error:
                    tell.failure(folder.source, folder.target, explain(error, "the folder cannot be made"))
            listed = node.list_all([folder.source for folder, _ in some])
            for (folder, is_new), entries in zip(some, listed, strict=True):
                end.made(folder.target, folder.attributes, is_new=is_new)
                below += _enter(node, folder, entries, tell, is_new=is_new)
        level = below


def _make(target: bytes, attributes: Attributes) -> bool:
    """Make a folder unless it is there; give whether it is new."""
    permissions = 0o755 if attributes.permissions is None else attributes.permissions & PERMISSIONS
    try:
        os.mkdir(target, permissions | ENTERABLE)
    except FileExistsError:
        if os.path.isdir(target):
            return False
        raise
    return True


def _enter(
    node: Node,
    folder: _Folder,
    entries: list[tuple[bytes, Attributes]] | SftpStatus,
    tell: Tell,
    *,
    is_new: bool,
    are_sources: bool = False,
) -> list[_Folder]:
    """Tell of a folder's files; give the folders in it. Each may be a source of its own."""
    if isinstance(entries, SftpStatus):
        tell.failure(folder.source, folder.target, explain(entries, "it cannot be read"))
        return []
    below = []
    links = [name for name, attributes in entries if attributes.is_link and is_safe(name)]
    behind = dict(zip(links, _behind(node, [join(folder.source, name) for name in links]), strict=True))
    for name, attributes in sorted(entries, key=lambda entry: entry[0]):
        source = join(folder.source, name)
        if not is_safe(name):
            tell.failure(source, folder.target, "its name could lead out of the destination; it was left out")
            continue
        target = join(folder.target, name)
        real = join(folder.real, name)
        if name in behind:
            found = behind[name]
            if isinstance(found, SftpStatus):
                text = "it is a link to nothing" if found.is_missing else explain(found, "it cannot be read")
                tell.failure(source, target, text)
                continue
            attributes = found
            if attributes.is_folder:
                try:
                    real = node.real_path(source)
                except SftpStatus as error:
                    tell.failure(source, target, explain(error, "it cannot be read"))
                    continue
                if folder.is_below(real):
                    tell.failure(source, target, "it is a link to a folder that it is in")
                    continue
        if not attributes.is_folder:
            _tell_file(tell, source, target, attributes, is_new=is_new, is_source=are_sources)
        elif not are_sources or tell.takes(source, target):
            below.append(_Folder(source, target, attributes, real, folder))
    return below


def _behind(node: Node, links: list[bytes]) -> list[Attributes | SftpStatus]:
    """Look at what links lead to."""
    found: list[Attributes | SftpStatus] = []
    for start in range(0, len(links), AT_ONCE):
        found += node.call_all([partial(_stat, path=path) for path in links[start : start + AT_ONCE]])
    return found


async def _stat(sftp: SftpConnection, path: bytes) -> Attributes:
    return await sftp.stat(path)


def _is_within(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


class LocalFolderEnd:
    """Permissions and times of folders, which are set when everything is in them."""

    def __init__(self, options: CopyOptions) -> None:
        self._preserve = options.preserve
        self._folders: list[tuple[bytes, Attributes]] = []

    def made(self, target: bytes, attributes: Attributes, *, is_new: bool) -> None:
        """Take note of a folder."""
        permissions = attributes.permissions
        if self._preserve:
            self._folders.append((target, attributes))
        elif is_new and permissions is not None and permissions & ENTERABLE != ENTERABLE:
            self._folders.append((target, Attributes(permissions=permissions)))

    def finish(self, failure: Callable[[bytes, bytes, str], None]) -> None:
        """Set them, the deepest first."""
        while self._folders:
            target, attributes = self._folders.pop()
            try:
                if attributes.times is not None:
                    os.utime(target, attributes.times)
                if attributes.permissions is not None:
                    # Without -p, what the umask left of them.
                    made = PERMISSIONS if self._preserve else os.stat(target).st_mode
                    os.chmod(target, attributes.permissions & PERMISSIONS & made)
            except OSError as error:
                failure(target, target, explain(error, "permissions and times of the folder cannot be set"))
