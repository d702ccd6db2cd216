"""What a port session is, and what it wants on this side (docs/PROTOCOL.md sections 6.6 and 8.5)."""

from __future__ import annotations

import pytest

from ssm_proxy.errors import HandshakeFailed
from ssm_proxy.sessions.port import (
    LocalEnd,
    PortKind,
    check_forwarding_session,
    check_stream_session,
    is_newer,
    local_end,
    needs_keepalive,
    port_kind,
)

FORWARDING = {"portNumber": "80", "localPortNumber": "0", "type": "LocalPortForwarding"}
OTHER_PROPERTIES = [
    {"portNumber": "22"},
    {"portNumber": "22", "type": "SomethingElse"},
    {"type": ""},
    {"type": None},
    {},
    None,
    "text",
    ["type"],
]
OTHER_TYPES = ["Standard_Stream", "InteractiveCommands", "NonInteractiveCommands", "port", ""]


@pytest.mark.parametrize("properties", OTHER_PROPERTIES)
def test_port_sessions_without_local_forwarding_are_streams(properties: object) -> None:
    assert check_stream_session("Port", properties) is None
    assert port_kind(properties, "3.3.0.0") is PortKind.STREAM
    reason = check_forwarding_session("Port", properties)
    assert reason is not None
    assert "LocalPortForwarding" in reason


def test_local_forwarding_is_none() -> None:
    reason = check_stream_session("Port", FORWARDING)
    assert reason is not None
    assert "forwards a local port" in reason
    assert check_forwarding_session("Port", FORWARDING) is None


@pytest.mark.parametrize("check", [check_stream_session, check_forwarding_session])
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_other_types_are_none(kind: str, check: object) -> None:
    reason = check(kind, FORWARDING)  # type: ignore[operator]
    assert reason is not None
    assert repr(kind) in reason


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("3.3.987.0", PortKind.MUX),
        ("3.0.196.1", PortKind.MUX),
        ("3.0.222.0", PortKind.MUX),
        ("10.0.0.0", PortKind.MUX),
        ("3.0.196.0", PortKind.BASIC),
        ("3.0.195.99", PortKind.BASIC),
        ("2.3.999.0", PortKind.BASIC),
        # Three parts, or anything else than numbers, count as older (12.17).
        ("3.3.987", PortKind.BASIC),
        ("3.3.987.0.1", PortKind.BASIC),
        ("3.3.x.0", PortKind.BASIC),
        ("3.3.\u0661.0", PortKind.BASIC),
        ("3.3.-1.0", PortKind.BASIC),
        ("9" * 5000 + ".0.0.0", PortKind.BASIC),
        ("", PortKind.BASIC),
    ],
)
def test_the_agents_version_decides_about_the_multiplexer(version: str, kind: PortKind) -> None:
    assert port_kind(FORWARDING, version) is kind


@pytest.mark.parametrize(
    ("version", "expected"), [("3.1.1511.0", True), ("3.0.222.0", True), ("3.1.1512.0", False), ("3.3.0.0", False)]
)
def test_keepalive_is_for_agents_up_to_a_version(version: str, expected: bool) -> None:
    assert needs_keepalive(version) is expected


def test_versions_are_compared_as_numbers() -> None:
    assert is_newer("3.0.1124.0", "3.0.196.0")
    assert not is_newer("3.0.196.0", "3.0.196.0")


class TestLocalEnd:
    @pytest.mark.parametrize(
        ("properties", "end"),
        [
            (FORWARDING, LocalEnd(0)),
            ({}, LocalEnd(0)),
            (None, LocalEnd(0)),
            ({"localPortNumber": ""}, LocalEnd(0)),
            ({"localPortNumber": "8080"}, LocalEnd(8080)),
            ({"localPortNumber": 8080}, LocalEnd(8080)),
            ({"localPortNumber": "8080", "localConnectionType": "tcp"}, LocalEnd(8080)),
            ({"localConnectionType": "unix", "localUnixSocket": "/tmp/s"}, LocalEnd(0, "/tmp/s")),
            (
                {"localConnectionType": "unix", "localUnixSocket": "/tmp/s", "localPortNumber": "x"},
                LocalEnd(0, "/tmp/s"),
            ),
        ],
    )
    def test_what_the_document_wants(self, properties: object, end: LocalEnd) -> None:
        assert local_end(properties) == end

    @pytest.mark.parametrize(
        "properties",
        [
            {"localPortNumber": "65536"},
            {"localPortNumber": "http"},
            {"localPortNumber": ["80"]},
            {"localPortNumber": "-1"},
            {"localPortNumber": "9" * 5000},
            {"localConnectionType": "unix"},
            {"localConnectionType": "unix", "localUnixSocket": ""},
        ],
    )
    def test_what_is_none(self, properties: object) -> None:
        with pytest.raises(HandshakeFailed):
            local_end(properties)
