"""A local port that leads to a managed node, or through it, while a block of code runs."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ssm_proxy.api.service import BEGIN_TIMEOUT, Service, check_port, check_target, check_timeout, log_notice
from ssm_proxy.api.session_thread import STOP_TIMEOUT, SessionThread
from ssm_proxy.connector import SessionRequest
from ssm_proxy.ends import FAILED_AT_START_WITHIN, cannot_be_forwarded, closed_by_service
from ssm_proxy.errors import UsageError
from ssm_proxy.sessions.port import check_forwarding_session, forwarding_request
from ssm_proxy.transport.acceptor import Forward
from ssm_proxy.transport.application import LateApplication
from ssm_proxy.transport.forwarding import make_forwarding
from ssm_proxy.transport.listener import Listener, bind_port

if TYPE_CHECKING:
    import boto3

    from ssm_proxy.channel.data_channel import DataChannel
    from ssm_proxy.errors import SsmProxyError
    from ssm_proxy.session import Session
    from ssm_proxy.transport.bridge import BridgeOutcome

LOOPBACK = "127.0.0.1"
DRAIN_TIMEOUT = 5.0
"""What local programs sent last gets to arrive after the end of the block."""

logger = logging.getLogger("ssm_proxy.api")


class BoundAddress(NamedTuple):
    """Where a forwarding listens: what `socket.create_connection` takes."""

    host: str
    port: int


@contextlib.contextmanager
def forward(
    target: str,
    remote_port: int,
    *,
    host: str | None = None,
    local_port: int = 0,
    bind: str = LOOPBACK,
    session: boto3.Session | None = None,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    timeout: float | None = BEGIN_TIMEOUT,
) -> Iterator[BoundAddress]:
    """Listen on a local port while the block runs, and carry each connection to a port through Session Manager.

    Any number of connections share the one session; with agents up to 3.0.196 one at a time, and others wait. A
    connection that the destination refuses is reset, and the forwarding goes on. While the network is away, connections
    wait. The local programs may be this one's threads, or others: bound to loopback, which is the default, the port is
    open to all users of this machine.

    At the end of the block what was sent before gets 5 s to arrive, open connections are reset, and the session is
    ended within some seconds. The context manager may be used in any thread, once.

    Args:
        target: ``i-…``, ``mi-…``, or ``ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]``.
        remote_port: where connections lead.
        host: whose port that is, as the node knows it; None is the node itself.
        local_port: 0 takes any free one.
        bind: address to listen on; ``*`` is all of them.
        session: as for `connect`, and so are the others.
        profile: see there.
        region: see there.
        reason: see there.
        endpoint_url: see there.
        stream_endpoint_url: see there.
        timeout: seconds until it listens.

    Yields:
        Host and port that it listens on.

    Raises:
        PortError: the local port cannot be had.
        SsmProxyError: the session could not begin, as for `connect`; or, at the end of the block, that it failed
            meanwhile; if the block ends with another exception, it is that one's ``__cause__``.
    """
    check_target(target)
    check_port(remote_port)
    if local_port != 0 or isinstance(local_port, bool):
        check_port(local_port)
    if not isinstance(bind, str):
        raise UsageError(f"{bind!r} is not an address", hint="pass a text like '127.0.0.1', or '*'")
    check_timeout(timeout)
    service = Service(
        session=session,
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
    )
    with contextlib.closing(bind_port(bind, local_port)) as listener:
        running = _Forwarding(service, listener, target, remote_port, host, reason)
        address = BoundAddress(listener.address, listener.port)
        with contextlib.closing(running):
            running.thread.start()
            running.thread.wait_begun(timeout, running.destination)
            try:
                yield address
            except Exception as error:
                running.drain()
                if error.__cause__ is None:  # the session's end is what most programs above fail by
                    error.__cause__ = running.thread.error
                raise
            running.drain()
        if running.thread.error is not None:
            raise running.thread.error


class _Forwarding:
    """A listener, its session, and how they end together."""

    def __init__(
        self, service: Service, listener: Listener, target: str, port: int, host: str | None, reason: str | None
    ) -> None:
        self._service = service
        self._listener = listener
        self._target = target
        self._request = forwarding_request(port, host)
        self._reason = reason
        self.destination = f"port {port} of {target}" if host is None else f"{host}:{port} through {target}"
        self._began = time.monotonic()
        self._has_received = False
        self._is_drained = threading.Event()
        # The session looks at one end; closing the other tells it that the local programs are over.
        self._ending, self._tell_ending = socket.socketpair()
        self.thread = SessionThread(
            self._make_session, judge=self._judge, release=service.close, finish=self._is_drained.set
        )

    def drain(self) -> None:
        """Have what local programs sent last arrive, for some seconds at most. In a fork there is nobody who could."""
        if not self.thread.is_ours:
            return
        self._tell_ending.close()
        if not self._is_drained.wait(DRAIN_TIMEOUT):
            logger.warning("what was sent last to %s may not have arrived", self.destination)

    def close(self) -> None:
        """End the session, in bounded time; that of the process which began it, not of a fork."""
        if self.thread.is_ours:
            self.thread.stop()
            self.thread.wait_over(STOP_TIMEOUT)
        self._tell_ending.close()
        self._ending.close()

    def _make_session(self) -> Session:
        local = Forward(
            listener=self._listener,
            destination=self.destination,
            notify=log_notice,
            listening=self.thread.set_begun,
            closed=self._closed,
            ending=self._ending,
            drained=self._is_drained.set,
        )

        def make_application(channel: DataChannel) -> LateApplication:
            return LateApplication(channel, lambda event: make_forwarding(channel, event, local))

        request = SessionRequest(self._service.resolve(self._target), *self._request, self._reason)
        return self._service.make_session(request, make_application, check_session=check_forwarding_session)

    def _closed(self, has_received: bool) -> None:
        self._has_received = has_received

    def _judge(self, outcome: BridgeOutcome) -> SsmProxyError | None:
        if outcome.closed_reason is None:
            return None
        if outcome.closed_reason and not self._has_received and time.monotonic() - self._began < FAILED_AT_START_WITHIN:
            return cannot_be_forwarded(self.destination, outcome.closed_reason)
        return closed_by_service(self._target, outcome.closed_reason)
