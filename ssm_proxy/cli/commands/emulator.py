"""``ssm-proxy emulator``: Session Manager and managed nodes on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shlex
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ssm_proxy.errors import ConfigurationError, UsageError
from ssm_proxy.transport.signal_watch import Handler, change_handlers

if TYPE_CHECKING:
    from ssm_proxy.emulator import Emulator

_DESCRIPTION: Final = """\
examples:
  ssm-proxy emulator --port 8022
  ssm-proxy emulator --node i-0123456789abcdef0=127.0.0.1:2222 --tls
  ssm-proxy emulator --documents my-session-documents --agent-version 3.0.655.0
  ssm-proxy emulator --fault drop_after_bytes=5000000 --fault drop_manner=close-1000

Play the Session Manager service, its agents and their managed nodes on this machine, for tests and
for trying things out. It listens on loopback until Ctrl-C; what it prints first are the variables of
the environment by which clients find it.

Shells and commands run as the current user. So does the SSH server that is port 22 of a node, unless
--node gives another address; other ports of a node are those of 127.0.0.1."""

_EPILOG: Final = """\
while it runs, with the address that it printed:
  curl -d '{"delay_ms": 50}' http://127.0.0.1:8022/_emulator/faults
  curl -d '{"side": "client", "manner": "reset"}' http://127.0.0.1:8022/_emulator/drop
  curl -d '{"node_id": "i-0123456789abcdef0", "is_online": false}' http://127.0.0.1:8022/_emulator/nodes
  curl http://127.0.0.1:8022/_emulator/statistics
"""


def add_parser(subparsers: Any) -> None:
    """Add the sub-command ``emulator`` to an argparse tree."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "emulator",
        add_help=False,
        help="play service and managed nodes on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help message, with all faults, and exit")
    parser.add_argument("--host", default=None, help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="ID[=HOST:PORT]",
        help="a managed node and what its port 22 is; ID=offline is one that is not connected; "
        "ecs:CLUSTER_TASK_RUNTIME=SERVICE/CONTAINER is a container of ECS; repeatable "
        "(default: i-0123456789abcdef0 and mi-0123456789abcdef0 with the embedded SSH server)",
    )
    parser.add_argument(
        "--node-tag",
        action="append",
        default=[],
        metavar="ID:KEY=VALUE",
        help="a tag of a managed node; repeatable",
    )
    parser.add_argument(
        "--remote-host",
        action="append",
        default=[],
        metavar="NAME=ADDRESS[:PORT]",
        help="what a name of a remote host stands for on all nodes, and perhaps the port to dial instead; repeatable "
        "(default: names are looked up on this machine)",
    )
    parser.add_argument(
        "--credentials", metavar="KEY:SECRET[:TOKEN]", help="what signatures are checked against (default: emulator)"
    )
    parser.add_argument(
        "--require-signed-open", action="store_true", help="refuse WebSocket openings without a signature (HTTP 403)"
    )
    parser.add_argument("--tls", action="store_true", help="https and wss, with a throwaway certificate authority")
    parser.add_argument(
        "--authorized-keys",
        type=Path,
        metavar="FILE",
        help="public keys that the embedded SSH server lets in (default: a key pair made for this run)",
    )
    parser.add_argument(
        "--agent-pacing",
        default="real",
        metavar="real|none|TIME",
        help="pause of the agent after each message of at most 1024 bytes: real is 1ms (default), none, or such as 8ms",
    )
    parser.add_argument(
        "--agent-version",
        metavar="VERSION",
        help="what the agents say they are, and behave like, such as 2.3.700.0 (default: 3.3.987.0)",
    )
    parser.add_argument(
        "--documents",
        action="append",
        default=[],
        type=Path,
        metavar="FILE|FOLDER",
        help="session documents of the account, as JSON in files named NAME.json; repeatable",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="something that goes wrong, from the list below; repeatable",
    )
    parser.add_argument("--seed", type=int, default=0, help="makes accidents repeat (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON at the start instead of text")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log the conversation; -vv each message")
    parser.set_defaults(run=run)


class _Help(argparse.Action):
    """Show the help with the faults, which only the emulator itself knows and which is imported for that alone."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            from ssm_proxy.emulator.faults import describe_faults
        except ModuleNotFoundError as error:
            parser.exit(0, f"{parser.format_help()}\n{_not_installed(error).hint}\n")
        parser.epilog = f"faults and their defaults:\n{describe_faults()}\n\n{parser.epilog}"
        parser.print_help()
        parser.exit()


def _not_installed(error: ModuleNotFoundError) -> ConfigurationError:
    return ConfigurationError(
        "the emulator is not installed", cause=str(error), hint="in the project's checkout: pip install '.[emulator]'"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM; give the exit status.

    Raises:
        UsageError: an option does not fit.
        ConfigurationError: the extra is not installed, or the address is not free.
    """
    try:
        from ssm_proxy import emulator
        from ssm_proxy.emulator.document_files import load_documents
        from ssm_proxy.emulator.faults import parse_faults
        from ssm_proxy.emulator.options import (
            DEFAULT_NODES,
            parse_agent_version,
            parse_credentials,
            parse_node,
            parse_node_tag,
            parse_pacing,
            parse_remote_host,
        )
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    if not 0 <= arguments.port < 65536:
        raise UsageError(f"{arguments.port} is no port")
    changes: dict[str, Any] = {}
    if arguments.credentials is not None:
        changes["credentials"] = parse_credentials(arguments.credentials)
    if arguments.agent_version is not None:
        changes["agent_version"] = parse_agent_version(arguments.agent_version)
    nodes = tuple(parse_node(text) for text in arguments.node) or DEFAULT_NODES
    tags: dict[str, dict[str, str]] = {node.node_id: {} for node in nodes}
    for text in arguments.node_tag:
        node_id, key, value = parse_node_tag(text)
        if node_id not in tags:
            raise UsageError(f"there is no node '{node_id}' to have the tag '{key}'", hint=f"nodes: {', '.join(tags)}")
        tags[node_id][key] = value
    hosts = dict(parse_remote_host(text) for text in arguments.remote_host)
    options = emulator.EmulatorOptions(
        host=arguments.host or "127.0.0.1",
        port=arguments.port,
        nodes=tuple(dataclasses.replace(node, hosts=hosts, tags=tags[node.node_id]) for node in nodes),
        require_signed_open=arguments.require_signed_open,
        tls=arguments.tls,
        authorized_keys=arguments.authorized_keys,
        agent_pace_s=parse_pacing(arguments.agent_pacing),
        faults=parse_faults(arguments.fault),
        seed=arguments.seed,
        documents=load_documents(arguments.documents),
        **changes,
    )
    _start_logging(arguments.verbose)
    stop = threading.Event()
    handlers: dict[int, Handler] = {
        each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with emulator.Emulator(options) as running:
            _announce(running, [node.node_id for node in options.nodes if node.is_online], arguments.json)
            while not stop.wait(0.5):  # a signal that comes just as a wait begins is handled when that wait is over
                pass
    finally:
        change_handlers(handlers)
    return 0


def _start_logging(verbosity: int) -> None:
    if not verbosity:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("ssm_proxy.emulator")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)


def _announce(running: Emulator, nodes: list[str], as_json: bool) -> None:
    environment = running.environment()
    arguments = ["ssh", "-o", "ProxyCommand=ssm-proxy proxy %h %p", "-o", f"UserKnownHostsFile={running.known_hosts}"]
    if running.identity_file is not None:
        arguments += ["-o", "IdentitiesOnly=yes", "-i", str(running.identity_file)]
    example = shlex.join([*arguments, nodes[0]]) if nodes else ""
    if as_json:
        values = {
            "environment": environment,
            "endpoint_url": running.endpoint_url,
            "nodes": nodes,
            "identity_file": str(running.identity_file) if running.identity_file is not None else None,
            "known_hosts": str(running.known_hosts),
            "example": example,
        }
        print(json.dumps(values), flush=True)
        return
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()))
    print(f"# managed nodes: {', '.join(nodes) or 'none'}")
    print(f"# for example:\n#   {example}\n# Ctrl-C ends it", flush=True)
