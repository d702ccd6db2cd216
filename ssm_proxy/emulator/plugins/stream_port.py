"""Port session of the stream kind, as SSH uses it: one connection to a port of the node.

Source: amazon-ssm-agent, agent/session/plugins/port/port_basic.go; docs/PROTOCOL.md section 8.6.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ssm_proxy.emulator.addresses import HostRefused
from ssm_proxy.emulator.plugins import FAILED, SUCCESS, Outcome, PluginHost
from ssm_proxy.emulator.plugins.ports import DialFailed, dial, find_destination, go_error_text, join, read_flag
from ssm_proxy.wire.constants import Flag, PayloadType

READ_BYTES: Final = 65_536


class StreamPort:
    """See :class:`ssm_proxy.emulator.plugins.Plugin`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._writer: asyncio.StreamWriter | None = None
        self._to_write: list[bytes] = []
        self._flag = 0
        self._ordered_end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def serve(self) -> Outcome:
        serving = asyncio.ensure_future(self._serve())
        try:
            await asyncio.wait({serving, self._ordered_end}, return_when=asyncio.FIRST_COMPLETED)
            return self._ordered_end.result() if self._ordered_end.done() else serving.result()
        finally:
            serving.cancel()

    async def _serve(self) -> Outcome:
        faults = self._host.faults()
        try:
            addresses = await find_destination(self._host)
            await asyncio.sleep(faults.dial_delay_s)
            reader, writer = await dial(
                addresses, lambda address, port: asyncio.open_connection(address, port, limit=READ_BYTES)
            )
        except HostRefused as error:
            return FAILED, str(error)
        except DialFailed as error:
            await asyncio.sleep(faults.refused_delay_s)
            return FAILED, f"Unable to connect to specified port: {error}"
        writer.transport.set_write_buffer_limits(high=0)  # drain: all of it is in the hands of the kernel
        self._writer = writer
        try:
            await self._pump(reader)
        except OSError as error:
            return FAILED, f"read tcp {join(*writer.get_extra_info('peername')[:2])}: read: {go_error_text(error)}"
        await self._host.drain()
        return SUCCESS, ""

    async def _pump(self, reader: asyncio.StreamReader) -> None:
        host = self._host
        while True:
            await host.room()
            data = await reader.read(host.read_bytes)
            if not data:
                return
            await host.awake()
            host.send_pieces(data)
            await host.pace()

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if payload_type == PayloadType.FLAG:
            self._take_flag(payload)
            return True
        if self._writer is None:
            return False
        if payload:
            self._to_write.append(payload)
        return True

    def _take_flag(self, payload: bytes) -> None:
        self._flag = read_flag(payload)
        self._host.log(f"flag {self._flag} from the client")

    async def write_pending(self) -> bool:
        if self._to_write and not await self._write():
            return False
        # Only now: what came before the flag is written, and the flag is acknowledged before serve() returns.
        if not self._ordered_end.done():
            if self._flag == Flag.TERMINATE_SESSION:
                self._ordered_end.set_result((SUCCESS, ""))
            elif self._flag == Flag.DISCONNECT_TO_PORT:
                self._ordered_end.set_result((FAILED, "read tcp: use of closed network connection"))
        return True

    async def _write(self) -> bool:
        data, self._to_write = b"".join(self._to_write), []
        writer = self._writer
        if writer is None:
            return False
        try:
            writer.write(data)
            if writer.transport.get_write_buffer_size():
                await writer.drain()
        except OSError:
            self._writer = None  # the reading side reports the end
            writer.close()
            return False
        return True

    def terminate(self) -> None:
        pass

    async def hang_up(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            try:
                await asyncio.wait_for(writer.wait_closed(), 1)
            except (OSError, asyncio.TimeoutError):
                writer.transport.abort()
