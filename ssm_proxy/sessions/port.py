"""Port sessions: which of the three kinds a session is (docs/PROTOCOL.md section 8.5).

Only the stream kind is spoken here: one connection, the bytes of standard input and output (8.6). The basic and the
multiplexed kind, which need a listener, join in this module.
"""

from __future__ import annotations

from typing import Any

from ssm_proxy.wire.constants import SessionType

LOCAL_PORT_FORWARDING = "LocalPortForwarding"


def check_stream_session(session_type: str, properties: Any) -> str | None:
    """Say why a session cannot carry one stream of bytes, or give None if it can."""
    if session_type != SessionType.PORT:
        return f"it is of type {session_type!r}, which is for people and commands; a tunnel needs 'Port'"
    kind = properties.get("type") if isinstance(properties, dict) else None
    if kind == LOCAL_PORT_FORWARDING:
        return "it forwards a local port; a tunnel needs a document whose properties have no 'type'"
    return None
