"""Turns a fuzzer's bytes into choices: numbers, texts, JSON. Behind the end are zeros, so every input is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

EDGES = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30)
TEXTS = ("", "a", '"\\', "\ud800", "\x00\x1b[2J\r\n", "é\u202e", "x" * 600, "Port", "null", "SessionType")
_DEEPEST = 6


class Choices:
    """Reads from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def is_over(self) -> bool:
        return self._position >= len(self._data)

    def byte(self) -> int:
        position = self._position
        self._position = position + 1
        return self._data[position] if position < len(self._data) else 0

    def u16(self) -> int:
        return self.byte() << 8 | self.byte()

    def below(self, limit: int) -> int:
        """Give a number from 0 to ``limit`` - 1, which is at most 256."""
        return self.byte() % limit

    def one_of(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def integer(self) -> int:
        """Give a small number, an edge of some type, or any 64 bits with a sign."""
        kind = self.byte()
        if kind < 128:
            return kind - 8
        if kind < 192:
            return EDGES[kind % len(EDGES)]
        return int.from_bytes(self.take(8).ljust(8, b"\0"), "big", signed=True)

    def take(self, size: int) -> bytes:
        data = self._data[self._position : self._position + size]
        self._position += size
        return data

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def text(self) -> str:
        kind = self.byte()
        if kind < 128:
            return TEXTS[kind % len(TEXTS)]
        return self.take(kind & 31).decode("utf-8", "surrogateescape")

    def json(self, members: Sequence[str], depth: int = 0) -> Any:
        """Give any JSON value, objects mostly with members of these names."""
        kind = self.below(8) if depth < _DEEPEST else self.below(5)
        if kind == 0:
            return None
        if kind == 1:
            return bool(self.below(2))
        if kind == 2:
            return self.integer()
        if kind == 3:
            return self.one_of((0.0, -1.5, 1e308, float("inf"), float("nan")))
        if kind == 4:
            return self.text()
        if kind == 5:
            return [self.json(members, depth + 1) for _ in range(self.below(4))]
        return self.object(members, depth)

    def object(self, members: Sequence[str], depth: int = 0) -> dict[str, Any]:
        """Give an object; a name may be in another case, or none of the list."""
        values = {}
        for _ in range(self.below(6)):
            name = self.one_of(members)
            style = self.below(8)
            if style == 0:
                name = name.upper()
            elif style == 1:
                name = self.text()
            values[name] = self.json(members, depth + 1)
        return values
