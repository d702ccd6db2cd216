"""``ssm-proxy exec TARGET [--] COMMAND…``: one command on a managed node."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ssm_proxy.cli import messages
from ssm_proxy.cli.commands.shell import run_on_terminal
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
from ssm_proxy.ends import command_status
from ssm_proxy.errors import SsmProxyError, UsageError

if TYPE_CHECKING:
    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.transport.application import Application

EXIT_FAILURE = 255
_INTERRUPTED = EXIT_SIGNAL_BASE + signal.SIGINT

_EPILOG = """\
COMMAND and its arguments arrive exactly as they were given here; no shell on the node looks at them. For
pipes, variables and lists of commands run one: exec TARGET -- sh -c '…'. The node needs a POSIX shell.

The exit status is the command's, 128 and the signal's number if a signal ended it, and 255 if ssm-proxy
failed. The first Ctrl-C is for the command (where the node has no bash it gets SIGTERM instead of SIGINT),
the second one ends the session. When the session ends, for whatever reason, so does the command.

Without -t:
  Standard input is not read, and the command's is empty: the protocol has none.
  With AWS's own document the agent sends all output after the command has ended; standard output comes
  first, then standard error, and what came between what is lost. With a document whose separateOutputStream
  is true it comes while the command runs. Where a node has no writable /tmp, both come as standard output.
  An agent spoils one character, U+FFFD, so do not carry binary files this way: scp does that.
With -t the command has a terminal: both streams are one, and what is typed, or piped in, is its input, as
for the command shell.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "exec",
        help="run one command on a managed node, with its output and its exit status",
        usage="%(prog)s [options] TARGET [--] COMMAND [ARGUMENT...]",
        description="examples:\n"
        "  ssm-proxy exec i-0123456789abcdef0 -- systemctl is-active nginx\n"
        "  ssm-proxy exec -t i-0123456789abcdef0 -- top\n"
        "\nRun one command on a managed node, through Session Manager.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="i-…, mi-…, or ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]")
    parser.add_argument("-t", dest="on_terminal", action="store_true", help="give the command a terminal")
    add_aws_options(parser)
    parser.add_argument("--reason", metavar="TEXT", help="shown in the session's history")
    parser.add_argument(
        "--document-name",
        metavar="NAME",
        help="session document with a parameter 'command' (default: AWS-StartNonInteractiveCommand, with -t "
        "AWS-StartInteractiveCommand)",
    )
    add_log_options(parser)
    parser.set_defaults(run=run, words=[])
    _leave_command_alone(parser)


def _leave_command_alone(parser: argparse.ArgumentParser) -> None:
    """Have the parser see nothing of COMMAND: what follows TARGET, its options, and one ``--``. Its errors are 255."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        options, words = split_arguments(list(args or ()), _with_value(parser))
        parsed, unknown = parse(options, namespace)
        if unknown:
            error(f"unrecognized arguments: {' '.join(unknown)}")
        parsed.words = words
        return parsed, []

    def error(message: str) -> NoReturn:
        parser.print_usage(sys.stderr)
        parser.exit(EXIT_FAILURE, f"{parser.prog}: error: {message}\n")

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
    parser.error = error  # type: ignore[method-assign]


def _with_value(parser: argparse.ArgumentParser) -> frozenset[str]:
    return frozenset(name for action in parser._actions if action.nargs is None for name in action.option_strings)


def split_arguments(arguments: Sequence[str], with_value: frozenset[str]) -> tuple[list[str], list[str]]:
    """Cut the arguments in front of the command.

    Args:
        arguments: of ``exec``.
        with_value: options that take the argument behind them.

    Returns:
        What is for the parser, and the words of the command.
    """
    has_target = False
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word == "--":
            return list(arguments[:position]), list(arguments[position + 1 :])
        if not word.startswith("-") or word == "-":
            if has_target:
                break
            has_target = True
        position += 2 if word in with_value else 1
    return list(arguments[:position]), list(arguments[position:])


def run(arguments: argparse.Namespace) -> int:
    """Run the command; give its exit status, or 255."""
    try:
        return _run(arguments)
    except SsmProxyError as error:
        messages.report(error)
    except Exception as error:  # noqa: BLE001 - as in main(), but every status below 255 is the command's
        messages.report_bug(error)
    return EXIT_FAILURE


def _run(arguments: argparse.Namespace) -> int:
    from ssm_proxy.connector import SessionRequest
    from ssm_proxy.sessions import command

    if not arguments.words:
        raise UsageError("a command is missing", hint=f"for a shell: ssm-proxy shell {arguments.target}")
    marker = secrets.token_hex(command.MARKER_BYTES)
    on_terminal = arguments.on_terminal
    if on_terminal:
        from ssm_proxy.transport.console import terminal_size

        text = command.terminal_command_text(arguments.words, marker, terminal_size())
        default_document = command.INTERACTIVE_DOCUMENT
    else:
        text = command.command_text(arguments.words, marker)
        default_document = command.NONINTERACTIVE_DOCUMENT
    document = arguments.document_name or default_document
    streams = claim_streams()
    with surroundings(arguments) as around:
        target = around.control_plane.resolve_target(arguments.target, around.notify)
        request = SessionRequest(target, document, {"command": [text]}, arguments.reason)
        return (_run_on_terminal if on_terminal else _run_without)(around, request, streams, marker)


def _run_on_terminal(around: Surroundings, request: SessionRequest, streams: tuple[int, int], marker: str) -> int:
    from ssm_proxy.sessions.command import OutputSorter

    sorter = OutputSorter(marker)
    end = run_on_terminal(around, request, streams, sorter)
    if sorter.status is None and end.local_status is not None:
        return EXIT_FAILURE if end.shell.was_left else end.local_status
    return command_status(
        request.target,
        status=sorter.status,
        code=end.shell.code,
        closed_reason=end.outcome.closed_reason,
        output_is_missing=end.outcome.output_is_missing,
    )


def _run_without(around: Surroundings, request: SessionRequest, streams: tuple[int, int], marker: str) -> int:
    from ssm_proxy.channel.data_channel import HANDSHAKE_TIMEOUT
    from ssm_proxy.sessions.command import check_command_session
    from ssm_proxy.transport.command_output import CommandOutput
    from ssm_proxy.transport.endpoints import OutputEnd
    from ssm_proxy.transport.signal_watch import SignalWatch

    commands: list[CommandOutput] = []
    with contextlib.closing(SignalWatch(("SIGINT",))) as interrupts:

        def make_application(channel: DataChannel) -> Application:
            commands.append(
                CommandOutput(
                    channel,
                    marker=marker,
                    output=OutputEnd(streams[1]),
                    error_output=OutputEnd(2),
                    interrupts=interrupts,
                )
            )
            return commands[0]

        session = make_session(
            around,
            request,
            make_application,
            check_session=check_command_session,
            handshake_timeout=HANDSHAKE_TIMEOUT,  # there always is one (8.4)
        )
        outcome = run_session(session, ending_signals=("SIGQUIT", "SIGTERM", "SIGHUP"))
    command = commands[0]
    if command.status is None:
        if outcome.signal_number is not None:
            return exit_status(outcome)
        if command.interrupt_count:
            return _INTERRUPTED
        if command.reader_is_gone:
            return READER_GONE
    return command_status(
        request.target,
        status=command.status,
        code=command.code,
        closed_reason=outcome.closed_reason,
        output_is_missing=outcome.output_is_missing,
    )
