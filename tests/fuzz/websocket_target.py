"""Reception of WebSocket frames, cut anywhere, against the parser of websocket-client as the oracle."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Callable
from unittest import mock

import websocket
from fuzz.choices import Choices
from websocket import ABNF

from ssm_proxy.errors import RemoteProtocolError, TransportClosed, TransportError
from ssm_proxy.transport.frames import MAX_MESSAGE_BYTES
from ssm_proxy.transport.opening import open_websocket
from ssm_proxy.transport.websocket import WebSocketTransport

PIECE_BYTES = 32 * 1024
"""At most this is written to the socket pair at once: it fits the buffer, so one thread can play both sides."""
_SIZES = (0, 1, 2, 5, 125, 126, 127, 300, 65535, 65536, 70000)
_LENGTHS = (2**63 - 1, 2**63, 2**64 - 1, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1)


class Expected:
    """What websocket-client's parser makes of a stream, with the rules of RFC 6455 that it does not look after.

    ``end`` is ``open``, ``closed`` by a close frame, or ``broken`` by what a server must not send.
    """

    def __init__(self, stream: bytes) -> None:
        self.messages: list[bytes] = []
        self.pings: list[bytes] = []
        self.end = "open"
        self._stream = stream
        self._position = 0
        self._fragments: list[bytes] | None = None
        self._frames = websocket.frame_buffer(self._take, True)
        try:
            while self.end == "open":
                frame = self._frames.recv_frame()
                self._check(frame.opcode, frame.fin, len(frame.data))
                self._frame(frame)
        except BlockingIOError:
            pass
        except websocket.WebSocketException as error:
            # A code that RFC 6455 does not allow, as broken middle boxes send, is still an end like any other.
            self.end = "closed" if str(error).startswith("Invalid close") else "broken"
        except _NotAllowed:
            self.end = "broken"

    def _take(self, size: int) -> bytes:
        header, length = self._frames.header, self._frames.length
        if header is not None:
            fin, rsv1, rsv2, rsv3, opcode, has_mask, _ = header
            if has_mask:
                raise _NotAllowed
            if length is not None:  # the header is whole: nothing has to wait for the rest
                if rsv1 or rsv2 or rsv3:
                    raise _NotAllowed
                self._check(opcode, fin, length)
        data = self._stream[self._position : self._position + size]
        if not data:
            raise BlockingIOError
        self._position += len(data)
        return data

    def _check(self, opcode: int, fin: int, length: int) -> None:
        if opcode not in ABNF.OPCODES or (opcode >= 8 and (length > 125 or not fin)):
            raise _NotAllowed
        if opcode < 8:
            joined = sum(map(len, self._fragments or ()))
            if length + joined > MAX_MESSAGE_BYTES or (opcode == ABNF.OPCODE_CONT) == (self._fragments is None):
                raise _NotAllowed

    def _frame(self, frame: ABNF) -> None:
        opcode, data = frame.opcode, bytes(frame.data)
        if opcode == ABNF.OPCODE_CLOSE:
            self.end = "closed"
        elif opcode == ABNF.OPCODE_PING:
            self.pings.append(data)
        elif opcode != ABNF.OPCODE_PONG:
            self._fragments = [*(self._fragments or ()), data]
            if frame.fin:
                self.messages.append(b"".join(self._fragments))
                self._fragments = None


class _NotAllowed(Exception):
    """RFC 6455 does not allow a server this frame."""


def check_websocket(data: bytes) -> None:
    """The first bytes say where the stream is cut; the rest are frames to be built, or the stream itself."""
    choices = Choices(data)
    cuts = [choices.u16() % (1 << choices.below(17)) + 1 for _ in range(choices.below(8))]
    stream = _built_stream(choices) if choices.below(4) else choices.rest()
    expected = Expected(stream)
    theirs, mine = socket.socketpair()
    with theirs:
        transport = WebSocketTransport(mine)
        try:
            messages, end, told = _receive(transport, theirs, stream, cuts)
        finally:
            transport.close()
        pongs = _frames_of(_read_all(theirs))
    assert messages == expected.messages[: len(messages)]
    if end == "broken":  # what stood before it in the same read is lost with it, and comes again by its sender's timer
        assert expected.end == "broken"
    else:
        assert messages == expected.messages
        assert end == expected.end
        # The latest of several pings may be answered for all of them.
        answered = [frame for opcode, frame in pongs if opcode == ABNF.OPCODE_PONG]
        rest = iter(expected.pings)
        assert all(any(ping == frame for ping in rest) for frame in answered)
        assert answered[-1:] == expected.pings[-1:]
    assert told <= len(stream)


def _built_stream(choices: Choices) -> bytes:
    stream = bytearray()
    for _ in range(choices.below(24)):
        kind = choices.byte()
        opcode = (2, 2, 2, 0, 1, 8, 9, 10, 3, 11, 2, 0, 9, 2, 0, 2)[kind & 15]
        fin = 0 if kind & 0x30 == 0x30 else 0x80
        style = choices.byte()
        rsv = 0x40 if style == 255 else 0
        mask = 0x80 if style & 0x60 == 0x60 else 0
        size = _SIZES[style & 15] if style & 15 < len(_SIZES) else choices.byte()
        payload = choices.take(min(size, 16)).ljust(size, b".")
        if opcode == 8 and size >= 2:
            payload = (1000 + choices.below(16)).to_bytes(2, "big") + payload[2:]
        claimed = size if style != 254 else choices.one_of(_LENGTHS)
        form = choices.below(16)  # longer than needed at times, which RFC 6455 forbids and parsers let pass
        if claimed < 126 and form:
            head = bytes((fin | rsv | opcode, mask | claimed))
        elif claimed < 65536 and form != 1:
            head = bytes((fin | rsv | opcode, mask | 126)) + claimed.to_bytes(2, "big")
        else:
            head = bytes((fin | rsv | opcode, mask | 127)) + claimed.to_bytes(8, "big")
        key = b"\x01\x02\x03\x04" if mask else b""
        stream += head + key + payload
    return bytes(stream[: max(0, len(stream) - choices.below(4))])


def _receive(
    transport: WebSocketTransport, theirs: socket.socket, stream: bytes, cuts: list[int]
) -> tuple[list[bytes], str, int]:
    messages: list[bytes] = []
    position = 0
    ordinal = 0
    end = "open"
    while end == "open" and position < len(stream):
        size = min(cuts[ordinal], PIECE_BYTES) if ordinal < len(cuts) else PIECE_BYTES
        ordinal += 1
        theirs.sendall(stream[position : position + size])
        position += size
        end = _receive_once(transport, messages)
    if end == "open":
        theirs.shutdown(socket.SHUT_WR)
        last = _receive_once(transport, messages, until_end=True)
        assert last in ("closed", "broken"), "the end of the connection was not told"
        end = "broken" if last == "broken" else "open"
    elif end == "closed":  # it goes on saying so, and says nothing else
        count = len(messages)
        assert _receive_once(transport, messages) == "closed"
        assert len(messages) == count
    return messages, end, transport.bytes_received


def _receive_once(transport: WebSocketTransport, messages: list[bytes], *, until_end: bool = False) -> str:
    for _ in range(100):
        try:
            messages += transport.receive()
            transport.flush()
        except TransportClosed:
            return "closed"
        except RemoteProtocolError:
            return "broken"
        if not until_end and not transport.has_more:
            return "open"
    raise AssertionError("receive never comes to an end")


def _read_all(theirs: socket.socket) -> bytes:
    theirs.setblocking(False)
    found = bytearray()
    try:
        while data := theirs.recv(1 << 20):
            found += data
    except (BlockingIOError, ConnectionResetError):
        pass
    return bytes(found)


def _frames_of(data: bytes) -> list[tuple[int, bytes]]:
    frames = []
    view = [data]

    def take(size: int) -> bytes:
        piece, view[0] = view[0][:size], view[0][size:]
        if not piece:
            raise BlockingIOError
        return piece

    parser = websocket.frame_buffer(take, True)
    try:
        while True:
            frame = parser.recv_frame()
            frames.append((frame.opcode, bytes(frame.data)))
    except BlockingIOError:
        return frames


class AnsweringSocket:
    """Stands in for a connected socket: answers the request for an upgrade with given bytes, then ends."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._sent = bytearray()
        self.is_closed = False

    def setsockopt(self, *_option: int) -> None:
        """Nothing to set."""

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def send(self, data: bytes) -> int:
        self._sent += data
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._sent:
            self._answer = self._answer.replace(b"{accept}", self._accept())
            self._sent.clear()
        data, self._answer = self._answer[:size], self._answer[size:]
        return data

    def _accept(self) -> bytes:
        for line in bytes(self._sent).split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name.lower() == b"sec-websocket-key":
                digest = hashlib.sha1(value + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
                return base64.b64encode(digest)
        return b""

    def gettimeout(self) -> float:
        return 1.0

    def settimeout(self, _timeout: float) -> None:
        """Nothing to wait for."""

    def setblocking(self, _flag: bool) -> None:
        """Nothing to wait for."""

    def shutdown(self, _how: int) -> None:
        """Nothing is open."""

    def close(self) -> None:
        self.is_closed = True

    def fileno(self) -> int:
        return -1


def check_upgrade(data: bytes) -> None:
    """What a proxy (if the first byte says so) and the other side answer to the request for an upgrade."""
    proxy_url = "http://user:password@proxy.invalid:8080" if data[:1] > b"\x7f" else None
    connected = AnsweringSocket(data[1:])
    with mock.patch.object(socket, "create_connection", return_value=connected):
        try:
            transport = open_websocket(
                "ws://127.0.0.1/v1/data-channel/x", headers={}, ca_bundle=None, proxy_url=proxy_url, timeout=60.0
            )
        except TransportError as error:
            assert connected.is_closed
            for text in (error.message, error.cause, error.hint):
                assert text is None or (len(text) <= 500 and "password" not in text.replace("user and password", ""))
        else:
            assert not connected.is_closed
            transport.close()


def upgrade_answer() -> bytes:
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )


TARGETS: dict[str, Callable[[bytes], None]] = {"websocket": check_websocket, "upgrade": check_upgrade}
