"""A window of one size, whatever the link does: for tests that count what is in flight."""

from __future__ import annotations

import math


class FixedWindow:
    """See :class:`ssm_proxy.channel.window.Window`."""

    pace = math.inf

    def __init__(self, limit_bytes: int = 512 * 1024) -> None:
        self.limit_bytes = limit_bytes

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float, in_flight_bytes: int) -> None:
        pass

    def forget(self, now: float) -> None:
        pass
