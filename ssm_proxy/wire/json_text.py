"""JSON objects in payloads: written in the official spelling, read as leniently as the official programs read.

Both official programs are written in Go and match member names without regard to case: the exact spelling is written,
any is read, unknown members are ignored (docs/PROTOCOL.md section 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ssm_proxy.errors import MalformedMessage


def parse_object(payload: bytes, what: str) -> dict[str, Any]:
    """Parse a payload that has to be a JSON object.

    Args:
        payload: the whole of it.
        what: the name of the payload, for the error.

    Raises:
        MalformedMessage: no JSON, or no object.
    """
    try:
        value = json.loads(payload.decode())  # from text: guessing the encoding of bytes takes half of the time
    except (ValueError, RecursionError) as error:  # ValueError covers bad JSON and bad UTF-8
        raise MalformedMessage(f"the payload of {what} is not JSON") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"the payload of {what} is not a JSON object")
    return value


def member(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Give a member by its name, the exact one before one that differs in case."""
    if name in values:
        return values[name]
    wanted = name.lower()
    for key, value in values.items():
        if key.lower() == wanted:
            return value
    return default


def text_member(values: Mapping[str, Any], name: str) -> str:
    """Give a member that is text; anything else counts as absent, which is empty text."""
    value = member(values, name)
    return value if isinstance(value, str) else ""


def compact(value: object) -> bytes:
    """Give JSON without spaces and with the members in their order, as the official programs write it."""
    return json.dumps(value, separators=(",", ":")).encode()
