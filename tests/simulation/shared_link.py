"""Uploads of several tunnels over one link, on a virtual clock: rate, window and queueing delay over time.

Every tunnel is a real :class:`DataChannel` with its congestion window and pacer; its agent only acknowledges. The link
is one queue of messages in front of a rate limit, then a delay. The way back carries acknowledges without a limit.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from simulation import wire_sketch
from simulation.pair import make_channel
from simulation.wire_sketch import Frame

from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import SYN_FIN, MessageType
from ssm_proxy.wire.payloads import Acknowledge, encode_acknowledge

READ_BYTES = 64 * 1024
BATCH_TIME = 0.0005
"""The driver takes together what came while it was busy."""
FRAME_BYTES = 30
"""What WebSocket and TLS add to a message."""
_ZERO_ID = "00000000-0000-4000-8000-000000000000"
_SEQUENCE_NUMBER = slice(48, 56)  # (3.1)


@dataclass(frozen=True, kw_only=True)
class LinkShape:
    """What a link does to the messages of all tunnels together.

    Args:
        rate: bytes per second, or a function of the time.
        round_trip: seconds without any queue.
        jitter: at most so many seconds more, at random, for each message.
        loss: probability that the service loses a message.
        other_traffic: bytes per second of somebody who does not look at delay, as a function of the time.
    """

    rate: float | Callable[[float], float]
    round_trip: float
    jitter: float = 0.0
    loss: float = 0.0
    other_traffic: Callable[[float], float] | None = None

    def rate_at(self, now: float) -> float:
        return self.rate(now) if callable(self.rate) else self.rate


@dataclass
class Sample:
    """What happened in one interval; one entry for each tunnel where it is a list."""

    time: float
    rates: list[float]
    """Bytes per second that were acknowledged, counted as the link counts them."""
    windows: list[int]
    longest_queue: float = 0.0
    """Seconds that a message waited in front of the rate limit."""
    queues: list[float] = field(default_factory=list)


class _Tunnel:
    def __init__(self, starts_at: float) -> None:
        self.starts_at = starts_at
        self.window = CongestionWindow()
        self.channel = make_channel(window=self.window)
        self.armed_for = math.inf
        self.inbox: list[bytes] = []

    def begin(self, now: float) -> None:
        self.window.forget(now)
        self.channel.open("token", now)
        first = Frame("output_stream_data", wire_sketch.handshake_request("Port"), 0, 5, 1, uuid.UUID(int=1))
        second = Frame("output_stream_data", b"{}", 1, 7, 0, uuid.UUID(int=2))
        third = Frame("output_stream_data", b"SSH-2.0-server\r\n", 2, 1, 0, uuid.UUID(int=3))
        for frame in (first, second, third):
            self.channel.receive(wire_sketch.pack(frame), now)


class SharedLink:
    """Tunnels that upload without end, from the second at which each starts.

    Args:
        shape: the link.
        starts: seconds at which the tunnels begin.
        interval: seconds of a sample.
        seed: of jitter and loss.
    """

    def __init__(
        self, shape: LinkShape, *, starts: Sequence[float] = (0.0,), interval: float = 0.1, seed: int = 1
    ) -> None:
        self._shape = shape
        self._interval = interval
        self._random = random.Random(seed)
        self._tunnels = [_Tunnel(start) for start in starts]
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._queue: deque[tuple[int, bytes, float]] = deque()
        self._is_busy = False
        self._sample = self._new_sample(0.0)
        self.samples: list[Sample] = []

    def run(self, seconds: float) -> SharedLink:
        """Run from the beginning; ``samples`` tell what happened."""
        for number, tunnel in enumerate(self._tunnels):
            self._at(tunnel.starts_at, lambda now, number=number: self._begin(number, now))
        if self._shape.other_traffic is not None:
            self._at(0.0, self._other_traffic)
        self._at(self._interval, self._take_sample)
        while self._events and self._events[0][0] <= seconds:
            now, _, action = heapq.heappop(self._events)
            action(now)
        return self

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something done at a time of the run."""
        self._at(when, lambda _now: action())

    def change_shape(self, shape: LinkShape) -> None:
        """Make another link of it."""
        self._shape = shape

    # --- what tests ask ---------------------------------------------------------------------------------------------

    def share(self, begin: float, end: float = math.inf) -> float:
        """Give what all tunnels together carried, as a share of the link's rate."""
        part = self._between(begin, end)
        return fmean(sum(sample.rates) / self._shape.rate_at(sample.time - self._interval / 2) for sample in part)

    def unfairness(self, begin: float, end: float = math.inf) -> float:
        """Give how many times the slowest tunnel's bytes the fastest one carried."""
        part = self._between(begin, end)
        carried = [sum(sample.rates[number] for sample in part) for number in range(len(self._tunnels))]
        return max(carried) / max(1.0, min(carried))

    def longest_queue(self, begin: float, end: float = math.inf) -> float:
        """Give the longest wait of a message in front of the rate limit, in seconds."""
        return max(sample.longest_queue for sample in self._between(begin, end))

    @property
    def repeats(self) -> int:
        return sum(tunnel.channel.retransmission_count for tunnel in self._tunnels)

    def _between(self, begin: float, end: float) -> list[Sample]:
        return [sample for sample in self.samples if begin < sample.time <= end]

    # --- the works --------------------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def _begin(self, number: int, now: float) -> None:
        self._tunnels[number].begin(now)
        self._drive(number, now)

    def _drive(self, number: int, now: float) -> None:
        """Do what the driver does after any call."""
        tunnel = self._tunnels[number]
        channel = tunnel.channel
        deadline = channel.next_deadline()
        if deadline is not None and deadline <= now:
            channel.handle_deadline(now)
        while room := channel.input_room(now):
            channel.send_input(bytes(min(room, READ_BYTES)), now)
        for data in channel.messages_to_send(now):
            self._enqueue(number, data, now)
        channel.events()
        deadline = channel.next_deadline()
        # Timers of the driver are good to a millisecond.
        due = math.inf if deadline is None else max(deadline, now + 0.001)
        if due < tunnel.armed_for:
            tunnel.armed_for = due
            self._at(due, lambda now: self._timer(number, now))

    def _timer(self, number: int, now: float) -> None:
        self._tunnels[number].armed_for = math.inf
        self._drive(number, now)

    def _enqueue(self, number: int, data: bytes, now: float) -> None:
        self._queue.append((number, data, now))
        if not self._is_busy:
            self._is_busy = True
            self._carry_next(now)

    def _carry_next(self, now: float) -> None:
        size = len(self._queue[0][1]) + FRAME_BYTES
        self._at(now + size / self._shape.rate_at(now), self._carried)

    def _carried(self, now: float) -> None:
        number, data, queued_at = self._queue.popleft()
        if self._queue:
            self._carry_next(now)
        else:
            self._is_busy = False
        waited = now - queued_at - (len(data) + FRAME_BYTES) / self._shape.rate_at(now)
        self._sample.longest_queue = max(self._sample.longest_queue, waited)
        self._sample.queues.append(waited)
        if number < 0 or (self._shape.loss and self._random.random() < self._shape.loss):
            return
        delay = self._shape.round_trip
        if self._shape.jitter:
            delay += self._random.uniform(0, self._shape.jitter)
        self._at(now + delay, lambda now: self._acknowledged(number, data, now))

    def _acknowledged(self, number: int, data: bytes, now: float) -> None:
        if data.startswith(b"acknowledge", 4):
            return
        sequence_number = int.from_bytes(data[_SEQUENCE_NUMBER], "big")
        payload = encode_acknowledge(Acknowledge(MessageType.INPUT, _ZERO_ID, sequence_number))
        answer = AgentMessage(MessageType.ACKNOWLEDGE, payload, bytes(16), 1, flags=SYN_FIN)
        self._sample.rates[number] += (len(data) + FRAME_BYTES) / self._interval
        tunnel = self._tunnels[number]
        if not tunnel.inbox:
            self._at(now + BATCH_TIME, lambda now: self._receive(number, now))
        tunnel.inbox.append(encode_agent_message(answer))

    def _receive(self, number: int, now: float) -> None:
        tunnel = self._tunnels[number]
        for message in tunnel.inbox:
            tunnel.channel.receive(message, now)
        tunnel.inbox.clear()
        self._drive(number, now)

    def _other_traffic(self, now: float) -> None:
        assert self._shape.other_traffic is not None
        rate = self._shape.other_traffic(now)
        if rate:
            self._enqueue(-1, bytes(1200), now)
        self._at(now + (1230 / rate if rate else self._interval), self._other_traffic)

    def _new_sample(self, now: float) -> Sample:
        return Sample(
            now + self._interval, [0.0] * len(self._tunnels), [each.window.limit_bytes for each in self._tunnels]
        )

    def _take_sample(self, now: float) -> None:
        self.samples.append(self._sample)
        self._sample = self._new_sample(now)
        self._at(now + self._interval, self._take_sample)
