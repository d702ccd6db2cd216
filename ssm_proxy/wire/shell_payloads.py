"""Payloads that a tunnel never reads: terminal size, encryption challenge, exit code, and the state of a session.

Apart from ``payloads`` so that a tunnel, which starts for each ssh, does not load them.

Source: amazon-ssm-agent, agent/session/contracts/model.go; docs/PROTOCOL.md sections 4.1, 4.2, 7.4, 8.1 and 8.4.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, Final

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import MessageType
from ssm_proxy.wire.json_text import compact, member, parse_object, text_member

_U32_MAX = 2**32 - 1
_EXIT_CODE = re.compile(rb"\s*EXIT_CODE:\s*(-?[0-9]{1,10})\s*")
"""Ten digits: no system has statuses of more than 32 bits, and Windows uses all of them."""


# --- size ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TerminalSize:
    """What the terminal of the client shows, in characters: payload type 3 (8.1). Each is a u32."""

    columns: int
    rows: int


def encode_size(size: TerminalSize) -> bytes:
    """Give the JSON payload of a Size, which is never encrypted (7.3)."""
    return compact({"cols": size.columns, "rows": size.rows})


def decode_size(payload: bytes) -> TerminalSize:
    """Parse a Size (the emulator's side).

    Raises:
        MalformedMessage: not a JSON object, or without two numbers that fit a u32.
    """
    values = parse_object(payload, "Size")
    return TerminalSize(columns=_u32_member(values, "cols"), rows=_u32_member(values, "rows"))


def _u32_member(values: dict[str, Any], name: str) -> int:
    number = member(values, name)
    if type(number) is not int or not 0 <= number <= _U32_MAX:
        raise MalformedMessage(f"a Size without a usable number of {name}")
    return number


# --- challenge -----------------------------------------------------------------------------------------------------


def encode_challenge(challenge: bytes) -> bytes:
    """Give the JSON payload of an EncChallengeRequest or EncChallengeResponse, which look the same (7.4).

    Args:
        challenge: as encrypted by the sender: 92 bytes for the official 64.
    """
    return compact({"Challenge": base64.b64encode(challenge).decode()})


def decode_challenge(payload: bytes) -> bytes:
    """Parse an EncChallengeRequest or EncChallengeResponse; what comes is still encrypted, of any length.

    Raises:
        MalformedMessage: not a JSON object, or no standard base64 in it.
    """
    text = member(parse_object(payload, "a challenge"), "Challenge")
    if not isinstance(text, str):
        raise MalformedMessage("a challenge without a value")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise MalformedMessage("the value of a challenge is not base64") from error


# --- exit code -----------------------------------------------------------------------------------------------------


def encode_exit_code(exit_code: int) -> bytes:
    """Give the text payload of an ExitCode, before encryption (7.3, 8.4)."""
    return b"EXIT_CODE: %d" % exit_code


def decode_exit_code(payload: bytes) -> int:
    """Parse an ExitCode, after decryption; blanks around its parts do not matter.

    Raises:
        MalformedMessage: other text, or a number of more than ten digits.
    """
    match = _EXIT_CODE.fullmatch(payload)
    if match is None:
        raise MalformedMessage("an ExitCode that names no number")
    return int(match[1])


# --- agent_session_state -------------------------------------------------------------------------------------------


class SessionState:
    """States that an agent tells (4.1)."""

    CONNECTED: Final = "Connected"
    TERMINATING: Final = "Terminating"


@dataclass(frozen=True, kw_only=True)
class AgentSessionState:
    """What the agent tells the service about a session (4.1); clients never see it."""

    session_id: str
    state: str
    """One of ``SessionState``, or one that we do not know."""


def encode_agent_session_state(state: AgentSessionState) -> bytes:
    return compact({"SchemaVersion": 1, "SessionState": state.state, "SessionId": state.session_id})


def decode_agent_session_state(payload: bytes) -> AgentSessionState:
    """Parse an agent_session_state (the service's side); its schema version does not matter.

    Raises:
        MalformedMessage: not a JSON object, or no state in it.
    """
    values = parse_object(payload, MessageType.AGENT_SESSION_STATE)
    state = text_member(values, "SessionState")
    if not state:
        raise MalformedMessage("an agent_session_state without a state")
    return AgentSessionState(session_id=text_member(values, "SessionId"), state=state)
