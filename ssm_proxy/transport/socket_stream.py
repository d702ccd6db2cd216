"""A stream session's local side where a program holds a socket: one connection to a port of the node (8.6).

OPEN --the program sends no more (a half-close)--> DRAINING --all acknowledged, then `QUIET_TIME` of silence--> over
OPEN, DRAINING --the program has closed its end--> LEAVING --all it sent is acknowledged, or `LEAVE_TIME`--> over

The protocol has no half-close (8.6): the node is not told that input has ended, so output is awaited until it stops.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.transport.application import ApplicationBase
from ssm_proxy.transport.endpoints import MAX_PENDING_BYTES, READ_BYTES
from ssm_proxy.transport.local_connection import LocalConnection
from ssm_proxy.transport.pipes import QUIET_TIME
from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller, make_poller

LEAVE_TIME = 5.0
"""What the program sent before it closed its end gets to arrive."""
_TELLS_HANG_UP = sys.platform.startswith("linux")
"""Whether a hang-up is the end of both directions. Elsewhere it is told for a half-close too, again and again."""

logger = logging.getLogger("ssm_proxy.transport")


class SocketStream(ApplicationBase):
    """Carries bytes between one end of a pair of sockets and a port of the node.

    Args:
        channel: where input goes.
        connection: our end of the pair; the program has the other one.
        begun: called when the session has begun.
        ended: called when the service has closed the session, with its reason, and whether output is known to be
            missing that the program would have taken; it may still take what came.
    """

    def __init__(
        self,
        channel: DataChannel,
        connection: LocalConnection,
        *,
        begun: Callable[[], None],
        ended: Callable[[str, bool], None],
    ) -> None:
        super().__init__(channel)
        self._connection = connection
        self._begun = begun
        self._ended = ended
        self._quiet_since = 0.0
        self._leave_at: float | None = None
        self._is_over = False
        self.output_bytes = 0
        self.fell_quiet = False
        """It ended because nothing came for `QUIET_TIME` after the end of input."""

    @property
    def is_full(self) -> bool:
        return self._connection.pending_bytes >= MAX_PENDING_BYTES

    @property
    def wants_write(self) -> bool:
        return self._connection.wants_write

    @property
    def is_over(self) -> bool:
        return self._is_over

    def watch(self, poller: Poller, now: float) -> None:
        connection = self._connection
        wants_read = not connection.input_ended and bool(self.channel.input_room(now))
        wants_hang_up = not connection.is_deaf and (_TELLS_HANG_UP or not connection.input_ended)
        if wants_read or connection.wants_write or wants_hang_up:
            poller.set(connection.fileno(), read=wants_read, write=connection.wants_write)
        else:  # a hang-up that is known would be reported again and again
            poller.remove(connection.fileno())

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        connection = self._connection
        flags = ready.get(connection.fileno(), 0)
        if connection.wants_write:
            # While the program does not keep up nothing is fetched, so nobody can say that the node is quiet.
            self._quiet_since = now
        if flags & WRITE:
            connection.flush()
        if flags & (READ | HANGUP) and not connection.input_ended:
            self._read(now, self.channel.input_room(now))
        if flags & HANGUP and not connection.is_deaf and connection.other_end_has_gone():
            connection.hang_up()
        if connection.is_deaf:
            self._leave(now)
        elif is_connected and self._is_draining and now >= self._quiet_since + QUIET_TIME and not self.wants_write:
            logger.info("no output for %.0f s after the end of input", QUIET_TIME)
            self.fell_quiet = self._is_over = True

    def deadline(self) -> float | None:
        if self._leave_at is not None:
            return self._leave_at
        return self._quiet_since + QUIET_TIME if self._is_draining and not self.wants_write else None

    def started(self, event: SessionStarted, now: float) -> None:
        self._begun()

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.output_bytes += len(data)
        self._connection.write(data)

    def heard(self, now: float) -> None:
        self._quiet_since = now

    def closed(self, reason: str) -> None:
        connection = self._connection
        # Of a program that has closed its end nothing more is heard: it may not have been noticed yet.
        has_gone = connection.is_deaf or connection.other_end_has_gone()
        self._ended(reason, self.channel.output_is_missing and not has_gone)
        connection.refuse_input()

    def last_words(self, now: float) -> None:
        if not self._connection.input_ended:
            self._read(now, self.channel.capacity())

    def finish(self) -> None:
        """Hand over what the program has not taken yet, when the session has ended; then close our end.

        Blocks for as long as the program neither takes it nor closes its end.
        """
        connection = self._connection
        connection.refuse_input()
        poller = make_poller()
        while connection.wants_write:
            poller.set(connection.fileno(), write=True)
            poller.wait(None)
            connection.flush()
        connection.close_unread()

    @property
    def _is_draining(self) -> bool:
        """Whether all input was delivered, and only output is awaited."""
        channel = self.channel
        return self._connection.input_ended and channel.is_started and channel.is_drained

    def _leave(self, now: float) -> None:
        """End when all that the program had sent has arrived, or will not."""
        if self._leave_at is None:
            self._leave_at = now + LEAVE_TIME
        is_delivered = self._connection.input_ended and self.channel.is_drained
        if self.channel.is_closed or is_delivered or now >= self._leave_at:
            if not is_delivered:
                logger.warning("the connection was closed, and what was sent last did not arrive")
            self._is_over = True

    def _read(self, now: float, room: int) -> None:
        connection = self._connection
        if not room:  # reading nothing would look like the end of input
            return
        data = connection.read(min(room, READ_BYTES))
        if data:
            self.channel.send_input(data, now)
        elif connection.input_ended:
            self.channel.end_input()
            self._quiet_since = now
            if not connection.is_deaf and connection.other_end_has_gone():
                connection.hang_up()
