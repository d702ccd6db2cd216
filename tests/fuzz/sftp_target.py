"""SFTP: any packet decodes or is refused, any stream is cut the same however it comes, and a connection bears any end.

The server of the last target answers what it likes: out of order, twice, what was not asked, with the wrong kind, or no
SFTP at all. Whoever awaits an answer gets one of its kind or an error, once; what is under way is counted right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from fuzz.choices import Choices

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import Pending, SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes, AttributesReply, NameReply, PacketReader

_MOST_OPERATIONS = 200
_KINDS = (101, 102, 103, 104, 105, 201, 2, 100)
_SIZES = (0, 1, 7, 100, 32768, 65536)
_EXTENSIONS = (b"posix-rename@openssh.com", b"limits@openssh.com", b"statvfs@openssh.com", b"expand-path@openssh.com")


def check_reply(data: bytes) -> None:
    """The first byte is the packet's type; small ones stand for those that answers have."""
    kind = data[0] if data else 0
    kind = _KINDS[kind] if kind < len(_KINDS) else kind
    body = data[1:]
    for numbers in (5, 3):
        try:
            values = packets.decode_u64s(body, numbers)
        except MalformedMessage:
            continue
        assert struct.pack(f">{numbers}Q", *values) == body[: 8 * numbers]
    try:
        if kind == packets.VERSION_REPLY:
            extensions = packets.decode_version(body)
            assert sum(len(name) + len(value) + 8 for name, value in extensions.items()) <= len(body) - 4
            return
        request_id, reply = packets.decode_reply(kind, body)
    except MalformedMessage:
        return
    assert struct.pack(">I", request_id) == body[:4]
    found = [reply.attributes] if isinstance(reply, AttributesReply) else []
    if isinstance(reply, NameReply):
        assert sum(len(name) + 12 for name, _ in reply.entries) <= len(body) - 8
        found = [attributes for _, attributes in reply.entries]
    for attributes in found:
        again = packets.decode_reply(packets.ATTRS, bytes(4) + packets.encode_attributes(attributes))[1]
        assert again == AttributesReply(attributes)


def check_stream(data: bytes) -> None:
    """The first byte says how many follow that are places to cut at; the rest is the stream."""
    count = data[0] & 15 if data else 0
    stream = data[1 + count :]
    ends = sorted({*data[1 : 1 + count], len(stream)})
    found: list[tuple[int, bytes]] = []
    reader = PacketReader()
    is_refused = False
    try:
        for start, end in zip([0, *ends], ends, strict=False):
            found += reader.feed(stream[start:end])
    except MalformedMessage:
        is_refused = True
    expected, position = [], 0
    while len(stream) - position >= 4:
        size = int.from_bytes(stream[position : position + 4], "big")
        if not 0 < size <= packets.MAX_PACKET_BYTES:
            assert is_refused
            assert found == expected[: len(found)]  # those that came with what is wrong are not told
            return
        if position + 4 + size > len(stream):
            break
        expected.append((stream[position + 4], stream[position + 5 : position + 4 + size]))
        position += 4 + size
    assert not is_refused
    assert found == expected


class Machine:
    """A connection, those who await its answers, and its server."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.sftp = SftpConnection()
        self.sent = b""
        self.said = b""
        """Of the server, and no whole packet yet."""
        self.unanswered: dict[bytes, int] = {}
        """Type of each request, by its id."""
        self.started = 0
        self.ended: list[BaseException | None] = []
        self.is_over = False

    def run(self) -> None:
        chosen = [name for name in _EXTENSIONS if self.choices.below(2)]
        body = struct.pack(">I", 3) + b"".join(_text(name) + _text(b"1") for name in chosen)
        self.receive(_packet(2, body))
        self.take_requests()
        for _ in range(_MOST_OPERATIONS):
            if self.choices.is_over or self.is_over:
                break
            self.operation(self.choices.below(16))
            self.take_requests()
            self.check()
        if not self.said:
            while self.unanswered and not self.is_over:
                self.answer(next(iter(self.unanswered)), packets.STATUS, struct.pack(">I", packets.FAILURE))
                self.take_requests()
            assert self.is_over or self.sftp.is_idle
            assert self.is_over or len(self.ended) == self.started
        before = len(self.ended)
        self.sftp.close()
        assert len(self.ended) == before

    def operation(self, kind: int) -> None:
        choices = self.choices
        if kind < 6:
            self.started += 1
            self.sftp.start(self.ask(choices.below(14), choices.below(4) + 1), self.ended.append)
        elif kind < 12 and self.unanswered:
            ids = list(self.unanswered)
            request_id = ids[choices.below(len(ids)) if len(ids) < 256 else 0]
            self.answer(request_id, *self.reply(self.unanswered[request_id]))
        elif kind < 14:
            self.receive(_packet(choices.one_of(_KINDS), choices.take(choices.below(40))))
        elif kind == 14:
            self.receive(choices.take(choices.below(40)))
        else:
            self.receive(b"")

    def reply(self, request: int) -> tuple[int, bytes]:
        """Give an answer, most often of the kind that the request awaits."""
        choices = self.choices
        kind = choices.below(10)
        if kind == 0:
            return choices.one_of(_KINDS), choices.take(choices.below(60))
        if kind == 1:
            return packets.STATUS, struct.pack(">I", choices.below(10)) + _text(choices.take(choices.below(8)))
        if request in (packets.OPEN, packets.OPENDIR):
            return packets.HANDLE, _text(choices.take(choices.below(8)))
        if request == packets.READ:
            return packets.DATA, _text(bytes(choices.one_of(_SIZES)))
        if request in (packets.STAT, packets.LSTAT, packets.FSTAT):
            return packets.ATTRS, struct.pack(">I", choices.below(16)) + choices.take(choices.below(40))
        if request in (packets.READDIR, packets.REALPATH):
            entry = _text(choices.take(choices.below(5))) + _text(b"") + bytes(4)
            return packets.NAME, struct.pack(">I", kind - 2) + entry * choices.below(4)
        if request == packets.EXTENDED:
            return packets.EXTENDED_REPLY, choices.take(choices.below(48))
        return packets.STATUS, bytes(4)

    async def ask(self, kind: int, times: int) -> None:
        sftp, choices = self.sftp, self.choices
        if kind < 5:
            sizes = [choices.one_of(_SIZES) for _ in range(times)]
            reads = [sftp.read(b"h", 0, size) for size in sizes]
            for size, each in zip(sizes, reads, strict=True):
                assert len(await each) <= size
        elif kind < 7:
            writes: list[Pending[None]] = [sftp.write(b"h", 0, bytes(choices.one_of(_SIZES))) for _ in range(times)]
            for write in [*writes, sftp.close_handle(b"h")]:
                assert await write is None  # type: ignore[func-returns-value]
        elif kind == 7:
            assert len(await sftp.open(b"p", 1)) <= packets.MAX_HANDLE_BYTES
        elif kind == 8:
            for name, attributes in await sftp.read_folder(b"h"):
                assert type(name) is bytes
                assert type(attributes) is Attributes
        elif kind == 9:
            assert type(await sftp.real_path(b"p")) is bytes
        elif kind == 10:
            assert type((await sftp.stat(b"p")).is_regular) is bool
        elif kind == 11:
            await sftp.learn_limits()
            assert 32768 <= sftp.read_bytes <= 65536
            assert 32768 <= sftp.write_bytes <= 65536
        elif kind == 12:
            assert (await sftp.free_bytes(b"p") or 0) >= 0
            await sftp.expand_path(b"~")
        else:
            await sftp.rename(b"a", b"b")

    def answer(self, request_id: bytes, kind: int, body: bytes) -> None:
        self.receive(_packet(kind, request_id + body))

    def receive(self, data: bytes) -> None:
        """Cut it in two, for some; a server that is wrong ends the connection."""
        try:
            self.sftp.receive(data[:3])
            self.sftp.receive(data[3:])
        except MalformedMessage:
            self.is_over = True
        self.said += data
        while len(self.said) >= 4 and len(self.said) >= 4 + (size := int.from_bytes(self.said[:4], "big")):
            request_id = self.said[5:9]  # by chance, maybe
            self.said = self.said[4 + size :]
            self.unanswered.pop(request_id, None)

    def take_requests(self) -> None:
        """Read what the client has sent, by the format's rules alone."""
        self.sent += self.sftp.data_to_send()
        while len(self.sent) >= 4:
            size = int.from_bytes(self.sent[:4], "big")
            assert 5 <= size <= len(self.sent) - 4
            request, self.sent = self.sent[4 : 4 + size], self.sent[4 + size :]
            if request[0] == packets.INIT:
                continue
            request_id = request[1:5]
            assert request_id not in self.unanswered
            self.unanswered[request_id] = request[0]
        assert not self.sent

    def check(self) -> None:
        assert len(self.ended) <= self.started
        for end in self.ended:
            if end is not None and not isinstance(end, SftpStatus | MalformedMessage):
                raise end
        if not self.is_over:
            assert self.sftp.is_idle == (not self.unanswered)


def _text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def _packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


def check_connection(data: bytes) -> None:
    Machine(Choices(data)).run()


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "sftp_reply": check_reply,
    "sftp_stream": check_stream,
    "sftp": check_connection,
}
