"""Service and agent on the other end of a socket pair, for the tests of the driver. It has numbering of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from websocket_peer import BINARY, CLOSE, DEADLINE, PING, PONG, TEXT, FrameReader, frame

from ssm_proxy.channel.cipher import DataKey
from ssm_proxy.errors import EncryptionError, SsmProxyError
from ssm_proxy.secret import Secret
from ssm_proxy.transport.connecting import Connection
from ssm_proxy.transport.websocket import WebSocketTransport
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import SHORT_HEADER_LENGTH, SYN_FIN, MessageType, PayloadType
from ssm_proxy.wire.payloads import (
    Acknowledge,
    ChannelClosedPayload,
    HandshakeComplete,
    HandshakeRequest,
    HandshakeResponse,
    RequestedAction,
    decode_acknowledge,
    decode_flag,
    decode_handshake_response,
    encode_acknowledge,
    encode_channel_closed,
    encode_handshake_complete,
    encode_handshake_request,
    format_uuid,
)

GREETING = b"SSH-2.0-scripted\r\n"
SSH_ACTION = RequestedAction(
    action_type="SessionType", parameters={"SessionType": "Port", "Properties": {"portNumber": "22"}}
)


class ScriptedAgent:
    """One session's other side, over any number of connections.

    Args:
        actions: what its handshake asks for.
        greeting: what the port says first; empty is a port that waits.
        gate: the handshake begins when it is set.
    """

    def __init__(
        self,
        *,
        actions: tuple[RequestedAction, ...] = (SSH_ACTION,),
        greeting: bytes = GREETING,
        gate: threading.Event | None = None,
    ) -> None:
        self._gate = gate
        self._actions = actions
        self._greeting = greeting
        self._changed = threading.Condition()
        self._sending = threading.RLock()
        self._connection: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._expected = 0
        self._early: dict[int, AgentMessage] = {}
        self._next = 0
        self._unacknowledged: dict[int, bytes] = {}
        self.openings: list[dict[str, Any]] = []
        self.received = bytearray()
        self.flags: list[int] = []
        self.pings = 0
        self.closes = 0
        self.ends = 0
        self.is_ready = False
        self.response: HandshakeResponse | None = None
        self.answers_pings = True
        self.on_pong: Callable[[], None] = lambda: None
        self.acknowledges = True
        self.reads = threading.Event()
        """Cleared, it takes nothing from the connection any more, at most for `DEADLINE`."""
        self.reads.set()

    # --- what a test does ---------------------------------------------------------------------------------------

    def attach(self) -> socket.socket:
        """Give the client's end of a new connection."""
        theirs, ours = socket.socketpair()
        self._connection = ours
        thread = threading.Thread(target=self._run, args=(ours,))
        self._threads.append(thread)
        thread.start()
        return theirs

    def serve(self, connection: socket.socket) -> None:
        """Be the other side of a connection that was made elsewhere, until it ends."""
        self._connection = connection
        self._run(connection)

    def send(self, data: bytes) -> None:
        """Send output; what the connection loses is sent again on the next one."""
        for start in range(0, len(data), 1024):
            self._send_stream(data[start : start + 1024], PayloadType.OUTPUT)

    def lose(self, data: bytes) -> None:
        """Send output in one message that is lost on the way; it comes with the next connection, if there is one."""
        self._send_stream(data, PayloadType.OUTPUT, is_lost=True)

    def send_raw(self, data: bytes) -> None:
        with self._sending:
            if self._connection is not None:
                with contextlib.suppress(OSError):  # gone; what it sent before may still be to read
                    self._connection.sendall(data)

    def close_channel(self, reason: str = "") -> None:
        """Say that the session is over, as the service does, and end the connection."""
        payload = encode_channel_closed(ChannelClosedPayload(session_id="s", output=reason))
        self.send_raw(frame(self._message(MessageType.CHANNEL_CLOSED, payload, header_length=SHORT_HEADER_LENGTH)))
        self.drop("fin")

    def drop(self, manner: str) -> None:
        """End the connection: fin, close-1000, or deaf (which keeps it and says nothing any more)."""
        connection, self._connection = self._connection, None
        assert connection is not None
        with contextlib.suppress(OSError):  # the other side may have closed it already
            if manner == "close-1000":
                connection.sendall(frame(b"\x03\xe8Bye", CLOSE))
            elif manner == "fin":
                connection.shutdown(socket.SHUT_WR)  # only that: `ends` counts what the other side has noticed

    def wait(self, predicate: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, DEADLINE), f"{what} did not happen"

    def wait_until_ready(self) -> None:
        self.wait(lambda: self.is_ready, "the handshake")

    def wait_until_acknowledged(self) -> None:
        self.wait(lambda: not self._unacknowledged, "the acknowledge of all output")

    def wait_for_input(self, data: bytes) -> None:
        self.wait(lambda: len(self.received) >= len(data), f"arrival of {len(data)} bytes")
        assert self.received == data

    def wait_for_openings(self, count: int) -> None:
        self.wait(lambda: len(self.openings) >= count, f"opening number {count}")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    # --- the thread of one connection ---------------------------------------------------------------------------

    def _run(self, connection: socket.socket) -> None:
        reader = FrameReader()
        with connection:
            while True:
                self.reads.wait(DEADLINE)
                try:
                    data = connection.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    break
                for opcode, payload in reader.feed(data):
                    self._take(opcode, payload, is_current=connection is self._connection)
                    with self._changed:
                        self._changed.notify_all()
        with self._changed:
            self.ends += 1
            self._changed.notify_all()

    def _take(self, opcode: int, payload: bytes, *, is_current: bool) -> None:
        if opcode == PING:
            assert payload == b"keepalive"
            self.pings += 1
            if self.answers_pings and is_current:
                self.send_raw(frame(payload, PONG))
                self.on_pong()
        elif opcode == TEXT:
            self.openings.append(json.loads(payload))
            if len(self.openings) == 1:
                assert self._gate is None or self._gate.wait(DEADLINE)
                request = HandshakeRequest(agent_version="3.3.0.0", requested_actions=self._actions)
                self._send_stream(encode_handshake_request(request), PayloadType.HANDSHAKE_REQUEST)
            else:
                for data in list(self._unacknowledged.values()):
                    self.send_raw(data)
        elif opcode == BINARY and is_current:
            self._take_message(decode_agent_message(payload))
        elif opcode == CLOSE:
            self.closes += 1

    def _take_message(self, message: AgentMessage) -> None:
        if message.message_type == MessageType.ACKNOWLEDGE:
            self._unacknowledged.pop(decode_acknowledge(message.payload).sequence_number, None)
            return
        assert message.message_type == MessageType.INPUT
        if not self.acknowledges:
            return
        text = encode_acknowledge(
            Acknowledge(message.message_type, format_uuid(message.message_id), message.sequence_number)
        )
        self.send_raw(frame(self._message(MessageType.ACKNOWLEDGE, text, flags=SYN_FIN)))
        if message.sequence_number >= self._expected:
            self._early[message.sequence_number] = message
        while (ready := self._early.pop(self._expected, None)) is not None:
            self._expected += 1
            self._take_input(ready)

    def _take_input(self, message: AgentMessage) -> None:
        if message.payload_type == PayloadType.HANDSHAKE_RESPONSE:
            self.response = decode_handshake_response(message.payload)
            complete = encode_handshake_complete(HandshakeComplete(time_to_complete_ns=1))
            self._send_stream(complete, PayloadType.HANDSHAKE_COMPLETE)
            self.send(self._greeting)
            self.is_ready = True
        elif message.payload_type == PayloadType.FLAG:
            self.flags.append(decode_flag(message.payload))
        else:
            self.received += message.payload

    def _send_stream(self, payload: bytes, payload_type: int, *, is_lost: bool = False) -> None:
        with self._sending:
            number = self._next
            data = frame(self._message(MessageType.OUTPUT, payload, sequence_number=number, payload_type=payload_type))
            self._unacknowledged[number] = data
            self._next = number + 1
            if not is_lost:
                self.send_raw(data)

    @staticmethod
    def _message(kind: str, payload: bytes, **fields: int) -> bytes:
        return encode_agent_message(AgentMessage(kind, payload, bytes(range(16)), 1, **fields))


class ScriptedConnector:
    """A connector whose calls go as the script says, then straight to the agent.

    Args:
        agent: the other side.
        script: one entry for each call of ``connect``: an error to raise, or a function to call first.
    """

    def __init__(self, agent: ScriptedAgent, script: tuple[SsmProxyError | Callable[[], None], ...] = ()) -> None:
        self._agent = agent
        self._script = list(script)
        self.is_started = False
        self.connects = 0
        self.terminations = 0
        self.on_terminate: Callable[[], None] = lambda: None
        self.key_ids: list[str] = []
        self.on_key: Callable[[], None] = lambda: None
        self.key_error: Exception = EncryptionError("no key is to be had")

    def connect(self) -> Connection:
        self.connects += 1
        token = f"token-{self.connects}"
        step = self._script.pop(0) if self._script else None
        if isinstance(step, SsmProxyError):
            raise step
        if step is not None:
            step()
        self.is_started = True
        return Connection(websocket=WebSocketTransport(self._agent.attach()), token=Secret(token))

    def terminate(self) -> None:
        self.terminations += 1
        self.on_terminate()

    def data_key(self, key_id: str, challenge: str | None) -> DataKey:
        self.key_ids.append(key_id)
        self.on_key()
        raise self.key_error
