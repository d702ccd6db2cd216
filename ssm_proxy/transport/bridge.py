"""The driver: moves bytes between an application and the data channel, over one WebSocket after another.

One thread runs a loop: wait, read, act, write. After anything that happens it does the same things: send what the
channel has to send, hand out its events, re-arm the timer. Connections are made in a second thread (``connecting``).

    CONNECTING --connection--> CONNECTED --lost--> WAITING --pause over--> CONNECTING ...
    CONNECTED --channel closed--> OVER --all written--> finished
    any state --error, signal, the application is over--> finished
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import (
    ChannelClosed,
    DataKeyNeeded,
    ErrorOutputReceived,
    Event,
    ExitCodeReceived,
    FlagReceived,
    MessageDropped,
    OutputReceived,
    PublicationChanged,
    SessionFailed,
    SessionStarted,
)
from ssm_proxy.errors import SsmProxyError, TransportClosed, TransportError
from ssm_proxy.transport.application import Application
from ssm_proxy.transport.connecting import (
    ATTEMPT_TIMEOUT,
    FIRST_ATTEMPT_TIMEOUT,
    Attempts,
    Connection,
    Connector,
    DataKeyRequest,
    Termination,
    attempt_took_too_long,
)
from ssm_proxy.transport.heartbeat import Heartbeat
from ssm_proxy.transport.poller import HANGUP, READ, make_poller
from ssm_proxy.transport.recovery import Recovery
from ssm_proxy.transport.signal_watch import signals_wake
from ssm_proxy.transport.trace import MessageTrace
from ssm_proxy.transport.websocket import WebSocketTransport

FLUSH_AT_END = 0.5
END_TIMEOUT = 5.0
"""TerminateSession takes four round trips and the service's time; nobody waits for us but a session that would stay."""
STEADY_AFTER = 5.0
"""A new connection that answers a ping and lasts so long works, though nothing else comes over it."""
BEGIN_NOTICE_AFTER = 15.0
SIGNAL_END_TIMEOUT = 1.4
"""Whoever sends a signal wants us gone within 2 s."""
MAX_QUEUED_BYTES = 1024 * 1024
"""Of acknowledges. Beyond this nothing is received, because each message received adds one."""

logger = logging.getLogger("ssm_proxy.transport")


class _State(Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting before the next attempt"
    OVER = "the service closed the session; local readers still take its last output"


@dataclass(frozen=True, kw_only=True)
class BridgeOutcome:
    """How a session came to its end, if not by an error."""

    closed_reason: str | None
    """What the service gave as the reason, often nothing; None if it did not end the session."""
    signal_number: int | None
    """The signal that ended us."""
    output_is_missing: bool = False
    """The service ended it while some of what the node had sent was known to be missing, and somebody here wants it."""


class Bridge:
    """A session between an application and a managed node.

    Args:
        channel: the protocol.
        connector: starts, resumes and terminates the session.
        application: the local side.
        notify: shows a person one line while the tunnel goes on.
        mark: called with the name of each stage as it is reached.
    """

    def __init__(
        self,
        *,
        channel: DataChannel,
        connector: Connector,
        application: Application,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._connector = connector
        self._application = application
        self._notify = notify
        self._mark = mark
        self._poller = make_poller()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._attempts = Attempts(connector, self._wake)
        self._recovery = Recovery(random.Random(os.urandom(16)))
        self._trace = MessageTrace.if_wanted(logger)

        self._state = _State.CONNECTING
        self._websocket: WebSocketTransport | None = None
        self._attempt_until = 0.0
        self._retry_at = 0.0
        self._heartbeat = Heartbeat(time.monotonic(), time.time())

        self._key_request: DataKeyRequest | None = None
        self._was_opened = False
        self._steady_at: float | None = None  # when a connection that answers counts as one that works
        self._begin_notice_at: float | None = None
        self._signal_number: int | None = None
        self._closed_reason: str | None = None
        self._error: SsmProxyError | None = None
        self._finished = False

    # --- from outside -----------------------------------------------------------------------------------------------

    def stop(self, signal_number: int) -> None:
        """End the tunnel soon. May be called from a signal handler."""
        self._signal_number = signal_number
        self._wake()

    @property
    def trouble(self) -> SsmProxyError | None:
        """Why there is no connection just now, as far as is known."""
        return self._recovery.error

    def run(self) -> BridgeOutcome:
        """Carry bytes until the tunnel ends, then terminate the session unless the service did.

        Raises:
            SsmProxyError: why the tunnel could not begin, or could not go on.
        """
        now = time.monotonic()
        self._poller.set(self._wake_reader.fileno(), read=True)
        self._begin_attempt(now)
        try:
            with signals_wake(self._wake_writer.fileno()):
                while not self._finished:
                    self._turn()
        finally:
            self._shut_down()
        if self._error is not None:
            raise self._error
        is_wanted = self._signal_number is None and not self._application.is_over
        return BridgeOutcome(
            closed_reason=self._closed_reason,
            signal_number=self._signal_number,
            output_is_missing=self._closed_reason is not None and is_wanted and self._channel.output_is_missing,
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        before = time.monotonic()
        self._watch(before)
        ready = self._poller.wait(self._timeout(before))
        now = time.monotonic()
        if self._wake_reader.fileno() in ready:
            self._woken(now)
        if self._signal_number is not None:
            self._finished = True
            return
        self._notice_sleep(now)
        if (
            self._websocket is not None
            and self._may_receive()
            and (ready.get(self._websocket.fileno(), 0) & (READ | HANGUP) or self._websocket.has_more)
        ):
            self._receive(now)
        self._turn_application(ready, now)
        self._act(now)

    def _turn_application(self, ready: Mapping[int, int], now: float) -> None:
        try:
            self._application.turn(ready, now, is_connected=self._state is _State.CONNECTED)
        except SsmProxyError as error:
            self._fail(error)

    def _watch(self, now: float) -> None:
        """Tell the poller what can be used now."""
        poller = self._poller
        self._application.watch(poller, now)
        if (websocket := self._websocket) is not None:
            read = self._may_receive()
            if read or websocket.wants_write:
                poller.set(websocket.fileno(), read=read, write=websocket.wants_write)
            else:  # nor for its hang-up, which would be reported again and again until it may be looked at
                poller.remove(websocket.fileno())

    def _timeout(self, now: float) -> float | None:
        """Give the seconds until something is due that ``_act`` or ``_check_end`` will do."""
        deadlines: list[float | None] = []
        if self._state is _State.CONNECTED:
            assert self._websocket is not None
            if self._may_receive():
                if self._websocket.has_more:
                    return 0.0
                deadlines.append(self._channel.next_deadline())
            deadlines += [self._heartbeat.deadline, self._application.deadline()]
            deadlines += [self._steady_at, self._begin_notice_at]
        elif self._state is not _State.OVER:
            deadlines.append(self._attempt_until if self._state is _State.CONNECTING else self._retry_at)
            deadlines.append(self._recovery.notice_at)
        soonest = min((deadline for deadline in deadlines if deadline is not None), default=None)
        return None if soonest is None else max(0.0, soonest - now)

    def _may_receive(self) -> bool:
        """Whether there is room for what would be received; the WebSocket's TCP connection holds the sender back."""
        websocket = self._websocket
        return not self._application.is_full and (websocket is None or websocket.queued_ahead_bytes < MAX_QUEUED_BYTES)

    def _receive(self, now: float) -> None:
        assert self._websocket is not None
        try:
            messages = self._websocket.receive()
        except TransportClosed as error:
            self._lost(error, now)
            return
        except SsmProxyError as error:
            self._fail(error)
            return
        if self._websocket.take_pong():
            self._channel.ping_answered()
            if self._recovery.lost_for(now) is not None and self._steady_at is None:
                self._steady_at = now + STEADY_AFTER
        if messages:
            self._works()
            self._heartbeat.heard(now)
            self._application.heard(now)
        trace = self._trace
        for message in messages:
            if trace is not None:
                trace.received(message)
            self._channel.receive(message, now)
        self._hand_out_events(now)

    def _works(self) -> None:
        """Take note that the connection is good: a loss after it is a new one."""
        self._steady_at = None
        if self._recovery.works():
            self._notify("the session goes on")

    def _act(self, now: float) -> None:
        """Do what is due: the duty after anything that happened."""
        if self._state is _State.CONNECTED:
            if self._may_receive():
                self._channel.handle_deadline(now)
            self._check_life(now)
            self._send(now)
        elif self._state is _State.CONNECTING:
            if now >= self._attempt_until:
                self._attempts.abandon()
                self._retry_or_fail(attempt_took_too_long(), now)
        elif self._state is _State.WAITING and now >= self._retry_at:
            self._begin_attempt(now)
        if self._state is not _State.CONNECTED and (notice := self._recovery.notice(now)) is not None:
            self._notify(notice)
        self._hand_out_events(now)
        self._check_end()

    def _send(self, now: float) -> None:
        websocket = self._websocket
        if websocket is None:
            return
        if self._may_receive():
            acknowledges = self._channel.acknowledges_to_send()
            messages = self._channel.messages_to_send(now)
            if self._trace is not None:
                for message in acknowledges + messages:
                    self._trace.sent(message)
            websocket.send_ahead(acknowledges)
            websocket.send(messages)
        if websocket.wants_write:
            try:
                websocket.flush()
            except TransportClosed as error:
                # What the service said before it closed, its reason above all, may still be there to read.
                with contextlib.suppress(SsmProxyError):
                    while messages := websocket.receive():
                        for message in messages:
                            self._channel.receive(message, now)
                self._lost(error, now)

    def _hand_out_events(self, now: float) -> None:
        output: list[bytes] = []
        try:
            for event in self._channel.events():
                if isinstance(event, OutputReceived):
                    output.append(event.payload)
                    continue
                if output:  # before anything that came after it
                    self._application.output(output, now)
                    output = []
                self._handle(event, now)
            if output:
                self._application.output(output, now)
        except SsmProxyError as error:
            self._fail(error)

    def _handle(self, event: Event, now: float) -> None:
        application = self._application
        if isinstance(event, SessionStarted):
            self._begin_notice_at = None
            self._mark("handshake")
            logger.info("session started: agent %s", event.agent_version)
            if event.customer_message:
                self._notify(event.customer_message)
            application.started(event, now)
        elif isinstance(event, ChannelClosed):
            logger.info("the service closed the session: %s", event.reason or "no reason given")
            self._closed_reason = event.reason
            self._close_websocket()
            self._state = _State.OVER
            application.closed(event.reason)
        elif isinstance(event, SessionFailed):
            self._fail(event.error)
        elif isinstance(event, ErrorOutputReceived):
            application.error_output(event.payload, now)
        elif isinstance(event, ExitCodeReceived):
            application.exit_code(event.exit_code)
        elif isinstance(event, FlagReceived):
            logger.info("flag %d from the agent", event.flag)
            application.flag(event.flag, now)
        elif isinstance(event, DataKeyNeeded):
            self._key_request = DataKeyRequest(self._connector, event, self._wake)
        elif isinstance(event, PublicationChanged):
            logger.info("the service %s publication", "paused" if event.paused else "started")
        elif isinstance(event, MessageDropped):
            logger.info("dropped: %s", event.reason)

    def _check_end(self) -> None:
        if self._error is not None or self._application.is_over:
            self._finished = True
        elif self._state is _State.OVER:
            self._finished = not self._application.wants_write

    # --- life of a connection ---------------------------------------------------------------------------------------

    def _begin_attempt(self, now: float) -> None:
        self._state = _State.CONNECTING
        self._attempt_until = now + (ATTEMPT_TIMEOUT if self._was_opened else FIRST_ATTEMPT_TIMEOUT)
        self._attempts.begin()

    def _woken(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        if self._key_request is not None and (key := self._key_request.take_result()) is not None:
            self._key_request = None
            if isinstance(key, SsmProxyError):
                self._channel.refuse_data_key(key, now)
            else:
                self._channel.provide_data_key(key, now)
            self._hand_out_events(now)
        result = self._attempts.take_result()
        if isinstance(result, Connection):
            self._opened(result, now)
        elif result is not None:
            self._retry_or_fail(result, now)

    def _opened(self, connection: Connection, now: float) -> None:
        self._mark("WebSocket")
        self._state = _State.CONNECTED
        if not self._was_opened:
            self._was_opened = True
            self._begin_notice_at = now + BEGIN_NOTICE_AFTER
        websocket = self._websocket = connection.websocket
        websocket.send_text(self._channel.open(connection.token.reveal(), now))
        self._ping(now)
        self._application.heard(now)  # what got lost with the connection before comes again
        if (seconds := self._recovery.lost_for(now)) is not None:
            logger.info("connected again after %.1f s", seconds)

    def _lost(self, error: TransportError, now: float) -> None:
        logger.info("connection lost: %s (%s)", error.message, error.cause)
        self._close_websocket()
        if not self._channel.is_closed:
            self._retry_or_fail(error, now)

    def _retry_or_fail(self, error: SsmProxyError, now: float) -> None:
        step = self._recovery.after(
            error, now, was_started=self._connector.is_started, has_begun=self._channel.is_started
        )
        if isinstance(step, SsmProxyError):
            self._state = _State.OVER  # it may have been connected until now
            self._fail(step)
        else:
            logger.info("trying again in %.1f s: %s (%s)", step, error.message, error.cause)
            self._state = _State.WAITING
            self._retry_at = now + step

    def _ping(self, now: float, *, is_suspect: bool = False) -> None:
        assert self._websocket is not None
        self._websocket.ping()
        self._channel.ping_sent()
        self._heartbeat.pinged(now, self._websocket.bytes_received, is_suspect=is_suspect)

    def _check_life(self, now: float) -> None:
        if self._websocket is None:  # lost in the turn in which the session failed
            return
        if self._steady_at is not None and now >= self._steady_at:
            self._works()
        if self._begin_notice_at is not None and now >= self._begin_notice_at:
            self._begin_notice_at = None
            self._notify(
                "connected, but the session has not begun yet; the node's agent may be busy, or its command silent"
            )
        if self._heartbeat.is_due(now):
            self._ping(now, is_suspect=self._heartbeat.is_silent(now))
        received = self._websocket.bytes_received
        if self._heartbeat.is_dead(now, received, is_listening=self._may_receive()):
            self._lost(TransportClosed("the connection is dead", cause="no answer to a ping"), now)

    def _notice_sleep(self, now: float) -> None:
        slept = self._heartbeat.slept(now, time.time())
        if slept and self._state is _State.CONNECTED:
            logger.info("the clock jumped by %.0f s; checking the connection", slept)
            self._ping(now, is_suspect=True)

    def _close_websocket(self) -> None:
        self._steady_at = None
        if self._websocket is not None:
            self._poller.remove(self._websocket.fileno())
            self._websocket.close()
            self._websocket = None

    # --- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, error: SsmProxyError) -> None:
        if self._error is None:
            self._error = error
        self._finished = True

    def _shut_down(self) -> None:
        """Leave nothing behind: no session, no connection. Bounded in time."""
        channel = self._channel
        logger.info("%.0f ms round trip, %d sent again", channel.round_trip_time * 1e3, channel.retransmission_count)
        self._attempts.abandon()
        began = time.monotonic()
        termination = None if self._closed_reason is not None else Termination(self._connector)
        self._flush_last_words()
        if termination is not None:
            termination.wait(lambda: began + (END_TIMEOUT if self._signal_number is None else SIGNAL_END_TIMEOUT))
        self._close_websocket()
        self._application.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _flush_last_words(self) -> None:
        """Send what is still to be sent, ending with the flag that makes the agent close its side."""
        websocket = self._websocket
        if websocket is None:
            return
        now = time.monotonic()
        until = now + FLUSH_AT_END
        if self._error is None and self._closed_reason is None:
            if self._signal_number is not None:
                with contextlib.suppress(SsmProxyError):
                    self._application.last_words(now)
            self._channel.terminate(now)
        websocket.send(self._channel.messages_to_send(now))
        try:
            websocket.flush()
            poller = make_poller()
            poller.set(websocket.fileno(), write=True)
            while websocket.wants_write and (left := until - time.monotonic()) > 0:
                poller.wait(left)
                websocket.flush()
        except TransportClosed:
            pass

    def _wake(self) -> None:
        # Full means that it is awake already; closed, that nobody is left to wake.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")
