"""A service in miniature: sessions, tokens that are used once, the hourly close, the idle timeout, refusals.

Written from docs/PROTOCOL.md sections 1.1, 2.2, 2.5, 4.1 and 9.1. It is the tunnel's control plane, and relays between
the WebSockets of a `World` and the model agent.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence

from simulation import wire_sketch
from simulation.model_agent import ModelAgent
from simulation.virtual_world import Wire, World
from simulation.wire_sketch import Frame
from unit.websocket_peer import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, frame

from ssm_proxy.aws.control_plane import StartedSession
from ssm_proxy.aws.opening import WebSocketOpening
from ssm_proxy.errors import SsmProxyError
from ssm_proxy.secret import Secret
from ssm_proxy.transport.websocket import WebSocketTransport

CLOSES_AFTER = 3600.0
IDLE_TIMEOUT = 1200.0
NOTICES_SILENCE_AFTER = 120.0
"""How long the service takes to find out that a client's connection is dead, if it never does anything else."""
BYE = (1000).to_bytes(2, "big") + b"Bye"
INPUT = b"input_stream_data"


def own_message(kind: str, values: Mapping[str, object]) -> bytes:
    """Give a message of the service itself: with the short header (3.2)."""
    return wire_sketch.pack(Frame(kind, json.dumps(values).encode(), flags=3), header_length=112)


class ModelService:
    """One session, and the agent behind it.

    Args:
        world: whose time and network it uses.
        agent: started when the first client has opened the data channel.
        answer: called with the number of bytes that just came to the node.
    """

    def __init__(self, world: World, agent: ModelAgent, answer: Callable[[int], None]) -> None:
        self._world = world
        self.agent = agent
        self._answer = answer
        self._tokens: set[str] = set()
        self._numbers = itertools.count(1)
        self._wire: Wire | None = None
        self._wire_number = 0
        self._is_agent_started = False
        self._is_agent_here = True
        self._agent_timer = math.inf
        self._last_stream = 0.0
        self._taken = 0
        self.is_open = False
        """Whether there is a session."""
        self.calls: list[str] = []
        self.connections = 0
        self.pings = 0
        self.refuses_resume: SsmProxyError | None = None
        """What ResumeSession answers instead."""
        self.failing_openings: list[SsmProxyError] = []
        """What the next openings of a WebSocket end with."""

    # --- the control plane of the tunnel ----------------------------------------------------------------------------

    def start_session(
        self,
        *,
        target: str,
        document_name: str,
        parameters: Mapping[str, Sequence[str]],
        reason: str | None,
        given_up: object,
    ) -> StartedSession:
        self._world.reach()
        assert not self.calls, "one session is enough"
        self.calls.append("start")
        self.is_open = True
        self._last_stream = self._world.now
        self._check_idle()
        return StartedSession(session_id="s-1", stream_url="ws://127.0.0.1/", token=Secret(self._new_token()))

    def resume_session(self, session_id: str) -> Secret | None:
        self._world.reach()
        self.calls.append("resume")
        if self.refuses_resume is not None:
            raise self.refuses_resume
        return Secret(self._new_token()) if self.is_open else None

    def terminate_session(self, session_id: str) -> None:
        self._world.reach()
        self.calls.append("terminate")
        self._end("")

    def websocket_opening(self, stream_url: str) -> WebSocketOpening:
        return WebSocketOpening(url=stream_url, headers={}, ca_bundle=None, proxy_url=None)

    def open_websocket(self, url: str, **_: object) -> WebSocketTransport:
        """Be the network's way to the service."""
        self._world.reach()
        if self.failing_openings:
            raise self.failing_openings.pop(0)
        self._wire_number += 1
        number, reader = self._wire_number, FrameReader()
        wire = Wire(self._world, lambda data: self._receive(wire, number, reader, data))
        return WebSocketTransport(wire.near)

    def _new_token(self) -> str:
        token = f"token {next(self._numbers)}"
        self._tokens = {token}  # a new one makes those before it void
        return token

    # --- accidents --------------------------------------------------------------------------------------------------

    def break_connection(self, manner: str) -> None:
        """Break the client's connection, if it has one: ``close``, ``reset``, or ``silent``."""
        wire = self._wire
        if wire is None:
            return
        if manner == "close":
            wire.send(frame(BYE, CLOSE))
            self._leave(wire)
            wire.finish()
        elif manner == "reset":
            wire.reset()
        else:
            wire.silence()
            self._world.later(NOTICES_SILENCE_AFTER, lambda: self._leave(wire))

    def lose_agent(self, seconds: float) -> None:
        """Let the agent's connection be away for a while: what is sent to it is lost, and what it sends."""
        if self._is_agent_here:
            self._is_agent_here = False
            self._tell_client("pause_publication")
            self._world.later(seconds, self._find_agent)

    def _find_agent(self) -> None:
        self._is_agent_here = True
        if self._wire is not None:
            self._to_agent(own_message_to_agent("start_publication"))
            self._tell_client("start_publication")

    def wake_agent(self) -> None:
        """End a standstill of the agent."""
        if self.is_open:
            self.agent.wake(self._world.now)
            self._settle_agent()

    # --- relaying ---------------------------------------------------------------------------------------------------

    def node_says(self, data: bytes) -> None:
        """Let the port of the node send output."""
        if self.is_open:
            self.agent.send(data, self._world.now)
            self._settle_agent()

    def _receive(self, wire: Wire, number: int, reader: FrameReader, data: bytes) -> None:
        if number < self._wire_number:  # an older connection than the latest
            return
        if not data:
            self._leave(wire)
            return
        for opcode, payload in reader.feed(data):
            if opcode == PING:
                self.pings += 1
                wire.send(frame(payload, PONG))
            elif opcode == TEXT:
                self._join(wire, json.loads(payload))
            elif opcode == BINARY and self._wire is wire:
                if payload.startswith(INPUT, 4):
                    self._last_stream = self._world.now
                self._to_agent(payload)
            elif opcode == CLOSE:
                self._leave(wire)

    def _join(self, wire: Wire, opening: Mapping[str, str]) -> None:
        assert opening["TokenValue"] in self._tokens, "a token that was never given, or was used before"
        self._tokens.clear()
        if not self.is_open:
            wire.finish()
            return
        self._wire = wire
        self.connections += 1
        self._world.later(CLOSES_AFTER, lambda: self._wire is wire and self.break_connection("close"))
        if not self._is_agent_started:
            self._is_agent_started = True
            self.agent.start(self._world.now)
        elif self._is_agent_here:
            self._to_agent(own_message_to_agent("start_publication"))
        self._tell_client("start_publication")
        self._settle_agent()

    def _leave(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
            self._to_agent(own_message_to_agent("pause_publication"))

    def _to_agent(self, data: bytes) -> None:
        if self._is_agent_here and self.is_open:
            self.agent.receive(data, self._world.now)
            self._settle_agent()

    def _settle_agent(self) -> None:
        """Do what is due after the agent was touched: send what it says, look at what it took, set its timer."""
        for data in self.agent.take():
            if self._wire is not None and self._is_agent_here:
                self._last_stream = self._world.now
                self._wire.send(frame(data))
        fresh = len(self.agent.received) - self._taken
        self._taken += fresh
        if fresh:
            self._answer(fresh)
        due = self.agent.next_deadline()
        if due < self._agent_timer:
            self._agent_timer = due
            self._world.later(max(0.0, due - self._world.now), self._advance_agent)

    def _advance_agent(self) -> None:
        self._agent_timer = math.inf
        if self.is_open:
            self.agent.advance(self._world.now)
            self._settle_agent()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if not self.is_open:
            return
        left = self._last_stream + IDLE_TIMEOUT - self._world.now
        if left <= 0:
            self._end("Your session timed out due to inactivity.")
        else:
            self._world.later(left, self._check_idle)

    def _end(self, reason: str) -> None:
        if not self.is_open:
            return
        self.is_open = False
        if (wire := self._wire) is not None:
            wire.send(frame(own_message("channel_closed", {"SessionId": "s-1", "Output": reason})))
            self._wire = None
            wire.finish()

    def end_by_node(self) -> None:
        """Let the port of the node close its connection, as sshd does after a logout."""
        self._end("")

    def _tell_client(self, kind: str) -> None:
        if self._wire is not None:
            self._wire.send(frame(own_message(kind, {"SessionId": "s-1"})))


def own_message_to_agent(kind: str) -> bytes:
    """Give a message of the service in the form that the model agent reads."""
    return wire_sketch.pack(Frame(kind, b"{}"))
