"""Session documents: what a name in StartSession means to the service and to the agent.

Source: amazon-ssm-agent, agent/framework/docparser/docparser.go; docs/PROTOCOL.md sections 1.3 and 1.4. The contents of
the service's own documents are public observation, its texts for wrong parameters are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ssm_proxy.wire.constants import SessionType

SCHEMA_VERSION: Final = "1.0"
DEFAULT_DOCUMENT: Final = "SSM-SessionManagerRunShell"
PORT_PATTERN: Final = (
    r"^([1-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$"  # 1 to 65535
)
_LOCAL_PORT_PATTERN: Final = PORT_PATTERN.replace("^(", "^(0|")
_PLACEHOLDER: Final = re.compile(r"\{\{\s*([A-Za-z0-9]+)\s*\}\}")
_STORED: Final = re.compile(r"\{\{\s*ssm:")
_USABLE_NAME: Final = re.compile(r"[A-Za-z0-9]+", re.ASCII)

_END: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
"""What is escaped, a class of characters, or the sign for the end."""

STRING_LIST: Final = "StringList"

Value = str | Sequence[str]
"""What a parameter stands for: a text, or several for a StringList."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter that a document declares."""

    kind: str = "String"
    """``type`` in the document. All but StringList take exactly one text."""
    default: Value | None = None
    """None: the caller has to give a value."""
    pattern: str = ""
    """A regular expression that is to be found in each value; anchored only if it says so itself."""
    allowed_values: Sequence[str] = ()
    """Empty: all."""
    chars: tuple[int, int | None] = (0, None)
    """Fewest and most characters of each value."""
    items: tuple[int, int | None] = (0, None)
    """Fewest and most values of a StringList."""

    def flaw(self, values: Sequence[str]) -> str:
        """Say what is wrong with values, or nothing."""
        if self.kind != STRING_LIST and len(values) != 1:
            return f"of type {self.kind} takes exactly one value"
        if self.kind == STRING_LIST and not _within(len(values), self.items):
            return "has too few or too many values"
        for value in values:
            if self.allowed_values and value not in self.allowed_values:
                return "has a value that is not among its allowed values"
            if self.pattern and not re.search(_END.sub(_end, self.pattern), value):
                return "has a value that does not match its allowed pattern"
            if not _within(len(value), self.chars):
                return "has a value that is too short or too long"
        return ""


@dataclass(frozen=True, kw_only=True)
class SessionDocument:
    """A document as it was stored."""

    session_type: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    properties: Any = None
    """Any JSON, with placeholders such as ``{{ portNumber }}``; sent to the client for Port sessions only."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Preferences: ``kmsKeyId``, ``shellProfile``, ``idleSessionTimeout`` and so on; they may hold placeholders too."""
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class ResolvedDocument:
    """What the agent makes of a document and the caller's parameters."""

    session_type: str
    properties: Any = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    flaw: str = ""
    """Not empty: the agent logs this, and drops the start message without any answer (1.4)."""

    @property
    def kms_key_id(self) -> str:
        """Not empty: the agent asks for encryption, except for Port sessions."""
        value = self.inputs.get("kmsKeyId")
        return value if isinstance(value, str) else ""


class ParameterError(ValueError):
    """The caller's parameters do not fit the document; the text is for the caller."""


def check_parameters(document: SessionDocument, given: Mapping[str, Sequence[str]]) -> None:
    """Do the service's part: look at what the caller gave.

    Raises:
        ParameterError: a parameter is unknown, missing, or outside its limits.
    """
    for name, values in given.items():
        declared = document.parameters.get(name)
        if declared is None:
            raise ParameterError(f"Parameters [{name}] are not defined in the document.")
        if flaw := declared.flaw(values):
            raise ParameterError(f"Parameter {name} {flaw}.")
    missing = [name for name, each in document.parameters.items() if each.default is None and name not in given]
    if missing:
        raise ParameterError(f"Parameters [{', '.join(missing)}] must be given a value.")


def resolve_document(document: SessionDocument, given: Mapping[str, Sequence[str]]) -> ResolvedDocument:
    """Do the agent's part: put parameters and defaults into properties and inputs.

    Args:
        given: what :func:`check_parameters` let pass: arrays, as in the API. The agent gets plain texts (1.4).
    """
    values: dict[str, Value] = {}
    flaws = []
    for name, parameter in document.parameters.items():
        value = given.get(name, parameter.default)
        if not _USABLE_NAME.fullmatch(name) or value is None:
            continue
        texts = [value] if isinstance(value, str) else list(value)
        if flaw := parameter.flaw(texts):
            flaws.append(f"parameter {name} {flaw}")
        elif parameter.kind == STRING_LIST:
            values[name] = texts
        else:
            values[name] = texts[0]
    if document.schema_version != SCHEMA_VERSION:
        flaws.append(f"document with schema version {document.schema_version} is not supported")
    properties, inputs = (_substitute(each, values) for each in (document.properties, document.inputs))
    if _STORED.search(json.dumps([properties, inputs])):
        flaws.append("the emulator has no parameter store")
    return ResolvedDocument(
        session_type=document.session_type, properties=properties, inputs=inputs, flaw="; ".join(flaws)
    )


def _substitute(node: Any, values: Mapping[str, Value]) -> Any:
    if isinstance(node, Mapping):
        return {name: _substitute(each, values) for name, each in node.items()}
    if isinstance(node, list):
        return [_substitute(each, values) for each in node]
    if not isinstance(node, str):
        return node
    whole = _PLACEHOLDER.fullmatch(node)
    if whole is not None and whole[1] in values:  # the value itself, whatever its type (1.4)
        return values[whole[1]]
    return _PLACEHOLDER.sub(lambda match: _text(values[match[1]]) if match[1] in values else match[0], node)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(list(value))


def _end(match: re.Match[str]) -> str:
    """Translate ``$``: in the agent's language it is not found before a line end that ends the value."""
    return r"\Z" if match[0] == "$" else match[0]


def _within(number: int, limits: tuple[int, int | None]) -> bool:
    fewest, most = limits
    return number >= fewest and (most is None or number <= most)


# --- the service's own documents -----------------------------------------------------------------------------------

_PORT: Final = Parameter(default="80", pattern=PORT_PATTERN)
_LOCAL_PORT: Final = Parameter(default="0", pattern=_LOCAL_PORT_PATTERN)
_FORWARD: Final = {
    "portNumber": "{{ portNumber }}",
    "localPortNumber": "{{ localPortNumber }}",
    "type": "LocalPortForwarding",
}
_COMMAND: Final = {
    platform: {"commands": "{{ command }}", "runAsElevated": False} for platform in ("linux", "windows", "macos")
}

SERVICE_DOCUMENTS: Final[Mapping[str, SessionDocument]] = {
    DEFAULT_DOCUMENT: SessionDocument(session_type=SessionType.STANDARD_STREAM),
    "AWS-StartSSHSession": SessionDocument(
        session_type=SessionType.PORT,
        parameters={"portNumber": Parameter(default="22", pattern=PORT_PATTERN)},
        properties={"portNumber": "{{ portNumber }}"},
    ),
    "AWS-StartPortForwardingSession": SessionDocument(
        session_type=SessionType.PORT,
        parameters={"portNumber": _PORT, "localPortNumber": _LOCAL_PORT},
        properties=_FORWARD,
    ),
    "AWS-StartPortForwardingSessionToRemoteHost": SessionDocument(
        session_type=SessionType.PORT,
        parameters={
            "portNumber": _PORT,
            "localPortNumber": _LOCAL_PORT,
            "host": Parameter(default="localhost", chars=(1, 1024)),
        },
        properties={**_FORWARD, "host": "{{ host }}"},
    ),
    "AWS-StartPortForwardingSessionToSocket": SessionDocument(
        session_type=SessionType.PORT,
        parameters={"portNumber": _PORT, "localUnixSocket": Parameter(chars=(1, 1024))},
        properties={
            "portNumber": "{{ portNumber }}",
            "localUnixSocket": "{{ localUnixSocket }}",
            "localConnectionType": "unix",
            "type": "LocalPortForwarding",
        },
    ),
    "AWS-StartInteractiveCommand": SessionDocument(
        session_type=SessionType.INTERACTIVE_COMMANDS, parameters={"command": Parameter()}, properties=_COMMAND
    ),
    "AWS-StartNonInteractiveCommand": SessionDocument(
        session_type=SessionType.NON_INTERACTIVE_COMMANDS, parameters={"command": Parameter()}, properties=_COMMAND
    ),
}
