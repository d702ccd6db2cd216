"""What the emulated APIs have in common: answers, errors, and the checks of what was asked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.session_table import OWNER

Answer = dict[str, Any]


class ServiceError(Exception):
    """An answer of the API that is no success.

    Args:
        error_type: name of the error, as clients match it.
        message: its text.
        status: HTTP status.
    """

    def __init__(self, error_type: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.status = status


def check_allowed(faults: Faults, service: str, operation: str) -> None:
    """Refuse an operation that the fault ``deny`` names.

    Raises:
        ServiceError: as IAM has it.
    """
    if operation in faults.deny.split(","):
        raise ServiceError(
            "AccessDeniedException",
            f"User: {OWNER} is not authorized to perform: {service}:{operation} because no identity-based policy "
            f"allows the {service}:{operation} action",
        )


def invalid(value: object, member: str, constraint: str) -> ServiceError:
    """Make the error for a value that breaks a constraint."""
    shown = "null" if value is None else f"'{value}'"
    return ServiceError(
        "ValidationException",
        f"1 validation error detected: Value {shown} at '{member}' failed to satisfy constraint: {constraint}",
    )


def structures(request: Mapping[str, Any], name: str, *, largest: int | None = None) -> Sequence[Mapping[str, Any]]:
    """Give a member that is a list of structures; none is an empty one.

    Raises:
        ServiceError: it is something else, or too long.
    """
    value = request.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ServiceError("SerializationException", f"{name} is not a list of structures")
    if largest is not None and not 1 <= len(value) <= largest:
        raise invalid(value, name.lower(), f"Member must have length between 1 and {largest}")
    return value


def page_of(
    name: str, values: Sequence[Any], request: Mapping[str, Any], *, smallest: int, largest: int, default: int
) -> Answer:
    """Give one page of a list, as MaxResults and NextToken of the request have it.

    Args:
        name: the member of the answer that has the list.

    Raises:
        ServiceError: the size or the token does not fit.
    """
    count = request.get("MaxResults", default)
    if type(count) is not int or not smallest <= count <= largest:
        raise invalid(count, "maxResults", f"Member must have value between {smallest} and {largest}")
    start = 0
    if (token := request.get("NextToken")) is not None:
        try:
            start = int(base64.b64decode(token, validate=True))
        except (binascii.Error, ValueError, TypeError):
            raise ServiceError("InvalidNextToken", "The specified token is not valid.") from None
    end = start + count
    following = base64.b64encode(str(end).encode()).decode() if end < len(values) else None
    return without_none({name: values[start:end], "NextToken": following})


def without_none(values: Answer) -> Answer:
    """Leave out the members that have no value."""
    return {name: value for name, value in values.items() if value is not None}
