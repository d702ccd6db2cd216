"""Layer 5: one tunnel to one port of a managed node; joins the control plane, the protocol and the driver."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from ssm_proxy.aws.control_plane import ControlPlane, StartedSession
from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.window import FixedWindow
from ssm_proxy.errors import ChannelClosed, RemotePortRefused, SessionEnded
from ssm_proxy.secret import Secret
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.transport.bridge import QUIET_TIME, Bridge, BridgeOutcome
from ssm_proxy.transport.connecting import Connection
from ssm_proxy.transport.endpoints import InputEnd, OutputEnd
from ssm_proxy.transport.websocket import open_websocket

logger = logging.getLogger("ssm_proxy.tunnel")

SSH_DOCUMENT = "AWS-StartSSHSession"
OPENING_TIMEOUT = 20.0
_RANDOM_BLOCK_BYTES = 16 * 256


@dataclass(frozen=True, kw_only=True)
class TunnelRequest:
    """What a tunnel is to reach."""

    target: str
    port: int
    document_name: str = SSH_DOCUMENT
    reason: str | None = None


class SessionConnector:
    """Starts the session at the first connection, resumes it at every later one."""

    def __init__(self, control_plane: ControlPlane, request: TunnelRequest, mark: Callable[[str], None]) -> None:
        self._control_plane = control_plane
        self._request = request
        self._mark = mark
        self._starting = Lock()
        self._session: StartedSession | None = None
        # Still good until a WebSocket came about: a session that was never opened may not be one that can be resumed,
        # and the official client tries again with the same token too (2.6). Tokens of ResumeSession are used once.
        self._first_token: Secret | None = None

    @property
    def is_started(self) -> bool:
        """Whether StartSession succeeded."""
        return self._session is not None

    def connect(self) -> Connection:
        """Give an open WebSocket of the session. Blocks.

        Raises:
            SessionEnded: the service says that the session is gone.
            SsmProxyError: as the control plane and the opening say.
        """
        session = self._started()
        token = self._first_token
        if token is None:
            token = self._resume(session)
        opening = self._control_plane.websocket_opening(session.stream_url)
        websocket = open_websocket(
            opening.url,
            headers=opening.headers,
            ca_bundle=opening.ca_bundle,
            proxy_url=opening.proxy_url,
            timeout=OPENING_TIMEOUT,
        )
        self._first_token = None
        return Connection(websocket=websocket, token=token)

    def _resume(self, session: StartedSession) -> Secret:
        token = self._control_plane.resume_session(session.session_id)
        if token is None:
            raise SessionEnded(
                f"the session to {self._request.target} is over",
                cause="the service does not know it any more: it timed out, or somebody ended it",
                hint="connect again; an idle session ends after the idle timeout of the account's Session Manager "
                "preferences (20 minutes by default), which ServerAliveInterval in ssh_config prevents",
            )
        return token

    def terminate(self) -> None:
        """End the session, also one whose StartSession is just being answered. Blocks."""
        with self._starting:
            session = self._session
        if session is not None:
            self._control_plane.terminate_session(session.session_id)

    def _started(self) -> StartedSession:
        with self._starting:
            if self._session is None:
                request = self._request
                self._session = self._control_plane.start_session(
                    target=request.target,
                    document_name=request.document_name,
                    parameters={"portNumber": [str(request.port)]},
                    reason=request.reason,
                )
                self._first_token = self._session.token
                logger.info("session %s to %s", self._session.session_id, request.target)
                self._mark("StartSession")
            return self._session


class Tunnel:
    """A tunnel between two descriptors and a port of a managed node.

    Args:
        control_plane: the service.
        request: what to reach.
        input_fd: bytes for the node; not closed.
        output_fd: takes the node's bytes; not closed.
        notify: shows a person one line while the tunnel goes on.
        mark: called with the name of each stage as it is reached.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        request: TunnelRequest,
        *,
        input_fd: int,
        output_fd: int,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
    ) -> None:
        self._request = request
        self._bridge = Bridge(
            channel=DataChannel(
                check_session=check_stream_session,
                window=FixedWindow(),
                new_message_id=_MessageIds().next,
                wall_clock_ms=lambda: time.time_ns() // 1_000_000,
            ),
            connector=SessionConnector(control_plane, request, mark),
            source=InputEnd(input_fd),
            sink=OutputEnd(output_fd),
            notify=notify,
            mark=mark,
        )

    def stop(self, signal_number: int) -> None:
        """End the tunnel soon. May be called from a signal handler."""
        self._bridge.stop(signal_number)

    def run(self) -> BridgeOutcome:
        """Carry bytes until the tunnel ends.

        Raises:
            SsmProxyError: why it could not begin, or did not end as it should.
        """
        outcome = self._bridge.run()
        if outcome.fell_quiet and not outcome.output_bytes and not outcome.input_bytes:
            raise RemotePortRefused(
                f"nothing came from port {self._request.port} of {self._request.target}",
                cause=f"neither output within {QUIET_TIME:.0f} seconds nor any input",
                hint="check that sshd runs there and listens on that port; an agent needs a minute to report that it "
                "does not",
            )
        reason = outcome.closed_reason
        if reason is not None and not outcome.output_bytes and not (outcome.input_ended and not reason):
            port = self._request.port
            raise RemotePortRefused(
                f"port {port} of {self._request.target} did not answer",
                cause=reason or "the agent ended the session before the port had sent anything",
                hint="check that sshd runs there and listens on that port; /var/log/amazon/ssm/errors.log on the node "
                "may say more",
            )
        if reason:
            raise ChannelClosed(
                f"the service ended the session to {self._request.target}",
                cause=reason,
                hint="connect again; ServerAliveInterval in ssh_config keeps an idle session from timing out",
            )
        return outcome


class _MessageIds:
    """Random version 4 UUIDs, with one system call for many of them."""

    def __init__(self) -> None:
        self._block = b""
        self._position = 0

    def next(self) -> bytes:
        start = self._position
        if start >= len(self._block):
            self._block = os.urandom(_RANDOM_BLOCK_BYTES)
            start = 0
        self._position = start + 16
        raw = bytearray(self._block[start : start + 16])
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)
