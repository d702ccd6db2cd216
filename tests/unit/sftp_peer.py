"""What the client talks SFTP with in the tests: OpenSSH's own server on two pipes, and one that says what it likes."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ssm_proxy.file_copy.node import Node
from ssm_proxy.sftp.connection import SftpConnection, SftpStatus

_T = TypeVar("_T")
SIZELESS = 0o100444
"""The mode of a file that does not tell its size, as those of /proc."""
SFTP_SERVER = next(
    (
        path
        for path in map(
            Path,
            (
                "/usr/lib/openssh/sftp-server",
                "/usr/libexec/openssh/sftp-server",
                "/usr/libexec/sftp-server",
                "/usr/lib/ssh/sftp-server",
            ),
        )
        if path.exists()
    ),
    None,
)


class Server(Protocol):
    def exchange(self, data: bytes) -> bytes:
        """Take what the client sends; give some of what the server says to it."""
        ...


class OpenSshServer:
    """OpenSSH's sftp-server as a child, without any SSH."""

    def __init__(self, folder: Path) -> None:
        assert SFTP_SERVER is not None
        self._child = subprocess.Popen(
            [SFTP_SERVER, "-d", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def exchange(self, data: bytes) -> bytes:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with memoryview(data) as view:
            while view.nbytes > 0:
                view = view[self._child.stdin.write(view) :]
        said = os.read(self._child.stdout.fileno(), 1 << 18)
        assert said, "the server has ended"
        return said

    def close(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()
        self._child.wait(60)


class Client:
    """A connection that runs one coroutine, or several at once, to their ends."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sftp = SftpConnection()
        self._pump(lambda: self.sftp.is_open)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        (result,) = self.run_all([coroutine])
        if isinstance(result, SftpStatus):
            raise result
        return result

    def run_all(self, coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T | SftpStatus]:
        results: dict[int, _T | SftpStatus] = {}
        ends: list[BaseException | None] = []

        async def keep(index: int, coroutine: Coroutine[Any, Any, _T]) -> None:
            try:
                results[index] = await coroutine
            except SftpStatus as error:
                results[index] = error

        for index, coroutine in enumerate(coroutines):
            self.sftp.start(keep(index, coroutine), ends.append)
        self._pump(lambda: len(ends) == len(coroutines))
        for end in ends:
            if end is not None:
                raise end
        return [results[index] for index in range(len(coroutines))]

    def _pump(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.sftp.receive(self.server.exchange(self.sftp.data_to_send()))


class PipeNode(Node):
    """The planner's node, over a client of the tests instead of the pool's links."""

    def __init__(self, client: Client) -> None:
        super().__init__(None, lambda: True)  # type: ignore[arg-type]
        self.client = client

    def call_all(self, makes: Sequence[Callable[[SftpConnection], Coroutine[Any, Any, _T]]]) -> list[_T | SftpStatus]:
        return self.client.run_all([make(self.client.sftp) for make in makes])


class PipeLink:
    """What a file's copy needs of a link."""

    def __init__(self, client: Client, shell: Any = None) -> None:
        self.sftp = client.sftp
        self.shell = shell or NoShell()

    async def handle(self, owner: object, path: bytes, flags: int) -> bytes:
        return await self.sftp.open(path, flags)


class NoShell:
    refusal: str | None = None

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        return None


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


class LyingServer:
    """Serves a tree that need not be one: names are given as they are. Written apart from the package's codec.

    Args:
        listing: gives names and modes of the entries of a folder.
        content: of every file.
        mode: gives the mode of what a path leads to; None if it is missing, less than 0 if it may not be looked at.
        real: gives the real path of a path; None if it has none.
    """

    def __init__(
        self,
        listing: Callable[[bytes], list[tuple[bytes, int]]],
        *,
        content: bytes = b"theirs",
        mode: Callable[[bytes], int | None],
        real: Callable[[bytes], bytes | None] = lambda path: path,
    ) -> None:
        self._listing = listing
        self._content = content
        self._mode = mode
        self._real = real
        self._folders: dict[bytes, list[tuple[bytes, int]]] = {}
        self._handles = 0
        self._held = b""
        self.asked: list[bytes] = []

    def exchange(self, data: bytes) -> bytes:
        self._held += data
        said = b""
        while len(self._held) >= 4 and len(self._held) >= 4 + int.from_bytes(self._held[:4], "big"):
            size = int.from_bytes(self._held[:4], "big")
            kind, body = self._held[4], self._held[5 : 4 + size]
            self._held = self._held[4 + size :]
            said += packet(2, struct.pack(">I", 3)) if kind == 1 else self._answer(kind, body[:4], body[4:])
        return said

    def _answer(self, kind: int, request: bytes, body: bytes) -> bytes:
        size = int.from_bytes(body[:4], "big")
        first, rest = body[4 : 4 + size], body[4 + size :]
        status = request + struct.pack(">I", 0) + text(b"") + text(b"")
        if kind in (7, 17):  # LSTAT, STAT
            self.asked.append(first)
            mode = self._mode(first)
            if mode is None or mode < 0:
                return packet(101, request + struct.pack(">I", 2 if mode is None else 3) + text(b"") + text(b""))
            return packet(105, request + self._attributes(mode))
        if kind == 8:  # FSTAT
            return packet(105, request + self._attributes(stat.S_IFREG | 0o644))
        if kind == 16:  # REALPATH
            real = self._real(first)
            if real is None:
                return packet(101, request + struct.pack(">I", 4) + text(b"no real path") + text(b""))
            return packet(104, request + struct.pack(">I", 1) + text(real) + text(b"") + bytes(4))
        if kind in (3, 11):  # OPEN, OPENDIR
            self._handles += 1
            handle = b"%d" % self._handles
            if kind == 11:
                self._folders[handle] = self._listing(first)
            return packet(102, request + text(handle))
        if kind == 12:  # READDIR
            entries = self._folders.pop(first, [])
            if not entries:
                return packet(101, request + struct.pack(">I", 1) + text(b"") + text(b""))
            body = b"".join(text(name) + text(b"") + self._attributes(mode) for name, mode in entries)
            return packet(104, request + struct.pack(">I", len(entries)) + body)
        if kind == 5:  # READ
            offset, count = struct.unpack(">QI", rest)
            data = self._content[offset : offset + count]
            if not data:
                return packet(101, request + struct.pack(">I", 1) + text(b"") + text(b""))
            return packet(103, request + text(data))
        return packet(101, status)

    def _attributes(self, mode: int) -> bytes:
        size = len(self._content) if stat.S_ISREG(mode) and mode != SIZELESS else 0
        return struct.pack(">IQIII", 0x0D, size, mode, 0, 0)
