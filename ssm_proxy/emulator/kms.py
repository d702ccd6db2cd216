"""A key management service with two keys: what sessions need of it, for the client and for the agent.

A wrapped data key is AES-256-GCM under the key's own secret, with the encryption context as additional data: it opens
with the same context only, whoever asks.

Source: docs/PROTOCOL.md section 7.1 and 7.2; the public API reference for members, error names and texts.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ssm_proxy.emulator.calls import Answer, ServiceError, check_allowed
from ssm_proxy.emulator.faults import Faults

ACCOUNT: Final = "123456789012"
KEY_ID: Final = "11111111-2222-3333-4444-555555555555"
KEY_ALIAS: Final = "alias/session-manager"
DISABLED_KEY_ID: Final = "99999999-8888-7777-6666-555555555555"
DISABLED_KEY_ALIAS: Final = "alias/disabled"
_MOST_BYTES: Final = 1024
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, kw_only=True)
class _Key:
    key_id: str
    alias: str
    is_enabled: bool = True
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)


class KeyService:
    """Answers calls by name; also the agent's way to decrypt.

    Args:
        region: part of the keys' names.
        faults: asked anew each time.
    """

    def __init__(self, *, region: str, faults: Callable[[], Faults]) -> None:
        self._region = region
        self._faults = faults
        self._keys = (
            _Key(key_id=KEY_ID, alias=KEY_ALIAS),
            _Key(key_id=DISABLED_KEY_ID, alias=DISABLED_KEY_ALIAS, is_enabled=False),
        )
        self._operations: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "GenerateDataKey": self._generate_data_key,
            "Decrypt": self._decrypt,
        }

    def call(self, operation: str, request: Mapping[str, Any]) -> Answer:
        """Answer one call.

        Raises:
            ServiceError: what the caller gets instead.
        """
        method = self._operations.get(operation)
        if method is None:
            raise ServiceError("UnknownOperationException", f"The operation {operation} is not known.")
        check_allowed(self._faults(), "kms", operation)
        return method(request)

    def _generate_data_key(self, request: Mapping[str, Any]) -> Answer:
        key = self._find(request.get("KeyId"))
        size = request.get("NumberOfBytes", 32 if request.get("KeySpec") == "AES_256" else None)
        if type(size) is not int or not 1 <= size <= _MOST_BYTES:
            raise ServiceError("ValidationException", "Please specify either number of bytes or key spec.")
        plaintext = secrets.token_bytes(size)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(key.secret).encrypt(nonce, plaintext, _context(request))
        return {
            "KeyId": self._arn(key),
            "Plaintext": base64.b64encode(plaintext).decode(),
            "CiphertextBlob": base64.b64encode(key.key_id.encode() + nonce + sealed).decode(),
        }

    def _decrypt(self, request: Mapping[str, Any]) -> Answer:
        try:
            blob = base64.b64decode(request.get("CiphertextBlob", ""), validate=True)
        except (ValueError, TypeError):
            raise ServiceError("SerializationException", "CiphertextBlob is not base64") from None
        name = blob[: len(KEY_ID)]
        key = next((each for each in self._keys if each.key_id.encode() == name), None)
        if key is None:
            raise ServiceError("InvalidCiphertextException", "")
        if request.get("KeyId") is not None and self._find(request["KeyId"]) is not key:
            raise ServiceError(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            )
        rest = blob[len(name) :]
        try:
            plaintext = AESGCM(key.secret).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], _context(request))
        except (InvalidTag, ValueError):
            raise ServiceError("InvalidCiphertextException", "") from None
        return {"KeyId": self._arn(key), "Plaintext": base64.b64encode(plaintext).decode()}

    def _find(self, name: object) -> _Key:
        if not isinstance(name, str) or not name:
            raise ServiceError("ValidationException", "1 validation error detected: Value null at 'keyId'")
        prefix = f"arn:aws:kms:{self._region}:{ACCOUNT}:"
        if name.startswith("arn:") and not name.startswith(f"arn:aws:kms:{self._region}:"):
            region = (name.split(":") + [""] * 4)[3]
            raise ServiceError("NotFoundException", f"Invalid arn {region}")
        for key in self._keys:
            if name in (key.key_id, key.alias, f"{prefix}key/{key.key_id}", f"{prefix}{key.alias}"):
                if not key.is_enabled:
                    raise ServiceError("DisabledException", f"{self._arn(key)} is disabled.")
                return key
        text = "Alias {} is not found." if "alias/" in name else "Key '{}' does not exist"
        raise ServiceError("NotFoundException", text.format(name if name.startswith("arn:") else f"{prefix}{name}"))

    def _arn(self, key: _Key) -> str:
        return f"arn:aws:kms:{self._region}:{ACCOUNT}:key/{key.key_id}"


def _context(request: Mapping[str, Any]) -> bytes:
    context = request.get("EncryptionContext") or {}
    if not isinstance(context, dict) or not all(isinstance(value, str) for value in context.values()):
        raise ServiceError("SerializationException", "EncryptionContext is not a map of strings")
    return json.dumps(context, sort_keys=True).encode()
