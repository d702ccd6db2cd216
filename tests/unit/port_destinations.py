"""Port sessions for the emulator's tests: a destination to forward to, a session to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from emulator_peer import NODE, Peer, ssm_client

from ssm_proxy.emulator import Emulator
from ssm_proxy.wire.constants import CLIENT_VERSION

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

FORWARD = "AWS-StartPortForwardingSession"
REMOTE = "AWS-StartPortForwardingSessionToRemoteHost"


class Destination:
    """A TCP server that keeps the connections it accepted, in their order, until the test is over."""

    def __init__(self) -> None:
        self.connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.port = 0
        self._changed = asyncio.Event()
        self.stop: Callable[[], None] = lambda: None
        """Refuses connections from now on."""

    async def accepted(self, count: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Wait for so many connections; give the last of them."""
        while len(self.connections) < count:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 20)
        return self.connections[count - 1]

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append((reader, writer))
        self._changed.set()


@contextlib.asynccontextmanager
async def destination(handler: Handler | None = None) -> AsyncIterator[Destination]:
    """Serve one port; with a handler every connection is closed when it returns, without one the test does all."""
    served = Destination()
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await served.take(reader, writer)
        if handler is not None:
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                writer.transport.abort()
            finally:
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    served.stop = server.close
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def unused_port() -> int:
    """Give a port that refuses connections, most likely."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def forwarding(
    emulator: Emulator, port: int, *, client_version: str = CLIENT_VERSION, host: str | None = None
) -> AsyncIterator[Peer]:
    """Start a session that forwards to a port, with the handshake done."""
    environment = emulator.environment()
    parameters = {"portNumber": [str(port)]} | ({} if host is None else {"host": [host]})
    answer = ssm_client(environment).start_session(
        Target=NODE, DocumentName=FORWARD if host is None else REMOTE, Parameters=parameters
    )
    peer = await Peer(environment, answer).open()
    try:
        await peer.shake_hands(client_version=client_version)
        peer.start_resending()
        yield peer
    finally:
        await peer.close()
        ssm_client(environment).terminate_session(SessionId=answer["SessionId"])


async def check_terminated(emulator: Emulator, peer: Peer) -> None:
    """Wait for the end that the client's flag brings: no reason is told, and everything before it was taken."""
    await peer.until(lambda: peer.closed_output is not None)
    assert peer.closed_output == ""
    assert not peer.unacknowledged
    assert emulator.sessions()[-1].status == "Terminated"
