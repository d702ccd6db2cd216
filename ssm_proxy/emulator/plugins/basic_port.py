"""Port session of the basic kind: a forwarded port with one connection at a time, for old clients or agents.

Source: amazon-ssm-agent, agent/session/plugins/port/port_basic.go; docs/PROTOCOL.md sections 8.7 and 12.38.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ssm_proxy.emulator.addresses import Address, HostRefused
from ssm_proxy.emulator.plugins import FAILED, SUCCESS, Outcome, PluginHost
from ssm_proxy.emulator.plugins.ports import DialFailed, dial, find_destination, read_flag
from ssm_proxy.wire.constants import Flag, PayloadType

_READ_BYTES: Final = 65_536
_GOODBYE_S: Final = 1.0
_DISCONNECT: Final = b""
"""Stands among the data where the flag DisconnectToPort came."""


class BasicPort:
    """See :class:`ssm_proxy.emulator.plugins.Plugin`.

    Dials before the client has anybody to connect; when that connection ends, by either side, dials anew for the next
    data. The client never learns that the destination closed a connection.
    """

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._taken: deque[bytes] = deque()
        self._was_connected = False
        self._is_wanted = True
        self._writer: asyncio.StreamWriter | None = None
        self._changed = asyncio.Event()
        self._is_terminated = False
        self._end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def serve(self) -> Outcome:
        serving = asyncio.ensure_future(self._serve())
        try:
            await asyncio.wait({serving, self._end}, return_when=asyncio.FIRST_COMPLETED)
            return self._end.result() if self._end.done() else serving.result()
        finally:
            serving.cancel()

    async def _serve(self) -> Outcome:
        try:
            addresses = await find_destination(self._host)
            while True:
                await self._until(lambda: self._is_wanted)
                await self._connect_and_pump(addresses)
        except HostRefused as error:
            return FAILED, str(error)
        except DialFailed as error:
            await asyncio.sleep(self._host.faults().refused_delay_s)
            return FAILED, f"Unable to connect to specified port: {error}"

    async def _connect_and_pump(self, addresses: Sequence[Address]) -> None:
        host = self._host
        await asyncio.sleep(host.faults().dial_delay_s)
        reader, writer = await dial(
            addresses, lambda address, port: asyncio.open_connection(address, port, limit=_READ_BYTES)
        )
        writer.transport.set_write_buffer_limits(high=0)  # drain: all of it is in the hands of the kernel
        self._writer = writer
        self._was_connected = True
        self._is_wanted = False
        self._changed.set()
        while True:
            await host.room()
            try:
                data = await reader.read(host.read_bytes)
            except OSError as error:
                host.log(f"reading from the port: {error}")
                data = b""
            if not data or self._writer is not writer:
                self._disconnect(writer)
                return
            await host.awake()
            host.send_pieces(data)
            await host.pace()

    def _disconnect(self, writer: asyncio.StreamWriter | None) -> None:
        if writer is not None:
            writer.close()
        if writer is self._writer:
            self._writer = None

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if not self._was_connected:
            return False
        if payload_type == PayloadType.OUTPUT and payload:
            self._taken.append(payload)
        elif payload_type == PayloadType.FLAG:
            flag = read_flag(payload)
            self._host.log(f"flag {flag} from the client")
            if flag == Flag.DISCONNECT_TO_PORT:
                self._taken.append(_DISCONNECT)
            elif flag == Flag.TERMINATE_SESSION:
                self._is_terminated = True
        return True

    async def write_pending(self) -> bool:
        while self._taken and not self._end.done():
            if self._taken[0] == _DISCONNECT:
                self._taken.popleft()
                self._disconnect(self._writer)
            else:
                await self._write()
        if self._is_terminated and not self._end.done():
            self._end.set_result((SUCCESS, ""))
        return not self._taken

    async def _write(self) -> None:
        """Write what comes before the next disconnection, on a new connection if there is none."""
        writer = self._writer
        if writer is None:
            self._is_wanted = True
            self._changed.set()
            await self._until(lambda: self._writer is not None or self._end.done())
            return
        data = []
        while self._taken and self._taken[0] != _DISCONNECT:
            data.append(self._taken.popleft())
        try:
            writer.write(b"".join(data))
            if writer.transport.get_write_buffer_size():
                await writer.drain()
        except OSError:  # the message would be refused and come again, for the next connection
            self._taken.extendleft(reversed(data))
            self._disconnect(writer)

    def terminate(self) -> None:
        pass

    async def hang_up(self) -> None:
        if not self._end.done():
            self._end.set_result((SUCCESS, ""))
        self._changed.set()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            try:
                await asyncio.wait_for(writer.wait_closed(), _GOODBYE_S)
            except (OSError, asyncio.TimeoutError):
                writer.transport.abort()
