"""Signature Version 4, verified by hand: not with the code that signs, so that one mistake cannot agree with itself.

Source: the public description of Signature Version 4; docs/PROTOCOL.md sections 1.1 and 2.1.1.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import quote, unquote

from ssm_proxy.emulator.options import Credentials

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_LARGEST_SKEW: Final = timedelta(minutes=5)
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([^/,\s]+)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request\s*,"
    r"\s*SignedHeaders=([A-Za-z0-9;_-]+)\s*,\s*Signature=([0-9a-f]{64})",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """The parts of an HTTP request that a signature covers, as they came over the wire."""

    method: str
    path: str
    """Still percent-encoded."""
    query: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""


class SignatureRefused(Exception):
    """A signature is missing or wrong.

    Args:
        error_type: the name that the service gives to the error.
        message: its text; never holds a secret.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message


def verify_signature(
    request: SignedRequest,
    *,
    service: str,
    credentials: Credentials,
    expired: Sequence[Credentials] = (),
    now: datetime,
) -> None:
    """Check the Authorization header of a request.

    Args:
        request: what came over the wire.
        service: ``ssm`` for API calls, ``ssmmessages`` for the opening of a WebSocket.
        credentials: the pair in force.
        expired: pairs that were in force before; with a session token they answer "expired".
        now: the time, with a zone.

    Raises:
        SignatureRefused: with the service's own name for what is wrong.
    """
    headers = request.headers
    authorization = headers.get("authorization")
    if not authorization:
        raise SignatureRefused("MissingAuthenticationTokenException", "Missing Authentication Token")
    match = _AUTHORIZATION.fullmatch(authorization.strip())
    if match is None:
        raise SignatureRefused("IncompleteSignatureException", "The Authorization header is not in the expected form.")
    key_id, day, region, scope_service, signed_headers, signature = match.groups()
    signer = _signer(key_id, headers.get("x-amz-security-token"), credentials, expired)

    stamp = headers.get("x-amz-date", "")
    try:
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        raise SignatureRefused(
            "IncompleteSignatureException", "Date must be in the ISO-8601 'basic format' in X-Amz-Date."
        ) from None
    if scope_service != service:
        raise SignatureRefused(
            "InvalidSignatureException", f"Credential should be scoped to correct service: '{service}'."
        )
    if not stamp.startswith(day):
        raise SignatureRefused("InvalidSignatureException", "Date in Credential scope does not match X-Amz-Date.")
    if signed_at < now - _LARGEST_SKEW:
        raise SignatureRefused("InvalidSignatureException", f"Signature expired: {stamp} is too far in the past.")
    if signed_at > now + _LARGEST_SKEW:
        raise SignatureRefused("InvalidSignatureException", f"Signature not yet current: {stamp} is in the future.")

    names = signed_headers.split(";")
    must_be_signed = {"host"} | ({"x-amz-date"} if "x-amz-date" in headers else set())
    must_be_signed |= {"x-amz-security-token"} if "x-amz-security-token" in headers else set()
    if names != sorted(names) or not must_be_signed.issubset(names):
        raise SignatureRefused("InvalidSignatureException", "SignedHeaders must be sorted and hold host and the date.")
    scope = f"{day}/{region}/{service}/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(_canonical(request, names)).hexdigest()))
    key = f"AWS4{signer.secret_access_key}".encode()
    for part in (day, region, service, "aws4_request", text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(key.hex(), signature):
        raise SignatureRefused(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details.",
        )


def _signer(key_id: str, token: str | None, credentials: Credentials, expired: Sequence[Credentials]) -> Credentials:
    if key_id == credentials.access_key_id and token == credentials.session_token:
        return credentials
    for old in expired:
        if old.session_token is not None and (key_id, token) == (old.access_key_id, old.session_token):
            raise SignatureRefused("ExpiredTokenException", "The security token included in the request is expired")
    raise SignatureRefused("UnrecognizedClientException", "The security token included in the request is invalid.")


def _canonical(request: SignedRequest, names: Sequence[str]) -> bytes:
    # The path is encoded once more, as for every service but S3.
    path = quote(request.path or "/", safe="/-_.~")
    pairs = []
    for member in request.query.split("&") if request.query else ():
        name, _, value = member.partition("=")
        pairs.append((quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")))
    lines = [
        request.method,
        path,
        "&".join(f"{name}={value}" for name, value in sorted(pairs)),
        *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in names),
        "",
        ";".join(names),
        hashlib.sha256(request.body).hexdigest(),
    ]
    return "\n".join(lines).encode()
