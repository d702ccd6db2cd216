"""Port sessions: which of the three kinds a session is, and what it says about the local end.

All of it comes from the handshake: the properties of the session document and the agent's version (docs/PROTOCOL.md
sections 6.6 and 8.5). Our own version is newer than all gates of the agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from ssm_proxy.errors import HandshakeFailed
from ssm_proxy.wire.constants import SessionType

STREAM_DOCUMENT = "AWS-StartSSHSession"
"""Its name says what AWS made it for; it carries any bytes to any TCP port of the node."""
FORWARDING_DOCUMENT = "AWS-StartPortForwardingSession"
REMOTE_HOST_DOCUMENT = "AWS-StartPortForwardingSessionToRemoteHost"
LOCAL_PORT_FORWARDING = "LocalPortForwarding"
UNIX_SOCKET = "unix"
LAST_AGENT_WITHOUT_MUX = "3.0.196.0"
LAST_AGENT_WITH_KEEPALIVE = "3.1.1511.0"


class PortKind(Enum):
    """How a port session carries connections."""

    STREAM = "one connection, on standard input and output (8.6)"
    BASIC = "a listener, one connection at a time (8.7)"
    MUX = "a listener, many connections (8.8)"


class PortRequest(NamedTuple):
    """A session document and its parameters (1.3)."""

    document_name: str
    parameters: Mapping[str, Sequence[str]]


class LocalEnd(NamedTuple):
    """Where a session document wants the client to listen (8.5)."""

    port: int
    """0 is any free port."""
    socket_path: str | None = None
    """Of a Unix socket, which takes the place of the port."""


def forwarding_request(port: int, host: str | None) -> PortRequest:
    """Give what forwards connections to a port of the node, or of a host that the node reaches."""
    parameters = {"portNumber": [str(port)]}
    if host is None:
        return PortRequest(FORWARDING_DOCUMENT, parameters)
    return PortRequest(REMOTE_HOST_DOCUMENT, {**parameters, "host": [host]})


def check_stream_session(session_type: str, properties: Any) -> str | None:
    """Say why a session cannot carry one stream of bytes, or give None if it can."""
    if session_type != SessionType.PORT:
        return f"it is of type {session_type!r}, which is for people and commands; a tunnel needs 'Port'"
    if _member(properties, "type") == LOCAL_PORT_FORWARDING:
        return "it forwards a local port; a tunnel needs a document whose properties have no 'type'"
    return None


def check_forwarding_session(session_type: str, properties: Any) -> str | None:
    """Say why a session cannot forward connections of a listener, or give None if it can."""
    if session_type != SessionType.PORT:
        return f"it is of type {session_type!r}, which is for people and commands; forwarding needs 'Port'"
    if _member(properties, "type") != LOCAL_PORT_FORWARDING:
        return "it carries one stream only; forwarding needs a document whose 'type' is 'LocalPortForwarding'"
    return None


def port_kind(properties: Any, agent_version: str) -> PortKind:
    """Give the kind of a session of type ``Port``; both sides come to it on their own (6.6, 8.5)."""
    if _member(properties, "type") != LOCAL_PORT_FORWARDING:
        return PortKind.STREAM
    return PortKind.MUX if is_newer(agent_version, LAST_AGENT_WITHOUT_MUX) else PortKind.BASIC


def needs_keepalive(agent_version: str) -> bool:
    """Whether the agent expects a frame every 30 s on a multiplexed session, and sends them (6.6, 12.16)."""
    return not is_newer(agent_version, LAST_AGENT_WITH_KEEPALIVE)


def local_end(properties: Any) -> LocalEnd:
    """Give the local end that the properties ask for.

    Raises:
        HandshakeFailed: they ask for something that there is not.
    """
    if _member(properties, "localConnectionType") == UNIX_SOCKET:
        path = _member(properties, "localUnixSocket")
        if not path or "\0" in path:
            raise HandshakeFailed("the session document wants a Unix socket, but names none that there can be")
        return LocalEnd(0, path)
    text = _member(properties, "localPortNumber") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536):
        raise HandshakeFailed(
            "the session document names a local port that is none", cause=f"localPortNumber is {text[:80]!r}"
        )
    return LocalEnd(int(text))


def is_newer(version: str, than: str) -> bool:
    """Compare versions as the official client does: four numeric parts each, anything else counts as older (6.6)."""
    parts = version.split(".")
    bounds = than.split(".")
    if len(parts) != len(bounds) or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
        return False
    return [int(part) for part in parts] > [int(bound) for bound in bounds]


def _member(properties: Any, name: str) -> str:
    """Give a property as text, empty if it is not there; all that the documents of AWS have are strings."""
    value = properties.get(name) if isinstance(properties, dict) else None
    return value if isinstance(value, str) else "" if value is None else str(value)
