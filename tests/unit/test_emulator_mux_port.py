"""Mux port sessions of the emulator: many connections to one destination, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from emulator_peer import Peer, run
from port_destinations import check_terminated, destination, echo, forwarding, unused_port
from smux_peer import NOP, PSH, data_of, fin, finished, frame, frames, psh, syn

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.wire.constants import Flag, PayloadType
from ssm_proxy.wire.payloads import decode_flag

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

NODES = (
    Node(
        node_id="i-0123456789abcdef0",
        hosts={
            "loop.internal": "127.0.0.1",
            "metadata.internal": "169.254.169.254",
            "moved.internal": ("127.0.0.1", 9),
        },
    ),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(agent_pace_s=0, nodes=NODES)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(Faults())
    assert [dict(each.client_defects) for each in shared.sessions() if each.client_defects] == []


async def send(peer: Peer, stream: bytes) -> None:
    """Send a piece of the mux's byte stream in messages of at most 1,024 bytes, as the official client does."""
    for at in range(0, len(stream), 1024):
        await peer.send_input(stream[at : at + 1024])


async def until_output(peer: Peer, stream_id: int, data: bytes) -> None:
    await peer.until(lambda: data_of(bytes(peer.output)).get(stream_id) == data, 10)


async def until_finished(peer: Peer, *stream_ids: int) -> None:
    await peer.until(lambda: finished(bytes(peer.output)) == list(stream_ids))


async def until_acknowledged(peer: Peer) -> None:
    await peer.until(lambda: not peer.unacknowledged)


def flags(peer: Peer) -> list[int]:
    return [decode_flag(each.payload) for each in peer.received if each.payload_type == PayloadType.FLAG]


def test_nothing_is_dialled_and_nothing_said_before_the_first_stream(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port) as peer:
            said = len(peer.of_type("output_stream_data"))
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: len(peer.of_type("output_stream_data")) > said, timeout=0.3)
            assert served.connections == []

    run(scenario())


def test_two_streams_and_messages_cut_anywhere(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port) as peer:
            stream = syn(3) + psh(3, b"a" * 5000) + syn(5) + psh(5, b"b" * 70_000) + psh(3, b"c")
            for at in range(0, len(stream), 777):
                await peer.send_input(stream[at : at + 777])
            await until_output(peer, 3, b"a" * 5000 + b"c")
            await until_output(peer, 5, b"b" * 70_000)
            assert len(served.connections) == 2
            assert finished(bytes(peer.output)) == []
            assert {type(m.payload_type) and m.payload_type for m in peer.of_type("output_stream_data")[2:]} == {1}
            assert max(len(m.payload) for m in peer.of_type("output_stream_data")[2:]) <= 1024
            assert max(len(each.data) for each in frames(bytes(peer.output)) if each.command == PSH) <= 32768

    run(scenario())


def test_the_destination_closes_a_stream(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            await send(peer, syn(3) + syn(5))
            reader, writer = await served.accepted(1)
            await served.accepted(2)
            writer.write(b"bye")
            writer.close()
            await until_finished(peer, 3)
            assert data_of(bytes(peer.output)) == {3: b"bye"}
            await send(peer, psh(3, b"dropped") + fin(3) + psh(5, b"goes on"))
            assert await served.connections[1][0].readexactly(7) == b"goes on"
            await until_acknowledged(peer)
            assert finished(bytes(peer.output)) == [3]
            assert await reader.read() == b""

    run(scenario())


def test_a_fin_of_the_client_is_answered_after_all_was_delivered(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            data = bytes(300_000)
            await send(peer, syn(3) + psh(3, data) + fin(3))
            reader, writer = await served.accepted(1)
            assert await reader.read(-1) == data
            writer.write(b"too late: both ways are closed")
            await until_finished(peer, 3)
            assert data_of(bytes(peer.output)) == {}

    run(scenario())


def test_a_reset_by_the_destination_ends_the_stream_only(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            await send(peer, syn(3) + psh(3, b"unread"))
            _, writer = await served.accepted(1)
            writer.transport.abort()
            await until_finished(peer, 3)
            await send(peer, syn(5) + psh(5, b"another"))
            reader, _ = await served.accepted(2)
            assert await reader.readexactly(7) == b"another"

    run(scenario())


def test_a_refused_destination_is_a_flag_and_a_fin(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with forwarding(emulator, unused_port()) as peer:
            await send(peer, syn(3) + psh(3, b"nobody"))
            await until_finished(peer, 3)
            assert flags(peer) == [Flag.CONNECT_TO_PORT_ERROR]
            kinds = [m.payload_type for m in peer.of_type("output_stream_data")[-2:]]
            assert kinds == [PayloadType.FLAG, PayloadType.OUTPUT]
            await send(peer, fin(3) + syn(5))
            await until_finished(peer, 3, 5)
            assert peer.closed_output is None

    run(scenario())


def test_streams_are_dialled_one_after_another(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port) as peer:
            emulator.set_faults(Faults(dial_delay_s=30))
            await send(peer, syn(3) + psh(3, b"x"))
            await until_acknowledged(peer)
            emulator.set_faults(Faults())
            await send(peer, syn(5) + psh(5, b"y"))
            await until_acknowledged(peer)
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: bool(peer.output), timeout=0.3)
            assert served.connections == []

    run(scenario())


def test_one_destination_that_does_not_read_stops_all_streams(emulator: Emulator) -> None:
    """The receive buffer is one for all: beyond it nothing is acknowledged, until the destination reads."""
    chunk = 65_536

    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            peer.stop_resending()
            await send(peer, syn(3) + syn(5))
            slow, _ = await served.accepted(1)
            quick, _ = await served.accepted(2)
            sent = 0

            async def send_all() -> None:
                nonlocal sent
                while sent < 64 * 1024 * 1024:
                    await peer.send_input(psh(3, bytes(chunk)))
                    sent += chunk

            sending = asyncio.create_task(send_all())
            level = -1
            while level != sent or sent < 4 * 1024 * 1024:  # until nothing moves any more
                level = sent
                await asyncio.sleep(0.7)
            assert sent < 64 * 1024 * 1024
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            number = await peer.send_input(psh(5, b"behind"))
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: number not in peer.unacknowledged, timeout=0.3)
            await slow.readexactly(sent)
            assert await quick.readexactly(6) == b"behind"
            await peer.until(lambda: not peer.unacknowledged)

    run(scenario())


def test_a_client_that_does_not_read_stops_the_destination(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            peer.acknowledges = False
            await send(peer, syn(3))
            _, writer = await served.accepted(1)
            writer.transport.set_write_buffer_limits(high=0)
            written = 0

            async def write_all() -> None:
                nonlocal written
                while written < 64 * 1024 * 1024:
                    writer.write(bytes(65_536))
                    await writer.drain()
                    written += 65_536

            writing = asyncio.create_task(write_all())
            level = -1
            while level != written:
                level = written
                await asyncio.sleep(0.4)
            assert written < 64 * 1024 * 1024
            writing.cancel()

    run(scenario())


def test_the_terminate_flag_comes_after_the_data_before_it(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            await send(peer, syn(3))
            reader, _ = await served.accepted(1)
            await send(peer, psh(3, b"x" * 100_000))
            await peer.send_flag(Flag.TERMINATE_SESSION)
            assert await reader.read(-1) == b"x" * 100_000
            await check_terminated(emulator, peer)

    run(scenario())


def test_other_flags_and_payload_types_are_acknowledged_and_ignored(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port) as peer:
            await send(peer, syn(3))
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            await peer.send_input(b"not four bytes", PayloadType.FLAG)
            await peer.send_input(b'{"cols":80,"rows":24}', PayloadType.SIZE)
            await send(peer, psh(3, b"goes on"))
            await until_output(peer, 3, b"goes on")

    run(scenario())


def test_a_broken_frame_fails_the_session(shared: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(shared, served.port) as peer:
            await peer.send_input(b"SSH-2.0-not_a_mux\r\n")
            await peer.until(lambda: peer.closed_output is not None)
            assert peer.closed_output == "invalid protocol"
            assert shared.sessions()[-1].status == "Failed"

    run(scenario())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "loop.internal"])
def test_a_remote_host(emulator: Emulator, host: str) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port, host=host) as peer:
            await send(peer, syn(3) + psh(3, b"over there"))
            await until_output(peer, 3, b"over there")

    run(scenario())


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("169.254.169.254", "Forwarding to IP address 169.254.169.254 is forbidden."),
        ("metadata.internal", "Forwarding to IP address metadata.internal is forbidden."),
        ("nowhere.invalid", "lookup nowhere.invalid: no such host"),
    ],
)
def test_a_remote_host_that_is_refused_fails_the_session(emulator: Emulator, host: str, text: str) -> None:
    async def scenario() -> None:
        async with forwarding(emulator, 80, host=host) as peer:
            await peer.until(lambda: peer.closed_output is not None, 15)
            assert peer.closed_output == text
            assert emulator.sessions()[-1].status == "Failed"

    run(scenario())


def test_an_agent_without_remote_hosts_forwards_to_itself() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(agent_pace_s=0, agent_version="3.1.1000.0")) as emulator:
            async with (
                destination(echo) as served,
                forwarding(emulator, served.port, host="nowhere.invalid") as peer,
            ):
                await send(peer, syn(3) + psh(3, b"here"))
                await until_output(peer, 3, b"here")

    run(scenario())


def test_an_agent_without_the_denied_list_takes_any_address() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(agent_pace_s=0, agent_version="3.1.1188.0", nodes=NODES)) as emulator:
            async with forwarding(emulator, 80, host="metadata.internal") as peer:
                await peer.send_input(frame(NOP, 0))
                await until_acknowledged(peer)  # it is ready for data, and would dial
                assert peer.closed_output is None

    run(scenario())


def test_an_old_client_is_sent_nops_and_has_to_send_some(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssm_proxy.emulator.smux_acceptor.KEEPALIVE_S", 0.05)
    monkeypatch.setattr("ssm_proxy.emulator.smux_acceptor.SILENCE_S", 1.5)

    async def scenario() -> None:
        async with destination(echo) as served:
            async with forwarding(emulator, served.port, client_version="1.2.331.0") as peer:
                until = asyncio.get_running_loop().time() + 2  # longer than the silence that ends a session
                while asyncio.get_running_loop().time() < until:
                    await send(peer, frame(NOP, 0))
                    await asyncio.sleep(0.05)
                assert frames(bytes(peer.output))[:3] == [(NOP, 0, b"")] * 3
                assert peer.closed_output is None
                await peer.until(lambda: peer.closed_output is not None)
                assert peer.closed_output == "io: read/write on closed pipe"
            async with forwarding(emulator, served.port, client_version="1.2.339.0") as peer:
                with pytest.raises(asyncio.TimeoutError):
                    await peer.until(lambda: bool(peer.output) or peer.closed_output is not None, timeout=0.8)

    run(scenario())


def test_the_output_keeps_the_pace_of_the_agent() -> None:
    async def bulk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1_000_000))  # more than the agent's local socket holds
        await writer.drain()

    async def scenario() -> None:
        with Emulator(EmulatorOptions(agent_pace_s=0.001)) as emulator:
            async with destination(bulk) as served, forwarding(emulator, served.port) as peer:
                began = asyncio.get_running_loop().time()
                await send(peer, syn(3))
                await peer.until(lambda: peer.output.endswith(fin(3)), 20)
                assert asyncio.get_running_loop().time() - began >= 0.9  # 977 messages, less what it may catch up
                assert data_of(bytes(peer.output)) == {3: bytes(1_000_000)}

    run(scenario())


def test_more_streams_than_the_queue_holds(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with forwarding(emulator, unused_port()) as peer:
            ids = range(3, 3 + 2 * 1200, 2)
            await peer.send_input(b"".join(map(syn, ids)))
            await peer.until(lambda: len(peer.output) == 8 * len(ids), 20)
            assert finished(bytes(peer.output)) == list(ids)

    run(scenario())


def test_many_small_frames_at_once(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            await send(peer, syn(3))
            reader, _ = await served.accepted(1)
            await peer.send_input(b"".join(psh(3, b"x") for _ in range(10_000)))
            assert await reader.readexactly(10_000) == b"x" * 10_000

    run(scenario())


def test_a_session_that_is_ended_leaves_no_connection(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination() as served, forwarding(emulator, served.port) as peer:
            await send(peer, b"".join(syn(each) + psh(each, b"x") for each in range(3, 43, 2)))
            await served.accepted(20)
            for reader, _ in served.connections:
                assert await reader.readexactly(1) == b"x"
        for reader, _ in served.connections:
            assert await reader.read(-1) == b""

    run(scenario())


def test_a_nop_is_taken(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as served, forwarding(emulator, served.port) as peer:
            await send(peer, frame(NOP, 0) + syn(3) + psh(3, b"x"))
            await until_output(peer, 3, b"x")

    run(scenario())
