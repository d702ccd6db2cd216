"""Data keys of KMS: what is asked, and what each refusal becomes."""

from __future__ import annotations

import base64
import logging
import socket

import pytest
from aws_service import Answer, clear_environment, error, running

from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.aws.kms import encryption_context
from ssm_proxy.errors import ConfigurationError, ConnectFailed, KmsFailed, SsmProxyError

KEY_ID = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
ELSEWHERE = KEY_ID.replace("eu-west-1", "us-east-1")
PLAINTEXT = bytes(range(64, 128))
GIVEN = Answer(
    body={
        "KeyId": KEY_ID,
        "Plaintext": base64.b64encode(PLAINTEXT).decode(),
        "CiphertextBlob": base64.b64encode(b"wrapped").decode(),
    }
)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


def ask(monkeypatch, url, *, key_id=KEY_ID, challenge=None):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
    # The option for the Systems Manager API must not move KMS.
    control_plane = BotocoreControlPlane(endpoint_url="http://127.0.0.1:1")
    return control_plane.generate_data_key(
        session_id="alice-0a1b2c", target="mi-0123456789abcdef0", key_id=key_id, challenge=challenge
    )


def refused(monkeypatch, answer, *, key_id=KEY_ID) -> SsmProxyError:
    with running(answer) as service, pytest.raises(SsmProxyError) as caught:
        ask(monkeypatch, service.url, key_id=key_id)
    found = caught.value
    for line in (found.message, found.cause, found.hint):
        assert line
        assert "\n" not in line
    assert found.hint
    assert found.hint[0].islower()
    return found


@pytest.mark.parametrize("challenge", [None, "VH3gsEwEdMEIY0YJPlTrNA=="])
def test_it_asks_for_64_bytes_in_the_context_of_the_session(monkeypatch, challenge):
    with running(GIVEN) as service:
        key = ask(monkeypatch, service.url, challenge=challenge)
    assert (key.plaintext, key.ciphertext) == (PLAINTEXT, b"wrapped")
    (request,) = service.requests
    assert request.headers["X-Amz-Target"] == "TrentService.GenerateDataKey"
    assert "/eu-west-1/kms/aws4_request" in request.headers["Authorization"]
    context = {"aws:ssm:SessionId": "alice-0a1b2c", "aws:ssm:TargetId": "mi-0123456789abcdef0"}
    if challenge is not None:
        context["aws:ssm:RandomChallenge"] = challenge
    assert request.body == {"KeyId": KEY_ID, "NumberOfBytes": 64, "EncryptionContext": context}


def test_an_empty_challenge_is_one():
    assert encryption_context("s", "t", "")["aws:ssm:RandomChallenge"] == ""


@pytest.mark.parametrize("body", [{}, {**GIVEN.body, "Plaintext": "AAAA"}, {**GIVEN.body, "CiphertextBlob": None}])
def test_an_answer_without_a_whole_key_is_incomplete(monkeypatch, body):
    found = refused(monkeypatch, Answer(body=body))
    assert isinstance(found, KmsFailed)
    assert "incomplete" in found.message


@pytest.mark.parametrize(
    ("code", "key_id", "message", "hint"),
    [
        ("AccessDeniedException", KEY_ID, "access denied: kms:GenerateDataKey", "account 123456789012"),
        ("AccessDeniedException", "alias/session", "'alias/session'", "key policy"),
        ("NotFoundException", "alias/gone", "there is no KMS key 'alias/gone'", "document"),
        ("NotFoundException", ELSEWHERE, "of another region", "session's region"),
        ("InvalidArnException", KEY_ID, "there is no KMS key", "document"),
        ("DisabledException", KEY_ID, "cannot be used", "enable"),
        ("KMSInvalidStateException", KEY_ID, "cannot be used", "deletion"),
        ("InvalidKeyUsageException", KEY_ID, "cannot be used", "symmetric"),
        ("KeyUnavailableException", KEY_ID, "just now", "again"),
        ("UnheardOfException", KEY_ID, "refused", "document"),
    ],
)
def test_refusals_say_what_to_do(monkeypatch, code, key_id, message, hint):
    found = refused(monkeypatch, error(code), key_id=key_id)
    assert isinstance(found, KmsFailed)
    assert found.exit_status == 8
    assert message in found.message
    assert "region eu-west-1" in found.message
    assert found.cause == f"{code}: what the service says"
    assert hint in found.hint


@pytest.mark.parametrize(("code", "tries"), [("AccessDeniedException", 1), ("ThrottlingException", 3)])
def test_only_passing_troubles_are_tried_again(monkeypatch, code, tries):
    with running(error(code)) as service, pytest.raises(KmsFailed):
        ask(monkeypatch, service.url)
    assert len(service.requests) == tries


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException"])
def test_credentials_are_named_as_such(monkeypatch, code):
    assert isinstance(refused(monkeypatch, error(code)), ConfigurationError)


def test_an_endpoint_that_is_not_there(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailed, match="cannot reach 127"):
            ask(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_the_region_that_is_asked_is_the_session_s(monkeypatch):
    control_plane = BotocoreControlPlane(region="ap-southeast-2")
    client = control_plane._open().client(service="kms")
    assert client.meta.endpoint_url == "https://kms.ap-southeast-2.amazonaws.com"


def test_nothing_of_a_key_shows_in_our_logs(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, logger="ssm_proxy")
    with running(GIVEN) as service:
        key = ask(monkeypatch, service.url)
    assert caplog.records
    shown = caplog.text + repr(key)
    assert "wrapped" not in shown
    assert base64.b64encode(PLAINTEXT).decode() not in shown
    assert PLAINTEXT.decode() not in shown
