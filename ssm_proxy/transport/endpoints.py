"""The two local ends of a tunnel: bytes that come in on one descriptor and leave by another.

A ProxyCommand's standard input and output are pipes or sockets of ssh. On POSIX they are polled and used without
blocking. Elsewhere a pipe cannot be polled: a thread pumps standard input into a socket that can.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import threading

from ssm_proxy.errors import SsmProxyError

try:
    from fcntl import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

READ_BYTES = 64 * 1024
_READER_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO})
"""The last two are those of a terminal that hung up."""
FIRST_PIPE_BYTES = 4 * 1024
MAX_PENDING_BYTES = 512 * 1024
"""Beyond this the WebSocket is not read: a reader that stands still holds back the sender; our memory stays flat."""
_CAN_POLL_PIPES = os.name == "posix"
_CAN_SIZE_PIPES = sys.platform == "linux" and fcntl is not None
_SET_PIPE_SIZE, _GET_PIPE_SIZE = 1031, 1032  # F_SETPIPE_SZ and F_GETPIPE_SZ of Linux


class InputEnd:
    """Where input for the managed node comes from.

    Args:
        fd: a readable descriptor, owned by the caller.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._restore = _set_nonblocking(fd)
        self._pipe_bytes_before, self._pipe_bytes = _shrink_pipe(fd)
        self._pump: _Pump | None = None
        if not _CAN_POLL_PIPES:
            self._pump = _Pump(fd)

    def fileno(self) -> int:
        """Give the descriptor to poll."""
        return self._fd if self._pump is None else self._pump.fileno()

    def read(self, size: int) -> bytes | None:
        """Give up to ``size`` bytes, ``b""`` at the end, None if there is nothing yet."""
        try:
            if self._pump is not None:
                return self._pump.read(min(size, READ_BYTES))
            return os.read(self._fd, min(size, READ_BYTES))
        except BlockingIOError:
            return None
        except OSError:  # the writer reset its end: nothing more will come
            return b""

    def let_wait(self, size: int) -> None:
        """Let up to ``size`` bytes wait in the pipe, if it holds less and its size can be chosen.

        A keystroke waits behind all that is in the pipe: on a slow link 64 KiB are a long time. On a fast one a small
        pipe costs more than everything else together. So it begins small and grows with the window.
        """
        if self._pipe_bytes and self._pipe_bytes * 2 <= size and self._pipe_bytes < READ_BYTES:
            try:
                self._pipe_bytes = fcntl(self._fd, _SET_PIPE_SIZE, self._pipe_bytes * 2)
            except OSError:  # this user has too many pipes: so it stays
                self._pipe_bytes = 0

    def close(self) -> None:
        """Leave the descriptor as it was found."""
        if self._pipe_bytes_before:
            with contextlib.suppress(OSError):
                fcntl(self._fd, _SET_PIPE_SIZE, self._pipe_bytes_before)
        if self._pump is not None:
            self._pump.close()
        if self._restore:
            with contextlib.suppress(OSError):
                os.set_blocking(self._fd, True)


class OutputEnd:
    """Where output of the managed node goes. Keeps what the reader does not take yet.

    Args:
        fd: a writable descriptor, owned by the caller.
        max_pending: bytes that may wait before it is full.
    """

    def __init__(self, fd: int, *, max_pending: int = MAX_PENDING_BYTES) -> None:
        self._fd = fd
        self._max_pending = max_pending
        self._restore = _set_nonblocking(fd)
        self._pending = bytearray()
        self.is_gone = False
        """Whether the reader has vanished; what is written then is lost, as it would be in any pipe."""

    def fileno(self) -> int:
        return self._fd

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the reader."""
        return bool(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more should be fetched."""
        return len(self._pending) >= self._max_pending

    def write(self, data: bytes) -> None:
        """Write in order, now or when ``flush`` is called.

        Raises:
            SsmProxyError: it cannot be written, though its reader has not gone.
        """
        if self.is_gone:
            return
        if not self._pending:
            data = data[self._write(data) :]
        self._pending += data

    def flush(self) -> None:
        """Write what waits, as far as the reader takes it."""
        if self._pending and not self.is_gone:
            del self._pending[: self._write(self._pending)]

    def close(self) -> None:
        """Leave the descriptor as it was found."""
        if self._restore:
            with contextlib.suppress(OSError):
                os.set_blocking(self._fd, True)

    def _write(self, data: bytes | bytearray) -> int:
        written = 0
        with memoryview(data) as view:
            while written < len(view):
                try:
                    written += os.write(self._fd, view[written : written + READ_BYTES])
                except BlockingIOError:
                    break
                except OSError as error:
                    self.is_gone = True
                    written = len(view)
                    if error.errno not in _READER_GONE:  # a full disk, for one: what is missing must not look whole
                        raise SsmProxyError(
                            "the output of the node cannot be written",
                            cause=error.strerror,
                            hint="what was written so far is not all",
                        ) from error
        return written


class _Pump:
    """A thread that copies a descriptor which cannot be polled into a socket which can."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        threading.Thread(target=self._run, name="ssm-proxy stdin", daemon=True).start()

    def fileno(self) -> int:
        return self._ours.fileno()

    def read(self, size: int) -> bytes:
        return self._ours.recv(size)

    def close(self) -> None:
        """Stop taking; the thread ends with its next byte, or with the process."""
        self._ours.close()

    def _run(self) -> None:
        # The socket's buffer bounds what is read ahead: sendall blocks while the tunnel takes nothing.
        with self._theirs, contextlib.suppress(OSError):
            while data := os.read(self._fd, READ_BYTES):
                self._theirs.sendall(data)


def _shrink_pipe(fd: int) -> tuple[int, int]:
    """Make a pipe small; give its sizes in bytes, before and now, or zeros for what has no size to choose."""
    if _CAN_SIZE_PIPES and stat.S_ISFIFO(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # there is more in it already
            before = fcntl(fd, _GET_PIPE_SIZE)
            return before, fcntl(fd, _SET_PIPE_SIZE, FIRST_PIPE_BYTES)
    return 0, 0


def _set_nonblocking(fd: int) -> bool:
    """Make a pipe or socket non-blocking; return whether that is to be undone.

    The flag belongs to the open file, which others may share: a terminal or file of theirs must not get it. Neither
    needs it.
    """
    if not _CAN_POLL_PIPES:
        return False
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not os.get_blocking(fd):
        return False
    os.set_blocking(fd, False)
    return True
