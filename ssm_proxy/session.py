"""Layer 5: one session; joins the service, the protocol, the driver and an application."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.channel.data_channel import HANDSHAKE_TIMEOUT, DataChannel
from ssm_proxy.channel.handshake import SessionCheck
from ssm_proxy.connector import SessionConnector
from ssm_proxy.errors import SsmProxyError
from ssm_proxy.transport.application import Application
from ssm_proxy.transport.bridge import Bridge, BridgeOutcome

_RANDOM_BLOCK_BYTES = 16 * 256


class Session:
    """A session between an application and a managed node.

    Args:
        connector: knows the session.
        make_application: makes the local side, given the channel that its input goes to.
        check_session: says why a session cannot be used here.
        notify: shows a person one line while the session goes on.
        mark: called with the name of each stage as it is reached.
        handshake_timeout: seconds for the session to begin; None for those that may say nothing for as long as they
            like, as a shell session does whose command prints nothing.
    """

    def __init__(
        self,
        connector: SessionConnector,
        make_application: Callable[[DataChannel], Application],
        *,
        check_session: SessionCheck,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
        handshake_timeout: float | None = HANDSHAKE_TIMEOUT,
    ) -> None:
        channel = DataChannel(
            check_session=check_session,
            window=CongestionWindow(),
            new_message_id=_MessageIds().next,
            wall_clock_ms=lambda: time.time_ns() // 1_000_000,
            clock_step=time.get_clock_info("monotonic").resolution,
            handshake_timeout=handshake_timeout,
        )
        self._connector = connector
        self._bridge = Bridge(
            channel=channel, connector=connector, application=make_application(channel), notify=notify, mark=mark
        )

    def stop(self, signal_number: int) -> None:
        """End the session soon. May be called from a signal handler or another thread."""
        self._bridge.stop(signal_number)

    @property
    def trouble(self) -> SsmProxyError | None:
        """What kept a session that was stopped from beginning, as far as is known."""
        return self._connector.start_error or self._bridge.trouble

    def run(self) -> BridgeOutcome:
        """Carry bytes until the session ends, one way or the other; then it is over at the service too.

        Raises:
            SsmProxyError: why it could not begin, or could not go on.
        """
        return self._bridge.run()


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
