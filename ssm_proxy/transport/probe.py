"""Finds out whether a forwarding carries traffic.

The agent does not say that it has connected, only that it could not, and a destination that waits for the other side to
speak says nothing at all. So a probe opens one connection, sends nothing, and ends with the first of these:

- the destination sends something, or closes: it was reached (``answered``);
- the agent has acknowledged the opening, and for `PATIENCE` nothing was refused (``not refused``): a refusal from the
  node itself or its network takes milliseconds. A destination that swallows packets shows itself only later;
- the agent says that it could not connect: the forwarding is of no use.
"""

from __future__ import annotations

PATIENCE = 1.0
ANSWERED = "answered"
NOT_REFUSED = "not refused"
UNKNOWN = "unknown"
"""What silence means with old agents, which report a refusal after a minute only (docs/PROTOCOL.md 12.14)."""


class Probe:
    """One probe.

    Args:
        stream_id: of the stream that it uses; 0 where there are no streams.
        silence: the result if nothing is said for a while.
    """

    def __init__(self, stream_id: int = 0, silence: str = NOT_REFUSED) -> None:
        self.stream_id = stream_id
        self._silence = silence
        self.result: str | None = None
        """What it has shown."""
        self._until: float | None = None

    def answered(self) -> None:
        """Take note that the destination did something."""
        self.result = ANSWERED

    def look(self, now: float, *, is_sent: bool, is_connected: bool) -> None:
        """Take note of the time.

        Args:
            now: the time.
            is_sent: whether the agent has acknowledged all that it was sent.
            is_connected: whether a refusal would arrive.
        """
        if not is_connected:
            self._until = None
        elif self._until is None:
            if is_sent:
                self._until = now + PATIENCE
        elif now >= self._until and self.result is None:
            self.result = self._silence

    def deadline(self) -> float | None:
        """Give the time at which ``look`` is due."""
        return self._until
