"""``ssm-proxy cp``: large files over 1 to 16 sessions, and many small ones; scp and rsync through the proxy beside it.

Each figure is of a whole command, from its start to its end: connecting, verifying and renaming count.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab import MIB, NODE, STEP_TIMEOUT, Lab, Route
from bench.processes import busy_seconds, peak_bytes
from bench.rows import BenchError, Row, Target

SMALL_BYTES = 4096
SAMPLE_S = 0.02
"""How often the memory of a command is looked at: what wait4 tells holds that of whoever started it, too."""
SCALING_PACE = "8ms"
"""A pace at which neither the agents nor the processors are the limit, but the sessions."""
_TARGETS = {("real", 8): 5.0, (SCALING_PACE, 8): 7.0, (SCALING_PACE, 16): 13.0}
_PACES = {"real": "agent's real pace", "none": "no pace", SCALING_PACE: "8 ms pace"}


@dataclass(frozen=True, kw_only=True)
class CopyAmount:
    """How much is copied."""

    size_mib: int
    scaling_mib: int
    sessions: Sequence[int]
    scaling_sessions: Sequence[int]
    small_files: int
    rounds: int


def measure_copies(lab: Lab, amount: CopyAmount) -> list[Row]:
    """Measure all of it."""
    rows: list[Row] = []
    for pace in ("real", "none"):
        with lab.tunnel(pacing=pace) as route:
            bench = _Copies(lab, route, pace)
            rows += bench.large(amount.size_mib * MIB, amount.sessions, with_scp=True)
    with lab.tunnel(pacing=SCALING_PACE) as route:
        bench = _Copies(lab, route, SCALING_PACE)
        rows += bench.large(amount.scaling_mib * MIB, amount.scaling_sessions, with_scp=False, ways=("download",))
    with lab.tunnel(pacing="real") as route:
        rows += _Copies(lab, route, "real").small(amount.small_files, amount.rounds)
    return rows


class _Copies:
    """Copies between here and the node over one route."""

    def __init__(self, lab: Lab, route: Route, pace: str) -> None:
        self._lab = lab
        self._route = route
        self._pace = pace
        self._folder = lab.folder / f"copies-{pace}"
        self._folder.mkdir(exist_ok=True)
        self._peak = 0
        self._cores = (0.0, 0.0)
        self._targets = 0

    def large(
        self, size: int, sessions: Sequence[int], *, with_scp: bool, ways: Sequence[str] = ("download", "upload")
    ) -> list[Row]:
        source = self._folder / "source"
        with source.open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
        rows = []
        for way in ways:
            alone = self._rate(size, self._scp(way, source)) if with_scp else None
            one: float | None = None
            for count in [*([None] if with_scp else []), *sessions]:
                options = [] if count is None else ["--sessions", str(count)]
                rate = self._rate(size, self._cp(way, source, *options))
                bound = _TARGETS.get((self._pace, count)) if way == "download" and count is not None else None
                rows.append(
                    Row(
                        what=_large_name(way, self._pace, count),
                        tunnel=rate,
                        plain=alone if one is None else one,
                        plain_note="scp through the proxy" if one is None else "1 session",
                        unit="MB/s",
                        target=None if bound is None else Target(of="ratio", bound=bound, at_least=True),
                    )
                )
                one = rate if count is not None and one is None else one
                if way == "download" and self._pace == "real":
                    rows.append(
                        Row(
                            what=f"processor: {_large_name(way, self._pace, count)}",
                            tunnel=self._cores[0],
                            plain=self._cores[1],
                            plain_note="all processes",
                            unit="cores",
                        )
                    )
            if self._pace != SCALING_PACE:
                rows.append(
                    Row(
                        what=f"peak memory of cp, {way}, {_PACES[self._pace]}, {sessions[-1]} sessions",
                        tunnel=self._peak / 1e6,
                        unit="MB",
                        target=Target(bound=120),
                    )
                )
        source.unlink()
        return rows

    def small(self, count: int, rounds: int) -> list[Row]:
        tree = self._folder / "tree"
        for index in range(count):
            folder = tree / f"{index % 20}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}").write_bytes(os.urandom(SMALL_BYTES))
        rows = []
        for way in ("upload", "download"):
            seconds: dict[str, list[float]] = {"cp": [], "scp -r": [], "rsync": []}
            for _ in range(rounds):  # in turn, so that a busy moment meets all
                seconds["cp"].append(self._seconds(self._cp(way, tree, "-r"), tree))
                seconds["scp -r"].append(self._seconds(self._scp(way, tree, "-r"), tree))
                seconds["rsync"].append(self._seconds(self._rsync(way, tree), tree))
            for other, bound in (("scp -r", 0.2), ("rsync", None)):
                rows.append(
                    Row(
                        what=_small_name(way, count, other),
                        tunnel=statistics.median(seconds["cp"]),
                        plain=statistics.median(seconds[other]),
                        plain_note=other,
                        unit="s",
                        target=None if bound is None else Target(of="ratio", bound=bound),
                    )
                )
        shutil.rmtree(tree)
        return rows

    # --- commands ---------------------------------------------------------------------------------------------------

    def _ends(self, way: str, source: Path) -> tuple[str, str]:
        """Give source and target as the commands are given them; the target is new.

        Nothing is removed between two measurements: a file system may be slow to make a file where many have just been
        removed (ext4 without a journal took ten times as long), which would be measured.
        """
        self._targets += 1
        target = self._target
        return (f"{NODE}:{source}", str(target)) if way == "download" else (str(source), f"{NODE}:{target}")

    @property
    def _target(self) -> Path:
        return self._folder / f"target{self._targets}"

    def _cp(self, way: str, source: Path, *options: str) -> list[str]:
        return [str(self._lab.proxy), "cp", "-q", "-F", str(self._route.config), *options, *self._ends(way, source)]

    def _scp(self, way: str, source: Path, *options: str) -> list[str]:
        return ["scp", "-q", "-F", str(self._route.config), *options, *self._ends(way, source)]

    def _rsync(self, way: str, source: Path) -> list[str]:
        begin, end = self._ends(way, source)
        return ["rsync", "-r", "-e", shlex.join(["ssh", "-F", str(self._route.config)]), f"{begin}/", f"{end}/"]

    def _rate(self, size: int, command: list[str]) -> float:
        return size / self._seconds(command, self._folder / "source") / 1e6

    def _seconds(self, command: list[str], source: Path) -> float:
        """Run a command; give its time, and remember its memory, its processor time and that of all processes."""
        peak = 0
        before = _children_seconds(), busy_seconds()
        with tempfile.TemporaryFile() as said:
            began = time.perf_counter()
            with subprocess.Popen(
                command, env=self._route.environment, stdin=subprocess.DEVNULL, stderr=said
            ) as process:
                while process.poll() is None:
                    with contextlib.suppress(OSError, ValueError):  # it has just ended
                        peak = max(peak, peak_bytes(process.pid))
                    time.sleep(SAMPLE_S)
            seconds = time.perf_counter() - began
            self._cores = (_children_seconds() - before[0]) / seconds, (busy_seconds() - before[1]) / seconds
            said.seek(0)
            errors = said.read()
        if process.returncode != 0 or seconds > STEP_TIMEOUT:
            raise BenchError(f"{shlex.join(command)} failed ({process.returncode}): {errors.decode()}")
        self._peak = peak
        _compare(source, self._target)
        if source.is_file():  # one alone does not slow down what follows, and may be large
            self._target.unlink()
        return seconds


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _compare(source: Path, target: Path) -> None:
    if source.is_dir():
        if _names(source) != _names(target):
            raise BenchError("not all files arrived")
        pairs = [(source / name, target / name) for name in _names(source)]
    else:
        pairs = [(source, target)]
    for one, other in pairs:
        if one.is_file() and not filecmp.cmp(one, other, shallow=False):
            raise BenchError("what arrived is not what was sent")


def _names(folder: Path) -> list[Path]:
    return sorted(each.relative_to(folder) for each in folder.rglob("*"))


# --- the tables ------------------------------------------------------------------------------------------------------


def _large_name(way: str, pace: str, sessions: int | None) -> str:
    how_many = "as many" if sessions is None else str(sessions)
    what = "session" if sessions == 1 else "sessions" if sessions else "sessions as it takes by itself"
    return f"cp, {way}, {_PACES[pace]}, {how_many} {what}"


def _small_name(way: str, count: int, other: str) -> str:
    return f"cp -r, {count} files of 4 KiB, {way}, beside {other}"


def summary(rows: Sequence[Row], amount: CopyAmount) -> str:
    """Give the most important figures as Markdown."""
    by_name = {row.what: row for row in rows}
    lines = [
        f"| {amount.size_mib} MiB through the emulated service, MB/s | scp | cp | "
        + " | ".join(f"cp, {count}" for count in amount.sessions)
        + " |",
        "|---|---:|---:|" + "---:|" * len(amount.sessions),
    ]
    for way, pace, what in (
        ("download", "real", "download, the agent at its real pace"),
        ("upload", "real", "upload"),
    ):
        found = [by_name[_large_name(way, pace, count)] for count in (None, *amount.sessions)]
        cells = [f"{row.tunnel:.3g}" for row in found]
        lines.append(f"| {what} | {found[1].plain:.3g} | " + " | ".join(cells) + " |")
    lines += ["", "| files of 4 KiB, seconds | cp -r | scp -r | rsync |", "|---|---:|---:|---:|"]
    for way in ("download", "upload"):
        scp, rsync = (by_name[_small_name(way, amount.small_files, other)] for other in ("scp -r", "rsync"))
        lines.append(f"| {way} of {amount.small_files} | {scp.tunnel:.3g} | {scp.plain:.3g} | {rsync.plain:.3g} |")
    return "\n".join(lines)
