"""Uploads and downloads: rate, processor time and memory."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

from bench.lab import MIB, STEP_TIMEOUT, Connection, Lab
from bench.processes import cpu_seconds, peak_bytes
from bench.rows import BenchError, Row, Target

PACE_MB_S = 1.024
"""The agent's: 1,024 bytes, then a millisecond (docs/PROTOCOL.md section 10.1)."""


def measure_transfers(lab: Lab, size_mib: int, rounds: int) -> list[Row]:
    """Transfer ``size_mib`` each way, in so many rounds that alternate with plain TCP; rates are their medians."""
    size = size_mib * MIB // rounds
    rows = []
    with lab.tunnel() as tunnel:
        for what, transfer in (("upload", _upload), ("download", _download)):
            with Connection(tunnel) as connection, Connection(lab.plain()) as plain:
                through_tunnel, over_tcp, cpu = [], [], 0.0
                for _ in range(rounds):
                    before = cpu_seconds(connection.proxy_pid)
                    through_tunnel.append(_rate(transfer, connection, lab, size))
                    cpu += cpu_seconds(connection.proxy_pid) - before
                    over_tcp.append(_rate(transfer, plain, lab, size))
                peak = peak_bytes(connection.proxy_pid)
            rows += [
                Row(
                    what=what,
                    tunnel=statistics.median(through_tunnel),
                    plain=statistics.median(over_tcp),
                    unit="MB/s",
                    target=Target(bound=12, at_least=True),
                ),
                Row(
                    what=f"CPU of the proxy, {what}",
                    tunnel=cpu * 100 * MIB / (size * rounds),
                    unit="s per 100 MiB",
                    target=Target(bound=4),
                ),
                Row(what=f"peak memory of the proxy, {what}", tunnel=peak / 1e6, unit="MB", target=Target(bound=45)),
            ]
    return rows


def measure_pace(lab: Lab, size_mib: int) -> list[Row]:
    """Download from an agent that keeps the real one's pace."""
    with lab.tunnel(pacing="real") as tunnel, Connection(tunnel) as connection:
        rate = _rate(_download, connection, lab, size_mib * MIB)
    return [
        Row(
            what="download, agent with its real pace",
            tunnel=rate,
            plain=PACE_MB_S,
            plain_note="the pace",
            unit="MB/s",
            target=Target(of="ratio", bound=0.85, at_least=True),
        )
    ]


Transfer = Callable[[Connection, Lab, int], int]


def _rate(transfer: Transfer, connection: Connection, lab: Lab, size: int) -> float:
    """Give MB/s; from the start of the command to its end, its start included."""
    began = time.perf_counter()
    arrived = transfer(connection, lab, size)
    seconds = time.perf_counter() - began
    if arrived != size:
        raise BenchError(f"{arrived} of {size} bytes arrived")
    return size / seconds / 1e6


def _upload(connection: Connection, lab: Lab, size: int) -> int:
    zeros = lab.folder / "zeros"
    with zeros.open("wb") as file:
        file.truncate(size)
    with (
        zeros.open("rb") as source,
        connection.running("wc -c", stdin=source, stdout=subprocess.PIPE) as ssh,
    ):
        return int(ssh.communicate(timeout=STEP_TIMEOUT)[0])


def _download(connection: Connection, lab: Lab, size: int) -> int:
    with connection.running(f"head -c {size} /dev/zero", stdout=subprocess.PIPE) as ssh:
        done = subprocess.run(["wc", "-c"], stdin=ssh.stdout, stdout=subprocess.PIPE, check=True, timeout=STEP_TIMEOUT)
        return int(done.stdout)
