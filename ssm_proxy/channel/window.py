"""How many bytes may be under way unacknowledged.

The protocol has no window: a sender that does not limit itself fills the relay's queue, and everything behind it, a
keystroke or a keepalive, waits (docs/PROTOCOL.md section 10.4). Standard input is not read while the window is full, so
this bound is also what keeps memory flat.
"""

from __future__ import annotations

from typing import Protocol

FIXED_WINDOW_BYTES = 512 * 1024
"""At a round trip of 100 ms this carries 5 MB/s; far below the 10,000 messages that every receiver can reorder."""


class Window(Protocol):
    """What bounds the bytes in flight. Times are seconds of one monotonic clock."""

    @property
    def limit_bytes(self) -> int:
        """How many payload bytes may be unacknowledged now."""
        ...

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float) -> None:
        """Take note of one acknowledge; ``round_trip`` is None where the message had been sent more than once."""
        ...

    def on_lost(self, now: float) -> None:
        """Take note that something had to be sent again."""
        ...


class FixedWindow:
    """A window of one size, whatever the link does."""

    def __init__(self, limit_bytes: int = FIXED_WINDOW_BYTES) -> None:
        self.limit_bytes = limit_bytes

    def on_acknowledged(self, size_bytes: int, round_trip: float | None, now: float) -> None:
        pass

    def on_lost(self, now: float) -> None:
        pass
