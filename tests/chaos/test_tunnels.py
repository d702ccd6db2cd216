"""Many tunnels, and the soak, in small."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodes import MIB

from chaos import soak, tunnels

pytestmark = pytest.mark.integration


def test_four_tunnels_at_once() -> None:
    report = tunnels.run(4, 3.0, MIB, seed=1)
    assert report["transfers"] >= 4
    assert report["least_moved_mib"] >= 1
    assert report["reconnects"] > 0


def test_a_soak_reports_memory_over_time(tmp_path: Path) -> None:
    report = soak.run(1.0, MIB, seed=1, sample_s=0.1)
    assert report["moved_mib"] == report["transfers"] > 0
    assert len(report["memory_samples"]) >= 2, "at the beginning and at the end, if not more"
    assert all(mib > 1 for _, mib in report["memory_samples"])
    pytest.importorskip("matplotlib")
    soak.plot(report, tmp_path / "memory.svg")
    assert (tmp_path / "memory.svg").read_text().count("<path") > 0
