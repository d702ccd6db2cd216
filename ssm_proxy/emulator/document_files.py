"""Reads session documents from JSON files, as an account keeps them.

Source: amazon-ssm-agent, agent/contracts/model.go; docs/PROTOCOL.md section 1.3, the public API for the limits of
timeouts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ssm_proxy.emulator.documents import STRING_LIST, Parameter, SessionDocument, Value
from ssm_proxy.errors import UsageError

_LARGEST_BYTES: Final = 64 * 1024
"""The service's limit for a document."""
_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{3,128}", re.ASCII)
_KINDS: Final = ("String", STRING_LIST, "Boolean", "Integer")
_MINUTES: Final = {"idleSessionTimeout": 60, "maxSessionDuration": 1440}
"""Inputs that are a whole number of minutes as text, from 1 to this."""


def load_documents(paths: Iterable[Path]) -> dict[str, SessionDocument]:
    """Read files, and every ``*.json`` in folders; a document's name is its file's without the ending.

    Raises:
        UsageError: a file cannot be read, or does not hold a session document.
    """
    documents: dict[str, SessionDocument] = {}
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"there is no session document in '{path}'", hint="documents are files named NAME.json")
        for file in files:
            if not _NAME.fullmatch(file.stem):
                raise UsageError(f"'{file.stem}' is no name for a document", hint="letters, digits, _ . - (3 to 128)")
            documents[file.stem] = _load(file)
    return documents


def _load(file: Path) -> SessionDocument:
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"'{file}' cannot be read", cause=str(error)) from error
    if len(text) > _LARGEST_BYTES:
        raise UsageError(f"'{file}' is no session document", cause="it has more than 64 KiB")
    try:
        return parse_document(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{file}' is no session document", cause=str(error)) from error


def parse_document(values: Any) -> SessionDocument:
    """Read a document from its JSON.

    A wrong ``schemaVersion``, an unknown ``sessionType`` and defaults outside their own limits are left to the agent,
    which drops or fails such sessions (1.4).

    Raises:
        ValueError: something has the wrong shape; the text says what.
    """
    document = _object(values, "the document")
    inputs = _object(document.get("inputs") or {}, "inputs")
    for name, most in _MINUTES.items():
        _check_minutes(inputs.get(name), name, most)
    parameters = _object(document.get("parameters") or {}, "parameters")
    return SessionDocument(
        session_type=_text(document, "sessionType"),
        parameters={name: _parameter(name, each) for name, each in parameters.items()},
        properties=document.get("properties"),
        inputs=inputs,
        schema_version=_text(document, "schemaVersion"),
    )


def _parameter(name: str, values: Any) -> Parameter:
    values = _object(values, f"parameter {name}")
    kind = values.get("type", "String")
    if kind not in _KINDS:
        raise ValueError(f"parameter {name} has no type of {', '.join(_KINDS)}")
    pattern = values.get("allowedPattern", "")
    allowed = values.get("allowedValues", [])
    if not isinstance(pattern, str) or not isinstance(allowed, list):
        raise ValueError(f"allowedPattern or allowedValues of parameter {name} has the wrong type")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"allowedPattern of parameter {name} is no regular expression: {error}") from None
    return Parameter(
        kind=kind,
        default=_default(name, kind, values.get("default")),
        pattern=pattern,
        allowed_values=[_scalar(each) for each in allowed],
        chars=_limits(name, values, "Chars"),
        items=_limits(name, values, "Items"),
    )


def _default(name: str, kind: str, value: Any) -> Value | None:
    if value is None:
        return None
    if kind == STRING_LIST:
        if not isinstance(value, list):
            raise ValueError(f"default of parameter {name} is not a list")
        return [_scalar(each) for each in value]
    if isinstance(value, list | dict):
        raise ValueError(f"default of parameter {name} is not a single value")
    return _scalar(value)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _limits(name: str, values: Mapping[str, Any], what: str) -> tuple[int, int | None]:
    fewest, most = values.get(f"min{what}", 0), values.get(f"max{what}")
    for each in (fewest, most):
        if each is not None and not (type(each) is int or (isinstance(each, str) and re.fullmatch("[0-9]{1,9}", each))):
            raise ValueError(f"min{what} or max{what} of parameter {name} is not a number")
    return int(fewest or 0), None if most is None else int(most)


def _check_minutes(value: Any, name: str, most: int) -> None:
    if value in (None, "") or (isinstance(value, str) and "{{" in value):
        return
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= most:
        raise ValueError(f"{name} is not a text of 1 to {most} minutes")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is missing, or no text")
    return value
