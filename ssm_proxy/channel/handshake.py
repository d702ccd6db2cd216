"""What the agent asks for at the start, and what we answer.

    WAITING --HandshakeRequest--> ANSWERED --HandshakeComplete--> COMPLETE
    WAITING --Output------------> COMPLETE                        a shell without handshake (6.1)

An action that we cannot do is answered as such, which makes the agent fail the session (6.4); the error then kept in
``refusal`` says why. Encryption and the shell types join here: each is one more entry of what is answered with success.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from ssm_proxy.errors import EncryptionError, HandshakeFailed, SsmProxyError
from ssm_proxy.wire.constants import (
    ACTION_KMS_ENCRYPTION,
    ACTION_SESSION_TYPE,
    CLIENT_VERSION,
    ActionStatus,
    SessionType,
)
from ssm_proxy.wire.payloads import HandshakeRequest, HandshakeResponse, ProcessedAction, RequestedAction

SessionCheck = Callable[[str, Any], str | None]
"""Says of a session type and its properties why they cannot be used here, or None if they can. A pure function."""


class HandshakeState(Enum):
    WAITING = "waiting for the agent's request"
    ANSWERED = "request answered, waiting for its completion"
    COMPLETE = "complete"


class Handshake:
    """The client's half of the handshake (docs/PROTOCOL.md section 6)."""

    def __init__(self, check_session: SessionCheck) -> None:
        self._check_session = check_session
        self.state = HandshakeState.WAITING
        self.session_type = ""
        self.properties: Any = None
        self.agent_version = ""
        self.refusal: SsmProxyError | None = None

    def answer(self, request: HandshakeRequest) -> HandshakeResponse:
        """Answer every requested action, in order. To be sent exactly once: a second answer blocks the agent (6.2)."""
        self.agent_version = request.agent_version
        processed = tuple(self._process(action) for action in request.requested_actions)
        self.state = HandshakeState.ANSWERED
        return HandshakeResponse(client_version=CLIENT_VERSION, processed_actions=processed)

    def complete(self) -> None:
        """Take note of HandshakeComplete."""
        if not self.session_type:
            self._refuse(HandshakeFailed("the agent completed the handshake without naming a session type"))
        self.state = HandshakeState.COMPLETE

    def start_without_handshake(self) -> None:
        """Take note that output came first: agents open shells so, unless they are encrypted (6.1)."""
        self._use(SessionType.STANDARD_STREAM, None)
        self.state = HandshakeState.COMPLETE

    def _process(self, action: RequestedAction) -> ProcessedAction:
        kind = action.action_type
        if kind == ACTION_SESSION_TYPE:
            session_type = action.parameter("SessionType")
            error = self._use(session_type if isinstance(session_type, str) else "", action.parameter("Properties"))
            if error is None:
                return ProcessedAction(action_type=kind, status=ActionStatus.SUCCESS)
            return ProcessedAction(action_type=kind, status=ActionStatus.FAILED, error=error)
        if kind == ACTION_KMS_ENCRYPTION:
            error = "this client cannot encrypt sessions with KMS"
            self._refuse(
                EncryptionError(
                    "the session asks for KMS encryption, which is not available here",
                    cause="the session document or the account's Session Manager preferences name a KMS key",
                    hint="use the document AWS-StartSSHSession: SSH encrypts end to end and never asks for KMS",
                )
            )
        else:
            error = f"unknown action {kind!r}"
            self._refuse(
                HandshakeFailed(
                    f"the agent asks for {kind!r} at the start of the session, which this version does not know",
                    hint="look for a newer version of ssm-proxy",
                )
            )
        return ProcessedAction(action_type=kind, status=ActionStatus.UNSUPPORTED, error=error)

    def _use(self, session_type: str, properties: Any) -> str | None:
        self.session_type = session_type
        self.properties = properties
        error = self._check_session(session_type, properties)
        if error is not None:
            self._refuse(
                HandshakeFailed(
                    "the session document opens a session that cannot be used here",
                    cause=error,
                    hint="leave out --document-name, or name a document that is made like AWS-StartSSHSession",
                )
            )
        return error

    def _refuse(self, error: SsmProxyError) -> None:
        if self.refusal is None:
            self.refusal = error
