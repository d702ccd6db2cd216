"""Session documents: what a name in StartSession means to the agent.

Source: docs/PROTOCOL.md sections 1.3 and 1.4; the contents of the service's own documents are public observation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssm_proxy.wire.constants import SessionType

PORT_PATTERN = (
    r"([1-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"  # 1 to 65535
)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter that a document declares."""

    default: str
    pattern: str = r".*"


@dataclass(frozen=True, kw_only=True)
class SessionDocument:
    """What the agent makes of a document."""

    session_type: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    properties: Mapping[str, str] | None = None
    """With placeholders such as ``{{ portNumber }}``; sent to the client for Port sessions only."""
    kms_key_id: str = ""
    """Not empty: the agent asks for encryption, except for Port sessions."""


SERVICE_DOCUMENTS: Mapping[str, SessionDocument] = {
    "AWS-StartSSHSession": SessionDocument(
        session_type=SessionType.PORT,
        parameters={"portNumber": Parameter(default="22", pattern=PORT_PATTERN)},
        properties={"portNumber": "{{ portNumber }}"},
    ),
}
"""The service's own documents that this emulator knows. A further one is a further row."""


class ParameterError(ValueError):
    """The caller's parameters do not fit the document; the text is for the caller."""


def resolve_properties(document: SessionDocument, parameters: Mapping[str, Any]) -> dict[str, str] | None:
    """Put the caller's parameters, or their defaults, into the properties.

    The API has arrays of strings; the agent gets plain strings (docs/PROTOCOL.md section 1.4).

    Raises:
        ParameterError: a parameter is unknown, has not exactly one value, or is outside its pattern.
    """
    values = {name: parameter.default for name, parameter in document.parameters.items()}
    for name, given in parameters.items():
        declared = document.parameters.get(name)
        if declared is None:
            raise ParameterError(f"Parameters [{name}] are not defined in the document.")
        if len(given) != 1:
            raise ParameterError(f"Parameter {name} of type String takes exactly one value.")
        if not re.fullmatch(declared.pattern, given[0], re.ASCII):
            raise ParameterError(f"Parameter {name} has a value that does not match its allowed pattern.")
        values[name] = given[0]
    if document.properties is None:
        return None
    return {
        name: re.sub(r"\{\{ *(\w+) *\}\}", lambda match: values.get(match[1], match[0]), text)
        for name, text in document.properties.items()
    }
