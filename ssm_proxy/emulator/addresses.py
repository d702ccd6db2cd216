"""Where an agent may forward to: names of remote hosts, and the addresses that it refuses.

Source: amazon-ssm-agent, agent/session/plugins/port/port.go and agent/appconfig/constants.go; docs/PROTOCOL.md
section 8.9.
The reserved addresses of a VPC, which an agent refuses as well, are missing: the nodes of the emulator are in none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Final

DENIED: Final = frozenset(
    ipaddress.ip_address(each)
    for each in (
        "169.254.169.254",
        "fd00:ec2::254",
        "169.254.169.253",
        "fd00:ec2::253",
        "169.254.169.123",
        "fd00:ec2::123",
        "169.254.169.250",
        "169.254.169.251",
        "fd00:ec2::240",
    )
)
"""Metadata, name server, time and the like of EC2: the agent's default list."""
_LOOKUP_S: Final = 10.0

Address = tuple[str, int]
"""An IP address and a port."""


class HostRefused(Exception):
    """The agent does not forward there; the text is the agent's."""


async def resolve_host(host: str, port: int, hosts: Mapping[str, Address | str]) -> Sequence[Address]:
    """Give the addresses behind a port of a remote host, in the order in which they are to be dialled.

    Args:
        host: a name or an IP address.
        port: of that host.
        hosts: what names stand for before anyone else is asked: an IP address, or one with the port to take instead.

    Raises:
        HostRefused: the name has no address.
    """
    known = hosts.get(host)
    if isinstance(known, tuple):
        return [known]
    return [(each, port) for each in await _look_up(known or host, host)]


def check_allowed(host: str, addresses: Sequence[Address]) -> None:
    """Look at all addresses that a name has.

    Raises:
        HostRefused: one of them is denied.
    """
    if any(_is_denied(address) for address, _ in addresses):
        raise HostRefused(f"Forwarding to IP address {host} is forbidden.")


async def _look_up(name: str, host: str) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(name, None, type=socket.SOCK_STREAM), _LOOKUP_S)
    except (OSError, UnicodeError):
        raise HostRefused(f"lookup {host}: no such host") from None
    except asyncio.TimeoutError:
        raise HostRefused(f"lookup {host}: i/o timeout") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _is_denied(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped in DENIED
    return address in DENIED
