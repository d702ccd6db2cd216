"""The sending half: what is unacknowledged, and when to send it again.

The rules, and where they leave the official client (docs/PROTOCOL.md sections 5.4 and 5.5):

* Acknowledges name one message each. One that names a message sent well after another says that the other is lost
  (`REORDERING`): it is sent again at once. The official client knows only a timer.
* When nothing is acknowledged for a timeout, the message with the lowest number is sent again, alone, and the timeout
  doubles: an agent that stands still because its disk is slow is probed, not flooded. It stays doubled until a message
  that was sent once is acknowledged: else, where the round trip is longer than the timeout, every message would be
  repeated, and none ever measure it (the second half of Karn's rule).
* The acknowledge of a repeated message does not tell which sending it answers. It opens recovery: each such acknowledge
  lets two more old messages go, so a lost flight is repaired in a few round trips, and an agent that was merely slow,
  whose acknowledges of the originals follow at once, is sent next to nothing twice.
* After a resume all goes out again in its order, as far as the window allows: what was in flight is most likely gone,
  and the network may be a slower one. Those are sendings like first ones: there is no other that could be acknowledged.
"""

from __future__ import annotations

from ssm_proxy.channel.rtt import RoundTrip
from ssm_proxy.channel.window import Window

REORDERING = 3
"""How many later sendings may be acknowledged before an earlier one counts as lost (as in QUIC, RFC 9002 6.1.1)."""
LARGEST_PROBE_INTERVAL = 5.0
GIVE_UP_AFTER_PROBES = 60
"""About five minutes, like the official client's 3,000 attempts. Counted, not timed, so that a clock that jumps while a
laptop sleeps gives up nothing."""
IDLE_TIME = 10.0
"""After so long a silence what the window learned of the network is forgotten (as in RFC 2861)."""
_LARGEST_KEPT_DOUBLINGS = 3
"""What stays of the doubled timeout once a repeated message was acknowledged: enough for a round trip of a second."""
_RECOVERY_CREDIT = 2
_SOONEST = 0.75
"""Of the smallest round trip ever seen: an acknowledge that comes sooner after a repeat answers an earlier sending.
Less than 1, because on a steady link every round trip is as good as the smallest."""
_SHORTER_WAY = 0.1
"""What is left of the smallest round trip after a resume: the new way may be that much shorter. Were it forgotten, the
timeout would stand for it, and of a flight that is lost at once each message would take a timeout."""


class _Sent:
    """One unacknowledged message."""

    __slots__ = ("data", "first_order", "order", "sent_at", "sequence_number", "size", "transmissions")

    def __init__(self, sequence_number: int, data: bytes, size: int, now: float, order: int) -> None:
        self.sequence_number = sequence_number
        self.data = data
        self.size = size
        self.sent_at = now
        self.first_order = order
        self.order = order
        self.transmissions = 1


class Outgoing:
    """Unacknowledged messages of one direction.

    ``add``, ``acknowledge``, ``resend_all`` and ``retransmissions`` may each change ``deadline``.
    """

    def __init__(self, window: Window, round_trip: RoundTrip) -> None:
        self._window = window
        self._round_trip = round_trip
        self._unacknowledged: dict[int, _Sent] = {}  # sent on this connection, ordered by latest sending
        self._backlog: dict[int, _Sent] = {}  # sent on an earlier one only, ordered by number
        self._in_flight_bytes = 0  # of those sent on this connection
        self._order = 0  # of sendings, repeats included
        self._evidence = -1  # latest first sending known to have arrived
        self._recovery_limit = -1  # sendings up to this one may be repeated by credit
        self._credit = 0
        self._progress_at = 0.0
        self._probes = 0  # since the last acknowledge
        self._doublings = 0  # of the timeout
        self.next_sequence_number = 0
        self.unacknowledged_bytes = 0
        self.retransmission_count = 0

    @property
    def has_given_up(self) -> bool:
        """Whether so many probes went unanswered that the other side must be gone."""
        return self._probes >= GIVE_UP_AFTER_PROBES

    @property
    def is_empty(self) -> bool:
        return not self._unacknowledged and not self._backlog

    @property
    def unacknowledged_count(self) -> int:
        return len(self._unacknowledged) + len(self._backlog)

    def add(self, data: bytes, size: int, now: float) -> None:
        """Take note of a message that is sent for the first time, numbered ``next_sequence_number``."""
        if not self._unacknowledged:
            if now - self._progress_at > IDLE_TIME:
                self._window.forget(now)
            self._progress_at = now
        number = self.next_sequence_number
        self._unacknowledged[number] = _Sent(number, data, size, now, self._order)
        self._order += 1
        self.next_sequence_number = number + 1
        self.unacknowledged_bytes += size
        self._in_flight_bytes += size

    def acknowledge(self, sequence_number: int, now: float) -> bool:
        """Forget the message of that number; return whether there was one."""
        sent = self._unacknowledged.pop(sequence_number, None)
        if sent is None:
            return self._acknowledge_backlog(sequence_number)
        in_flight = self._in_flight_bytes
        self._in_flight_bytes = in_flight - sent.size
        self.unacknowledged_bytes -= sent.size
        self._progress_at = now
        self._probes = 0
        age = now - sent.sent_at
        if sent.transmissions == 1:
            self._doublings = 0
            self._round_trip.add_sample(age)
            self._window.on_acknowledged(sent.size, age, now, in_flight)
        else:
            self._window.on_acknowledged(sent.size, None, now, in_flight)
            self._doublings = min(self._doublings, _LARGEST_KEPT_DOUBLINGS)
            soonest = self._round_trip.minimum if self._round_trip.minimum < float("inf") else self._round_trip.timeout
            if age >= _SOONEST * soonest:
                self._credit += _RECOVERY_CREDIT
        if sent.first_order > self._evidence:
            self._evidence = sent.first_order
        return True

    def _acknowledge_backlog(self, sequence_number: int) -> bool:
        sent = self._backlog.pop(sequence_number, None)
        if sent is not None:
            self.unacknowledged_bytes -= sent.size
        return sent is not None

    def resend_all(self, now: float) -> list[bytes]:
        """Begin with a connection that has just been resumed; give the first of what is to be sent again.

        The rest follows from ``retransmissions``, in order.
        """
        again = {**self._unacknowledged, **self._backlog}
        self._backlog = {number: again[number] for number in sorted(again)}
        self._unacknowledged = {}
        self._in_flight_bytes = 0
        self._evidence = -1
        self._recovery_limit = -1
        self._credit = 0
        self._probes = 0
        self._doublings = 0
        self._progress_at = now
        self._window.forget(now)
        self._round_trip.minimum *= _SHORTER_WAY
        return self._send_backlog(now)

    def _send_backlog(self, now: float) -> list[bytes]:
        again: list[bytes] = []
        while self._backlog and (not self._unacknowledged or self._in_flight_bytes < self._window.limit_bytes):
            number = next(iter(self._backlog))
            sent = self._backlog.pop(number)
            if not self._unacknowledged:
                self._progress_at = now
            sent.order = sent.first_order = self._order
            sent.sent_at = now
            sent.transmissions = 1
            self._order += 1
            self._unacknowledged[number] = sent
            self._in_flight_bytes += sent.size
            self.retransmission_count += 1
            again.append(sent.data)
        return again

    def retransmissions(self, now: float) -> list[bytes]:
        """Give the messages that are due to be sent again at ``now``.

        Call it after a whole batch of acknowledges was handed in, not between them: until then what looks lost may only
        be next in line.
        """
        due: list[bytes] = []
        if not self._unacknowledged:
            self._credit = 0
            return self._send_backlog(now)
        lost_before = self._evidence - REORDERING
        while True:
            sent = next(iter(self._unacknowledged.values()))
            if sent.order < lost_before:
                pass
            elif self._credit > 0 and sent.order <= self._recovery_limit:
                self._credit -= 1
            else:
                break
            self._repeat(sent, now)
            due.append(sent.data)
        self._credit = 0
        if due:
            self._progress_at = now
        elif now >= self._probe_at():
            self._recovery_limit = self._order
            self._probes += 1
            self._doublings += 1
            self._progress_at = now
            head = self._unacknowledged[min(self._unacknowledged)]
            self._repeat(head, now)
            due.append(head.data)
        return due + self._send_backlog(now) if self._backlog else due

    def deadline(self) -> float | None:
        """Give the time at which ``retransmissions`` has something to say if no acknowledge comes before."""
        return self._probe_at() if self._unacknowledged else None

    def _probe_at(self) -> float:
        interval = self._round_trip.timeout * 2.0 ** min(self._doublings, 8)
        return self._progress_at + min(interval, LARGEST_PROBE_INTERVAL)

    def _repeat(self, sent: _Sent, now: float) -> None:
        del self._unacknowledged[sent.sequence_number]
        sent.order = self._order
        sent.sent_at = now
        sent.transmissions += 1
        self._order += 1
        self._unacknowledged[sent.sequence_number] = sent
        self.retransmission_count += 1
