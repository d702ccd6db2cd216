r"""Patterns as the glob(3) of scp and sftp takes them: ``*``, ``?``, ``[…]``, ``[!…]``, each quoted by ``\``."""

from __future__ import annotations

import os
from typing import NamedTuple

SPECIAL = frozenset(b"*?[\\")
"""A path without any of these is no pattern."""


class _Fit(NamedTuple):
    """What one character may be."""

    ranges: tuple[tuple[str, str], ...]
    is_negated: bool = False

    def takes(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges) != self.is_negated


_Unit = tuple[str, bool]
"""A character of the pattern, and whether it was quoted."""
_ANY = _Fit((), is_negated=True)
_STAR = None


class Pattern:
    """One part of a path.

    Args:
        text: without slashes.
    """

    def __init__(self, text: bytes) -> None:
        units = _units(os.fsdecode(text))
        self.literal = os.fsencode("".join(character for character, _ in units))
        """The name it stands for, if it is not magic."""
        self.is_magic = False
        """Whether it may stand for several names."""
        self._takes_dot = self.literal.startswith(b".")
        self._fits: list[_Fit | None] = []
        index = 0
        while index < len(units):
            unit = units[index]
            index += 1
            if unit == ("*", False):
                fit = _STAR
            elif unit == ("?", False):
                fit = _ANY
            elif unit == ("[", False) and (end := _end_of_set(units, index)) is not None:
                fit = _set(units[index:end])
                index = end + 1
            else:
                self._fits.append(_Fit(((unit[0], unit[0]),)))
                continue
            self.is_magic = True
            self._fits.append(fit)

    def matches(self, name: bytes) -> bool:
        """Whether a name is meant; one that begins with a dot only if the pattern does."""
        if name.startswith(b".") and not self._takes_dot:
            return False
        text = os.fsdecode(name)
        at = position = 0
        star: int | None = None
        taken = 0  # up to here by the last star: none before it ever has to take more
        while position < len(text):
            fit = self._fits[at] if at < len(self._fits) else None
            if fit is not None and fit.takes(text[position]):
                at, position = at + 1, position + 1
            elif at < len(self._fits) and fit is _STAR:
                star, taken = at, position
                at += 1
            elif star is not None:
                taken += 1
                at, position = star + 1, taken
            else:
                return False
        return all(fit is _STAR for fit in self._fits[at:])


def _units(text: str) -> list[_Unit]:
    units: list[_Unit] = []
    characters = iter(text)
    for character in characters:
        # At the very end there is nothing to quote.
        units.append((next(characters, "\\"), True) if character == "\\" else (character, False))
    return units


def _end_of_set(units: list[_Unit], start: int) -> int | None:
    """Give where the bracket is that ends a set; the first character of a set never does."""
    first = start + (units[start : start + 1] == [("!", False)])
    return next((index for index in range(first + 1, len(units)) if units[index] == ("]", False)), None)


def _set(units: list[_Unit]) -> _Fit:
    is_negated = units[0] == ("!", False)
    members = units[is_negated:]
    ranges: list[tuple[str, str]] = []
    while members:
        is_range = len(members) > 2 and members[1] == ("-", False)
        ranges.append((members[0][0], members[2 if is_range else 0][0]))
        members = members[3 if is_range else 1 :]
    return _Fit(tuple(ranges), is_negated)
