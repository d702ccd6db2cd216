"""A shell's local side: what is typed or piped in, what the node's terminal shows, and its size (8.1 to 8.3).

OPEN --~., hang-up, reader gone--> over
OPEN --end of piped input--> ENDING: 0x04, again and again while the node is quiet, until the session ends
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.sessions.command import OutputSorter
from ssm_proxy.sessions.standard_stream import (
    END_OF_INPUT,
    ESCAPES,
    INTERRUPT,
    MAX_LINE_BYTES,
    EscapeFilter,
    PipedInput,
)
from ssm_proxy.transport.application import ApplicationBase
from ssm_proxy.transport.console import Console
from ssm_proxy.transport.endpoints import READ_BYTES
from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller

MAX_TYPED_BYTES = 256 * 1024
"""What may be typed or pasted while the node takes nothing, so that ``~.`` behind it is still seen."""
FIRST_REMINDER_AFTER = 1.0
LONGEST_REMINDER_AFTER = 60.0

logger = logging.getLogger("ssm_proxy.transport")


class TerminalShell(ApplicationBase):
    """Carries bytes between the user's terminal, or pipes, and a terminal on the node.

    Args:
        channel: where input goes.
        console: the local ends; closed at the end.
        notify: shows a person one line while the session goes on.
        sorter: takes the frames of a command out of the output; None for a shell.
    """

    def __init__(
        self,
        channel: DataChannel,
        *,
        console: Console,
        notify: Callable[[str], None],
        sorter: OutputSorter | None = None,
    ) -> None:
        super().__init__(channel)
        self._console = console
        self._source = console.source
        self._sink = console.sink
        self._notify = notify
        self._sorter = sorter
        self._escapes = EscapeFilter()
        self._piped = PipedInput()
        self._typed = bytearray()  # not yet in the channel
        self._has_begun = False
        self._input_ended = False
        self._is_over = False
        self._has_warned = False
        self._quiet_since = 0.0
        self._reminder_after = FIRST_REMINDER_AFTER
        self.was_interrupted = False
        """Ctrl-C was typed before the session had begun: the node could not take it yet."""
        self.was_left = False
        """The user ended the session by ``~.``, or hung up."""
        self.code: int | None = None
        """The exit code that the node told, if it did."""

    @property
    def has_started(self) -> bool:
        """Whether the session has begun."""
        return self.channel.is_started

    @property
    def reader_is_gone(self) -> bool:
        """Whether nobody takes the output any more."""
        return self._sink.is_gone

    @property
    def is_full(self) -> bool:
        return self._sink.is_full

    @property
    def wants_write(self) -> bool:
        return self._sink.wants_write

    @property
    def is_over(self) -> bool:
        return self._is_over or self._sink.is_gone

    def watch(self, poller: Poller, now: float) -> None:
        # Not even for its end while there is no room: it would be reported again and again.
        if self._has_begun and not self._input_ended and self._room(now):
            poller.set(self._source.fileno(), read=True)
        else:
            poller.remove(self._source.fileno())
        poller.set(self._sink.fileno(), write=self._sink.wants_write)
        poller.set(self._console.fileno(), read=True)

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        sink_flags = ready.get(self._sink.fileno(), 0)
        if sink_flags & WRITE:
            self._sink.flush()
        if sink_flags & HANGUP:
            self._sink.is_gone = True
        if self._console.fileno() in ready and self._console.take_change() and self.channel.is_started:
            self._send_size(now)
        if ready.get(self._source.fileno(), 0) & (READ | HANGUP) and not self._input_ended:
            self._read(now)
        self._remind(now, is_connected)
        self._send_typed(now)

    def deadline(self) -> float | None:
        return self._quiet_since + self._reminder_after if self._is_draining else None

    def started(self, event: SessionStarted, now: float) -> None:
        self._quiet_since = now
        self._send_size(now)

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        self._quiet_since = now
        data = b"".join(pieces)
        if self._sorter is not None:
            data = b"".join(piece.data for piece in self._sorter.feed(data))
        self._sink.write(data)

    def heard(self, now: float) -> None:
        # Not before there is a connection: until then a credential provider may ask for a code, and Ctrl-C ends us.
        if not self._has_begun:
            self._has_begun = True
            self._console.begin()

    def exit_code(self, code: int) -> None:
        self.code = code

    def closed(self, reason: str) -> None:
        if self._sorter is not None:
            self._sink.write(b"".join(piece.data for piece in self._sorter.finish()))

    def close(self) -> None:
        self._console.close()

    @property
    def _is_draining(self) -> bool:
        """Whether all input has reached the node, and its end should end the session."""
        channel = self.channel
        return self._input_ended and not self._typed and channel.is_started and channel.is_drained

    def _room(self, now: float) -> int:
        """Give how many bytes to read: a person's always, for ``~.``; of a pipe only what can be sent."""
        if self._console.is_terminal:
            return MAX_TYPED_BYTES - len(self._typed)
        return 0 if self._typed else self.channel.input_room(now)

    def _read(self, now: float) -> None:
        room = self._room(now)
        if not room:  # the session ended a moment ago; reading nothing would look like the end of input
            return
        data = self._source.read(min(room, READ_BYTES))
        if data is None:
            return
        if self._console.is_terminal:
            self._take_typed(data)
        elif data:
            self._piped.feed(data)
            self._typed += data
            self._warn()
        else:
            logger.info("end of input")
            self._input_ended = True
            self._typed += self._piped.ending()

    def _take_typed(self, data: bytes) -> None:
        typed = self._escapes.feed(data)
        if typed.wants_help:
            self._notify("at the start of a line: " + "; ".join(ESCAPES))
        if typed.wants_end or not data:
            self._input_ended = True
            self.was_left = True
            self._leave()
        elif INTERRUPT in typed.data and not self.channel.is_started:
            self.was_interrupted = True
            self._leave()
        self._typed += typed.data

    def _leave(self) -> None:
        self._is_over = True
        # The end of the session at the service takes a moment, for ever where the network is gone: not with a terminal
        # that shows nothing of what is typed.
        self._console.restore()

    def _warn(self) -> None:
        if self._piped.has_long_line and not self._has_warned:
            self._has_warned = True
            self._notify(
                f"a line of the input is longer than {MAX_LINE_BYTES} bytes: a terminal on the node may drop the rest"
            )

    def _remind(self, now: float, is_connected: bool) -> None:
        """Say again that the input has ended: a terminal that was just not editing lines forgets it."""
        if is_connected and self._is_draining and now >= self._quiet_since + self._reminder_after:
            self._quiet_since = now
            self._reminder_after = min(self._reminder_after * 2, LONGEST_REMINDER_AFTER)
            self._typed += END_OF_INPUT

    def _send_typed(self, now: float) -> None:
        if self._typed and (room := min(self.channel.input_room(now), len(self._typed))):
            self.channel.send_input(bytes(self._typed[:room]), now)
            del self._typed[:room]

    def _send_size(self, now: float) -> None:
        self.channel.send_size(self._console.size(), now)
