"""`ssm_proxy.open_connection`: asyncio's usual pair."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

import pytest
from forwards import echo, receive_exactly, serving
from nodes import EMBEDDED, MIB, WITHIN, BecomeUser, StartEmulator, open_sessions, reserved_port, wait_until

import ssm_proxy
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.emulator import Emulator, Faults
from ssm_proxy.transport.socket_stream import SocketStream

pytestmark = pytest.mark.integration
DATA = Random(6).randbytes(2 * MIB)
_T = TypeVar("_T")


@pytest.fixture
def service(start_emulator: StartEmulator, become_user: BecomeUser) -> Emulator:
    emulator = start_emulator()
    become_user(emulator)
    return emulator


def on_node(
    work: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[_T]],
    serve: Callable[[socket.socket], None] = echo,
) -> _T:
    """Do work in a loop with a connection to a server on the node; close it, and give the result."""

    async def main(port: int) -> _T:
        reader, writer = await ssm_proxy.open_connection(EMBEDDED, port=port)
        try:
            return await asyncio.wait_for(work(reader, writer), WITHIN)
        finally:
            writer.close()

    with serving(serve) as port:
        return asyncio.run(main(port))


def test_bytes_arrive_both_ways(service: Emulator) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(DATA)
        received, _ = await asyncio.gather(reader.readexactly(len(DATA)), writer.drain())
        return received

    assert on_node(work) == DATA
    wait_until(lambda: not open_sessions(service), "closing ends the session")


def test_half_close_and_the_end(service: Emulator) -> None:
    def answer(server: socket.socket) -> None:
        receive_exactly(server, 9)
        server.sendall(DATA)

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"question\n")
        writer.write_eof()
        received = await reader.read()
        assert reader.at_eof()
        assert await reader.readline() == b""
        return received

    assert on_node(work, answer) == DATA


def test_the_loop_goes_on_while_it_connects(service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    set_begun = SessionThread.set_begun

    def begin_late(thread: SessionThread) -> None:
        assert goes_on.wait(WITHIN)
        set_begun(thread)

    monkeypatch.setattr(SessionThread, "set_begun", begin_late)

    async def main(port: int) -> int:
        turns = 0
        connecting = asyncio.ensure_future(ssm_proxy.open_connection(EMBEDDED, port=port))
        while not connecting.done():
            turns += 1
            if turns > 3:
                goes_on.set()
            await asyncio.sleep(0.01)
        connecting.result()[1].close()
        return turns

    with serving(echo) as port:
        assert asyncio.run(main(port)) > 3
    wait_until(lambda: not open_sessions(service), "closing ends the session")


def test_many_at_once(service: Emulator) -> None:
    """More than there are threads in the loop's pool."""

    async def use(port: int) -> bytes:
        reader, writer = await ssm_proxy.open_connection(EMBEDDED, port=port)
        writer.write(DATA[:1000])
        received = await reader.readexactly(1000)
        writer.close()
        await writer.wait_closed()
        return received

    async def main(port: int) -> set[bytes]:
        return set(await asyncio.gather(*(use(port) for _ in range(12))))

    with serving(echo) as port:
        assert asyncio.run(main(port)) == {DATA[:1000]}


READERS: dict[str, Callable[[asyncio.StreamReader], Awaitable[bytes]]] = {
    "read": lambda reader: reader.read(100),
    "read to the end": lambda reader: reader.read(),
    "readline": lambda reader: reader.readline(),
    "readexactly": lambda reader: reader.readexactly(100),
    "readuntil": lambda reader: reader.readuntil(b"x"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_session_that_fails_is_no_end(
    service: Emulator, read: Callable[[asyncio.StreamReader], Awaitable[bytes]]
) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first\nhalf a line")
        assert await reader.readexactly(6) == b"first\n"
        while len(reader._buffer) < 11:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        service.set_faults(Faults(refuse_resume="gone"))
        service.drop_connections()
        while reader.exception() is None:
            await asyncio.sleep(0.01)
        assert await reader.readexactly(11) == b"half a line"  # it came before the end
        with pytest.raises(ssm_proxy.SessionEnded):
            await read(reader)
        with pytest.raises(ssm_proxy.SessionEnded):
            await writer.drain()

    on_node(work)


def kill_sessions(emulator: Emulator) -> None:
    """End all sessions for good, without a word."""
    emulator.set_faults(Faults(refuse_resume="gone"))
    emulator.drop_connections()


SIZE = 400_000
"""More than the pair of sockets holds: the rest is handed over after the end."""


async def fail_to_write(writer: asyncio.StreamWriter) -> None:
    """Write until nobody takes it any more."""
    while not writer.transport.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # until the protocol knows


async def read_some(reader: asyncio.StreamReader) -> bytes:
    """Read slowly, until there is an end or an error."""
    data = bytearray()
    with contextlib.suppress(ssm_proxy.SsmProxyError):
        while piece := await reader.read(10_000):
            data += piece
            await asyncio.sleep(0)
    return bytes(data)


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes have come, each time some have."""
    counts: list[int] = []
    take = SocketStream.output

    def counted(self: SocketStream, pieces: Sequence[bytes], now: float) -> None:
        take(self, pieces, now)
        counts.append(self.output_bytes)

    monkeypatch.setattr(SocketStream, "output", counted)
    return counts


@pytest.mark.parametrize("read", list(READERS.values())[1:], ids=list(READERS)[1:])
def test_what_was_to_get_more_is_in_the_error(
    service: Emulator, came: list[int], read: Callable[[asyncio.StreamReader], Awaitable[bytes]]
) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half a line")
        reading = asyncio.ensure_future(read(reader))
        while not came or came[-1] < 11:
            await asyncio.sleep(0.01)
        kill_sessions(service)
        with pytest.raises(ssm_proxy.SessionEnded) as caught:
            await reading
        context = caught.value.__context__
        assert isinstance(context, asyncio.IncompleteReadError)
        assert context.partial == b"half a line"

    on_node(work)


@pytest.mark.parametrize("way", ["read", "read to the end", "readexactly"])
def test_a_write_after_the_failure_takes_nothing_from_the_reader(
    service: Emulator, came: list[int], caplog: pytest.LogCaptureFixture, way: str
) -> None:
    def serve(server: socket.socket) -> None:
        server.sendall(DATA[:SIZE])
        server.recv(1)

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not came or came[-1] < SIZE:
            await asyncio.sleep(0.01)
        kill_sessions(service)
        while reader.exception() is None:
            await asyncio.sleep(0.01)
        await fail_to_write(writer)
        if way == "read":
            assert await read_some(reader) == DATA[:SIZE]
        elif way == "readexactly":
            assert await reader.readexactly(SIZE) == DATA[:SIZE]
        with pytest.raises(ssm_proxy.SessionEnded) as caught:
            await reader.read()
        assert isinstance(caught.value.__context__, asyncio.IncompleteReadError)
        assert caught.value.__context__.partial == (DATA[:SIZE] if way == "read to the end" else b"")
        assert reader.at_eof()
        with pytest.raises(ssm_proxy.SessionEnded):
            await writer.drain()
        with pytest.raises(ssm_proxy.SessionEnded):
            await writer.wait_closed()

    on_node(work, serve)
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


def test_a_write_after_the_server_has_closed_takes_nothing_from_the_reader(service: Emulator, came: list[int]) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while not came or came[-1] < SIZE:
            await asyncio.sleep(0.01)
        await fail_to_write(writer)
        with pytest.raises(ConnectionError):
            await writer.drain()
        return await reader.read()

    assert on_node(work, lambda server: server.sendall(DATA[:SIZE])) == DATA[:SIZE]


@pytest.mark.filterwarnings("error")
def test_a_loop_that_ends_before_the_rest_was_taken(
    service: Emulator, came: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not came or came[-1] < SIZE:
            await asyncio.sleep(0.01)
        kill_sessions(service)
        await fail_to_write(writer)

    on_node(work, lambda server: [server.sendall(DATA[:SIZE]), server.recv(1)])
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


def test_lines_do_not_end_where_the_session_failed(service: Emulator) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
        writer.write(b"one\ntwo\n")
        lines = []

        async def read_all() -> None:
            async for line in reader:
                lines.append(line)
                if len(lines) == 2:
                    service.set_faults(Faults(refuse_resume="gone"))
                    service.drop_connections()

        with pytest.raises(ssm_proxy.SessionEnded):
            await read_all()
        return lines

    assert on_node(work) == [b"one\n", b"two\n"]


def test_a_writer_is_told_too(service: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write_all() -> None:
            while True:
                writer.write(DATA[:100_000])
                await writer.drain()

        service.set_faults(Faults(refuse_resume="gone"))
        service.drop_connections()
        with pytest.raises(ssm_proxy.SessionEnded):
            await write_all()

    on_node(work)
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname == "ERROR"] == []


def test_what_cannot_begin(service: Emulator) -> None:
    service.set_faults(Faults(deny="StartSession"))
    with pytest.raises(ssm_proxy.AccessDenied):
        asyncio.run(ssm_proxy.open_connection(EMBEDDED))
    service.set_faults(Faults(stall_agent_s=5))
    with pytest.raises(ssm_proxy.TransportTimeout):
        asyncio.run(ssm_proxy.open_connection(EMBEDDED, timeout=0.3))
    wait_until(lambda: not open_sessions(service), "the session is over")


def test_a_refused_port(service: Emulator) -> None:
    async def main(port: int) -> None:
        reader, writer = await ssm_proxy.open_connection(EMBEDDED, port=port)
        with pytest.raises(ssm_proxy.RemotePortRefused):
            await reader.read(1)
        writer.close()

    with reserved_port() as port:
        asyncio.run(main(port))


def test_a_task_that_is_cancelled_leaves_no_session(service: Emulator) -> None:
    service.set_faults(Faults(stall_agent_s=5))

    async def main() -> None:
        task = asyncio.ensure_future(ssm_proxy.open_connection(EMBEDDED))
        while not open_sessions(service):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_until(lambda: not open_sessions(service), "the session is over")


def test_it_may_be_closed_while_no_loop_runs(service: Emulator) -> None:
    let_go = threading.Event()
    loop = asyncio.new_event_loop()
    try:
        with serving(lambda server: let_go.wait(60) and None) as port:
            _, writer = loop.run_until_complete(ssm_proxy.open_connection(EMBEDDED, port=port))
            writer.write(bytes(20 * MIB))
            writer.close()
            with contextlib.suppress(OSError):
                loop.run_until_complete(asyncio.wait_for(writer.wait_closed(), WITHIN))
            let_go.set()
        wait_until(lambda: not open_sessions(service), "the session ends")
    finally:
        let_go.set()
        loop.close()


def test_close_does_not_wait_for_ever_for_a_peer_that_does_not_read(service: Emulator) -> None:
    let_go = threading.Event()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(20 * MIB))
        writer.close()
        with contextlib.suppress(OSError):  # what was written did not arrive
            await writer.wait_closed()

    try:
        on_node(work, lambda server: let_go.wait(60) and None)
        wait_until(lambda: not open_sessions(service), "the session ends")
    finally:
        let_go.set()
