"""How many bytes may be under way unacknowledged, and how fast they may leave.

The protocol has no window: a sender that does not limit itself fills the relay's queue, and everything behind it, a
keystroke or a keepalive, waits (docs/PROTOCOL.md section 10.4). Standard input is not read while the window is full, so
this bound is also what keeps memory flat.
"""

from __future__ import annotations

from typing import Protocol


class Window(Protocol):
    """What bounds the bytes in flight. Times are seconds of one monotonic clock."""

    @property
    def limit_bytes(self) -> int:
        """How many payload bytes may be unacknowledged now."""
        ...

    @property
    def pace(self) -> float:
        """How many payload bytes may leave in a second, infinite where nothing is known."""
        ...

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float, in_flight_bytes: int) -> None:
        """Take note of one acknowledge.

        Args:
            size_bytes: payload of the message.
            round_trip: its age in seconds, or None where it had been sent more than once.
            now: the time.
            in_flight_bytes: what was unacknowledged before, this message included.
        """
        ...

    def forget(self, now: float) -> None:
        """Begin anew: there is a new connection, over whatever network, or there was a long silence."""
        ...
