"""Calls that got no answer: name, route, proxy, TLS, silence."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from ssm_proxy.errors import CertificateNotTrusted, ConfigurationError, ConnectFailed, SsmProxyError, TransportTimeout

_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FILE_LIBRARIES = ("ASN1", "PEM", "X509")
"""Parts of OpenSSL that read certificates; what the peer does wrong comes from its part SSL."""


def from_network(error: Exception, names: frozenset[str]) -> SsmProxyError | None:
    """Say why a request got no answer, or None when that is not what ``error`` is about.

    Args:
        error: what botocore raised.
        names: the names of its botocore classes.
    """
    details = getattr(error, "kwargs", {})
    host = _host(details.get("endpoint_url"))
    reason = root_reason(error)
    if "ProxyConnectionError" in names:
        return ConnectFailed(
            f"cannot connect through the proxy {_host(details.get('proxy_url'))}",
            cause=reason,
            hint="check HTTPS_PROXY (special characters in user and password percent-encoded), or name the endpoint in "
            "NO_PROXY",
        )
    if "SSLError" in names:
        return _from_tls(error, host, reason)
    if "ReadTimeoutError" in names:
        return TransportTimeout(
            f"no answer from {host}",
            cause="it took the connection and the request, then stayed silent",
            hint="try again; if it stays, look at VPN, firewall and proxy between here and there",
        )
    if names & {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError"}:
        return ConnectFailed(
            f"cannot reach {host}",
            cause=reason,
            hint="check the network or VPN, the region's name, HTTPS_PROXY, and AWS_ENDPOINT_URL or --endpoint-url",
        )
    return None


def root_reason(error: BaseException) -> str:
    """Give the words of the operating system or of OpenSSL, from under botocore's and urllib3's."""
    found = str(error)
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, ssl.SSLError) and inner.reason:
            return inner.reason.lower().replace("_", " ")
        if isinstance(inner, OSError):
            found = inner.strerror or str(inner) or found
            if isinstance(inner, TimeoutError):
                found = "timed out"
    # urllib3 begins its texts with the repr of a connection, up to the first colon
    if "object at 0x" in found:
        found = found.split(": ", 1)[-1]
    return one_line(found)


def one_line(text: str) -> str:
    """Shorten foreign text to one line that a terminal can show: printable, at most 300 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 300 else line[:297] + "..."


def _from_tls(error: Exception, host: str, reason: str) -> SsmProxyError:
    chain = list(_chain(error))
    if any(isinstance(inner, _FILE_ERRORS) or getattr(inner, "library", None) in _FILE_LIBRARIES for inner in chain):
        return ConfigurationError(
            "the CA bundle cannot be read",
            cause=reason,
            hint="check AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and ca_bundle of the profile",
        )
    if any(isinstance(inner, ssl.SSLCertVerificationError) for inner in chain):
        return CertificateNotTrusted(
            f"the certificate of {host} is not trusted",
            cause=reason,
            hint="if a company proxy or a test server stands between, set AWS_CA_BUNDLE to the file with its CA",
        )
    return ConnectFailed(
        f"TLS with {host} failed",
        cause=reason,
        hint="check that the endpoint speaks https there, and the proxy settings",
    )


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        inner = waiting.pop(0)
        if isinstance(inner, BaseException) and inner not in found:
            found.append(inner)
            details = getattr(inner, "kwargs", None)
            waiting.append(details.get("error") if isinstance(details, dict) else None)
            waiting += [getattr(inner, "reason", None), inner.__cause__, inner.__context__, *inner.args]
    return found


def _host(url: object) -> str:
    """Name the host and a port that matters; never the user part or the query."""
    try:
        parts = urlsplit(str(url))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the endpoint"
    return f"{parts.hostname}{port}" if parts.hostname else "the endpoint"
