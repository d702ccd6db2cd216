"""A command's local side, where it has no terminal: its two streams, its status, and Ctrl-C (8.4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.sessions.command import OutputSorter, Piece
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
        self._sorters = None if marker is None else (OutputSorter(marker), OutputSorter(marker))
        self._sinks = (output, error_output)
        self._interrupts = interrupts
        self.interrupt_count = 0
        self.code: int | None = None
        """The exit code that the document told, if it tells one."""

    @property
    def status(self) -> int | None:
        """The command's exit status, once its frame has come."""
        return None if self._sorters is None else self._sorters[0].status

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
        data = b"".join(pieces)
        if self._sorters is None:
            self._sinks[0].write(data)
        else:
            self._write(self._sorters[0].feed(data))

    def error_output(self, data: bytes, now: float) -> None:
        if self._sorters is not None:
            data = b"".join(piece.data for piece in self._sorters[1].feed(data))
        self._sinks[1].write(data)

    def exit_code(self, code: int) -> None:
        self.code = code

    def closed(self, reason: str) -> None:
        if self._sorters is not None:
            self._write(self._sorters[0].finish())
            self._sinks[1].write(b"".join(piece.data for piece in self._sorters[1].finish()))

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
