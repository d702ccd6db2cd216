"""What all commands that hold a session have in common: options, log, signals, service, end."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ssm_proxy.cli import messages
from ssm_proxy.cli.streams import guard_streams
from ssm_proxy.cli.terminal import TerminalGuard
from ssm_proxy.errors import SsmProxyError, UsageError
from ssm_proxy.transport.signal_watch import Handler, change_handlers, not_ignored

if TYPE_CHECKING:
    from types import FrameType

    from ssm_proxy.aws.control_plane import BotocoreControlPlane, StartedSession
    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.channel.handshake import SessionCheck
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.session import Session
    from ssm_proxy.transport.application import Application
    from ssm_proxy.transport.bridge import BridgeOutcome

EXIT_SIGNAL_BASE = 128
READER_GONE = EXIT_SIGNAL_BASE + 13
"""As of a program that SIGPIPE ended: nobody reads the output any more."""
ENDING_SIGNALS = ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP")

logger = logging.getLogger("ssm_proxy.cli")


class Surroundings(NamedTuple):
    """What a command talks to beside its session."""

    stderr: messages.StderrWriter
    control_plane: BotocoreControlPlane
    notify: Callable[[str], None]
    """Shows a person one line."""


def add_aws_options(parser: argparse.ArgumentParser, *, opens_sessions: bool = True) -> None:
    """Add what chooses account, region and endpoints; all else is standard AWS configuration."""
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration (default: AWS_PROFILE)")
    parser.add_argument("--region", metavar="NAME", help="AWS region (default: AWS_REGION, or the profile's)")
    parser.add_argument("--endpoint-url", metavar="URL", help="address of the Systems Manager API")
    if not opens_sessions:
        parser.set_defaults(stream_endpoint_url=None)
        return
    parser.add_argument(
        "--stream-endpoint-url",
        metavar="URL",
        help="address of the message gateway (ssmmessages), where PrivateLink gives it another name: "
        "wss://vpce-….ssmmessages.eu-west-1.vpce.amazonaws.com",
    )


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the log."""
    parser.add_argument(
        "-v",
        dest="verbosity",
        action="count",
        default=0,
        help="log what happens to standard error; -vv every message and call, -vvv the beginning of payloads too",
    )
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        help="log to a file instead (for ssh with ControlPersist, which discards standard error)",
    )


@contextmanager
def surroundings(arguments: argparse.Namespace) -> Iterator[Surroundings]:
    """Set up log, standard error and the service from a command's options; leave the terminal as it was.

    Raises:
        UsageError: the log file cannot be written.
    """
    guard_streams()
    stderr = messages.StderrWriter()
    terminal = TerminalGuard()
    try:
        try:
            messages.set_up_logging(arguments.verbosity, arguments.log_file, stderr)
        except OSError as error:
            raise UsageError(f"the log file {arguments.log_file!r} cannot be written", cause=error.strerror) from error
        from ssm_proxy.aws.control_plane import BotocoreControlPlane

        def notify(text: str) -> None:
            stderr.write(f"ssm-proxy: {messages.printable(text)}")
            if arguments.log_file is not None:
                logger.info("%s", text)

        yield Surroundings(
            stderr=stderr,
            control_plane=BotocoreControlPlane(
                profile=arguments.profile,
                region=arguments.region,
                endpoint_url=arguments.endpoint_url,
                stream_endpoint_url=arguments.stream_endpoint_url,
                notify=notify,
            ),
            notify=notify,
        )
    except SsmProxyError as error:
        if arguments.log_file is not None:
            for line in messages.error_lines(error):
                logger.error("%s", line)
        raise
    finally:
        terminal.restore()
        stderr.flush()


def make_session(
    around: Surroundings,
    request: SessionRequest,
    make_application: Callable[[DataChannel], Application],
    *,
    check_session: SessionCheck,
    handshake_timeout: float | None = None,
    started: StartedSession | None = None,
) -> Session:
    """Make a session that ``run_session`` can run; nothing is connected yet."""
    from ssm_proxy.connector import SessionConnector
    from ssm_proxy.session import Session

    return Session(
        SessionConnector(around.control_plane, request, mark=lambda stage: None, session=started),
        make_application,
        check_session=check_session,
        notify=around.notify,
        mark=lambda stage: None,
        handshake_timeout=handshake_timeout,
    )


def run_session(session: Session, *, ending_signals: Sequence[str] = ENDING_SIGNALS) -> BridgeOutcome:
    """Run a session; one of the signals ends it, in order.

    Raises:
        SsmProxyError: as ``Session.run``.
    """
    with stopping_at(session.stop, ending_signals):
        outcome = session.run()
    logger.info("end: %s", outcome)
    return outcome


@contextmanager
def stopping_at(stop: Callable[[int], None], names: Sequence[str]) -> Iterator[Callable[[], bool]]:
    """Have ``stop`` called with the number of the first of these signals that comes, and no second one.

    After one has come the process is about to end, and they stay ignored: a second Ctrl-C must not change how.

    Yields:
        Whether one has come.
    """
    came = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if not came:  # one is enough: the end takes a moment, and has to be left alone
            came = True
            stop(number)

    before: dict[int, Handler] = {number: signal.signal(number, handle) for number in not_ignored(names)}
    try:
        yield lambda: came
    finally:
        change_handlers(dict.fromkeys(before, signal.SIG_IGN) if came else before)


def exit_status(outcome: BridgeOutcome) -> int:
    """Give the exit status of a session that ended without an error: 0, or 128 and the signal's number."""
    return 0 if outcome.signal_number is None else EXIT_SIGNAL_BASE + outcome.signal_number
