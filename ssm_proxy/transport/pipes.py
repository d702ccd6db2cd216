"""A stream session's local side: standard input and output, one connection to a port of the node (8.6).

OPEN --end of input--> DRAINING --all acknowledged, then `QUIET_TIME` without output--> over
any state --the reader has gone--> over
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.transport.application import ApplicationBase
from ssm_proxy.transport.endpoints import READ_BYTES, InputEnd, OutputEnd
from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller, make_poller

QUIET_TIME = 10.0
"""The protocol cannot tell the node that input has ended (no half-close): output is awaited until it pauses so long."""
SILENCE_NOTICE_AFTER = 10.0

logger = logging.getLogger("ssm_proxy.transport")


class Pipes(ApplicationBase):
    """Carries bytes between two local ends and one port of the node.

    Args:
        channel: where input goes.
        source: bytes for the node.
        sink: takes bytes from the node.
        notify: shows a person one line while the session goes on.
        mark: called with the name of each stage as it is reached.
    """

    def __init__(
        self,
        channel: DataChannel,
        *,
        source: InputEnd,
        sink: OutputEnd,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
    ) -> None:
        super().__init__(channel)
        self._source = source
        self._sink = sink
        self._notify = notify
        self._mark = mark
        self._quiet_since = 0.0
        self._silent_until: float | None = None
        self.input_bytes = 0
        self.output_bytes = 0
        self.input_ended = False
        self.fell_quiet = False
        """It ended because nothing came for `QUIET_TIME` after the end of input."""

    @property
    def output_is_missing(self) -> bool:
        """Whether the node sent something that has not come, though later output has."""
        return self.channel.output_is_missing

    @property
    def is_full(self) -> bool:
        return self._sink.is_full

    @property
    def wants_write(self) -> bool:
        return self._sink.wants_write

    @property
    def is_over(self) -> bool:
        return self.fell_quiet or self._sink.is_gone

    def watch(self, poller: Poller, now: float) -> None:
        # Not even for its end while there is no room: it would be reported again and again.
        if not self.input_ended and self.channel.input_room(now):
            poller.set(self._source.fileno(), read=True)
        else:
            poller.remove(self._source.fileno())
        poller.set(self._sink.fileno(), write=self._sink.wants_write)

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        if self._sink.wants_write:
            # While the reader does not keep up nothing is fetched, so nobody can say that the node is quiet.
            self._quiet_since = now
        sink_flags = ready.get(self._sink.fileno(), 0)
        if sink_flags & WRITE:
            self._sink.flush()
        if sink_flags & HANGUP:
            self._sink.is_gone = True
        if ready.get(self._source.fileno(), 0) & (READ | HANGUP) and not self.input_ended:
            self._read(now, self.channel.input_room(now))
        if not is_connected:
            return
        if self._is_draining and now >= self._quiet_since + QUIET_TIME and not self._sink.wants_write:
            logger.info("no output for %.0f s after the end of input", QUIET_TIME)
            self.fell_quiet = True
        elif self._silent_until is not None and now >= self._silent_until:
            self._silent_until = None
            self._notify(
                "connected to the agent, but nothing has come from the node's port yet; is its server running?"
            )

    def deadline(self) -> float | None:
        if self._is_draining and not self._sink.wants_write:
            quiet_until = self._quiet_since + QUIET_TIME
            return quiet_until if self._silent_until is None else min(quiet_until, self._silent_until)
        return self._silent_until

    def started(self, event: SessionStarted, now: float) -> None:
        self._silent_until = now + SILENCE_NOTICE_AFTER

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        if not self.output_bytes:
            self._mark("first output")
            self._silent_until = None
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.output_bytes += len(data)
        self._sink.write(data)

    def heard(self, now: float) -> None:
        self._quiet_since = now

    def last_words(self, now: float) -> None:
        if self.input_ended:
            return
        poller = make_poller()
        poller.set(self._source.fileno(), read=True)
        if poller.wait(0).get(self._source.fileno(), 0) & READ:  # ssh's own goodbye
            self._read(now, self.channel.capacity())

    def close(self) -> None:
        self._source.close()
        self._sink.close()

    @property
    def _is_draining(self) -> bool:
        """Whether all input was delivered, and only output is awaited."""
        channel = self.channel
        return self.input_ended and channel.is_started and channel.is_drained

    def _read(self, now: float, room: int) -> None:
        if not room:  # the session ended a moment ago; reading nothing would look like the end of input
            return
        data = self._source.read(min(room, READ_BYTES))
        if data:
            self.input_bytes += len(data)
            self.channel.send_input(data, now)
            self._source.let_wait(self.channel.window_bytes // 16)
        elif data is not None:
            logger.info("end of input after %d bytes", self.input_bytes)
            self.input_ended = True
            self.channel.end_input()
            self._quiet_since = now
