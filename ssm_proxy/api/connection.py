"""The socket that a program holds: one end of a pair, whose other end a session serves."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.errors import SsmProxyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer


class Connection(socket.socket):
    """A connected stream socket to a port of a managed node. ``connect`` makes it.

    It is a real socket with a real descriptor: timeouts, ``select``, ``shutdown``, ``makefile``, ``with`` and TLS work.
    Beyond that:

    - After all bytes that came were received, the end of a session that failed raises its error, an
      `ssm_proxy.SsmProxyError`, where a plain socket would give ``b""``. Sending to it raises that error too.
    - ``close`` ends the session, and waits for that for some seconds at most. What was sent before gets 5 s to arrive;
      as with any socket, only an answer proves that it did. It is harmless if repeated, and raises nothing.
    - ``abort`` ends the session at once, and does not wait for what was sent.
    - ``shutdown(SHUT_WR)``: the protocol cannot tell the node that nothing more will come. Output still comes, until
      the node's program closes its side; if it is silent for 10 s instead, the session ends with a `TransportTimeout`,
      because what came may not be all.
    - ``ssl.SSLContext.wrap_socket`` takes the descriptor over, as ``detach`` gives it away. Closing the TLS socket ends
      the session. Leaving the ``with`` block of this object after that waits for the end, and raises the error of a
      session that failed; also instead of what came of it above, an `OSError` (`ssl.SSLError` is one), `EOFError` or
      `http.client.HTTPException`. A TLS socket that is still open then just goes on.
    - ``dup`` gives another one to the same session, which ends when the last of them is closed.

    One thread may receive while another sends, as with any socket. After a fork only the parent's use of it counts.
    """

    _session: SessionThread | None = None

    @classmethod
    def over(cls, end: socket.socket, session: SessionThread) -> Connection:
        """Make it from one end of a pair, whose descriptor it takes over."""
        connection = cls(end.family, end.type, end.proto, fileno=end.detach())
        connection._session = session
        return connection

    @property
    def error(self) -> SsmProxyError | None:
        """Why the session failed; None while it goes on, and if it ended as it should.

        For those who read by the descriptor itself, as TLS does, and see a plain end.
        """
        return None if self._session is None else self._session.error

    # --- receiving --------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        try:
            data = super().recv(bufsize, flags)
        except ConnectionError:
            self._raise_error()
            raise
        if not data and bufsize:
            self._raise_error()
        return data

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        try:
            count = super().recv_into(buffer, nbytes, flags)
        except ConnectionError:
            self._raise_error()
            raise
        if not count and (nbytes or memoryview(buffer).nbytes):
            self._raise_error()
        return count

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        return self.recv_into(buffer, nbytes, flags), None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        for buffer in buffers:
            if memoryview(buffer).nbytes:
                return self.recv_into(buffer, 0, flags), [], 0, None
        return 0, [], 0, None

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        try:
            return super().send(data, flags)
        except ConnectionError:
            self._raise_error()
            raise

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        try:
            super().sendall(data, flags)
        except ConnectionError:
            self._raise_error()
            raise

    def sendmsg(self, buffers: Iterable[ReadableBuffer], *others: Any) -> int:
        try:
            return super().sendmsg(buffers, *others)
        except ConnectionError:
            self._raise_error()
            raise

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        try:
            return super().sendfile(file, offset, count)
        except ConnectionError:
            self._raise_error()
            raise

    def dup(self) -> Connection:
        other = super().dup()
        other._session = self._session
        if self._session is not None:
            self._session.share()
        return other

    # --- the end ----------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the session now, also for those who have a `dup` of it, and close. Raises nothing.

        What was sent before and has not arrived never does. It may still take some seconds where the service cannot be
        told that the session is over. Other threads may send and receive meanwhile.
        """
        session = self._session if self._session is not None and self._session.is_ours else None
        if session is not None:
            session.stop()
        self.close()
        if session is not None:
            session.end()  # somebody else may have closed it, and be waiting for that

    def __exit__(self, *raised: Any) -> None:
        was_taken_over = self.fileno() < 0 and not self._is_ended
        had_failed = self.error is not None  # what fails only now, while closing, explains nothing
        self.close()  # after ``detach`` too, which marks it as closed
        if was_taken_over and (raised[0] is None or (had_failed and _may_come_of_an_end(raised[1]))):
            self._raise_error()  # nobody else could tell; what is under way is its context

    _is_ended = False

    def _real_close(self, *arguments: Any) -> None:
        """Close for good: called when neither the socket nor a file made of it is open any more."""
        session = self._session if self._session is not None and self._session.is_ours else None
        is_last = session is not None and self.fileno() >= 0 and session.let_go()
        if is_last:
            with contextlib.suppress(OSError):  # a thread that waits in ``recv`` would keep the pair open
                self.shutdown(socket.SHUT_RDWR)
        super()._real_close(*arguments)  # type: ignore[misc]
        # Who took the descriptor over may still have it.
        if session is not None and not self._is_ended and (is_last or session.is_left()):
            self._is_ended = True
            session.end()

    def _raise_error(self) -> None:
        """Raise the error that the session ended with, if there is one."""
        error = self.error
        if error is not None:
            raise error.with_traceback(None)


def _may_come_of_an_end(raised: BaseException | None) -> bool:
    """Whether an exception may be what a program above made of the end of its connection."""
    from http.client import HTTPException

    return isinstance(raised, OSError | EOFError | HTTPException)
