"""What all files of one copy share: how to copy, what the node's shell can do, and whom to tell."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Protocol

from ssm_proxy.file_copy.board import Job, Range
from ssm_proxy.file_copy.checksums import Shell
from ssm_proxy.file_copy.names import shown
from ssm_proxy.file_copy.values import CopyOptions, FileError, FileOutcome, FileState, SourceFile
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus


class LinkFace(Protocol):
    """What a file's copy needs of the link that works on it."""

    @property
    def sftp(self) -> SftpConnection: ...

    @property
    def shell(self) -> Shell: ...

    async def handle(self, owner: object, path: bytes, flags: int) -> bytes:
        """Give an open handle of a file; opened once for each link, and closed when its owner is over."""
        ...


class SplitCopy(Job, Protocol):
    """What the links do with one large file, or with a stream. Each may be called again after a link was lost in it.

    They raise FileError, SftpStatus or OSError where it cannot be copied.
    """

    is_over: bool

    @property
    def shown_source(self) -> str: ...

    async def prepare(self, link: LinkFace) -> None:
        """Do what comes before the first range."""
        ...

    async def copy_range(self, link: LinkFace, piece: Range) -> int:
        """Copy a piece; give the bytes that it was."""
        ...

    async def finish(self, link: LinkFace) -> None:
        """Verify it, put it in place.

        Raises:
            AgainNeeded: pieces have to be copied again.
        """
        ...

    async def abandon(self, link: LinkFace) -> None:
        """Remove what there is of it."""
        ...

    def close(self) -> None: ...

    def outcome(self) -> FileOutcome: ...

    def failure(self, error: Exception) -> FileOutcome: ...


class FileCopy(SplitCopy, Protocol):
    """What they do with any file."""

    file: SourceFile

    @property
    def path_on_node(self) -> bytes:
        """What is compared before a file that was copied whole is put in place."""
        ...

    @property
    def digest(self) -> bytes:
        """Of what was copied whole."""
        ...

    @property
    def checked_path(self) -> bytes:
        """What is compared, on the node, to see whether the file is there already."""
        ...

    async def copy_whole(self, link: LinkFace) -> bool:
        """Copy it, and put it in place unless it is to be verified first, which is the answer."""
        ...

    async def is_there_already(self, link: LinkFace) -> bool:
        """Whether the target has the size of the source, so that it is worth comparing."""
        ...

    def local_digest(self) -> bytes: ...

    async def digest_read_back(self, link: LinkFace) -> bytes: ...

    async def is_settled(self, link: LinkFace) -> bool:
        """Whether a link that was lost meanwhile has put it in place."""
        ...

    async def put_settled(self, link: LinkFace) -> None: ...

    async def keep_attributes(self, link: LinkFace) -> None: ...

    def there_already(self) -> FileOutcome: ...


class AgainNeeded(Exception):
    """A file cannot be finished yet: pieces of it have to be copied again. Met by the link, never shown."""


class BecameLarge(Exception):
    """A file is not small any more: it has to be copied in ranges, not read whole. Met by the link, never shown."""


class Context:
    """Shared by all links of one copy; thread-safe.

    Args:
        options: how to copy.
        is_striped: whether several sessions may work on one file.
    """

    def __init__(self, options: CopyOptions, *, is_striped: bool) -> None:
        self.options = options
        self.is_striped = is_striped
        self.has_shell = True
        """Whether the node computes checksums, as far as is known."""
        self._lock = threading.Lock()
        self.done_bytes = 0
        self.moved_bytes = 0
        self.total_bytes = 0
        self.total_files = 0
        self.current = ""
        self.outcomes: list[FileOutcome] = []
        self.notices: list[str] = []
        self.parts: set[bytes] = set()
        """Unfinished large files, by the path of what there is of them."""
        self._small_parts: set[bytes] = set()  # of this machine: nobody resumes them
        self._told_no_shell = False
        self._useless: list[SplitCopy] = []

    def wants_checksum(self, *, is_split: bool) -> bool:
        if self.options.checksum is None:
            return is_split and self.is_striped
        return self.options.checksum

    def counted(self, size: int) -> None:
        """Take note of a file that will be copied."""
        with self._lock:
            self.total_bytes += size
            self.total_files += 1

    def counted_more(self, size: int) -> None:
        """Take note that a file is larger than it was taken to be."""
        with self._lock:
            self.total_bytes += size

    def moved(self, size: int) -> None:
        """Take note of bytes that have arrived."""
        with self._lock:
            self.done_bytes += size
            self.moved_bytes += size

    def undone(self, size: int) -> None:
        """Take note of bytes that have to be copied again."""
        with self._lock:
            self.done_bytes -= size

    def found(self, size: int) -> None:
        """Take note of bytes that were there already."""
        with self._lock:
            self.done_bytes += size

    def notice(self, text: str) -> None:
        """Say something to a person."""
        with self._lock:
            self.notices.append(text)

    def no_shell(self, shell: Shell) -> None:
        """Take note that the node, which was asked by this shell, does not compute checksums."""
        why = shell.refusal or "the node computes no checksums (no shell, or none of sha256sum, shasum, openssl)"
        with self._lock:
            self.has_shell = False
            if not self._told_no_shell:
                self._told_no_shell = True
                self.notices.append(f"{why}; what was copied is read back instead")

    def began(self, source: str) -> None:
        with self._lock:
            self.current = source

    def tell(self, outcome: FileOutcome) -> None:
        with self._lock:
            self.outcomes.append(outcome)

    def take_outcomes(self) -> tuple[list[FileOutcome], list[str]]:
        with self._lock:
            taken = self.outcomes, self.notices
            self.outcomes, self.notices = [], []
            return taken

    def keep_part(self, path: bytes) -> None:
        with self._lock:
            self.parts.add(path)

    def leave_part(self, source: str, path: bytes) -> None:
        """Take note that an earlier part is not used, and stays."""
        with self._lock:
            self.parts.discard(path)
            self.notices.append(
                f"{source}: what is there already cannot be compared; {shown(path)} is left, and all is copied anew"
            )

    def parts_in_use(self) -> set[bytes]:
        """Give the parts that this copy itself writes to."""
        with self._lock:
            return set(self.parts)

    def begin_useless(self, job: SplitCopy) -> None:
        """Take note of a copy of which nothing is of use unless it comes to its end."""
        with self._lock:
            self._useless.append(job)

    def take_useless(self) -> list[SplitCopy]:
        """Give those that have not come to their end, for somebody to remove what there is of them."""
        with self._lock:
            taken, self._useless = self._useless, []
            return [job for job in taken if not job.is_over]

    def small_part(self, path: bytes) -> None:
        """Take note of a part here that is of no use to anybody if the copy ends now."""
        with self._lock:
            self._small_parts.add(path)

    def remove_small_parts(self) -> None:
        with self._lock:
            parts, self._small_parts = self._small_parts, set()
        for path in parts:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def drop_part(self, path: bytes | None) -> None:
        with self._lock:
            if path is not None:
                self.parts.discard(path)
                self._small_parts.discard(path)


def outcome_of(file: SourceFile, state: FileState, **details: Any) -> FileOutcome:
    """Give the outcome of a file."""
    return FileOutcome(source=shown(file.source), target=shown(file.target), state=state, **details)


def explain(error: Exception, what: str) -> str:
    """Say for a person why one file cannot be copied.

    Args:
        error: of the file system here, or of the node's.
        what: was tried; for errors that say nothing.
    """
    if isinstance(error, FileError):
        return error.text
    if isinstance(error, SftpStatus):
        known = {
            packets.NO_SUCH_FILE: "no such file or folder on the node",
            packets.PERMISSION_DENIED: "permission denied on the node",
            packets.UNSUPPORTED: "the node's SFTP server cannot do this",
        }
        if error.code in known:
            return f"{what}: {known[error.code]}"
        text = error.message.strip().rstrip(".") or "failure"
        return f"{what}: the node says: {text}"
    if isinstance(error, OSError):
        return f"{what}: {error.strerror or error}"
    return f"{what}: {error}"
