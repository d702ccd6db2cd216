"""Shells and commands: how fast output comes, how long a keystroke takes while it does, what one command costs."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping

from bench.lab import MIB, NODE, STEP_TIMEOUT, Lab
from bench.processes import cpu_seconds
from bench.rows import BenchError, Row

_READ_BYTES = 65536
_START_TIMEOUT = 30.0
_KEY = b"Q"
"""Nothing else in the flood of output is this character."""
_PAUSE = 0.05


def measure_shells(lab: Lab, size_mib: int, keys: int, commands: int) -> list[Row]:
    """Print ``size_mib`` to a terminal, type ``keys`` characters against a flood, and run so many commands."""
    size = size_mib * MIB
    with lab.emulator(pacing="none") as environment:
        with _Shell(lab, environment) as shell:
            before = cpu_seconds(shell.pid)
            rate = shell.print_bytes(size)
            cpu = cpu_seconds(shell.pid) - before
        with _Shell(lab, environment) as shell:
            echoes = shell.type_against_flood(keys)
        exec_times = [_seconds([str(lab.proxy), "exec", NODE, "--", "true"], lab, environment) for _ in range(commands)]
    plain = lab.plain()
    ssh_times = [_timed(lambda: plain.run(NODE, "true")) for _ in range(commands)]
    percentiles = statistics.quantiles(echoes, n=100)
    return [
        Row(what="shell, output", tunnel=rate, unit="MB/s"),
        Row(what="CPU of `shell`, output", tunnel=cpu * 100 * MIB / size, unit="s per 100 MiB"),
        Row(what="shell, echo of a key while output floods, median", tunnel=percentiles[49] * 1e3, unit="ms"),
        Row(what="shell, echo of a key while output floods, 99th percentile", tunnel=percentiles[98] * 1e3, unit="ms"),
        Row(
            what="`ssm-proxy exec NODE -- true`",
            tunnel=statistics.median(exec_times),
            plain=statistics.median(ssh_times),
            plain_note="`ssh NODE true`",
            unit="s",
        ),
    ]


class _Shell:
    """``ssm-proxy shell`` on a terminal of its own; a context manager."""

    def __init__(self, lab: Lab, environment: Mapping[str, str]) -> None:
        self._command = [str(lab.proxy), "shell", NODE]
        self._environment = lab.environment | environment

    def __enter__(self) -> _Shell:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._read_until(b"$ ", b"# ")
        # In two parts, so that the echo of this line is not taken for its output.
        self._write(b"stty -echo; printf 're''ady\\n'\n")
        self._read_until(b"ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_START_TIMEOUT)
        self._process.kill()
        os.close(self._terminal)

    @property
    def pid(self) -> int:
        return self._process.pid

    def print_bytes(self, size: int) -> float:
        """Have so many bytes printed; give MB/s."""
        began = time.perf_counter()
        self._write(b"head -c %d /dev/zero | tr '\\0' x; printf 'e''nd\\n'\n" % size)
        count, tail = 0, b""
        for data in self._pieces():
            count += len(data)
            tail = (tail + data)[-16:]
            if b"end" in tail:
                break
        if count < size:
            raise BenchError(f"{count} of {size} bytes were printed")
        return size / (time.perf_counter() - began) / 1e6

    def type_against_flood(self, keys: int) -> list[float]:
        """Give the seconds that each key took to come back while the shell prints as fast as it can."""
        self._write(b"stty echo; yes & cat >/dev/null\n")
        self._read_until(b"y\r\ny\r\n")
        times = []
        for _ in range(keys):
            deadline = time.perf_counter() + _PAUSE
            for _ in self._pieces():
                if time.perf_counter() > deadline:
                    break
            began = time.perf_counter()
            self._write(_KEY)
            self._read_until(_KEY)
            times.append(time.perf_counter() - began)
        return times

    def _write(self, data: bytes) -> None:
        os.write(self._terminal, data)

    def _read_until(self, *ends: bytes) -> None:
        seen = b""
        for data in self._pieces():
            seen = (seen + data)[-2 * _READ_BYTES :]
            if any(end in seen for end in ends):
                return

    def _pieces(self) -> Iterator[bytes]:
        deadline = time.monotonic() + STEP_TIMEOUT
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._terminal], [], [], min(left, _START_TIMEOUT))[0]:
                break
            try:
                yield os.read(self._terminal, _READ_BYTES)
            except OSError:  # the other end was closed
                break
        raise BenchError("the shell has stopped to print")


def _seconds(command: list[str], lab: Lab, environment: Mapping[str, str]) -> float:
    return _timed(
        lambda: subprocess.run(
            command, env=lab.environment | environment, stdin=subprocess.DEVNULL, check=True, timeout=STEP_TIMEOUT
        )
    )


def _timed(call: object) -> float:
    assert callable(call)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
