"""Connections that break on purpose: what the client sees, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
import websocket
from emulator_peer import NODE, Peer, run, ssm_client
from test_emulator_data_channel import opened, resume_token

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults
from ssm_proxy.wire.agent_message import decode_agent_message
from ssm_proxy.wire.constants import CLIENT_VERSION, MessageType
from ssm_proxy.wire.payloads import encode_open_data_channel

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

RNG = random.Random(1)
UPLOAD = RNG.randbytes(200_000)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(agent_pace_s=0, seed=7)) as emulator:
        yield emulator


async def reopen(peer: Peer) -> None:
    await peer.open(token=resume_token(peer))


async def echo_through(peer: Peer) -> None:
    """Send everything and get it back, with as many resumes as it takes."""

    async def send_all() -> None:
        for start in range(0, len(UPLOAD), 1024):
            while len(peer.unacknowledged) > 30 or peer.is_closed:
                await asyncio.sleep(0.01)
            try:
                await peer.send_input(UPLOAD[start : start + 1024])
            except ConnectionError:
                await asyncio.sleep(0.01)  # it is in peer.unacknowledged, and will be repeated

    async def keep_open() -> None:
        while True:
            await peer.until(lambda: peer.is_closed, 20)
            await reopen(peer)

    sending, keeping = asyncio.create_task(send_all()), asyncio.create_task(keep_open())
    while len(peer.output) < len(UPLOAD):
        await asyncio.sleep(0.02)
    keeping.cancel()
    await asyncio.gather(sending, keeping, return_exceptions=True)
    assert bytes(peer.output) == UPLOAD


@pytest.mark.parametrize(
    ("manner", "code"), [("reset", 1006), ("fin", 1006), ("close-1000", 1000), ("close-1001", 1001)]
)
def test_each_manner_looks_as_it_should(emulator: Emulator, manner: str, code: int) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            assert emulator.drop_connections("client", manner) == 1
            await peer.until(lambda: peer.is_closed)
            assert peer.close_code == code
            assert emulator.sessions()[-1].status == "Disconnected"
            await reopen(peer)
            await peer.send_input(b"still here")
            await peer.until(lambda: bytes(peer.output) == b"still here")
            # No second handshake, but start_publication again (the recorded resume shows it).
            assert len([m for m in peer.received if m.payload_type == 5]) == 1
            assert len(peer.of_type("start_publication")) == 2
            assert emulator.sessions()[-1].connections == 2

    run(scenario())


def test_a_blackhole_stays_open_and_silent(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            emulator.drop_connections("client", "blackhole")
            count = len(peer.received)
            await peer.send_input(b"b")
            assert peer.socket is not None
            await peer.socket.ping(b"anybody?")
            await asyncio.sleep(0.3)
            assert not peer.is_closed
            assert len(peer.received) == count
            old = peer.socket
            await reopen(peer)
            await peer.until(lambda: bytes(peer.output) == b"ab")
            await old.close()

    run(scenario())


@pytest.mark.parametrize(
    "faults",
    [
        Faults(drop_after_bytes=120_000, drop_manner="reset"),
        Faults(drop_after_bytes=120_000, drop_manner="close-1000"),
        Faults(drop_every_s=0.01, drop_manner="fin", drop_times=3),
        Faults(drop_after_bytes=200_000, drop_side="agent", agent_away_s=0.05),
        Faults(lose=0.01, duplicate=0.05, reorder=0.05),
        Faults(drop_acknowledges=0.02),
        Faults(fragment=0.5),
        Faults(delay_ms=20, bandwidth=2_000_000),
        Faults(pause_publication_s=0.3),
        Faults(stall_agent_s=0.3),
    ],
    ids=lambda faults: " ".join(
        f"{name}={value}" for name, value in vars(faults).items() if value != vars(Faults())[name]
    ),
)
def test_nothing_is_lost_or_changed(emulator: Emulator, faults: Faults) -> None:
    async def scenario() -> None:
        emulator.set_faults(faults)
        async with opened(emulator) as peer:
            await echo_through(peer)
            connections = emulator.sessions()[-1].connections
            if faults.drop_side == "client" and (faults.drop_after_bytes or faults.drop_every_s):
                assert connections > 1
            if faults.drop_times:
                assert connections <= 1 + faults.drop_times
            emulator.set_faults(Faults())

    run(scenario())


def test_a_message_comes_in_several_frames(emulator: Emulator) -> None:
    client = ssm_client(emulator.environment())
    answer = client.start_session(Target=NODE, DocumentName="AWS-StartSSHSession")
    emulator.set_faults(Faults(fragment=1))
    socket = websocket.create_connection(answer["StreamUrl"], timeout=10)
    opening = encode_open_data_channel(
        token=answer["TokenValue"], request_id="r", client_id="c", client_version=CLIENT_VERSION
    )
    socket.send(opening)
    frames = [socket.recv_frame() for _ in range(3)]
    socket.shutdown()
    assert [(frame.opcode, frame.fin) for frame in frames] == [(2, 0), (0, 0), (0, 1)]
    message = decode_agent_message(b"".join(frame.data for frame in frames))
    assert message.message_type == MessageType.START_PUBLICATION


def test_the_agent_pauses_while_the_client_is_away(emulator: Emulator) -> None:
    async def scenario() -> None:
        async def clock(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.01)

        async with opened(emulator, clock) as peer:
            await peer.until(lambda: len(peer.output) > 5)
            emulator.drop_connections("client", "fin")
            await peer.until(lambda: peer.is_closed)
            await asyncio.sleep(0.1)  # what was on its way when the pause came
            before = emulator.sessions()[-1].output_messages
            await asyncio.sleep(0.2)
            assert emulator.sessions()[-1].output_messages <= before + 1
            length = len(peer.output)
            await reopen(peer)
            await peer.until(lambda: len(peer.output) > length + 20)
            assert set(peer.output) == {ord(".")}

    run(scenario())


def test_an_agent_away_is_told_to_the_client_and_loses_what_is_under_way(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(agent_away_s=0.3))
        async with opened(emulator) as peer:
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            began = time.monotonic()
            emulator.drop_connections("agent")
            await peer.until(lambda: bool(peer.of_type("pause_publication")))
            await peer.send_input(b"b")
            await peer.until(lambda: bytes(peer.output) == b"ab")
            assert time.monotonic() - began > 0.25
            assert not peer.is_closed
            assert len(peer.of_type("start_publication")) == 2

    run(scenario())


def test_pauses_and_stalls_begin_at_once_for_open_sessions(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            emulator.set_faults(Faults(stall_agent_s=0.4))
            began = time.monotonic()
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            assert time.monotonic() - began > 0.3
            emulator.set_faults(Faults(pause_publication_s=0.2))
            await peer.until(lambda: bool(peer.of_type("pause_publication")))
            await peer.until(lambda: peer.received[-1].message_type == "start_publication")

    run(scenario())


def test_accidents_repeat_with_the_seed() -> None:
    def survivors_of(seed: int) -> set[int]:
        survivors: set[int] = set()

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65536):
                pass

        async def scenario() -> None:
            with Emulator(EmulatorOptions(agent_pace_s=0, seed=seed)) as emulator:
                async with opened(emulator, swallow) as peer:
                    await peer.send_input(b"x")
                    await peer.until(lambda: not peer.unacknowledged)
                    peer.stop_resending()
                    emulator.set_faults(Faults(lose=0.5, direction="input"))
                    for _ in range(60):
                        await peer.send_input(b"x")
                    last = await peer.send_input(b"x")
                    while last not in peer.acknowledged:
                        await peer.send(peer.unacknowledged[last])
                        await asyncio.sleep(0.02)
                    survivors.update(set(peer.acknowledged) - {last})

        run(scenario())
        return survivors

    first = survivors_of(3)
    assert 15 < len(first) < 50
    assert first == survivors_of(3)
    assert first != survivors_of(4)


@pytest.mark.parametrize("sessions", ["silent", "closed"])
def test_a_node_goes_down_with_its_sessions_and_comes_up_again(emulator: Emulator, sessions: str) -> None:
    async def scenario() -> None:
        client = ssm_client(emulator.environment())
        async with opened(emulator) as peer:
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            emulator.set_online(NODE, False, sessions=sessions)
            assert client.get_connection_status(Target=NODE)["Status"] == "notconnected"
            with pytest.raises(client.exceptions.TargetNotConnected):
                client.start_session(Target=NODE, DocumentName="AWS-StartSSHSession")
            if sessions == "closed":
                await peer.until(lambda: peer.closed_output == "")
                assert emulator.sessions()[-1].status == "Terminated"
            # What is up again has nothing of the sessions that it had before.
            emulator.set_online(NODE, True)
            if sessions == "silent":
                count = len(peer.received)
                await peer.send_input(b"b")
                await asyncio.sleep(0.3)
                assert (len(peer.received), peer.is_closed) == (count, False)
                client.terminate_session(SessionId=peer.response["SessionId"])
                await peer.until(lambda: peer.closed_output is not None)
        async with opened(emulator) as peer:
            await peer.send_input(b"c")
            await peer.until(lambda: bytes(peer.output) == b"c")

    run(scenario())


def test_a_session_that_nobody_has_joined_yet_goes_down_with_its_node(emulator: Emulator) -> None:
    async def scenario() -> None:
        response = ssm_client(emulator.environment()).start_session(Target=NODE, DocumentName="AWS-StartSSHSession")
        emulator.set_online(NODE, False)
        peer = await Peer(emulator.environment(), response).open()
        await asyncio.sleep(0.3)
        assert peer.received == []
        await peer.close()

    run(scenario())
