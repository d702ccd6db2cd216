"""Cuts output between characters, as the agent does.

Source: amazon-ssm-agent, agent/session/shell/shell.go (processStdoutData); docs/PROTOCOL.md sections 8.2 and 12.28.
"""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 4
_REPLACEMENT: Final = "\ufffd"


class CharacterCutter:
    """Holds back up to three bytes at the end that are no whole character; they are lost if nothing follows."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, data: bytes) -> bytes:
        """Give what may be sent now, perhaps nothing.

        Bytes that are no UTF-8 pass, unless they stand among the last three: those wait with all that follows them.
        U+FFFD is taken for such a byte: three at the end wait, and elsewhere only its first byte is sent.
        """
        data, self._held = self._held + data, b""
        try:
            if _REPLACEMENT not in data.decode():
                return data
        except UnicodeDecodeError:
            pass
        sent = bytearray()
        position = 0
        while position < len(data):
            width = _character_width(data, position)
            if width:
                sent += data[position : position + width]
                position += width
                continue
            if len(data) - position < _LONGEST:
                self._held = data[position:]
                break
            sent.append(data[position])
            position += 3 if data.startswith(_REPLACEMENT.encode(), position) else 1
        return bytes(sent)


def _character_width(data: bytes, position: int) -> int:
    """Give the length of the character that begins here; 0 is none, or U+FFFD."""
    for width in range(1, _LONGEST + 1):
        try:
            return 0 if data[position : position + width].decode() == _REPLACEMENT else width
        except UnicodeDecodeError:
            pass
    return 0
