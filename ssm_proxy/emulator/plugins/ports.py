"""What the kinds of port session share: where the destination is, and how it is dialled.

Source: amazon-ssm-agent, agent/session/plugins/port/port.go; docs/PROTOCOL.md sections 8.5 and 8.9.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from ssm_proxy.emulator.addresses import Address, HostRefused, check_allowed, resolve_host
from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.plugins import PluginHost
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.payloads import decode_flag

_DIAL_S: Final = 30.0
_OWN_HOST: Final = "localhost"
_T = TypeVar("_T")


class DialFailed(Exception):
    """No address of the destination took the connection; the text is the agent's."""


async def find_destination(host: PluginHost) -> Sequence[Address]:
    """Give the addresses of the port that the document names, on the node itself or on a remote host.

    Raises:
        HostRefused: the agent would fail the session at its start.
    """
    properties = host.properties if isinstance(host.properties, dict) else {}
    text = properties.get("portNumber")
    if not text:
        raise HostRefused("Port number is empty in session properties.")
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536):
        raise HostRefused(f"Unable to connect to specified port: dial tcp: address {text}: invalid port")
    name = properties.get("host") or _OWN_HOST
    if not isinstance(name, str):
        raise HostRefused("Unable to remarshal session properties.")
    if name == _OWN_HOST or not agent_has(host.agent_version, Feature.REMOTE_HOST):
        return [host.address_of(int(text))]
    addresses = await resolve_host(name, int(text), host.hosts)
    if agent_has(host.agent_version, Feature.DENIED_HOSTS):
        check_allowed(name, addresses)
    return addresses


async def dial(addresses: Sequence[Address], connect: Callable[[str, int], Awaitable[_T]]) -> _T:
    """Try the addresses one after another.

    Raises:
        DialFailed: with the first error.
    """
    failure = ""
    for address, port in addresses:
        try:
            return await asyncio.wait_for(connect(address, port), _DIAL_S)
        except (OSError, asyncio.TimeoutError) as error:
            failure = failure or f"dial tcp {join(address, port)}: connect: {go_error_text(error)}"
    raise DialFailed(failure)


def join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def go_error_text(error: BaseException) -> str:
    """Name a network error as the agent's language does."""
    if isinstance(error, asyncio.TimeoutError):
        return "connection timed out"
    code = getattr(error, "errno", None)
    names = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "connection reset by peer"}
    if code in names:
        return names[code]
    return os.strerror(code).lower() if isinstance(code, int) and code > 0 else "connection refused"


def read_flag(payload: bytes) -> int:
    """Give the number of a flag; 0, which is none, for a payload that is no flag."""
    try:
        return decode_flag(payload)
    except MalformedMessage:
        return 0
