"""One tunnel at full speed for a long time: does its memory stay flat?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nodes import MIB

from chaos.world import Memory, Tunnel, World


def run(seconds: float, size: int, *, seed: int, sample_s: float = 1.0) -> dict[str, Any]:
    """Carry ``size`` bytes up and as many down, in turn, for so long.

    Raises:
        AssertionError: see :func:`chaos.transfer.run`.
    """
    with World(seed) as world, Tunnel(world.new_user()) as tunnel, Memory(tunnel.proxy, sample_s) as memory:
        began = time.monotonic()
        count = 0
        while (took := time.monotonic() - began) < seconds:
            tunnel.carry(("up", "down")[count % 2], size, seed + count)
            count += 1
        use = memory.summary()
        cpu = tunnel.proxy.cpu_seconds()
    return {
        "seconds": round(took, 1),
        "transfers": count,
        "moved_mib": count * size / MIB,
        "mib_per_s": round(count * size / MIB / took, 1),
        "cpu_seconds": round(cpu, 1),
        "memory": use,
        "memory_samples": memory.samples,
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw memory over time; the ending of the path says in which format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ssm-proxy"  # the same figures give the same file
    from matplotlib import pyplot

    samples = report["memory_samples"]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot([seconds / 60 for seconds, _ in samples], [mib for _, mib in samples], linewidth=1.2)
    axes.set_ylim(0, 1.25 * max(mib for _, mib in samples))
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory of the proxy, MiB")
    axes.set_title(f"{report['moved_mib'] / 1024:.1f} GiB through one tunnel, up and down in turn", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
