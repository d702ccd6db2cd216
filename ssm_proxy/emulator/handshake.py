"""The agent's half of the handshake: what it asks, and what it makes of the answer.

Source: amazon-ssm-agent, agent/session/datachannel/datachannel.go; docs/PROTOCOL.md section 6.
"""

from __future__ import annotations

import base64
import enum
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Final

from ssm_proxy.emulator.documents import SessionDocument
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import (
    ACTION_KMS_ENCRYPTION,
    ACTION_SESSION_TYPE,
    ActionStatus,
    PayloadType,
    SessionType,
)
from ssm_proxy.wire.payloads import (
    HandshakeComplete,
    HandshakeRequest,
    RequestedAction,
    decode_handshake_response,
    encode_handshake_complete,
    encode_handshake_request,
)

AGENT_VERSION: Final = "3.3.987.0"
TIMEOUT_S: Final = 15.0


class State(enum.Enum):
    NOT_ASKED = "not asked"
    WAITING = "waiting"
    ANSWERED = "answered"
    COMPLETE = "complete"


class AgentHandshake:
    """Ask once, take one answer.

    Args:
        document: decides whether there is a handshake (6.1) and what it asks.
        properties: the document's properties after substitution.
        defects: counts what the client did wrong.
    """

    def __init__(self, document: SessionDocument, properties: Mapping[str, str] | None, defects: Counter[str]) -> None:
        self._document = document
        self._properties = properties
        self._defects = defects
        self.state = State.NOT_ASKED
        self.failure = ""
        """Why the session must fail; empty while all is well."""
        self.client_version = ""
        self.is_blocked = False
        """A second response stops the agent's reading thread for ever (6.2)."""

    @property
    def is_needed(self) -> bool:
        plain = (SessionType.STANDARD_STREAM, SessionType.INTERACTIVE_COMMANDS)
        return self._document.session_type not in plain or bool(self._document.kms_key_id)

    def request(self) -> bytes:
        """Give the payload of the HandshakeRequest."""
        is_port = self._document.session_type == SessionType.PORT
        actions = [
            RequestedAction(
                action_type=ACTION_SESSION_TYPE,
                parameters={
                    "SessionType": self._document.session_type,
                    "Properties": self._properties if is_port else None,
                },
            )
        ]
        if self._document.kms_key_id and not is_port:  # never for ports (12.25)
            challenge = base64.b64encode(secrets.token_bytes(16)).decode()
            parameters = {"KMSKeyId": self._document.kms_key_id, "Challenge": challenge}
            actions.append(RequestedAction(action_type=ACTION_KMS_ENCRYPTION, parameters=parameters))
        self.state = State.WAITING
        return encode_handshake_request(HandshakeRequest(agent_version=AGENT_VERSION, requested_actions=actions))

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        """Take input that arrives before HandshakeComplete. It is acknowledged whatever it is, unless False (6.2)."""
        if payload_type != PayloadType.HANDSHAKE_RESPONSE:
            self._defects["input before HandshakeComplete, thrown away"] += 1
            return True
        if self.state is not State.WAITING:
            return self.take_second_response()
        self.state = State.ANSWERED
        try:
            response = decode_handshake_response(payload)
        except MalformedMessage as error:
            self._defects["HandshakeResponse that cannot be read"] += 1
            self.failure = f"Could not process handshake response: {error.message}"
            return True
        self.client_version = response.client_version
        for action in response.processed_actions:
            if action.status != ActionStatus.SUCCESS:
                self.failure = (
                    f"{action.action_type} failed on client with status {action.status} error: {action.error}"
                )
        return True

    def take_second_response(self) -> bool:
        """Refuse a HandshakeResponse that has no request to answer."""
        self._defects["second HandshakeResponse, blocks the agent"] += 1
        self.is_blocked = True
        return False

    def complete(self, elapsed_s: float) -> bytes:
        """Give the payload of HandshakeComplete."""
        self.state = State.COMPLETE
        return encode_handshake_complete(HandshakeComplete(time_to_complete_ns=int(elapsed_s * 1e9)))
