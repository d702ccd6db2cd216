"""``ssm-proxy plugin``: stands in for session-manager-plugin, the program that the AWS CLI gives its sessions to.

Source: docs/PROTOCOL.md section 1.5; the AWS CLI's awscli/customizations/sessionmanager.py and ecs/executecommand.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ssm_proxy.cli.main import PLUGIN_PROGRAM as PROGRAM
from ssm_proxy.cli.session_command import ENDING_SIGNALS, EXIT_SIGNAL_BASE, add_log_options, surroundings
from ssm_proxy.cli.streams import claim_streams
from ssm_proxy.errors import SsmProxyError, UsageError
from ssm_proxy.secret import Secret

if TYPE_CHECKING:
    from types import FrameType

    from ssm_proxy.aws.control_plane import StartedSession

VARIABLE: Final = "AWS_SSM_START_SESSION_RESPONSE"
_OPERATION: Final = "StartSession"
_ECS_SESSION: Final = "ecs-execute-command-"
"""How the ids of ECS Exec's sessions begin (1.2)."""
_MARK: Final = "# Made by ssm-proxy plugin --install: stands in for the Session Manager plugin of the AWS CLI."
_LAUNCHER: Final = """\
#!/bin/sh
{mark}
# Version 2 of the AWS CLI leaves the path to its own libraries in here, which are not for another Python.
case ${{LD_LIBRARY_PATH-}} in */v2/*/dist*) LD_LIBRARY_PATH=${{LD_LIBRARY_PATH_ORIG-}} ;; esac
exec {python} -c 'import sys
sys.path[:] = filter(None, sys.path)
from ssm_proxy.cli.main import main
sys.exit(main())' plugin "$@"
"""
"""Without the empty path, so that nothing in the current folder is taken for a module."""


logger = logging.getLogger("ssm_proxy.cli")


class PluginCall(NamedTuple):
    """What the AWS CLI said."""

    started: StartedSession
    region: str
    profile: str | None
    target: str
    """Empty if the AWS CLI is too old to tell."""
    endpoint_url: str | None
    """Of Systems Manager; None: as configured."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plugin",
        help="stand in for the Session Manager plugin of the AWS CLI",
        usage=f"ssm-proxy plugin [-h] [--version] [--install DIR] [-v] [--log-file FILE]\n"
        f"       ssm-proxy plugin [-v] [--log-file FILE] RESPONSE REGION {_OPERATION} [PROFILE REQUEST ENDPOINT]",
        description="examples:\n"
        "  ssm-proxy plugin --install ~/.local/bin\n"
        "  ssm-proxy plugin --version\n"
        "\nCarry a session that the AWS CLI has started. Once installed in a folder of the PATH, in front of the\n"
        "original if that is there too, the AWS CLI uses it as ever:\n"
        "  aws ssm start-session --target i-0123456789abcdef0\n"
        "  aws ecs execute-command --cluster prod --task TASK --interactive --command sh",
        epilog=f"ssm-proxy is the plugin under the name {PROGRAM} too, as a link or a copy.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        metavar="ARGUMENT",
        nargs="*",
        help=f"as the AWS CLI gives them; RESPONSE may be the name of a variable that begins with {VARIABLE}",
    )
    parser.add_argument(
        "--version", action="store_true", help="print the version of the plugin that this stands in for"
    )
    parser.add_argument("--install", metavar="DIR", type=Path, help=f"put a {PROGRAM} that starts this into a folder")
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the AWS CLI, or the user, wants of the plugin."""
    if arguments.version:
        from ssm_proxy.wire.constants import CLIENT_VERSION

        print(CLIENT_VERSION)
        return 0
    if arguments.install is not None:
        _tell_installed(install(arguments.install))
        return 0
    if not arguments.words:
        # Not to standard output: `aws ecs execute-command` makes this call first, and its output is the container's.
        print("ssm-proxy stands in for the Session Manager plugin: use the AWS CLI to start a session", file=sys.stderr)
        return 0
    return _run_session(arguments, read_call(arguments.words, os.environ))


def _run_session(arguments: argparse.Namespace, call: PluginCall) -> int:
    arguments.profile, arguments.region, arguments.endpoint_url = call.profile, call.region, call.endpoint_url
    arguments.stream_endpoint_url = None
    try:
        _take_signals()
        streams = claim_streams()
        with surroundings(arguments) as around:
            from ssm_proxy.cli.any_session import run_any_session
            from ssm_proxy.connector import SessionRequest

            logger.info("session %s to %s", call.started.session_id, call.target)
            return run_any_session(around, SessionRequest(call.target), streams, call.started, status_of_interrupt=0)
    except _Signalled as signalled:
        _end_session(call)
        return _status_of_signal(signalled.number)
    except BaseException:  # a second end does no harm, and there may have been none
        _end_session(call)
        raise


def _status_of_signal(number: int) -> int:
    # Ctrl-C is how people end a forwarded port. At anything but 0 the AWS CLI shows them our command line.
    return 0 if number == signal.SIGINT else EXIT_SIGNAL_BASE + number


class _Signalled(BaseException):
    """A signal came while the session, which is there already, was not yet run by anybody."""

    def __init__(self, number: int) -> None:
        self.number = number


def _take_signals() -> None:
    """Have signals end us in order; whoever runs the session has handlers of its own.

    The AWS CLI ignores what comes from a terminal, and hands that down: what it means is our matter.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        raise _Signalled(number)

    for name in ENDING_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and (name in ("SIGINT", "SIGQUIT") or signal.getsignal(number) is not signal.SIG_IGN):
            signal.signal(number, handle)
    if hasattr(signal, "SIGTSTP"):
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def _end_session(call: PluginCall) -> None:
    from ssm_proxy.aws.control_plane import BotocoreControlPlane

    plane = BotocoreControlPlane(profile=call.profile, region=call.region, endpoint_url=call.endpoint_url)
    with contextlib.suppress(SsmProxyError):
        plane.terminate_session(call.started.session_id)


# --- the call -------------------------------------------------------------------------------------------------------


def read_call(words: Sequence[str], environment: MutableMapping[str, str]) -> PluginCall:
    """Read the plugin's arguments.

    Args:
        words: three of an old AWS CLI, or six; further ones are ignored, as by the original.
        environment: may hold the response, which is taken out of it.

    Raises:
        UsageError: something is missing or malformed; the text holds nothing of the response.
    """
    if len(words) < 3 or 3 < len(words) < 6:
        raise UsageError(
            f"the plugin takes 3 or 6 arguments, and got {len(words)}",
            hint=f"{PROGRAM} is for the AWS CLI to start: aws ssm start-session --target i-0123456789abcdef0",
        )
    response, region, operation = words[:3]
    if operation != _OPERATION:
        raise UsageError(f"the operation {operation[:100]!r} is not known", hint=f"the plugin knows {_OPERATION} only")
    if not region:
        raise UsageError("the region is empty", hint="set AWS_REGION, or use --region of the AWS CLI")
    if response.startswith(VARIABLE):
        name, response = response, environment.pop(response, "")
        if not response:
            raise UsageError(f"the environment has no {name[:100]}", cause="the answer to StartSession should be in it")
    started = _read_response(response)
    if len(words) == 3:
        return PluginCall(started, region, None, "", None)
    profile, request, endpoint_url = words[3:6]
    target = _members(request, "the request").get("target")
    if not isinstance(target, str) or not target:
        raise UsageError("the request names no Target", cause="it is the fifth argument of the plugin")
    if not _is_http_url(endpoint_url):
        raise UsageError(
            f"the endpoint {endpoint_url[:200]!r} is not the URL of a service",
            cause="it is the sixth argument of the plugin",
        )
    # Of `aws ecs execute-command` it is the endpoint of ECS, which can neither resume nor end a session.
    is_of_ecs = started.session_id.startswith(_ECS_SESSION)
    return PluginCall(started, region, profile or None, target, None if is_of_ecs else endpoint_url)


def _read_response(text: str) -> StartedSession:
    from ssm_proxy.aws.control_plane import StartedSession

    members = _members(text, "the response")
    values = {}
    for name in ("SessionId", "StreamUrl", "TokenValue"):
        value = members.get(name.lower())
        if not isinstance(value, str) or not value:
            raise UsageError(
                f"the response has no {name}",
                cause="it is the first argument of the plugin, or the variable that this names",
            )
        values[name] = value
    return StartedSession(values["SessionId"], values["StreamUrl"], Secret(values["TokenValue"]))


def _members(text: str, what: str) -> Mapping[str, Any]:
    """Give the members of a JSON object by names in lower case; ECS writes them otherwise than Systems Manager."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not a JSON object", cause="it is an argument of the plugin, from the AWS CLI")
    return {name.lower(): member for name, member in value.items()}


def _is_http_url(text: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


# --- installing -----------------------------------------------------------------------------------------------------


def install(folder: Path) -> Path:
    """Put a launcher of this very installation into a folder, or put it there anew.

    Returns:
        The launcher.

    Raises:
        UsageError: there is no such folder, it cannot be written, or another program has the name there.
    """
    import tempfile

    if os.name != "posix":
        raise UsageError("installing is for Linux and macOS", hint=f"copy ssm-proxy.exe to a {PROGRAM}.exe instead")
    launcher = folder / PROGRAM
    try:
        if os.path.lexists(launcher) and not _is_ours(launcher):
            raise UsageError(
                f"{str(launcher)!r} is there already, and is not ours",
                hint="choose another folder, which comes before that one in the PATH, or remove it",
            )
        descriptor, temporary = tempfile.mkstemp(prefix=f".{PROGRAM}.", dir=folder)
        try:
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(_LAUNCHER.format(mark=_MARK, python=shlex.quote(sys.executable)))
            os.chmod(temporary, 0o755)  # noqa: S103 - a program for everybody, as every installer makes it
            os.replace(temporary, launcher)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(
            f"the plugin cannot be installed in {str(folder)!r}",
            cause=error.strerror or str(error),
            hint="name a folder that is there and that you may write to, such as ~/.local/bin",
        ) from error
    return launcher


def _is_ours(launcher: Path) -> bool:
    if not launcher.is_file():
        return False
    with open(launcher, "rb") as file:
        return _MARK.encode() in file.read(len(_LAUNCHER))


def _tell_installed(launcher: Path) -> None:
    import shutil

    print(f"ssm-proxy: installed {launcher}", file=sys.stderr)
    found = shutil.which(PROGRAM)
    if found is None:
        print(f"ssm-proxy: hint: add {launcher.parent} to the PATH", file=sys.stderr)
    elif not os.path.samefile(found, launcher):
        print(f"ssm-proxy: hint: put {launcher.parent} before {Path(found).parent} in the PATH", file=sys.stderr)
