"""Remote hosts as the agent sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from ssm_proxy.emulator.addresses import Address, HostRefused, check_allowed, resolve_host


def resolve(host: str, hosts: Mapping[str, Address | str] | None = None) -> list[Address]:
    addresses = list(asyncio.run(resolve_host(host, 5432, hosts or {})))
    check_allowed(host, addresses)
    return addresses


def test_addresses_stand_for_themselves() -> None:
    assert resolve("192.0.2.1") == [("192.0.2.1", 5432)]
    assert resolve("::1") == [("::1", 5432)]


def test_localhost_is_looked_up_and_allowed() -> None:
    assert ("127.0.0.1", 5432) in resolve("localhost")


def test_names_may_stand_for_addresses() -> None:
    assert resolve("db.internal", {"db.internal": "127.0.0.1"}) == [("127.0.0.1", 5432)]
    assert resolve("db.internal", {"db.internal": ("127.0.0.1", 15432)}) == [("127.0.0.1", 15432)]


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.169.253", "169.254.169.123", "169.254.169.250", "169.254.169.251"),
        *("fd00:ec2::254", "fd00:ec2::253", "fd00:ec2::123", "fd00:ec2::240", "fd00:0ec2:0:0::254"),
        "::ffff:169.254.169.254",
    ],
)
def test_denied_addresses_are_refused(host: str) -> None:
    with pytest.raises(HostRefused) as caught:
        resolve(host)
    assert str(caught.value) == f"Forwarding to IP address {host} is forbidden."


@pytest.mark.parametrize("address", ["169.254.169.254", ("169.254.169.254", 80)])
def test_a_name_does_not_hide_a_denied_address(address: Address | str) -> None:
    with pytest.raises(HostRefused, match=r"^Forwarding to IP address metadata\.internal is forbidden\.$"):
        resolve("metadata.internal", {"metadata.internal": address})


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 70])
def test_a_name_without_an_address_is_refused(host: str) -> None:
    with pytest.raises(HostRefused, match=r"^lookup .*: no such host$"):
        resolve(host)
