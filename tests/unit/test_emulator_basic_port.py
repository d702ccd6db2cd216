"""Basic port sessions of the emulator: what an old client gets for a forwarded port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from emulator_peer import run
from port_destinations import check_terminated, destination, echo, forwarding, unused_port

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults
from ssm_proxy.wire.constants import Flag

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

OLD = "1.1.69.0"


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(agent_pace_s=0)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(Faults())
    assert [dict(each.client_defects) for each in shared.sessions() if each.client_defects] == []


def test_it_dials_before_anything_was_sent_and_speaks_without_frames(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            reader, writer = await served.accepted(1)
            writer.write(b"welcome")
            await peer.until(lambda: bytes(peer.output) == b"welcome")
            await peer.send_input(b"thanks")
            assert await reader.readexactly(6) == b"thanks"

    run(scenario())


@pytest.mark.parametrize("version", ["", "0.0.1", OLD])
def test_old_clients_get_this_kind(emulator: Emulator, version: str) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port, client_version=version) as peer:
            await peer.send_input(b"x" * 100_000)
            await peer.until(lambda: bytes(peer.output) == b"x" * 100_000)

    run(scenario())


def test_after_disconnect_the_next_data_dials_again(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            first, _ = await served.accepted(1)
            await peer.send_input(b"one")
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            assert await first.read(-1) == b"one"
            await peer.until(lambda: not peer.unacknowledged)
            assert len(served.connections) == 1
            await peer.send_input(b"two")
            second, writer = await served.accepted(2)
            assert await second.readexactly(3) == b"two"
            writer.write(b"answer")
            await peer.until(lambda: bytes(peer.output) == b"answer")

    run(scenario())


def test_what_was_not_sent_of_the_old_connection_is_not_for_the_new_one() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(agent_pace_s=0.02)) as emulator:
            async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
                _, writer = await served.accepted(1)
                writer.write(b"old" * 100_000)
                await peer.until(lambda: bool(peer.output))
                await peer.send_flag(Flag.DISCONNECT_TO_PORT)
                await peer.send_input(b"x")
                _, writer = await served.accepted(2)
                writer.write(b"new")
                await peer.until(lambda: peer.output.endswith(b"new"), 20)
                assert len(peer.output) < 50_000  # the agent had read 64 KiB at least

    run(scenario())


def test_data_behind_the_flag_in_one_batch_is_for_the_next_connection(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            await served.accepted(1)
            emulator.set_faults(Faults(stall_agent_s=0.3))  # so that all of it is taken at once
            await peer.send_input(b"old")
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            await peer.send_input(b"new")
            await peer.send_input(b"er")
            await served.accepted(2)
            assert await served.connections[0][0].read(-1) == b"old"
            assert await served.connections[1][0].readexactly(5) == b"newer"

    run(scenario())


def test_the_client_does_not_learn_that_the_server_closed(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            reader, writer = await served.accepted(1)
            writer.write(b"bye")
            writer.close()
            await peer.until(lambda: bytes(peer.output) == b"bye")
            assert await reader.read(-1) == b""
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: peer.closed_output is not None, timeout=0.3)
            await peer.send_input(b"again")
            reader, _ = await served.accepted(2)
            assert await reader.readexactly(5) == b"again"

    run(scenario())


def test_a_refused_port_fails_the_session_after_the_delay(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(refused_delay_s=0.5))
        port = unused_port()
        began = asyncio.get_running_loop().time()
        async with forwarding(emulator, port, client_version=OLD) as peer:
            await peer.until(lambda: peer.closed_output is not None)
            assert asyncio.get_running_loop().time() - began >= 0.5
            text = f"Unable to connect to specified port: dial tcp 127.0.0.1:{port}: connect: connection refused"
            assert peer.closed_output == text
            assert emulator.sessions()[-1].status == "Failed"

    run(scenario())


def test_a_refused_second_connection_fails_the_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            _, writer = await served.accepted(1)
            writer.write(b"!")
            await peer.until(lambda: bytes(peer.output) == b"!")  # the agent knows of the connection now
            served.stop()
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            number = await peer.send_input(b"nobody")
            await peer.until(lambda: peer.closed_output is not None)
            assert "connection refused" in str(peer.closed_output)
            assert number in peer.unacknowledged

    run(scenario())


def test_input_before_the_port_is_connected_is_refused_and_comes_again(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(dial_delay_s=0.4))
        async with destination(echo) as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            await peer.send_input(b"early")
            await peer.until(lambda: bytes(peer.output) == b"early")
            assert emulator.sessions()[-1].refused_input >= 1

    run(scenario())


def test_the_terminate_flag_ends_the_session_after_the_data_before_it(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            reader, _ = await served.accepted(1)
            await peer.send_input(b"last words")
            await peer.send_flag(Flag.TERMINATE_SESSION)
            assert await reader.read(-1) == b"last words"
            await check_terminated(emulator, peer)

    run(scenario())


def test_the_terminate_flag_works_between_two_connections(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port, client_version=OLD) as peer:
            await served.accepted(1)
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            await peer.send_flag(Flag.TERMINATE_SESSION)
            await check_terminated(emulator, peer)
            assert len(served.connections) == 1

    run(scenario())


def test_a_remote_host_that_is_denied_fails_the_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with forwarding(emulator, 80, client_version=OLD, host="169.254.169.254") as peer:
            await peer.until(lambda: peer.closed_output is not None)
            assert peer.closed_output == "Forwarding to IP address 169.254.169.254 is forbidden."

    run(scenario())
