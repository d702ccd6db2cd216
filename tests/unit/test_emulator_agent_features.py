"""What an agent of a version can do (docs/PROTOCOL.md sections 6.6 and 6.7)."""

from __future__ import annotations

import pytest

from ssm_proxy.emulator.agent_features import AGENT_VERSION, Feature, agent_has
from ssm_proxy.emulator.options import parse_agent_version
from ssm_proxy.emulator.plugins.choice import is_supported
from ssm_proxy.errors import UsageError


@pytest.mark.parametrize(
    ("version", "count"),
    [("2.3.500.0", 0), ("2.3.539.0", 1), ("2.3.700.0", 3), ("3.0.655.0", 8), (AGENT_VERSION, len(Feature))],
)
def test_features_come_with_versions(version: str, count: int) -> None:
    assert sum(agent_has(version, feature) for feature in Feature) == count


def test_parts_are_compared_as_numbers() -> None:
    assert not agent_has("3.3.99.0", Feature.RANDOM_CHALLENGE)
    assert agent_has("10.0.0.0", Feature.RANDOM_CHALLENGE)


@pytest.mark.parametrize(
    ("session_type", "first"),
    [
        ("Standard_Stream", "0.0.0.1"),
        ("InteractiveCommands", "2.3.668.0"),
        ("Port", "2.3.672.0"),
        ("NonInteractiveCommands", "3.0.1124.0"),
    ],
)
def test_session_types_come_with_versions(session_type: str, first: str) -> None:
    assert is_supported(session_type, first)
    assert is_supported(session_type, AGENT_VERSION)
    assert session_type == "Standard_Stream" or not is_supported(session_type, "2.3.600.0")
    assert not is_supported(session_type + "s", AGENT_VERSION)


def test_versions_on_the_command_line() -> None:
    assert parse_agent_version("2.3.700.0") == "2.3.700.0"
    for text in ("", "3.3.987", "3.3.987.0.1", "v3.3.987.0", "3.3.987.x", "3.3.987.0\n"):
        with pytest.raises(UsageError, match="no agent version"):
            parse_agent_version(text)
