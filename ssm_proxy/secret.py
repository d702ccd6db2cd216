"""What must not be seen: session tokens, data keys, and whatever else opens a door."""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class Secret:
    """Hold a string that no ``repr``, format, log line or pickle shows.

    Equality takes the same time wherever two secrets differ. A secret has no hash, because a hash of a guessable
    text gives the text away and because nothing needs secrets as keys.

    Args:
        value: the text to hide; ``reveal()`` gives it back.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Give the text; call it only where the text leaves for its destination."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, format_spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")


@final
class DataKey:
    """A data key that KMS made; nothing shows the readable half.

    Args:
        plaintext: the key itself, 64 bytes (docs/PROTOCOL.md section 7.2).
        ciphertext: the same, encrypted under the KMS key, for the agent to decrypt.
    """

    __slots__ = ("ciphertext", "plaintext")

    def __init__(self, plaintext: bytes, ciphertext: bytes) -> None:
        self.plaintext = plaintext
        self.ciphertext = ciphertext

    def __repr__(self) -> str:
        return "DataKey(***)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a DataKey cannot be pickled or copied")
