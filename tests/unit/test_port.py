"""Which port sessions carry one stream of bytes (docs/PROTOCOL.md section 8.5)."""

from __future__ import annotations

import pytest

from ssm_proxy.sessions.port import check_stream_session


@pytest.mark.parametrize(
    "properties",
    [{"portNumber": "22"}, {"portNumber": "22", "type": "SomethingElse"}, {"type": ""}, {}, None, "text", ["type"]],
)
def test_port_sessions_without_local_forwarding_are_streams(properties: object) -> None:
    assert check_stream_session("Port", properties) is None


def test_local_forwarding_is_none() -> None:
    reason = check_stream_session("Port", {"portNumber": "22", "type": "LocalPortForwarding"})
    assert reason is not None
    assert "forwards a local port" in reason


@pytest.mark.parametrize("kind", ["Standard_Stream", "InteractiveCommands", "NonInteractiveCommands", "port", ""])
def test_other_types_are_none(kind: str) -> None:
    reason = check_stream_session(kind, {"portNumber": "22"})
    assert reason is not None
    assert repr(kind) in reason
