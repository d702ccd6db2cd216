"""What a measurement gives: rows of one table, each with the same over plain TCP, and with its target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class BenchError(Exception):
    """Why a measurement cannot be made; the text is for a person."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound for one value of a row: what went through the tunnel, its ratio to plain TCP, or what it adds to that."""

    bound: float
    of: Literal["tunnel", "ratio", "added"] = "tunnel"
    at_least: bool = False

    def text(self, unit: str) -> str:
        sign = "≥" if self.at_least else "≤"
        if self.of == "ratio":
            return f"ratio {sign} {self.bound:g}"
        return f"{'added ' if self.of == 'added' else ''}{sign} {self.bound:g} {unit}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    tunnel: float
    plain: float | None = None
    """The same without the tunnel; None where there is no such thing."""
    plain_note: str = ""
    """What ``plain`` is, if not plain TCP."""
    unit: str
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        return self.tunnel / self.plain if self.plain else None

    @property
    def added(self) -> float | None:
        return None if self.plain is None else self.tunnel - self.plain

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        value = {"tunnel": self.tunnel, "ratio": self.ratio, "added": self.added}[self.target.of]
        assert value is not None
        return value >= self.target.bound if self.target.at_least else value <= self.target.bound

    def as_json(self) -> dict[str, object]:
        return {
            "what": self.what,
            "tunnel": self.tunnel,
            "plain": self.plain,
            "unit": self.unit,
            "ratio": self.ratio,
            "added": self.added,
            "target": self.target and self.target.text(self.unit),
            "met": self.is_met,
        }


def table(rows: Sequence[Row], *, with_targets: bool = True) -> str:
    """Give the rows as Markdown."""
    lines = ["| what | through the tunnel | plain TCP | ratio |", "|---|---:|---:|---:|"]
    if with_targets:
        lines = [lines[0] + " target | met |", lines[1] + "---|---|"]
    for row in rows:
        plain = (
            "" if row.plain is None else f"{_short(row.plain)} {row.unit}{row.plain_note and f' ({row.plain_note})'}"
        )
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        line = f"| {row.what} | {_short(row.tunnel)} {row.unit} | {plain} | {ratio} |"
        if with_targets:
            line += f" {row.target.text(row.unit) if row.target else ''} | {_verdict(row)} |"
        lines.append(line)
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    if row.target is None:
        return ""
    value = f", {_short(row.added)} {row.unit}" if row.target.of == "added" and row.added is not None else ""
    return ("yes" if row.is_met else "**no**") + value


def _short(value: float) -> str:
    """Give three digits, or all of a whole part that has more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
