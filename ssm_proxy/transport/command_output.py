"""A command's local side, where it has no terminal: its two streams, its status, and Ctrl-C (8.4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.sessions.command import CommandStreams, Piece
from ssm_proxy.sessions.standard_stream import INTERRUPT
from ssm_proxy.transport.application import ApplicationBase
from ssm_proxy.transport.endpoints import OutputEnd
from ssm_proxy.transport.poller import HANGUP, WRITE, Poller
from ssm_proxy.transport.signal_watch import SignalWatch

logger = logging.getLogger("ssm_proxy.transport")


class CommandOutput(ApplicationBase):
    """Carries a command's output, and hands it the first Ctrl-C; the second one ends the session.

    Args:
        channel: where Ctrl-C goes.
        marker: of the frames in both streams; None for a command that was not made to write them.
        output: takes standard output.
        error_output: takes standard error; it may go away, and the command goes on.
        interrupts: catches SIGINT; closed by the caller.
    """

    def __init__(
        self,
        channel: DataChannel,
        *,
        marker: str | None,
        output: OutputEnd,
        error_output: OutputEnd,
        interrupts: SignalWatch,
    ) -> None:
        super().__init__(channel)
        self._streams = CommandStreams(marker)
        self._sinks = (output, error_output)
        self._interrupts = interrupts
        self.interrupt_count = 0
        self.code: int | None = None
        """The exit code that the document told, if it tells one."""

    @property
    def status(self) -> int | None:
        """The command's exit status, once its frame has come."""
        return self._streams.status

    @property
    def reader_is_gone(self) -> bool:
        """Whether nobody takes the output any more."""
        return self._sinks[0].is_gone

    @property
    def is_full(self) -> bool:
        return any(sink.is_full and not sink.is_gone for sink in self._sinks)

    @property
    def wants_write(self) -> bool:
        return any(sink.wants_write and not sink.is_gone for sink in self._sinks)

    @property
    def is_over(self) -> bool:
        return self.reader_is_gone or self.interrupt_count >= (2 if self.channel.is_started else 1)

    def watch(self, poller: Poller, now: float) -> None:
        for sink in self._sinks:
            if sink.is_gone:
                poller.remove(sink.fileno())
            else:
                poller.set(sink.fileno(), write=sink.wants_write)
        poller.set(self._interrupts.fileno(), read=True)

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        for sink in self._sinks:
            flags = ready.get(sink.fileno(), 0)
            if flags & WRITE:
                sink.flush()
            if flags & HANGUP:
                sink.is_gone = True
        if self._interrupts.fileno() in ready:
            for _ in self._interrupts.take():
                self._interrupt(now)

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        self._write(self._streams.output(b"".join(pieces)))

    def error_output(self, data: bytes, now: float) -> None:
        self._write(self._streams.error_output(data))

    def exit_code(self, code: int) -> None:
        self.code = code

    def closed(self, reason: str) -> None:
        self._write(self._streams.finish())

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _write(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._sinks[piece.is_error].write(piece.data)

    def _interrupt(self, now: float) -> None:
        self.interrupt_count += 1
        if self.interrupt_count == 1 and self.channel.is_started:
            logger.info("Ctrl-C is handed to the command")
            self.channel.send_input(INTERRUPT, now)


class CollectedOutput(ApplicationBase):
    """Keeps all of a command's output, for whoever asks when the session is over.

    Args:
        channel: not used for anything: such a command has no input.
        marker: of the frames in both streams.
        begun: called when the session has begun, and so the command.
    """

    def __init__(self, channel: DataChannel, *, marker: str, begun: Callable[[], None]) -> None:
        super().__init__(channel)
        self._begun = begun
        self._streams = CommandStreams(marker)
        self._data = (bytearray(), bytearray())
        self.code: int | None = None
        """The exit code that the document told, if it tells one."""

    @property
    def status(self) -> int | None:
        """The command's exit status, once its frame has come."""
        return self._streams.status

    def started(self, event: SessionStarted, now: float) -> None:
        self._begun()

    def take(self) -> tuple[bytes, bytes]:
        """Give what came as standard output and standard error, once."""
        output, errors = self._data
        self._data = (bytearray(), bytearray())
        return bytes(output), bytes(errors)

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        self._keep(self._streams.output(b"".join(pieces)))

    def error_output(self, data: bytes, now: float) -> None:
        self._keep(self._streams.error_output(data))

    def exit_code(self, code: int) -> None:
        self.code = code

    def closed(self, reason: str) -> None:
        self._keep(self._streams.finish())

    def _keep(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._data[piece.is_error].extend(piece.data)
