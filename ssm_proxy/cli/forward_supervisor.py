"""Runs the sessions and the command of ``ssm-proxy forward``, and ends them together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from ssm_proxy.cli import messages
from ssm_proxy.cli.child_command import ChildCommand
from ssm_proxy.cli.forward_specs import ForwardSpec
from ssm_proxy.cli.session_command import (
    ENDING_SIGNALS,
    EXIT_SIGNAL_BASE,
    Surroundings,
    make_session,
)
from ssm_proxy.ends import FAILED_AT_START_WITHIN, cannot_be_forwarded, closed_by_service
from ssm_proxy.errors import ChannelClosed
from ssm_proxy.transport.signal_watch import Handler, change_handlers, not_ignored

if TYPE_CHECKING:
    from types import FrameType

    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.session import Session
    from ssm_proxy.transport.application import Application
    from ssm_proxy.transport.bridge import BridgeOutcome
    from ssm_proxy.transport.listener import Listener

DRAIN_TIME = 10.0
"""What local programs get to take the last output of a session that the service has ended."""
COMMAND_DRAIN_TIME = 5.0
"""What the command sent last gets to arrive after it has ended."""
LOOK_AGAIN_AFTER = 0.5
"""Python handles a signal that comes just as its main thread begins to wait when that wait is over, not before."""
STOP_TIMEOUT = 4.0
"""Longer than a session takes that was stopped by a signal."""

logger = logging.getLogger("ssm_proxy.cli")


def make_request(spec: ForwardSpec, target: str, reason: str | None) -> SessionRequest:
    """Give the session that one SPEC needs (docs/PROTOCOL.md section 1.3)."""
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.sessions.port import forwarding_request

    return SessionRequest(target, *forwarding_request(spec.host_port, spec.host), reason)


class Forwarding(NamedTuple):
    """One SPEC at work."""

    number: int
    spec: ForwardSpec
    listener: Listener
    target: str

    @property
    def destination(self) -> str:
        if self.spec.host is None:
            return f"port {self.spec.host_port} of {self.target}"
        return f"{self.spec.destination} through {self.target}"

    def ready_line(self, probe_result: str) -> str:
        """Give the line of JSON for a program that waits for us."""
        listener = self.listener
        where: dict[str, Any] = (
            {"socket": listener.socket_path}
            if listener.socket_path is not None
            else {"address": listener.address, "port": listener.port}
        )
        return json.dumps(
            {
                "index": self.number,
                "spec": self.spec.text,
                **where,
                "target": self.target,
                "remote_host": self.spec.host,
                "remote_port": self.spec.host_port,
                "probe": probe_result,
            }
        )


# --- what happens, each told by another thread or a signal handler ---------------------------------------------------


class _Listening(NamedTuple):
    number: int


class _Ready(NamedTuple):
    number: int
    probe_result: str


class _Closed(NamedTuple):
    """The service has ended a session; local programs still take its last output."""

    number: int
    has_received: bool


class _Drained(NamedTuple):
    """What the command had sent has arrived."""

    number: int


class _Ended(NamedTuple):
    number: int
    end: BridgeOutcome | Exception


class _Signalled(NamedTuple):
    signal_number: int


class _CommandEnded(NamedTuple):
    status: int


_Happening = _Listening | _Ready | _Closed | _Drained | _Ended | _Signalled | _CommandEnded


class ForwardSupervisor:
    """Runs one session for each forward, and the command; ends all when one of them ends.

    Args:
        around: what the command talks to.
        forwards: what to run.
        command: program and arguments, or None.
        reason: for the sessions' history.
        probe: whether to find out that each carries traffic, and to print that.
        tell: whether to tell on standard error where each listens.
    """

    def __init__(
        self,
        around: Surroundings,
        forwards: Sequence[Forwarding],
        *,
        command: Sequence[str] | None,
        reason: str | None,
        probe: bool,
        tell: bool,
    ) -> None:
        self._around = around
        self._forwards = forwards
        self._command = command
        self._reason = reason
        self._probe = probe
        self._tell = tell
        # Of all ways to wake a thread this is the one that a signal handler may use.
        self._happenings: SimpleQueue[_Happening] = SimpleQueue()
        self._to_come = {forward.number for forward in forwards}  # that do not listen, or are not ready, yet
        self._child: ChildCommand | None = None
        self._status: int | None = None  # of the command, when it has ended
        self._to_drain = {forward.number for forward in forwards}
        # All sessions look at one end; closing the other tells them that the command has ended.
        self._ending: socket.socket | None = None
        self._tell_ending: socket.socket | None = None
        if command is not None:
            self._ending, self._tell_ending = socket.socketpair()
        self._has_received: set[int] = set()
        self._until: float | None = None
        self._began = time.monotonic()

    def run(self) -> int:
        """Run until something ends; give the exit status.

        Raises:
            SsmProxyError: why a session could not begin, or did not go on.
        """
        sessions: list[Session] = []
        threads: list[threading.Thread] = []
        with self._signals():
            try:
                for forward in self._forwards:
                    session = self._make_session(forward)
                    thread = threading.Thread(
                        target=self._run_session, args=(forward, session), name="ssm-proxy session", daemon=True
                    )
                    sessions.append(session)
                    threads.append(thread)
                    thread.start()
                while True:
                    happening = self._next()
                    status = self._give_up() if happening is None else self._handle(happening)
                    if status is not None:
                        return status
            finally:
                if self._child is not None:
                    self._child.end()
                until = time.monotonic() + STOP_TIMEOUT
                for session in sessions:
                    session.stop(signal.SIGTERM)
                for thread in threads:
                    thread.join(max(0.0, until - time.monotonic()))
                for each in (self._ending, self._tell_ending):
                    if each is not None:
                        each.close()

    def _next(self) -> _Happening | None:
        """Wait for what happens next; None if it took too long."""
        while True:
            left = LOOK_AGAIN_AFTER if self._until is None else max(0.0, self._until - time.monotonic())
            try:
                return self._happenings.get(timeout=min(left, LOOK_AGAIN_AFTER))
            except Empty:
                if self._until is not None and time.monotonic() >= self._until:
                    return None

    def _give_up(self) -> int:
        if self._status is None:
            raise ChannelClosed("the service ended a session, and a local program does not take its output")
        self._around.notify(
            f"the command has ended, and what it sent last may not have arrived: that took longer than "
            f"{COMMAND_DRAIN_TIME:.0f} s"
        )
        return self._status

    def _handle(self, happening: _Happening) -> int | None:
        """Do what follows; give the exit status if it is the end."""
        if isinstance(happening, _Listening):
            forward = self._forwards[happening.number]
            if self._tell:
                self._around.stderr.write(
                    f"{messages.printable(forward.listener.name)} -> {messages.printable(forward.destination)}"
                )
            if not self._probe:
                self._come(happening.number)
        elif isinstance(happening, _Ready):
            line = self._forwards[happening.number].ready_line(happening.probe_result)
            with contextlib.suppress(OSError):  # who started us does not read it any more
                os.write(1, f"{line}\n".encode())
            self._come(happening.number)
        elif isinstance(happening, _Closed):
            if happening.has_received:
                self._has_received.add(happening.number)
            if self._status is None:
                self._until = time.monotonic() + DRAIN_TIME
        elif isinstance(happening, _Signalled):
            return self._take_signal(happening.signal_number)
        elif isinstance(happening, _CommandEnded):
            assert self._tell_ending is not None
            self._status = happening.status
            self._until = time.monotonic() + COMMAND_DRAIN_TIME
            self._tell_ending.close()
        elif isinstance(happening, _Drained):
            return self._drained(happening.number)
        elif self._status is None:
            raise self._error(happening)
        elif happening.number in self._to_drain:
            self._around.notify(
                "the command has ended, and what it sent last may not have arrived: "
                f"{getattr(self._error(happening), 'message', 'a session failed')}"
            )
            return self._drained(happening.number)
        return None

    def _drained(self, number: int) -> int | None:
        self._to_drain.discard(number)
        return None if self._to_drain else self._status

    def _come(self, index: int) -> None:
        self._to_come.discard(index)
        if self._to_come or self._command is None or self._child is not None:
            return
        ports = {
            f"SSM_PROXY_PORT_{forward.number}": str(forward.listener.port)
            for forward in self._forwards
            if forward.listener.socket_path is None
        }
        self._child = ChildCommand(self._command, ports, lambda status: self._happenings.put(_CommandEnded(status)))

    def _take_signal(self, number: int) -> int | None:
        if self._child is None or self._status is not None:
            return EXIT_SIGNAL_BASE + number
        # Ctrl-C is for the command: it may mean something else than its end, as in psql.
        self._child.signal(number)
        return None if number == signal.SIGINT else EXIT_SIGNAL_BASE + number

    def _error(self, ended: _Ended) -> Exception:
        """Say why a session that was to go on has ended."""
        if isinstance(ended.end, Exception):
            return ended.end
        forward = self._forwards[ended.number]
        reason = ended.end.closed_reason
        if (
            reason
            and ended.number not in self._has_received
            and time.monotonic() - self._began < FAILED_AT_START_WITHIN
        ):
            return cannot_be_forwarded(forward.destination, reason)
        return closed_by_service(forward.target, reason or "")

    # --- sessions ---------------------------------------------------------------------------------------------------

    def _make_session(self, forward: Forwarding) -> Session:
        from ssm_proxy.channel.data_channel import HANDSHAKE_TIMEOUT
        from ssm_proxy.sessions.port import check_forwarding_session
        from ssm_proxy.transport.acceptor import Forward
        from ssm_proxy.transport.application import LateApplication
        from ssm_proxy.transport.forwarding import make_forwarding

        put = self._happenings.put
        index = forward.number
        local = Forward(
            listener=forward.listener,
            destination=forward.destination,
            notify=self._around.notify,
            listening=lambda: put(_Listening(index)),
            ready=(lambda result: put(_Ready(index, result))) if self._probe else None,
            closed=lambda has_received: put(_Closed(index, has_received)),
            ending=self._ending,
            drained=lambda: put(_Drained(index)),
        )

        def make_application(channel: DataChannel) -> Application:
            return LateApplication(channel, lambda event: make_forwarding(channel, event, local))

        return make_session(
            self._around,
            make_request(forward.spec, forward.target, self._reason),
            make_application,
            check_session=check_forwarding_session,
            handshake_timeout=HANDSHAKE_TIMEOUT,
        )

    def _run_session(self, forward: Forwarding, session: Session) -> None:
        end: BridgeOutcome | Exception
        try:
            end = session.run()
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: the main one raises it again
            end = error
        logger.info("%s: end: %s", forward.spec.text, type(end).__name__ if isinstance(end, Exception) else end)
        self._happenings.put(_Ended(forward.number, end))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals put among what happens. Not ignored at any time: a command would inherit that."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self._happenings.put(_Signalled(number))

        before: dict[int, Handler] = {number: signal.signal(number, handle) for number in not_ignored(ENDING_SIGNALS)}
        try:
            yield
        finally:
            change_handlers(before)
