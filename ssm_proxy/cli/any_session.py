"""A session whose kind nobody knows before the agent tells it: what ``start-session`` and ``plugin`` run.

The document's name says nothing, because customers have documents of their own: the session type and the properties of
the handshake decide (docs/PROTOCOL.md sections 1.3, 8).
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

from ssm_proxy.cli.commands.shell import TerminalEnd, shell_status
from ssm_proxy.cli.session_command import (
    EXIT_SIGNAL_BASE,
    READER_GONE,
    Surroundings,
    exit_status,
    make_session,
    run_session,
)
from ssm_proxy.ends import cannot_be_forwarded, closed_by_service, output_missing
from ssm_proxy.errors import PortError
from ssm_proxy.sessions.command import MAX_STATUS
from ssm_proxy.sessions.port import LocalEnd, PortKind, local_end, port_kind
from ssm_proxy.transport.signal_watch import ignore_signals
from ssm_proxy.tunnel import check_end
from ssm_proxy.wire.constants import SessionType

if TYPE_CHECKING:
    from collections.abc import Callable

    from ssm_proxy.aws.control_plane import StartedSession
    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.channel.events import SessionStarted
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.transport.application import Application
    from ssm_proxy.transport.bridge import BridgeOutcome
    from ssm_proxy.transport.listener import Listener

_KNOWN_TYPES = (
    SessionType.PORT,
    SessionType.STANDARD_STREAM,
    SessionType.INTERACTIVE_COMMANDS,
    SessionType.NON_INTERACTIVE_COMMANDS,
)
_LOOPBACK = "127.0.0.1"
_TERMINAL_SIGNALS = ("SIGINT", "SIGQUIT", "SIGTSTP")


def run_any_session(
    around: Surroundings,
    request: SessionRequest,
    streams: tuple[int, int],
    started: StartedSession | None = None,
    status_of_interrupt: int = EXIT_SIGNAL_BASE + signal.SIGINT,
) -> int:
    """Start a session, or take one that was started, and be what its kind asks for until it ends.

    Args:
        around: what the command talks to.
        request: what to start; of a session that was started, its target.
        streams: descriptors for input and output, see ``claim_streams``.
        started: that session.
        status_of_interrupt: the exit status after Ctrl-C, where that is for us.

    Returns:
        The exit status: the remote one where there is one, else 0 or that of a signal.

    Raises:
        SsmProxyError: why it could not begin, or did not end as it should.
    """
    from ssm_proxy.transport.application import LateApplication

    with contextlib.ExitStack() as stack:
        choice = _Choice(around, request.target, streams, stack, status_of_interrupt)

        def make_application(channel: DataChannel) -> Application:
            return LateApplication(channel, lambda event: choice.choose(channel, event))

        session = make_session(around, request, make_application, check_session=_check_session, started=started)
        return choice.status(run_session(session))


def _check_session(session_type: str, _properties: Any) -> str | None:
    if session_type in _KNOWN_TYPES:
        return None
    return f"it is of type {session_type[:100]!r}, which this version does not know"


class _Choice:
    """Chooses the local side, and knows what the end of the session means for it.

    Args:
        around: what the command talks to.
        target: for texts.
        streams: for input and output.
        stack: closes what was opened.
        status_of_interrupt: the exit status after Ctrl-C.
    """

    def __init__(
        self,
        around: Surroundings,
        target: str,
        streams: tuple[int, int],
        stack: contextlib.ExitStack,
        status_of_interrupt: int,
    ) -> None:
        self._around = around
        self._target = target or "the node"
        self._stack = stack
        self._input_fd, self._output_fd = streams
        self._status_of_interrupt = status_of_interrupt
        self._status_of: Callable[[BridgeOutcome], int] = self._status_before_start

    def choose(self, channel: DataChannel, event: SessionStarted) -> Application:
        """Give the local side of a session that has begun.

        Raises:
            SsmProxyError: it cannot be had.
        """
        if event.session_type == SessionType.NON_INTERACTIVE_COMMANDS:
            return self._command(channel)
        if event.session_type != SessionType.PORT:
            return self._terminal(channel)
        if port_kind(event.properties, event.agent_version) is PortKind.STREAM:
            return self._stream(channel, event)
        return self._listener(channel, event)

    def status(self, outcome: BridgeOutcome) -> int:
        """Give the exit status.

        Raises:
            SsmProxyError: for an end that a person should hear of.
        """
        if outcome.signal_number == signal.SIGINT:
            return self._status_of_interrupt
        return self._status_of(outcome)

    # --- the kinds --------------------------------------------------------------------------------------------------

    def _terminal(self, channel: DataChannel) -> Application:
        from ssm_proxy.transport.console import Console
        from ssm_proxy.transport.terminal import TerminalShell

        console = Console(self._input_fd, self._output_fd)
        self._stack.callback(console.close)
        shell = TerminalShell(channel, console=console, notify=self._around.notify)
        self._status_of = lambda outcome: shell_status(TerminalEnd(outcome, shell), self._target)
        return shell

    def _command(self, channel: DataChannel) -> Application:
        from ssm_proxy.transport.command_output import CommandOutput
        from ssm_proxy.transport.endpoints import OutputEnd
        from ssm_proxy.transport.signal_watch import SignalWatch

        interrupts = SignalWatch(("SIGINT",))
        self._stack.callback(interrupts.close)
        command = CommandOutput(
            channel, marker=None, output=OutputEnd(self._output_fd), error_output=OutputEnd(2), interrupts=interrupts
        )

        def status(outcome: BridgeOutcome) -> int:
            if outcome.signal_number is not None:
                return exit_status(outcome)
            if outcome.output_is_missing and (command.code is not None or not command.interrupt_count):
                raise output_missing(self._target, outcome.closed_reason or "")
            if command.code is not None:
                return command.code if 0 <= command.code <= MAX_STATUS else 1  # Windows has statuses of 32 bits
            if command.interrupt_count:
                return self._status_of_interrupt
            if command.reader_is_gone:
                return READER_GONE
            if outcome.closed_reason:
                raise closed_by_service(self._target, outcome.closed_reason)
            return 0

        self._status_of = status
        return command

    def _stream(self, channel: DataChannel, event: SessionStarted) -> Application:
        from ssm_proxy.transport.endpoints import InputEnd, OutputEnd
        from ssm_proxy.transport.pipes import Pipes

        # ssh's, if it started us: Ctrl-C is for the program at the other end then.
        ignore_signals(_TERMINAL_SIGNALS)
        port = _property(event, "portNumber")
        pipes = Pipes(
            channel,
            source=InputEnd(self._input_fd),
            sink=OutputEnd(self._output_fd),
            notify=self._around.notify,
            mark=lambda stage: None,
        )

        def status(outcome: BridgeOutcome) -> int:
            check_end(outcome, pipes, target=self._target, port=port)
            return exit_status(outcome)

        self._status_of = status
        return pipes

    def _listener(self, channel: DataChannel, event: SessionStarted) -> Application:
        from ssm_proxy.transport.acceptor import Forward
        from ssm_proxy.transport.forwarding import make_forwarding

        listener = _bind(local_end(event.properties))
        self._stack.callback(listener.close)
        port, host = _property(event, "portNumber"), _property(event, "host")
        destination = f"{host}:{port} through {self._target}" if host else f"port {port} of {self._target}"
        received: list[bool] = []  # whether anything ever came from the destination's side
        self._status_of = lambda outcome: self._listener_status(outcome, destination, has_received=any(received))
        return make_forwarding(
            channel,
            event,
            Forward(
                listener=listener,
                destination=destination,
                notify=self._around.notify,
                listening=lambda: self._tell_listening(listener, destination),
                closed=received.append,
            ),
        )

    def _tell_listening(self, listener: Listener, destination: str) -> None:
        # In words that programs wait for which start the official one, though it says them on standard output.
        name = f"Port {listener.port}" if listener.socket_path is None else f"Unix socket {listener.socket_path}"
        self._around.notify(f"{name} opened: {listener.name} -> {destination}. Waiting for connections...")

    def _listener_status(self, outcome: BridgeOutcome, destination: str, *, has_received: bool) -> int:
        if outcome.signal_number is not None:
            return exit_status(outcome)
        reason = outcome.closed_reason or ""
        if reason and not has_received:
            raise cannot_be_forwarded(destination, reason)
        raise closed_by_service(self._target, reason)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _status_before_start(self, outcome: BridgeOutcome) -> int:
        if outcome.signal_number is None and outcome.closed_reason:
            raise closed_by_service(self._target, outcome.closed_reason, has_begun=False)
        if outcome.output_is_missing:
            raise output_missing(self._target)
        # Without a reason it is a normal end: a command that had nothing to say, for one (9.1).
        return exit_status(outcome)


def _bind(end: LocalEnd) -> Listener:
    from ssm_proxy.transport.listener import bind_port, bind_unix_socket

    try:
        if end.socket_path is not None:
            return bind_unix_socket(end.socket_path)
        return bind_port(_LOOPBACK, end.port)
    except PortError as error:
        # Whoever wrote the command wrote a parameter, not an option.
        if error.hint is not None and end.socket_path is None:
            error.hint = "choose another localPortNumber; without one, any free port is taken"
        raise


def _property(event: SessionStarted, name: str) -> str:
    value = event.properties.get(name) if isinstance(event.properties, dict) else None
    return str(value or "")
