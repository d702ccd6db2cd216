"""What the channel tells its driver, as past facts."""

from __future__ import annotations

from typing import Any, NamedTuple

from ssm_proxy.errors import SsmProxyError


class SessionStarted(NamedTuple):
    """The handshake is over and the session has a type."""

    session_type: str
    properties: Any
    """Resolved properties of the session document; strings throughout, or None (6.3)."""
    agent_version: str
    customer_message: str
    """Text for the user, usually empty (6.5)."""


class OutputReceived(NamedTuple):
    """Bytes from the managed node, in order and once."""

    payload: bytes


class ErrorOutputReceived(NamedTuple):
    """Bytes of a command's standard error, in order with its output; some commands have it apart (8.4)."""

    payload: bytes


class ExitCodeReceived(NamedTuple):
    """The status with which a command ended; output may still follow (8.4)."""

    exit_code: int


class DataKeyNeeded(NamedTuple):
    """The session is to be encrypted; ``provide_data_key`` or ``refuse_data_key`` is the answer (7.1).

    The agent waits 15 s for the answer, from its request on.
    """

    kms_key_id: str
    challenge: str | None
    """Belongs into the encryption context if it is there (7.2)."""


class FlagReceived(NamedTuple):
    """A control value from the agent (4.3); may be one that we do not know."""

    flag: int


class ChannelClosed(NamedTuple):
    """The service says that the session is over."""

    reason: str
    """Empty for a normal end."""


class SessionFailed(NamedTuple):
    """The session cannot go on; the error says why. Nothing follows."""

    error: SsmProxyError


class PublicationChanged(NamedTuple):
    """The service asked us to hold back stream data, or to go on."""

    paused: bool


class MessageDropped(NamedTuple):
    """A message was dropped without an acknowledge, or acknowledged and ignored. For the log."""

    reason: str


Event = (
    SessionStarted
    | OutputReceived
    | ErrorOutputReceived
    | ExitCodeReceived
    | DataKeyNeeded
    | FlagReceived
    | ChannelClosed
    | SessionFailed
    | PublicationChanged
    | MessageDropped
)
