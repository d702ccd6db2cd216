"""Every failure round the control plane, made to happen for real: what it becomes and what it says."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time

import pytest
from aws_service import Answer, clear_environment, error, running, self_signed, write_config

from bench.sshd import free_port
from ssm_proxy.aws.call import Call
from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.aws.error_mapping import mapped_errors
from ssm_proxy.errors import (
    AccessDenied,
    CertificateNotTrusted,
    ConfigurationError,
    ConnectFailed,
    ControlPlaneError,
    DocumentRejected,
    SsmProxyError,
    TargetNotConnected,
    Throttled,
    TransportTimeout,
    UsageError,
)

TARGET = "i-0123456789abcdef0"
KEY_ID = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


def start(control_plane: BotocoreControlPlane, target: str = TARGET) -> object:
    return control_plane.start_session(
        target=target, document_name="AWS-StartSSHSession", parameters={"portNumber": ["22"]}, reason=None
    )


def failure_of(control_plane: BotocoreControlPlane, target: str = TARGET) -> SsmProxyError:
    with pytest.raises(SsmProxyError) as caught:
        start(control_plane, target)
    return checked(caught.value)


def checked(found: SsmProxyError) -> SsmProxyError:
    """Look at what all texts have in common: three single lines, complete, and no secret."""
    for line in (found.message, found.cause, found.hint):
        assert line, f"a line is missing: {text_of(found)}"
        assert "\n" not in line
        assert len(line) < 400
        assert not line.endswith(".") or line.endswith("...") or line is found.cause
        assert "object at 0x" not in line
        assert SECRET not in line
    assert found.message[0].islower() or found.message.split()[0] in ("StartSession", "TLS")
    assert found.hint[0].islower()
    return found


def text_of(found: SsmProxyError) -> str:
    return f"{found.message}\n{found.cause}\n{found.hint}"


# Credentials and configuration


def test_no_credentials(home):
    found = failure_of(BotocoreControlPlane(region="eu-west-1"))
    assert type(found) is ConfigurationError
    assert found.message == "no AWS credentials found (region eu-west-1, no profile chosen)"
    for word in ("aws configure", "AWS_PROFILE", "--profile"):
        assert word in found.hint


def test_no_credentials_for_signing_is_the_same_error(home):
    with pytest.raises(ConfigurationError) as caught:
        BotocoreControlPlane(region="eu-west-1").websocket_opening("wss://h.example/v1/data-channel/x")
    assert "no AWS credentials found" in checked(caught.value).message


def test_partial_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    found = failure_of(BotocoreControlPlane(region="eu-west-1"))
    assert type(found) is ConfigurationError
    assert "incomplete" in found.message
    assert "AWS_SECRET_ACCESS_KEY" in found.cause


def test_unknown_profile_lists_the_known(home):
    write_config(home, config="[profile work]\nregion=eu-west-1\n", credentials="[play]\naws_access_key_id=a\n")
    found = failure_of(BotocoreControlPlane(profile="wrok"))
    assert type(found) is ConfigurationError
    assert found.message == "there is no AWS profile 'wrok'"
    assert found.cause == "the profiles there are: play, work"


def test_unknown_profile_of_the_environment_when_there_are_none(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "gone")
    found = failure_of(BotocoreControlPlane(region="eu-west-1"))
    assert found.message == "there is no AWS profile 'gone'"
    assert found.cause == "the profiles there are: none"


def test_many_profiles_are_cut_short(home):
    write_config(home, config="".join(f"[profile p{number:03}]\n" for number in range(200)))
    assert failure_of(BotocoreControlPlane(profile="x")).cause.endswith("p019, ...")


LEGACY = "sso_start_url=https://example.awsapps.com/start\nsso_region=eu-west-1\n"
ROLE = "sso_account_id=123456789012\nsso_role_name=Admin\nregion=eu-west-1\n"
NOT_LOGGED_IN = Answer(
    body={"message": "Session token not found or invalid"},
    status=401,
    headers={"x-amzn-ErrorType": "UnauthorizedException"},
)
SSO_SESSION = f"[sso-session corp]\n{LEGACY}"


@pytest.mark.parametrize(
    "config",
    [f"[profile work]\n{LEGACY}{ROLE}", f"[profile work]\nsso_session=corp\n{ROLE}{SSO_SESSION}"],
    ids=["legacy", "sso-session"],
)
def test_sso_without_login(home, config):
    write_config(home, config=config)
    found = failure_of_new_process(home, profile="work")
    assert found["type"] == "ConfigurationError"
    assert found["message"] == "the SSO login of profile 'work' has expired or was never made"
    assert found["hint"] == "run: aws sso login --profile work"


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "sso-session"])
def test_sso_login_that_has_expired(home, legacy):
    write_config(home, config=f"[profile work]\n{LEGACY if legacy else 'sso_session=corp'}\n{ROLE}{SSO_SESSION}")
    save_sso_token(home, legacy=legacy, expires="2020-01-01T00:00:00Z")
    with running(NOT_LOGGED_IN) as service:  # older botocore asks, newer looks at the date
        found = failure_of_new_process(home, profile="work", AWS_ENDPOINT_URL_SSO=service.url)
    assert found["type"] == "ConfigurationError"
    assert found["hint"] == "run: aws sso login --profile work"
    assert "sso-token-of-the-test" not in str(found)


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "sso-session"])
def test_sso_login_that_the_service_has_revoked(home, legacy):
    write_config(home, config=f"[profile work]\n{LEGACY if legacy else 'sso_session=corp'}\n{ROLE}{SSO_SESSION}")
    save_sso_token(home, legacy=legacy, expires="2099-01-01T00:00:00Z")
    with running(NOT_LOGGED_IN) as service:
        found = failure_of_new_process(home, profile="work", AWS_ENDPOINT_URL_SSO=service.url)
        assert service.requests[0].path.startswith("/federation/credentials")
    assert found["type"] == "ConfigurationError"
    assert found["hint"] == "run: aws sso login --profile work"


def test_sso_hint_names_the_profile_that_holds_the_sso_settings(home):
    role = "role_arn=arn:aws:iam::123456789012:role/x\nsource_profile=corp\nregion=eu-west-1\n"
    write_config(home, config=f"[profile admin]\n{role}[profile corp]\n{LEGACY}{ROLE}")
    found = failure_of_new_process(home, profile="admin")
    assert found["hint"] == "run: aws sso login --profile corp"


def test_sso_hint_without_a_chosen_profile(home):
    write_config(home, config=f"[default]\n{LEGACY}{ROLE}")
    assert failure_of_new_process(home, profile=None)["hint"] == "run: aws sso login --profile default"


def test_credential_process_that_fails(home):
    script = "import sys; print('first line', file=sys.stderr); sys.exit('vault: login expired')"
    process = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}"
    write_config(home, config=f"[profile vault]\nregion=eu-west-1\ncredential_process={process}\n")
    found = failure_of(BotocoreControlPlane(profile="vault"))
    assert type(found) is ConfigurationError
    assert found.message == "the credential_process of profile 'vault' failed"
    assert found.cause == "vault: login expired"
    assert found.hint.endswith("aws configure get credential_process --profile vault")


def test_credential_process_that_does_not_exist(home):
    write_config(home, config="[profile vault]\nregion=eu-west-1\ncredential_process=/nonexistent/program\n")
    found = failure_of(BotocoreControlPlane(profile="vault"))
    assert type(found) is ConfigurationError
    assert "/nonexistent/program" in found.cause
    assert "credential_process" in found.hint


def test_credential_process_that_answers_nonsense(home):
    process = f"{shlex.quote(sys.executable)} -c {shlex.quote(f'print({SECRET!r})')}"
    write_config(home, config=f"[profile vault]\nregion=eu-west-1\ncredential_process={process}\n")
    found = failure_of(BotocoreControlPlane(profile="vault"))
    assert type(found) is ConfigurationError
    assert "not valid" in found.message


def test_source_profile_that_does_not_exist(home):
    role = "role_arn=arn:aws:iam::123456789012:role/x\nsource_profile=base\nregion=eu-west-1\n"
    write_config(home, config=f"[profile admin]\n{role}")
    found = failure_of(BotocoreControlPlane(profile="admin"))
    assert type(found) is ConfigurationError
    assert '"base"' in found.cause
    assert "~/.aws/config" in found.hint


def test_assume_role_that_is_refused(home, keys, monkeypatch):
    role = "role_arn=arn:aws:iam::123456789012:role/x\ncredential_source=Environment\n"
    write_config(home, config=f"[profile admin]\n{role}")
    body = (
        "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
        "<Message>User alice is not authorized to perform: sts:AssumeRole</Message></Error></ErrorResponse>"
    )
    with running(Answer(body=body, status=403, headers={"Content-Type": "text/xml"})) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
        found = failure_of(BotocoreControlPlane(profile="admin"))
    assert type(found) is ConfigurationError
    assert found.message == "could not get AWS credentials: AssumeRole was refused"
    assert "sts:AssumeRole" in found.cause


def test_web_identity_token_file_that_is_missing(home, monkeypatch):
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    found = failure_of(BotocoreControlPlane(region="eu-west-1"))
    assert type(found) is ConfigurationError
    assert "/nonexistent/token" in found.cause


def test_no_region(keys, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    found = failure_of(BotocoreControlPlane())
    assert type(found) is ConfigurationError
    assert found.message == "no AWS region is configured"
    for word in ("--region", "aws configure set region"):
        assert word in found.hint
    assert "AWS_REGION" in found.cause


def test_region_that_cannot_be_one(keys):
    found = failure_of(BotocoreControlPlane(region="eu west 1/"))
    assert type(found) is ConfigurationError
    assert "eu west 1/" in found.cause


def test_malformed_configuration_file(home):
    write_config(home, config="region = eu-west-1\n")
    found = failure_of(BotocoreControlPlane())
    assert type(found) is ConfigurationError
    assert found.message == f"the AWS configuration file '{home}/.aws/config' cannot be read"


def test_malformed_configuration_file_with_a_profile_asked_for(home):
    write_config(home, config="[profile work\n")
    assert "cannot be read" in failure_of(BotocoreControlPlane(profile="work", region="eu-west-1")).message


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_MAX_ATTEMPTS", "many"), ("AWS_RETRY_MODE", "never"), ("AWS_DEFAULTS_MODE", "x")]
)
def test_setting_that_is_not_valid(keys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    found = failure_of(BotocoreControlPlane())
    assert type(found) is ConfigurationError
    assert value in found.cause
    assert "AWS_ variable" in found.hint


def test_endpoint_that_is_no_url(keys):
    found = failure_of(BotocoreControlPlane(endpoint_url="localhost:8080"))
    assert type(found) is ConfigurationError
    assert "localhost:8080" in found.cause
    assert "--endpoint-url" in found.hint


def test_empty_target_is_found_before_anything_is_sent(keys):
    with running() as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url), target="")
        assert not service.requests
    assert type(found) is UsageError


# Answers of the service


ANSWERS = [
    ("AccessDeniedException", 400, AccessDenied, "ssm:StartSession", "document/AWS-StartSSHSession"),
    ("AccessDenied", 403, AccessDenied, "ssm:StartSession", "ssm:StartSession"),
    ("ExpiredTokenException", 400, ConfigurationError, "expired", "renew"),
    ("ExpiredToken", 403, ConfigurationError, "expired", "renew"),
    ("InvalidClientTokenId", 403, ConfigurationError, "does not accept the AWS credentials", "sts get-caller-identity"),
    ("UnrecognizedClientException", 400, ConfigurationError, "does not accept the AWS credentials", "renew"),
    ("InvalidSignatureException", 400, ConfigurationError, "does not accept the AWS credentials", "renew"),
    ("MissingAuthenticationToken", 403, ConfigurationError, "does not accept the AWS credentials", "renew"),
    ("MissingAuthenticationTokenException", 400, ConfigurationError, "does not accept the AWS credentials", "renew"),
    ("TargetNotConnected", 400, TargetNotConnected, f"target '{TARGET}' is not connected", "AmazonSSMManagedInstance"),
    ("ThrottlingException", 400, Throttled, "throttled, also at attempt 1", "ControlMaster"),
    ("RequestLimitExceeded", 503, Throttled, "throttled", "fewer"),
    ("InvalidDocument", 400, DocumentRejected, "'AWS-StartSSHSession' cannot be used", "--document-name"),
    ("InvalidParameters", 400, DocumentRejected, "does not accept the parameters", "portNumber"),
    ("ValidationException", 400, ControlPlaneError, f"on target '{TARGET}'", "i-0123456789abcdef0"),
    ("InternalServerError", 500, ControlPlaneError, "HTTP status 500", "try again"),
    ("ServiceUnavailable", 503, ControlPlaneError, "HTTP status 503", "try again"),
    ("SomethingNew", 400, ControlPlaneError, "refused StartSession", "endpoint"),
]


@pytest.mark.parametrize(("code", "status", "kind", "message", "hint"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_answer_of_the_service(keys, code, status, kind, message, hint):
    with running(error(code, "the words of the service", status)) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert type(found) is kind
    assert message in found.message
    assert found.cause == f"{code}: the words of the service"
    assert hint in found.hint


def test_region_and_profile_are_named_where_they_may_be_wrong(home, keys, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    write_config(
        home,
        config="[profile work]\nregion=us-east-2\n",
        credentials=f"[work]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n",
    )
    with running(error("TargetNotConnected")) as service:
        found = failure_of(BotocoreControlPlane(profile="work", endpoint_url=service.url))
    assert "(region us-east-2, profile 'work')" in found.message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than 20260101T001000Z"),
        ("InvalidSignatureException", "Signature not yet current: 20260101T000000Z is still later than ..."),
        ("RequestExpired", "Request has expired"),
    ],
)
def test_wrong_clock(keys, code, message):
    with running(error(code, message)) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert type(found) is ConfigurationError
    assert "clock" in found.hint


def test_expired_credentials_of_an_sso_profile_name_the_login(home, keys):
    write_config(
        home,
        config=f"[profile work]\n{LEGACY}{ROLE}",
        credentials=f"[work]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n",
    )
    with running(error("ExpiredTokenException")) as service:
        found = failure_of(BotocoreControlPlane(profile="work", endpoint_url=service.url))
    assert found.hint == "run: aws sso login --profile work"


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("ResumeSession", BotocoreControlPlane.resume_session),
        ("TerminateSession", BotocoreControlPlane.terminate_session),
    ],
)
def test_access_denied_names_the_action(keys, operation, call):
    with running(error("AccessDeniedException")) as service, pytest.raises(AccessDenied) as caught:
        call(BotocoreControlPlane(endpoint_url=service.url), "alice-0a1b")
    assert f"ssm:{operation}" in caught.value.message
    assert f"ssm:{operation}" in checked(caught.value).hint


def test_throttling_is_retried_first(keys, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with running(error("ThrottlingException")) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
        assert len(service.requests) == 2
    assert found.message == "StartSession was throttled, also at attempt 2"


def test_web_page_instead_of_an_answer(keys):
    with running(
        Answer(body="<html>please log in to the hotel</html>", headers={"Content-Type": "text/html"})
    ) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert isinstance(found, ControlPlaneError)
    assert "endpoint" in found.hint


@pytest.mark.parametrize("body", [{}, {"SessionId": "a", "StreamUrl": "wss://h/"}, [], "null", "\x00"])
def test_answer_that_is_incomplete(keys, body):
    with running(Answer(body=body)) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert isinstance(found, ControlPlaneError)


# No answer


def test_connection_refused(keys):
    port = free_port()
    found = failure_of(BotocoreControlPlane(endpoint_url=f"http://127.0.0.1:{port}"))
    assert type(found) is ConnectFailed
    assert found.message == f"cannot reach 127.0.0.1:{port}"
    assert found.cause == "Connection refused"


def test_name_that_does_not_resolve(keys):
    found = failure_of(BotocoreControlPlane(endpoint_url="https://ssm.example.invalid"))
    assert type(found) is ConnectFailed
    assert found.message == "cannot reach ssm.example.invalid"
    assert "name" in found.cause.lower()
    assert "VPN" in found.hint


def test_server_that_hangs_up(keys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def hang_up() -> None:
            peer, _ = server.accept()
            peer.recv(10)
            peer.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        found = failure_of(BotocoreControlPlane(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join(10)
    assert type(found) is ConnectFailed


def test_silent_server_does_not_hold_up_the_end(keys):
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts, nobody answers
        began = time.monotonic()
        with pytest.raises(TransportTimeout) as caught:
            BotocoreControlPlane(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}").terminate_session("a")
        assert time.monotonic() - began < 6
    assert "no answer from 127.0.0.1" in checked(caught.value).message


def test_certificate_that_is_not_trusted(home, keys):
    with running(certificate=self_signed(home)) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert type(found) is CertificateNotTrusted
    assert "is not trusted" in found.message
    assert "self" in found.cause
    assert "AWS_CA_BUNDLE" in found.hint


def test_ca_bundle_makes_it_trusted(home, keys, monkeypatch):
    certificate = self_signed(home)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with running(certificate=certificate) as service:
        start(BotocoreControlPlane(endpoint_url=service.url))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_ca_bundle_that_cannot_be_used(home, keys, monkeypatch, content):
    bundle = home / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with running(certificate=self_signed(home)) as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url))
    assert type(found) is ConfigurationError
    assert "CA bundle" in found.message
    assert "AWS_CA_BUNDLE" in found.hint


def test_https_to_a_server_without_tls(keys):
    with running() as service:
        found = failure_of(BotocoreControlPlane(endpoint_url=service.url.replace("http:", "https:")))
    assert type(found) is ConnectFailed
    assert "TLS with 127.0.0.1" in found.message


def test_proxy_that_is_not_there(keys, monkeypatch):
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://alice:{SECRET.replace('/', '%2F')}@127.0.0.1:{port}")
    found = failure_of(BotocoreControlPlane(endpoint_url="https://ssm.example.invalid"))
    assert type(found) is ConnectFailed
    assert found.message == f"cannot connect through the proxy 127.0.0.1:{port}"
    assert "alice" not in text_of(found)
    assert "HTTPS_PROXY" in found.hint


def test_proxy_that_refuses(keys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def refuse() -> None:
            peer, _ = server.accept()
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            peer.close()

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.getsockname()[1]}")
        found = failure_of(BotocoreControlPlane(endpoint_url="https://ssm.example.invalid"))
        thread.join(10)
    assert type(found) is ConnectFailed
    assert "proxy" in found.message
    assert "407" in found.cause


# The door itself


class Fixed:
    profile = "work"
    region = "eu-west-1"

    def profiles(self):
        return {}


@pytest.mark.parametrize("foreign", [KeyError("x"), RuntimeError("y"), OSError(5, "z"), ValueError("v"), EOFError()])
def test_nothing_foreign_passes(foreign):
    with pytest.raises(SsmProxyError) as caught, mapped_errors(Call(operation="StartSession", settings=Fixed())):
        raise foreign
    assert caught.value.__cause__ is foreign
    checked(caught.value)


def test_our_own_errors_pass_as_they_are():
    own = ControlPlaneError("x")
    with pytest.raises(ControlPlaneError) as caught, mapped_errors(Call(operation="StartSession", settings=Fixed())):
        raise own
    assert caught.value is own


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), mapped_errors(Call(operation="StartSession", settings=Fixed())):
        raise KeyboardInterrupt


# botocore looks for SSO logins in the home folder that it saw when it was imported, so these need a new process.

PROBE = """
import json, sys
from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.errors import SsmProxyError
try:
    BotocoreControlPlane(profile=sys.argv[1] or None).start_session(
        target="i-1", document_name="d", parameters={}, reason=None
    )
except SsmProxyError as error:
    texts = {"message": error.message, "cause": error.cause, "hint": error.hint}
    print(json.dumps({"type": type(error).__name__, **texts}))
"""


def failure_of_new_process(home, *, profile: str | None, **environment: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, profile or ""],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def save_sso_token(home, *, legacy: bool, expires: str) -> None:
    key = "https://example.awsapps.com/start" if legacy else "corp"
    folder = home / ".aws" / "sso" / "cache"
    folder.mkdir(parents=True)
    token = {"accessToken": "sso-token-of-the-test", "expiresAt": expires, "startUrl": key, "region": "eu-west-1"}
    (folder / f"{hashlib.sha1(key.encode()).hexdigest()}.json").write_text(json.dumps(token))
