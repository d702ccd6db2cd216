"""The start of a connection: what the user waits for, and the proxy's part of it."""

from __future__ import annotations

import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.lab import NODE, Lab
from bench.processes import cpu_seconds
from bench.rows import BenchError, Row, Target

_TIMEOUT = 30.0
_STAGE = re.compile(r"^ssm-proxy: timing: (?P<stage>.*?) +(?P<wall>[0-9.]+) ms +(?P<cpu>[0-9.]+) ms CPU", re.MULTILINE)
"""A line of ssm_proxy/cli/timing.py."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of ``--timing``; medians."""

    name: str
    wall_ms: float
    cpu_ms: float


def measure_start(lab: Lab, repetitions: int) -> list[Row]:
    with lab.tunnel() as tunnel:
        plain = lab.plain()
        through_tunnel: list[float] = []
        over_tcp: list[float] = []
        for _ in range(repetitions):  # in turn, so that a machine whose speed drifts treats both alike
            for route, times in ((tunnel, through_tunnel), (plain, over_tcp)):
                began = time.perf_counter()
                route.run(NODE, "true")
                times.append(time.perf_counter() - began)
    return [
        Row(
            what="`ssh host true`",
            tunnel=statistics.median(through_tunnel),
            plain=statistics.median(over_tcp),
            unit="s",
            target=Target(of="added", bound=0.25),
        ),
        Row(
            what="CPU of the proxy, from exec to StartSession",
            tunnel=statistics.median(_cpu_to_start_session(lab) for _ in range(repetitions)),
            plain=statistics.median(_cpu_of_import(lab) for _ in range(repetitions)),
            plain_note="`import botocore.session` and nothing else",
            unit="s",
            target=Target(bound=0.15),
        ),
    ]


def measure_stages(lab: Lab, repetitions: int) -> list[Stage]:
    """Let ``--timing`` tell the stages of so many connections."""
    walls: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    with lab.tunnel(options="--timing") as tunnel:
        for _ in range(repetitions):
            for match in _STAGE.finditer(tunnel.run(NODE, "true").stderr):
                walls.setdefault(match["stage"], []).append(float(match["wall"]))
                cpus.setdefault(match["stage"], []).append(float(match["cpu"]))
    if not walls:
        raise BenchError("--timing told nothing")
    return [
        Stage(name=name, wall_ms=statistics.median(walls[name]), cpu_ms=statistics.median(cpus[name])) for name in walls
    ]


def stage_table(stages: Sequence[Stage]) -> str:
    """Give the stages as Markdown."""
    lines = (f"| {stage.name} | {stage.wall_ms:.1f} ms | {stage.cpu_ms:.1f} ms |" for stage in stages)
    return "\n".join(["| stage | time | CPU |", "|---|---:|---:|", *lines])


def _cpu_to_start_session(lab: Lab) -> float:
    """Give the proxy's processor time from its exec to the moment at which its StartSession has arrived here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_TIMEOUT)
        environment = {
            "AWS_ENDPOINT_URL_SSM": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }
        with subprocess.Popen(
            [lab.proxy, "proxy", NODE, "22"],
            env=lab.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(_TIMEOUT)
                    request = b""
                    while b"\r\n\r\n" not in request:
                        piece = connection.recv(65536)
                        if not piece:
                            raise BenchError("the proxy closed the connection before it had asked for anything")
                        request += piece
                    cpu = cpu_seconds(process.pid)
                    if b"AmazonSSM.StartSession" not in request:
                        raise BenchError("the proxy asked for something else than StartSession")
                    return cpu
            except TimeoutError as error:
                raise BenchError("the proxy did not ask for StartSession") from error
            finally:
                process.kill()


def _cpu_of_import(lab: Lab) -> float:
    """Give the processor time of a Python that imports botocore and does nothing: what any client of it starts with."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import botocore.session"], env=lab.environment, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
