"""``python -m bench``: that it measures what it says; how fast anything is, is not for a test to say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from nodes import tool

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
LINK = "link of 1 MB/s, 50 ms"


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_quick_run_has_every_row() -> None:
    for name in ("ssh", "ssh-keygen", "sshd"):
        tool(name)
    # Not pytest's folder: its path may be too long for a control socket.
    with tempfile.TemporaryDirectory(prefix="ssm-") as folder:
        done = bench("--quick", "--json", TMPDIR=folder)
        assert done.returncode == 0, done.stderr
        assert os.listdir(folder) == []
    report = json.loads(done.stdout)
    rows: dict[str, dict[str, Any]] = {row["what"]: row for row in report["rows"]}
    assert list(rows) == [
        "upload",
        "CPU of the proxy, upload",
        "peak memory of the proxy, upload",
        "download",
        "CPU of the proxy, download",
        "peak memory of the proxy, download",
        "download, agent with its real pace",
        "`ssh host true`",
        "CPU of the proxy, from exec to StartSession",
        "echo of a byte, median",
        "echo of a byte, 99th percentile",
        f"echo behind an upload, {LINK}, median",
        f"echo behind an upload, {LINK}, 99th percentile",
        f"echo behind an upload, {LINK}, median, without a terminal",
        f"upload, {LINK}",
        "forwarded port, upload",
        "CPU of `forward`, upload",
        "forwarded port, download",
        "CPU of `forward`, download",
        *(
            f"{width} requests at once, {what}"
            for width in (50, 200)
            for what in ("connections", "median", "99th percentile", "failed")
        ),
        "peak memory of `forward`",
        "forwarded port, upload, agent with its real pace",
        "forwarded port, download, agent with its real pace",
        "shell, output",
        "CPU of `shell`, output",
        "shell, echo of a key while output floods, median",
        "shell, echo of a key while output floods, 99th percentile",
        "`ssm-proxy exec NODE -- true`",
        "playbook of 2 tasks on 2 nodes, no connections before",
        "playbook of 2 tasks on 2 nodes, connections kept from the run before",
        *(
            name
            for pace in ("agent's real pace", "no pace")
            for way in ("download", "upload")
            for name in (
                f"cp, {way}, {pace}, as many sessions as it takes by itself",
                "processor: cp, download, agent's real pace, as many sessions as it takes by itself",
                f"cp, {way}, {pace}, 1 session",
                "processor: cp, download, agent's real pace, 1 session",
                f"cp, {way}, {pace}, 2 sessions",
                "processor: cp, download, agent's real pace, 2 sessions",
                f"peak memory of cp, {way}, {pace}, 2 sessions",
            )
            if f"{way}, {pace}" in name
        ),
        "cp, download, 8 ms pace, 1 session",
        "cp, download, 8 ms pace, 2 sessions",
        *(
            f"cp -r, 20 files of 4 KiB, {way}, beside {other}"
            for way in ("upload", "download")
            for other in ("scp -r", "rsync")
        ),
        "CPU of the proxy, idle",
    ]
    for width in (50, 200):
        assert rows.pop(f"{width} requests at once, failed")["tunnel"] == 0
    idle = rows.pop("CPU of the proxy, idle")
    assert 0 <= idle["tunnel"] < 60
    for row in rows.values():
        assert row["tunnel"] > 0
        assert row["plain"] is None or row["plain"] > 0
        assert (row["met"] is None) == (row["target"] is None)
    assert sum(row["plain"] is not None for row in rows.values()) == 44
    # What cannot be otherwise, if the right thing is measured.
    start = rows["`ssh host true`"]
    assert start["tunnel"] > start["plain"]
    assert rows["CPU of the proxy, from exec to StartSession"]["tunnel"] > 0.01
    assert rows["peak memory of the proxy, upload"]["tunnel"] > 5
    assert rows["download, agent with its real pace"]["ratio"] < 1.05
    assert rows["cp, download, agent's real pace, 1 session"]["tunnel"] < 1.1
    assert rows["cp, download, 8 ms pace, 1 session"]["tunnel"] < 0.14
    for kind in ("tunnel", "plain"):
        assert rows[f"echo behind an upload, {LINK}, median"][kind] >= 50
        assert rows[f"upload, {LINK}"][kind] < 1.5
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["first output"]["wall_ms"] > 0
    assert all(stage["cpu_ms"] >= 0 for stage in stages.values())


@pytest.mark.parametrize(
    "arguments", [("--quick", "--update-docs"), ("--only", "idle", "--update-docs"), ("--size", "0"), ("--only", "all")]
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
