"""One session of the agent: handshake, both directions of its messages, its end. What it does is a plugin's matter.

Source: amazon-ssm-agent, agent/session/plugins/sessionplugin/sessionplugin.go and agent/session/datachannel/;
docs/PROTOCOL.md sections 5.3, 6, 9.1 and 10.1.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from ssm_proxy.emulator.addresses import Address
from ssm_proxy.emulator.agent_channel import TICK_S, AgentChannel
from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.emulator.documents import ResolvedDocument
from ssm_proxy.emulator.encryption import CUSTOMER_MESSAGE, ENCRYPTED, AgentEncryption
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.handshake import TIMEOUT_S, AgentHandshake, State
from ssm_proxy.emulator.plugins import FAILED, PIECE_BYTES, SUCCESS, Dial, Outcome, Plugin
from ssm_proxy.emulator.plugins.choice import choose_plugin, is_supported
from ssm_proxy.emulator.plugins.command import update_request
from ssm_proxy.emulator.plugins.shell import error_output
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import Flag, PayloadType
from ssm_proxy.wire.payloads import decode_flag
from ssm_proxy.wire.shell_payloads import AgentSessionState, SessionState, encode_agent_session_state

_LOG = logging.getLogger("ssm_proxy.emulator.agent")

_READ_BYTES: Final = 65_536
_INBOX_BYTES: Final = 4 * 1024 * 1024
"""What may wait in front of an agent that is blocked by its destination; then the client's connection blocks."""
_BATCH_BYTES: Final = 262_144
_UNACKNOWLEDGED_BYTES: Final = 4 * 1024 * 1024
"""Where output without pauses stops reading its source. The agent itself has no such bound, only its pauses."""
_DRAIN_S: Final = 2.0
_FLAGS: Final = {Flag.DISCONNECT_TO_PORT: Feature.DISCONNECT_TO_PORT, Flag.TERMINATE_SESSION: Feature.TERMINATE_FLAG}
_CATCH_UP_S: Final = 0.02
"""How far behind its schedule the pacing may be and still catch up."""


class Uplink(Protocol):
    """The agent's way to the service."""

    def send(self, messages: Sequence[bytes]) -> None: ...
    async def room(self) -> None: ...
    def task_complete(self, status: str, output: str) -> None: ...


class AgentSession:
    """The session worker of an agent, joined to the service by an uplink. It is the host of its plugin.

    Args:
        session_id: for the messages that name it.
        document: what was asked for.
        agent_version: what the agent says it is, and behaves like.
        address_of: where a port of this node really is.
        hosts: what names of remote hosts stand for.
        uplink: the way to the service.
        pace_s: pause after each message of output; 0 is none.
        faults: asked anew each time, as faults may change.
        defects: counts what the client did wrong.
        counts: counts what passes.
        encryption: of a session that is to be encrypted.
    """

    def __init__(
        self,
        *,
        session_id: str,
        document: ResolvedDocument,
        agent_version: str,
        address_of: Dial,
        hosts: Mapping[str, Address | str],
        uplink: Uplink,
        pace_s: float,
        faults: Callable[[], Faults],
        defects: Counter[str],
        counts: ChannelCounts,
        encryption: AgentEncryption | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_type = document.session_type
        self.properties = document.properties
        self.inputs = document.inputs
        self.agent_version = agent_version
        self.address_of = address_of
        self.hosts = hosts
        self.defects = defects
        self.faults = faults
        self.read_bytes = PIECE_BYTES if pace_s else _READ_BYTES
        self._uplink = uplink
        self._pace_s = pace_s
        self._pace_due = 0.0
        self._loop = asyncio.get_running_loop()
        self._encryption = encryption if agent_has(agent_version, Feature.HANDSHAKE) else None
        self._handshake = AgentHandshake(document, agent_version, defects, self._encryption)
        self._drains = agent_has(agent_version, Feature.DRAIN)
        self.channel = AgentChannel(
            self._handle_input,
            defects,
            counts,
            acknowledges_repeats=agent_has(agent_version, Feature.REPEATED_ACKNOWLEDGES),
        )
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._inbox_filled = asyncio.Event()
        self._inbox_has_room = asyncio.Event()
        self._changed = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._plugin: Plugin | None = None
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

    async def room_for_input(self) -> None:
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
        """End without a report; returns when no task, process or socket is left."""
        pending = set(self._tasks)
        while pending:  # more than once, as wait_for may lose a cancellation before Python 3.12
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        self.connection_lost()  # nobody is left to empty the inbox: let go who waits for room
        if self._plugin is not None:
            await self._plugin.hang_up()

    # --- the course of the session -------------------------------------------------------------------------------

    async def _run(self) -> None:
        if is_supported(self.session_type, self.agent_version):
            await self._open()
        else:  # before a data channel is opened (1.4)
            self._finish(FAILED, f"Plugin with name {self.session_type} is not supported in current platform!")
        status, output = await self._outcome
        if self._plugin is not None:
            await self._plugin.hang_up()
        self.log(f"agent_task_complete {status} {output}")
        self._uplink.task_complete(status, output)

    async def _open(self) -> None:
        if self.inputs.get("runAsEnabled") in (True, "true"):
            self.log("runAs of the document is ignored: everything runs as the user of the emulator")
        self._tell(SessionState.CONNECTED)
        if self._handshake.is_needed:
            failure = await self._shake_hands()
            if failure:
                self._finish(FAILED, error_output(f"Encountered error while initiating handshake. {failure}"))
        if not self._outcome.done():
            self._plugin = choose_plugin(self)
            self._spawn(self._serve(self._plugin))

    async def _shake_hands(self) -> str:
        began = self._loop.time()
        self.send(PayloadType.HANDSHAKE_REQUEST, self._handshake.request())
        if not await self._leaves(State.WAITING):
            return "Handshake timed out. Please ensure that you have the latest version of the session manager plugin."
        if self._handshake.failure or self._outcome.done():
            return self._handshake.failure
        texts = [update_request(self)]
        if self._encryption is not None:
            self.send(PayloadType.ENC_CHALLENGE_REQUEST, self._handshake.challenge())
            if not await self._leaves(State.CHALLENGED):
                return "Timed out waiting for encryption challenge."
            texts.insert(0, CUSTOMER_MESSAGE)
        customer_message = "\r\n".join(filter(None, texts))
        elapsed = self._loop.time() - began
        self._discard_until = self._loop.time() + self.faults().discard_after_handshake_ms / 1000
        self.send(PayloadType.HANDSHAKE_COMPLETE, self._handshake.complete(elapsed, customer_message))
        return ""

    async def _leaves(self, state: State) -> bool:
        """Wait until the handshake leaves a state, or the session is over; False after the agent's own time for it."""
        deadline = self._loop.time() + TIMEOUT_S
        while self._handshake.state is state and not self._outcome.done():
            if not await self.wait_for_change(deadline):
                return False
        return True

    async def _serve(self, plugin: Plugin) -> None:
        try:
            status, output = await plugin.serve()
        except Exception as error:  # noqa: BLE001 - the client would wait for ever
            _LOG.exception("! %s the session worker crashed", self.session_id)
            status, output = FAILED, f"document process failed unexpectedly: {type(error).__name__}"
        self._finish(status, output)

    # --- what the plugin asks for --------------------------------------------------------------------------------

    @property
    def client_version(self) -> str:
        return self._handshake.client_version

    @property
    def is_paused(self) -> bool:
        return self.channel.is_paused

    def send(self, payload_type: int, payload: bytes) -> None:
        self._send(payload_type, [payload])

    def send_pieces(self, data: bytes, payload_type: int = PayloadType.OUTPUT) -> None:
        if len(data) <= PIECE_BYTES:
            self._send(payload_type, [data])
        else:
            self._send(payload_type, [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)])

    def _send(self, payload_type: int, payloads: Sequence[bytes]) -> None:
        now = self._loop.time()
        if self._encryption is not None and payload_type in ENCRYPTED:
            payloads = [self._encryption.encrypt(payload) for payload in payloads]
        messages = [self.channel.send(payload_type, payload, now) for payload in payloads]
        self._uplink.send([message for message in messages if message is not None])

    async def room(self) -> None:
        while (self._drains and self.channel.is_paused) or (
            not self._pace_s and self.channel.unacknowledged_bytes > _UNACKNOWLEDGED_BYTES
        ):
            await self.wait_for_change(None)

    async def awake(self) -> None:
        while (wait := self._stalled_until - self._loop.time()) > 0:
            await asyncio.sleep(wait)

    async def pace(self) -> None:
        await self._uplink.room()
        if self._pace_s:
            # A schedule, not a sleep: the average stays at the pause asked for, whatever the timer adds.
            now = self._loop.time()
            self._pace_due = max(self._pace_due, now - _CATCH_UP_S) + self._pace_s
            if self._pace_due > now:
                await asyncio.sleep(self._pace_due - now)

    async def drain(self) -> None:
        if not self._drains:
            return
        deadline = self._loop.time() + _DRAIN_S
        while not self.channel.all_acknowledged and await self.wait_for_change(deadline):
            pass

    def tell_terminating(self) -> None:
        self._tell(SessionState.TERMINATING)

    async def wait_for_change(self, deadline: float | None) -> bool:
        # No wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        self._changed.clear()
        timer = None if deadline is None else self._loop.call_at(deadline, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return deadline is None or self._loop.time() < deadline

    def log(self, text: str) -> None:
        _LOG.info("= %s %s", self.session_id, text)

    # --- input ---------------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        channel = self.channel
        while True:
            while not self._inbox:
                self._inbox_filled.clear()
                await self._inbox_filled.wait()
            await self.awake()
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
            is_written = self._plugin is None or await self._plugin.write_pending()
            replies = channel.take_replies()
            if replies and is_written:  # the acknowledges may go only after that (5.3)
                self._uplink.send(replies)
            if not self._pace_s and (repeats := channel.repeat_lost(self._loop.time())):
                self._uplink.send(repeats)
            self._changed.set()
            if channel.is_closed:
                if self._plugin is not None:
                    self._plugin.terminate()
                self._finish(SUCCESS, "")
            await self._uplink.room()

    def _handle_input(self, payload_type: int, payload: bytes) -> bool:
        handshake = self._handshake
        if handshake.is_needed and handshake.state is not State.COMPLETE:
            return handshake.take_input(payload_type, payload)
        if payload_type in (PayloadType.HANDSHAKE_RESPONSE, PayloadType.ENC_CHALLENGE_RESPONSE):
            return handshake.take_second_response()
        if self._discard_until and self._loop.time() < self._discard_until and payload_type != PayloadType.FLAG:
            return True
        if self._plugin is None or (payload_type == PayloadType.FLAG and not self._knows_flag(payload)):
            return True
        if self._encryption is not None and payload_type == PayloadType.OUTPUT:
            try:
                payload = self._encryption.decrypt(payload)
            except ValueError:  # not acknowledged (7.3)
                self.defects["input that does not decrypt"] += 1
                return False
        is_taken = self._plugin.take_input(payload_type, payload)
        return is_taken or not agent_has(self.agent_version, Feature.REFUSED_INPUT)

    def _knows_flag(self, payload: bytes) -> bool:
        try:
            flag = decode_flag(payload)
        except MalformedMessage:
            return False
        feature = next((feature for known, feature in _FLAGS.items() if known == flag), None)
        return feature is None or agent_has(self.agent_version, feature)

    # --- small parts ---------------------------------------------------------------------------------------------

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            if now >= self._stalled_until and (message := self.channel.resend_due(now)) is not None:
                _LOG.debug("! %s resend of the oldest output", self.session_id)
                self._uplink.send([message])

    def _tell(self, state: str) -> None:
        payload = encode_agent_session_state(AgentSessionState(session_id=self.session_id, state=state))
        self._uplink.send([self.channel.session_state(payload)])

    def _finish(self, status: str, output: str) -> None:
        if not self._outcome.done():
            self._outcome.set_result((status, output))
            self._changed.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(coroutine))
