"""``ssm-proxy cp SRC… DST``: files to a managed node and back, over several sessions at once."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from ssm_proxy.cli.session_command import (
    ENDING_SIGNALS,
    EXIT_SIGNAL_BASE,
    READER_GONE,
    add_aws_options,
    add_log_options,
    stopping_at,
    surroundings,
)
from ssm_proxy.cli.streams import claim_streams
from ssm_proxy.errors import SsmProxyError, UsageError

if TYPE_CHECKING:
    from ssm_proxy.api.copying import Standing
    from ssm_proxy.api.ssh import Access
    from ssm_proxy.cli.session_command import Surroundings
    from ssm_proxy.file_copy.values import CopyOptions

_DESCRIPTION = """\
examples:
  ssm-proxy cp big.tar ec2-user@i-0123456789abcdef0:
  ssm-proxy cp -r ec2-user@i-0123456789abcdef0:/var/log/app .
  ssm-proxy cp 'ec2-user@i-0123456789abcdef0:*.csv' data/
  ssm-proxy cp --resume big.tar ec2-user@i-0123456789abcdef0:
  pg_dump mydb | ssm-proxy cp - ec2-user@i-0123456789abcdef0:mydb.sql

Copy files to a managed node, or from one, by SFTP through Session Manager. The agent lets one session
carry 1 MB/s towards here at most; several sessions at once do not share that limit, so large files
are cut into ranges and small ones are spread over up to 8 sessions.

SRC and DST are written as for scp: [USER@]TARGET:PATH for a file on a node, relative to the home
folder there; - is standard input or output. Patterns (*, ?, [...]) in a path on the node are for the
node: quote them; \\ before a character takes it as it is. User, keys, known hosts and so on come from
~/.ssh/config, and so do profile and region, if the host's ProxyCommand there is ssm-proxy proxy.
"""
_EPILOG = """\
Each file is written under another name in the same folder and renamed when it is complete: under its
own name there is the old file or the new one at any moment. What an interrupted copy leaves of a
large file is named .….ssm-part, and has its full size from the start; --resume compares it with the
source, block by block, and copies what is missing. A file that is there already under its own name is
left alone if all of it is equal, and copied as a whole otherwise. Symbolic links are followed; what is
neither file nor folder is left out, with a message.

A new host key is accepted and remembered, a changed one never, unless ssh_config says otherwise.

Exit status: 0; 11 if something was not copied; 2 wrong arguments, 3 AWS configuration, 4 the target,
5 the API refused, 6 network, 9 a session ended, 10 the port, 12 SSH: host key or login; 130 after Ctrl-C;
141 if nobody reads the standard output that a file is copied to.
"""

SAID_ONCE_WITHIN_S = 10.0
_NOTHING = "nothing was copied yet: the same command begins anew"


class _Stopped(BaseException):
    """A signal ends the copy."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int) -> NoReturn:
    """End the copy wherever it is; what is on its way is put in order then, which takes some seconds at most."""
    raise _Stopped(number)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "cp",
        help="copy files to a managed node or from one, over several sessions at once",
        usage="%(prog)s [options] SRC... DST",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sources", metavar="SRC", nargs="+", help="what to copy")
    parser.add_argument("destination", metavar="DST", help="where to; a folder for several sources")
    parser.add_argument("-r", dest="recursive", action="store_true", help="copy folders")
    parser.add_argument("-p", dest="preserve", action="store_true", help="keep permissions and times")
    parser.add_argument("-i", dest="keys", action="append", default=[], metavar="KEY", help="private key; repeatable")
    parser.add_argument(
        "-P", dest="port", type=int, metavar="PORT", help="port of sshd on the node (default: 22, or ssh_config's)"
    )
    parser.add_argument(
        "-F", dest="config", metavar="FILE", help="ssh_config to read instead of yours; -F none reads none"
    )
    parser.add_argument(
        "--sessions", type=int, metavar="N", help="use at most N sessions, 1 to 32 (default: by size, up to 8)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the parts that an interrupted copy left, and leave out files that are there and equal",
    )
    parser.add_argument(
        "--checksum",
        action=argparse.BooleanOptionalAction,
        help="compare SHA-256 before a file gets its name (default: of files above 1 MiB, unless --sessions 1)",
    )
    parser.add_argument("-q", dest="quiet", action="store_true", help="no progress bar: a line for each file")
    parser.add_argument(
        "--json", action="store_true", help="JSON on standard output: a line for each file and notice, then a summary"
    )
    add_aws_options(parser)
    parser.add_argument("--reason", metavar="TEXT", help="shown in the sessions' history")
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Copy."""
    if arguments.json and arguments.destination == "-":
        raise UsageError("--json and a copy to standard output exclude each other")
    # What is read or written there is the copy's alone: a credential program might read and print as well.
    is_used = arguments.json or "-" in (*arguments.sources, arguments.destination)
    streams = claim_streams() if is_used else (0, 1)
    try:
        # Around all of it: a signal may come while the rest of the program is imported, too.
        with surroundings(arguments) as around, stopping_at(_stop, ENDING_SIGNALS) as has_come:
            return _copy(arguments, around, streams, has_come)
    except _Stopped as stopped:
        return EXIT_SIGNAL_BASE + stopped.number


def _copy(
    arguments: argparse.Namespace, around: Surroundings, streams: tuple[int, int], is_ending: Callable[[], bool]
) -> int:
    from ssm_proxy.cli.copy_display import make_display
    from ssm_proxy.file_copy.values import NobodyReads

    quiet, as_json = arguments.quiet, arguments.json
    with make_display(
        around.stderr, as_json=as_json, is_quiet=quiet, output=streams[1], is_ending=is_ending
    ) as display:
        standing: Standing | None = None
        try:
            _import_paramiko()
            from ssm_proxy.api.copying import Standing, copy_with

            standing = Standing()
            sources, destination, show = arguments.sources, arguments.destination, display.show
            access, options = _access(arguments, _Notices(display.notify)), _options(arguments)
            result = copy_with(sources, destination, options, access, show, streams=streams, standing=standing)
            display.done(result)
        except NobodyReads:  # nothing has failed
            return READER_GONE
        except SsmProxyError as error:
            display.failed(error)
            raise
        except _Stopped as stopped:
            so_far, left = (None, _NOTHING) if standing is None else (standing.result(), standing.what_is_left())
            display.interrupted(signal.Signals(stopped.number).name, so_far, left)
            raise
    return 0


class _Notices:
    """Shows what many sessions tell at the same time once: that their connection was lost, for one.

    Args:
        notify: shows a line.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._told_at: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        with self._lock:
            now = time.monotonic()
            self._told_at = {each: at for each, at in self._told_at.items() if now - at < SAID_ONCE_WITHIN_S}
            if text in self._told_at:
                return
            self._told_at[text] = now
        self._notify(text)


def _import_paramiko() -> None:
    """Import it without invoke, which takes as long to load as all the rest of it: a tenth of a second.

    paramiko has it for its own ``Match exec`` alone; ours is in ``ssh.config_files``.
    """
    if "invoke" in sys.modules:
        return
    sys.modules["invoke"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        importlib.import_module("paramiko")
    except ImportError:  # of another version, that cannot do without
        pass
    finally:
        del sys.modules["invoke"]


def _options(arguments: argparse.Namespace) -> CopyOptions:
    from ssm_proxy.file_copy.values import CopyOptions

    return CopyOptions(
        recursive=arguments.recursive,
        preserve=arguments.preserve,
        resume=arguments.resume,
        checksum=arguments.checksum,
        sessions=arguments.sessions,
    )


def _access(arguments: argparse.Namespace, notify: Callable[[str], None]) -> Access:
    from ssm_proxy.api.ssh import Access
    from ssm_proxy.ssh.prompts import TerminalPrompter

    given = {
        "profile": arguments.profile,
        "region": arguments.region,
        "reason": arguments.reason,
        "endpoint-url": arguments.endpoint_url,
        "stream-endpoint-url": arguments.stream_endpoint_url,
    }
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UsageError(f"{arguments.port} is not a port", hint="use a number from 1 to 65535")
    return Access(
        options={name: value for name, value in given.items() if value is not None},
        port=arguments.port,
        key_filename=arguments.keys,
        config_file=arguments.config,
        prompter=TerminalPrompter(),
        notify=notify,
    )
