"""``ssm-proxy forward TARGET SPEC… [-- COMMAND…]``: local ports that lead to a managed node, or through it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssm_proxy.cli.child_command import check_command
from ssm_proxy.cli.forward_specs import ForwardSpec, check_listeners, parse_forward_spec
from ssm_proxy.cli.forward_supervisor import Forwarding, ForwardSupervisor
from ssm_proxy.cli.session_command import add_aws_options, add_log_options, surroundings
from ssm_proxy.errors import UsageError

if TYPE_CHECKING:
    from ssm_proxy.transport.listener import Listener

WANTED_DESCRIPTORS = 4096
"""Some systems give a process 256, which a browser uses up."""

_DESCRIPTION = """\
examples:
  ssm-proxy forward i-0123456789abcdef0 8080:80
  ssm-proxy forward i-0123456789abcdef0 5432:db.internal:5432 6379:cache.internal:6379
  ssm-proxy forward i-0123456789abcdef0 0:db.internal:5432 -- psql -h 127.0.0.1 -p {port}

Listen on local ports or Unix sockets and carry each connection to a port of a managed node, or of a
host that the node reaches, through Session Manager.

SPEC is written as for ssh -L; without a host the node itself is meant:
  PORT:HOSTPORT        8080:80                a port of the node
  PORT:HOST:HOSTPORT   5432:db.internal:5432  a port of a host that the node reaches
  BIND:PORT:…          0.0.0.0:8080:80        listen there instead of on 127.0.0.1; * is everywhere
  SOCKET:…             /tmp/db.sock:db.internal:5432  a Unix socket; its path has a slash in it
PORT 0 takes any free one. IPv6 addresses stand in brackets: [::1]:8080:80.
"""
_EPILOG = """\
One session is started for each SPEC. If one of them cannot be started, or ends, all end, with
that error. A connection that the destination refuses is reset and reported; the forwarding goes
on. While the network is away, connections wait. Ctrl-C ends with status 130.

--ready-json opens one connection to each destination as a probe, sends nothing, and closes it
again; servers may log that. It shows that the destination answered, or that the agent did not
report a refusal within a second; a destination that swallows packets looks the same. A refused
probe ends the command with status 10. Agents up to 3.0.196 report a refusal after a minute only:
there "probe" is "unknown" unless the destination has answered.

COMMAND runs while the forwardings live: {port} in it is the port of the first listener, and the
variables SSM_PROXY_PORT_0, SSM_PROXY_PORT_1, … hold those of all. It starts when all listen, with
--ready-json when all are ready. ssm-proxy ends with its status. If a forwarding ends first,
COMMAND is ended, and the status is that of the error. What COMMAND sent before it ended gets 5 s to
arrive. While it runs, Ctrl-C is for COMMAND alone; so is, in the foreground of a terminal, SIGINT
from elsewhere, which ssm-proxy does not pass on: use SIGTERM.

There is no half-close: when a program sends no more, its connection lives until the destination
closes it, or has been silent for 10 s; then it is reset, as the answer may not be whole. Connections
of Unix sockets cannot be reset: one that is cut off or refused looks as if it had ended.

With agents up to 3.0.196 connections are carried one at a time; others wait.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "forward",
        help="local ports that lead to a managed node, or through it to other hosts",
        usage="%(prog)s [options] TARGET SPEC... [-- COMMAND...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help="i-…, mi-…, or ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]")
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="where to listen, and where that leads: see above")
    parser.add_argument(
        "--ready-json",
        action="store_true",
        help="print a line of JSON on standard output for each listener when a probe has shown that it carries traffic",
    )
    add_aws_options(parser)
    parser.add_argument("--reason", metavar="TEXT", help="shown in the session's history")
    add_log_options(parser)
    parser.set_defaults(run=run, child_command=None)
    _split_at_dashes(parser)


def _split_at_dashes(parser: argparse.ArgumentParser) -> None:
    """Have the parser leave alone what stands behind ``--``: by itself it would take it for more SPECs."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        arguments = list(args or ())
        command = None
        if "--" in arguments:
            position = arguments.index("--")
            arguments, command = arguments[:position], arguments[position + 1 :]
        parsed, unknown = parse(arguments, namespace)
        parsed.child_command = command
        return parsed, unknown

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def run(arguments: argparse.Namespace) -> int:
    """Forward until a signal, the command or an error ends it."""
    specs = [parse_forward_spec(text) for text in arguments.specs]
    check_listeners(specs)
    if arguments.child_command is not None:
        check_command(arguments.child_command)
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(surroundings(arguments))
        _raise_descriptor_limit()
        listeners = [stack.enter_context(contextlib.closing(_bind(spec))) for spec in specs]
        command = _with_port(arguments.child_command, listeners)
        target = around.control_plane.resolve_target(arguments.target, around.notify)
        forwards = [
            Forwarding(index, spec, listener, target)
            for index, (spec, listener) in enumerate(zip(specs, listeners, strict=True))
        ]
        is_told = os.isatty(2) or not (arguments.ready_json or command)
        return ForwardSupervisor(
            around, forwards, command=command, reason=arguments.reason, probe=arguments.ready_json, tell=is_told
        ).run()


def _bind(spec: ForwardSpec) -> Listener:
    from ssm_proxy.transport.listener import bind_port, bind_unix_socket

    return bind_port(spec.bind, spec.port) if spec.socket_path is None else bind_unix_socket(spec.socket_path)


def _with_port(command: Sequence[str] | None, listeners: Sequence[Listener]) -> list[str] | None:
    """Put the first listener's port in place of ``{port}``."""
    if command is None:
        return None
    ports = [listener.port for listener in listeners if listener.socket_path is None]
    if not ports and any("{port}" in word for word in command):
        raise UsageError("{port} stands in the command, but nothing listens on a port")
    return [word.replace("{port}", str(ports[0])) if ports else word for word in command]


def _raise_descriptor_limit() -> None:
    """Let this process hold as many connections as it may be asked to carry at once."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
