"""The session's life through a hand-written control plane, with real WebSockets to a scripted agent."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence

import pytest
from scripted_agent import GREETING, ScriptedAgent
from websocket_peer import DEADLINE, ScriptedServer, answer_with, upgrade

from ssm_proxy.aws.control_plane import StartedSession
from ssm_proxy.aws.opening import WebSocketOpening
from ssm_proxy.connector import SessionConnector, SessionRequest
from ssm_proxy.errors import ChannelClosed, OpeningRefused, RemotePortRefused, SessionEnded, TargetNotConnected
from ssm_proxy.secret import Secret
from ssm_proxy.session import _MessageIds
from ssm_proxy.transport import pipes
from ssm_proxy.tunnel import Tunnel

REQUEST = SessionRequest(
    target="i-0123456789abcdef0",
    document_name="AWS-StartSSHSession",
    parameters={"portNumber": ["22"]},
    reason="a test",
)


class WrittenControlPlane:
    """Answers from memory, and remembers what it was asked."""

    def __init__(self, port: int) -> None:
        self._url = f"ws://127.0.0.1:{port}/v1/data-channel/s-1"
        self.calls: list[str] = []
        self.parameters: Mapping[str, Sequence[str]] = {}
        self.reason: str | None = None
        self.start_gate: threading.Event | None = None
        self.start_entered = threading.Event()
        self.waits_for_its_turn = False
        self.start_error: TargetNotConnected | None = None
        self.is_gone = False
        self.proxy_url: str | None = None

    def start_session(
        self,
        *,
        target: str,
        document_name: str,
        parameters: Mapping[str, Sequence[str]],
        reason: str | None,
        given_up: threading.Event,
    ) -> StartedSession:
        self.calls.append(f"start {target} {document_name}")
        self.parameters, self.reason = parameters, reason
        self.start_entered.set()
        if self.waits_for_its_turn:
            assert given_up.wait(DEADLINE)
            raise SessionEnded("given up")
        if self.start_gate is not None:
            assert self.start_gate.wait(DEADLINE)
        if self.start_error is not None:
            raise self.start_error
        return StartedSession(session_id="s-1", stream_url=self._url, token=Secret("first"))

    def resume_session(self, session_id: str) -> Secret | None:
        self.calls.append(f"resume {session_id}")
        return None if self.is_gone else Secret(f"resumed-{len(self.calls)}")

    def terminate_session(self, session_id: str) -> None:
        self.calls.append(f"terminate {session_id}")

    def websocket_opening(self, stream_url: str) -> WebSocketOpening:
        return WebSocketOpening(
            url=stream_url, headers={"Authorization": "signed"}, ca_bundle=None, proxy_url=self.proxy_url
        )


def no_mark(_stage: str) -> None:
    """Take no note of stages."""


class TestConnector:
    def test_starts_once_then_resumes_each_time(self) -> None:
        with ScriptedServer(upgrade) as server:
            control_plane = WrittenControlPlane(server.port)
            marks: list[str] = []
            connector = SessionConnector(control_plane, REQUEST, marks.append)
            assert not connector.is_started
            tokens = []
            for _ in range(3):
                connection = connector.connect()
                tokens.append(connection.token.reveal())
                connection.websocket.close()
            assert connector.is_started
            connector.terminate()
        assert tokens == ["first", "resumed-2", "resumed-3"]
        assert control_plane.calls == [
            "start i-0123456789abcdef0 AWS-StartSSHSession",
            "resume s-1",
            "resume s-1",
            "terminate s-1",
        ]
        assert control_plane.parameters == {"portNumber": ["22"]}
        assert control_plane.reason == "a test"
        assert marks == ["StartSession answered"]
        assert all(b"Authorization: signed\r\n" in request for request in server.requests)

    def test_the_first_token_is_used_again_when_its_opening_failed_and_later_ones_are_not(self) -> None:
        refuse = answer_with("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        answers = [refuse, refuse, upgrade, refuse, upgrade]

        def answer(connection: socket.socket, request: bytes) -> None:
            answers.pop(0)(connection, request)

        with ScriptedServer(answer) as server:
            control_plane = WrittenControlPlane(server.port)
            connector = SessionConnector(control_plane, REQUEST, no_mark)
            tokens = []
            while answers:
                try:
                    connection = connector.connect()
                except OpeningRefused:
                    continue
                tokens.append(connection.token.reveal())
                connection.websocket.close()
        assert tokens == ["first", "resumed-3"]
        assert [call.split()[0] for call in control_plane.calls] == ["start", "resume", "resume"]

    def test_a_session_that_is_gone_is_the_end_with_a_reason(self) -> None:
        with ScriptedServer(upgrade) as server:
            control_plane = WrittenControlPlane(server.port)
            connector = SessionConnector(control_plane, REQUEST, no_mark)
            connector.connect().websocket.close()
            control_plane.is_gone = True
            with pytest.raises(SessionEnded) as caught:
                connector.connect()
        assert "i-0123456789abcdef0" in caught.value.message
        assert caught.value.cause
        assert "ServerAliveInterval" in (caught.value.hint or "")

    def test_terminate_waits_for_a_start_that_is_under_way(self) -> None:
        with ScriptedServer(upgrade) as server:
            control_plane = WrittenControlPlane(server.port)
            control_plane.start_gate = threading.Event()
            connector = SessionConnector(control_plane, REQUEST, no_mark)
            starting = threading.Thread(target=lambda: connector.connect().websocket.close())
            starting.start()
            assert control_plane.start_entered.wait(DEADLINE)
            ending = threading.Thread(target=connector.terminate)
            ending.start()
            control_plane.start_gate.set()
            ending.join(DEADLINE)
            starting.join(DEADLINE)
        assert control_plane.calls[-1] == "terminate s-1"

    def test_terminate_ends_the_waiting_of_a_start_for_its_turn(self) -> None:
        control_plane = WrittenControlPlane(1)
        control_plane.waits_for_its_turn = True
        connector = SessionConnector(control_plane, REQUEST, no_mark)
        over = threading.Event()
        connector.start_early(over.set)
        assert control_plane.start_entered.wait(DEADLINE)
        connector.terminate()
        assert over.wait(DEADLINE)
        assert not connector.is_started
        with pytest.raises(SessionEnded):
            connector.connect()
        assert len(control_plane.calls) == 1

    def test_a_session_that_was_started_early_is_started_once(self) -> None:
        with ScriptedServer(upgrade) as server:
            control_plane = WrittenControlPlane(server.port)
            control_plane.start_gate = threading.Event()
            connector = SessionConnector(control_plane, REQUEST, no_mark)
            over = threading.Event()
            connector.start_early(over.set)
            assert control_plane.start_entered.wait(DEADLINE)
            threading.Timer(0.1, control_plane.start_gate.set).start()
            connection = connector.connect()
            assert over.wait(DEADLINE)
            connection.websocket.close()
        assert connection.token.reveal() == "first"
        assert control_plane.calls == ["start i-0123456789abcdef0 AWS-StartSSHSession"]

    def test_what_failed_early_is_raised_once_by_connect(self) -> None:
        with ScriptedServer(upgrade) as server:
            control_plane = WrittenControlPlane(server.port)
            control_plane.start_error = TargetNotConnected("not connected")
            connector = SessionConnector(control_plane, REQUEST, no_mark)
            over = threading.Event()
            connector.start_early(over.set)
            assert over.wait(DEADLINE)
            with pytest.raises(TargetNotConnected):
                connector.connect()
            control_plane.start_error = None
            connector.connect().websocket.close()
        assert [call.split()[0] for call in control_plane.calls] == ["start", "start"]

    def test_nothing_is_terminated_that_was_not_started(self) -> None:
        control_plane = WrittenControlPlane(1)
        control_plane.start_error = TargetNotConnected("not connected")
        connector = SessionConnector(control_plane, REQUEST, no_mark)
        with pytest.raises(TargetNotConnected):
            connector.connect()
        connector.terminate()
        assert not connector.is_started
        assert len(control_plane.calls) == 1


class Run:
    """A tunnel in a thread, between pipes and an agent behind a real WebSocket server."""

    def __init__(self, port: int) -> None:
        self.input_reader, self.input_writer = os.pipe()
        self.output_reader, self.output_writer = os.pipe()
        self.control_plane = WrittenControlPlane(port)
        self.error: BaseException | None = None
        self.tunnel = Tunnel(
            SessionConnector(self.control_plane, REQUEST, no_mark),
            port=22,
            input_fd=self.input_reader,
            output_fd=self.output_writer,
            notify=no_mark,
            mark=no_mark,
        )
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self.tunnel.run()
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.tunnel.stop(15)
        self._thread.join(DEADLINE)
        for fd in (self.input_reader, self.input_writer, self.output_reader, self.output_writer):
            try:
                os.close(fd)
            except OSError:  # the test closed it
                continue


def serving(agent: ScriptedAgent) -> ScriptedServer:
    def answer(connection: socket.socket, request: bytes) -> None:
        upgrade(connection, request)
        agent.serve(connection)

    return ScriptedServer(answer)


@pytest.fixture
def silent() -> Iterator[tuple[ScriptedAgent, Run]]:
    """An agent whose port says nothing."""
    agent = ScriptedAgent(greeting=b"")
    with serving(agent) as server:
        run = Run(server.port)
        run.start()
        agent.wait_until_ready()
        yield agent, run
        run.close()


class TestEnd:
    def test_a_session_that_ends_before_the_port_said_anything(self, silent: tuple[ScriptedAgent, Run]) -> None:
        agent, run = silent
        agent.close_channel()
        error = run.end()
        assert isinstance(error, RemotePortRefused)
        assert error.message == "port 22 of i-0123456789abcdef0 did not answer"
        assert error.cause == "the agent ended the session before the port had sent anything"
        assert "sshd" in (error.hint or "")

    def test_the_services_own_reason_comes_first(self, silent: tuple[ScriptedAgent, Run]) -> None:
        agent, run = silent
        agent.close_channel("Setting up port 22 failed")
        error = run.end()
        assert isinstance(error, RemotePortRefused)
        assert error.cause == "Setting up port 22 failed"

    def test_no_answer_to_a_client_that_ended_first_is_no_error(
        self, silent: tuple[ScriptedAgent, Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent, run = silent
        os.write(run.input_writer, b"x")
        os.close(run.input_writer)
        agent.wait_for_input(b"x")
        agent.close_channel()
        assert run.end() is None

    def test_output_that_is_missing_at_the_end_is_told(self) -> None:
        agent = ScriptedAgent()
        with serving(agent) as server:
            run = Run(server.port)
            run.start()
            assert os.read(run.output_reader, 100) == GREETING
            agent.lose(b"lost")
            agent.send(b"behind it")
            agent.close_channel()
            error = run.end()
            run.close()
        assert isinstance(error, SessionEnded)
        assert error.message == "some of what i-0123456789abcdef0 sent did not arrive"
        assert "no time to send it again" in (error.cause or "")
        assert "run it again" in (error.hint or "")
        assert error.exit_status == 9

    def test_a_reason_is_told_where_output_is_missing_too(self, silent: tuple[ScriptedAgent, Run]) -> None:
        agent, run = silent
        agent.lose(b"lost")
        agent.send(b"behind it")
        agent.close_channel("the idle timeout was reached")
        error = run.end()
        assert isinstance(error, ChannelClosed), "the port did say something"
        assert error.cause == "the idle timeout was reached"

    def test_a_port_whose_first_words_were_lost_did_answer(self, silent: tuple[ScriptedAgent, Run]) -> None:
        agent, run = silent
        agent.lose(b"lost")
        agent.send(b"behind it")
        agent.close_channel()
        error = run.end()
        assert isinstance(error, SessionEnded)
        assert error.message == "some of what i-0123456789abcdef0 sent did not arrive"

    def test_output_that_is_missing_when_the_port_falls_quiet_is_told(
        self, silent: tuple[ScriptedAgent, Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipes, "QUIET_TIME", 0.3)
        agent, run = silent
        os.close(run.input_writer)
        agent.lose(b"lost")
        agent.send(b"behind it")
        error = run.end()
        assert isinstance(error, SessionEnded)
        assert error.message == "some of what i-0123456789abcdef0 sent did not arrive"
        assert error.cause == "it was lost on the way, and the agent did not send it again"

    def test_a_reason_behind_output_is_told(self) -> None:
        agent = ScriptedAgent()
        with serving(agent) as server:
            run = Run(server.port)
            run.start()
            assert os.read(run.output_reader, 100) == GREETING
            agent.close_channel("the idle timeout was reached")
            error = run.end()
            run.close()
        assert isinstance(error, ChannelClosed)
        assert error.cause == "the idle timeout was reached"
        assert error.exit_status == 9
        assert run.control_plane.calls == ["start i-0123456789abcdef0 AWS-StartSSHSession"]

    def test_stop_ends_the_session(self) -> None:
        agent = ScriptedAgent()
        with serving(agent) as server:
            run = Run(server.port)
            run.start()
            assert os.read(run.output_reader, 100) == GREETING
            run.tunnel.stop(15)
            assert run.end() is None
            run.close()
        assert run.control_plane.calls[-1] == "terminate s-1"

    def test_a_lost_connection_is_resumed_with_a_new_token(self) -> None:
        agent = ScriptedAgent()
        with serving(agent) as server:
            run = Run(server.port)
            run.start()
            assert os.read(run.output_reader, 100) == GREETING
            agent.drop("close-1000")
            agent.wait_for_openings(2)
            os.write(run.input_writer, b"still here")
            agent.wait_for_input(b"still here")
            agent.close_channel()
            assert run.end() is None
            run.close()
        assert [opening["TokenValue"] for opening in agent.openings] == ["first", "resumed-2"]


def test_message_ids_are_fresh_random_uuids() -> None:
    ids = _MessageIds()
    seen = [ids.next() for _ in range(1000)]
    assert len(set(seen)) == 1000
    for raw in seen:
        value = uuid.UUID(bytes=raw)
        assert value.version == 4
        assert value.variant == uuid.RFC_4122
