"""Packets of SFTP version 3: values to bytes and back; no state, no IO.

Source: draft-ietf-secsh-filexfer-02 (version 3, what OpenSSH serves), sections 3 to 8; OpenSSH's PROTOCOL, section 4,
for the extensions.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final

from ssm_proxy.errors import MalformedMessage

VERSION: Final = 3

INIT, VERSION_REPLY, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT = range(1, 11)
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = range(11, 19)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201

OPEN_READ, OPEN_WRITE, OPEN_CREATE, OPEN_TRUNCATE, OPEN_EXCLUSIVE = 0x01, 0x02, 0x08, 0x10, 0x20
"""Bits of the member pflags of OPEN (section 6.3)."""

OK, END_OF_FILE, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = range(6)
NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = range(6, 9)
"""Codes of STATUS (section 7)."""

MAX_PACKET_BYTES: Final = 1024 * 1024
"""More than any server sends: OpenSSH's bound is 256 KiB."""
MAX_HANDLE_BYTES: Final = 256
"""Section 6.2; it is sent back with every request."""

_HAS_SIZE, _HAS_OWNER, _HAS_PERMISSIONS, _HAS_TIMES = 0x01, 0x02, 0x04, 0x08
_HAS_EXTENDED = 0x80000000
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_HEAD = struct.Struct(">IBI")


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What is known of a file, or is to be set; None where it is not (section 5)."""

    size: int | None = None
    """Bytes."""
    owner: tuple[int, int] | None = None
    """Numbers of user and group."""
    permissions: int | None = None
    """With the bits of the file's type, where a server tells them."""
    times: tuple[int, int] | None = None
    """Of the last access and the last change; seconds since 1970."""

    @property
    def is_folder(self) -> bool:
        return self.permissions is not None and stat.S_ISDIR(self.permissions)

    @property
    def is_link(self) -> bool:
        return self.permissions is not None and stat.S_ISLNK(self.permissions)

    @property
    def is_regular(self) -> bool:
        """Also true where the server does not tell the type."""
        return self.permissions is None or not stat.S_IFMT(self.permissions) or stat.S_ISREG(self.permissions)


@dataclass(frozen=True)
class StatusReply:
    code: int
    message: str


@dataclass(frozen=True)
class HandleReply:
    handle: bytes


@dataclass(frozen=True)
class DataReply:
    data: bytes


@dataclass(frozen=True)
class NameReply:
    entries: list[tuple[bytes, Attributes]]


@dataclass(frozen=True)
class AttributesReply:
    attributes: Attributes


@dataclass(frozen=True)
class ExtendedReply:
    body: bytes


Reply = StatusReply | HandleReply | DataReply | NameReply | AttributesReply | ExtendedReply


def encode_string(value: bytes) -> bytes:
    """Give a string with its length before it."""
    return _U32.pack(len(value)) + value


def encode_attributes(attributes: Attributes) -> bytes:
    """Give the attributes that are not None."""
    flags, body = 0, b""
    if attributes.size is not None:
        flags |= _HAS_SIZE
        body += _U64.pack(attributes.size)
    if attributes.owner is not None:
        flags |= _HAS_OWNER
        body += struct.pack(">II", *attributes.owner)
    if attributes.permissions is not None:
        flags |= _HAS_PERMISSIONS
        body += _U32.pack(attributes.permissions)
    if attributes.times is not None:
        flags |= _HAS_TIMES
        body += struct.pack(">II", *(max(0, min(each, 0xFFFFFFFF)) for each in attributes.times))
    return _U32.pack(flags) + body


def encode_init() -> bytes:
    """Give the first packet, which has no request id."""
    return struct.pack(">IBI", 5, INIT, VERSION)


def encode_request(kind: int, request_id: int, body: bytes) -> bytes:
    """Give one packet."""
    return _HEAD.pack(len(body) + 5, kind, request_id) + body


def encode_write_head(request_id: int, handle: bytes, offset: int, size: int) -> bytes:
    """Give all of a WRITE but its data, which is ``size`` bytes and follows: spares a copy of it."""
    head = encode_string(handle) + _U64.pack(offset) + _U32.pack(size)
    return _HEAD.pack(len(head) + size + 5, WRITE, request_id) + head


def encode_read(handle: bytes, offset: int, size: int) -> bytes:
    """Give the body of a READ."""
    return encode_string(handle) + _U64.pack(offset) + _U32.pack(size)


def may_be_version(said: bytes) -> bool:
    """Whether what a server said first may be the beginning of a VERSION, as far as it has come.

    Text is not: as the size of a packet, four letters are more than any has.
    """
    if len(said) < 4:
        return True
    return 1 <= _U32.unpack_from(said)[0] <= MAX_PACKET_BYTES and said[4:5] in (b"", bytes((VERSION_REPLY,)))


def decode_version(body: bytes) -> dict[bytes, bytes]:
    """Give the extensions that a server's VERSION names, by name.

    Raises:
        MalformedMessage: it is cut off, or speaks of another version.
    """
    reader = _Reader(body)
    version = reader.u32()
    if version != VERSION:
        raise MalformedMessage(f"the server speaks SFTP version {version}; {VERSION} is needed")
    extensions = {}
    while reader.left:
        name = reader.string()
        extensions[name] = reader.string()
    return extensions


def decode_reply(kind: int, body: bytes) -> tuple[int, Reply]:
    """Give the request's id and the answer to it.

    Args:
        kind: the packet's type.
        body: what follows the type.

    Raises:
        MalformedMessage: it is no answer, or cut off.
    """
    reader = _Reader(body)
    request_id = reader.u32()
    if kind == STATUS:
        code = reader.u32()
        message = reader.string() if reader.left else b""  # old servers leave it out
        return request_id, StatusReply(code, message.decode("utf-8", "replace"))
    if kind == HANDLE:
        handle = reader.string()
        if len(handle) > MAX_HANDLE_BYTES:
            raise MalformedMessage(f"the SFTP server gave a handle of {len(handle)} bytes")
        return request_id, HandleReply(handle)
    if kind == DATA:
        return request_id, DataReply(reader.string())
    if kind == NAME:
        count = reader.u32()
        if count > len(body) // 12:  # each has three lengths at least
            raise MalformedMessage(f"an SFTP answer announces {count} names in {len(body)} bytes")
        entries = []
        for _ in range(count):
            name = reader.string()
            reader.string()  # the line that ls -l would print
            entries.append((name, reader.attributes()))
        return request_id, NameReply(entries)
    if kind == ATTRS:
        return request_id, AttributesReply(reader.attributes())
    if kind == EXTENDED_REPLY:
        return request_id, ExtendedReply(reader.rest())
    raise MalformedMessage(f"the SFTP server sent a packet of type {kind}, which is no answer")


def decode_u64s(body: bytes, count: int) -> list[int]:
    """Give the first numbers of an extension's answer.

    Raises:
        MalformedMessage: there are fewer.
    """
    reader = _Reader(body)
    return [reader.u64() for _ in range(count)]


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._position

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        return self._take(self.u32())

    def rest(self) -> bytes:
        return self._take(self.left)

    def attributes(self) -> Attributes:
        flags = self.u32()
        size = self.u64() if flags & _HAS_SIZE else None
        owner = (self.u32(), self.u32()) if flags & _HAS_OWNER else None
        permissions = self.u32() if flags & _HAS_PERMISSIONS else None
        times = (self.u32(), self.u32()) if flags & _HAS_TIMES else None
        if flags & _HAS_EXTENDED:
            for _ in range(min(self.u32(), self.left // 8 + 1)):
                self.string()
                self.string()
        return Attributes(size=size, owner=owner, permissions=permissions, times=times)

    def _take(self, size: int) -> bytes:
        start = self._position
        if size > len(self._body) - start:
            raise MalformedMessage("an SFTP packet is cut off")
        self._position = start + size
        return self._body[start : start + size]


class PacketReader:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take bytes as they come; give type and body of each packet that is complete now.

        Raises:
            MalformedMessage: a packet is empty, or larger than any can be.
        """
        self._held += data
        packets: list[tuple[int, bytes]] = []
        position = 0
        with memoryview(self._held) as held:
            while len(held) - position >= 4:
                (size,) = _U32.unpack_from(held, position)
                if not 1 <= size <= MAX_PACKET_BYTES:
                    raise MalformedMessage(f"an SFTP packet of {size} bytes was announced")
                end = position + 4 + size
                if len(held) < end:
                    break
                packets.append((held[position + 4], bytes(held[position + 5 : end])))
                position = end
        del self._held[:position]
        return packets
