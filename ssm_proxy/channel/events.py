"""What the channel tells its driver, as past facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssm_proxy.errors import SsmProxyError


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """The handshake is over and the session has a type."""

    session_type: str
    properties: Any
    """Resolved properties of the session document; strings throughout, or None (6.3)."""
    agent_version: str
    customer_message: str
    """Text for the user, usually empty (6.5)."""


@dataclass(frozen=True, slots=True)
class OutputReceived:
    """Bytes from the managed node, in order and once."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class FlagReceived:
    """A control value from the agent (4.3); may be one that we do not know."""

    flag: int


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The service says that the session is over."""

    reason: str
    """Empty for a normal end."""


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The session cannot go on; the error says why. Nothing follows."""

    error: SsmProxyError


@dataclass(frozen=True, slots=True)
class PublicationChanged:
    """The service asked us to hold back stream data, or to go on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """A message was dropped without an acknowledge, or acknowledged and ignored. For the log."""

    reason: str


Event = (
    SessionStarted | OutputReceived | FlagReceived | ChannelClosed | SessionFailed | PublicationChanged | MessageDropped
)
