"""The node's files as the planner sees them: one call after the other, over whatever link there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ssm_proxy.errors import CopyError, SsmProxyError, TransportTimeout
from ssm_proxy.file_copy.channel import LinkLost, open_sftp, run_to_end
from ssm_proxy.file_copy.names import shown
from ssm_proxy.file_copy.pool import Pool
from ssm_proxy.file_copy.values import SourceError
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

if TYPE_CHECKING:
    import paramiko

LINK_WAIT_S = 120.0
AT_ONCE = 32
"""Folders that are listed, or made, at once."""

_T = TypeVar("_T")
Make = Callable[[SftpConnection], Coroutine[Any, Any, _T]]
Entries = list[tuple[bytes, Attributes]]


class Node:
    """Calls that are repeated when the link they were made on is lost; all of them may be. Blocks.

    Args:
        pool: has the links.
        is_wanted: asked while waiting.
    """

    def __init__(self, pool: Pool, is_wanted: Callable[[], bool]) -> None:
        self._pool = pool
        self._is_wanted = is_wanted
        self._open: tuple[paramiko.Transport, paramiko.Channel, SftpConnection] | None = None
        self._home: bytes | None = None

    def call(self, make: Make[_T]) -> _T:
        """Run a coroutine to its end; again from its beginning when the link is lost.

        Raises:
            SsmProxyError: there is no link any more.
            SftpStatus: the server refused.
        """
        (result,) = self.call_all([make])
        if isinstance(result, SftpStatus):
            raise result
        return result

    def call_all(self, makes: Sequence[Make[_T]]) -> list[_T | SftpStatus]:
        """Run several at once; give what each gave, or the server's refusal."""
        was_silent = False
        while True:
            transport, channel, sftp = self._connection()
            try:
                return run_to_end(transport, channel, sftp, [make(sftp) for make in makes], is_wanted=self._is_wanted)
            except LinkLost as lost:
                channel.close()  # it may be this one alone that does not answer
                self._open = None
                # A connection that lives carries other answers: this one would not come the next time either.
                is_silent = isinstance(lost.error, TransportTimeout) and transport.is_active()
                if not self._is_wanted() or (is_silent and was_silent):
                    raise lost.error from lost
                was_silent = is_silent

    def absolute(self, path: bytes) -> bytes:
        """Give a path from the root: relative ones begin in the user's home folder, as with scp.

        Raises:
            CopyError: the node cannot tell where the home folder is.
            SourceError: it cannot tell whose ``~name`` is.
        """
        if self._home is None:
            try:
                self._home = self.real_path(b".")
            except SftpStatus as error:
                raise CopyError("the node does not tell where the home folder is", cause=error.message) from error
        if path == b"~" or path.startswith(b"~/"):
            path = path[2:]
        elif path.startswith(b"~"):
            name = path.partition(b"/")[0]
            try:
                expanded = self.call(lambda sftp: sftp.expand_path(name))
            except SftpStatus:
                expanded = None
            if expanded is None:
                what = f"the node does not tell what {shown(name)} is"
                hint = "write the whole path; for a file whose name begins so, ./~NAME"
                raise SourceError(what, text=f"{what}; {hint}", hint=hint)
            path = expanded + path[len(name) :]
        if path.startswith(b"/"):
            return path
        return self._home.rstrip(b"/") + b"/" + path if path else self._home

    def stat(self, path: bytes) -> Attributes | None:
        """Look at a file through symbolic links; None if it is not there.

        Raises:
            SftpStatus: it cannot be looked at.
        """

        async def look(sftp: SftpConnection) -> Attributes | None:
            try:
                return await sftp.stat(path)
            except SftpStatus as error:
                if error.is_missing:
                    return None
                raise

        return self.call(look)

    def real_path(self, path: bytes) -> bytes:
        return self.call(partial(_real_path, path=path))

    def list_all(self, paths: Sequence[bytes]) -> list[Entries | SftpStatus]:
        """List several folders at once; give each one's entries, or the server's refusal."""
        return self.call_all([partial(_list, path=path) for path in paths])

    def _connection(self) -> tuple[paramiko.Transport, paramiko.Channel, SftpConnection]:
        until = time.monotonic() + LINK_WAIT_S
        failure: SsmProxyError | None = None
        while self._open is None:
            transport = self._pool.transport()
            if transport is not None and transport.is_active():
                try:
                    channel, sftp = open_sftp(transport)
                    self._open = (transport, channel, sftp)
                    break
                except LinkLost as lost:
                    failure = lost.error
            if time.monotonic() > until or not self._is_wanted():
                raise failure or CopyError("there is no session to the node any more")
            time.sleep(0.05)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()


async def _list(sftp: SftpConnection, path: bytes) -> Entries:
    return [(name, attributes) for name, attributes in await sftp.list_folder(path) if name not in (b".", b"..")]


async def _real_path(sftp: SftpConnection, path: bytes) -> bytes:
    return await sftp.real_path(path)
