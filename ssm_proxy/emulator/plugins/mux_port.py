"""Port session of the mux kind: a connection to the destination for each stream that the client opens.

Source: amazon-ssm-agent, agent/session/plugins/port/port_mux.go; docs/PROTOCOL.md section 8.8.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final, cast

from ssm_proxy.emulator.addresses import Address, HostRefused
from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.plugins import FAILED, SUCCESS, Outcome, PluginHost
from ssm_proxy.emulator.plugins.ports import DialFailed, dial, find_destination, read_flag
from ssm_proxy.emulator.smux_acceptor import FRAME_BYTES, HEADER, Ended, Opened, Received, SmuxAcceptor, SmuxBroken
from ssm_proxy.emulator.versions import compare_versions
from ssm_proxy.wire.constants import Flag, PayloadType
from ssm_proxy.wire.payloads import encode_flag

_SOCKET_BYTES: Final = 212_992
"""What the local socket holds, each way, that joins smux and the data channel inside the agent (Linux's default)."""
_GOODBYE_S: Final = 1.0


class MuxPort:
    """See :class:`ssm_proxy.emulator.plugins.Plugin`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._acceptor = SmuxAcceptor(
            keepalive=needs_keepalive(host.client_version, host.agent_version),
            now=self._loop.time(),
            defects=host.defects,
        )
        self._addresses: Sequence[Address] = ()
        self._streams: dict[int, _Stream] = {}
        self._to_dial: deque[_Stream] = deque()
        self._dial_wanted = asyncio.Event()
        self._taken: list[bytes] = []
        self._is_reading = False
        self._frames_read = asyncio.Event()
        self._outlet = bytearray()
        self._outlet_filled = asyncio.Event()
        self._held_back: list[_Stream] = []
        self._is_terminated = False
        self._end: asyncio.Future[Outcome] = self._loop.create_future()

    async def serve(self) -> Outcome:
        try:
            self._addresses = await find_destination(self._host)
        except HostRefused as error:
            return FAILED, str(error)
        work: list[Coroutine[None, None, None]] = [self._pump(), self._dial_each()]
        if self._acceptor.next_deadline is not None:
            work.append(self._keep_alive())
        tasks = [self._loop.create_task(each) for each in work]
        try:
            waited_for: set[asyncio.Future[Any]] = {*tasks, self._end}
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # none of them ends but by an error that nobody expected
            return self._end.result()
        finally:
            for task in tasks:
                task.cancel()

    # --- from the client -----------------------------------------------------------------------------------------

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if not self._addresses:
            return False
        if payload_type == PayloadType.OUTPUT:
            self._taken.append(payload)
        elif payload_type == PayloadType.FLAG:
            flag = read_flag(payload)
            self._host.log(f"flag {flag} from the client")
            if flag == Flag.TERMINATE_SESSION:
                self._is_terminated = True
        return True

    async def write_pending(self) -> bool:
        if self._taken:
            self._acceptor.receive(b"".join(self._taken))
            self._taken.clear()
            self._read_frames()
            while self._acceptor.waiting_bytes > _SOCKET_BYTES and not self._end.done():
                self._frames_read.clear()
                await self._frames_read.wait()
        if self._is_terminated:
            self._finish(SUCCESS, "")
        return True

    def _read_frames(self) -> None:
        if self._is_reading:  # it goes on by itself when what it hands over leaves at once
            return
        self._is_reading = True
        try:
            for event in self._acceptor.events():
                self._handle(event)
        except SmuxBroken as error:
            self._finish(FAILED, str(error))
        finally:
            self._is_reading = False
        self._frames_read.set()

    def _handle(self, event: Opened | Received | Ended) -> None:
        if isinstance(event, Received):
            self._streams[event.stream_id].deliver(event.data)
        elif isinstance(event, Ended):
            self._streams[event.stream_id].end()
        else:
            stream = _Stream(self, event.stream_id)
            self._streams[event.stream_id] = stream
            self._to_dial.append(stream)
            self._dial_wanted.set()

    async def _dial_each(self) -> None:
        """Dial for one stream after another: a destination that does not answer delays all that come later."""
        while True:
            while not self._to_dial:
                self._dial_wanted.clear()
                await self._dial_wanted.wait()
            stream = self._to_dial.popleft()
            self._acceptor.accept()
            self._read_frames()
            await asyncio.sleep(self._host.faults().dial_delay_s)
            try:
                await dial(
                    self._addresses,
                    lambda address, port, stream=stream: self._loop.create_connection(  # type: ignore[misc]
                        lambda: stream, address, port
                    ),
                )
            except DialFailed as error:
                self._host.log(f"stream {stream.stream_id}: {error}")
                self._host.send(PayloadType.FLAG, encode_flag(Flag.CONNECT_TO_PORT_ERROR))
                stream.connection_lost(None)

    async def _keep_alive(self) -> None:
        while (deadline := self._acceptor.next_deadline) is not None:
            await asyncio.sleep(deadline - self._loop.time())
            try:
                self.put(self._acceptor.handle_deadline(self._loop.time()))
            except SmuxBroken as error:
                self._finish(FAILED, str(error))

    # --- to the client -------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        host = self._host
        outlet = self._outlet
        while True:
            while not outlet:
                self._outlet_filled.clear()
                await self._outlet_filled.wait()
            await host.room()
            data = bytes(memoryview(outlet)[: host.read_bytes])
            del outlet[: len(data)]
            if self._held_back and len(outlet) < _SOCKET_BYTES:
                held_back, self._held_back = self._held_back, []
                for stream in held_back:
                    stream.resume()
            await host.awake()
            host.send_pieces(data)
            await host.pace()

    # --- for the streams -----------------------------------------------------------------------------------------

    def put(self, frames: bytes) -> None:
        """Send frames to the client, after those that already wait."""
        if frames:
            self._outlet += frames
            self._outlet_filled.set()

    def hold_back(self, stream: _Stream) -> bool:
        """Say whether a stream has to wait before it reads more; then it is resumed in time."""
        if len(self._outlet) < _SOCKET_BYTES:
            return False
        self._held_back.append(stream)
        return True

    def release(self, size: int) -> None:
        """Data has left for a destination: perhaps there is room for further frames."""
        self._acceptor.release(size)
        if self._acceptor.waiting_bytes:
            self._read_frames()

    def close_stream(self, stream_id: int) -> None:
        """Tell the client that our end is closed, unless it was told before."""
        self.put(self._acceptor.close(stream_id))

    def forget(self, stream: _Stream) -> None:
        if self._streams.get(stream.stream_id) is stream:
            del self._streams[stream.stream_id]

    # --- the end -------------------------------------------------------------------------------------------------

    def _finish(self, status: str, output: str) -> None:
        if not self._end.done():
            self._end.set_result((status, output))

    def terminate(self) -> None:
        pass

    async def hang_up(self) -> None:
        self._finish(SUCCESS, "")
        self._frames_read.set()
        streams = list(self._streams.values())
        for stream in streams:
            stream.end()
        open_ones = [stream.gone for stream in streams if stream.is_connected]
        if open_ones:
            await asyncio.wait(open_ones, timeout=_GOODBYE_S)
        for stream in streams:
            stream.abort()


class _Stream(asyncio.BufferedProtocol):
    """One stream and its connection to the destination, which begins later, or never.

    Reads as the agent does, at most one frame's worth at a time.
    """

    def __init__(self, port: MuxPort, stream_id: int) -> None:
        self._port = port
        self.stream_id = stream_id
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: list[bytes] = []
        self._unsent = 0
        self._is_blocked = False
        self._is_ended = False

    @property
    def is_connected(self) -> bool:
        return self._transport is not None and not self.gone.done()

    def deliver(self, data: bytes) -> None:
        """Take data from the client; what the destination does not take at once stays unread."""
        self._unsent += len(data)
        if self._transport is None:
            self._waiting.append(data)
        else:
            self._transport.write(data)
            if not self._is_blocked:
                self._release()

    def end(self) -> None:
        """The client sends no more and wants no more: close when all is delivered."""
        self._is_ended = True
        if self._transport is not None and not self._is_blocked:
            self._transport.close()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _release(self) -> None:
        size, self._unsent = self._unsent, 0
        if size:
            self._port.release(size)

    # --- called by the event loop --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # resume_writing: all of it is in the hands of the kernel
        self._buffer = bytearray(HEADER.size + FRAME_BYTES)
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()
            if not self._is_blocked:
                self._release()
        if self._is_ended:
            self.end()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[HEADER.size :]

    def buffer_updated(self, nbytes: int) -> None:
        self._buffer[: HEADER.size] = SmuxAcceptor.header(self.stream_id, nbytes)
        self._port.put(bytes(memoryview(self._buffer)[: HEADER.size + nbytes]))
        if self._transport is not None and self._port.hold_back(self):
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._port.close_stream(self.stream_id)

    def pause_writing(self) -> None:
        self._is_blocked = True

    def resume_writing(self) -> None:
        self._is_blocked = False
        self._release()
        if self._is_ended:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.close_stream(self.stream_id)
        self._port.forget(self)
        self._waiting.clear()
        self._release()
        self._buffer = bytearray()
        if not self.gone.done():
            self.gone.set_result(None)


def knows_mux(client_version: str, agent_version: str) -> bool:
    """Whether both programs know this kind; otherwise a forwarded port is of the basic one (6.6)."""
    return compare_versions(client_version, "1.1.70") >= 0 and compare_versions(agent_version, "3.0.196.0") > 0


def needs_keepalive(client_version: str, agent_version: str) -> bool:
    """Whether both sides send NOPs: an old client expects them (6.6), an old agent knew no other way (6.7)."""
    return compare_versions(client_version, "1.2.331.0") <= 0 or not agent_has(
        agent_version, Feature.MUX_WITHOUT_KEEPALIVE
    )
