"""Who waits for the turn of a start, so that others can tell when a process that waited is no more.

A holder is a word: the place in which a process id means something, the id, when that process began, and a count. Only
who is in the same place can judge. Where there is no such place (no /proc, or that of others) a holder is a word by
chance, which nobody judges.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

_HOLDER: Final = re.compile(r"([0-9a-f]{8})-([1-9][0-9]{0,6})-([0-9]{1,20})-[0-9]{1,20}", re.ASCII)
_START_TIME: Final = 19
"""Where it stands in /proc/PID/stat, counted from the state, which is what follows the name."""
_ENDED: Final = "ZX"
"""Also one that nobody has collected yet, which in a container may be forever."""
_count = itertools.count()


def new_holder() -> str:
    """Name who takes a number now: a word that nobody else has."""
    place, pid = _place(), os.getpid()
    process = None if place is None else _read_process(pid)
    if process is None:
        return secrets.token_hex(8)
    return f"{place}-{pid}-{process.began}-{next(_count)}"


def find_ended(holders: Iterable[str]) -> set[str]:
    """Give those whose processes have ended for certain."""
    place = _place()
    if place is None:
        return set()
    found = ((each, _HOLDER.fullmatch(each)) for each in holders)
    return {each for each, parts in found if parts and parts[1] == place and _has_ended(int(parts[2]), parts[3])}


class _Process(NamedTuple):
    state: str
    began: str
    """In ticks since the machine was started."""


def _has_ended(pid: int, began: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's: then the id was given to another process, which /proc says if it may
        pass
    process = _read_process(pid)
    return process is not None and (process.state in _ENDED or process.began != began)


def _read_process(pid: int) -> _Process | None:
    """Read what there is to know of a process; None if that cannot be had."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()  # the name may have spaces and brackets
        return _Process(fields[0].decode("ascii"), str(int(fields[_START_TIME])))
    except (OSError, ValueError, IndexError):
        return None


def _place() -> str | None:
    """Name where a process id and the time when it began mean the same to everybody; None if that is unknown.

    Machines and containers may share a home folder.
    """
    try:
        # Also /proc must be that of this place: a process may have been given ids of its own, and not a /proc.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read(64)
        names = [os.readlink("/proc/self/ns/pid"), _time_namespace(), os.uname().nodename]
    except OSError:
        return None
    return hashlib.sha256(b"\n".join([boot, *(each.encode("utf-8", "surrogateescape") for each in names)])).hexdigest()[
        :8
    ]


def _time_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/time")
    except OSError:  # a kernel before 5.6
        return ""
