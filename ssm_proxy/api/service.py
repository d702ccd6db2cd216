"""The service as one set of credentials and settings reaches it: what sessions are started with."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ssm_proxy.api.connection import Connection
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.connector import SessionConnector, SessionRequest
from ssm_proxy.ends import FAILED_AT_START_WITHIN, closed_by_service, output_missing
from ssm_proxy.errors import RemotePortRefused, SsmProxyError, TransportTimeout, UsageError
from ssm_proxy.session import Session
from ssm_proxy.sessions.port import STREAM_DOCUMENT, check_stream_session
from ssm_proxy.transport.bridge import BridgeOutcome
from ssm_proxy.transport.local_connection import LocalConnection
from ssm_proxy.transport.pipes import QUIET_TIME
from ssm_proxy.transport.socket_stream import SocketStream

if TYPE_CHECKING:
    import boto3

    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.channel.handshake import SessionCheck
    from ssm_proxy.transport.application import Application

BEGIN_TIMEOUT = 60.0

logger = logging.getLogger("ssm_proxy.api")


class Service:
    """Starts sessions, all with one credential provider and one set of clients. Safe to use from several threads.

    Args:
        session: a `boto3.Session` whose credentials, region and settings are used.
        profile: name of a profile, where no session is given; None takes what the environment says.
        region: None takes that of the session, or AWS_REGION, AWS_DEFAULT_REGION or the profile's.
        endpoint_url: replaces the address of the Systems Manager API.
        stream_endpoint_url: replaces scheme, host and port of the message gateway.
        notify: shows a person one line; None puts it into the log.

    Raises:
        UsageError: both a session and a profile, or a session that is none.
    """

    def __init__(
        self,
        *,
        session: boto3.Session | None = None,
        profile: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        stream_endpoint_url: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        # boto3 takes a botocore session, but has no public way to give it back.
        botocore_session = getattr(session, "_session", None)
        if session is not None and botocore_session is None:
            raise UsageError(f"session is a {type(session).__name__}", hint="pass a boto3.Session")
        if session is not None and profile is not None:
            raise UsageError("session and profile exclude each other", hint="boto3.Session(profile_name=…)")
        self._notify = notify or log_notice
        self._lock = threading.Lock()
        self._threads: set[SessionThread] = set()  # of connections that have not begun
        self._is_given_up = False
        self.control_plane = BotocoreControlPlane(
            profile=profile,
            region=region,
            endpoint_url=endpoint_url,
            stream_endpoint_url=stream_endpoint_url,
            botocore_session=botocore_session,
            notify=self._notify,
        )

    def dial(
        self,
        target: str,
        port: int = 22,
        *,
        reason: str | None = None,
        document_name: str = STREAM_DOCUMENT,
        timeout: float | None = BEGIN_TIMEOUT,
        release: Callable[[], None] = lambda: None,
    ) -> Connection:
        """Connect to a port of a managed node: see `ssm_proxy.connect`.

        Args:
            target: see there, and so are all others but the last.
            port: see there.
            reason: see there.
            document_name: see there.
            timeout: see there.
            release: called when the session is over, also if it could not begin.
        """
        check_timeout(timeout)
        thread, end = self.begin(target, port, reason=reason, document_name=document_name, release=release)
        try:
            with self._beginning(thread):
                thread.wait_begun(timeout, f"port {port} of {target}")
        except BaseException:
            end.close()
            raise
        return Connection.over(end, thread)

    @contextlib.contextmanager
    def _beginning(self, thread: SessionThread) -> Iterator[None]:
        with self._lock:
            self._threads.add(thread)
            is_given_up = self._is_given_up
        if is_given_up:
            thread.stop()
        try:
            yield
        finally:
            with self._lock:
                self._threads.discard(thread)

    def give_up(self) -> None:
        """End what ``dial`` has begun and is not connected yet, and what it begins from now on: nobody wants it."""
        with self._lock:
            self._is_given_up = True
            threads = list(self._threads)
        for thread in threads:
            thread.stop()

    def close(self) -> None:
        """Close what is kept open for the next session, when there will be none. Those that go on are not touched."""
        self.control_plane.close()

    def begin(
        self, target: str, port: int, *, reason: str | None, document_name: str, release: Callable[[], None]
    ) -> tuple[SessionThread, socket.socket]:
        """Begin to connect; give the thread that does, and the end of a pair that will be the connection."""
        check_target(target)
        check_port(port)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        local = LocalConnection(ours)
        streams: list[SocketStream] = []
        began = time.monotonic()

        def ended(reason: str, output_is_missing: bool) -> None:
            if not reason:
                if output_is_missing:
                    thread.settle(output_missing(target))
                # Else a server that has finished. A session that somebody terminated by the API gives no reason either.
                return
            if not thread.begun.done():
                thread.settle(closed_by_service(target, reason, has_begun=False))
            elif (
                not output_is_missing
                and not streams[0].output_bytes
                and time.monotonic() - began < FAILED_AT_START_WITHIN
            ):
                thread.settle(_did_not_answer(target, port, reason))
            else:
                thread.settle(closed_by_service(target, reason))

        def make_application(channel: DataChannel) -> SocketStream:
            streams.append(SocketStream(channel, local, begun=thread.set_begun, ended=ended))
            return streams[0]

        def make_session() -> Session:
            request = SessionRequest(self.resolve(target), document_name, {"portNumber": [str(port)]}, reason)
            return self.make_session(request, make_application, check_session=check_stream_session)

        def judge(outcome: BridgeOutcome) -> SsmProxyError | None:
            if streams[0].fell_quiet:
                return _fell_quiet(target, port)
            return None  # a reason of the service was settled when it came

        def finish() -> None:
            if streams:
                streams[0].finish()
            else:
                local.close()

        thread = SessionThread(
            make_session, judge=judge, is_left=local.other_end_has_gone, release=release, finish=finish
        )
        try:
            thread.start()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return thread, theirs

    def resolve(self, target: str) -> str:
        """Give the id that StartSession takes. May block."""
        return self.control_plane.resolve_target(target, self._notify)

    def make_session(
        self,
        request: SessionRequest,
        make_application: Callable[[DataChannel], Application],
        *,
        check_session: SessionCheck,
    ) -> Session:
        """Make a session; nothing is connected yet."""
        return Session(
            SessionConnector(self.control_plane, request, mark=_no_mark),
            make_application,
            check_session=check_session,
            notify=self._notify,
            mark=_no_mark,
        )


def check_port(port: int) -> None:
    """Check the number of a port of the node.

    Raises:
        UsageError: it is none.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise UsageError(f"{port!r} is not a port", hint="use a number from 1 to 65535")


def check_target(target: str) -> None:
    """Check what names a managed node; what it may look like is checked later.

    Raises:
        UsageError: it is no text, or empty.
    """
    if not isinstance(target, str) or not target:
        raise UsageError(f"{target!r} is not a target", hint="pass a text like 'i-0123456789abcdef0'")


def check_timeout(timeout: float | None) -> None:
    """Check a number of seconds; None is no limit.

    Raises:
        UsageError: it is none, or larger than the system can wait.
    """
    if timeout is None:
        return
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise UsageError(f"a timeout of {timeout!r} cannot be used", hint="pass seconds, or None for no limit")


def log_notice(text: str) -> None:
    """Log what the command line would show a person."""
    logger.warning("%s", "".join(character if character.isprintable() else " " for character in text))


def _no_mark(stage: str) -> None:
    """Stand in where nobody measures the stages."""


def _did_not_answer(target: str, port: int, reason: str) -> SsmProxyError:
    return RemotePortRefused(
        f"port {port} of {target} did not answer",
        cause=reason,
        hint="check that a server listens on that port; /var/log/amazon/ssm/errors.log on the node may say more",
    )


def _fell_quiet(target: str, port: int) -> SsmProxyError:
    return TransportTimeout(
        f"port {port} of {target} did not end the connection",
        cause=f"it sent nothing for {QUIET_TIME:.0f} s after the end of input, which the protocol cannot tell it of",
        hint="what was received may not be all; where the other side needs no end of input, just close",
    )
