"""Faults as text and as values; links that misbehave the same way each time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import fields

import pytest

from ssm_proxy.emulator import Faults
from ssm_proxy.emulator.faults import change_faults, describe_faults, parse_faults
from ssm_proxy.emulator.link import Item, Link
from ssm_proxy.errors import UsageError


def test_faults_are_read_from_text() -> None:
    faults = parse_faults(["drop_after_bytes=5000", "lose=0.25", "drop-manner=close-1000"])
    assert faults == Faults(drop_after_bytes=5000, lose=0.25, drop_manner="close-1000")


@pytest.mark.parametrize(
    "text",
    ["lose", "nothing=1", "lose=often", "lose=2", "drop_after_bytes=1.5", "drop_manner=gently", "delay_ms=-1",
     "queue_bytes=0", "bandwidth=inf"],
)  # fmt: skip
def test_wrong_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_faults([text])


def test_changes_keep_the_rest() -> None:
    assert change_faults(Faults(lose=0.5), {"delay_ms": 20}) == Faults(lose=0.5, delay_ms=20.0)
    with pytest.raises(UsageError):
        change_faults(Faults(), {"delay_ms": True})


def test_each_fault_is_in_the_help() -> None:
    text = describe_faults()
    assert all(f"  {each.name}=" in text for each in fields(Faults))


ITEMS = [Item(b"....input_stream_data %d" % number) for number in range(400)]


def pass_through(faults: Faults, items: Sequence[Item] = ITEMS, seed: int = 1) -> list[bytes]:
    async def run() -> list[bytes]:
        arrived: list[bytes] = []
        link = Link(
            "input", lambda: faults, random.Random(seed), lambda some: arrived.extend(item.data for item in some)
        )
        link.put(items)
        deadline = asyncio.get_running_loop().time() + 2
        while link._queue and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        link.close()
        return arrived

    return asyncio.run(run())


def test_a_link_without_faults_changes_nothing() -> None:
    assert pass_through(Faults()) == [item.data for item in ITEMS]
    assert pass_through(Faults(lose=1, direction="output")) == [item.data for item in ITEMS]


def test_accidents_happen_about_as_often_as_asked_and_repeat_with_the_seed() -> None:
    lost = pass_through(Faults(lose=0.5))
    assert 120 < len(lost) < 280
    assert lost == pass_through(Faults(lose=0.5))
    assert lost != pass_through(Faults(lose=0.5), seed=2)
    assert 480 < len(pass_through(Faults(duplicate=0.5))) < 720
    reordered = pass_through(Faults(reorder=0.2))
    assert reordered != [item.data for item in ITEMS]
    assert sorted(reordered) == sorted(item.data for item in ITEMS)


def test_only_acknowledges_and_never_control_frames_are_dropped() -> None:
    items = [Item(b"...." + b"acknowledge".ljust(32)), Item(b"....other"), Item(b"ping", is_message=False)]
    assert pass_through(Faults(drop_acknowledges=1), items) == [b"....other", b"ping"]
    assert pass_through(Faults(lose=1), items) == [b"ping"]


def test_delay_and_bandwidth_take_their_time() -> None:
    async def run(faults: Faults) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = asyncio.Event()
        link = Link("input", lambda: faults, random.Random(0), lambda some: some[-1].data == b"last" and done.set())
        link.put([Item(bytes(10_000)), Item(b"last")])
        await asyncio.wait_for(done.wait(), 5)
        return loop.time() - began

    assert 0.05 <= asyncio.run(run(Faults(delay_ms=50))) < 0.5
    assert 0.1 <= asyncio.run(run(Faults(bandwidth=100_000))) < 0.6


def test_a_full_queue_makes_senders_wait() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        link = Link("input", lambda: Faults(bandwidth=100_000, queue_bytes=1000), random.Random(0), lambda _: None)
        link.put([Item(bytes(11_000))])
        began = loop.time()
        await link.room()
        assert 0.09 <= loop.time() - began < 0.6
        link.close()

    asyncio.run(run())


def test_lifting_a_fault_does_not_let_later_messages_overtake() -> None:
    async def run() -> list[bytes]:
        faults = Faults(delay_ms=50)
        arrived: list[bytes] = []
        link = Link("input", lambda: faults, random.Random(0), lambda some: arrived.extend(i.data for i in some))
        link.put([Item(b"first")])
        faults = Faults()
        assert not link.is_clear
        link.put([Item(b"second")])
        await asyncio.sleep(0.1)
        return arrived

    assert asyncio.run(run()) == [b"first", b"second"]
