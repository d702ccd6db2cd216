"""Sessions with a terminal on the node: what a person types, and how piped input ends (docs/PROTOCOL.md 8.1 to 8.3)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ssm_proxy.wire.constants import SessionType

END_OF_INPUT: Final = b"\x04"
"""What a terminal takes for the end of its input, at the start of a line. The protocol itself has none."""
INTERRUPT: Final = b"\x03"
MAX_LINE_BYTES: Final = 4095
"""A Linux terminal that edits lines keeps so much of one, its newline included, and drops the rest without a word."""

ESCAPES: Final = (
    "~.  end the session here and now",
    "~~  send one ~",
    "~?  this list",
)
"""What a person can type at the start of a line, as in ssh."""

_TILDE, _DOT, _QUESTION = b"~.?"
_LINE_ENDS: Final = b"\r\n"


def check_shell_session(session_type: str, _properties: Any) -> str | None:
    """Say why a session is none for a terminal, or give None if it is."""
    if session_type == SessionType.PORT:
        return "it is of type 'Port', which carries connections; a shell or a command is wanted here"
    return None


class Typed(NamedTuple):
    """What a person typed."""

    data: bytes
    """For the node."""
    wants_help: bool = False
    wants_end: bool = False
    """What was typed after it is dropped."""


class EscapeFilter:
    """Takes ``~.``, ``~~`` and ``~?`` at the start of a line out of what is typed, however it is cut.

    A ``~`` there is held back until the next byte tells what it is for, as ssh does.
    """

    def __init__(self) -> None:
        self._is_line_start = True
        self._holds_tilde = False

    def feed(self, data: bytes) -> Typed:
        """Take the next bytes."""
        kept = bytearray()
        wants_help = False
        for byte in data:
            if self._holds_tilde:
                self._holds_tilde = False
                if byte == _DOT:
                    return Typed(bytes(kept), wants_help=wants_help, wants_end=True)
                if byte == _QUESTION:
                    wants_help = True
                    continue
                if byte != _TILDE:
                    kept.append(_TILDE)
            elif byte == _TILDE and self._is_line_start:
                self._holds_tilde = True
                continue
            kept.append(byte)
            self._is_line_start = byte in _LINE_ENDS
        return Typed(bytes(kept), wants_help=wants_help)


class PipedInput:
    """Watches input that does not come from a terminal: for its end, and for lines that the node's terminal cuts."""

    def __init__(self) -> None:
        self._line_bytes = 0
        self.has_long_line = False
        """Whether a line was longer than `MAX_LINE_BYTES`."""

    def feed(self, data: bytes) -> None:
        """Take note of the next bytes for the node."""
        first, *others = data.split(b"\n")
        self._count(self._line_bytes + len(first))
        for line in others:
            self._count(len(line))

    def ending(self) -> bytes:
        """Give what tells the node that the input has ended: a terminal heeds it at the start of a line only."""
        return b"\n" + END_OF_INPUT if self._line_bytes else END_OF_INPUT

    def _count(self, length: int) -> None:
        self._line_bytes = length
        self.has_long_line |= length >= MAX_LINE_BYTES
