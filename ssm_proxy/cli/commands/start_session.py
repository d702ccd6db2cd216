"""``ssm-proxy start-session``: what ``aws ssm start-session`` is, with its options and its quoting."""

from __future__ import annotations

import argparse

from ssm_proxy.cli.session_command import add_aws_options, add_log_options, surroundings
from ssm_proxy.cli.streams import claim_streams


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "start-session",
        help="any session, with the options of `aws ssm start-session`",
        description="examples:\n"
        "  ssm-proxy start-session --target i-0123456789abcdef0\n"
        "  ssm-proxy start-session --target i-0123456789abcdef0 --document-name AWS-StartPortForwardingSession \\\n"
        "      --parameters portNumber=80,localPortNumber=8080\n"
        "\nStart a session of any kind, as the session document has it: a shell, a command, a forwarded port, SSH.\n"
        "The options mean what they mean to the AWS CLI. For people there are shell, exec and forward.",
        epilog="The exit status is that of the command if the document has it reported, else 0. Standard error\n"
        "tells where a forwarded port listens; standard output is for what comes from the node.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--target",
        metavar="TARGET",
        required=True,
        help="i-…, mi-…, ecs:CLUSTER_TASK_RUNTIME or any other node's id; ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]",
    )
    parser.add_argument(
        "--document-name",
        metavar="NAME",
        help="session document (default: the account's Session Manager preferences, a shell)",
    )
    parser.add_argument(
        "--parameters",
        metavar="PARAMETERS",
        help="of the document: JSON, name=value,name=value, or file://PATH",
    )
    parser.add_argument("--reason", metavar="TEXT", help="shown in the session's history")
    add_aws_options(parser)
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the session, and be what it asks for until it ends."""
    from ssm_proxy.cli.parameters import parse_parameters
    from ssm_proxy.connector import SessionRequest

    parameters = {} if arguments.parameters is None else parse_parameters(arguments.parameters)
    streams = claim_streams()
    with surroundings(arguments) as around:
        from ssm_proxy.cli.any_session import run_any_session

        target = around.control_plane.resolve_target(arguments.target, around.notify)
        return run_any_session(
            around, SessionRequest(target, arguments.document_name, parameters, arguments.reason), streams
        )
