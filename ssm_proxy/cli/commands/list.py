"""``ssm-proxy list``: the managed nodes, for people, for programs and for Ansible."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssm_proxy.cli.session_command import (
    READER_GONE,
    Surroundings,
    add_aws_options,
    add_log_options,
    surroundings,
)
from ssm_proxy.cli.streams import check_output
from ssm_proxy.errors import SsmProxyError, UsageError

if TYPE_CHECKING:
    from ssm_proxy.aws.nodes import ManagedNode, TagFilter

_INVENTORY = "ansible-inventory"
_LONGEST_KEY = 128
_LONGEST_VALUE = 256


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="the managed nodes there are",
        description="examples:\n"
        "  ssm-proxy list\n"
        "  ssm-proxy list --tag team=web --tag env=prod --json\n"
        "  ssm-proxy list --all --region eu-west-1\n"
        "\nList the managed nodes of account and region that are online: id, name, state, platform, version of\n"
        "the agent, address, and how long ago the service heard of it. --all lists the others too.",
        epilog="Needs ssm:DescribeInstanceInformation and, for the tags, tag:GetResources, both on all resources.\n\n"
        "A dynamic inventory for Ansible is a file that is executable and has these two lines:\n"
        "  #!/bin/sh\n"
        f'  exec ssm-proxy list --format {_INVENTORY} "$@"\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--tag",
        dest="tags",
        metavar="KEY[=VALUE]",
        action="append",
        default=[],
        help="only nodes with this tag; repeatable: they must have all of them",
    )
    parser.add_argument(
        "--all", dest="all_states", action="store_true", help="nodes that are not online too: lost, inactive"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", _INVENTORY),
        default="table",
        help="default: table. json is an array of objects; ansible-inventory has groups by tag and platform",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument(
        "--list", dest="whole", action="store_true", help="as Ansible calls inventory scripts: all hosts, the default"
    )
    parser.add_argument("--host", metavar="ID", help="as Ansible calls inventory scripts: the variables of one host")
    add_aws_options(parser, opens_sessions=False)
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list; give the exit status.

    Raises:
        UsageError: options that do not go together, or a tag that cannot be one.
        SsmProxyError: the service did not answer as hoped, or the output cannot be written.
    """
    _check(arguments)
    check_output()
    with surroundings(arguments) as around:
        from ssm_proxy.aws.nodes import TagFilter

        # What a credential program prints does not belong into what other programs read.
        output_fd = os.dup(1)
        os.dup2(2, 1)
        text = _list(arguments, [TagFilter(*_parse_tag(each)) for each in arguments.tags], around, output_fd)
        return _write(output_fd, text.encode("utf-8", "replace"))


def _check(arguments: argparse.Namespace) -> None:
    for text in arguments.tags:
        key, value = _parse_tag(text)
        if not 1 <= len(key) <= _LONGEST_KEY or len(value or "") > _LONGEST_VALUE or not text.isprintable():
            raise UsageError(
                f"{text[:_LONGEST_KEY]!r} is not a tag", hint="write KEY=VALUE, or KEY for any value: --tag team=web"
            )
    is_inventory = arguments.format == _INVENTORY
    if (arguments.whole or arguments.host is not None) and not is_inventory:
        raise UsageError(
            "--list and --host are for Ansible, which wants its own format",
            hint=f"ssm-proxy list --format {_INVENTORY} --list",
        )
    if arguments.all_states and is_inventory:
        raise UsageError(
            "an inventory has the nodes that are online", hint="leave out --all, or use --json for those that are not"
        )


def _parse_tag(text: str) -> tuple[str, str | None]:
    key, separator, value = text.partition("=")
    return key, value if separator else None


def _list(arguments: argparse.Namespace, filters: Sequence[TagFilter], around: Surroundings, output_fd: int) -> str:
    from datetime import datetime, timezone

    from ssm_proxy.cli import node_formats

    found = around.control_plane.list_nodes(filters)
    nodes = [node for node in found.nodes if node.is_online or arguments.all_states]
    if found.tags_error is not None:
        error = found.tags_error
        around.notify(f"the list has no tags: {error.message}; {error.hint or error.cause}")
    if arguments.host is None:
        _explain(arguments, nodes, len(found.nodes) - len(nodes), around)
    if arguments.format == "json":
        return node_formats.as_json(nodes, with_tags=found.tags_error is None)
    if arguments.format == _INVENTORY:
        values = node_formats.inventory(nodes)
        if arguments.host is not None:
            values = values["_meta"]["hostvars"].get(arguments.host, {})
        return node_formats.dump(values)
    width = shutil.get_terminal_size().columns if os.isatty(output_fd) else None
    return node_formats.table(nodes, now=datetime.now(timezone.utc), width=width) if nodes else ""


def _explain(arguments: argparse.Namespace, nodes: Sequence[ManagedNode], hidden: int, around: Surroundings) -> None:
    """Say why the list may be shorter than expected."""
    if hidden and (not nodes or arguments.format == "table"):
        are = "is" if hidden == 1 else "are"
        around.notify(f"{hidden} more {are} not online: ssm-proxy list --all")
    if nodes or hidden:
        return
    place = around.control_plane.describe_place()
    wanted = f" with {' and '.join(arguments.tags)}" if arguments.tags else ""
    around.notify(
        f"no managed node{wanted} ({place}): is this the right region and account? Nodes appear when their SSM agent "
        "runs and may register (instance profile with AmazonSSMManagedInstanceCore)"
    )


def _write(output_fd: int, data: bytes) -> int:
    try:
        while data:
            data = data[os.write(output_fd, data) :]
    except BrokenPipeError:  # head has seen enough
        return READER_GONE
    except OSError as error:
        raise SsmProxyError("the list cannot be written", cause=error.strerror) from error
    return 0
