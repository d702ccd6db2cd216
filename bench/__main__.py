"""``python -m bench``: real ssh through the tunnel against the same ssh over plain TCP, in one run.

Service and agent are the emulator, with pacing off; the node's sshd is OpenSSH's. A real agent sends at most 1,024
bytes per millisecond: the last row is with that pace, and against it. Client, relay, agent and server share this
machine, so the plain figure is the machine's limit, not a network's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from bench.sshd import Sshd
from ssm_proxy.emulator import Emulator, EmulatorOptions, Node
from ssm_proxy.emulator.options import REAL_PACE_S

NODE = "i-0123456789abcdef0"
MIB = 1024 * 1024
COLD_STARTS = 10
STEP_TIMEOUT = 900
PACED_MIB = 8
USE_TIMEOUT = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    tunnel: float
    plain: float | None
    unit: str

    def as_json(self) -> dict[str, object]:
        ratio = self.tunnel / self.plain if self.plain else None
        return {"what": self.what, "tunnel": self.tunnel, "plain": self.plain, "unit": self.unit, "ratio": ratio}


class Bench:
    """Runs the measurements; a scenario is a way to reach the same sshd."""

    def __init__(self, folder: Path, sshd: Sshd, size_mib: int) -> None:
        self._folder = folder
        self._sshd = sshd
        self._size = size_mib * MIB
        self._use_file = folder / "use"
        self._data = folder / "data"
        with self._data.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(MIB))

    def run(self) -> list[Row]:
        node = Node(node_id=NODE, ssh_address=("127.0.0.1", self._sshd.port))
        plain = self._ssh_command({}, f"HostName 127.0.0.1\n    Port {self._sshd.port}")
        with Emulator(EmulatorOptions(nodes=[node], agent_pace_s=0.0)) as emulator:
            tunnel = self._tunnel_command(emulator)
            rows = self._transfers(tunnel, plain)
            rows.append(self._cold_start(tunnel, plain))
        with Emulator(EmulatorOptions(nodes=[node], agent_pace_s=REAL_PACE_S)) as emulator:
            seconds = self._download(self._tunnel_command(emulator), PACED_MIB * MIB)
            rate = PACED_MIB * MIB / seconds
            rows.append(
                Row(what="download, against the pace of a real agent", tunnel=rate / 1e6, plain=1.024, unit="MB/s")
            )
        return rows

    def _transfers(self, tunnel: Command, plain: Command) -> list[Row]:
        rows = []
        for what, transfer in (("upload", self._upload), ("download", self._download)):
            self._use_file.unlink(missing_ok=True)
            through_tunnel = self._size / transfer(tunnel, self._size) / 1e6
            use = self._use()
            over_tcp = self._size / transfer(plain, self._size) / 1e6
            rows.append(Row(what=f"{what}, no pacing", tunnel=through_tunnel, plain=over_tcp, unit="MB/s"))
            cpu = use["cpu_s"] * 100 * MIB / self._size
            rows.append(Row(what=f"CPU of the proxy, {what}", tunnel=cpu, plain=None, unit="s per 100 MiB"))
            rows.append(
                Row(what=f"peak memory of the proxy, {what}", tunnel=use["peak_bytes"] / MIB, plain=None, unit="MiB")
            )
        return rows

    def _use(self) -> dict[str, float]:
        """Give what the proxy left; ssh does not wait for it."""
        deadline = time.monotonic() + USE_TIMEOUT
        while time.monotonic() < deadline:
            if self._use_file.exists() and (text := self._use_file.read_text()).endswith("\n"):
                use: dict[str, float] = json.loads(text)
                return use
            time.sleep(0.02)
        raise SystemExit("the proxy did not end")

    def _cold_start(self, tunnel: Command, plain: Command) -> Row:
        through_tunnel, over_tcp = [], []
        for _ in range(COLD_STARTS):  # in turn, so that a machine whose speed drifts treats both alike
            through_tunnel.append(_timed(lambda: tunnel(["true"], None)))
            over_tcp.append(_timed(lambda: plain(["true"], None)))
        return Row(
            what="ssh host true, median of 10",
            tunnel=statistics.median(through_tunnel),
            plain=statistics.median(over_tcp),
            unit="s",
        )

    def _upload(self, ssh: Command, size: int) -> float:
        received = self._folder / "received"
        seconds = _timed(lambda: ssh([f"cat > {shlex.quote(str(received))}"], self._data))
        if received.stat().st_size != size:
            raise SystemExit("the upload is not complete")
        return seconds

    def _download(self, ssh: Command, size: int) -> float:
        output = b""

        def download() -> None:
            nonlocal output
            output = ssh([f"head -c {size} {shlex.quote(str(self._data))}"], None)

        seconds = _timed(download)
        if len(output) != size:
            raise SystemExit("the download is not complete")
        return seconds

    def _tunnel_command(self, emulator: Emulator) -> Command:
        proxy = shlex.join([sys.executable, "-m", "bench.measured_proxy", str(self._use_file), "proxy"])
        return self._ssh_command(emulator.environment(), f"ProxyCommand {proxy} %h %p")

    def _ssh_command(self, environment: dict[str, str], way: str) -> Command:
        config = self._folder / f"ssh_config_{len(environment)}"
        config.write_text(
            f"Host *\n    {way}\n    IdentityFile {self._sshd.identity_file}\n    IdentitiesOnly yes\n"
            "    BatchMode yes\n    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n"
            "    LogLevel ERROR\n    Compression no\n"
        )

        def run(arguments: list[str], input_file: Path | None) -> bytes:
            with open(input_file or os.devnull, "rb") as source:
                return subprocess.run(
                    ["ssh", "-F", str(config), NODE, *arguments],
                    env={**os.environ, **environment},
                    stdin=source,
                    stdout=subprocess.PIPE,
                    check=True,
                    timeout=STEP_TIMEOUT,
                ).stdout

        return run


Command = Callable[[list[str], Path | None], bytes]


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _table(rows: list[Row]) -> str:
    lines = ["| what | through the tunnel | plain TCP | ratio |", "|---|---:|---:|---:|"]
    for row in rows:
        plain = "" if row.plain is None else f"{row.plain:.3g} {row.unit}"
        ratio = "" if not row.plain else f"{row.tunnel / row.plain:.2f}"
        lines.append(f"| {row.what} | {row.tunnel:.3g} {row.unit} | {plain} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="size of the transfers (default: 64)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ssm-proxy-bench-") as name:
        folder = Path(name)
        (folder / "sshd").mkdir()
        with Sshd(folder / "sshd") as sshd:
            rows = Bench(folder, sshd, arguments.size).run()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if arguments.json:
        print(json.dumps({"date": str(date.today()), "machine": machine, "rows": [row.as_json() for row in rows]}))
    else:
        print(_table(rows))
        print(f"\n{date.today()}, {machine}, {arguments.size} MiB each way")


if __name__ == "__main__":
    main()
