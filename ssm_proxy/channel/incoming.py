"""The receiving half: order, repeats, holes, and what to acknowledge (docs/PROTOCOL.md section 5.3).

* The expected number: acknowledge, deliver, then deliver what was stored behind it.
* A later one, with room in the store: acknowledge and store.
* A later one, store full: ignore; its sender keeps it and brings it again.
* An earlier one: acknowledge **again**. The first acknowledge may have been lost, and an agent resends only its oldest
  message, so that one unacknowledged repeat blocks all repair behind it. The official client does not do this.
"""

from __future__ import annotations

from ssm_proxy.wire.agent_message import AgentMessage

MAX_STORED_MESSAGES = 10_000
MAX_STORED_BYTES = 8 * 1024 * 1024


class Incoming:
    """Puts the stream messages of one direction in order."""

    def __init__(self) -> None:
        self.expected_sequence_number = 0
        self._stored: dict[int, AgentMessage] = {}
        self._stored_bytes = 0
        self._last_early = -1  # highest number that came before its turn, stored or not

    @property
    def has_hole(self) -> bool:
        """Whether a message is missing: a later one came, and it did not."""
        return self._last_early >= self.expected_sequence_number

    def accept(self, message: AgentMessage) -> tuple[bool, list[AgentMessage]]:
        """Take one stream message.

        Returns:
            Whether to acknowledge it, and the messages that are now in order, oldest first.
        """
        number = message.sequence_number
        expected = self.expected_sequence_number
        if number == expected:
            expected += 1
            ready = [message]
            while self._stored and (following := self._stored.pop(expected, None)) is not None:
                self._stored_bytes -= len(following.payload)
                ready.append(following)
                expected += 1
            self.expected_sequence_number = expected
            return True, ready
        if number < expected:
            return number >= 0, []
        self._last_early = max(self._last_early, number)
        if number not in self._stored:
            size = len(message.payload)
            if len(self._stored) >= MAX_STORED_MESSAGES or self._stored_bytes + size > MAX_STORED_BYTES:
                return False, []
            self._stored[number] = message
            self._stored_bytes += size
        return True, []
