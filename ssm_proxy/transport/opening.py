"""The opening of a WebSocket: name, route, proxy, TLS, upgrade; the door at which their exceptions stop.

websocket-client makes the upgrade and checks the answer, on a connection that is made here: it would give up at the
first address that does not answer (IPv6 to nowhere), look for proxies by rules of its own, and read an answer without
end.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookies import CookieError
from urllib.parse import SplitResult, unquote, urlsplit

import websocket

from ssm_proxy.errors import (
    CertificateNotTrusted,
    ConfigurationError,
    ConnectFailed,
    OpeningRefused,
    TransportTimeout,
)
from ssm_proxy.transport.websocket import WebSocketTransport, describe

MAX_ANSWER_BYTES = 64 * 1024
"""Of a proxy or of the service to the upgrade, an error page included."""
UNSENT_BYTES = 64 * 1024
"""What the system queues beyond what TCP has under way. The rest waits in our lanes, where what is urgent can pass it;
enough to keep TCP busy until the loop has more for it."""
_NOT_OFFERED = ("Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol")


@dataclass(frozen=True, kw_only=True, repr=False)
class _Proxy:
    host: str
    port: int
    authorization: bytes | None
    """Value of the header Proxy-Authorization."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


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
        timeout: seconds for each step as a whole: each address, the proxy's answer, TLS, the answer to the upgrade.

    Raises:
        ConnectFailed: name, route, proxy or TLS.
        OpeningRefused: the service answered the upgrade with an HTTP error.
        TransportTimeout: a step took too long.
    """
    parts = urlsplit(url)
    host = parts.hostname or url
    context = _tls_context(ca_bundle) if parts.scheme == "wss" else None
    proxy = None if proxy_url is None else _parse_proxy(proxy_url)
    with _map_opening_errors(host, proxy), contextlib.ExitStack() as stack:
        connected = _connect(parts, context, proxy, timeout)
        stack.callback(connected.close)
        _upgrade(url, headers, connected, timeout)
        stack.pop_all()
    return WebSocketTransport(connected)


def _connect(parts: SplitResult, context: ssl.SSLContext | None, proxy: _Proxy | None, timeout: float) -> socket.socket:
    host = parts.hostname or ""
    port = parts.port or (80 if context is None else 443)
    connected = socket.create_connection((host, port) if proxy is None else (proxy.host, proxy.port), timeout)
    try:
        for option in websocket.DEFAULT_SOCKET_OPTION:
            connected.setsockopt(*option)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if proxy is not None:
            _pass_proxy(_BoundedSocket(connected, timeout), proxy, host, port)
            connected.settimeout(timeout)
        return connected if context is None else context.wrap_socket(connected, server_hostname=host)
    except BaseException:
        connected.close()
        raise


class _BoundedSocket:
    """A socket for one request and its answer, which must come in time as a whole, and must not be too large."""

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        self._connected = connected
        self._until = time.monotonic() + timeout
        self._left = MAX_ANSWER_BYTES

    def send(self, data: bytes) -> int:
        self._connected.settimeout(self._time_left())
        self._connected.sendall(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self._left:
            raise websocket.WebSocketException(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        self._connected.settimeout(self._time_left())
        data = self._connected.recv(min(size, self._left))
        self._left -= len(data)
        return data

    def gettimeout(self) -> float:
        return self._time_left()

    def fileno(self) -> int:
        return self._connected.fileno()

    def close(self) -> None:
        self._connected.close()

    def _time_left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _pass_proxy(connected: _BoundedSocket, proxy: _Proxy, host: str, port: int) -> None:
    """Have an HTTP proxy connect to the service (RFC 9110, 9.3.6)."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n".encode()
    if proxy.authorization is not None:
        request += b"Proxy-Authorization: " + proxy.authorization + b"\r\n"
    connected.send(request + b"\r\n")
    answer = bytearray()
    while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what is behind it belongs to TLS
        byte = connected.recv(1)
        if not byte:
            break
        answer += byte
    status = re.match(rb"HTTP/1\.\d ([1-5]\d\d)\b", answer)
    if status is None or not status[1].startswith(b"2"):
        raise ConnectFailed(
            f"the proxy {proxy} did not let us through to {host}",
            cause="its answer is no HTTP" if status is None else f"it answered HTTP {status[1].decode()}",
            hint="check HTTPS_PROXY and its user and password, or put the service's host into NO_PROXY",
        )


def _upgrade(url: str, headers: Mapping[str, str], connected: socket.socket, timeout: float) -> None:
    client = websocket.WebSocket(skip_utf8_validation=True)
    client.connect(  # type: ignore[no-untyped-call,unused-ignore]
        url,
        socket=_BoundedSocket(connected, timeout),
        header=[f"{name}: {value}" for name, value in headers.items()],
        suppress_origin=True,
        redirect_limit=0,  # the token goes to the host that the API named, and to no other
    )
    answer = client.handshake_response
    if answer is None or answer.status != 101:
        raise websocket.WebSocketException("the answer to the upgrade is not 101")
    for name in _NOT_OFFERED:
        if answer.headers.get(name.lower()):
            raise websocket.WebSocketException(f"the answer to the upgrade has a {name} that was not offered")


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


def _parse_proxy(proxy_url: str) -> _Proxy:
    parts, port = urlsplit(""), 0
    with contextlib.suppress(ValueError):
        parts = urlsplit(proxy_url if "://" in proxy_url else f"http://{proxy_url}")
        port = parts.port or 80
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigurationError(
            "the proxy for the WebSocket cannot be used",
            cause="its URL is not of the form http://host:port, the only one that is supported",
            hint="set HTTPS_PROXY to http://host:port, or put the service's host into NO_PROXY",
        )
    authorization = None
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(user.encode("utf-8", "surrogateescape"))
    return _Proxy(host=parts.hostname, port=port, authorization=authorization)


@contextlib.contextmanager
def _map_opening_errors(host: str, proxy: _Proxy | None) -> Iterator[None]:
    """Turn every exception of the opening into one of ours."""
    way = host if proxy is None else f"{host} through the proxy {proxy}"
    try:
        yield
    except websocket.WebSocketBadStatusException as error:
        status = int(error.status_code or 0)
        if not status:
            raise ConnectFailed(f"no connection to {way}", cause="the answer to the upgrade is no HTTP") from error
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
    except socket.gaierror as error:
        raise ConnectFailed(
            f"the name {host} cannot be resolved" if proxy is None else f"the proxy {proxy} cannot be resolved",
            cause=describe(error),
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
    except (websocket.WebSocketException, CookieError) as error:
        raise ConnectFailed(
            f"no connection to {way}",
            cause=_first_line(error),
            hint="check network, VPN and proxy (HTTPS_PROXY); something that is not the service may have answered",
        ) from error
    except (OSError, ValueError) as error:
        raise ConnectFailed(
            f"no connection to {way}",
            cause=describe(error),
            hint="check network, VPN, proxy (HTTPS_PROXY) and firewall for outgoing port 443",
        ) from error


def _first_line(error: Exception) -> str:
    # websocket-client appends headers and body of the answer, which may hold anything.
    lines = str(error).split(" -+-+- ")[0].splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
