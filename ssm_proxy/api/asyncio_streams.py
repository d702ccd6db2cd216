"""The usual pair of asyncio, to a port of a managed node."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from ssm_proxy.api.service import BEGIN_TIMEOUT, Service
from ssm_proxy.api.session_thread import SessionThread, begin_took_too_long
from ssm_proxy.sessions.port import STREAM_DOCUMENT

if TYPE_CHECKING:
    import boto3

STREAM_LIMIT = 64 * 1024
"""That of asyncio itself."""


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
    report the end; `StreamWriter.drain` raises it too. `StreamWriter.write_eof` is ``shutdown(SHUT_WR)`` of
    `Connection`, with its limits. `StreamWriter.close` ends the session, which goes on in a thread for a moment.

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
    service = Service(
        session=session,
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
    )
    thread, end = service.begin(target, port, reason=reason, document_name=document_name, release=service.close)
    try:
        try:
            # Not in a thread of the loop's pool: it has few, and many connections would wait for each other.
            await asyncio.wait_for(asyncio.wrap_future(thread.begun), timeout)
        except asyncio.TimeoutError as error:
            raise begin_took_too_long(f"port {port} of {target}", timeout) from error
        return await _streams(end, thread, limit)
    except BaseException:
        thread.stop()
        end.close()
        raise


async def _streams(
    end: socket.socket, thread: SessionThread, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = _Reader(thread, limit=limit, loop=loop)
    protocol = _Protocol(thread, reader, loop=loop)
    if hasattr(socket, "AF_UNIX") and end.family == socket.AF_UNIX:
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=end)
    else:
        transport, _ = await loop.create_connection(lambda: protocol, sock=end)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Reader(asyncio.StreamReader):
    """A reader for which the end of a session that failed is no end, but its error."""

    def __init__(self, session: SessionThread, *, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self._session = session

    def exception(self) -> BaseException | None:  # type: ignore[override]
        """Give the error; the writer's ``drain`` asks for it."""
        return super().exception() or self._session.error

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        if not data and n:
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
        error = self._session.error
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
