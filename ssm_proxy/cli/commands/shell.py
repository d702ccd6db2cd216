"""``ssm-proxy shell TARGET``: an interactive shell on a managed node."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, NamedTuple

from ssm_proxy.cli.session_command import (
    EXIT_SIGNAL_BASE,
    READER_GONE,
    Surroundings,
    add_aws_options,
    add_log_options,
    exit_status,
    make_session,
    run_session,
    surroundings,
)
from ssm_proxy.cli.streams import claim_streams
from ssm_proxy.ends import closed_by_service, output_missing
from ssm_proxy.errors import SessionEnded

if TYPE_CHECKING:
    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.sessions.command import OutputSorter
    from ssm_proxy.transport.application import Application
    from ssm_proxy.transport.bridge import BridgeOutcome
    from ssm_proxy.transport.terminal import TerminalShell

_EPILOG = """\
All keys go to the node, Ctrl-C and Ctrl-Z too. At the start of a line:
  ~.   end the session here and now, also one whose node does not answer any more
  ~~   send one ~
  ~?   list these

Standard input may be a pipe or a file: the shell gets what is in it as if it were typed, shows it again in
its output, and ends when it ends. As for every terminal, a line has at most 4,095 bytes, a control character
has its meaning, and a program that is started reads what follows in the input. For scripts use exec.

The exit status is 0 when the shell ended, whatever its own status was: the service does not tell it. It is
9 if the service ended the session, or ~. did, or if some of the output is known to be missing.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "shell",
        help="an interactive shell on a managed node",
        description="examples:\n"
        "  ssm-proxy shell i-0123456789abcdef0\n"
        "  ssm-proxy shell --region eu-west-1 --reason 'ticket 4711' i-0123456789abcdef0\n"
        "\nOpen a shell on a managed node, through Session Manager.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="i-…, mi-…, or ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]")
    add_aws_options(parser)
    parser.add_argument("--reason", metavar="TEXT", help="shown in the session's history")
    parser.add_argument(
        "--document-name", metavar="NAME", help="session document (default: the account's Session Manager preferences)"
    )
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Be the terminal of a shell on the node until one of both ends it."""
    from ssm_proxy.connector import SessionRequest

    streams = claim_streams()
    with surroundings(arguments) as around:
        target = around.control_plane.resolve_target(arguments.target, around.notify)
        request = SessionRequest(target, arguments.document_name, {}, arguments.reason)
        return shell_status(run_on_terminal(around, request, streams), arguments.target)


class TerminalEnd(NamedTuple):
    """How a session with a terminal came to its end."""

    outcome: BridgeOutcome
    shell: TerminalShell

    @property
    def local_status(self) -> int | None:
        """The exit status, if the session was ended from here."""
        if self.outcome.signal_number is not None:
            return exit_status(self.outcome)
        if self.shell.was_interrupted:
            return EXIT_SIGNAL_BASE + signal.SIGINT
        if self.shell.was_left:
            return SessionEnded.exit_status
        return READER_GONE if self.shell.reader_is_gone else None


def run_on_terminal(
    around: Surroundings, request: SessionRequest, streams: tuple[int, int], sorter: OutputSorter | None = None
) -> TerminalEnd:
    """Run a session between the user's terminal, or pipes, and one on the node.

    Args:
        around: what the command talks to.
        request: what to start.
        streams: descriptors for input and output, see ``claim_streams``.
        sorter: takes the frames of a command out of the output; None for a shell.

    Raises:
        SsmProxyError: why it could not begin, or could not go on.
    """
    from ssm_proxy.sessions.standard_stream import check_shell_session
    from ssm_proxy.transport.console import Console
    from ssm_proxy.transport.terminal import TerminalShell

    console = Console(*streams)
    shells: list[TerminalShell] = []

    def make_application(channel: DataChannel) -> Application:
        shells.append(TerminalShell(channel, console=console, notify=around.notify, sorter=sorter))
        return shells[0]

    try:
        session = make_session(around, request, make_application, check_session=check_shell_session)
        outcome = run_session(session)
    finally:
        console.close()
    return TerminalEnd(outcome, shells[0])


def shell_status(end: TerminalEnd, target: str) -> int:
    """Give the exit status of a shell session.

    Raises:
        SsmProxyError: the service ended it, and said why; or some of its output is missing.
    """
    if end.local_status is not None:
        return end.local_status
    if end.outcome.closed_reason:
        raise closed_by_service(target, end.outcome.closed_reason, has_begun=end.shell.has_started)
    if end.outcome.output_is_missing:
        raise output_missing(target)
    return 0
