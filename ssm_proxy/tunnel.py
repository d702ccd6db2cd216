"""Layer 5: one tunnel to one port of a managed node; joins the session, the protocol and the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.connector import SessionConnector
from ssm_proxy.errors import ChannelClosed, RemotePortRefused
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.transport.bridge import QUIET_TIME, Bridge, BridgeOutcome
from ssm_proxy.transport.endpoints import InputEnd, OutputEnd

_RANDOM_BLOCK_BYTES = 16 * 256


class Tunnel:
    """A tunnel between two descriptors and a port of a managed node.

    Args:
        connector: knows the session.
        input_fd: bytes for the node; not closed.
        output_fd: takes the node's bytes; not closed.
        notify: shows a person one line while the tunnel goes on.
        mark: called with the name of each stage as it is reached.
    """

    def __init__(
        self,
        connector: SessionConnector,
        *,
        input_fd: int,
        output_fd: int,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
    ) -> None:
        self._request = connector.request
        self._bridge = Bridge(
            channel=DataChannel(
                check_session=check_stream_session,
                window=CongestionWindow(),
                new_message_id=_MessageIds().next,
                wall_clock_ms=lambda: time.time_ns() // 1_000_000,
                clock_step=time.get_clock_info("monotonic").resolution,
            ),
            connector=connector,
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
