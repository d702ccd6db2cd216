"""The other side of a WebSocket for the tests of the transport: frames by hand, and a server with a scripted answer."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from ssm_proxy.transport.poller import make_poller
from ssm_proxy.transport.websocket import WebSocketTransport

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
DEADLINE = 10.0

Answer = Callable[[socket.socket, bytes], None]


def frame(payload: bytes, opcode: int = BINARY, *, fin: bool = True, rsv: int = 0) -> bytes:
    """Give one unmasked frame, as servers send them."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


class FrameReader:
    """Takes a client's bytes as they come; gives whole frames, unmasked."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self.rest += data
        frames = []
        while (found := self._next()) is not None:
            frames.append(found)
        return frames

    def _next(self) -> tuple[int, bytes] | None:
        data = self.rest
        if len(data) < 2:
            return None
        assert data[0] & 0xF0 == 0x80, "clients send whole messages without extensions"
        assert data[1] & 0x80, "clients have to mask"
        size, start = data[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        end = start + 4 + size
        if len(data) < end:
            return None
        key = data[start : start + 4] * (size // 4 + 1)
        number = int.from_bytes(data[start + 4 : end], "big") ^ int.from_bytes(key[:size], "big")
        self.rest = data[end:]
        return data[0] & 0x0F, number.to_bytes(size, "big")


def receive(transport: WebSocketTransport, count: int) -> list[bytes]:
    """Receive as the loop does: when the poller says so, or ``has_more``."""
    poller = make_poller()
    poller.set(transport.fileno(), read=True)
    messages: list[bytes] = []
    while len(messages) < count:
        assert transport.has_more or poller.wait(DEADLINE), f"only {len(messages)} messages arrived"
        messages += transport.receive()
    return messages


def queued_bytes(transport: WebSocketTransport) -> int:
    """Count what the socket has not taken yet."""
    return len(transport._leaving) + sum(map(len, transport._ahead)) + sum(map(len, transport._behind))


def read_request(connection: socket.socket) -> bytes:
    """Read up to the blank line that ends a request, one byte at a time so that nothing behind it is taken."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            break
        request += byte
    return request


def upgrade(connection: socket.socket, request: bytes, *, more_headers: bytes = b"") -> None:
    """Accept the WebSocket. More headers end with a line end each."""
    headers = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:] if line)
    key = headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n" + more_headers + b"\r\n"
    )


def answer_with(text: str) -> Answer:
    """Answer every request with the same bytes."""

    def answer(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(text.encode())

    return answer


class ScriptedServer:
    """Listens on loopback and hands each connection, with the request on it, to ``answer`` in a thread."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self._is_over = False
        self.requests: list[bytes] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(DEADLINE)
        self._listener.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(DEADLINE)
            with connection:
                if self._is_over:
                    return
                try:
                    self._serve(connection)
                except OSError:  # the client went away, as some tests want it to
                    continue

    def _serve(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            request = read_request(connection)
            self.requests.append(request)
            self._answer(connection, request)
