"""The agent's half of the handshake: what it asks, and what it makes of the answer.

Source: amazon-ssm-agent, agent/session/datachannel/datachannel.go; docs/PROTOCOL.md section 6.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.documents import ResolvedDocument
from ssm_proxy.emulator.encryption import AgentEncryption, KeyRefused
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
    ProcessedAction,
    RequestedAction,
    decode_handshake_response,
    encode_handshake_complete,
    encode_handshake_request,
)

TIMEOUT_S: Final = 15.0


class State(enum.Enum):
    NOT_ASKED = "not asked"
    WAITING = "waiting"
    ANSWERED = "answered"
    CHALLENGED = "challenged"
    PROVEN = "challenge answered"
    COMPLETE = "complete"


class AgentHandshake:
    """Ask once, take one answer.

    Args:
        document: decides whether there is a handshake (6.1) and what it asks.
        agent_version: what the agent says it is.
        defects: counts what the client did wrong.
        encryption: of a session that is to be encrypted.
    """

    def __init__(
        self,
        document: ResolvedDocument,
        agent_version: str,
        defects: Counter[str],
        encryption: AgentEncryption | None = None,
    ) -> None:
        self._encryption = encryption
        self._document = document
        self._agent_version = agent_version
        self._defects = defects
        self.state = State.NOT_ASKED
        self.failure = ""
        """Why the session must fail; empty while all is well."""
        self.client_version = ""
        self.is_blocked = False
        """A second response stops the agent's reading thread for ever (6.2)."""

    @property
    def is_needed(self) -> bool:
        if not agent_has(self._agent_version, Feature.HANDSHAKE):
            return False
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
                    "Properties": self._document.properties if is_port else None,
                },
            )
        ]
        if self._encryption is not None:
            actions.append(self._encryption.action())
        self.state = State.WAITING
        return encode_handshake_request(HandshakeRequest(agent_version=self._agent_version, requested_actions=actions))

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        """Take input that arrives before HandshakeComplete. It is acknowledged whatever it is, unless False (6.2)."""
        if payload_type == PayloadType.ENC_CHALLENGE_RESPONSE and self._encryption is not None:
            return self._take_challenge_response(self._encryption, payload)
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
        if self._encryption is not None and not self.failure:
            self._take_key(self._encryption, response.processed_actions)
        return True

    def _take_key(self, encryption: AgentEncryption, actions: Sequence[ProcessedAction]) -> None:
        result = next((action.result for action in actions if action.action_type == ACTION_KMS_ENCRYPTION), None)
        try:
            encryption.take_key(result)
        except KeyRefused as error:
            self.failure = str(error)

    def challenge(self) -> bytes:
        """Give the payload of the EncChallengeRequest; of an encrypted session whose request was answered."""
        assert self._encryption is not None
        self.state = State.CHALLENGED
        return self._encryption.challenge_request()

    def take_second_response(self) -> bool:
        """Refuse a HandshakeResponse, or an EncChallengeResponse, that has no request to answer."""
        self._defects["second HandshakeResponse, blocks the agent"] += 1
        self.is_blocked = True
        return False

    def _take_challenge_response(self, encryption: AgentEncryption, payload: bytes) -> bool:
        if self.state is not State.CHALLENGED:
            return self.take_second_response()
        if not encryption.is_answered_by(payload):  # neither acknowledged nor answered (7.4)
            self._defects["wrong EncChallengeResponse"] += 1
            return False
        self.state = State.PROVEN
        return True

    def complete(self, elapsed_s: float, customer_message: str = "") -> bytes:
        """Give the payload of HandshakeComplete."""
        self.state = State.COMPLETE
        return encode_handshake_complete(
            HandshakeComplete(time_to_complete_ns=int(elapsed_s * 1e9), customer_message=customer_message)
        )
