"""What a copy is asked for, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ssm_proxy.errors import CopyError

SPLIT_BYTES = 1024 * 1024
"""Files larger than this are cut into ranges that different sessions copy."""
RANGE_BYTES = 128 * 1024
"""An eighth of a second of one session at the agent's pace: how much later than the others the last one may be done."""
GROWTH_LIMIT = 64 * SPLIT_BYTES
"""A small file that has grown by so much while it was read is given up."""
MOST_SESSIONS = 8
"""Opened unless the user says otherwise."""
SESSIONS_LIMIT = 32


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """How to copy."""

    recursive: bool = False
    """Copy folders, too."""
    preserve: bool = False
    """Keep permissions and times."""
    resume: bool = False
    """Go on with the parts that an interrupted copy left, after a check of them; leave out files that are equal."""
    checksum: bool | None = None
    """Compare SHA-256 of each file at the end; None: of those larger than `SPLIT_BYTES`, unless ``sessions`` is 1."""
    sessions: int | None = None
    """At most so many; None: as many as are worth it, up to 8."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One regular file to be copied."""

    source: bytes
    target: bytes
    size: int
    """Bytes, when it was looked at."""
    permissions: int
    times: tuple[int, int]
    """Last access and last change; seconds since 1970."""
    is_new: bool = False
    """Whether the target's folder was made by this copy, so that there can be no such file yet."""


class FileState(str, Enum):
    COPIED = "copied"
    UNCHANGED = "unchanged"
    """It was there already, and compared equal (``resume``)."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class FileOutcome:
    """What has become of one file."""

    source: str
    target: str
    state: FileState
    size: int = 0
    """Bytes of the file."""
    verified: bool = False
    """Whether SHA-256 was compared after the copy."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a copy is: all of it, also if it is from several nodes. What is done is never more than the total."""

    total_bytes: int
    """Of all files that have been found until now."""
    done_bytes: int
    """What is in its place, or at least written; what was there already (``resume``) counts too."""
    total_files: int
    """What cannot be copied, a folder or a source that is not there, counts as a file, as in the result's failures."""
    done_files: int
    """Copied, unchanged, or failed."""
    sessions: int
    """That work now."""
    is_counting: bool
    """Whether more files may be found."""
    current: str
    """The file that was begun last."""
    outcome: FileOutcome | None = None
    """A file that has just come to its end."""
    notice: str | None = None
    """A line for a person."""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class CopyResult:
    """What a copy has come to."""

    copied_bytes: int
    """Of files, that were copied; again, if they had changed or were damaged. Not those read to compare them alone."""
    total_bytes: int
    """Of all files that are in place now."""
    files: int
    """Copied."""
    unchanged: int
    """That were there already."""
    failures: list[FileOutcome] = field(default_factory=list)
    seconds: float
    sessions: int
    """The most that worked at once."""

    @property
    def megabytes_per_second(self) -> float:
        return self.copied_bytes / max(self.seconds, 1e-6) / 1e6


class FileError(Exception):
    """One file cannot be copied; the others can. Never leaves this package.

    Args:
        text: why, for a person.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class SourceError(CopyError):
    """One source cannot be copied; others may.

    Args:
        text: why, for a line that names the source.
    """

    def __init__(self, message: str, *, text: str, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.text = text


class CopyIncomplete(CopyError):
    """Something was not copied.

    Args:
        result: what was, and what was not.
    """

    def __init__(self, message: str, *, result: CopyResult, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.result = result


class NobodyReads(CopyError):
    """Whoever read the standard output that a file was copied to has gone, as ``head`` does."""


def whole_seconds(moment: float) -> int:
    """Give a time of the local file system in SFTP's unit."""
    return int(moment // 1)
