"""A data channel from the opening to each of its ends, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from emulator_peer import NODE, Peer, input_message, run, ssm_client

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node, Parameter, SessionDocument
from ssm_proxy.wire.agent_message import decode_agent_message
from ssm_proxy.wire.constants import Flag, PayloadType
from ssm_proxy.wire.payloads import decode_handshake_request

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

END_WITHIN = 20.0
"""Less than a server waits by itself for clients that do not take what it sends, also on a slow machine."""
DOCUMENTS = {
    "Test-EncryptedShell": SessionDocument(session_type="Standard_Stream", inputs={"kmsKeyId": "alias/test"}),
    "Test-Forward": SessionDocument(
        session_type="Port",
        parameters={"portNumber": Parameter(default="80")},
        properties={"portNumber": "{{ portNumber }}", "type": "LocalPortForwarding"},
    ),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(agent_pace_s=0, documents=DOCUMENTS)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(Faults())


def start(emulator: Emulator, port: int = 22, document: str = "AWS-StartSSHSession") -> Peer:
    environment = emulator.environment()
    parameters = {"portNumber": [str(port)]} if document in ("AWS-StartSSHSession", "Test-Forward") else {}
    answer = ssm_client(environment).start_session(Target=NODE, DocumentName=document, Parameters=parameters)
    return Peer(environment, answer)


def resume_token(peer: Peer) -> str:
    answer = ssm_client(peer.environment).resume_session(SessionId=peer.response["SessionId"])
    return str(answer["TokenValue"])


@contextlib.asynccontextmanager
async def destination(handler: Handler) -> AsyncIterator[int]:
    """Serve one TCP port; every connection is closed when its handler returns."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def opened(emulator: Emulator, handler: Handler = echo) -> AsyncIterator[Peer]:
    """Give a peer behind its handshake, joined to a port of ours, that repeats what is not acknowledged."""
    async with destination(handler) as port:
        peer = start(emulator, port)
        try:
            await peer.open()
            await peer.shake_hands()
            peer.start_resending()
            yield peer
        finally:
            await peer.close()


# --- opening -------------------------------------------------------------------------------------------------------


def test_the_course_of_a_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            assert peer.request_properties == {"portNumber": peer.request_properties["portNumber"]}
            await peer.send_input(b"hello")
            await peer.until(lambda: bytes(peer.output) == b"hello")
            kinds = [(m.message_type, m.payload_type) for m in peer.received]
            assert kinds[:4] == [
                ("start_publication", 0),
                ("output_stream_data", PayloadType.HANDSHAKE_REQUEST),
                ("acknowledge", 0),  # before HandshakeComplete (docs/PROTOCOL.md section 12.1)
                ("output_stream_data", PayloadType.HANDSHAKE_COMPLETE),
            ]
            request = decode_handshake_request(peer.received[1].payload)
            assert request.agent_version == "3.3.987.0"
            await peer.send_flag(Flag.TERMINATE_SESSION)
            await peer.until(lambda: peer.closed_output is not None)
            assert peer.closed_output == ""
            assert not peer.unacknowledged
            await peer.until(lambda: peer.is_closed)
        snapshot = emulator.sessions()[-1]
        assert snapshot.status == "Terminated"
        assert (snapshot.target, snapshot.connections, snapshot.client_defects) == (NODE, 1, {})
        assert snapshot.output_bytes > 5

    run(scenario())


def test_the_messages_of_the_service_have_the_short_header(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_flag(Flag.TERMINATE_SESSION)
            await peer.until(lambda: peer.closed_output is not None)
            own = [raw for raw in peer.raw if decode_agent_message(raw).header_length == 112]
            assert [decode_agent_message(raw).message_type for raw in own] == ["start_publication", "channel_closed"]
            for raw in own:
                assert raw[4:36].rstrip(b"\0") == decode_agent_message(raw).message_type.encode()
                assert int.from_bytes(raw[112:116], "big") == len(raw) - 116 > 0
            values = json.loads(own[1][116:])
            assert values["SessionId"] == peer.response["SessionId"]
            assert values["MessageType"] == "channel_closed"

    run(scenario())


def test_a_ping_may_come_before_the_opening_and_is_answered(emulator: Emulator) -> None:
    async def scenario() -> None:
        peer = start(emulator)
        await peer.open(ping_first=True)
        await peer.shake_hands()
        await peer.until(lambda: b"SSH-2.0-" in peer.output)
        await peer.close()

        started = start(emulator)
        async with aiohttp.ClientSession() as session:
            url = started.response["StreamUrl"]
            async with session.ws_connect(url, autoping=False) as socket:
                await socket.ping(b"keepalive")
                answer = await socket.receive(5)
                assert (answer.type, bytes(answer.data)) == (aiohttp.WSMsgType.PONG, b"keepalive")

    run(scenario())


def test_compression_is_not_negotiated(emulator: Emulator) -> None:
    async def scenario() -> None:
        url = start(emulator).response["StreamUrl"]
        async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as websocket:
            assert websocket.compress == 0

    run(scenario())


def test_tokens_open_once(emulator: Emulator) -> None:
    async def scenario() -> None:
        peer = start(emulator)
        used = peer.response["TokenValue"]
        await peer.open(token="wrong")
        await peer.until(lambda: peer.is_closed)
        assert peer.received == []
        await peer.open(token=used)
        await peer.shake_hands()
        other = Peer(peer.environment, peer.response)
        await other.open(token=used)
        await other.until(lambda: other.is_closed)
        assert other.received == []
        void = resume_token(peer)
        good = resume_token(peer)
        await other.open(token=void)
        await other.until(lambda: other.is_closed)
        await other.open(token=good)
        await peer.until(lambda: peer.is_closed)  # one client at a time: the new one takes over
        assert not other.is_closed
        await other.close()
        await peer.close()

    run(scenario())


def test_tokens_live_for_a_short_time_only() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(token_lifetime_s=0)) as emulator:
            peer = start(emulator)
            await peer.open()
            await peer.until(lambda: peer.is_closed)
            assert peer.received == []
            await peer.close()

    run(scenario())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"MessageSchemaVersion":"1.0","RequestId":"x"}'])
def test_openings_that_are_none_close_the_socket(emulator: Emulator, text: str) -> None:
    async def scenario() -> None:
        url = start(emulator).response["StreamUrl"]
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as websocket:
            await websocket.send_str(text)
            assert (await websocket.receive(5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)

    run(scenario())


def test_signatures_of_openings() -> None:
    async def status_of(peer: Peer, **more: Any) -> int:
        try:
            await peer.open(**more)
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        finally:
            await peer.close()
        return 101

    async def scenario() -> None:
        with Emulator(EmulatorOptions(require_signed_open=True)) as emulator:
            assert await status_of(start(emulator), signed=False) == 403
            assert await status_of(start(emulator)) == 101
            wrong = start(emulator)
            wrong.environment = {**wrong.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}
            assert await status_of(wrong) == 403
            emulator.set_faults(Faults(refuse_open=1))
            assert await status_of(start(emulator)) == 403
            assert await status_of(start(emulator)) == 101
        with Emulator() as emulator:
            assert await status_of(start(emulator), signed=False) == 101
            wrong = start(emulator)
            wrong.environment = {**wrong.environment, "AWS_ACCESS_KEY_ID": "somebody"}
            assert await status_of(wrong) == 403

    run(scenario())


def test_tls_with_the_throwaway_authority() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(tls=True, require_signed_open=True)) as emulator:
            assert emulator.endpoint_url.startswith("https://127.0.0.1:")
            async with opened(emulator) as peer:
                assert peer.response["StreamUrl"].startswith("wss://127.0.0.1:")
                await peer.send_input(b"x" * 5000)
                await peer.until(lambda: len(peer.output) == 5000)

    run(scenario())


# --- handshake -----------------------------------------------------------------------------------------------------


def test_a_refused_action_fails_the_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        peer = start(emulator)
        await peer.open()
        await peer.shake_hands(status=2, wait=False)
        await peer.until(lambda: peer.closed_output is not None)
        assert "SessionType failed on client with status 2" in str(peer.closed_output)
        assert emulator.sessions()[-1].status == "Failed"
        await peer.close()

    run(scenario())


def test_input_before_the_end_of_the_handshake_is_acknowledged_and_lost(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with destination(echo) as port:
            peer = start(emulator, port)
            await peer.open()
            await peer.send_input(b"too early")
            await peer.until(lambda: peer.acknowledged == [0])
            await peer.shake_hands()
            peer.start_resending()
            await peer.send_input(b"in time")
            await peer.until(lambda: bytes(peer.output) == b"in time")
            assert emulator.sessions()[-1].client_defects == {"input before HandshakeComplete, thrown away": 1}
            await peer.close()

    run(scenario())


def test_input_before_the_port_is_connected_is_refused_and_comes_again(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(dial_delay_s=0.2))
        async with destination(echo) as port:
            peer = start(emulator, port)
            await peer.open()
            await peer.shake_hands()
            number = await peer.send_input(b"early")
            await peer.send_input(b" bird")
            await peer.until(lambda: number + 1 in peer.acknowledged)  # ahead of order: stored
            assert number not in peer.acknowledged
            peer.start_resending()
            await peer.until(lambda: bytes(peer.output) == b"early bird")
            assert emulator.sessions()[-1].refused_input >= 1
            await peer.close()

    run(scenario())


def test_an_agent_can_discard_input_just_after_the_handshake(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(discard_after_handshake_ms=5000))
        async with opened(emulator) as peer:
            await peer.send_input(b"lost")
            await peer.until(lambda: not peer.unacknowledged)
            assert not peer.output

    run(scenario())


def test_a_second_response_blocks_the_agent_for_good(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b'{"ClientVersion":"1"}', PayloadType.HANDSHAKE_RESPONSE)
            await peer.send_input(b"never read")
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: len(peer.unacknowledged) < 2, timeout=0.4)
            assert emulator.sessions()[-1].client_defects["second HandshakeResponse, blocks the agent"] == 1

    run(scenario())


def test_other_kinds_of_sessions_look_as_they_should(emulator: Emulator) -> None:
    async def scenario() -> None:
        encrypted = await start(emulator, document="Test-EncryptedShell").open()
        await encrypted.until(lambda: bool(encrypted.of_type("output_stream_data")))
        actions = decode_handshake_request(encrypted.of_type("output_stream_data")[0].payload).requested_actions
        assert [each.action_type for each in actions] == ["SessionType", "KMSEncryption"]
        assert actions[0].parameter("Properties") is None
        assert actions[1].parameter("KMSKeyId") == "alias/test"
        await encrypted.close()

        forward = await start(emulator, 8080, "Test-Forward").open()
        await forward.shake_hands(wait=False)
        assert forward.request_properties == {"portNumber": "8080", "type": "LocalPortForwarding"}
        await forward.close()

    run(scenario())


# --- data ----------------------------------------------------------------------------------------------------------


def test_large_and_fragmented_messages_are_taken(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b"\n" * 1_000_000)
            await peer.until(lambda: len(peer.output) == 1_000_000)
            assert max(len(m.payload) for m in peer.of_type("output_stream_data")) == 1024
            number = peer.next_number
            peer.next_number += 1
            message = input_message(number, b"in three frames")
            assert peer.socket is not None
            writer = peer.socket._writer
            for piece, opcode in ((message[:50], 2), (message[50:51], 0)):
                frame = bytes((opcode, 0x80 | len(piece))) + bytes(4) + piece  # not the last one, masked with zeros
                writer.transport.write(frame)
            writer.transport.write(bytes((0x80, 0x80 | len(message[51:]))) + bytes(4) + message[51:])
            await peer.until(lambda: peer.output.endswith(b"in three frames"))

    run(scenario())


def test_a_wrong_digest_is_forgiven_and_counted(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            message = bytearray(input_message(peer.next_number, b"b"))
            message[80] ^= 1
            await peer.send(bytes(message))
            await peer.until(lambda: bytes(peer.output) == b"ab")
            assert emulator.sessions()[-1].client_defects == {"wrong payload digest": 1}
            assert emulator.statistics()["client_defects"]["wrong payload digest"] >= 1

    run(scenario())


def test_unacknowledged_output_is_resent_head_first(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b"a")
            await peer.until(lambda: bytes(peer.output) == b"a")
            peer.acknowledges = False
            for data in (b"b", b"c"):
                await peer.send_input(data)
                await peer.until(lambda data=data: peer.raw[-1].endswith(data))
            heads = lambda: [m for m in peer.of_type("output_stream_data") if m.payload == b"b"]  # noqa: E731
            await peer.until(lambda: len(heads()) >= 3)
            assert len({(m.message_id, m.created_date_ms) for m in heads()}) == 1
            assert sum(m.payload == b"c" for m in peer.received) == 1

    run(scenario())


def test_a_destination_that_does_not_read_blocks_the_client(emulator: Emulator) -> None:
    """What arrives beyond the buffers stays with the client, unacknowledged; then all of it is delivered."""
    total = 48 * 1024 * 1024
    received = bytearray()
    go = asyncio.Event()

    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await go.wait()
        writer.transport.resume_reading()
        while data := await reader.read(1 << 20):
            received.extend(data)

    async def scenario() -> None:
        async with opened(emulator, stubborn) as peer:
            peer.stop_resending()
            await asyncio.sleep(0.05)
            sent = 0

            async def send_all() -> None:
                nonlocal sent
                while sent < total:
                    await peer.send_input(bytes(65536))
                    sent += 65536

            sending = asyncio.create_task(send_all())
            level = -1
            while level != sent:  # until nothing moves any more
                level = sent
                await asyncio.sleep(0.3)
            assert sent < total
            acknowledged = emulator.sessions()[-1].input_bytes
            assert acknowledged <= sent
            assert len(peer.unacknowledged) * 65536 >= 4 * 1024 * 1024 - 65536
            go.set()
            await asyncio.wait_for(sending, 25)
            await peer.until(lambda: not peer.unacknowledged, 20)
            while len(received) < total:  # acknowledged means: in the hands of the system
                await asyncio.sleep(0.01)

    run(scenario())


def test_output_waits_for_a_client_that_does_not_acknowledge(emulator: Emulator) -> None:
    """Without pauses between messages the agent is bounded by what is unacknowledged."""

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 20))
            await writer.drain()

    async def scenario() -> None:
        async with opened(emulator, flood) as peer:
            await peer.until(lambda: len(peer.output) > 2_000_000)
            peer.acknowledges = False
            level, last = -1, 0
            while level != last:  # until nothing new comes any more
                level = last
                await asyncio.sleep(0.25)
                last = max(message.sequence_number for message in peer.received)
            assert 3_000_000 < (last - peer.expected) * 1024 < 6_000_000

    run(scenario())


def test_real_pacing_is_a_message_each_millisecond() -> None:
    async def scenario() -> None:
        began: list[float] = []

        async def send_half_a_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            began.append(time.monotonic())
            writer.write(bytes(500 * 1024))
            await reader.read()

        with Emulator() as emulator:
            async with opened(emulator, send_half_a_second) as peer:
                await peer.until(lambda: len(peer.output) == 500 * 1024, timeout=20)
                elapsed = time.monotonic() - began[0]
        assert elapsed > 0.4  # a machine with other work may take longer, never less

    run(scenario())


# --- ends ----------------------------------------------------------------------------------------------------------


def test_the_server_closes(emulator: Emulator) -> None:
    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye" * 100_000)
        await writer.drain()

    async def scenario() -> None:
        async with opened(emulator, bye) as peer:
            await peer.until(lambda: peer.closed_output is not None)
            assert peer.closed_output == ""
            assert bytes(peer.output) == b"bye" * 100_000
            await peer.until(lambda: peer.is_closed)
        assert emulator.sessions()[-1].status == "Terminated"
        assert resume_answer(peer) == {"SessionId": peer.response["SessionId"]}

    run(scenario())


def resume_answer(peer: Peer) -> dict[str, Any]:
    answer = ssm_client(peer.environment).resume_session(SessionId=peer.response["SessionId"])
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def test_a_refused_port(emulator: Emulator) -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            peer = await start(emulator, port).open()
            await peer.shake_hands()
            await peer.until(lambda: peer.closed_output is not None)
            await peer.close()
        text = f"Unable to connect to specified port: dial tcp 127.0.0.1:{port}: connect: connection refused"
        assert peer.closed_output == text
        snapshot = emulator.sessions()[-1]
        assert (snapshot.status, snapshot.details) == ("Failed", text)

    run(scenario())


def test_disconnect_to_port_fails_the_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_flag(Flag.DISCONNECT_TO_PORT)
            await peer.until(lambda: peer.closed_output is not None)
            assert "use of closed network connection" in str(peer.closed_output)
        assert emulator.sessions()[-1].status == "Failed"

    run(scenario())


def test_the_terminate_flag_comes_after_the_data_before_it(emulator: Emulator) -> None:
    received = bytearray()
    ended = asyncio.Event()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            received.extend(data)
        ended.set()

    async def scenario() -> None:
        async with opened(emulator, collect) as peer:
            for _ in range(3000):
                await peer.send_input(b"x" * 1024)
            await peer.send_flag(Flag.TERMINATE_SESSION)
            await peer.until(lambda: peer.closed_output is not None)
            await asyncio.wait_for(ended.wait(), 5)
            assert len(received) == 3000 * 1024
            assert not peer.unacknowledged

    run(scenario())


def test_terminate_session_by_the_api(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            ssm_client(peer.environment).terminate_session(SessionId=peer.response["SessionId"])
            await peer.until(lambda: peer.closed_output is not None)
            assert peer.closed_output == ""
            await peer.until(lambda: peer.is_closed)

    run(scenario())


def test_the_idle_timeout_of_the_service(emulator: Emulator) -> None:
    async def scenario() -> None:
        emulator.set_faults(Faults(idle_timeout_s=0.3))
        async with opened(emulator) as peer:
            await peer.until(lambda: peer.closed_output is not None)
            assert "inactivity" in str(peer.closed_output)

    run(scenario())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_end_does_not_wait_for_a_client_that_does_not_read(tls: bool) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 20))
            await writer.drain()

    async def scenario() -> None:
        async with destination(flood) as port:
            with Emulator(EmulatorOptions(agent_pace_s=0, tls=tls)) as emulator:
                peer = start(emulator, port)
                await peer.open()
                await peer.shake_hands()
                await peer.until(lambda: len(peer.output) > 100_000)
                assert peer.socket is not None
                assert peer.socket._response.connection is not None
                transport = peer.socket._response.connection.transport
                assert transport is not None
                transport.pause_reading()
                await asyncio.sleep(0.3)
                began = time.monotonic()
            assert time.monotonic() - began < END_WITHIN
            transport.abort()
            await peer.close()

    run(scenario())


def test_an_emulator_that_ends_tells_its_clients_and_leaves_nothing() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(nodes=(Node(node_id=NODE),))) as emulator:
            directory = emulator.directory
            peer = await start(emulator).open()
            await peer.shake_hands()
            idle = start(emulator)
            began = time.monotonic()
        assert time.monotonic() - began < END_WITHIN
        await peer.until(lambda: peer.is_closed)
        assert peer.closed_output == ""
        await peer.close()
        assert idle.response["TokenValue"]
        assert not directory.exists()

    run(scenario())
