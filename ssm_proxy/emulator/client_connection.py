"""One WebSocket of a client, seen from the service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from aiohttp import WSMsgType, web

from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.link import Item, Link

_LOG = logging.getLogger("ssm_proxy.emulator.service")
_WRITE_BUFFER_BYTES: Final = 262_144
_LARGEST_MESSAGE: Final = 64 * 1024 * 1024
_LINGER_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.02
_ENDS: Final = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST


class MessageHandler(Protocol):
    """Who gets what a client sends."""

    def from_client(self, message: bytes) -> None: ...
    async def room_for_input(self) -> None: ...


class ClientConnection:
    """Frames out, messages in, each through a link that can misbehave.

    Frames are written to the transport in batches of our own making: one system call for many messages.

    Args:
        websocket: without automatic pongs, as these have to travel through the link too.
    """

    def __init__(
        self,
        request: web.Request,
        websocket: web.WebSocketResponse,
        faults: Callable[[], Faults],
        seed: str,
    ) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone before its WebSocket was open")
        self._transport: asyncio.Transport = transport
        self._socket = transport.get_extra_info("socket")
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._request = request
        self._websocket = websocket
        self._faults = faults
        self._handler: MessageHandler | None = None
        self._inbound = Link("input", faults, random.Random(f"{seed}/input"), self._arrived)
        self._outbound = Link("output", faults, random.Random(f"{seed}/output"), self._write)
        self._fragment_rng = random.Random(f"{seed}/fragment")
        self._loop = asyncio.get_running_loop()
        self._is_blackholed = False
        self._lingers = False
        self._ended = asyncio.Event()
        self._drop_timer: asyncio.TimerHandle | None = None
        self._on_cut: Callable[[], None] = lambda: None
        self.passed_bytes = 0
        self.is_open = True

    # --- receiving -----------------------------------------------------------------------------------------------

    async def receive_text(self, timeout_s: float) -> str | None:
        """Wait for the first text message; pings may come before it (2.2). None: something else, or nothing, came."""
        deadline = self._loop.time() + timeout_s
        while (wait := deadline - self._loop.time()) > 0:
            try:
                message = await self._websocket.receive(wait)
            except asyncio.TimeoutError:
                return None
            if message.type is WSMsgType.TEXT:
                return str(message.data)
            if message.type is WSMsgType.PING:
                self._pong(message.data)
            elif message.type is not WSMsgType.PONG:
                return None
        return None

    async def serve(self, handler: MessageHandler, on_cut: Callable[[], None]) -> None:
        """Hand every message to the handler until the client has gone or the connection was cut.

        Args:
            on_cut: told when ``drop_after_bytes`` or ``drop_every_s`` are due; decides what to cut.
        """
        self._handler = handler
        self._on_cut = on_cut
        self.faults_changed()
        receive, inbound = self._websocket.receive, self._inbound
        while True:
            message = await receive()
            kind = message.type
            if self._is_blackholed:
                await self._ended.wait()  # the socket is not read any more
            if not self.is_open:
                break  # a late acknowledge would wake the agent from the pause that follows a cut
            if kind is WSMsgType.BINARY:
                data = bytes(message.data)
                if inbound.is_clear:
                    self._count(len(data))
                    handler.from_client(data)
                else:
                    inbound.put([Item(data)])
                    await inbound.room()
                await handler.room_for_input()
            elif kind is WSMsgType.TEXT:  # the official programs parse text like binary (2.4)
                inbound.put([Item(message.data.encode())])
            elif kind is WSMsgType.PING:
                inbound.put([Item(bytes(message.data), is_message=False)])
            elif kind is not WSMsgType.PONG:
                break
        if self._lingers:
            # We said goodbye while the client may still be sending: closing now would send a reset after it.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._swallow(), _LINGER_S)

    async def _swallow(self) -> None:
        while (await self._websocket.receive()).type not in _ENDS:
            pass

    def faults_changed(self) -> None:
        """Set the timer of ``drop_every_s`` anew."""
        if self._drop_timer is not None:
            self._drop_timer.cancel()
            self._drop_timer = None
        if self.is_open and (seconds := self._faults().drop_every_s):
            self._drop_timer = self._loop.call_later(seconds, self._drop_again)

    def _drop_again(self) -> None:
        self._on_cut()
        self.faults_changed()

    def _arrived(self, items: Sequence[Item]) -> None:
        handler = self._handler
        if handler is None or not self.is_open:
            return
        for item in items:
            if item.is_message:
                self._count(len(item.data))
                handler.from_client(item.data)
            else:
                self._pong(item.data)

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[bytes]) -> None:
        """Send agent messages, each as one binary frame (but for ``fragment``), in as few writes as possible."""
        if self._outbound.is_clear:
            self._write_frames([self._message_frames(message) for message in messages], sum(map(len, messages)))
        elif self.is_open:
            self._outbound.put([Item(message) for message in messages])

    async def room(self) -> None:
        """Wait until the client takes more."""
        await self._outbound.room()
        if self.is_open and self._transport.get_write_buffer_size() > _WRITE_BUFFER_BYTES:
            try:
                await self._request.writer.drain()
            except ConnectionError:
                return

    def _pong(self, payload: bytes) -> None:
        frame = _frame(0x8A, payload)
        if self._outbound.is_clear:
            self._write_frames([frame], 0)
        elif self.is_open:
            self._outbound.put([Item(frame, is_message=False)])

    def _write(self, items: Sequence[Item]) -> None:
        frames = [self._message_frames(item.data) if item.is_message else item.data for item in items]
        self._write_frames(frames, sum(len(item.data) for item in items if item.is_message))

    def _message_frames(self, message: bytes) -> bytes:
        probability = self._faults().fragment
        if not probability or self._fragment_rng.random() >= probability:
            return _frame(0x82, message)
        # Three fragments (RFC 6455, 5.4), empty ones among them.
        first, second = sorted(self._fragment_rng.choices(range(len(message) + 1), k=2))
        return _frame(0x02, message[:first]) + _frame(0x00, message[first:second]) + _frame(0x80, message[second:])

    def _write_frames(self, frames: list[bytes], counted: int) -> None:
        if self.is_open and not self._is_blackholed and not self._transport.is_closing():
            self._transport.write(b"".join(frames))
            self._count(counted)

    def _count(self, size: int) -> None:
        before = self.passed_bytes
        self.passed_bytes = before + size
        limit = self._faults().drop_after_bytes
        if limit and before // limit != self.passed_bytes // limit:
            self._loop.call_soon(self._on_cut)  # not at once: we are in the middle of handing over a message

    # --- ending --------------------------------------------------------------------------------------------------

    def cut(self, manner: str) -> bool:
        """End the connection in one of the manners of :data:`ssm_proxy.emulator.faults.MANNERS`.

        Returns:
            Whether it was open.
        """
        if not self.is_open:
            return False
        _LOG.info("= client connection cut: %s", manner)
        if manner == "blackhole":
            self._is_blackholed = True
            self._transport.pause_reading()
            return True
        self._stop_links()
        if manner == "reset":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
            return True
        self._lingers = True
        if manner != "fin":
            code = int(manner.removeprefix("close-"))
            self._transport.write(_frame(0x88, struct.pack(">H", code) + (b"Bye" if code == 1000 else b"")))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        """End the connection in the ordinary way, without losing what was already written."""
        self._stop_links()
        self._ended.set()
        self._transport.close()

    async def wait_closed(self) -> None:
        """Wait until the socket has gone; what the client has not taken by then is lost."""
        deadline = self._loop.time() + _LINGER_S
        try:
            while self._request.transport is not None and self._loop.time() < deadline:
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            if self._request.transport is not None:
                self.abort()

    def abort(self) -> None:
        """Close at once, whatever is still to be written."""
        self.close()
        # The abort of a TLS transport does nothing once close was called twice, as it is by aiohttp and us: the socket
        # itself has to fail.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    def _stop_links(self) -> None:
        self.is_open = False
        self._inbound.close()
        self._outbound.close()
        self.faults_changed()


def make_websocket() -> web.WebSocketResponse:
    """Give the server's end of a WebSocket as the service has it: no compression, no heartbeat of its own."""
    return web.WebSocketResponse(
        autoping=False, heartbeat=None, compress=False, max_msg_size=_LARGEST_MESSAGE, timeout=1.0
    )


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126, size >> 8, size & 0xFF)) + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload
