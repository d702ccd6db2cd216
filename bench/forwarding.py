"""Forwarded ports: rate, processor time, and many short connections at once; each also straight to the same server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lab import MIB, NODE, STEP_TIMEOUT, Lab
from bench.processes import cpu_seconds, peak_bytes
from bench.rows import BenchError, Row, Target

PLUGIN_UPLOAD_MB_S = 0.55
PLUGIN_DOWNLOAD_MB_S = 0.61
"""The official plugin's, over the agent's real pace, on a machine of this kind."""
_PIECE = bytes(256 * 1024)
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_REQUEST_TIMEOUT = 30.0


@dataclass(frozen=True, kw_only=True)
class Forwarding:
    """A forwarded port, and the process that carries it."""

    port: int
    pid: int


def measure_forwarding(lab: Lab, size_mib: int, rounds: int, paced_mib: int, requests: int) -> list[Row]:
    """Measure ``size_mib`` each way in so many rounds, then ``requests`` short requests, 50 and 200 at once."""
    size = size_mib * MIB // rounds
    rows = []
    with _server(lab) as peer:
        with _forwarding(lab, peer, pacing="none") as forwarding:
            for what in ("upload", "download"):
                rates, plain, cpu = [], [], 0.0
                for _ in range(rounds):
                    before = cpu_seconds(forwarding.pid)
                    rates.append(_rate(what, forwarding.port, size))
                    cpu += cpu_seconds(forwarding.pid) - before
                    plain.append(_rate(what, peer, size))
                rows += [
                    Row(
                        what=f"forwarded port, {what}",
                        tunnel=statistics.median(rates),
                        plain=statistics.median(plain),
                        unit="MB/s",
                        target=Target(bound=12, at_least=True),
                    ),
                    Row(
                        what=f"CPU of `forward`, {what}",
                        tunnel=cpu * 100 * MIB / (size * rounds),
                        unit="s per 100 MiB",
                        target=Target(bound=5),
                    ),
                ]
            for width in (50, 200):
                rows += _storm_rows(forwarding.port, peer, width, requests)
            rows.append(Row(what="peak memory of `forward`", tunnel=peak_bytes(forwarding.pid) / 1e6, unit="MB"))
        with _forwarding(lab, peer, pacing="real") as forwarding:
            paced = {what: _rate(what, forwarding.port, paced_mib * MIB) for what in ("upload", "download")}
        rows += [
            Row(
                what="forwarded port, upload, agent with its real pace",
                tunnel=paced["upload"],
                plain=PLUGIN_UPLOAD_MB_S,
                plain_note="the official plugin's figure",
                unit="MB/s",
                target=Target(of="ratio", bound=20, at_least=True),
            ),
            Row(
                what="forwarded port, download, agent with its real pace",
                tunnel=paced["download"],
                plain=PLUGIN_DOWNLOAD_MB_S,
                plain_note="the official plugin's figure",
                unit="MB/s",
                target=Target(of="ratio", bound=1, at_least=True),
            ),
        ]
    return rows


@contextlib.contextmanager
def _server(lab: Lab) -> Iterator[int]:
    command = [sys.executable, str(Path(__file__).with_name("peer.py"))]
    with lab.announced(command) as (line, _):
        yield int(line)


@contextlib.contextmanager
def _forwarding(lab: Lab, peer: int, *, pacing: str) -> Iterator[Forwarding]:
    with lab.emulator(pacing=pacing) as environment:
        command = [str(lab.proxy), "forward", NODE, f"0:{peer}", "--ready-json"]
        with lab.announced(command, environment) as (line, pid):
            yield Forwarding(port=json.loads(line)["port"], pid=pid)


def _rate(what: str, port: int, size: int) -> float:
    """Give MB/s of one connection, its opening included."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=STEP_TIMEOUT) as connection:
        connection.sendall(f"{what} {size}\n".encode())
        if what == "upload":
            left = size
            while left:
                left -= connection.send(_PIECE[:left])
            if connection.recv(4, socket.MSG_WAITALL) != b"done":
                raise BenchError("the upload was not confirmed")
        else:
            left = size
            while left:
                data = connection.recv(1024 * 1024)
                if not data:
                    raise BenchError(f"{size - left} of {size} bytes arrived")
                left -= len(data)
    return size / (time.perf_counter() - began) / 1e6


def _storm_rows(port: int, peer: int, width: int, requests: int) -> list[Row]:
    tunnel = asyncio.run(_storm(port, width, requests))
    plain = asyncio.run(_storm(peer, width, requests))
    what = f"{width} requests at once"
    return [
        Row(
            what=f"{what}, connections",
            tunnel=tunnel.rate,
            plain=plain.rate,
            unit="per s",
            target=Target(bound=500, at_least=True),
        ),
        Row(what=f"{what}, median", tunnel=tunnel.median_ms, plain=plain.median_ms, unit="ms"),
        Row(what=f"{what}, 99th percentile", tunnel=tunnel.p99_ms, plain=plain.p99_ms, unit="ms"),
        Row(what=f"{what}, failed", tunnel=tunnel.failures, unit=f"of {requests}", target=Target(bound=0)),
    ]


@dataclass(frozen=True, kw_only=True)
class _Storm:
    rate: float
    median_ms: float
    p99_ms: float
    failures: int


async def _storm(port: int, width: int, requests: int) -> _Storm:
    times: list[float] = []
    failures = 0
    left = requests

    async def work() -> None:
        nonlocal left, failures
        while left:
            left -= 1
            began = time.perf_counter()
            try:
                answer = await asyncio.wait_for(_request(port), _REQUEST_TIMEOUT)
            except (OSError, asyncio.TimeoutError):
                answer = b""
            if answer.endswith(b"\r\n\r\nok"):
                times.append(time.perf_counter() - began)
            else:
                failures += 1

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(width)))
    seconds = time.perf_counter() - began
    if len(times) < 2:
        raise BenchError(f"{failures} of {requests} requests failed")
    return _Storm(
        rate=len(times) / seconds,
        median_ms=statistics.median(times) * 1e3,
        p99_ms=statistics.quantiles(times, n=100)[98] * 1e3,
        failures=failures,
    )


async def _request(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_REQUEST)
        return await reader.read()
    finally:
        writer.close()
