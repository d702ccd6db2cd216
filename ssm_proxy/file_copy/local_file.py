"""Files of this machine: one that several links use at once, and what is at the target of a download."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from typing import NamedTuple

from ssm_proxy.file_copy.names import is_part_of
from ssm_proxy.file_copy.values import FileError

_STEP_BYTES = 64 * 1024


CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class SharedFile:
    """An open file; used at given offsets, from several threads.

    A link that was too slow may still want to read or write when another one has finished the file and its descriptor's
    number is that of some other file: so nothing is done after ``close``.

    Args:
        fd: from now on ours.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._is_closed = False

    def read_at(self, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes; less only at the end of the file.

        Raises:
            FileError: it is closed.
        """
        with self._lock:
            self._check()
            data = os.pread(self._fd, size, offset)
            while data and len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def read_all(self, limit: int) -> bytes:
        """Read the whole file, however large it says it is.

        Raises:
            FileError: it is closed, or larger than ``limit``.
        """
        data = self.read_at(0, min(limit, self.stat().st_size))
        while more := self.read_at(len(data), _STEP_BYTES):
            data += more
            if len(data) > limit:
                raise FileError("it grows while it is read")
        return data

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of it.

        Raises:
            FileError: it is closed.
        """
        with self._lock, memoryview(data) as view:
            self._check()
            written = 0
            while written < len(view):
                written += os.pwrite(self._fd, view[written:], offset + written)

    def truncate(self, size: int) -> None:
        with self._lock:
            self._check()
            os.ftruncate(self._fd, size)

    def stat(self) -> os.stat_result:
        with self._lock:
            self._check()
            return os.fstat(self._fd)

    def data_stretches(self, size: int) -> list[tuple[int, int]]:
        """Give offset and size of what is data; what is between them are holes."""
        if not hasattr(os, "SEEK_DATA"):
            return [(0, size)]
        stretches: list[tuple[int, int]] = []
        position = 0
        with self._lock:
            self._check()
            while position < size:
                try:
                    start = os.lseek(self._fd, position, os.SEEK_DATA)
                    if start >= size:  # it has grown
                        break
                    end = os.lseek(self._fd, start, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                        break
                    return [(0, size)]
                stretches.append((start, min(end, size) - start))
                position = end
        return stretches

    def flush(self) -> None:
        """Learn of writes that have failed since.

        File systems of the network (NFS, FUSE) and quotas tell of them when a descriptor is closed, and of any: so it
        is another one, and the lock on this one is kept.

        Raises:
            FileError: it is closed.
            OSError: a write has failed.
        """
        with self._lock:
            self._check()
            os.close(os.dup(self._fd))

    def close(self) -> None:
        """Close it; harmless if repeated."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._fd)

    def _check(self) -> None:
        if self._is_closed:
            raise FileError("it is over already")


class LocalTarget(NamedTuple):
    """Where a file goes, and what is there now."""

    path: bytes
    """Symbolic links are followed, as by everything that writes to a file."""
    existing: os.stat_result | None


def look_at_local_target(target: bytes) -> LocalTarget:
    """Find out what a download would replace.

    Raises:
        FileError: it is something that a file must not replace, or nobody may write to it.
        OSError: as the system says.
    """
    path = os.path.realpath(target) if os.path.islink(target) else target
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return LocalTarget(path, None)
    if stat.S_ISDIR(found.st_mode):
        raise FileError("there is a folder of that name here")
    if not stat.S_ISREG(found.st_mode):
        raise FileError("what is there is no regular file, and is left alone; - writes to standard output")
    if not os.access(path, os.W_OK):
        raise FileError("the file here is read-only")
    return LocalTarget(path, found)


def find_local_part(target: bytes) -> bytes | None:
    """Give the largest part that an interrupted copy to the same target left."""
    folder = os.path.dirname(target)
    largest: tuple[int, bytes] | None = None
    with os.scandir(folder or b".") as entries:
        for entry in entries:
            if is_part_of(entry.name, target) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid != os.geteuid():  # what becomes the target must be nobody else's to change
                    continue
                # Of the data: a part has the size of the whole from the beginning.
                size = getattr(status, "st_blocks", 0)
                if largest is None or size > largest[0]:
                    largest = size, entry.name
    return None if largest is None else os.path.join(folder, largest[1])


def open_part(part: bytes) -> int:
    """Open a part that is there, although it may be of a read-only file: the permissions are those it will have.

    Raises:
        OSError: it is not what it was taken for.
    """
    reading = os.open(part, os.O_RDONLY | os.O_NONBLOCK | CAREFUL)
    try:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "it is no part of ours")
        os.fchmod(reading, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        try:
            return os.open(part, os.O_RDWR | CAREFUL)
        finally:
            os.fchmod(reading, stat.S_IMODE(status.st_mode))
    finally:
        os.close(reading)


def is_ours_alone(fd: int) -> bool:
    """Say that a part is in use; give whether it was not. A copy that still runs must not write into another's file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def open_source(path: bytes) -> SharedFile:
    """Open a file here; what was put in its place since it was found may be a FIFO, and must not hold us up."""
    source = SharedFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    if not stat.S_ISREG(source.stat().st_mode):
        source.close()
        raise FileError("it is no regular file any more, and was left out")
    return source


def has_changed(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
