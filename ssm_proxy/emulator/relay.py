"""The service between the two sockets of a session: relays bytes unchanged, and speaks up itself where it must.

Source: docs/PROTOCOL.md sections 0, 3.2, 4.1, 9.1 and 11.8.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.agent_session import AgentSession
from ssm_proxy.emulator.client_connection import ClientConnection
from ssm_proxy.emulator.encryption import AgentEncryption, CallKms
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.plugins import Dial
from ssm_proxy.emulator.session_table import Session
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import HEADER_LENGTH, SHORT_HEADER_LENGTH, SYN_FIN, MessageType, SessionType
from ssm_proxy.wire.payloads import ChannelClosedPayload, encode_channel_closed
from ssm_proxy.wire.shell_payloads import decode_agent_session_state

_LOG = logging.getLogger("ssm_proxy.emulator.service")
_LINGER_S: Final = 0.5
"""From channel_closed to the end of the client's socket."""
_STREAM: Final = (MessageType.INPUT.encode(), MessageType.OUTPUT.encode())
_STATE: Final = MessageType.AGENT_SESSION_STATE.encode()


class SessionRelay:
    """Joins one client at a time with the agent of the session.

    Args:
        session: its status follows what happens here.
        address_of: where ports of the node are.
        pace_s: the agent's pause.
        agent_version: what the agent says it is.
        faults: asked anew each time.
        ended: called once, with status and text, when the session is over.
        call_kms: the agent's way to KMS.
    """

    def __init__(
        self,
        session: Session,
        *,
        address_of: Dial,
        pace_s: float,
        agent_version: str,
        faults: Callable[[], Faults],
        ended: Callable[[str, str], None],
        call_kms: CallKms,
    ) -> None:
        self.session = session
        self._faults = faults
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._client: ClientConnection | None = None
        self._is_agent_here = False
        self._is_agent_gone = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._last_stream = self._loop.time()
        self._was_disturbed = False
        self._logs_messages = _LOG.isEnabledFor(logging.DEBUG)
        self.agent = AgentSession(
            session_id=session.session_id,
            document=session.document,
            address_of=address_of,
            hosts=session.node.hosts,
            uplink=self,
            pace_s=pace_s,
            agent_version=agent_version,
            faults=faults,
            defects=session.defects,
            counts=session.counts,
            encryption=self._encryption(agent_version, call_kms),
        )
        self._is_agent_started = False

    def _encryption(self, agent_version: str, call_kms: CallKms) -> AgentEncryption | None:
        document = self.session.document
        can_encrypt = agent_has(agent_version, Feature.HANDSHAKE)
        if not document.kms_key_id or not can_encrypt or document.session_type == SessionType.PORT:  # (12.25)
            return None
        return AgentEncryption(
            key_id=document.kms_key_id,
            session_id=self.session.session_id,
            target=self.session.node.node_id,
            agent_version=agent_version,
            call_kms=call_kms,
        )

    # --- the client's side ---------------------------------------------------------------------------------------

    @property
    def client(self) -> ClientConnection | None:
        return self._client

    def client_joined(self, connection: ClientConnection) -> None:
        """Take a client whose opening was in order; an older one of the same session has to go."""
        if self._client is not None:
            _LOG.info("= %s another connection takes over", self.session.session_id)
            self._client.close()
        self._client = connection
        self.session.connections += 1
        self.session.status = "Connected" if self._is_agent_started else "Connecting"
        if self.session.document.flaw:
            _LOG.warning("= %s the agent drops it: %s", self.session.session_id, self.session.document.flaw)
        elif not self._is_agent_started:
            self._is_agent_started = self._is_agent_here = True
            self.tell_client(MessageType.START_PUBLICATION)
            self.agent.start()
        elif self._is_agent_here:
            self.tell_agent(MessageType.START_PUBLICATION)
            self.tell_client(MessageType.START_PUBLICATION)

    def client_left(self, connection: ClientConnection) -> None:
        """The socket has gone; the session stays, and the agent is told to pause."""
        if self._client is not connection:
            return
        self._client = None
        if not self.session.is_over:
            self.session.status = "Disconnected"
            self.tell_agent(MessageType.PAUSE_PUBLICATION)

    def from_client(self, message: bytes) -> None:
        if self.session.is_over:
            return
        if self._logs_messages:
            self._log("<", [message])
        if message.startswith(_STREAM, 4):
            self._last_stream = self._loop.time()
            if not self._was_disturbed:
                self._was_disturbed = True
                self.disturb()
        if self._is_agent_here:
            self.agent.deliver(message)

    async def room_for_input(self) -> None:
        if not self.agent.has_room:
            await self.agent.room_for_input()

    # --- the agent's side (its uplink) ---------------------------------------------------------------------------

    def send(self, messages: Sequence[bytes]) -> None:
        if messages and messages[0].startswith(_STATE, 4):
            # For the service alone, never forwarded (11.8).
            self.session.status = decode_agent_session_state(messages[0][HEADER_LENGTH + 4 :]).state
            return
        if self._client is None or not self._is_agent_here:
            return  # dropped: both ends survive loss (13)
        if self._logs_messages:
            self._log(">", messages)
        self._last_stream = self._loop.time()
        self._client.send(messages)

    async def room(self) -> None:
        if self._client is not None:
            await self._client.room()

    def task_complete(self, status: str, output: str) -> None:
        if self._is_agent_gone:
            return  # its last words came too late
        self.finish("Terminated" if status == "Success" else "Failed", "" if status == "Success" else output)

    def cut_agent(self, away_s: float) -> bool:
        """Lose the agent's connection, and what is under way on it, for a while; return whether there was one."""
        if not self._is_agent_here or self.session.is_over:
            return False
        _LOG.info("= %s agent connection cut for %.3f s", self.session.session_id, away_s)
        self._is_agent_here = False
        self.agent.connection_lost()
        self.tell_client(MessageType.PAUSE_PUBLICATION)
        self._later(away_s, self._agent_returns)
        return True

    def lose_agent(self) -> None:
        """Lose the agent for good, as when its node goes down: nobody is told, and the client hears nothing more.

        Whoever calls this has to stop the agent.
        """
        _LOG.info("= %s the node is down", self.session.session_id)
        self._is_agent_started = True  # a client that is still to come does not start it any more
        self._is_agent_here = False
        self._is_agent_gone = True

    def _agent_returns(self) -> None:
        if self._is_agent_gone:
            return
        self._is_agent_here = True
        self.agent.connection_restored()
        if self._client is not None:
            self.tell_agent(MessageType.START_PUBLICATION)
        self.tell_client(MessageType.START_PUBLICATION)

    def _log(self, arrow: str, messages: Sequence[bytes]) -> None:
        for message in messages:
            kind = message[4:36].decode("ascii", "replace").strip(" \0")
            number, size = int.from_bytes(message[48:56], "big"), max(0, len(message) - HEADER_LENGTH - 4)
            _LOG.debug("%s %s %s seq=%d %d bytes", arrow, self.session.session_id, kind, number, size)

    # --- the service's own messages ------------------------------------------------------------------------------

    def tell_client(self, kind: str, payload: bytes | None = None) -> None:
        if self._client is not None:
            self._client.send([self._own_message(kind, payload)])

    def tell_agent(self, kind: str, payload: bytes | None = None) -> None:
        if self._is_agent_here:
            self.agent.deliver(self._own_message(kind, payload))

    def _own_message(self, kind: str, payload: bytes | None) -> bytes:
        # Never with an empty payload: the agent rejects a short header without one (12.30).
        body = payload or json.dumps({"SessionId": self.session.session_id}).encode()
        return encode_agent_message(
            AgentMessage(
                kind,
                body,
                uuid.uuid4().bytes,
                time.time_ns() // 1_000_000,
                flags=SYN_FIN,
                header_length=SHORT_HEADER_LENGTH,
            )
        )

    def finish(self, status: str, output: str) -> None:
        """End the session: tell both sides, and close the client's socket a little later."""
        if self.session.is_over:
            return
        _LOG.info("= %s ends: %s %s", self.session.session_id, status, output)
        closed = encode_channel_closed(
            ChannelClosedPayload(
                session_id=self.session.session_id,
                output=output,
                message_id=str(uuid.uuid4()),
                destination_id=self.session.node.node_id,
                created_date=datetime.datetime.now(datetime.timezone.utc).isoformat(),
            )
        )
        self.tell_client(MessageType.CHANNEL_CLOSED, closed)
        self.tell_agent(MessageType.CHANNEL_CLOSED, closed)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._client is not None:
            self._later(_LINGER_S, self._client.close)
        self._ended(status, output)

    # --- faults --------------------------------------------------------------------------------------------------

    def cut(self, side: str, manner: str) -> bool:
        """Cut the connection of one side now; return whether there was one."""
        if side == "agent":
            return self.cut_agent(self._faults().agent_away_s)
        client = self._client
        if client is None:
            return False
        was_open = client.cut(manner)
        if not client.is_open:  # unlike a blackhole; its socket may still linger a little
            self.client_left(client)
        return was_open

    def cut_by_fault(self) -> None:
        """Cut as the faults say, unless that was done often enough."""
        faults = self._faults()
        if faults.drop_times and self.session.drops >= faults.drop_times:
            return
        self.session.drops += 1
        self.cut(faults.drop_side, faults.drop_manner)

    def faults_changed(self) -> None:
        if self._client is not None:
            self._client.faults_changed()

    def disturb(self) -> None:
        """Begin the pause and the stall that the faults ask for."""
        faults = self._faults()
        if faults.stall_agent_s:
            self.agent.stall(faults.stall_agent_s)
        if faults.pause_publication_s:
            for tell in (self.tell_agent, self.tell_client):
                tell(MessageType.PAUSE_PUBLICATION)
                self._later(faults.pause_publication_s, functools.partial(tell, MessageType.START_PUBLICATION))

    def watch_limits(self) -> None:
        """Begin to watch the limits of the document, or the service's own (9.1)."""
        self._check_idle()
        most = _minutes(self.session.document.inputs.get("maxSessionDuration"))
        if most:
            text = f"Your session was terminated because it reached its maximum duration of {most:g} minutes."
            self._later(60 * most, functools.partial(self.finish, "Terminated", text))

    def _check_idle(self) -> None:
        """End the session if no stream data has passed for too long, else look again in time."""
        limit = 60 * _minutes(self.session.document.inputs.get("idleSessionTimeout")) or self._faults().idle_timeout_s
        quiet = self._loop.time() - self._last_stream
        if limit and quiet >= limit:
            self.finish("Terminated", f"Your session timed out due to inactivity of {limit:g} seconds.")
            return
        self._later(min(1.0, limit - quiet) if limit else 1.0, self._check_idle)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)


def _minutes(value: object) -> float:
    """Read an input of a document; 0 for none, or for one that is no number."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        return 0.0
    return float(value)
