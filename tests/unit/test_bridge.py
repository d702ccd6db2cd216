"""The driver between real pipes and a scripted agent behind a real socket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_agent import GREETING, SSH_ACTION, ScriptedAgent, ScriptedConnector
from simulation.fixed_window import FixedWindow
from websocket_peer import BINARY, frame

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.errors import (
    ConnectFailed,
    EncryptionError,
    HandshakeFailed,
    OpeningRefused,
    RemoteProtocolError,
    SessionEnded,
    SsmProxyError,
    TransportTimeout,
)
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.transport import backoff, endpoints, heartbeat, recovery
from ssm_proxy.transport import bridge as bridge_module
from ssm_proxy.transport import pipes as pipes_module
from ssm_proxy.transport.bridge import Bridge, BridgeOutcome
from ssm_proxy.transport.endpoints import InputEnd, OutputEnd
from ssm_proxy.transport.pipes import Pipes
from ssm_proxy.transport.poller import Poller, SelectPoller, make_poller
from ssm_proxy.wire.constants import ActionStatus, Flag
from ssm_proxy.wire.payloads import RequestedAction

DEADLINE = 10.0
FOR_A_WHILE = 0.15
QUIET_TIME = 1.5
"""For the tests: what they do meanwhile must not take them so long."""
IDLE_TURNS = 40
"""Far more than an idle loop needs for that while, far less than a busy one makes."""
SMALL_SINK = 256 * 1024
WINDOW_BYTES = 512 * 1024
MORE_THAN_IS_HELD = 3_000_000
"""Fills a small sink, one batch of messages and the buffers of the socket, and then some."""
UNREACHABLE = ConnectFailed("no connection to x", cause="network is unreachable", hint="check the network")


class CountingPoller:
    """The system's poller, counting how often it was waited on."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.waits = 0
        self.set = poller.set
        self.remove = poller.remove

    def wait(self, timeout: float | None) -> dict[int, int]:
        self.waits += 1
        return self._poller.wait(timeout)


class Reader(threading.Thread):
    """Reads the tunnel's output, when told to."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self._fd = fd
        self._changed = threading.Condition()
        self.going = threading.Event()
        self.data = bytearray()
        self.has_ended = False
        self.is_over = False

    def run(self) -> None:
        while self.going.wait(DEADLINE) and not self.is_over:
            piece = os.read(self._fd, 65536)
            with self._changed:
                self.data += piece
                self.has_ended = not piece
                self._changed.notify_all()
            if not piece:
                return

    def wait_for(self, data: bytes) -> None:
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.data) >= len(data) or self.has_ended, DEADLINE)
        assert arrived
        assert self.data == data


class Harness:
    """A bridge in a thread, its local ends, and the agent on the far side."""

    def __init__(
        self, agent: ScriptedAgent, connector: ScriptedConnector, input_fd: int | None, window_bytes: int
    ) -> None:
        self.agent = agent
        self.connector = connector
        pipe_reader, self._input = os.pipe()
        self._bridge_input = pipe_reader if input_fd is None else input_fd
        self._output, self._bridge_output = os.pipe()
        self._fds = {pipe_reader, self._bridge_input, self._input, self._output, self._bridge_output}
        self.notices: list[str] = []
        self.marks: list[str] = []
        self.outcome: BridgeOutcome | None = None
        self.error: BaseException | None = None
        self.poller = CountingPoller(make_poller())
        self.reader = Reader(self._output)
        channel = DataChannel(
            check_session=check_stream_session,
            window=FixedWindow(window_bytes),
            new_message_id=lambda: os.urandom(16),
            wall_clock_ms=lambda: 1,
        )
        self.sink = OutputEnd(self._bridge_output)
        self.pipes = Pipes(
            channel,
            source=InputEnd(self._bridge_input),
            sink=self.sink,
            notify=self._notify,
            mark=self.marks.append,
        )
        self.bridge = Bridge(
            channel=channel,
            connector=connector,
            application=self.pipes,
            notify=self._notify,
            mark=self.marks.append,
        )
        self.bridge._poller = self.poller  # type: ignore[assignment]
        self._noticed = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def start(self, *, reading: bool = True) -> None:
        if reading:
            self.reader.going.set()
        self.reader.start()
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.bridge.run()
        except BaseException as error:  # noqa: BLE001 - for the test to look at
            self.error = error
        self.close(self._bridge_output)

    def run_here(self) -> None:
        """Run the bridge in this thread until it ends."""
        self.reader.going.set()
        self.reader.start()
        self._run()

    def _notify(self, text: str) -> None:
        with self._noticed:
            self.notices.append(text)
            self._noticed.notify_all()

    def wait_for_notice(self, text: str) -> None:
        with self._noticed:
            assert self._noticed.wait_for(lambda: any(text in notice for notice in self.notices), DEADLINE)

    def write(self, data: bytes) -> None:
        with memoryview(data) as view:
            while view:
                view = view[os.write(self._input, view) :]

    def end_input(self) -> None:
        self.close(self._input)

    def vanish(self) -> None:
        """Do what a killed ssh does. Not while the reader reads: its call would keep the pipe open."""
        assert not self.reader.going.is_set()
        self.reader.is_over = True
        self.close(self._input)
        self.close(self._output)

    def close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)

    def finish(self, within: float = DEADLINE) -> BridgeOutcome:
        """Wait for the end, which must be one without an error."""
        self.join(within)
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def fail(self) -> BaseException:
        self.join(DEADLINE)
        assert self.error is not None
        return self.error

    def join(self, within: float) -> None:
        self._thread.join(within)
        assert not self._thread.is_alive(), "the tunnel does not end"

    def wait_until_idle(self) -> None:
        """Wait until the loop has made no turn for a while."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            before = self.poller.waits
            threading.Event().wait(FOR_A_WHILE)
            if self.poller.waits == before:
                return
        raise AssertionError("the loop turns and turns")

    def turns_in_a_while(self) -> int:
        """Count the turns of the loop while nothing is supposed to happen."""
        before = self.poller.waits
        threading.Event().wait(FOR_A_WHILE)
        assert self._thread.is_alive()
        return self.poller.waits - before

    def clean_up(self) -> None:
        self.connector.on_terminate = lambda: None
        self.bridge.stop(signal.SIGTERM)
        self.reader.going.set()
        if self._thread.ident is not None:
            self.join(DEADLINE)
        self.close(self._bridge_output)
        if self.reader.ident is not None and self._output in self._fds:
            self.reader.join(DEADLINE)
        for fd in tuple(self._fds):
            self.close(fd)
        self.agent.join()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first attempts to reconnect follow at once."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.02)


@pytest.fixture
def small_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the output end be full soon, so that little has to be moved to fill it."""
    monkeypatch.setattr(endpoints, "MAX_PENDING_BYTES", SMALL_SINK)


MakeHarness = Callable[..., Harness]


@pytest.fixture
def make() -> Iterator[MakeHarness]:
    with contextlib.ExitStack() as stack:

        def make(
            *script: SsmProxyError | Callable[[], None],
            input_fd: int | None = None,
            window_bytes: int = WINDOW_BYTES,
            **changes: Any,
        ) -> Harness:
            agent = ScriptedAgent(**changes)
            harness = Harness(agent, ScriptedConnector(agent, script), input_fd, window_bytes)
            stack.callback(harness.clean_up)
            return harness

        yield make


@pytest.fixture
def tunnel(make: MakeHarness) -> Harness:
    """A tunnel whose session has begun and whose greeting was read."""
    harness = make()
    harness.start()
    harness.reader.wait_for(GREETING)
    harness.agent.wait_until_ready()
    return harness


class TestBytes:
    def test_both_directions_byte_exact(self, tunnel: Harness) -> None:
        upload, download = os.urandom(1_000_000), os.urandom(1_000_000)
        sender = threading.Thread(target=tunnel.agent.send, args=(download,))
        sender.start()
        tunnel.write(upload)
        tunnel.agent.wait_for_input(upload)
        tunnel.reader.wait_for(GREETING + download)
        sender.join(DEADLINE)
        tunnel.agent.close_channel()
        tunnel.finish()
        assert (tunnel.pipes.input_bytes, tunnel.pipes.output_bytes) == (1_000_000, 1_000_000 + len(GREETING))
        assert tunnel.marks == ["WebSocket", "handshake", "first output"]
        assert tunnel.notices == []

    def test_where_pipes_cannot_be_polled(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoints, "_CAN_POLL_PIPES", False)
        monkeypatch.setattr(pipes_module, "QUIET_TIME", 0.2)
        harness = make()
        harness.poller = CountingPoller(SelectPoller())
        harness.bridge._poller = harness.poller  # type: ignore[assignment]
        harness.start()
        harness.reader.wait_for(GREETING)
        upload, download = os.urandom(1_000_000), os.urandom(1_000_000)
        sender = threading.Thread(target=harness.agent.send, args=(download,))
        sender.start()
        harness.write(upload)
        harness.agent.wait_for_input(upload)
        harness.reader.wait_for(GREETING + download)
        sender.join(DEADLINE)
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.end_input()
        harness.finish()
        assert harness.pipes.input_ended

    def test_input_before_the_session_is_kept(self, make: MakeHarness) -> None:
        gate = threading.Event()
        harness = make(lambda: gate.wait(DEADLINE) and None, greeting=b"")
        harness.start()
        harness.write(b"SSH-2.0-early\r\n")
        gate.set()
        harness.agent.wait_for_input(b"SSH-2.0-early\r\n")

    def test_input_is_not_read_beyond_the_window(self, tunnel: Harness) -> None:
        tunnel.agent.acknowledges = False
        os.set_blocking(tunnel._input, False)
        written = 0
        blocked_since = time.monotonic()
        while time.monotonic() < blocked_since + FOR_A_WHILE:
            try:
                written += os.write(tunnel._input, b"x" * 65536)
                blocked_since = time.monotonic()
            except BlockingIOError:
                threading.Event().wait(0.001)
        assert WINDOW_BYTES - 65536 <= written <= WINDOW_BYTES + 65536 + 4096
        assert tunnel.turns_in_a_while() < IDLE_TURNS

    @pytest.mark.usefixtures("small_sink")
    def test_output_is_not_fetched_beyond_a_bound_while_the_reader_stands_still(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        data = os.urandom(MORE_THAN_IS_HELD)
        sender = threading.Thread(target=harness.agent.send, args=(data,))
        sender.start()
        sink = harness.sink
        wait_until(lambda: sink.is_full)
        threading.Event().wait(FOR_A_WHILE)
        assert len(sink._pending) < SMALL_SINK + 1_200_000
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.reader.going.set()
        harness.reader.wait_for(GREETING + data)
        sender.join(DEADLINE)

    def test_output_arrives_while_megabytes_of_input_cannot_leave(self, make: MakeHarness) -> None:
        """Only acknowledges count as what may not be queued any more: an upload that waits holds nothing up."""
        harness = make(window_bytes=8 * bridge_module.MAX_QUEUED_BYTES)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.wait_until_ready()
        harness.agent.reads.clear()
        upload, download = os.urandom(4 * bridge_module.MAX_QUEUED_BYTES), os.urandom(200_000)
        writer = threading.Thread(target=harness.write, args=(upload,))
        writer.start()
        wait_until(lambda: harness.pipes.input_bytes == len(upload))  # far more than the socket takes
        sender = threading.Thread(target=harness.agent.send, args=(download,))
        sender.start()
        harness.reader.wait_for(GREETING + download)
        harness.agent.reads.set()
        harness.agent.wait_for_input(upload)
        writer.join(DEADLINE)
        sender.join(DEADLINE)

    def test_the_descriptors_are_left_as_they_were_found(self, tunnel: Harness) -> None:
        tunnel.agent.close_channel()
        tunnel.join(DEADLINE)
        assert os.get_blocking(tunnel._bridge_input)

    @pytest.mark.usefixtures("no_descriptor_stays")
    def test_nothing_is_left_open(self, make: MakeHarness) -> None:
        threads = set(threading.enumerate())
        harness = make()
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.drop("fin")
        harness.agent.wait_for_openings(2)
        harness.agent.close_channel()
        harness.finish()
        harness.clean_up()
        for thread in set(threading.enumerate()) - threads:
            thread.join(DEADLINE)


class TestEnd:
    def test_the_remotes_end_ends_us_behind_its_last_byte(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        data = os.urandom(400_000)  # less than is held
        harness.agent.send(data)
        harness.agent.close_channel()
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the connection")
        # The service has closed everything; the reader has not even begun.
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.reader.going.set()
        outcome = harness.finish()
        harness.reader.wait_for(GREETING + data)
        assert outcome.closed_reason == ""
        assert not harness.pipes.input_ended
        assert harness.connector.terminations == 0, "the service ended it"

    def test_the_reason_is_kept(self, tunnel: Harness) -> None:
        tunnel.agent.close_channel("the session timed out")
        assert tunnel.finish().closed_reason == "the session timed out"

    def test_the_reason_arrives_although_we_were_sending(self, tunnel: Harness) -> None:
        tunnel.agent.acknowledges = False
        tunnel.write(b"x" * 400_000)
        tunnel.agent.close_channel("enough")
        assert tunnel.finish().closed_reason == "enough"

    def test_output_that_is_missing_is_told_when_all_that_came_was_taken(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        data = os.urandom(400_000)  # more than a pipe takes
        harness.agent.send(data)
        harness.agent.lose(b"lost")
        harness.agent.send(b"behind it")
        harness.agent.close_channel()
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the connection")
        harness.reader.going.set()
        outcome = harness.finish()
        harness.reader.wait_for(GREETING + data)
        assert outcome == BridgeOutcome(closed_reason="", signal_number=None, output_is_missing=True)
        assert harness.connector.terminations == 0

    def test_output_that_came_again_is_not_missing(self, tunnel: Harness) -> None:
        tunnel.agent.lose(b"lost, ")
        tunnel.agent.send(b"behind it")
        tunnel.agent.drop("fin")
        tunnel.agent.wait_for_openings(2)
        tunnel.reader.wait_for(GREETING + b"lost, behind it")
        tunnel.agent.close_channel()
        assert not tunnel.finish().output_is_missing

    @pytest.mark.parametrize("how", ["reader", "signal"])
    def test_nobody_is_told_who_does_not_want_it(self, make: MakeHarness, how: str) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        harness.agent.send(b"x" * 400_000)  # so that it waits for its reader
        harness.agent.lose(b"lost")
        harness.agent.send(b"behind it")
        harness.agent.close_channel()
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the connection")
        if how == "reader":
            harness.vanish()
        else:
            harness.bridge.stop(signal.SIGTERM)
        outcome = harness.finish()
        assert outcome.closed_reason == ""
        assert not outcome.output_is_missing

    def test_a_vanished_reader_is_a_quiet_end(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        harness.vanish()
        outcome = harness.finish()
        assert outcome.closed_reason is None
        assert harness.connector.terminations == 1
        harness.agent.wait(lambda: harness.agent.flags == [Flag.TERMINATE_SESSION], "the flag")

    def test_a_reader_that_vanishes_while_output_waits(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        harness.agent.send(b"x" * 400_000)
        harness.vanish()
        harness.finish()
        assert harness.connector.terminations == 1

    def test_a_vanished_reader_is_noticed_while_connecting(self, make: MakeHarness) -> None:
        gate = threading.Event()
        harness = make(lambda: gate.wait(DEADLINE) and None)
        harness.start(reading=False)
        harness.vanish()
        harness.finish()
        assert harness.connector.terminations == 1, "StartSession may just be answered"
        gate.set()
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the late connection")


class TestEndOfInput:
    @pytest.fixture(autouse=True)
    def _short_quiet_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipes_module, "QUIET_TIME", QUIET_TIME)

    def test_what_was_read_is_delivered_and_output_awaited_until_it_pauses(self, tunnel: Harness) -> None:
        upload = os.urandom(1_000_000)
        tunnel.write(upload)
        tunnel.end_input()
        tunnel.agent.wait_for_input(upload)
        expected = GREETING
        for number in range(4):  # longer than the quiet time in all, never quiet for so long
            threading.Event().wait(0.3 * QUIET_TIME)
            last = time.monotonic()
            tunnel.agent.send(b"%d" % number)
            expected += b"%d" % number
        tunnel.reader.wait_for(expected)
        before = tunnel.poller.waits
        outcome = tunnel.finish()
        assert time.monotonic() - last >= QUIET_TIME
        assert tunnel.poller.waits - before < IDLE_TURNS
        assert tunnel.pipes.input_ended
        assert outcome.closed_reason is None
        tunnel.agent.wait(lambda: tunnel.agent.flags == [Flag.TERMINATE_SESSION], "the flag")
        assert tunnel.connector.terminations == 1

    def test_the_remotes_end_is_not_waited_past(self, tunnel: Harness) -> None:
        tunnel.end_input()
        tunnel.agent.send(b"done")
        tunnel.agent.close_channel()
        assert tunnel.finish().closed_reason == ""
        tunnel.reader.wait_for(GREETING + b"done")

    def test_the_quiet_time_begins_when_all_was_delivered(self, tunnel: Harness) -> None:
        tunnel.agent.acknowledges = False
        tunnel.write(b"request")
        tunnel.end_input()
        threading.Event().wait(1.3 * QUIET_TIME)  # a slow link: longer than the quiet time
        tunnel.agent.acknowledges = True
        tunnel.agent.wait_for_input(b"request")
        threading.Event().wait(0.1)  # the server thinks
        tunnel.agent.send(b"answer")
        tunnel.finish()
        tunnel.reader.wait_for(GREETING + b"answer")

    @pytest.mark.usefixtures("small_sink")
    def test_a_slow_reader_is_no_quiet_remote(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        harness.end_input()
        data = os.urandom(MORE_THAN_IS_HELD)
        sender = threading.Thread(target=harness.agent.send, args=(data,))
        sender.start()
        wait_until(lambda: harness.sink.is_full)
        threading.Event().wait(1.3 * QUIET_TIME)  # longer than the quiet time, with more behind what we hold
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.reader.going.set()
        harness.finish()
        sender.join(DEADLINE)
        harness.reader.wait_for(GREETING + data)

    @pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes have one size here")
    @pytest.mark.usefixtures("small_sink")
    def test_a_reader_that_takes_all_at_once_after_a_long_pause_loses_nothing(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        harness.end_input()
        data = os.urandom(MORE_THAN_IS_HELD)
        sender = threading.Thread(target=harness.agent.send, args=(data,))
        sender.start()
        wait_until(lambda: harness.sink.is_full)
        threading.Event().wait(1.3 * QUIET_TIME)  # longer than the quiet time
        fcntl.fcntl(harness._output, fcntl.F_SETPIPE_SZ, 1024 * 1024)  # now one write takes all that waits
        harness.reader.going.set()
        harness.finish()
        sender.join(DEADLINE)
        harness.reader.wait_for(GREETING + data)

    def test_a_reconnect_is_no_quiet_remote(self, make: MakeHarness) -> None:
        gate = threading.Event()
        harness = make(lambda: None, lambda: gate.wait(DEADLINE) and None)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.wait_until_ready()
        harness.end_input()
        wait_until(lambda: harness.pipes.input_ended)
        harness.agent.drop("fin")
        harness.agent.send(b"lost with the connection")
        threading.Event().wait(1.3 * QUIET_TIME)
        gate.set()
        harness.finish()
        harness.reader.wait_for(GREETING + b"lost with the connection")

    def test_a_slow_node_is_no_quiet_remote(self, make: MakeHarness) -> None:
        gate = threading.Event()
        harness = make(gate=gate)
        harness.start()
        harness.end_input()
        wait_until(lambda: bool(harness.agent.openings))
        threading.Event().wait(1.3 * QUIET_TIME)
        gate.set()
        harness.finish()
        harness.reader.wait_for(GREETING)

    def test_a_port_that_says_nothing_is_told_and_costs_nothing(
        self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipes_module, "SILENCE_NOTICE_AFTER", 0.1)
        monkeypatch.setattr(pipes_module, "QUIET_TIME", 2 * QUIET_TIME)
        harness = make(greeting=b"")
        harness.start()
        harness.agent.wait_until_ready()
        harness.end_input()
        harness.wait_for_notice("nothing has come from the node's port yet")
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.finish()
        assert len(harness.notices) == 1


class TestSignals:
    def test_a_signal_that_does_not_interrupt_the_wait_ends_it(
        self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is taken by another thread here. One that comes just before the system call leaves the same behind."""
        monkeypatch.setattr(heartbeat, "SILENCE_BEFORE_PING", 3600.0)
        harness = make()
        has_ended = threading.Event()
        ended_by_itself: list[bool] = []

        def send_signal() -> None:
            harness.reader.wait_for(GREETING)
            harness.agent.wait_until_ready()
            harness.wait_until_idle()
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            ended_by_itself.append(has_ended.wait(DEADLINE))
            harness.bridge.stop(signal.SIGTERM)

        before = signal.signal(signal.SIGUSR1, lambda number, _frame: harness.bridge.stop(number))
        sender = threading.Thread(target=send_signal)
        sender.start()
        try:
            harness.run_here()
        finally:
            has_ended.set()
            sender.join()
            signal.signal(signal.SIGUSR1, before)
        assert ended_by_itself == [True]
        assert harness.outcome is not None
        assert harness.outcome.signal_number == signal.SIGUSR1

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_ends_the_session_with_what_ssh_said_last(self, tunnel: Harness, number: int) -> None:
        tunnel.write(b"goodbye")
        tunnel.bridge.stop(number)
        outcome = tunnel.finish()
        assert outcome.signal_number == number
        assert tunnel.connector.terminations == 1
        tunnel.agent.wait(lambda: tunnel.agent.closes == 1, "the close frame")
        assert tunnel.agent.received == b"goodbye"
        assert tunnel.agent.flags == [Flag.TERMINATE_SESSION]

    def test_within_a_bounded_time_although_nobody_answers(
        self, tunnel: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert bridge_module.FLUSH_AT_END < bridge_module.SIGNAL_END_TIMEOUT < 2
        monkeypatch.setattr(bridge_module, "FLUSH_AT_END", 0.1)
        monkeypatch.setattr(bridge_module, "SIGNAL_END_TIMEOUT", 0.2)
        release = threading.Event()
        tunnel.connector.on_terminate = lambda: release.wait(DEADLINE) and None
        tunnel.agent.drop("deaf")
        tunnel.write(b"x" * 400_000)
        tunnel.bridge.stop(signal.SIGTERM)
        tunnel.finish(0.8 * DEADLINE)  # and not when the service answers
        release.set()

    def test_while_connecting(self, make: MakeHarness) -> None:
        gate = threading.Event()
        harness = make(lambda: gate.wait(DEADLINE) and None)
        harness.start()
        harness.bridge.stop(signal.SIGTERM)
        harness.finish()
        assert harness.connector.terminations == 1
        gate.set()
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the late connection")

    def test_an_input_that_cannot_be_polled_without_blocking(self, make: MakeHarness) -> None:
        controller, terminal = os.openpty()
        harness = make(input_fd=terminal)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.bridge.stop(signal.SIGTERM)
        harness.finish()
        os.close(controller)


class TestLoss:
    @pytest.mark.parametrize("manner", ["fin", "close-1000"])
    def test_both_directions_go_on_byte_exact(self, tunnel: Harness, manner: str) -> None:
        upload, download = os.urandom(1_000_000), os.urandom(1_000_000)
        writer = threading.Thread(target=tunnel.write, args=(upload,))
        writer.start()
        for number in range(4):
            tunnel.agent.send(download[number * 250_000 : (number + 1) * 250_000])
            tunnel.agent.drop(manner)
            tunnel.agent.wait_for_openings(number + 2)
        tunnel.agent.wait_for_input(upload)
        tunnel.reader.wait_for(GREETING + download)
        writer.join(DEADLINE)
        assert [opening["TokenValue"] for opening in tunnel.agent.openings] == [f"token-{n}" for n in range(1, 6)]
        assert len({opening["ClientId"] for opening in tunnel.agent.openings}) == 1
        assert tunnel.notices == [], "ssh notices nothing but a pause"
        assert tunnel.connector.terminations == 0

    def test_silence_is_a_loss(self, tunnel: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(heartbeat, "PING_INTERVAL", 0.1)
        monkeypatch.setattr(heartbeat, "PONG_TIMEOUT", 0.05)
        tunnel.agent.drop("deaf")
        tunnel.bridge._heartbeat._ping_at = 0.0
        tunnel.write(b"into a black hole")
        tunnel.agent.wait_for_openings(2)
        tunnel.agent.wait_for_input(b"into a black hole")

    def test_a_transfer_that_falls_silent_is_asked_about_soon(
        self, tunnel: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat, "SILENCE_BEFORE_PING", 0.1)
        monkeypatch.setattr(heartbeat, "SUSPECT_PONG_TIMEOUT", 0.1)
        tunnel.agent.send(b"one more message, then nothing")
        tunnel.agent.wait(lambda: tunnel.agent.pings >= 2, "the silence was asked about")
        tunnel.agent.send(b"!")
        tunnel.reader.wait_for(GREETING + b"one more message, then nothing!")
        tunnel.agent.drop("deaf")
        tunnel.agent.wait_for_openings(2)

    def test_a_laptop_that_slept_asks_at_once(self, tunnel: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(heartbeat, "SUSPECT_PONG_TIMEOUT", 0.05)
        tunnel.agent.drop("deaf")
        monkeypatch.setattr(
            bridge_module, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 3600)
        )
        tunnel.write(b"good morning")
        tunnel.agent.wait_for_openings(2)
        tunnel.agent.wait_for_input(b"good morning")

    def test_pings_keep_an_idle_connection(self, tunnel: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        assert tunnel.agent.pings == 1
        monkeypatch.setattr(heartbeat, "PING_INTERVAL", 0.02)
        tunnel.bridge._heartbeat._ping_at = 0.0
        tunnel.write(b"x")
        tunnel.agent.wait(lambda: tunnel.agent.pings >= 5, "five pings")
        assert len(tunnel.agent.openings) == 1

    def test_an_idle_tunnel_does_nothing(self, tunnel: Harness) -> None:
        assert tunnel.turns_in_a_while() <= 3

    @pytest.mark.usefixtures("small_sink")
    def test_a_reader_that_stands_still_is_no_loss(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(heartbeat, "PING_INTERVAL", 0.05)
        monkeypatch.setattr(heartbeat, "PONG_TIMEOUT", 0.04)
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        data = os.urandom(MORE_THAN_IS_HELD)
        sender = threading.Thread(target=harness.agent.send, args=(data,))
        sender.start()
        wait_until(lambda: harness.sink.is_full)
        assert harness.turns_in_a_while() < IDLE_TURNS
        # From here on an answer may take its time: the agent's sender is behind with megabytes.
        monkeypatch.setattr(heartbeat, "PONG_TIMEOUT", DEADLINE)
        harness.reader.going.set()
        harness.reader.wait_for(GREETING + data)
        sender.join(DEADLINE)
        assert len(harness.agent.openings) == 1

    @pytest.mark.usefixtures("small_sink")
    def test_a_loss_while_the_reader_stands_still(self, make: MakeHarness) -> None:
        harness = make()
        harness.start(reading=False)
        harness.agent.wait_until_ready()
        data = os.urandom(MORE_THAN_IS_HELD)
        sender = threading.Thread(target=harness.agent.send, args=(data,))
        sender.start()
        wait_until(lambda: harness.sink.is_full)
        harness.agent.drop("fin")
        sender.join(DEADLINE)
        assert harness.turns_in_a_while() < IDLE_TURNS
        harness.reader.going.set()
        harness.agent.wait_for_openings(2)
        harness.reader.wait_for(GREETING + data)

    def test_a_long_loss_is_told(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recovery, "LOSS_NOTICE_AFTER", 0.0)
        harness = make(lambda: None, UNREACHABLE)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.drop("fin")
        harness.agent.wait_for_openings(2)
        harness.agent.send(b"!")
        harness.reader.wait_for(GREETING + b"!")
        assert len(harness.notices) == 2
        assert "connection lost" in harness.notices[0]
        assert harness.notices[1] == "the session goes on"

    def test_a_connection_that_answers_and_lasts_ends_the_loss(
        self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing but a pong comes over it; else the next loss, hours later, would count from this one."""
        monkeypatch.setattr(recovery, "LOSS_NOTICE_AFTER", 0.0)
        monkeypatch.setattr(bridge_module, "STEADY_AFTER", 0.1)
        harness = make(lambda: None, UNREACHABLE)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.wait_until_acknowledged()
        harness.agent.drop("fin")
        harness.agent.wait_for_openings(2)
        harness.wait_for_notice("the session goes on")

    def test_one_that_answers_and_is_closed_again_at_once_does_not(
        self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recovery, "BUDGET", 1.0)
        monkeypatch.setattr(backoff, "FIRST_DELAY", 0.02)
        harness = make()
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.wait_until_acknowledged()  # else it comes again on each connection, and shows that it works
        harness.agent.on_pong = lambda: harness.agent.drop("fin")
        harness.agent.drop("fin")
        assert isinstance(harness.fail(), SessionEnded)

    def test_the_service_says_that_the_session_is_gone(self, make: MakeHarness) -> None:
        gone = SessionEnded("the session is over", cause="it timed out", hint="connect again")
        harness = make(lambda: None, gone)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.drop("fin")
        assert harness.fail() is gone

    def test_giving_up_leaves_no_session_behind(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recovery, "BUDGET", 0.3)
        harness = make(lambda: None, *[UNREACHABLE] * 10)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.drop("fin")
        error = harness.fail()
        assert isinstance(error, SessionEnded)
        assert error.cause == "no connection to x: network is unreachable"
        assert harness.connector.terminations == 1

    def test_an_attempt_that_hangs_is_abandoned(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = threading.Event()
        harness = make(lambda: None, lambda: gate.wait(DEADLINE) and None)
        harness.start()
        harness.reader.wait_for(GREETING)
        harness.agent.wait_until_ready()
        monkeypatch.setattr(bridge_module, "ATTEMPT_TIMEOUT", 0.05)
        harness.agent.drop("fin")
        harness.write(b"later")
        harness.agent.wait_for_openings(2)
        harness.agent.wait_for_input(b"later")
        assert harness.connector.connects == 3


class TestBeginning:
    def test_a_first_connection_that_fails_for_a_while(
        self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recovery, "LOSS_NOTICE_AFTER", 0.01)
        monkeypatch.setattr(recovery, "FIRST_CONNECTION_BUDGET", 0.3)
        harness = make(*[UNREACHABLE] * 10)
        harness.connector.is_started = True
        harness.start()
        assert harness.turns_in_a_while() < IDLE_TURNS
        assert harness.fail() is UNREACHABLE
        assert harness.notices == []
        assert harness.connector.terminations == 1, "StartSession had succeeded"

    def test_start_session_fails(self, make: MakeHarness) -> None:
        harness = make(UNREACHABLE)
        harness.start()
        assert harness.fail() is UNREACHABLE
        assert harness.connector.connects == 1

    def test_a_refused_opening_is_told_at_once(self, make: MakeHarness) -> None:
        refused = OpeningRefused("x refused", status=403)
        harness = make(refused)
        harness.connector.is_started = True
        harness.start()
        assert harness.fail() is refused
        assert harness.connector.terminations == 1

    def test_a_service_in_trouble_is_asked_again(self, make: MakeHarness) -> None:
        harness = make(OpeningRefused("x refused", status=503))
        harness.connector.is_started = True
        harness.start()
        harness.reader.wait_for(GREETING)

    def test_nothing_within_the_time_of_an_attempt(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bridge_module, "FIRST_ATTEMPT_TIMEOUT", 0.05)
        gate = threading.Event()
        harness = make(lambda: gate.wait(DEADLINE) and None)
        harness.start()
        error = harness.fail()
        gate.set()
        assert isinstance(error, TransportTimeout)
        assert error.cause
        assert error.hint
        harness.agent.wait(lambda: harness.agent.ends == 1, "the end of the late connection")

    def test_a_bug_in_the_connector(self, make: MakeHarness) -> None:
        def stumble() -> None:
            raise KeyError("token")

        harness = make(stumble)
        harness.start()
        assert "unexpected KeyError" in str(harness.fail())

    @pytest.mark.parametrize(
        ("error", "text"),
        [(EncryptionError("no key is to be had"), "no key"), (KeyError("secret"), "unexpected KeyError")],
    )
    def test_a_session_whose_key_is_not_to_be_had(self, make: MakeHarness, error: Exception, text: str) -> None:
        kms = RequestedAction(action_type="KMSEncryption", parameters={"KMSKeyId": "k"})
        harness = make(actions=(kms, SSH_ACTION))
        harness.connector.key_error = error
        harness.start()
        failure = harness.fail()
        assert isinstance(failure, SsmProxyError)
        assert text in failure.message
        assert harness.connector.key_ids == ["k"]
        harness.agent.wait(lambda: harness.agent.response is not None, "the response")
        assert harness.agent.response is not None
        statuses = [action.status for action in harness.agent.response.processed_actions]
        assert statuses == [ActionStatus.FAILED, ActionStatus.SUCCESS]
        assert harness.connector.terminations == 1

    def test_a_key_that_is_refused_as_the_connection_ends(self, make: MakeHarness) -> None:
        kms = RequestedAction(action_type="KMSEncryption", parameters={"KMSKeyId": "k"})
        harness = make(actions=(kms, SSH_ACTION))
        harness.connector.on_key = lambda: harness.agent.drop("fin")
        harness.start()
        assert harness.fail() is harness.connector.key_error

    def test_a_session_that_does_not_begin_is_told(self, make: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bridge_module, "BEGIN_NOTICE_AFTER", 0.1)
        gate = threading.Event()
        harness = make(gate=gate)
        harness.start()
        try:
            harness.wait_for_notice("the session has not begun yet")
        finally:
            gate.set()

    def test_a_session_of_another_kind_is_refused(self, make: MakeHarness) -> None:
        shell = RequestedAction(action_type="SessionType", parameters={"SessionType": "Standard_Stream"})
        harness = make(actions=(shell,))
        harness.start()
        assert isinstance(harness.fail(), HandshakeFailed)

    @pytest.mark.parametrize("data", [b"HTTP/1.1 502 Bad Gateway\r\n\r\n" * 9, frame(b"x", BINARY, rsv=4)])
    def test_garbage_ends_it_with_a_name(self, tunnel: Harness, data: bytes) -> None:
        tunnel.agent.send_raw(data)
        assert isinstance(tunnel.fail(), RemoteProtocolError)
        assert tunnel.connector.terminations == 1


def wait_until(predicate: Callable[[], bool]) -> None:
    """Look again and again at what no event tells."""
    until = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < until
        time.sleep(0.005)
