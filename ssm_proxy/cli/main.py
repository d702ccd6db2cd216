"""Entry point: parses arguments, runs one command, and is the one place where errors become exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssm_proxy import __version__
from ssm_proxy.cli import messages
from ssm_proxy.cli.commands import demo, emulator, proxy
from ssm_proxy.errors import SsmProxyError

EXIT_BUG = 1
EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ssm-proxy",
        description="SSH, scp, sftp, rsync, git and Ansible to machines that have no open port, through AWS Systems "
        "Manager Session Manager.",
        epilog="Put this into ~/.ssh/config and use ssh as ever:\n\n" + messages.SSH_CONFIG_LINES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (proxy, emulator, demo):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        The exit status.
    """
    arguments = make_parser().parse_args(argv)
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
