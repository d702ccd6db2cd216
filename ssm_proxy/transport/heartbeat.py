"""When to ping, and when a connection that stays silent is dead. Knows no socket; times and counts are arguments."""

from __future__ import annotations

PING_INTERVAL = 25.0
"""NATs and VPNs are known that forget a silent connection after 60 s; the official client pings every 5 minutes."""
PONG_TIMEOUT = 20.0
SILENCE_BEFORE_PING = 5.0
"""A connection on which messages came and then none for so long is asked once whether it is still there. An agent that
stands still is no reason for worry: the service answers in its place."""
SUSPECT_PONG_TIMEOUT = 5.0
"""After such a silence, or after the machine slept, the connection may well be dead, and a person is waiting."""
SLEEP_THRESHOLD = 5.0


class Heartbeat:
    """Pings and their answers on one connection after the other. Times are seconds of one monotonic clock.

    Args:
        now: the time.
        wall: the same moment by the wall clock, which goes on while the machine sleeps.
    """

    def __init__(self, now: float, wall: float) -> None:
        self._clocks = (now, wall)
        self._ping_at = now
        self._silent_at: float | None = None  # when silence becomes suspect
        self._pong_until: float | None = None
        self._bytes_at_ping = 0

    @property
    def deadline(self) -> float:
        """When ``is_due`` or ``is_dead`` may change their answer."""
        times = (self._ping_at, self._silent_at, self._pong_until)
        return min(time for time in times if time is not None)

    def heard(self, now: float) -> None:
        """Take note that messages came: more than an answer to a ping."""
        self._silent_at = now + SILENCE_BEFORE_PING

    def pinged(self, now: float, bytes_received: int, *, is_suspect: bool = False) -> None:
        """Take note that a ping is being sent."""
        if self.is_silent(now):
            self._silent_at = None
        self._ping_at = now + PING_INTERVAL
        self._pong_until = now + (SUSPECT_PONG_TIMEOUT if is_suspect else PONG_TIMEOUT)
        self._bytes_at_ping = bytes_received

    def is_due(self, now: float) -> bool:
        """Whether it is time for the next ping."""
        return now >= self._ping_at or self.is_silent(now)

    def is_silent(self, now: float) -> bool:
        """Whether messages have stopped to come, and no ping has asked why."""
        return self._silent_at is not None and now >= self._silent_at

    def is_dead(self, now: float, bytes_received: int, *, is_listening: bool) -> bool:
        """Whether the last ping went unanswered for too long.

        Args:
            now: the time.
            bytes_received: all that came on this connection; whatever arrives shows as much as the pong does.
            is_listening: False while nothing is read: the answer may be there, and the deadline is dropped.
        """
        if self._pong_until is None:
            return False
        if bytes_received != self._bytes_at_ping or not is_listening:
            self._pong_until = None
            return False
        return now >= self._pong_until

    def slept(self, now: float, wall: float) -> float:
        """Give the seconds that the machine slept since the last call: what the wall clock moved more than the other.

        0 for less than `SLEEP_THRESHOLD`: clocks are corrected now and then.
        """
        seconds = (wall - self._clocks[1]) - (now - self._clocks[0])
        self._clocks = (now, wall)
        return seconds if seconds > SLEEP_THRESHOLD else 0.0
