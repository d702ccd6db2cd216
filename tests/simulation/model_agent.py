"""An agent in miniature, written from docs/PROTOCOL.md sections 5 and 6 and from nothing in the package.

It is as strict with what it is sent as the real one could be, and stricter: any breach of the protocol by the client is
an AssertionError.
"""

from __future__ import annotations

import itertools
import json
import math
import uuid
from dataclasses import dataclass

from simulation import wire_sketch
from simulation.wire_sketch import Frame

TICK = 0.1
COMPLETE = b'{"HandshakeTimeToComplete":1000000,"CustomerMessage":""}'


@dataclass
class _Sent:
    data: bytes
    at: float


class ModelAgent:
    """Speaks the agent's side of one stream session; time is an argument.

    Args:
        complete_after: seconds between HandshakeResponse and HandshakeComplete.
        discards_for: input of this many seconds after HandshakeComplete is acknowledged and thrown away (6.2).
        refuses_for: then, for so long, it is not acknowledged: the destination is still being dialled (5.3).
        speaks: what the destination says as soon as it is reached.
    """

    def __init__(
        self, *, complete_after: float = 0.0, discards_for: float = 0.0, refuses_for: float = 0.0, speaks: bytes = b""
    ) -> None:
        self._complete_after = complete_after
        self._discards_for = discards_for
        self._refuses_for = refuses_for
        self._speaks = speaks
        self._ids = itertools.count(1)
        self._next_number = 0
        self._kept: dict[int, _Sent] = {}
        self._smoothed, self._variation, self._timeout = 0.1, 0.0, 0.2
        self._next_tick = 0.0
        self._paused = False
        self._expected = 0
        self._stored: dict[int, Frame] = {}
        self._seen: dict[int, bytes] = {}
        self._out: list[bytes] = []
        self._complete_at = math.inf
        self._dialled_at = math.inf
        self._takes_data_at = math.inf
        self._responses = 0
        self._withheld: list[bytes] = []  # not yet sent, because of a pause
        self.received = bytearray()
        self.flags: list[bytes] = []
        self.discarded_bytes = 0
        self.refused_count = 0
        self.repeat_count = 0
        self._backlog: list[bytes] | None = None

    # --- its own doing ----------------------------------------------------------------------------------------------

    def start(self, now: float, session_type: str = "Port") -> None:
        self._next_tick = now + TICK
        self._send(wire_sketch.handshake_request(session_type), 5, now)

    def send(self, data: bytes, now: float) -> None:
        """Send output, cut like the real one's; a paused reader just does not read (5.7)."""
        for start in range(0, len(data), 1024):
            chunk = data[start : start + 1024]
            if self._paused:
                self._withheld.append(chunk)
            else:
                self._send(chunk, 1, now)

    def stall(self) -> None:
        """Stand still: what arrives waits in the socket, and nothing leaves."""
        self._backlog = []

    def wake(self, now: float) -> None:
        backlog, self._backlog = self._backlog or [], None
        for data in backlog:
            self.receive(data, now)

    def take(self) -> list[bytes]:
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        own = [at for at in (self._complete_at, self._dialled_at) if at < math.inf]
        if self._kept and not self._paused:
            own.append(self._next_tick)
        return min(own, default=math.inf) if self._backlog is None else math.inf

    def advance(self, now: float) -> None:
        if self._backlog is not None:
            return
        if now >= self._complete_at:
            self._complete_at = math.inf
            self._send(COMPLETE, 7, now)
            self._takes_data_at = now + self._discards_for
            self._dialled_at = self._takes_data_at + self._refuses_for
        if now >= self._dialled_at:
            self._dialled_at = math.inf
            self._refuses_for = 0.0
            self.send(self._speaks, now)
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._resend_head(now)

    def _send(self, payload: bytes, payload_type: int, now: float) -> None:
        number = self._next_number
        self._next_number += 1
        kind = "output_stream_data"
        data = wire_sketch.pack(Frame(kind, payload, number, payload_type, int(number == 0), self._new_id()))
        if not self._kept:
            self._next_tick = now + TICK
        self._kept[number] = _Sent(data, now)
        self._out.append(data)

    def _resend_head(self, now: float) -> None:
        if self._paused or not self._kept:
            return
        head = self._kept[min(self._kept)]
        if now - head.at > self._timeout:
            head.at = now
            self.repeat_count += 1
            self._out.append(head.data)

    def _new_id(self) -> uuid.UUID:
        return uuid.UUID(int=next(self._ids))

    # --- what it is sent --------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        if self._backlog is not None:
            self._backlog.append(data)
            return
        frame = wire_sketch.unpack(data)
        if frame.kind == "pause_publication":
            self._paused = True
        elif frame.kind == "start_publication":
            self._go_on(now)
        elif frame.kind == "acknowledge":
            self._go_on(now)
            self._receive_acknowledge(frame, now)
        else:
            assert frame.kind == "input_stream_data"
            self._go_on(now)
            self._receive_input(frame, data, now)

    def _go_on(self, now: float) -> None:
        self._paused = False
        withheld, self._withheld = self._withheld, []
        for chunk in withheld:
            self._send(chunk, 1, now)

    def _receive_acknowledge(self, frame: Frame, now: float) -> None:
        assert (frame.seq, frame.flags, frame.payload_type) == (0, 3, 0)
        values = json.loads(frame.payload)
        assert values["AcknowledgedMessageType"] == "output_stream_data"
        assert values["AcknowledgedMessageSequenceNumber"] < self._next_number
        sent = self._kept.pop(values["AcknowledgedMessageSequenceNumber"], None)
        if sent is None:
            return
        assert values["AcknowledgedMessageId"] == str(wire_sketch.unpack(sent.data).uid)
        age = now - sent.at
        self._variation = 0.75 * self._variation + 0.25 * abs(self._smoothed - age)
        self._smoothed = 0.875 * self._smoothed + 0.125 * age
        self._timeout = min(1.0, self._smoothed + max(0.01, 4 * self._variation))

    def _receive_input(self, frame: Frame, data: bytes, now: float) -> None:
        assert frame.flags == 0
        assert frame.payload, "empty input is not to be sent"
        assert len(frame.payload) <= 1024
        assert self._seen.setdefault(frame.seq, data) == data, "a repeat differs from its first sending"
        if frame.seq > self._expected:
            self._stored[frame.seq] = frame
            self._acknowledge(frame)
        elif frame.seq < self._expected:
            self._acknowledge(frame)
        elif not self._handle(frame, now):
            self.refused_count += 1
        else:
            self._acknowledge(frame)
            self._expected += 1
            while self._expected in self._stored and self._handle(self._stored[self._expected], now):
                del self._stored[self._expected]
                self._expected += 1

    def _handle(self, frame: Frame, now: float) -> bool:
        if frame.payload_type == 6:
            self._responses += 1
            assert self._responses == 1, "a second HandshakeResponse blocks the agent for ever"
            values = json.loads(frame.payload)
            assert [action["ActionStatus"] for action in values["ProcessedClientActions"]] == [1]
            self._complete_at = now + self._complete_after
            return True
        if now < self._takes_data_at:
            self.discarded_bytes += len(frame.payload)
            return True
        if self._refuses_for:
            return False
        if frame.payload_type == 10:
            self.flags.append(frame.payload)
        else:
            assert frame.payload_type == 1
            self.received += frame.payload
        return True

    def _acknowledge(self, frame: Frame) -> None:
        self._out.append(wire_sketch.acknowledge(frame, self._new_id()))

    @property
    def is_drained(self) -> bool:
        return not self._kept and not self._withheld and not self._stored
