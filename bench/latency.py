"""The echo of one byte: what somebody who types waits for, on an idle tunnel and behind an upload."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.lab import Connection, Lab, Prompt, wait_until
from bench.rows import BenchError, Row, Target, percentile

LINK: Mapping[str, int] = {"bandwidth": 1_000_000, "delay_ms": 25, "queue_bytes": 4_000_000}
"""Bytes per second, delay each way, and a queue as deep as those of many home routers: nothing but the sender's own
restraint keeps it short."""
_BATCHES = 20
_TIMEOUT = 60.0


class Echo:
    """A byte there and back through ``cat`` on the node."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to = process.stdin.fileno()
        self._back = process.stdout.fileno()

    def round_trip(self) -> float:
        """Give seconds."""
        began = time.perf_counter()
        os.write(self._to, b"x")
        if not select.select([self._back], [], [], _TIMEOUT)[0]:
            raise BenchError(f"no echo within {_TIMEOUT:g} s")
        if os.read(self._back, 2) != b"x":
            raise BenchError("the echo is not what was sent")
        return time.perf_counter() - began


@contextlib.contextmanager
def _echo(connection: Connection) -> Iterator[Echo]:
    if isinstance(connection, Prompt):
        yield Echo(connection.process)
        return
    with connection.running("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Echo(process)


def measure_echo(lab: Lab, repetitions: int) -> list[Row]:
    """Measure round trips one after another, in batches that alternate with plain TCP."""
    with (
        lab.tunnel() as route,
        Connection(route) as tunnel_connection,
        Connection(lab.plain()) as plain_connection,
        _echo(tunnel_connection) as tunnel,
        _echo(plain_connection) as plain,
    ):
        times: dict[Echo, list[float]] = {tunnel: [], plain: []}
        for echo in times:
            echo.round_trip()  # the first waits for the start of cat
        for _ in range(_BATCHES):
            for echo, its in times.items():
                its += [echo.round_trip() * 1000 for _ in range(repetitions // _BATCHES)]
    return [
        Row(
            what=f"echo of a byte, {name}",
            tunnel=percentile(times[tunnel], percent),
            plain=percentile(times[plain], percent),
            unit="ms",
            target=target,
        )
        for name, percent, target in (("median", 50, Target(of="added", bound=0.8)), ("99th percentile", 99, None))
    ]


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    echo_ms: list[float]
    upload_mb_s: float


def measure_loaded(lab: Lab, seconds: float, settle: float) -> list[Row]:
    """Measure round trips and the rate while an upload fills a slow link, after it had time to fill the queue."""
    received = lab.folder / "received"
    with lab.tunnel(faults=LINK) as route:
        tunnel = _behind_upload(Prompt(route), received, seconds, settle)
        without = _behind_upload(Connection(route), received, seconds, settle)
    with lab.shaped(**LINK) as route:
        plain = _behind_upload(Prompt(route), received, seconds, settle)
        plain_without = _behind_upload(Connection(route), received, seconds, settle)
    link = f"{LINK['bandwidth'] / 1e6:g} MB/s, {2 * LINK['delay_ms']} ms"
    echoes = [
        Row(
            what=f"echo behind an upload, link of {link}, {name}",
            tunnel=percentile(of_tunnel.echo_ms, percent),
            plain=percentile(of_plain.echo_ms, percent),
            unit="ms",
            target=target,
        )
        for name, percent, of_tunnel, of_plain, target in (
            ("median", 50, tunnel, plain, None),
            ("99th percentile", 99, tunnel, plain, Target(bound=250)),
            ("median, without a terminal", 50, without, plain_without, None),
        )
    ]
    upload = Row(what=f"upload, link of {link}", tunnel=tunnel.upload_mb_s, plain=plain.upload_mb_s, unit="MB/s")
    return [*echoes, upload]


def _behind_upload(connection: Connection, received: Path, seconds: float, settle: float) -> _Loaded:
    received.unlink(missing_ok=True)
    with connection, _echo(connection) as echo, open("/dev/zero", "rb") as zeros:
        echo.round_trip()
        with connection.running(f"cat > {received}", stdin=zeros):
            wait_until(lambda: received.exists() and received.stat().st_size, "the upload begins")
            settled = time.monotonic() + settle
            while time.monotonic() < settled:
                echo.round_trip()
            began, size = time.monotonic(), received.stat().st_size
            times = []
            while time.monotonic() < began + seconds:
                times.append(echo.round_trip() * 1000)
            rate = (received.stat().st_size - size) / (time.monotonic() - began) / 1e6
    return _Loaded(echo_ms=times, upload_mb_s=rate)
