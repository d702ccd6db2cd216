"""The signed opening, checked by a verifier that shares no code with botocore."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import threading
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
import websocket
from botocore.credentials import Credentials

from ssm_proxy.aws.opening import host_header, sign_opening

KEY_ID = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
PATH = "/v1/data-channel/alice-0a1b2c3d4e5f67890"


def sign(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = sign(key, part)
    return key


def signature_of(request_line: str, headers: dict[str, str], *, signed: str, scope: str, secret: str) -> str:
    """Compute a signature by the text of the SigV4 specification, from a request as it stands on the wire."""
    method, target, _ = request_line.split(" ")
    path, _, query = target.partition("?")
    lower = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    pairs = sorted((quote(n, safe="-_.~"), quote(v, safe="-_.~")) for n, v in parse_qsl(query, keep_blank_values=True))
    canonical = "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{lower[name]}" for name in signed.split(";")),
            "",
            signed,
            hashlib.sha256(b"").hexdigest(),
        ]
    )
    date, region, service, _ = scope.split("/")
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", lower["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    return sign(signing_key(secret, date, region, service), to_sign).hex()


def assert_well_signed(request_line: str, headers: dict[str, str], *, temporary: bool) -> None:
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\S+), SignedHeaders=(\S+), Signature=([0-9a-f]{64})",
        headers["Authorization"],
    )
    assert found is not None
    key_id, scope, signed, signature = found.groups()
    assert key_id == KEY_ID
    assert re.fullmatch(r"\d{8}/eu-west-1/ssmmessages/aws4_request", scope)
    assert headers["X-Amz-Date"].startswith(scope[:8])
    assert signed == ("host;x-amz-date;x-amz-security-token" if temporary else "host;x-amz-date")
    assert signature == signature_of(request_line, headers, signed=signed, scope=scope, secret=SECRET)


def signed_headers(url: str, token: str | None = None) -> dict[str, str]:
    credentials = Credentials(KEY_ID, SECRET, token)
    return sign_opening(url, credentials=credentials, region="eu-west-1")


# The verifier itself, by the numbers that AWS publishes: the derived key of the documentation ("Examples of how to
# derive a signing key") and two cases of the Signature Version 4 test suite.


def test_verifier_derives_the_published_key():
    key = signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20120215", "us-east-1", "iam")
    assert key.hex() == "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"


@pytest.mark.parametrize(
    ("request_line", "signature"),
    [
        ("GET / HTTP/1.1", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (
            "GET /?Param2=value2&Param1=value1 HTTP/1.1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ],
    ids=["get-vanilla", "get-vanilla-query-order-key-case"],
)
def test_verifier_agrees_with_the_published_suite(request_line, signature):
    headers = {"Host": "example.amazonaws.com", "X-Amz-Date": "20150830T123600Z"}
    scope = "20150830/us-east-1/service/aws4_request"
    assert signature_of(request_line, headers, signed="host;x-amz-date", scope=scope, secret=SECRET) == signature


URLS = [
    f"wss://ssmmessages.eu-west-1.amazonaws.com{PATH}?role=publish_subscribe",
    f"wss://ssmmessages.eu-west-1.amazonaws.com{PATH}?role=publish_subscribe&cell-number=AAEA%2Fb%2B%3D",
    f"wss://ssmmessages.eu-west-1.amazonaws.com{PATH}?role=publish_subscribe&cell-number=AAEA/b==&Empty=&a=1",
    "wss://h.example/v1/data-channel/alice@example.com-0a1b?role=publish_subscribe",
    "wss://UPPER.Example/v1/data-channel/x",
    "wss://h.example:443/v1/data-channel/x",
    "wss://h.example:80/v1/data-channel/x",
    "ws://127.0.0.1/v1/data-channel/x",
    "ws://127.0.0.1:443/v1/data-channel/x",
    "ws://127.0.0.1:8765/v1/data-channel/x?role=publish_subscribe",
    "ws://[::1]:8765/v1/data-channel/x",
    "wss://h.example:8443",
]


@pytest.mark.parametrize("token", [None, "session+token/value=="])
@pytest.mark.parametrize("url", URLS)
def test_request_that_websocket_client_sends_is_well_signed(url, token):
    request_line, sent = sent_by_websocket_client(url, signed_headers(url, token))
    assert_well_signed(request_line, sent, temporary=token is not None)


def test_token_header_only_with_temporary_credentials():
    assert set(signed_headers(URLS[0])) == {"Authorization", "X-Amz-Date"}
    assert set(signed_headers(URLS[0], "t")) == {"Authorization", "X-Amz-Date", "X-Amz-Security-Token"}


@pytest.mark.parametrize(
    ("change", "to"), [("role=publish", "role=subscribe"), ("alice", "mallory"), ("amazonaws", "example")]
)
def test_signature_covers_host_path_and_query(change, to):
    other = URLS[0].replace(change, to)
    assert other != URLS[0]
    request_line, sent = sent_by_websocket_client(other, signed_headers(URLS[0]))
    with pytest.raises(AssertionError):
        assert_well_signed(request_line, sent, temporary=False)


def test_host_header_needs_no_port_for_a_bare_name():
    assert host_header(urlsplit("wss://a.example/x")) == "a.example"
    assert host_header(urlsplit("wss://a.example:8443/x")) == "a.example:8443"


def sent_by_websocket_client(url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Let websocket-client open ``url`` over a socket pair; give the request as it arrived."""
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def serve() -> None:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += theirs.recv(4096)
        received.append(data)
        theirs.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    theirs.settimeout(10)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with ours, theirs:
        with pytest.raises(websocket.WebSocketBadStatusException):
            websocket.create_connection(url, header=headers, socket=ours, timeout=10)
        thread.join(10)
    request_line, *lines = received[0].decode().strip().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), "a header was sent twice"
    return request_line, dict(pairs)
