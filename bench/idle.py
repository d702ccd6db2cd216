"""What a tunnel costs through which nothing goes."""

from __future__ import annotations

import time

from bench.lab import Connection, Lab
from bench.processes import cpu_seconds
from bench.rows import Row, Target

_SETTLE_S = 2.0
"""The end of the connection's start is not idling."""


def measure_idle(lab: Lab, seconds: float) -> list[Row]:
    with lab.tunnel() as tunnel, Connection(tunnel) as connection:
        time.sleep(_SETTLE_S)
        pid = connection.proxy_pid
        before = cpu_seconds(pid)
        time.sleep(seconds)
        used = cpu_seconds(pid) - before
    return [
        Row(
            what="CPU of the proxy, idle",
            tunnel=used * 60 / seconds,
            unit="s per minute",
            target=Target(bound=0.05),
        )
    ]
