"""The ranges of one file that are still to be copied."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.values import RANGE_BYTES


class RangeList:
    """What is left of a file. Cuts stretches only as they are taken, so that its size does not matter."""

    def __init__(self) -> None:
        self._stretches: deque[Range] = deque()
        self._given_back: deque[Range] = deque()

    def set(self, stretches: Iterable[tuple[int, int]]) -> None:
        """Begin with these: offset and size each."""
        self._stretches = deque(Range(*each) for each in stretches if each[1])
        self._given_back.clear()

    def take(self) -> Range | None:
        if self._given_back:
            return self._given_back.popleft()
        if not self._stretches:
            return None
        offset, size = self._stretches.popleft()
        piece = Range(offset, min(RANGE_BYTES, size))
        if piece.size < size:
            self._stretches.appendleft(Range(offset + piece.size, size - piece.size))
        return piece

    def give_back(self, piece: Range) -> None:
        self._given_back.append(piece)

    @property
    def is_empty(self) -> bool:
        return not self._stretches and not self._given_back
