"""Encryption of payloads between client and agent, over and above TLS (docs/PROTOCOL.md section 7).

AES-256-GCM without additional data: 12 bytes of nonce, the ciphertext, 16 bytes of tag. Each direction has one half of
the data key. ``cryptography`` is imported when the first cipher is made: sessions without encryption do not pay for it.

Source: session-manager-plugin, src/encryption/encrypter.go; amazon-ssm-agent, agent/session/crypto/blockcipher.go.
"""

from __future__ import annotations

from typing import Final

from ssm_proxy.errors import DecryptionFailed, EncryptionError, KmsFailed
from ssm_proxy.secret import DataKey

__all__ = ["DATA_KEY_BYTES", "OVERHEAD_BYTES", "DataKey", "PayloadCipher"]

DATA_KEY_BYTES: Final = 64
_NONCE_BYTES: Final = 12
_NONCES: Final = 1 << 96
_TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = _NONCE_BYTES + _TAG_BYTES
MOST_MESSAGES: Final = 2**32
"""What NIST SP 800-38D (8.3) lets one key encrypt; four TiB of full messages, and far from where the nonces repeat."""


class PayloadCipher:
    """The client's half: encrypts input, decrypts output.

    Args:
        key: the session's data key.
        first_nonce: where the nonces begin to count, a random number; its lowest 96 bits are used. Wherever they
            begin, each is used once, and no key is used in two sessions.

    Raises:
        KmsFailed: a key of another size.
    """

    def __init__(self, key: DataKey, first_nonce: int) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(key.plaintext) != DATA_KEY_BYTES:
            raise KmsFailed(
                "the data key cannot be used", cause=f"it has {len(key.plaintext)} bytes instead of {DATA_KEY_BYTES}"
            )
        self._decryptor = AESGCM(key.plaintext[:32])
        self._encryptor = AESGCM(key.plaintext[32:])
        self._first_nonce = first_nonce
        self._count = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        """Give the wire form, ``OVERHEAD_BYTES`` longer; a different one at each call.

        Raises:
            EncryptionError: the key has encrypted as much as it may.
        """
        if self._count >= MOST_MESSAGES:
            raise EncryptionError(
                "the data key of the session is used up", cause="one key may encrypt so much only", hint="connect again"
            )
        nonce = ((self._first_nonce + self._count) % _NONCES).to_bytes(_NONCE_BYTES, "little")
        self._count += 1
        sealed: bytes = self._encryptor.encrypt(nonce, plaintext, None)
        return nonce + sealed

    def decrypt(self, payload: bytes) -> bytes:
        """Give what the agent encrypted.

        Raises:
            DecryptionFailed: too short, changed on its way, or encrypted with another key or not at all.
        """
        from cryptography.exceptions import InvalidTag

        try:
            plaintext: bytes = self._decryptor.decrypt(payload[:_NONCE_BYTES], payload[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # the latter where there is no whole nonce
            raise DecryptionFailed(
                "what came from the managed node cannot be decrypted",
                cause="it was changed on its way, or is not encrypted with the session's data key",
                hint="connect again; if it stays so, what is between here and the node cannot be trusted",
            ) from None
        return plaintext
