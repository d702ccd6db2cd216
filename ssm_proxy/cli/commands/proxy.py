"""``ssm-proxy proxy HOST [PORT]``: the ProxyCommand."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import re
import signal
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from ssm_proxy.cli import messages
from ssm_proxy.cli.session_command import EXIT_SIGNAL_BASE, add_aws_options, add_log_options
from ssm_proxy.cli.streams import claim_streams
from ssm_proxy.cli.terminal import TerminalGuard
from ssm_proxy.cli.timing import Timeline
from ssm_proxy.errors import SsmProxyError, TargetError, UsageError
from ssm_proxy.transport.signal_watch import ignore_signals, not_ignored

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from ssm_proxy.tunnel import Tunnel

_DOCUMENT = "AWS-StartSSHSession"
_TARGET = re.compile(r"m?i-[0-9a-zA-Z]+")
_TERMINAL_SIGNALS = ("SIGINT", "SIGQUIT", "SIGTSTP")
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")
_END_TIMEOUT = 5.0
_SENDING_TIME = 2.0
"""Longer than StartSession takes to leave, unless credentials have to be fetched first: then there is time anyway."""

logger = logging.getLogger("ssm_proxy.cli")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "proxy",
        help="the ProxyCommand: carry ssh's bytes to a managed node",
        description="examples:\n"
        "  ssh -o ProxyCommand='ssm-proxy proxy %h %p' ec2-user@i-0123456789abcdef0\n"
        "  ssh -o ProxyCommand='ssm-proxy proxy --profile prod -v %h %p' ec2-user@i-0123456789abcdef0\n"
        "\nCarry standard input to a port of a managed node and its bytes to standard output, through\n"
        "Session Manager. Made to be started by ssh, best by these lines in ~/.ssh/config:\n\n"
        + messages.SSH_CONFIG_LINES,
        epilog="Ctrl-C does not end the tunnel: it is for the program at the other end. The tunnel ends with ssh.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("host", metavar="HOST", help="id of the managed node: i-… (EC2) or mi-… (hybrid)")
    parser.add_argument("port", metavar="PORT", nargs="?", default="22", help="port on the node (default: 22)")
    add_aws_options(parser)
    parser.add_argument("--reason", metavar="TEXT", help="shown in the session's history")
    parser.add_argument(
        "--document-name", metavar="NAME", default=_DOCUMENT, help=f"session document (default: {_DOCUMENT})"
    )
    parser.add_argument("--timing", action="store_true", help="tell on standard error how long each stage took")
    add_log_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Be the ProxyCommand until ssh or the node ends it."""
    try:
        host = check_target(arguments.host)
        port = check_port(arguments.port)
    except SsmProxyError as error:
        _tell_ssh(error, 0, 1)
        raise
    if messages.stdout_is_terminal():
        raise UsageError(
            "this command is for ssh to start: its output is the encrypted stream, and here is a terminal",
            hint="put these lines into ~/.ssh/config, then run: ssh USER@" + host + "\n\n" + messages.SSH_CONFIG_LINES,
        )
    # They go to every process of the terminal's foreground group. Ctrl-C is for the remote program; ssh sends it.
    ignore_signals(_TERMINAL_SIGNALS)
    input_fd, output_fd = claim_streams()
    stderr = messages.StderrWriter()
    timeline = Timeline(stderr.write if arguments.timing else _show_nothing)
    terminal = TerminalGuard()
    tunnel: Tunnel | None = None
    try:
        try:
            messages.set_up_logging(arguments.verbosity, arguments.log_file, stderr)
        except OSError as error:
            raise UsageError(f"the log file {arguments.log_file!r} cannot be written", cause=error.strerror) from error

        gc.disable()  # what is imported stays: looking for garbage in it is a tenth of the work
        from ssm_proxy.aws.control_plane import BotocoreControlPlane
        from ssm_proxy.connector import SessionConnector, SessionRequest
        from ssm_proxy.transport.connecting import Termination

        timeline.mark("imports")
        # Of all ways to wake a thread this is the one that a signal handler may use.
        under_way: SimpleQueue[None] = SimpleQueue()

        def notify(text: str) -> None:
            _notify(text, stderr, arguments.log_file)

        def sending_start() -> None:
            timeline.mark("StartSession sent")
            under_way.put(None)

        connector = SessionConnector(
            BotocoreControlPlane(
                profile=arguments.profile,
                region=arguments.region,
                endpoint_url=arguments.endpoint_url,
                stream_endpoint_url=arguments.stream_endpoint_url,
                sending_start=sending_start,
                notify=notify,
            ),
            SessionRequest(
                target=host,
                document_name=arguments.document_name,
                parameters={"portNumber": [str(port)]},
                reason=arguments.reason,
            ),
            timeline.mark,
        )
        ending = _Ending(lambda: under_way.put(None))
        connector.start_early(lambda: under_way.put(None))
        # Two threads that import take turns: until the request has left, the other one needs the processor.
        with contextlib.suppress(Empty):
            under_way.get(timeout=_SENDING_TIME)
        try:
            from ssm_proxy.tunnel import Tunnel

            gc.freeze()
            gc.enable()
            tunnel = Tunnel(
                connector,
                port=port,
                input_fd=input_fd,
                output_fd=output_fd,
                notify=notify,
                mark=timeline.mark,
            )
        except BaseException:  # the session may be there already, and nobody else would end it
            until = time.monotonic() + _END_TIMEOUT
            Termination(connector).wait(lambda: until)
            raise
        ending.pass_to(tunnel.stop)
        outcome = tunnel.run()
        logger.info("end: %d bytes in, %d bytes out", tunnel.pipes.input_bytes, tunnel.pipes.output_bytes)
        return 0 if outcome.signal_number is None else EXIT_SIGNAL_BASE + outcome.signal_number
    except SsmProxyError as error:
        if arguments.log_file is not None:
            for line in messages.error_lines(error):
                logger.error("%s", line)
        if tunnel is None or not tunnel.pipes.output_bytes:
            _tell_ssh(error, input_fd, output_fd)
        raise
    finally:
        terminal.restore()
        # All that they could ask for is done; what is left takes no time and should end with its own status.
        ignore_signals(_ENDING_SIGNALS)
        timeline.tell()
        stderr.flush()


class _Ending:
    """Catches the signals that end us from the first moment on, and passes them to the tunnel once there is one.

    Args:
        wake: called from the signal handler.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._number: int | None = None
        self._stop: Callable[[int], None] | None = None
        for number in not_ignored(_ENDING_SIGNALS):
            signal.signal(number, self._handle)

    def pass_to(self, stop: Callable[[int], None]) -> None:
        self._stop = stop
        if self._number is not None:
            stop(self._number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._number is not None:  # one is enough
            return
        self._number = number
        self._wake()
        if self._stop is not None:
            self._stop(number)


def _tell_ssh(error: SsmProxyError, input_fd: int, output_fd: int) -> None:
    from ssm_proxy.cli.ssh_disconnect import standard_error_is_discarded, tell_ssh

    if standard_error_is_discarded():
        tell_ssh(error, input_fd, output_fd)


def _notify(text: str, stderr: messages.StderrWriter, log_file: str | None) -> None:
    stderr.write(f"ssm-proxy: {messages.printable(text)}")
    if log_file is not None:
        logger.info("%s", text)


def check_target(host: str) -> str:
    """Give the id of a managed node.

    Raises:
        TargetError: it is something else.
    """
    if not _TARGET.fullmatch(host):
        raise TargetError(
            f"{messages.printable(host)!r} is not the id of a managed node",
            hint="use the id itself: i-… for an EC2 instance, mi-… for a hybrid machine",
        )
    return host


def check_port(text: str) -> int:
    """Give a port number.

    Raises:
        UsageError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise UsageError(f"{messages.printable(text)!r} is not a port", hint="use a number from 1 to 65535")
    return int(text)


def _show_nothing(_line: str) -> None:
    """Stand in where nobody asked for the timing."""
