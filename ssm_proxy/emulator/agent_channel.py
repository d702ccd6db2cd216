"""The agent's end of a data channel: numbers, acknowledges, repeats, pauses. No sockets; ``now`` is an argument.

Written apart from the client's channel on purpose, so that one mistake cannot agree with itself.

Source: amazon-ssm-agent, agent/session/datachannel/datachannel.go; docs/PROTOCOL.md section 5.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.emulator.inspection import DeafeningMessage, ReadMessage, read_message
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import SYN, SYN_FIN, MessageType, PayloadType
from ssm_proxy.wire.payloads import Acknowledge, decode_acknowledge, encode_acknowledge, format_uuid

TICK_S: Final = 0.1
BUFFER_MESSAGES: Final = 100_000
"""The agent's limit for unacknowledged and for out-of-order messages (10.2)."""

_REPEATS: Final = 64
_GRANULARITY_S: Final = 0.010
_LARGEST_TIMEOUT_S: Final = 1.0

InputHandler = Callable[[int, bytes], bool]
"""Takes payload type and payload of the next message in order; False refuses it: no acknowledge, comes again."""


class AgentChannel:
    """Sequence numbers of one session, both directions.

    Args:
        handle_input: see :data:`InputHandler`.
        defects: counts what the client did wrong.
        counts: counts what passes.
        acknowledges_repeats: as agents do since 3.2.1041; older ones ignore repeats.
    """

    def __init__(
        self,
        handle_input: InputHandler,
        defects: Counter[str],
        counts: ChannelCounts,
        *,
        acknowledges_repeats: bool = True,
    ) -> None:
        self._handle_input = handle_input
        self._acknowledges_repeats = acknowledges_repeats
        self._defects = defects
        self._next_output = 0
        self._expected_input = 0
        self._stored: dict[int, ReadMessage] = {}
        self._unacknowledged: dict[int, tuple[bytes, float]] = {}
        self._replies: list[bytes] = []
        self._smoothed_s = 0.1
        self._variation_s = 0.0
        self.timeout_s = 0.2
        self.is_paused = False
        self.is_deaf = False
        self._was_restarted = False
        self._to_repeat: deque[int] = deque()
        self._repeated: set[int] = set()
        self.is_closed = False
        self.unacknowledged_bytes = 0
        self.counts = counts

    @property
    def all_acknowledged(self) -> bool:
        return not self._unacknowledged

    def reconnected(self) -> None:
        """Forget a pause: the agent does not remember one across a new connection (2.6)."""
        self.is_paused = False
        self._was_restarted = True

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, payload_type: int, payload: bytes, now: float) -> bytes | None:
        """Number and keep one message of output.

        Returns:
            The bytes to send, or None during a pause: the timer will bring them.
        """
        number = self._next_output
        self._next_output = number + 1
        data = encode_agent_message(
            AgentMessage(
                MessageType.OUTPUT,
                payload,
                _new_message_id(),
                time.time_ns() // 1_000_000,
                number,
                payload_type,
                SYN if number == 0 else 0,
            )
        )
        if len(self._unacknowledged) < BUFFER_MESSAGES:  # beyond: sent but not kept (5.4)
            self._unacknowledged[number] = (data, now)
            self.unacknowledged_bytes += len(data)
        self.counts.output_messages += 1
        self.counts.output_bytes += len(payload)
        return None if self.is_paused else data

    def session_state(self, payload: bytes) -> bytes:
        """Give an ``agent_session_state`` message, which stands outside the stream."""
        return self._unnumbered(MessageType.AGENT_SESSION_STATE, payload)

    def resend_due(self, now: float) -> bytes | None:
        """Give the oldest unacknowledged message if its time is over; called on every tick (5.5)."""
        if self.is_paused or not self._unacknowledged:
            return None
        number = next(iter(self._unacknowledged))
        data, sent_at = self._unacknowledged[number]
        if now - sent_at <= self.timeout_s:
            return None
        self._unacknowledged[number] = (data, now)
        self.counts.resends += 1
        return data

    def repeat_lost(self, now: float) -> list[bytes]:
        """Give the next of the messages that a lost connection may have taken along.

        The agent itself has nothing like it: it repeats one message on each tick, and the pauses between its messages
        keep little under way. Without pauses thousands may be lost with a connection, which would take minutes.
        A few go out at a time and the next when those are acknowledged, so that a connection that is cut again soon
        has made some progress.
        """
        if self._was_restarted:
            self._was_restarted = False
            self._to_repeat = deque(self._unacknowledged)
            self._repeated.clear()
        messages = []
        while self._to_repeat and len(self._repeated) < _REPEATS:
            number = self._to_repeat.popleft()
            kept = self._unacknowledged.get(number)
            if kept is not None:
                self._unacknowledged[number] = (kept[0], now)
                self._repeated.add(number)
                messages.append(kept[0])
        self.counts.resends += len(messages)
        return messages

    def take_replies(self) -> list[bytes]:
        """Give the acknowledges that the messages received so far have earned, once."""
        replies, self._replies = self._replies, []
        return replies

    # --- receiving -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take one message; what it calls for is in :meth:`take_replies` afterwards."""
        if self.is_deaf:
            return
        try:
            message = read_message(data, self._defects)
        except DeafeningMessage:
            self.is_deaf = True
            return
        if message is None:
            return
        kind = message.message_type
        if kind == MessageType.INPUT:
            self.is_paused = False
            self._receive_input(message)
        elif kind == MessageType.ACKNOWLEDGE:
            self.is_paused = False
            self._receive_acknowledge(message.payload, now)
        elif kind == MessageType.PAUSE_PUBLICATION:
            self.is_paused = True
        elif kind == MessageType.START_PUBLICATION:
            self.is_paused = False
            self._was_restarted = True
        elif kind == MessageType.CHANNEL_CLOSED:
            self.is_closed = True
        else:
            self._defects["unknown message type, ignored"] += 1

    def _receive_input(self, message: ReadMessage) -> None:
        number = message.sequence_number
        if number == self._expected_input:
            if not self._handle(message):
                return
            self._acknowledge(message)
            while (stored := self._stored.get(self._expected_input)) is not None:
                if not self._handle(stored):  # it stays, as in the agent, until the next arrival in order (5.3)
                    return
                del self._stored[stored.sequence_number]
        elif number > self._expected_input:
            if number in self._stored or len(self._stored) < BUFFER_MESSAGES:
                self.counts.out_of_order_received += 1
                self._stored[number] = message
                self._acknowledge(message)
        else:
            self.counts.repeats_received += 1
            if self._acknowledges_repeats:
                self._acknowledge(message)

    def _handle(self, message: ReadMessage) -> bool:
        if not self._handle_input(message.payload_type, message.payload):
            self.counts.refused_input += 1
            return False
        self._expected_input += 1
        self.counts.input_messages += 1
        self.counts.input_bytes += len(message.payload)
        return True

    def _acknowledge(self, message: ReadMessage) -> None:
        acknowledge = Acknowledge(message.message_type, format_uuid(message.message_id), message.sequence_number)
        self._replies.append(self._unnumbered(MessageType.ACKNOWLEDGE, encode_acknowledge(acknowledge)))

    def _receive_acknowledge(self, payload: bytes, now: float) -> None:
        try:
            number = decode_acknowledge(payload).sequence_number
        except MalformedMessage:
            self._defects["acknowledge that cannot be read, ignored"] += 1
            return
        kept = self._unacknowledged.pop(number, None)
        if kept is None:
            if number >= self._next_output:
                self._defects["acknowledge of a message never sent"] += 1
            return
        self._repeated.discard(number)
        data, sent_at = kept
        self.unacknowledged_bytes -= len(data)
        age = now - sent_at  # of the latest sending, also for a repeated message (5.5)
        self._variation_s = 0.75 * self._variation_s + 0.25 * abs(self._smoothed_s - age)
        self._smoothed_s = 0.875 * self._smoothed_s + 0.125 * age
        self.timeout_s = min(_LARGEST_TIMEOUT_S, self._smoothed_s + max(_GRANULARITY_S, 4 * self._variation_s))

    @staticmethod
    def _unnumbered(kind: str, payload: bytes) -> bytes:
        return encode_agent_message(
            AgentMessage(kind, payload, _new_message_id(), time.time_ns() // 1_000_000, 0, PayloadType.NONE, SYN_FIN)
        )


def _new_message_id() -> bytes:
    """Give a random UUID of version 4; a third of the time that the library takes, once for each message."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    return bytes(value)
