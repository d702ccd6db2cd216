"""``python -m bench``: real ssh through the tunnel against the same ssh over plain TCP, in one run.

Service and agent are the emulator, the node's sshd is OpenSSH's. What is measured, and how: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from bench import frames, pages
from bench.copies import SCALING_PACE, CopyAmount, measure_copies, summary
from bench.forwarding import measure_forwarding
from bench.idle import measure_idle
from bench.lab import Lab
from bench.latency import measure_echo, measure_loaded
from bench.playbook import measure_playbook
from bench.rows import BenchError, Row, table
from bench.shells import measure_shells
from bench.start import Stage, measure_stages, measure_start, stage_table
from bench.transfers import measure_pace, measure_transfers


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    size_mib: int
    rounds: int
    paced_mib: int
    starts: int
    echoes: int
    loaded_s: float
    settle_s: float
    idle_s: float
    requests: int
    printed_mib: int
    keys: int
    commands: int
    nodes: int
    tasks: int
    plays: int
    copies: CopyAmount


FULL = Amount(
    size_mib=256,
    rounds=4,
    paced_mib=8,
    starts=20,
    echoes=2000,
    loaded_s=30,
    settle_s=5,
    idle_s=60,
    requests=4000,
    printed_mib=32,
    keys=200,
    commands=10,
    nodes=10,
    tasks=20,
    plays=3,
    copies=CopyAmount(
        size_mib=256,
        scaling_mib=40,
        sessions=(1, 2, 4, 8, 16),
        scaling_sessions=(1, 8, 16),
        small_files=2000,
        rounds=3,
    ),
)
QUICK = Amount(
    size_mib=8,
    rounds=1,
    paced_mib=1,
    starts=3,
    echoes=100,
    loaded_s=3,
    settle_s=1,
    idle_s=2,
    requests=400,
    printed_mib=1,
    keys=10,
    commands=2,
    nodes=2,
    tasks=2,
    plays=1,
    copies=CopyAmount(size_mib=2, scaling_mib=1, sessions=(1, 2), scaling_sessions=(1, 2), small_files=20, rounds=1),
)
PARTS: dict[str, Callable[[Lab, Amount], list[Row]]] = {
    "transfers": lambda lab, amount: measure_transfers(lab, amount.size_mib, amount.rounds),
    "pace": lambda lab, amount: measure_pace(lab, amount.paced_mib),
    "start": lambda lab, amount: measure_start(lab, amount.starts),
    "echo": lambda lab, amount: measure_echo(lab, amount.echoes),
    "loaded": lambda lab, amount: measure_loaded(lab, amount.loaded_s, amount.settle_s),
    "forward": lambda lab, amount: measure_forwarding(
        lab, amount.size_mib, amount.rounds, amount.paced_mib, amount.requests
    ),
    "shell": lambda lab, amount: measure_shells(lab, amount.printed_mib, amount.keys, amount.commands),
    "playbook": lambda lab, amount: measure_playbook(lab, amount.nodes, amount.tasks, amount.plays),
    "copies": lambda lab, amount: measure_copies(lab, amount.copies),
    "idle": lambda lab, amount: measure_idle(lab, amount.idle_s),
}

OWN_PAGE = ("playbook", "copies")
"""Parts with a table of their own, which takes the figures of a run of that part alone as well."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", type=int, metavar="MIB", help=f"of each transfer (default: {FULL.size_mib})")
    parser.add_argument("--idle-seconds", type=float, metavar="S", help=f"(default: {FULL.idle_s})")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument(
        "--quick", action="store_true", help="measure little, to see that it works; figures mean nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--update-docs", action="store_true", help="write the tables of README.md and docs as well")
    arguments = parser.parse_args()
    if arguments.update_docs and (arguments.quick or arguments.only not in (None, *OWN_PAGE)):
        parser.error(f"the pages take the figures of a full run only, or of one of: {', '.join(OWN_PAGE)}")
    amount = QUICK if arguments.quick else FULL
    changes = {"size_mib": arguments.size, "idle_s": arguments.idle_seconds}
    amount = replace(amount, **{name: value for name, value in changes.items() if value is not None})
    if amount.size_mib < amount.rounds or amount.idle_s <= 0:
        parser.error("size and time must be positive")
    try:
        run(arguments, amount)
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"bench: {error}")


def run(arguments: argparse.Namespace, amount: Amount) -> None:
    names = [arguments.only] if arguments.only else list(PARTS)
    of_part: dict[str, list[Row]] = {}
    stages: list[Stage] = []
    load = os.getloadavg()[0]
    with Lab() as lab:
        for name in names:
            print(f"bench: {name}", file=sys.stderr)
            of_part[name] = PARTS[name](lab, amount)
        if "start" in names:
            stages = measure_stages(lab, amount.starts)
    rows = [row for part in of_part.values() for row in part]
    if arguments.json:
        values = {
            "date": str(date.today()),
            "machine": machine(),
            "size_mib": amount.size_mib,
            "rows": [row.as_json() for row in rows],
            "load_at_the_start": load,
            "stages": [asdict(stage) for stage in stages],
        }
        print(json.dumps(values, indent=1))
    else:
        print(
            "\n\n".join(
                [
                    table(rows),
                    *([stage_table(stages)] if stages else []),
                    footer(f"{amount.size_mib} MiB each way", load),
                ]
            )
        )
    if arguments.update_docs:
        update_pages(of_part, stages, amount, load)


def update_pages(of_part: Mapping[str, list[Row]], stages: list[Stage], amount: Amount, load: float) -> None:
    """Write what was measured into the pages."""
    notes = footer(f"{amount.size_mib} MiB each way", load)
    if "transfers" in of_part:
        rows = [row for name, part in of_part.items() if name not in OWN_PAGE for row in part]
        print("bench: frames", file=sys.stderr)
        pages.update(pages.README, {"bench": f"{table(rows, with_targets=False)}\n\n{notes}"})
        contents = {"bench": f"{table(rows)}\n\n{notes}", "stages": stage_table(stages), "frames": frames.table()}
        pages.update(pages.PAGE, contents)
    if "playbook" in of_part:
        pages.update(
            pages.ANSIBLE, {"ansible": f"{table(of_part['playbook'])}\n\n{footer(f'{amount.plays} rounds', load)}"}
        )
    if "copies" in of_part:
        copies = amount.copies
        notes = footer(f"{copies.size_mib} MiB ({copies.scaling_mib} MiB at the {SCALING_PACE} pace)", load)
        pages.update(pages.COPYING, {"copies": f"{table(of_part['copies'])}\n\n{notes}"})
        pages.update(pages.README, {"copy-speed": summary(of_part["copies"], amount.copies)})


def footer(what: str, load: float) -> str:
    return f"{date.today()}, {what}, {machine()}, load average at the start {load:.1f}"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.partition(",")[0]
    return f"{os.cpu_count()} cores ({model}), Linux, Python {platform.python_version()}, {ssh}"


if __name__ == "__main__":
    main()
