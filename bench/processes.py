"""What Linux knows of a process that is not ours to instrument: processor time, memory, children."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def stat_fields(pid: int) -> list[str]:
    """Give the fields of /proc/PID/stat from the state on: what stands before may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Give the processes that stem from this one."""
    parents: dict[int, int] = {}
    for each in all_pids():
        with contextlib.suppress(OSError):
            parents[each] = int(stat_fields(each)[1])
    found = [pid]
    for parent in found:  # grows meanwhile
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be collected does not."""
    try:
        return stat_fields(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """Give the processor time of all threads of a process since its start, exec and fork included.

    The number of the clock is what clock_getcpuclockid(3) gives; /proc has whole hundredths only.
    """
    return time.clock_gettime(~pid << 3 | 2)


def busy_seconds() -> float:
    """Give the processor time of everything on this machine since it started."""
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts = map(
        int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Give the most memory that a process had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory any more")
