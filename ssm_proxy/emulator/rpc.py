"""The two forms in which AWS SDKs put calls: JSON with the operation in a header, and CBOR with it in the path.

Which one an SDK takes is up to its version; both carry the same values. Only the tagging API is asked in CBOR so far.

Source: the public descriptions of AWS JSON 1.1 and of Smithy RPC v2 CBOR.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from ssm_proxy.emulator.calls import ServiceError

CBOR_PATH: Final = "/service/{target}/operation/{operation}"
_JSON: Final = "application/x-amz-json-1.1"
_CBOR: Final = "application/cbor"


class Form(Protocol):
    """How values become bytes, and back."""

    def read(self, body: bytes) -> Any: ...
    def answer(self, values: Mapping[str, Any], status: int) -> web.Response: ...


class Call(NamedTuple):
    """What was asked for, still as it came."""

    target: str
    """Name of the API, with its version."""
    operation: str
    form: Form
    is_well_formed: bool
    """Whether the headers are those of the form."""


def call_of(request: web.Request) -> Call:
    """Tell what a request asks for, and in which form."""
    if "operation" in request.match_info:
        return Call(
            request.match_info["target"],
            request.match_info["operation"],
            CborForm(),
            request.headers.get("Smithy-Protocol") == "rpc-v2-cbor" and request.content_type == _CBOR,
        )
    target, _, operation = request.headers.get("X-Amz-Target", "").partition(".")
    return Call(target, operation, JsonForm(), request.content_type.startswith("application/x-amz-json"))


def values_of(call: Call, body: bytes) -> dict[str, Any]:
    """Read what a call brings.

    Raises:
        ServiceError: it is no map of values.
    """
    try:
        values = call.form.read(body)
    except (ValueError, RecursionError):
        raise ServiceError("SerializationException", "The request cannot be read.") from None
    if not isinstance(values, dict):
        raise ServiceError("SerializationException", "The request is not an object.")
    return values


class JsonForm:
    """AWS JSON 1.1."""

    def read(self, body: bytes) -> Any:
        return json.loads(body or b"{}")

    def answer(self, values: Mapping[str, Any], status: int) -> web.Response:
        headers = {"Content-Type": _JSON, "x-amzn-RequestId": str(uuid.uuid4())}
        return web.Response(status=status, body=json.dumps(values).encode(), headers=headers)


class CborForm:
    """Smithy RPC v2 CBOR."""

    def read(self, body: bytes) -> Any:
        import cbor2

        try:
            return cbor2.loads(body) if body else {}
        except cbor2.CBORDecodeError as error:
            raise ValueError from error

    def answer(self, values: Mapping[str, Any], status: int) -> web.Response:
        import cbor2

        headers = {"Content-Type": _CBOR, "Smithy-Protocol": "rpc-v2-cbor", "x-amzn-RequestId": str(uuid.uuid4())}
        return web.Response(status=status, body=cbor2.dumps(values), headers=headers)
