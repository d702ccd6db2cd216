"""Our verifier against the published example and against botocore's signer."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from ssm_proxy.emulator import Credentials
from ssm_proxy.emulator.signatures import SignatureRefused, SignedRequest, verify_signature

PAIR = Credentials(access_key_id="AKIDEXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
WITH_TOKEN = dataclasses.replace(PAIR, session_token="token/+=")
OPENING = "https://ssmmessages.eu-west-1.example/v1/data-channel/alice-0a1b?role=publish_subscribe&cell-number=a%2Fb"


def sign(
    credentials: Credentials,
    *,
    method: str = "GET",
    url: str = OPENING,
    body: bytes = b"",
    service: str = "ssmmessages",
) -> SignedRequest:
    request = AWSRequest(method, url, data=body, headers={"X-Amz-Target": "AmazonSSM.StartSession"} if body else {})
    pair = BotocoreCredentials(credentials.access_key_id, credentials.secret_access_key, credentials.session_token)
    SigV4Auth(pair, service, "eu-west-1").add_auth(request)
    parts = urlsplit(url)
    headers = {name.lower(): value for name, value in request.headers.items()} | {"host": parts.netloc}
    return SignedRequest(method=method, path=parts.path or "/", query=parts.query, headers=headers, body=body)


def verify(request: SignedRequest, credentials: Credentials = PAIR, service: str = "ssmmessages", **more: Any) -> None:
    verify_signature(
        request, service=service, credentials=credentials, now=more.pop("now", datetime.now(timezone.utc)), **more
    )


def refusal(*arguments: Any, **more: Any) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify(*arguments, **more)
    assert PAIR.secret_access_key not in caught.value.message
    return caught.value.error_type


def test_the_published_example_is_accepted() -> None:
    """get-vanilla of the test suite that was published with Signature Version 4."""
    signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    request = SignedRequest(
        method="GET",
        path="/",
        query="",
        headers={
            "host": "example.amazonaws.com",
            "x-amz-date": "20150830T123600Z",
            "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
            f"SignedHeaders=host;x-amz-date, Signature={signature}",
        },
    )
    now = datetime(2015, 8, 30, 12, 36, tzinfo=timezone.utc)
    verify(request, service="service", now=now)
    wrong = {**request.headers, "authorization": request.headers["authorization"].replace("5fa0", "5fa1")}
    assert refusal(dataclasses.replace(request, headers=wrong), service="service", now=now) == (
        "InvalidSignatureException"
    )


@pytest.mark.parametrize("credentials", [PAIR, WITH_TOKEN], ids=["pair", "token"])
@pytest.mark.parametrize(
    ("method", "url", "body", "service"),
    [
        ("GET", OPENING, b"", "ssmmessages"),
        ("GET", "http://127.0.0.1:8022/v1/data-channel/x%3Ay?role=publish_subscribe", b"", "ssmmessages"),
        ("POST", "https://ssm.eu-west-1.example/", b'{"Target":"i-0"}', "ssm"),
    ],
)
def test_what_botocore_signs_is_accepted(
    credentials: Credentials, method: str, url: str, body: bytes, service: str
) -> None:
    verify(sign(credentials, method=method, url=url, body=body, service=service), credentials, service)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"path": "/v1/data-channel/bob-0a1b"},
        {"query": "role=publish_subscribe"},
        {"body": b"x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_is_noticed(change: dict[str, Any]) -> None:
    assert refusal(dataclasses.replace(sign(PAIR), **change)) == "InvalidSignatureException"


def test_another_host_is_noticed() -> None:
    request = sign(PAIR)
    moved = dataclasses.replace(request, headers={**request.headers, "host": "elsewhere"})
    assert refusal(moved) == "InvalidSignatureException"


def test_each_refusal_has_the_name_that_the_service_gives_it() -> None:
    good = sign(PAIR)
    unsigned = {name: value for name, value in good.headers.items() if name != "authorization"}
    assert refusal(dataclasses.replace(good, headers=unsigned)) == "MissingAuthenticationTokenException"
    odd = {**good.headers, "authorization": "Basic abc"}
    assert refusal(dataclasses.replace(good, headers=odd)) == "IncompleteSignatureException"
    other = Credentials(access_key_id="OTHER", secret_access_key=PAIR.secret_access_key)
    assert refusal(sign(other)) == "UnrecognizedClientException"
    wrong = dataclasses.replace(PAIR, secret_access_key="wrong")
    assert refusal(sign(wrong)) == "InvalidSignatureException"
    assert refusal(good, service="ssm") == "InvalidSignatureException"
    for days in (-1, 1):
        now = datetime.now(timezone.utc) + timedelta(days=days)
        assert refusal(good, now=now) == "InvalidSignatureException"


def test_a_session_token_must_be_there_and_be_signed() -> None:
    good = sign(WITH_TOKEN)
    verify(good, WITH_TOKEN)
    assert refusal(sign(PAIR), WITH_TOKEN) == "UnrecognizedClientException"
    # A pair without a token, and one added after signing.
    added = sign(PAIR)
    added = dataclasses.replace(added, headers={**added.headers, "x-amz-security-token": "token/+="})
    assert refusal(added, WITH_TOKEN) == "InvalidSignatureException"


def test_credentials_that_were_replaced_are_expired_if_temporary() -> None:
    assert refusal(sign(WITH_TOKEN), PAIR, expired=[WITH_TOKEN]) == "ExpiredTokenException"
    other = Credentials(access_key_id="NEW", secret_access_key="new")
    assert refusal(sign(PAIR), other, expired=[PAIR]) == "UnrecognizedClientException"


def test_secrets_are_in_no_repr() -> None:
    assert "wJalr" not in repr(WITH_TOKEN)
    assert "token/" not in repr(WITH_TOKEN)
