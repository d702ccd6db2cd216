"""One accepted connection of a local program, non-blocking."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

READ_BYTES = 64 * 1024
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""A program may have given SIGPIPE its default action back: then the other end's close would be the process's end."""
_RESET_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


class LocalConnection:
    """A socket with what its program has not taken yet.

    Args:
        connected: non-blocking; from now on ours.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._pending = bytearray()
        self._settled_bytes = 0
        self.input_ended = False
        """Whether the program sends nothing more; it may still read (a half-close), or it has gone."""
        self.is_deaf = False
        """Whether the program takes nothing more: it has gone."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the program."""
        return bool(self._pending)

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the program."""
        return len(self._pending)

    def read(self, size: int) -> bytes:
        """Give up to ``size`` bytes; none if there are none yet, or if ``input_ended`` is now true."""
        try:
            data = self._socket.recv(min(size, READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:  # reset: what was not read is lost, and nobody is there to read an answer
            self.input_ended = True
            self._go_deaf()
            return b""
        self.input_ended = not data
        return data

    def write(self, data: bytes) -> None:
        """Write in order, now or at the next ``flush``."""
        sent = 0 if self._pending or self.is_deaf else self._send(data)
        if sent < len(data):
            self._pending += memoryview(data)[sent:]
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the program takes it."""
        if self._pending and not self.is_deaf:
            del self._pending[: self._send(self._pending)]
        if self.is_deaf:
            self._go_deaf()

    def take_settled(self) -> int:
        """Give how many bytes are off our hands since the last call: written, or dropped because nobody takes them."""
        settled = self._settled_bytes
        self._settled_bytes = 0
        return settled

    def finish(self) -> None:
        """Tell the program that nothing more will come. It may go on sending, and gets all that was written."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    @property
    def untaken_bytes(self) -> int:
        """How many bytes that were written the other end's system has not taken; 0 where the system does not tell."""
        if not sys.platform.startswith("linux"):
            return 0
        import fcntl
        import termios

        try:  # SIOCOUTQ, which has the same number
            return int.from_bytes(fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def hang_up(self) -> None:
        """Take note that the system reports the program as gone."""
        self._go_deaf()

    def other_end_has_gone(self) -> bool:
        """Whether the other end of a pair is closed, both ways: some systems report that and a half-close alike."""
        try:
            self._socket.send(b"", _NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return False

    def refuse_input(self) -> None:
        """Have the program fail when it sends more, instead of waiting for somebody to take it; drop what it sent.

        For one end of a pair. A program that waits for room there with a timeout, so by poll(2), is not woken by the
        shutdown alone, but by room.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)
            while self._socket.recv(READ_BYTES):
                pass

    def close_unread(self) -> None:
        """Close it so that the program sees an end, though it may have sent what was not read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
            while self._socket.recv(READ_BYTES):
                pass
        self._socket.close()

    def close(self) -> None:
        """Close it in order. Input that was not read makes the system reset it all the same."""
        self._socket.close()

    def reset(self) -> None:
        """Close it so that the program sees an error."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        self._socket.close()

    def _send(self, data: bytes | bytearray) -> int:
        """Write what the program takes, and give how much that was; notice that it has gone."""
        sent = 0
        with memoryview(data) as view:
            while sent < len(view):
                try:
                    sent += self._socket.send(view[sent:], _NO_SIGNAL)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:  # EPIPE, ECONNRESET
                    self.is_deaf = True
                    break
        self._settled_bytes += sent
        return sent

    def _go_deaf(self) -> None:
        self.is_deaf = True
        self._settled_bytes += len(self._pending)
        self._pending = bytearray()
