"""Attempts to break the tunnel; ends with a table, and with a failure if anything was lost, changed or left behind.

Client, emulated service and agent, sshd and both ends of the transfers share this machine: the speeds are its limit
under faults, not a network's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from nodes import MIB

from chaos import soak, transfer, tunnels
from chaos.storm import draw_cuts


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _transfer(options: argparse.Namespace) -> dict[str, Any]:
    size = options.size * MIB
    cuts = draw_cuts(options.seed, size, options.cuts, options.blackholes)
    _say(f"after so many bytes (seed {options.seed}):")
    for cut in cuts:
        _say(str(cut))
    return transfer.run(options.direction, size, cuts, seed=options.seed, say=_say)


def _tunnels(options: argparse.Namespace) -> dict[str, Any]:
    return tunnels.run(options.count, options.minutes * 60, options.size * MIB, seed=options.seed)


def _soak(options: argparse.Namespace) -> dict[str, Any]:
    report = soak.run(options.minutes * 60, options.size * MIB, seed=options.seed)
    if options.csv:
        lines = (f"{seconds},{mib}" for seconds, mib in report["memory_samples"])
        options.csv.write_text("\n".join(["seconds,resident_mib", *lines]) + "\n")
    if options.plot:
        soak.plot(report, options.plot)
    return report


def _table(report: Mapping[str, Any]) -> str:
    lines = ["| what | value |", "|---|---:|"]
    for name, value in report.items():
        if isinstance(value, dict):
            lines += [f"| {name.replace('_', ' ')}: {key.replace('_', ' ')} | {each} |" for key, each in value.items()]
        elif not isinstance(value, list):
            lines.append(f"| {name.replace('_', ' ')} | {value} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("transfer", help="one transfer through many cuts")
    command.add_argument("--direction", choices=("up", "down"), default="up")
    command.add_argument("--size", type=int, default=1024, metavar="MIB")
    command.add_argument("--cuts", type=int, default=200)
    command.add_argument("--blackholes", type=int, default=3, help="how many of the cuts are silent (default: 3)")
    command.set_defaults(run=_transfer)

    command = commands.add_parser("tunnels", help="many tunnels at once")
    command.add_argument("--count", type=int, default=20)
    command.add_argument("--minutes", type=float, default=10)
    command.add_argument("--size", type=int, default=4, metavar="MIB", help="of each transfer")
    command.set_defaults(run=_tunnels)

    command = commands.add_parser("soak", help="one tunnel at full speed for long")
    command.add_argument("--minutes", type=float, default=10)
    command.add_argument("--size", type=int, default=64, metavar="MIB", help="of each transfer")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write memory over time there")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw memory over time; needs the extra 'plots'")
    command.set_defaults(run=_soak)

    for each in commands.choices.values():
        each.add_argument("--seed", type=int, default=1, help="of all that is left to chance (default: 1)")
    options = parser.parse_args()
    try:
        report = options.run(options)
    except AssertionError as error:
        sys.exit(f"broken: {error}")
    except pytest.skip.Exception as error:
        sys.exit(str(error))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if options.json:
        command_line = " ".join(["scripts/chaos", *sys.argv[1:]])
        values = {"command": command_line, "date": str(date.today()), "machine": machine, **report}
        options.json.write_text(json.dumps(values) + "\n")
    print(_table(report))
    print(f"\n{date.today()}, {machine}")


if __name__ == "__main__":
    main()
