"""Round-trip estimation and the retransmission timeout."""

from __future__ import annotations

INITIAL_SMOOTHED = 0.1
INITIAL_TIMEOUT = 0.2
GRANULARITY = 0.010
LARGEST_TIMEOUT = 1.0
SMALLEST_TIMEOUT = 0.1
"""The official programs have no smallest timeout, but look only every 100 ms: this is the same pace without a tick."""


class RoundTrip:
    """Smoothed round-trip time and its variation, in seconds.

    Source: session-manager-plugin, src/datachannel/streaming.go; docs/PROTOCOL.md section 5.6.
    """

    def __init__(self) -> None:
        self.smoothed = INITIAL_SMOOTHED
        self.variation = 0.0
        self.timeout = INITIAL_TIMEOUT
        self.minimum = float("inf")

    def add_sample(self, age: float) -> None:
        """Take the age of a message at its acknowledge.

        Only for messages that were sent once: the acknowledge of a repeated one does not tell which sending it answers
        (Karn's rule; the official client does take such samples).
        """
        if age < self.minimum:
            self.minimum = age
        self.variation += (abs(self.smoothed - age) - self.variation) / 4
        self.smoothed += (age - self.smoothed) / 8
        timeout = self.smoothed + max(GRANULARITY, 4 * self.variation)
        self.timeout = min(LARGEST_TIMEOUT, max(SMALLEST_TIMEOUT, timeout))
