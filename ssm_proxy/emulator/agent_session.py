"""One session of the agent: handshake, the connection to the port, and both directions of its bytes.

Source: amazon-ssm-agent, agent/session/plugins/port/port_basic.go; docs/PROTOCOL.md sections 5.3, 8.6, 9.1 and 10.1.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from ssm_proxy.emulator.agent_channel import TICK_S, AgentChannel
from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.emulator.documents import SessionDocument
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.handshake import TIMEOUT_S, AgentHandshake, State
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import Flag, PayloadType, SessionType
from ssm_proxy.wire.payloads import decode_flag
from ssm_proxy.wire.shell_payloads import AgentSessionState, SessionState, encode_agent_session_state

_LOG = logging.getLogger("ssm_proxy.emulator.agent")

PIECE_BYTES: Final = 1024
"""Largest payload of output (10.1)."""
_READ_BYTES: Final = 65_536
_INBOX_BYTES: Final = 4 * 1024 * 1024
"""What may wait in front of an agent that is blocked by its destination; then the client's connection blocks."""
_BATCH_BYTES: Final = 262_144
_UNACKNOWLEDGED_BYTES: Final = 4 * 1024 * 1024
"""Where output without pauses stops reading its source. The agent itself has no such bound, only its pauses."""
_DRAIN_S: Final = 2.0
_DIAL_S: Final = 30.0
_CATCH_UP_S: Final = 0.02
"""How far behind its schedule the pacing may be and still catch up."""


class Uplink(Protocol):
    """The agent's way to the service."""

    def send(self, messages: Sequence[bytes]) -> None: ...
    async def room(self) -> None: ...
    def task_complete(self, status: str, output: str) -> None: ...


Dial = Callable[[int], tuple[str, int]]
"""Gives the address behind a port of the node."""


class AgentSession:
    """The session worker of an agent, joined to the service by an uplink.

    Args:
        session_id: for the messages that name it.
        document: what was asked for.
        properties: the document's properties after substitution.
        address_of: where a port of this node really is.
        uplink: the way to the service.
        pace_s: pause after each message of output; 0 is none.
        faults: asked anew each time, as faults may change.
        defects: counts what the client did wrong.
        counts: counts what passes.
    """

    def __init__(
        self,
        *,
        session_id: str,
        document: SessionDocument,
        properties: Mapping[str, str] | None,
        address_of: Dial,
        uplink: Uplink,
        pace_s: float,
        faults: Callable[[], Faults],
        defects: Counter[str],
        counts: ChannelCounts,
    ) -> None:
        self._session_id = session_id
        self._document = document
        self._properties = properties
        self._address_of = address_of
        self._uplink = uplink
        self._pace_s = pace_s
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._handshake = AgentHandshake(document, properties, defects)
        self.channel = AgentChannel(self._handle_input, defects, counts)
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._inbox_filled = asyncio.Event()
        self._inbox_has_room = asyncio.Event()
        self._changed = asyncio.Event()
        self._outcome: asyncio.Future[tuple[str, str]] = self._loop.create_future()
        self._writer: asyncio.StreamWriter | None = None
        self._to_write: list[bytes] = []
        self._ordered_end: tuple[str, str] | None = None
        self._discard_until = 0.0
        self._stalled_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    # --- called by the service -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: the session reports its end by ``task_complete`` of the uplink."""
        self._spawn(self._run())
        self._spawn(self._consume())
        self._spawn(self._resend())

    def deliver(self, message: bytes) -> None:
        """Take one message from the service."""
        self._inbox.append(message)
        self._inbox_bytes += len(message)
        self._inbox_filled.set()

    @property
    def has_room(self) -> bool:
        return self._inbox_bytes < _INBOX_BYTES

    async def room(self) -> None:
        """Wait until messages may be delivered again: the back-pressure of the destination."""
        while self._inbox_bytes >= _INBOX_BYTES:
            self._inbox_has_room.clear()
            await self._inbox_has_room.wait()

    def connection_lost(self) -> None:
        """The connection to the service has gone, with all that was under way."""
        self._inbox.clear()
        self._inbox_bytes = 0
        self._inbox_has_room.set()

    def connection_restored(self) -> None:
        self.channel.reconnected()
        self._changed.set()

    def stall(self, seconds: float) -> None:
        """Do nothing at all for a while."""
        self._stalled_until = self._loop.time() + seconds

    async def stop(self) -> None:
        """End without a report; returns when no task and no socket is left."""
        pending = set(self._tasks)
        while pending:  # more than once, as wait_for may lose a cancellation before Python 3.12
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        self.connection_lost()  # nobody is left to empty the inbox: let go who waits for room
        await self._hang_up()

    # --- the course of the session -------------------------------------------------------------------------------

    async def _run(self) -> None:
        state = AgentSessionState(session_id=self._session_id, state=SessionState.CONNECTED)
        self._uplink.send([self.channel.session_state(encode_agent_session_state(state))])
        if self._handshake.is_needed:
            failure = await self._shake_hands()
            if failure:
                self._finish("Failed", f"Encountered error while initiating handshake. {failure}")
        if not self._outcome.done():
            self._spawn(self._serve())
        status, output = await self._outcome
        await self._hang_up()
        _LOG.info("= %s agent_task_complete %s %s", self._session_id, status, output)
        self._uplink.task_complete(status, output)

    async def _shake_hands(self) -> str:
        began = self._loop.time()
        self._send(PayloadType.HANDSHAKE_REQUEST, self._handshake.request())
        deadline = began + TIMEOUT_S
        while self._handshake.state is State.WAITING and not self._outcome.done():
            if not await self._wait_for_change(deadline):
                return (
                    "Handshake timed out. Please ensure that you have the latest version of the session manager plugin."
                )
        if self._handshake.failure or self._outcome.done():
            return self._handshake.failure
        elapsed = self._loop.time() - began
        self._discard_until = self._loop.time() + self._faults().discard_after_handshake_ms / 1000
        self._send(PayloadType.HANDSHAKE_COMPLETE, self._handshake.complete(elapsed))
        return ""

    async def _serve(self) -> None:
        document = self._document
        if document.session_type == SessionType.PORT and "type" not in (self._properties or {}):
            await self._serve_port()
        elif document.session_type in (SessionType.STANDARD_STREAM, SessionType.INTERACTIVE_COMMANDS):
            # No shell behind it, but what a client sees first of one: output without a handshake.
            self._send(PayloadType.OUTPUT, b"sh-5.2$ ")
        else:
            self._finish("Failed", f"Plugin with name {document.session_type} is not supported by the emulator!!")

    async def _serve_port(self) -> None:
        port = int((self._properties or {}).get("portNumber", "0"))
        host, real_port = self._address_of(port)
        faults = self._faults()
        await asyncio.sleep(faults.dial_delay_s)
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(host, real_port, limit=_READ_BYTES), _DIAL_S
            )
        except (OSError, asyncio.TimeoutError) as error:
            await asyncio.sleep(faults.refused_delay_s)
            reason = _go_error_text(error)
            self._finish(
                "Failed", f"Unable to connect to specified port: dial tcp {host}:{real_port}: connect: {reason}"
            )
            return
        writer.transport.set_write_buffer_limits(high=0)  # drain: all of it is in the hands of the kernel
        self._writer = writer
        try:
            await self._pump_output(reader)
        except OSError as error:
            self._finish("Failed", f"read tcp {host}:{real_port}: read: {_go_error_text(error)}")
            return
        deadline = self._loop.time() + _DRAIN_S
        while not self.channel.all_acknowledged and await self._wait_for_change(deadline):
            pass
        self._finish("Success", "")

    async def _pump_output(self, reader: asyncio.StreamReader) -> None:
        size = PIECE_BYTES if self._pace_s else _READ_BYTES
        due = 0.0
        while True:
            await self._until_output_may_flow()
            data = await reader.read(size)
            if not data:
                return
            await self._not_stalled()
            now = self._loop.time()
            if len(data) <= PIECE_BYTES:
                self._send(PayloadType.OUTPUT, data)
            else:
                messages = [
                    self.channel.send(PayloadType.OUTPUT, data[start : start + PIECE_BYTES], now)
                    for start in range(0, len(data), PIECE_BYTES)
                ]
                self._uplink.send([message for message in messages if message is not None])
            await self._uplink.room()
            if self._pace_s:
                # A schedule, not a sleep: the average stays at the pause asked for, whatever the timer adds.
                due = max(due, now - _CATCH_UP_S) + self._pace_s
                wait = due - self._loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)

    async def _until_output_may_flow(self) -> None:
        while self.channel.is_paused or (
            not self._pace_s and self.channel.unacknowledged_bytes > _UNACKNOWLEDGED_BYTES
        ):
            await self._wait_for_change(None)

    # --- input ---------------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        channel = self.channel
        while True:
            while not self._inbox:
                self._inbox_filled.clear()
                await self._inbox_filled.wait()
            await self._not_stalled()
            now = self._loop.time()
            taken = 0
            while self._inbox and taken < _BATCH_BYTES:
                message = self._inbox.popleft()
                taken += len(message)
                channel.receive(message, now)
                if self._handshake.is_blocked:
                    channel.is_deaf = True
            self._inbox_bytes -= taken
            self._inbox_has_room.set()
            if not self._to_write or await self._write_destination():
                replies = channel.take_replies()
                if replies:
                    self._uplink.send(replies)
            if not self._pace_s and (repeats := channel.repeat_lost(self._loop.time())):
                self._uplink.send(repeats)
            self._changed.set()
            if self._ordered_end is not None:  # by a flag: what came before it is written, the flag acknowledged
                self._finish(*self._ordered_end)
            if channel.is_closed:
                self._finish("Success", "")
            await self._uplink.room()

    async def _write_destination(self) -> bool:
        """Hand over what arrived; the acknowledges may go only after that (5.3)."""
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
            self.channel.take_replies()
            return False
        return True

    def _handle_input(self, payload_type: int, payload: bytes) -> bool:
        handshake = self._handshake
        if handshake.is_needed and handshake.state is not State.COMPLETE:
            return handshake.take_input(payload_type, payload)
        if payload_type == PayloadType.HANDSHAKE_RESPONSE:
            return handshake.take_second_response()
        if payload_type == PayloadType.FLAG:
            return self._handle_flag(payload)
        if self._document.session_type != SessionType.PORT:
            return True
        if self._discard_until and self._loop.time() < self._discard_until:
            return True
        if self._writer is None:
            return False
        if payload:
            self._to_write.append(payload)
        return True

    def _handle_flag(self, payload: bytes) -> bool:
        try:
            flag = decode_flag(payload)
        except MalformedMessage:
            return True
        _LOG.info("= %s flag %d from the client", self._session_id, flag)
        if flag == Flag.TERMINATE_SESSION:
            self._ordered_end = ("Success", "")
        elif flag == Flag.DISCONNECT_TO_PORT and self._document.session_type == SessionType.PORT:
            self._ordered_end = ("Failed", "read tcp: use of closed network connection")
        return True

    # --- small parts ---------------------------------------------------------------------------------------------

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            if now >= self._stalled_until and (message := self.channel.resend_due(now)) is not None:
                _LOG.debug("! %s resend of the oldest output", self._session_id)
                self._uplink.send([message])

    def _send(self, payload_type: int, payload: bytes) -> None:
        message = self.channel.send(payload_type, payload, self._loop.time())
        if message is not None:
            self._uplink.send([message])

    def _finish(self, status: str, output: str) -> None:
        if not self._outcome.done():
            self._outcome.set_result((status, output))
            self._changed.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    async def _hang_up(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            try:
                await asyncio.wait_for(writer.wait_closed(), 1)
            except (OSError, asyncio.TimeoutError):
                writer.transport.abort()

    async def _not_stalled(self) -> None:
        while (wait := self._stalled_until - self._loop.time()) > 0:
            await asyncio.sleep(wait)

    async def _wait_for_change(self, deadline: float | None) -> bool:
        """Wait until messages were consumed; False when the deadline has passed."""
        # No wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        self._changed.clear()
        timer = None if deadline is None else self._loop.call_at(deadline, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return deadline is None or self._loop.time() < deadline


def _go_error_text(error: BaseException) -> str:
    """Name a network error as the agent's language does."""
    if isinstance(error, asyncio.TimeoutError):
        return "connection timed out"
    code = getattr(error, "errno", None)
    names = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "connection reset by peer"}
    if code in names:
        return names[code]
    return os.strerror(code).lower() if isinstance(code, int) and code > 0 else "connection refused"
