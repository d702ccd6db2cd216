"""What the agent asks for at the start, and what we answer.

    WAITING --HandshakeRequest--------------> ANSWERED ----HandshakeComplete--> COMPLETE
    WAITING --HandshakeRequest with KMS-----> KEY_NEEDED --key-----------> ENCRYPTED
    ENCRYPTED --EncChallengeRequest---------> CHALLENGED --HandshakeComplete--> COMPLETE
    WAITING --Output------------------------> COMPLETE                          a shell without handshake (6.1)

An action that we cannot do is answered as such, which makes the agent fail the session (6.4); the error then kept in
``refusal`` says why.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.channel.events import DataKeyNeeded, Event, MessageDropped, SessionStarted
from ssm_proxy.errors import (
    ChallengeFailed,
    EncryptionError,
    HandshakeFailed,
    ProtocolError,
    RemoteProtocolError,
    SsmProxyError,
)
from ssm_proxy.wire.constants import (
    ACTION_KMS_ENCRYPTION,
    ACTION_SESSION_TYPE,
    CLIENT_VERSION,
    ActionStatus,
    PayloadType,
    SessionType,
)
from ssm_proxy.wire.payloads import (
    HandshakeRequest,
    HandshakeResponse,
    ProcessedAction,
    RequestedAction,
    decode_handshake_complete,
    decode_handshake_request,
    encode_handshake_response,
)

SessionCheck = Callable[[str, Any], str | None]
"""Says of a session type and its properties why they cannot be used here, or None if they can. A pure function."""


class HandshakeState(Enum):
    WAITING = "waiting for the agent's request"
    KEY_NEEDED = "waiting for a data key, to answer the request"
    ENCRYPTED = "request answered, waiting for the agent's challenge"
    CHALLENGED = "challenge answered, waiting for the completion"
    ANSWERED = "request answered, waiting for its completion"
    COMPLETE = "complete"


class Step(NamedTuple):
    """What one step of the handshake calls for; whether it failed is in ``Handshake.refusal``."""

    reply: tuple[PayloadType, bytes] | None = None
    """Payload type and payload to send, also after a failure: the agent waits for it."""
    event: Event | None = None


class Handshake:
    """The client's half of the handshake (docs/PROTOCOL.md sections 6 and 7)."""

    def __init__(self, check_session: SessionCheck) -> None:
        self._check_session = check_session
        self._processed: list[ProcessedAction] = []
        self.state = HandshakeState.WAITING
        self.session_type = ""
        self.properties: Any = None
        self.agent_version = ""
        self.key_needed: DataKeyNeeded | None = None
        self.cipher: PayloadCipher | None = None
        self.refusal: SsmProxyError | None = None

    def receive(self, payload_type: int, payload: bytes) -> Step:
        """Take a HandshakeRequest, an EncChallengeRequest or a HandshakeComplete."""
        if payload_type == PayloadType.HANDSHAKE_REQUEST:
            return self._receive_request(payload)
        if payload_type == PayloadType.ENC_CHALLENGE_REQUEST:
            return self._receive_challenge(payload)
        if self.state is HandshakeState.COMPLETE:
            return Step(event=MessageDropped("a second completion of the handshake"))
        try:
            customer_message = decode_handshake_complete(payload).customer_message
        except ProtocolError:
            customer_message = ""  # the message itself is what matters
        self.complete()
        return self._start(customer_message)

    def start_without_handshake(self) -> Step:
        """Take note that output came first: agents open shells so, unless they are encrypted (6.1)."""
        if self.state is HandshakeState.WAITING:
            self._use(SessionType.STANDARD_STREAM, None)
        else:
            self._refuse(HandshakeFailed("the agent sent output before the handshake was complete"))
        self.state = HandshakeState.COMPLETE
        return self._start("")

    def provide_key(self, key: DataKey, first_nonce: int) -> Step:
        """Take the data key that ``key_needed`` asked for, and answer the request that waited for it."""
        if self.key_needed is None or self.state is not HandshakeState.KEY_NEEDED:
            return Step()
        try:
            self.cipher = PayloadCipher(key, first_nonce)
        except EncryptionError as error:
            return self.refuse_key(error)
        result: dict[str, Any] = {
            "KMSCipherTextKey": base64.b64encode(key.ciphertext).decode(),
            "KMSCipherTextHash": None,
        }
        if self.key_needed.challenge is not None:
            result["ChallengeAcknowledgement"] = True
        self._process_key(ActionStatus.SUCCESS, result, "")
        self.state = HandshakeState.ENCRYPTED
        return self._reply(self._response())

    def refuse_key(self, error: SsmProxyError) -> Step:
        """Answer the request that waited for a data key without one."""
        if self.state is not HandshakeState.KEY_NEEDED:
            return Step()
        self._process_key(ActionStatus.FAILED, None, ": ".join(filter(None, (error.message, error.cause))))
        self._refuse(error)
        self.state = HandshakeState.ANSWERED
        return self._reply(self._response())

    def answer(self, request: HandshakeRequest) -> HandshakeResponse | None:
        """Answer every requested action, in order. To be sent exactly once: a second answer blocks the agent (6.2).

        Returns:
            The answer; None if it has to wait for the data key that ``key_needed`` names.
        """
        self.agent_version = request.agent_version
        for action in request.requested_actions:
            self._processed.append(self._process(action))
        if self.key_needed is not None and self.refusal is None:
            self.state = HandshakeState.KEY_NEEDED
            return None
        self.state = HandshakeState.ANSWERED
        return self._response()

    def complete(self) -> None:
        """Take note of HandshakeComplete."""
        if self.state in (HandshakeState.KEY_NEEDED, HandshakeState.ENCRYPTED):
            self._refuse(
                ChallengeFailed(
                    "the agent completed the handshake without proving that it has the data key",
                    cause="it asked for encryption, and then sent no challenge",
                )
            )
        elif not self.session_type:
            self._refuse(HandshakeFailed("the agent completed the handshake without naming a session type"))
        self.state = HandshakeState.COMPLETE

    def _receive_request(self, payload: bytes) -> Step:
        if self.state is not HandshakeState.WAITING:
            return Step(event=MessageDropped("a second handshake request"))
        try:
            request = decode_handshake_request(payload)
        except ProtocolError as error:
            self._refuse(HandshakeFailed("the agent's handshake request cannot be read", cause=error.message))
            return Step()
        response = self.answer(request)
        return Step(event=self.key_needed) if response is None else self._reply(response)

    def _receive_challenge(self, payload: bytes) -> Step:
        """Answer the challenge, once: a second answer blocks the agent (6.2)."""
        from ssm_proxy.wire.shell_payloads import decode_challenge, encode_challenge

        if self.cipher is None or self.state is not HandshakeState.ENCRYPTED:
            return Step(event=MessageDropped("a challenge that was not expected"))
        try:
            challenge = self.cipher.decrypt(decode_challenge(payload))
        except (RemoteProtocolError, EncryptionError) as error:
            self._refuse(
                ChallengeFailed(
                    "the agent's challenge cannot be decrypted",
                    cause=error.cause or error.message,
                    hint="connect again; if it stays so, what is between here and the node cannot be trusted",
                )
            )
            return Step()
        self.state = HandshakeState.CHALLENGED
        return Step((PayloadType.ENC_CHALLENGE_RESPONSE, encode_challenge(self.cipher.encrypt(challenge))))

    def _start(self, customer_message: str) -> Step:
        if self.refusal is not None:
            return Step()
        event = SessionStarted(self.session_type, self.properties, self.agent_version, customer_message)
        return Step(event=event)

    @staticmethod
    def _reply(response: HandshakeResponse) -> Step:
        return Step((PayloadType.HANDSHAKE_RESPONSE, encode_handshake_response(response)))

    def _process(self, action: RequestedAction) -> ProcessedAction:
        kind = action.action_type
        if kind == ACTION_SESSION_TYPE:
            session_type = action.parameter("SessionType")
            error = self._use(session_type if isinstance(session_type, str) else "", action.parameter("Properties"))
            if error is None:
                return ProcessedAction(action_type=kind, status=ActionStatus.SUCCESS)
            return ProcessedAction(action_type=kind, status=ActionStatus.FAILED, error=error)
        if kind == ACTION_KMS_ENCRYPTION:
            return self._ask_for_key(action)
        error = f"unknown action {kind!r}"
        self._refuse(
            HandshakeFailed(
                f"the agent asks for {kind!r} at the start of the session, which this version does not know",
                hint="look for a newer version of ssm-proxy",
            )
        )
        return ProcessedAction(action_type=kind, status=ActionStatus.UNSUPPORTED, error=error)

    def _ask_for_key(self, action: RequestedAction) -> ProcessedAction:
        key_id, challenge = action.parameter("KMSKeyId"), action.parameter("Challenge")
        error = "no data key was asked for, because the session is refused"
        if not isinstance(key_id, str) or not key_id or self.key_needed is not None:
            error = "a session needs the name of one KMS key"
            self._refuse(HandshakeFailed("the agent asks for encryption without the name of one key", cause=error))
        else:
            self.key_needed = DataKeyNeeded(key_id, challenge if isinstance(challenge, str) else None)
        return ProcessedAction(action_type=action.action_type, status=ActionStatus.FAILED, error=error)

    def _process_key(self, status: ActionStatus, result: Any, error: str) -> None:
        kinds = [action.action_type for action in self._processed]
        processed = ProcessedAction(ACTION_KMS_ENCRYPTION, status, result, error)
        self._processed[kinds.index(ACTION_KMS_ENCRYPTION)] = processed

    def _response(self) -> HandshakeResponse:
        return HandshakeResponse(client_version=CLIENT_VERSION, processed_actions=tuple(self._processed))

    def _use(self, session_type: str, properties: Any) -> str | None:
        self.session_type = session_type
        self.properties = properties
        error = self._check_session(session_type, properties)
        if error is not None:
            self._refuse(
                HandshakeFailed(
                    "the session document opens a session that cannot be used here",
                    cause=error,
                    hint="name a document that is made for this command, or leave out --document-name",
                )
            )
        return error

    def _refuse(self, error: SsmProxyError) -> None:
        if self.refusal is None:
            self.refusal = error
