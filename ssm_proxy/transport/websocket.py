"""One WebSocket, used without blocking; the door at which the exceptions of websocket-client and the socket stop.

websocket-client opens the connection (proxy, TLS, upgrade) and codes the frames; the socket is ours from then on,
because its own ``send`` and ``recv`` make several system calls for each message. Here one call moves many messages.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

import websocket
from websocket import ABNF

from ssm_proxy.errors import (
    CertificateNotTrusted,
    ConfigurationError,
    ConnectFailed,
    OpeningRefused,
    RemoteProtocolError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""No official program sends a thousandth of this; it bounds what a broken or hostile peer can make us keep."""
READ_BYTES = 256 * 1024
MAX_READS_IN_A_ROW = 4
SEND_CHUNK_BYTES = 256 * 1024
PING_PAYLOAD = b"keepalive"
_CLOSE_NORMAL = b"\x03\xe8"
# websocket-client would look at the environment itself; the decision was already made by the rules of the AWS SDK. It
# asks only a list that comes with the name of a proxy, so a proxy that no host may use stands for none.
_NO_PROXY_AT_ALL: dict[str, object] = {
    "http_proxy_host": "no.proxy.invalid",
    "http_proxy_port": 80,
    "http_no_proxy": ["*"],
}
_PROXY_IN_ANY_CASE = ["the.proxy.was.chosen.elsewhere.invalid"]
_DATA_OPCODES = (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY)


def open_websocket(
    url: str,
    *,
    headers: Mapping[str, str],
    ca_bundle: str | None,
    proxy_url: str | None,
    timeout: float,
) -> WebSocketTransport:
    """Connect, upgrade, and give the open WebSocket. Blocks.

    Args:
        url: ``wss://…``, or ``ws://…`` on loopback; used verbatim.
        headers: sent with the upgrade (the signature, 2.1.1).
        ca_bundle: file or directory of trusted certificates; None for those of the operating system.
        proxy_url: HTTP proxy, credentials included, or None to go directly.
        timeout: seconds for each step; the caller bounds the whole.

    Raises:
        ConnectFailed: name, route, proxy or TLS.
        OpeningRefused: the service answered the upgrade with an HTTP error.
        TransportTimeout: a step took too long.
    """
    host = urlsplit(url).hostname or url
    context = _tls_context(ca_bundle) if url.startswith("wss:") else None
    client = websocket.WebSocket(sslopt={"context": context} if context else None, skip_utf8_validation=True)
    proxy_options = _NO_PROXY_AT_ALL if proxy_url is None else _proxy_options(proxy_url)
    proxy = None if proxy_url is None else f"{proxy_options['http_proxy_host']}:{proxy_options['http_proxy_port']}"
    with _map_opening_errors(host, proxy):
        client.connect(  # type: ignore[no-untyped-call,unused-ignore]
            url,
            socket=_connect(url, context, timeout) if proxy_url is None else None,
            header=[f"{name}: {value}" for name, value in headers.items()],
            suppress_origin=True,
            redirect_limit=0,  # the token goes to the host that the API named, and to no other
            timeout=timeout,
            **proxy_options,
        )
        connected = client.sock
        if connected is None or client.handshake_response is None or client.handshake_response.status != 101:
            client.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
            raise websocket.WebSocketException("the answer to the upgrade is not 101")
    return WebSocketTransport(connected)


def _connect(url: str, context: ssl.SSLContext | None, timeout: float) -> socket.socket:
    """Connect to the first address of the host that answers.

    websocket-client would give up at the first one that does not: an endpoint with a dead zone, IPv6 to nowhere.
    """
    parts = urlsplit(url)
    port = parts.port or (80 if context is None else 443)
    connected = socket.create_connection((parts.hostname, port), timeout)
    try:
        for option in websocket.DEFAULT_SOCKET_OPTION:
            connected.setsockopt(*option)
        return connected if context is None else context.wrap_socket(connected, server_hostname=parts.hostname)
    except BaseException:
        connected.close()
        raise


class WebSocketTransport:
    """An open WebSocket whose calls never block.

    ``send`` only queues; ``flush`` writes what the socket takes. ``flush`` and ``receive`` raise
    :class:`TransportClosed` once the connection has ended, in whatever way: any close code is routine (2.5).
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._outgoing = bytearray()
        self._received = bytearray()
        self._position = 0
        self._frames = websocket.frame_buffer(self._take, True)
        self._fragments: list[bytes] | None = None
        self._fragments_bytes = 0
        self._ended: TransportClosed | None = None
        self.bytes_received = 0
        """Counts all that was read from the connection: a sign of life."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether ``flush`` has something left to do."""
        return bool(self._outgoing)

    @property
    def queued_bytes(self) -> int:
        return len(self._outgoing)

    def send(self, messages: list[bytes]) -> None:
        """Queue binary messages, in order."""
        outgoing = self._outgoing
        for message in messages:
            outgoing += ABNF.create_frame(message, ABNF.OPCODE_BINARY).format()

    def send_text(self, text: str) -> None:
        """Queue one text message."""
        self._outgoing += ABNF.create_frame(text, ABNF.OPCODE_TEXT).format()

    def ping(self) -> None:
        """Queue a ping (2.3)."""
        self._outgoing += ABNF.create_frame(PING_PAYLOAD, ABNF.OPCODE_PING).format()

    def flush(self) -> None:
        """Write what the socket takes now.

        Raises:
            TransportClosed: the connection has ended.
        """
        while self._outgoing:
            try:
                with memoryview(self._outgoing) as view:
                    sent = self._socket.send(view[:SEND_CHUNK_BYTES])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except (OSError, ValueError) as error:
                # Nothing can leave any more. A new object, because the error's traceback still holds a view of the old
                # one, which cannot be resized as long as it does.
                self._outgoing = bytearray()
                raise TransportClosed("the connection broke while sending", cause=describe(error)) from error
            del self._outgoing[:sent]

    def receive(self) -> list[bytes]:
        """Give the messages that have arrived, without waiting for more.

        Raises:
            TransportClosed: the connection has ended, and everything before that was given.
            RemoteProtocolError: what arrived is no WebSocket, or a message is larger than any should be.
        """
        if self._ended is not None:
            raise self._ended
        for _ in range(MAX_READS_IN_A_ROW):
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except (OSError, ValueError) as error:
                self._ended = TransportClosed("the connection broke", cause=describe(error))
                break
            if not data:
                self._ended = TransportClosed("the connection broke", cause="it ended without a close frame")
                break
            self._received += data
            self.bytes_received += len(data)
        messages: list[bytes] = []
        self._parse(messages)
        if self._ended is not None and not messages:
            raise self._ended
        return messages

    @property
    def has_more(self) -> bool:
        """Whether ``receive`` has more to tell although the socket has nothing new: TLS buffers whole records, and
        behind the last messages stands the end."""
        if self._ended is not None:
            return True
        pending = getattr(self._socket, "pending", None)
        return bool(pending and pending())

    def close(self) -> None:
        """Say goodbye if the socket takes it, and close. Never blocks, never raises."""
        with contextlib.suppress(TransportError, OSError, ValueError):
            self._outgoing += ABNF.create_frame(_CLOSE_NORMAL, ABNF.OPCODE_CLOSE).format()
            self.flush()
        with contextlib.suppress(OSError):
            self._socket.close()

    def _take(self, size: int) -> bytes:
        """Stand in for the socket of websocket-client's parser: give up to ``size`` bytes of what was read."""
        length = self._frames.length
        if length is not None and length + self._fragments_bytes > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(
                f"the service sent a message of {length} bytes; none may be larger than {MAX_MESSAGE_BYTES}"
            )
        start = self._position
        if start >= len(self._received):
            raise BlockingIOError
        data = bytes(self._received[start : start + size])
        self._position = start + len(data)
        return data

    def _parse(self, messages: list[bytes]) -> None:
        recv_frame = self._frames.recv_frame
        try:
            while True:
                frame = recv_frame()
                opcode = frame.opcode
                data: bytes = frame.data  # type: ignore[assignment,unused-ignore]
                if opcode == ABNF.OPCODE_BINARY and frame.fin and self._fragments is None:
                    messages.append(data)
                elif opcode == ABNF.OPCODE_PING:
                    self._outgoing += ABNF.create_frame(data, ABNF.OPCODE_PONG).format()
                elif opcode == ABNF.OPCODE_CLOSE:
                    self._ended = TransportClosed("the service closed the connection", cause=_close_text(data))
                    return
                elif opcode != ABNF.OPCODE_PONG:
                    self._join(data, opcode, bool(frame.fin), messages)
        except BlockingIOError:  # all that is complete was parsed; the parser keeps the rest
            pass
        except websocket.WebSocketException as error:
            if not str(error).startswith("Invalid close"):
                raise RemoteProtocolError("the service sent what is no WebSocket frame", cause=str(error)) from error
            # A code that RFC 6455 does not allow, as broken middle boxes send: still an end like any other.
            self._ended = TransportClosed("the service closed the connection", cause=_first_line(error))
        finally:
            del self._received[: self._position]
            self._position = 0

    def _join(self, data: bytes, opcode: int, is_last: bool, messages: list[bytes]) -> None:
        if (opcode in _DATA_OPCODES) == (self._fragments is not None):
            raise RemoteProtocolError("the service sent the fragments of a message out of order")
        if self._fragments is None:
            self._fragments = []
        if data:  # empty ones, which no limit counts, must not add up either
            self._fragments.append(data)
            self._fragments_bytes += len(data)
        if is_last:
            messages.append(b"".join(self._fragments))
            self._fragments = None
            self._fragments_bytes = 0


def describe(error: BaseException) -> str:
    """Give an operating system's or TLS library's reason in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate not trusted: " + error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error) or type(error).__name__


def _close_text(data: bytes) -> str:
    if len(data) < 2:
        return "close frame without a code"
    code = int.from_bytes(data[:2], "big")
    reason = data[2:].decode("utf-8", "replace")
    return f"close frame with code {code}" + (f" ({reason!r})" if reason else "")


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        if ca_bundle is None:
            return ssl.create_default_context()
        if os.path.isdir(ca_bundle):
            return ssl.create_default_context(capath=ca_bundle)
        return ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the CA bundle {ca_bundle!r} cannot be loaded",
            cause=describe(error),
            hint="check AWS_CA_BUNDLE, or ca_bundle in the AWS configuration file",
        ) from error


def _proxy_options(proxy_url: str) -> dict[str, object]:
    parts = urlsplit(proxy_url if "://" in proxy_url else f"http://{proxy_url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigurationError(
            "the proxy for the WebSocket cannot be used",
            cause=f"only http:// proxies are supported, not {parts.scheme}://",
            hint="set HTTPS_PROXY to http://host:port, or put the service's host into NO_PROXY",
        )
    options: dict[str, object] = {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": port,
        "http_no_proxy": _PROXY_IN_ANY_CASE,
    }
    if parts.username:
        options["http_proxy_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return options


@contextlib.contextmanager
def _map_opening_errors(host: str, proxy: str | None) -> Iterator[None]:
    """Turn every exception of the opening into one of ours."""
    way = host if proxy is None else f"{host} through the proxy {proxy}"
    try:
        yield
    except websocket.WebSocketBadStatusException as error:
        status = int(error.status_code or 0)
        if status == 403:
            raise OpeningRefused(
                f"{host} refused to open the data channel (HTTP 403)",
                status=status,
                cause="ssmmessages:OpenDataChannel is not permitted, or the signature was not accepted",
                hint="allow ssmmessages:OpenDataChannel on arn:aws:ssm:*:*:session/${aws:userid}-* in your IAM policy",
            ) from error
        raise OpeningRefused(
            f"{host} refused to open the data channel (HTTP {status})",
            status=status,
            hint="connect again; if it stays so, run with -vv",
        ) from error
    except websocket.WebSocketProxyException as error:
        raise ConnectFailed(
            f"the proxy {proxy} did not let us through to {host}",
            cause=_first_line(error),
            hint="check HTTPS_PROXY and its user and password, or put the service's host into NO_PROXY",
        ) from error
    except (websocket.WebSocketAddressException, socket.gaierror) as error:
        raise ConnectFailed(
            f"the name {host} cannot be resolved" if proxy is None else f"the proxy {proxy} cannot be resolved",
            cause=_first_line(error),
            hint="check network, VPN and DNS; without internet access an interface endpoint for ssmmessages is needed"
            if proxy is None
            else "check HTTPS_PROXY, or put the service's host into NO_PROXY",
        ) from error
    except (TimeoutError, websocket.WebSocketTimeoutException) as error:
        raise TransportTimeout(
            f"{way} did not answer in time",
            hint="check network, VPN, proxy (HTTPS_PROXY) and firewall for outgoing port 443",
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise CertificateNotTrusted(
            f"the certificate of {host} is not trusted",
            cause=error.verify_message.rstrip("."),
            hint="behind a proxy that inspects TLS, point AWS_CA_BUNDLE at the file with its CA certificate",
        ) from error
    except (OSError, ValueError, websocket.WebSocketException) as error:
        raise ConnectFailed(
            f"no connection to {way}",
            cause=_first_line(error) if isinstance(error, websocket.WebSocketException) else describe(error),
            hint="check network, VPN, proxy (HTTPS_PROXY) and firewall for outgoing port 443",
        ) from error


def _first_line(error: Exception) -> str:
    # websocket-client appends headers and body of the answer, which may hold anything.
    lines = str(error).split(" -+-+- ")[0].splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
