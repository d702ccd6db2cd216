"""One command on a managed node."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ssm_proxy.api.service import Service, check_target, check_timeout
from ssm_proxy.api.session_thread import STOP_TIMEOUT, SessionThread
from ssm_proxy.connector import SessionRequest
from ssm_proxy.ends import command_status
from ssm_proxy.errors import CommandFailed, TransportTimeout, UsageError
from ssm_proxy.sessions.command import MARKER_BYTES, NONINTERACTIVE_DOCUMENT, check_command_session, command_text
from ssm_proxy.transport.command_output import CollectedOutput

if TYPE_CHECKING:
    import boto3

    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.errors import SsmProxyError
    from ssm_proxy.session import Session
    from ssm_proxy.transport.bridge import BridgeOutcome


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """What a command on a node has left: its output, and its status."""

    target: str
    argv: tuple[str, ...]
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    status: int
    """The command's exit status; 128 and the signal's number if a signal ended it."""

    def check(self) -> CommandResult:
        """Give the result back if the status is 0.

        Raises:
            CommandFailed: it is not.
        """
        if self.status:
            raise CommandFailed(
                f"{self.argv[0]!r} on {self.target} ended with status {self.status}",
                hint="its standard error (`stderr` of this error) may say why",
                status=self.status,
                stdout=self.stdout,
                stderr=self.stderr,
            )
        return self


def run(
    target: str,
    argv: Sequence[str | os.PathLike[str]],
    *,
    session: boto3.Session | None = None,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    document_name: str = NONINTERACTIVE_DOCUMENT,
    timeout: float | None = None,
) -> CommandResult:
    """Run a command on a managed node, as ``ssm-proxy exec`` does, and wait for its end.

    Works in any thread, and from several at once. Needs a POSIX shell on the node. All output is kept in memory, and
    twice for a moment at the end: for more than some megabytes copy a file. An agent spoils one character, U+FFFD, so
    output that is not text may not arrive as it was.

    Args:
        target: ``i-…``, ``mi-…``, or ``ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]``.
        argv: the command and its arguments, texts or paths, which arrive exactly so; no shell looks at them. Its input
            is empty.
        session: as for `connect`, and so are the others.
        profile: see there.
        region: see there.
        reason: see there.
        endpoint_url: see there.
        stream_endpoint_url: see there.
        document_name: session document with a parameter ``command``.
        timeout: seconds until it must have ended, the beginning of the session included; None waits for ever.

    Returns:
        Output and status, also if that is not 0.

    Raises:
        TransportTimeout: it took longer. The session is ended, and with it the command, some seconds later. Whether
            it had been started at all is said.
        SessionEnded: the session ended before the command or all of its output came, or the command could not be run.
        SsmProxyError: as `connect`.
    """
    if isinstance(argv, str | bytes) or not argv:
        raise UsageError(
            "argv is not a list of words" if argv else "argv is empty",
            hint="for a line of shell: ['sh', '-c', 'a | b']",
        )
    words = tuple(_word(each) for each in argv)
    check_target(target)
    check_timeout(timeout)
    marker = secrets.token_hex(MARKER_BYTES)
    text = command_text(words, marker)
    service = Service(
        session=session,
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
    )
    outputs: list[CollectedOutput] = []
    statuses: list[int] = []

    def make_application(channel: DataChannel) -> CollectedOutput:
        outputs.append(CollectedOutput(channel, marker=marker, begun=thread.set_begun))
        return outputs[0]

    def make_session() -> Session:
        request = SessionRequest(service.resolve(target), document_name, {"command": [text]}, reason)
        return service.make_session(request, make_application, check_session=check_command_session)

    def judge(outcome: BridgeOutcome) -> SsmProxyError | None:
        status = command_status(
            target,
            status=outputs[0].status,
            code=outputs[0].code,
            closed_reason=outcome.closed_reason,
            output_is_missing=outcome.output_is_missing,
        )
        statuses.append(status)
        return None

    thread = SessionThread(make_session, judge=judge, release=service.close)
    thread.start()
    try:
        if not thread.wait_over(timeout):
            thread.stop()
            thread.wait_over(STOP_TIMEOUT)
            if not _has_begun(thread):
                raise thread.took_too_long(f"{target} for {words[0]!r}, which was not run,", timeout)
            raise TransportTimeout(
                f"{words[0]!r} on {target} did not end within {timeout:g} s",
                cause="the session was ended, and the node ends the command",
            )
    finally:  # Ctrl-C too
        thread.stop()
        thread.wait_over(STOP_TIMEOUT)
    if thread.error is not None:
        raise thread.error
    stdout, stderr = outputs[0].take()
    return CommandResult(target=target, argv=words, stdout=stdout, stderr=stderr, status=statuses[0])


def _word(word: str | os.PathLike[str]) -> str:
    text = os.fspath(word) if isinstance(word, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise UsageError(f"{word!r} cannot be an argument", hint="pass texts or paths, without null characters")
    return text


def _has_begun(thread: SessionThread) -> bool:
    """Whether the session had begun that is over now, or hangs."""
    return thread.begun.done() and thread.begun.exception() is None
