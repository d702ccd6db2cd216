"""The agent's half of an encrypted session: data key, challenge, payloads.

Source: amazon-ssm-agent, agent/session/crypto/blockcipher.go, nonce.go and agent/session/datachannel/datachannel.go;
docs/PROTOCOL.md section 7. The texts of failures are public observation.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.calls import Answer, ServiceError
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import ACTION_KMS_ENCRYPTION, PayloadType
from ssm_proxy.wire.payloads import RequestedAction
from ssm_proxy.wire.shell_payloads import decode_challenge, encode_challenge

CUSTOMER_MESSAGE: Final = "This session is encrypted using AWS KMS."
ENCRYPTED: Final = frozenset({PayloadType.OUTPUT, PayloadType.STDERR, PayloadType.EXIT_CODE})
_NONCE_BYTES: Final = 12
_CHALLENGE_BYTES: Final = 64

CallKms = Callable[[str, Mapping[str, Any]], Answer]
"""Takes the name of an operation and its request; raises a ServiceError."""


class KeyRefused(Exception):
    """The data key cannot be used; the text is for the client."""


class AgentEncryption:
    """One session's cipher, from the request for a key on.

    Args:
        key_id: the KMS key that the document names.
        session_id: part of the encryption context.
        target: the node's own identifier, part of it too.
        agent_version: decides about challenge and nonces.
        call_kms: the agent's way to KMS.
    """

    def __init__(self, *, key_id: str, session_id: str, target: str, agent_version: str, call_kms: CallKms) -> None:
        self._key_id = key_id
        self._context = {"aws:ssm:SessionId": session_id, "aws:ssm:TargetId": target}
        self._call_kms = call_kms
        self._random_challenge = ""
        self._next_nonce: int | None = None  # None: each one random, as before the version that counts them
        if agent_has(agent_version, Feature.RANDOM_CHALLENGE):
            self._random_challenge = base64.b64encode(secrets.token_bytes(16)).decode()
            self._next_nonce = secrets.randbits(8 * _NONCE_BYTES)
        self._challenge = secrets.token_bytes(_CHALLENGE_BYTES)
        self._encryptor: AESGCM | None = None
        self._decryptor: AESGCM | None = None

    def action(self) -> RequestedAction:
        """Give what the handshake request asks for."""
        parameters = {"KMSKeyId": self._key_id}
        if self._random_challenge:
            parameters["Challenge"] = self._random_challenge
        return RequestedAction(action_type=ACTION_KMS_ENCRYPTION, parameters=parameters)

    def take_key(self, result: Any) -> None:
        """Open the data key of the client's answer.

        Raises:
            KeyRefused: there is none, or KMS does not open it.
        """
        values = result if isinstance(result, dict) else {}
        members = {name.lower(): value for name, value in values.items()}
        context = dict(self._context)
        if self._random_challenge and members.get("challengeacknowledgement") is True:
            context["aws:ssm:RandomChallenge"] = self._random_challenge
        request = {
            "CiphertextBlob": members.get("kmsciphertextkey"),
            "EncryptionContext": context,
            "KeyId": self._key_id,
        }
        try:
            plaintext = base64.b64decode(self._call_kms("Decrypt", request)["Plaintext"])
        except ServiceError as error:
            raise KeyRefused(
                "Fetching data key failed: Unable to retrieve data key, Error when decrypting data key "
                f"{error.error_type}: {error.message}"
            ) from error
        if len(plaintext) != 64:
            raise KeyRefused(f"Fetching data key failed: data key of {len(plaintext)} bytes")
        self._encryptor, self._decryptor = AESGCM(plaintext[:32]), AESGCM(plaintext[32:])

    def challenge_request(self) -> bytes:
        """Give the payload of EncChallengeRequest."""
        return encode_challenge(self.encrypt(self._challenge))

    def is_answered_by(self, payload: bytes) -> bool:
        """Say whether this payload of an EncChallengeResponse has the challenge, encrypted by the client."""
        try:
            return secrets.compare_digest(self.decrypt(decode_challenge(payload)), self._challenge)
        except (MalformedMessage, ValueError):
            return False

    def encrypt(self, plaintext: bytes) -> bytes:
        if self._encryptor is None:
            raise RuntimeError("there is no data key yet")
        if self._next_nonce is None:
            nonce = secrets.token_bytes(_NONCE_BYTES)
        else:
            nonce = self._next_nonce.to_bytes(_NONCE_BYTES, "little")
            self._next_nonce = (self._next_nonce + 1) % (1 << 8 * _NONCE_BYTES)
        return nonce + self._encryptor.encrypt(nonce, plaintext, None)

    def decrypt(self, payload: bytes) -> bytes:
        """Give what the client encrypted.

        Raises:
            ValueError: it cannot be decrypted.
        """
        if self._decryptor is None:
            raise ValueError("there is no data key yet")
        try:
            return self._decryptor.decrypt(payload[:_NONCE_BYTES], payload[_NONCE_BYTES:], None)
        except InvalidTag:
            raise ValueError("a payload that does not decrypt") from None
