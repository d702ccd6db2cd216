"""One SFTP connection with many requests under way: bytes in, bytes out, answers to whoever awaits them. No IO.

A request is queued at once when its method is called; what it gives is awaited when the answer is needed:

    handle = await sftp.open(path, OPEN_READ)
    first, second = sftp.read(handle, 0, 100), sftp.read(handle, 100, 100)   # both are under way now
    data = await first + await second

The coroutines that do so are run by this class, not by asyncio: the one thread that moves the bytes steps them. The
server may answer in any order, but handles requests for one file in theirs (draft section 4.1), so that a CLOSE may
follow WRITEs whose answers have not come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.packets import Attributes

_T = TypeVar("_T")
_DRAFT_BYTES = 32 * 1024
"""What every server reads or writes at once (draft section 3)."""
_MOST_BYTES = 64 * 1024
"""More saves little, and one answer should not take long at an agent's pace."""
MOST_ENTRIES = 1_000_000
"""Of one folder; some hundred bytes each."""
_FIRST_BYTES = 256
"""Kept of what a server says before it is known to speak SFTP."""
_SHOWN_CHARACTERS = 60
_POSIX_RENAME = b"posix-rename@openssh.com"
_LIMITS = b"limits@openssh.com"
_STATVFS = b"statvfs@openssh.com"
_EXPAND_PATH = b"expand-path@openssh.com"
_FSYNC = b"fsync@openssh.com"


class SftpStatus(Exception):
    """The server's answer to a request is that it failed. Met by who awaits it, never shown to a person as it is.

    Args:
        code: see ``packets``.
        message: the server's words, which may be empty.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def is_missing(self) -> bool:
        return self.code == packets.NO_SUCH_FILE


class Pending(Generic[_T]):
    """An answer that may not have come yet. Several coroutines may await it."""

    __slots__ = ("_convert", "reply", "tasks")

    def __init__(self, convert: Callable[[packets.Reply], _T]) -> None:
        self._convert = convert
        self.reply: packets.Reply | None = None
        self.tasks: list[Task] = []

    def __await__(self) -> Generator[Pending[Any], None, _T]:
        if self.reply is None:
            yield self
        return self.result()

    def result(self) -> _T:
        """Give the answer, which has come.

        Raises:
            SftpStatus: it says that the request failed.
            MalformedMessage: it is no answer to such a request.
        """
        assert self.reply is not None
        return self._convert(self.reply)


class _Together:
    """Several coroutines that somebody waits for."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._error: BaseException | None = None
        self.tasks: list[Task] = []

    def __await__(self) -> Generator[_Together, None, None]:
        if self._left:
            yield self
        if self._error is not None:
            raise self._error

    def one_ended(self, error: BaseException | None) -> bool:
        """Take note that one has ended; give whether all have."""
        self._left -= 1
        self._error = self._error or error
        return not self._left


class Task:
    """A coroutine that is under way."""

    __slots__ = ("_coroutine", "ended")

    def __init__(self, coroutine: Coroutine[Any, Any, None], ended: Callable[[BaseException | None], None]) -> None:
        self._coroutine = coroutine
        self.ended = ended

    def step(self) -> BaseException | Pending[Any] | _Together | None:
        """Run it until it waits again; give what for, or None at its end, or the error that ended it."""
        try:
            waits_for: Pending[Any] | _Together = self._coroutine.send(None)
        except StopIteration:
            return None
        except Exception as error:  # noqa: BLE001 - whoever started it is told
            return error
        waits_for.tasks.append(self)
        return waits_for

    def close(self) -> None:
        self._coroutine.close()


class SftpConnection:
    """A connection, from the first packet on."""

    def __init__(self) -> None:
        self._reader = packets.PacketReader()
        self._to_send: list[bytes] = [packets.encode_init()]
        self._pending: dict[int, Pending[Any]] = {}
        self._next_id = 0
        self._extensions: dict[bytes, bytes] | None = None
        self._said_first = b""
        self._tasks: set[Task] = set()
        self._ready: deque[Task] = deque()
        self.read_bytes = _DRAFT_BYTES
        """How much one READ may ask for."""
        self.write_bytes = _DRAFT_BYTES
        """How much one WRITE may hold."""

    # --- bytes ------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the server has answered the first packet."""
        return self._extensions is not None

    @property
    def is_idle(self) -> bool:
        """Whether no answer is awaited."""
        return not self._pending and self.is_open

    def receive(self, data: bytes) -> None:
        """Take what came from the server, and run whatever waited for it.

        Raises:
            MalformedMessage: it is no SFTP; the connection is of no use any more.
        """
        if self._extensions is None:
            self._said_first += data[: _FIRST_BYTES - len(self._said_first)]
            if not packets.may_be_version(self._said_first):
                cause = _told_of_text(self._said_first)
                raise MalformedMessage("what answers is no SFTP server", cause=cause, hint=NO_SFTP_HINT)
        for kind, body in self._reader.feed(data):
            if self._extensions is None:
                self._extensions = packets.decode_version(body)
                continue
            request_id, reply = packets.decode_reply(kind, body)
            pending = self._pending.pop(request_id, None)
            if pending is None:
                raise MalformedMessage("the SFTP server answered a request that was not made")
            pending.reply = reply
            self._ready += pending.tasks
        self.run()

    def data_to_send(self) -> bytes:
        """Give what is to be sent now, and forget it."""
        pieces, self._to_send = self._to_send, []
        return b"".join(pieces)

    @property
    def has_data_to_send(self) -> bool:
        return bool(self._to_send)

    # --- coroutines -------------------------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, None], ended: Callable[[BaseException | None], None]) -> None:
        """Run a coroutine until it waits.

        Args:
            coroutine: awaits requests of this connection only.
            ended: called with None when it is over, or with the error that ended it.
        """
        task = Task(coroutine, ended)
        self._tasks.add(task)
        self._ready.append(task)
        self.run()

    def run(self) -> None:
        """Step whatever can go on."""
        while self._ready:
            task = self._ready.popleft()
            if task not in self._tasks:  # it was dropped while it waited
                continue
            waits_for = task.step()
            if not isinstance(waits_for, Pending | _Together):
                self._tasks.discard(task)
                task.ended(waits_for)

    async def together(self, coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run coroutines at the same time, and wait until all have ended.

        Raises:
            Exception: the first that one of them raised.
        """
        several = list(coroutines)
        group = _Together(len(several))

        def ended(error: BaseException | None) -> None:
            if group.one_ended(error):
                self._ready += group.tasks

        for coroutine in several:
            self.start(coroutine, ended)
        await group

    def close(self) -> None:
        """Drop all coroutines, at the places where they wait. Nobody is told."""
        for task in list(self._tasks):
            task.close()
        self._tasks.clear()
        self._ready.clear()

    # --- requests ---------------------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int, attributes: Attributes = Attributes()) -> Pending[bytes]:  # noqa: B008
        """Open a file; give its handle."""
        body = packets.encode_string(path) + flags.to_bytes(4, "big") + packets.encode_attributes(attributes)
        return self._request(packets.OPEN, body, _handle)

    def close_handle(self, handle: bytes) -> Pending[None]:
        return self._request(packets.CLOSE, packets.encode_string(handle), _nothing)

    def read(self, handle: bytes, offset: int, size: int) -> Pending[bytes]:
        """Read up to ``size`` bytes, which is at most ``read_bytes``; none at the end of the file."""

        def data_of(reply: packets.Reply) -> bytes:
            data = _data(reply)
            if len(data) > size:  # it would be written over what comes behind
                raise MalformedMessage(f"the SFTP server gave {len(data)} bytes where {size} were asked for")
            return data

        return self._request(packets.READ, packets.encode_read(handle, offset, size), data_of)

    def write(self, handle: bytes, offset: int, data: bytes) -> Pending[None]:
        """Write all of ``data``, which is at most ``write_bytes`` long."""
        pending = Pending(_nothing)
        request_id = self._take_id(pending)
        self._to_send += (packets.encode_write_head(request_id, handle, offset, len(data)), data)
        return pending

    def stat(self, path: bytes) -> Pending[Attributes]:
        """Look at a file, through symbolic links."""
        return self._request(packets.STAT, packets.encode_string(path), _attributes)

    def lstat(self, path: bytes) -> Pending[Attributes]:
        """Look at a file, or at a symbolic link itself."""
        return self._request(packets.LSTAT, packets.encode_string(path), _attributes)

    def fstat(self, handle: bytes) -> Pending[Attributes]:
        return self._request(packets.FSTAT, packets.encode_string(handle), _attributes)

    def setstat(self, path: bytes, attributes: Attributes) -> Pending[None]:
        body = packets.encode_string(path) + packets.encode_attributes(attributes)
        return self._request(packets.SETSTAT, body, _nothing)

    def fsetstat(self, handle: bytes, attributes: Attributes) -> Pending[None]:
        body = packets.encode_string(handle) + packets.encode_attributes(attributes)
        return self._request(packets.FSETSTAT, body, _nothing)

    def make_folder(self, path: bytes, attributes: Attributes) -> Pending[None]:
        body = packets.encode_string(path) + packets.encode_attributes(attributes)
        return self._request(packets.MKDIR, body, _nothing)

    def remove(self, path: bytes) -> Pending[None]:
        return self._request(packets.REMOVE, packets.encode_string(path), _nothing)

    async def list_folder(self, path: bytes) -> list[tuple[bytes, Attributes]]:
        """Give a folder's entries, ``.`` and ``..`` among them.

        Raises:
            SftpStatus: it cannot be read, or has no end.
        """
        handle = await self.open_folder(path)
        entries: list[tuple[bytes, Attributes]] = []
        while found := await self.read_folder(handle):
            entries += found
            if len(entries) > MOST_ENTRIES:  # they are held in memory
                self.close_handle(handle)
                raise SftpStatus(packets.FAILURE, f"the folder has more than {MOST_ENTRIES} entries")
        await self.close_handle(handle)
        return entries

    def open_folder(self, path: bytes) -> Pending[bytes]:
        return self._request(packets.OPENDIR, packets.encode_string(path), _handle)

    def read_folder(self, handle: bytes) -> Pending[list[tuple[bytes, Attributes]]]:
        """Give some of a folder's entries, ``.`` and ``..`` among them; none when all were given."""
        return self._request(packets.READDIR, packets.encode_string(handle), _names)

    def real_path(self, path: bytes) -> Pending[bytes]:
        """Give the absolute path, without symbolic links as far as it exists."""
        return self._request(packets.REALPATH, packets.encode_string(path), _one_name)

    # --- extensions -------------------------------------------------------------------------------------------------

    def rename(self, before: bytes, after: bytes) -> Pending[None]:
        """Rename a file, in place of an existing one where the server can do that at once (``can_replace``)."""
        names = packets.encode_string(before) + packets.encode_string(after)
        if self.can_replace:
            return self._request(packets.EXTENDED, packets.encode_string(_POSIX_RENAME) + names, _nothing)
        return self._request(packets.RENAME, names, _nothing)

    @property
    def can_replace(self) -> bool:
        return self._has(_POSIX_RENAME)

    async def learn_limits(self) -> None:
        """Ask how large reads and writes may be, where the server can tell."""
        if not self._has(_LIMITS):
            return
        body = await self._request(packets.EXTENDED, packets.encode_string(_LIMITS), _extended)
        _packet, read, write = packets.decode_u64s(body, 3)  # 0: no limit of its own
        self.read_bytes = max(_DRAFT_BYTES, min(_MOST_BYTES, read or _MOST_BYTES))
        self.write_bytes = max(_DRAFT_BYTES, min(_MOST_BYTES, write or _MOST_BYTES))

    async def free_bytes(self, path: bytes) -> int | None:
        """Give how much an ordinary user can still write beside a path; None if the server cannot tell."""
        if not self._has(_STATVFS):
            return None
        request = packets.encode_string(_STATVFS) + packets.encode_string(path)
        try:
            values = packets.decode_u64s(await self._request(packets.EXTENDED, request, _extended), 5)
        except SftpStatus:
            return None
        return (
            values[4] * values[1] if values[2] else None
        )  # f_bavail in units of f_frsize; no f_blocks: it does not say

    async def expand_path(self, path: bytes) -> bytes | None:
        """Give the path that one with ``~`` stands for; None if the server cannot tell."""
        if not self._has(_EXPAND_PATH):
            return None
        request = packets.encode_string(_EXPAND_PATH) + packets.encode_string(path)
        return await self._request(packets.EXTENDED, request, _one_name)

    async def fsync(self, handle: bytes) -> bool:
        """Have the server store what was written to a file; give whether it can.

        Raises:
            SftpStatus: something that was written before could not be stored, whoever wrote it.
        """
        if not self._has(_FSYNC):
            return False
        request = packets.encode_string(_FSYNC) + packets.encode_string(handle)
        try:
            await self._request(packets.EXTENDED, request, _nothing)
        except SftpStatus as error:
            if error.code == packets.UNSUPPORTED:  # by the file system
                return False
            raise
        return True

    def _has(self, extension: bytes) -> bool:
        return self._extensions is not None and extension in self._extensions

    # --- parts ------------------------------------------------------------------------------------------------------

    def _request(self, kind: int, body: bytes, convert: Callable[[packets.Reply], _T]) -> Pending[_T]:
        pending = Pending(convert)
        self._to_send.append(packets.encode_request(kind, self._take_id(pending), body))
        return pending

    def _take_id(self, pending: Pending[Any]) -> int:
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        self._pending[request_id] = pending
        return request_id


NO_SFTP_HINT = (
    "look for lines like 'Subsystem sftp' in the node's sshd_config, and for commands in its shell's start files that "
    "print something"
)


def _told_of_text(said: bytes) -> str:
    """Give for a person how what is no SFTP begins: its text, up to what no terminal should be sent."""
    text = " ".join(said.decode("utf-8", "replace").split())
    end = next((index for index, character in enumerate(text) if not character.isprintable()), len(text))
    shown = text[: min(end, _SHOWN_CHARACTERS)].rstrip()
    return f"it began with: {shown}" if shown else "something came before the first packet of SFTP"


def _failed(reply: packets.Reply) -> Exception:
    if isinstance(reply, packets.StatusReply):
        return SftpStatus(reply.code, reply.message)
    return MalformedMessage(f"the SFTP server gave an answer of the wrong kind ({type(reply).__name__})")


def _nothing(reply: packets.Reply) -> None:
    if not isinstance(reply, packets.StatusReply) or reply.code != packets.OK:
        raise _failed(reply)


def _handle(reply: packets.Reply) -> bytes:
    if not isinstance(reply, packets.HandleReply):
        raise _failed(reply)
    return reply.handle


def _data(reply: packets.Reply) -> bytes:
    if isinstance(reply, packets.DataReply):
        return reply.data
    if isinstance(reply, packets.StatusReply) and reply.code == packets.END_OF_FILE:
        return b""
    raise _failed(reply)


def _attributes(reply: packets.Reply) -> Attributes:
    if not isinstance(reply, packets.AttributesReply):
        raise _failed(reply)
    return reply.attributes


def _names(reply: packets.Reply) -> list[tuple[bytes, Attributes]]:
    if isinstance(reply, packets.NameReply):
        return reply.entries
    if isinstance(reply, packets.StatusReply) and reply.code == packets.END_OF_FILE:
        return []
    raise _failed(reply)


def _one_name(reply: packets.Reply) -> bytes:
    if not isinstance(reply, packets.NameReply) or len(reply.entries) != 1:
        raise _failed(reply)
    return reply.entries[0][0]


def _extended(reply: packets.Reply) -> bytes:
    if not isinstance(reply, packets.ExtendedReply):
        raise _failed(reply)
    return reply.body
