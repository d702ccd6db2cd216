"""Entry point: parses arguments, runs one command, and is the one place where errors become exit statuses."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ssm_proxy import __version__
from ssm_proxy.cli import messages
from ssm_proxy.errors import SsmProxyError

EXIT_BUG = 1
EXIT_INTERRUPTED = 130
COMMANDS = {
    "proxy": "proxy",
    "cp": "cp",
    "start-session": "start_session",
    "shell": "shell",
    "exec": "exec",
    "forward": "forward",
    "list": "list",
    "plugin": "plugin",
    "emulator": "emulator",
    "demo": "demo",
}
"""Name -> module in ``cli/commands``, in the order of ``--help``. Only the one in use is loaded: ssh waits for it."""
PLUGIN_PROGRAM = "session-manager-plugin"
"""Under this name, as a link or a copy, the program is ``ssm-proxy plugin``."""


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the parser.

    Args:
        only: the one command to know; None for all.
    """
    parser = argparse.ArgumentParser(
        prog="ssm-proxy",
        description="SSH, scp, sftp, rsync, git and Ansible to machines that have no open port, through AWS Systems\n"
        "Manager Session Manager; and its shells, commands and forwarded ports.",
        epilog="Put this into ~/.ssh/config and use ssh as ever:\n\n" + messages.SSH_CONFIG_LINES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in [COMMANDS[only]] if only else COMMANDS.values():
        importlib.import_module(f"ssm_proxy.cli.commands.{module}").add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    if argv is None:
        argv = sys.argv[1:]
        if os.path.basename(sys.argv[0]).removesuffix(".exe") == PLUGIN_PROGRAM:
            argv = ["plugin", *argv]
    arguments = make_parser(argv[0] if argv and argv[0] in COMMANDS else None).parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except SsmProxyError as error:
        messages.report(error)
        return error.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary of the process: a bug gets a line too, not a traceback
        messages.report_bug(error)
        return EXIT_BUG
    return status


if __name__ == "__main__":
    sys.exit(main())
