"""Versions as the agent compares them (6.6)."""

from __future__ import annotations

import pytest

from ssm_proxy.emulator.plugins.mux_port import knows_mux, needs_keepalive
from ssm_proxy.emulator.versions import compare_versions


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("", "0.0.1"),
        ("1.1.69", "1.1.70"),
        ("1.1.9", "1.1.70"),
        ("1.2.295", "1.2.295.0"),
        ("1.2.331.0", "1.2.339.0"),
        ("1.2.331.0", "1.2.1000.0"),
        ("1.2.alpha", "1.2.beta"),
    ],
)
def test_older_and_newer(older: str, newer: str) -> None:
    assert compare_versions(older, newer) == -1
    assert compare_versions(newer, older) == 1
    assert compare_versions(older, older) == compare_versions(newer, newer) == 0


def test_leading_zeros_do_not_count() -> None:
    assert compare_versions("1.02.3", "1.2.03") == 0


@pytest.mark.parametrize(
    ("client", "agent", "mux"),
    [
        ("1.1.70", "3.3.987.0", True),
        ("1.1.70.0", "3.0.222.0", True),
        ("1.2.896.0", "3.0.196.0", False),
        ("1.1.69.0", "3.3.987.0", False),
        ("0.0.1", "3.3.987.0", False),
        ("", "3.3.987.0", False),
    ],
)
def test_the_gate_of_the_mux(client: str, agent: str, mux: bool) -> None:
    assert knows_mux(client, agent) is mux


@pytest.mark.parametrize(
    ("client", "agent", "keepalive"),
    [
        ("1.2.331.0", "3.3.987.0", True),
        ("1.2.0.0", "3.3.987.0", True),
        ("1.2.339.0", "3.3.987.0", False),
        ("1.2.896.0", "3.1.1511.0", True),
        ("1.2.896.0", "3.1.1575.0", False),
    ],
)
def test_the_gate_of_the_keepalive(client: str, agent: str, keepalive: bool) -> None:
    assert needs_keepalive(client, agent) is keepalive
