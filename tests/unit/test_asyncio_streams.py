"""The reader of `ssm_proxy.open_connection`, over a pair of sockets whose other end is not a session's."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from ssm_proxy.api.asyncio_streams import STREAM_LIMIT, _Reader, _streams
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.session import Session


def never_begins() -> Session:
    raise AssertionError


def thread() -> SessionThread:
    return SessionThread(never_begins, judge=lambda _: None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systems differ in when they reset")
def test_a_reset_is_no_end_but_takes_nothing_that_came() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await _streams(theirs, thread(), STREAM_LIMIT)
        writer.write(b"nobody reads this")
        ours.sendall(b"what came")
        ours.close()
        while reader.exception() is None:
            await asyncio.sleep(0)
        assert await reader.readexactly(9) == b"what came"
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionResetError):
            await writer.drain()

    asyncio.run(main())


def test_a_descriptor_that_has_gone_is_the_end_of_what_came() -> None:
    async def main() -> None:
        gone = socket.socket()
        gone.close()
        reader = _Reader(thread(), gone, limit=STREAM_LIMIT, loop=asyncio.get_running_loop())
        reader.feed_data(b"what came")
        reader.set_exception(BrokenPipeError())
        assert await reader.read() == b"what came"
        assert await reader.read() == b""

    asyncio.run(main())
