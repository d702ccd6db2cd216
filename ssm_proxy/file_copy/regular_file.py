"""What the copy of a regular file is in both directions: its ranges, its repairs, what becomes of it."""

from __future__ import annotations

import threading

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.context import AgainNeeded, BecameLarge, Context, outcome_of
from ssm_proxy.file_copy.names import shown
from ssm_proxy.file_copy.ranges import RangeList
from ssm_proxy.file_copy.values import SPLIT_BYTES, FileError, FileOutcome, FileState, SourceFile

PERMISSIONS = 0o777
"""What is copied: not set-uid, set-gid and sticky bits, which mean something else for another owner."""
MOST_REPAIRS = 3
"""How often what differs after a copy is copied again."""


class RegularFile:
    """A file of whatever size.

    Args:
        file: what is copied, and where to.
        context: shared by all files.
    """

    def __init__(self, file: SourceFile, context: Context) -> None:
        self.file = file
        self._context = context
        self._lock = threading.Lock()
        self._ranges = RangeList()
        self._size = file.size
        self._is_split = file.size > SPLIT_BYTES
        self._repairs = 0
        self._is_calm = False
        self._is_verified = False
        self._is_there = False
        self._digest = b""
        self.is_over = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def shown_source(self) -> str:
        return shown(self.file.source)

    @property
    def is_split(self) -> bool:
        """Whether it is copied in ranges."""
        return self._is_split

    @property
    def wants_check(self) -> bool:
        return self._context.options.resume and not self.file.is_new

    @property
    def digest(self) -> bytes:
        """Of what was copied, for a file that was copied whole."""
        return self._digest

    def _check_small(self, size: int) -> None:
        """Check what a file that is to be read whole has become.

        Raises:
            BecameLarge: too large for that. Nothing may have been written, or it is written anew.
        """
        if size > SPLIT_BYTES:
            self._is_split = True
            raise BecameLarge

    def _grew(self, size: int) -> None:
        if size != self._size:
            self._context.counted_more(size - self._size)
            self._size = size

    # --- ranges -----------------------------------------------------------------------------------------------------

    def take_range(self) -> Range | None:
        with self._lock:
            return self._ranges.take()

    def give_back(self, piece: Range) -> None:
        with self._lock:
            self._ranges.give_back(piece)

    @property
    def has_all_ranges(self) -> bool:
        with self._lock:
            return self._ranges.is_empty

    def _set(self, stretches: list[tuple[int, int]]) -> None:
        with self._lock:
            self._ranges.set(stretches)

    def _repair(self, bad: list[tuple[int, int]]) -> None:
        """Have stretches copied again that differ.

        Raises:
            AgainNeeded: they will be.
            FileError: that was done often enough.
        """
        self._repairs += 1
        if self._repairs > MOST_REPAIRS:
            raise FileError(
                "it changes all the time, or what arrives is not what was sent: the checksums still differ after "
                f"{MOST_REPAIRS} repairs"
            )
        self._context.undone(sum(each[1] for each in bad))
        self._set(bad)
        raise AgainNeeded

    # --- the end ----------------------------------------------------------------------------------------------------

    def outcome(self) -> FileOutcome:
        return outcome_of(
            self.file,
            FileState.UNCHANGED if self._is_there else FileState.COPIED,
            size=self._size,
            verified=self._is_verified,
        )

    def there_already(self) -> FileOutcome:
        """Give the outcome of a file that was compared and needs no copy."""
        self._is_there = self._is_verified = True
        self._context.found(self._size)
        return self.outcome()
