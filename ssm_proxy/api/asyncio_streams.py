"""The usual pair of asyncio, to a port of a managed node."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from ssm_proxy.api.service import BEGIN_TIMEOUT, Service, check_timeout
from ssm_proxy.api.session_thread import STOP_TIMEOUT, SessionThread
from ssm_proxy.sessions.port import STREAM_DOCUMENT
from ssm_proxy.transport.socket_stream import LEAVE_TIME

if TYPE_CHECKING:
    import boto3

STREAM_LIMIT = 64 * 1024
"""That of asyncio itself."""
_READ_BYTES = 64 * 1024


async def open_connection(
    target: str,
    *,
    session: boto3.Session | None = None,
    port: int = 22,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    document_name: str = STREAM_DOCUMENT,
    timeout: float | None = BEGIN_TIMEOUT,
    limit: int = STREAM_LIMIT,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a TCP port of a managed node; as `asyncio.open_connection`, through Session Manager.

    The loop goes on meanwhile; a task that is cancelled ends the session. Use the pair in this loop only.

    The reader raises the error of a session that failed after all bytes that came were read, where a plain one would
    report the end; `StreamWriter.drain` raises it too. What a read had taken that was to get more, to the end, a line
    or a number of bytes, is in the `asyncio.IncompleteReadError` that is the error's ``__context__``. A write after the
    end of the session takes nothing from the reader. `StreamWriter.write_eof` is ``shutdown(SHUT_WR)`` of
    `Connection`, with its limits. `StreamWriter.close` ends the session, which goes on in a thread for a moment; what
    was written before gets 5 s to leave, as much to arrive.

    Args:
        target: as for `connect`, and so are all others but the last.
        session: see there.
        port: see there.
        profile: see there.
        region: see there.
        reason: see there.
        endpoint_url: see there.
        stream_endpoint_url: see there.
        document_name: see there.
        timeout: see there.
        limit: of the reader's buffer, as for `asyncio.open_connection`.

    Raises:
        SsmProxyError: as `connect`.
    """
    check_timeout(timeout)
    service = Service(
        session=session,
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
    )
    thread, end = service.begin(target, port, reason=reason, document_name=document_name, release=service.close)
    # Not in a thread of the loop's pool: it has few, and many connections would wait for each other.
    begun = asyncio.wrap_future(thread.begun)
    try:
        await asyncio.wait({begun}, timeout=timeout)
        if not begun.done():
            thread.stop()
            await asyncio.wait({begun}, timeout=STOP_TIMEOUT)  # until it is over, and knows why
            raise thread.took_too_long(f"port {port} of {target}", timeout)
        begun.result()
        return await _streams(end, thread, limit)
    except BaseException:
        begun.cancel()  # else asyncio complains that nobody looked at what it met
        thread.stop()
        end.close()
        raise


async def _streams(
    end: socket.socket, thread: SessionThread, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = _Reader(thread, end, limit=limit, loop=loop)
    protocol = _Protocol(thread, reader, loop=loop)
    if hasattr(socket, "AF_UNIX") and end.family == socket.AF_UNIX:
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=end)
    else:
        transport, _ = await loop.create_connection(lambda: protocol, sock=end)
    return reader, _Writer(transport, protocol, reader, loop)


class _Writer(asyncio.StreamWriter):
    """A writer whose ``close`` is bounded: what was written before gets some seconds to leave."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._own_loop = loop  # which need not be running when it is closed

    def close(self) -> None:
        super().close()
        if self.transport.get_write_buffer_size():
            self._own_loop.call_later(LEAVE_TIME, self.transport.abort)


class _Reader(asyncio.StreamReader):
    """A reader for which the end of a session that failed is no end, but its error.

    Args:
        session: what it reads from.
        end: the socket that the transport reads from.
        limit: of the buffer.
        loop: the one that runs.
    """

    def __init__(
        self, session: SessionThread, end: socket.socket, *, limit: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(limit=limit, loop=loop)
        self._session = session
        self._end = end
        self._lost: BaseException | None = None
        self._taking: asyncio.Task[None] | None = None

    def exception(self) -> BaseException | None:  # type: ignore[override]
        """Give the error; the writer's ``drain`` asks for it."""
        return self._session.error or self._lost

    def set_exception(self, exc: BaseException) -> None:
        """Take note that the transport is lost: it has failed to write, but what came before that is still to be read.

        That is what the socket holds, and what the session could not hand over yet; no more, as the session is over.
        """
        if not isinstance(exc, BrokenPipeError):  # that is the writer's matter; the server may just have closed
            self._lost = exc
        try:
            rest = self._end.dup()  # the transport closes its own
        except OSError:
            self.feed_eof()
            return
        self._taking = asyncio.get_running_loop().create_task(self._take(rest))

    async def _take(self, rest: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            with rest, contextlib.suppress(OSError):
                while data := await loop.sock_recv(rest, _READ_BYTES):
                    self.feed_data(data)
        finally:
            self.feed_eof()

    async def read(self, n: int = -1) -> bytes:
        if n < 0:
            return await self._read_all()
        data = await super().read(n)
        if not data and n:
            self._raise_error()
        return data

    async def _read_all(self) -> bytes:
        pieces = []
        while piece := await super().read(_READ_BYTES):
            pieces.append(piece)
        data = b"".join(pieces)
        try:
            raise asyncio.IncompleteReadError(data, None)
        except asyncio.IncompleteReadError:  # the context of the error, if there is one
            self._raise_error()
        return data

    async def readuntil(self, separator: bytes = b"\n") -> bytes:  # type: ignore[override]
        try:
            return await super().readuntil(separator)
        except asyncio.IncompleteReadError:
            self._raise_error()
            raise

    async def readexactly(self, n: int) -> bytes:
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError:
            self._raise_error()
            raise

    def _raise_error(self) -> None:
        error = self.exception()
        if error is not None:
            raise error.with_traceback(None)


class _Protocol(asyncio.StreamReaderProtocol):
    """A protocol whose connection is lost with the error of its session."""

    def __init__(self, session: SessionThread, reader: _Reader, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._session = session

    def eof_received(self) -> bool:
        stays_open = super().eof_received()
        return bool(stays_open) and self._session.error is None  # else nobody takes what would be written

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc if exc is None else self._session.error or exc)
