"""The opening of the WebSocket: where to, through what, and signed how.

Clients since 1.2.764.0 sign the upgrade request like an API call (docs/PROTOCOL.md section 2.1.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from ssm_proxy.errors import ConfigurationError, ControlPlaneError

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials

SIGNING_NAME = "ssmmessages"
"""Service name in the signature's scope (2.1.1)."""

_SIGNED_ALREADY = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-amz-signature",
        "x-amz-security-token",
    }
)
_DEFAULT_PORTS = {"ws": 80, "wss": 443}


class WebSocketOpening(NamedTuple):
    """All that the transport needs to open one WebSocket; good for minutes, made anew for each reconnect."""

    url: str
    headers: Mapping[str, str]
    """Headers beside those of the WebSocket itself; ``Host`` is not among them, the transport sends it."""
    ca_bundle: str | None
    """File or folder of trusted certificates; None without TLS."""
    proxy_url: str | None
    """``http://user:password@host:port`` with the user part percent-encoded; None: connect directly."""

    def __repr__(self) -> str:
        place = urlsplit(self.url)
        via = urlsplit(self.proxy_url).hostname if self.proxy_url else None
        return (
            f"WebSocketOpening(url='{place.scheme}://{host_header(place)}{place.path}', "
            f"headers={sorted(self.headers)}, ca_bundle={self.ca_bundle!r}, proxy={via!r})"
        )


def replace_endpoint(stream_url: str, endpoint_url: str | None) -> str:
    """Put scheme, host and port of ``endpoint_url`` in place of those of ``stream_url``; path and query stay.

    Raises:
        ConfigurationError: ``endpoint_url`` is no ``wss://host[:port]``.
        ControlPlaneError: ``stream_url`` is no URL.
    """
    if endpoint_url is None:
        return stream_url
    try:
        endpoint = urlsplit(endpoint_url)
        bad = endpoint.path.strip("/") or endpoint.query or endpoint.fragment or not endpoint.hostname
        endpoint.port  # noqa: B018 - raises for a port that is no number
    except ValueError:
        bad = "no URL"
    if bad:
        raise ConfigurationError(
            f"the stream endpoint '{endpoint_url}' is not of the form wss://host or wss://host:port",
            hint="give the address of the ssmmessages endpoint without a path",
        )
    # https:// is how every other endpoint is written, and it can only mean one thing here.
    scheme = {"https": "wss", "http": "ws"}.get(endpoint.scheme, endpoint.scheme)
    return _split_stream_url(stream_url)._replace(scheme=scheme, netloc=endpoint.netloc).geturl()


def check_stream_url(url: str) -> SplitResult:
    """Give the parts of a URL that a token may be sent to: ``wss``, or ``ws`` to this very machine.

    Raises:
        ControlPlaneError: any other scheme or form; nothing was connected.

    Source: docs/PROTOCOL.md section 2.1.1, last paragraph.
    """
    parts = _split_stream_url(url)
    host, port = parts.hostname, parts.port
    if not host or port == 0 or "@" in parts.netloc or "\\" in url or any(c <= " " or c >= "\x7f" for c in url):
        raise ControlPlaneError("the stream URL of the session is malformed", cause="it has no usable host name")
    if parts.scheme == "wss" or (parts.scheme == "ws" and is_loopback(host)):
        return parts
    raise ControlPlaneError(
        f"refused to open the data channel at {parts.scheme}://{host}",
        cause="the session token would travel unencrypted: only wss:// is allowed, and ws:// to this machine",
        hint="check the endpoint settings; a stream endpoint has to begin with wss://",
    )


def _split_stream_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError as error:
        raise ControlPlaneError("the stream URL of the session is malformed", cause=str(error)) from error
    return parts


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only mean this machine: 127.0.0.0/8, ::1, localhost."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback


def is_presigned(url: str) -> bool:
    """Tell whether a URL carries a signature in its query; such a URL is used as it is (2.1.1)."""
    names = {name.lower() for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    return not _SIGNED_ALREADY.isdisjoint(names)


def host_header(parts: SplitResult) -> str:
    """Give the ``Host`` header that websocket-client sends for this URL, because the signature covers it.

    It leaves out port 80 and port 443 whatever the scheme (websocket/_handshake.py), and lower-cases the name.
    """
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    return host if port in (80, 443, None) else f"{host}:{port}"


def sign_opening(url: str, *, credentials: Credentials | ReadOnlyCredentials, region: str) -> dict[str, str]:
    """Sign the upgrade request: GET of ``url`` with an empty body, SigV4, service ``ssmmessages``.

    Returns:
        ``Authorization``, ``X-Amz-Date`` and, with temporary credentials, ``X-Amz-Security-Token``. Signed headers
        are the host, the date and the token; the headers of the WebSocket handshake are not signed.

    Source: docs/PROTOCOL.md section 2.1.1.
    """
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    parts = urlsplit(url)
    # botocore takes the query of a URL as encoded by the rules of SigV4 already. The other side decodes and encodes
    # before it compares, so a bare "=" or "/" in a value must be encoded here to be the same there.
    query = urlencode(parse_qsl(parts.query, keep_blank_values=True), quote_via=quote, safe="")
    request = AWSRequest(
        method="GET",
        url=parts._replace(query=query, fragment="").geturl(),
        headers={"Host": host_header(parts)},
    )
    SigV4Auth(credentials, SIGNING_NAME, region).add_auth(request)
    return {name: value for name, value in request.headers.items() if name != "Host"}
