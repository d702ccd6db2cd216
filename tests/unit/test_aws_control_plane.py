"""The calls round a session, against a service on loopback, and what the opening of the WebSocket is made of."""

from __future__ import annotations

import datetime
import logging
import os
import re
import subprocess
import sys
import threading
from typing import Any

import botocore.session
import pytest
from aws_service import SESSION, STREAM_URL, Answer, clear_environment, error, running, self_signed, write_config

from ssm_proxy.aws.botocore_session import BotocoreSession
from ssm_proxy.aws.control_plane import BotocoreControlPlane, ControlPlane, StartedSession, WebSocketOpening
from ssm_proxy.errors import ConfigurationError, ControlPlaneError, SsmProxyError, UsageError
from ssm_proxy.secret import Secret

TARGET = "i-0123456789abcdef0"
KEY_ID = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SESSION_TOKEN = "session+token/of/temporary=credentials"
WS = "ws://127.0.0.1:8765/v1/data-channel/x?role=publish_subscribe"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    return tmp_path


def start(control_plane: ControlPlane, *, reason: str | None = None) -> StartedSession:
    return control_plane.start_session(
        target=TARGET, document_name="AWS-StartSSHSession", parameters={"portNumber": ("22",)}, reason=reason
    )


def plane(url: str | None = None, region: str | None = "eu-west-1", **options: Any) -> BotocoreControlPlane:
    return BotocoreControlPlane(region=region, endpoint_url=url, **options)


def scope_of(headers: dict[str, str]) -> str:
    """Region and service that a signature names."""
    found = re.search(r"Credential=[^/]+/\d{8}/([^/]+/[^/]+)/aws4_request", headers["Authorization"])
    assert found is not None
    return found[1]


# The three calls


def test_start_session_sends_what_was_asked_and_gives_what_was_answered():
    with running(Answer(body=SESSION)) as service:
        started = start(plane(service.url), reason="a ticket")
        (request,) = service.requests
    assert request.operation == "StartSession"
    assert request.headers["Content-Type"] == "application/x-amz-json-1.1"
    assert request.headers["X-Amz-Security-Token"] == SESSION_TOKEN
    assert scope_of(request.headers) == "eu-west-1/ssm"
    assert request.body == {
        "Target": TARGET,
        "DocumentName": "AWS-StartSSHSession",
        "Parameters": {"portNumber": ["22"]},
        "Reason": "a ticket",
    }
    token = Secret(SESSION["TokenValue"])
    assert started == StartedSession(session_id=SESSION["SessionId"], stream_url=STREAM_URL, token=token)


def test_it_tells_when_the_request_leaves_and_not_before(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    seen: list[int] = []
    with running(error("ThrottlingException", "slow down"), Answer(body=SESSION)) as service:
        start(plane(service.url, sending_start=lambda: seen.append(len(service.requests))))
    assert seen == [0, 1]  # the repeat as well


def test_it_does_not_tell_of_a_request_that_never_leaves(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    seen: list[None] = []
    with running(Answer(body=SESSION)) as service, pytest.raises(ConfigurationError):
        start(plane(service.url, sending_start=lambda: seen.append(None)))
    assert seen == []


def test_no_reason_is_not_sent():
    with running() as service:
        start(plane(service.url))
        assert "Reason" not in service.requests[0].body


@pytest.mark.parametrize("length", [0, 257])
def test_a_reason_that_the_service_does_not_take_is_told_before_it_is_asked(length):
    with running() as service:
        with pytest.raises(UsageError, match="the reason must have 1 to 256 characters"):
            start(plane(service.url), reason="x" * length)
        assert service.requests == []


@pytest.mark.parametrize("name", SESSION)
@pytest.mark.parametrize("value", [None, "", 5, ["x"], {"x": "y"}, True])
def test_an_answer_whose_members_are_no_text_is_incomplete(name, value):
    with running(Answer(body={**SESSION, name: value})) as service:
        with pytest.raises(ControlPlaneError) as caught:
            start(plane(service.url))
        assert caught.value.message == "the answer to StartSession is incomplete"
        assert caught.value.cause == f"it has no {name}"


@pytest.mark.parametrize("token", [5, ["x"], {"x": "y"}, True])
def test_a_new_token_that_is_no_text_leaves_hope(token):
    with (
        running(Answer(body={**SESSION, "TokenValue": token})) as service,
        pytest.raises(ControlPlaneError, match="ResumeSession is incomplete"),
    ):
        plane(service.url).resume_session("alice-0a1b")


def test_resume_session_gives_a_new_token():
    with running(Answer(body={**SESSION, "TokenValue": "AAEA-second"})) as service:
        assert plane(service.url).resume_session("alice-0a1b") == Secret("AAEA-second")
        assert service.requests[0].operation == "ResumeSession"
        assert service.requests[0].body == {"SessionId": "alice-0a1b"}


GONE = [
    Answer(body={"SessionId": "alice-0a1b"}),
    Answer(body={"SessionId": "alice-0a1b", "TokenValue": ""}),
    error("DoesNotExistException", "Session with ID alice-0a1b does not exist"),
    error("BadRequest", "Session is already terminated"),
    error("BadRequestException", "The session has been Terminated."),
]


@pytest.mark.parametrize("answer", GONE)
def test_resume_session_of_a_session_that_is_gone(answer):
    with running(answer) as service:
        assert plane(service.url).resume_session("alice-0a1b") is None


@pytest.mark.parametrize(
    "answer",
    [
        error("BadRequest", "something else"),
        error("AccessDeniedException", "not authorized on session/terminated-0a1b"),
        error("ThrottlingException", "terminated-0a1b"),
        error("InternalServerError", status=500),
    ],
)
def test_other_errors_of_resume_session_leave_hope(answer):
    with running(answer) as service, pytest.raises(SsmProxyError):
        plane(service.url).resume_session("terminated-0a1b")


def test_terminate_session():
    with running(Answer(body={"SessionId": "alice-0a1b"})) as service:
        plane(service.url).terminate_session("alice-0a1b")
        assert service.requests[0].operation == "TerminateSession"
        assert service.requests[0].body == {"SessionId": "alice-0a1b"}


def test_terminate_session_of_a_session_that_is_gone_is_no_error():
    with running(error("DoesNotExistException")) as service:
        plane(service.url).terminate_session("alice-0a1b")


@pytest.mark.parametrize("call", [BotocoreControlPlane.resume_session, BotocoreControlPlane.terminate_session])
def test_reconnect_and_end_try_twice_at_most_whatever_is_configured(monkeypatch, call):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    with running(error("InternalServerError", status=500)) as service:
        with pytest.raises(ControlPlaneError):
            call(plane(service.url), "alice-0a1b")
        assert len(service.requests) == 2


def test_calls_from_many_threads_share_one_client():
    with running() as service:
        control_plane = plane(service.url)
        barrier = threading.Barrier(8)
        started: list[StartedSession] = []

        def run() -> None:
            barrier.wait(10)
            started.append(start(control_plane))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(started) == 8


# Configuration, honoured by botocore


@pytest.mark.parametrize(
    ("environment", "option", "expected"),
    [
        ({}, None, "us-east-2"),
        ({"AWS_DEFAULT_REGION": "eu-north-1"}, None, "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "eu-north-1", "AWS_REGION": "eu-south-1"}, None, "eu-south-1"),
        ({"AWS_DEFAULT_REGION": "eu-north-1", "AWS_REGION": "eu-south-1"}, "eu-west-3", "eu-west-3"),
        ({"AWS_REGION": "us-gov-west-1-fips"}, None, "us-gov-west-1"),
    ],
)
def test_region(home, monkeypatch, environment, option, expected):
    write_config(home, config="[default]\nregion=us-east-2\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with running() as service:
        control_plane = plane(service.url, region=option)
        start(control_plane)
        assert scope_of(service.requests[0].headers) == f"{expected}/ssm"
    assert scope_of(dict(control_plane.websocket_opening(STREAM_URL).headers)) == f"{expected}/ssmmessages"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL"])
def test_endpoint_of_the_environment(monkeypatch, name):
    with running() as service:
        monkeypatch.setenv(name, service.url)
        start(plane())
        assert len(service.requests) == 1


@pytest.mark.parametrize(
    "form", ["endpoint_url={url}\n", "services=local\n[services local]\nssm=\n  endpoint_url={url}\n"]
)
def test_endpoint_of_the_profile(home, monkeypatch, form):
    monkeypatch.setenv("AWS_PROFILE", "work")
    with running() as service:
        write_config(home, config="[profile work]\nregion=eu-west-1\n" + form.format(url=service.url))
        start(plane(region=None))
        assert len(service.requests) == 1


def test_keys_of_a_profile_that_was_asked_for_beat_those_of_the_environment(home):
    keys = "aws_access_key_id=AKIDPROFILE\naws_secret_access_key=x\n"
    write_config(home, credentials=f"[work]\n{keys}")
    with running() as service:
        start(plane(service.url, profile="work"))
        assert "Credential=AKIDPROFILE/" in service.requests[0].headers["Authorization"]


def test_retries_are_standard_with_six_attempts_unless_configured(home, monkeypatch):
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    assert retries_of(profile=None) == {"mode": "standard", "total_max_attempts": 6}
    write_config(home, config="[profile few]\nmax_attempts=2\nretry_mode=adaptive\n")
    assert retries_of(profile="few") == {"mode": "adaptive", "total_max_attempts": 2}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    assert retries_of(profile="few") == {"mode": "adaptive", "total_max_attempts": 4}


def retries_of(profile: str | None) -> dict[str, object]:
    session = BotocoreSession(profile=profile, region="eu-west-1", endpoint_url=None)
    config = session.client().meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 30)
    found: dict[str, object] = config.retries
    return found


def test_new_credentials_count_after_a_failure(home, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    write_config(home, credentials="[default]\naws_access_key_id=AKIDOLD\naws_secret_access_key=x\n")
    with running(error("ExpiredTokenException"), Answer(body=SESSION)) as service:
        control_plane = plane(service.url)
        with pytest.raises(ConfigurationError):
            control_plane.resume_session("alice-0a1b")
        write_config(home, credentials="[default]\naws_access_key_id=AKIDNEW\naws_secret_access_key=x\n")
        assert control_plane.resume_session("alice-0a1b") == Secret(SESSION["TokenValue"])
        assert "AKIDNEW" in service.requests[1].headers["Authorization"]
    assert "AKIDNEW" in control_plane.websocket_opening(WS).headers["Authorization"]


def test_a_session_from_outside_is_used_as_it_is(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
    theirs = botocore.session.Session()
    theirs.set_credentials("AKIDTHEIRS", "x", "their token")
    theirs.set_config_variable("region", "ap-south-1")
    with running(Answer(body=SESSION)) as service:
        control_plane = BotocoreControlPlane(endpoint_url=service.url, botocore_session=theirs)
        start(control_plane)
        control_plane.resume_session("alice-0a1b")
        control_plane.terminate_session("alice-0a1b")
        start(BotocoreControlPlane(endpoint_url=service.url, botocore_session=theirs, region="eu-west-2"))
        control_plane.close()
        start(control_plane)  # it can be used again
    assert {each.headers["X-Amz-Security-Token"] for each in service.requests} == {"their token"}
    scopes = [scope_of(each.headers) for each in service.requests]
    assert scopes == ["ap-south-1/ssm"] * 3 + ["eu-west-2/ssm", "ap-south-1/ssm"]
    opening = control_plane.websocket_opening(WS)
    assert "Credential=AKIDTHEIRS/" in opening.headers["Authorization"]
    assert scope_of(opening.headers) == "ap-south-1/ssmmessages"


def test_no_second_mfa_code_is_asked_for(home):
    """A role with MFA asks once; when its credentials expire, that stays an error of this process."""
    role = "role_arn=arn:aws:iam::123456789012:role/x\ncredential_source=Environment\nmfa_serial=arn:aws:iam::1:mfa/a\n"
    write_config(home, config=f"[profile admin]\n{role}")
    soon = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)).isoformat()
    keys = "<AccessKeyId>AKIDROLE</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>t</SessionToken>"
    body = (
        f"<AssumeRoleResponse><AssumeRoleResult><Credentials>{keys}<Expiration>{soon}</Expiration></Credentials>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    )
    program = (
        "from ssm_proxy.aws.control_plane import BotocoreControlPlane\n"
        "from ssm_proxy.errors import ConfigurationError\n"
        "control_plane = BotocoreControlPlane(profile='admin', region='eu-west-1')\n"
        "for _ in range(3):\n"
        "    try:\n"
        f"        control_plane.websocket_opening({WS!r})\n"
        "        print('signed')\n"
        "    except ConfigurationError as error:\n"
        "        print(error.message)\n"
    )
    with running(Answer(body=body, headers={"Content-Type": "text/xml"})) as sts:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "AWS_ENDPOINT_URL_STS": sts.url},
            input="123456\n",  # read because a new session has no terminal to ask on
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert len(sts.requests) == 1
        assert "TokenCode=123456" in sts.requests[0].body
    assert done.stdout.splitlines() == ["signed", *["the credentials of the role have expired"] * 2]


def test_credentials_are_refreshed_for_each_opening(home, monkeypatch):
    """A credential_process that gives keys which are about to expire is asked again."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    counter, script = home / "counter", home / "keys.py"
    script.write_text(
        "import datetime, json, pathlib\n"
        f"counter = pathlib.Path({str(counter)!r})\n"
        "n = int(counter.read_text()) + 1 if counter.exists() else 1\n"
        "counter.write_text(str(n))\n"
        "soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)\n"
        "keys = {'AccessKeyId': f'AKID{n}', 'SecretAccessKey': 'x', 'SessionToken': f'token{n}'}\n"
        "print(json.dumps({'Version': 1, 'Expiration': soon.isoformat(), **keys}))\n"
    )
    write_config(home, config=f"[default]\ncredential_process={sys.executable} {script}\n")
    control_plane = plane()
    tokens = [control_plane.websocket_opening(WS).headers["X-Amz-Security-Token"] for _ in range(2)]
    assert tokens[0] != tokens[1]


# The opening of the WebSocket


def test_opening_of_the_stream_url():
    opening = plane().websocket_opening(STREAM_URL)
    assert opening.url == STREAM_URL
    assert set(opening.headers) == {"Authorization", "X-Amz-Date", "X-Amz-Security-Token"}
    assert opening.ca_bundle is not None
    assert os.path.isfile(opening.ca_bundle)
    assert opening.proxy_url is None


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("wss://vpce-0a1b.ssmmessages.example", "wss://vpce-0a1b.ssmmessages.example"),
        ("wss://vpce.example:8443/", "wss://vpce.example:8443"),
        ("ws://127.0.0.1:8765", "ws://127.0.0.1:8765"),
        ("ws://[::1]:8765", "ws://[::1]:8765"),
        ("https://vpce.example", "wss://vpce.example"),
        ("http://127.0.0.1:8765", "ws://127.0.0.1:8765"),
    ],
)
def test_stream_endpoint_replaces_scheme_host_and_port(endpoint, expected):
    url = "wss://ssmmessages.eu-west-1.amazonaws.com:444/v1/data-channel/a-0?role=publish_subscribe&cell-number=AA%2B"
    opening = plane(stream_endpoint_url=endpoint).websocket_opening(url)
    assert opening.url == f"{expected}/v1/data-channel/a-0?role=publish_subscribe&cell-number=AA%2B"


@pytest.mark.parametrize(
    "endpoint", ["vpce.example", "wss://", "wss://h/path", "wss://h?a=b", "wss://h:port", "wss://[h", "localhost:8765"]
)
def test_stream_endpoint_that_is_none(endpoint):
    with pytest.raises(ConfigurationError, match="stream endpoint"):
        plane(stream_endpoint_url=endpoint).websocket_opening(STREAM_URL)


@pytest.mark.parametrize("url", ["wss://[h/x", "wss://h:99999/x", "wss://h:port/x"])
def test_stream_endpoint_does_not_mend_a_malformed_url(url):
    with pytest.raises(ControlPlaneError, match="malformed"):
        plane(stream_endpoint_url="wss://vpce.example").websocket_opening(url)


@pytest.mark.parametrize("endpoint", ["vpce.example", "wss://h/path", "http://vpce.example"])
def test_a_wrong_stream_endpoint_is_told_before_a_session_is_started(endpoint):
    with running() as service:
        with pytest.raises((ConfigurationError, ControlPlaneError)):
            start(plane(service.url, stream_endpoint_url=endpoint))
        assert service.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "ws://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/x",
        "ws://10.0.0.1/x",
        "ws://localhost.example.com/x",
        "ws://127.0.0.1.example.com/x",
        "ws://127.0.0.1@example.com/x",
        "ws://example.com\\@127.0.0.1/x",
        "ws://0.0.0.0/x",
        "http://127.0.0.1/x",
        "https://ssmmessages.eu-west-1.amazonaws.com/x",
        "file:///etc/passwd",
        "wss://",
        "wss:///x",
        "wss://h/x\r\nX: y",
        "wss://h/x y",
        "wss://[h/x",
        "wss://h:99999/x",
        "wss://alice:hunter2@h/x",
        "",
    ],
)
def test_token_goes_over_wss_only(monkeypatch, url):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")  # the refusal comes first, before anything is looked up
    with pytest.raises(ControlPlaneError):
        plane().websocket_opening(url)


def test_stream_endpoint_without_tls_is_refused_as_well():
    with pytest.raises(ControlPlaneError, match=r"refused to open the data channel at ws://vpce\.example"):
        plane(stream_endpoint_url="ws://vpce.example").websocket_opening(STREAM_URL)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "[::1]", "localhost", "LOCALHOST"])
def test_this_machine_needs_no_tls(host):
    opening = plane().websocket_opening(f"ws://{host}:8765/x")
    assert "Authorization" in opening.headers
    assert opening.ca_bundle is None


@pytest.mark.parametrize(
    "name",
    [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "x-amz-signature",
    ],
)
def test_presigned_url_is_left_alone_and_needs_no_credentials(monkeypatch, name):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    url = f"{STREAM_URL}&{name}=x"
    opening = plane(region=None).websocket_opening(url)
    assert opening.url == url
    assert opening.headers == {}


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({"HTTPS_PROXY": "http://p.example:3128"}, STREAM_URL, "http://p.example:3128"),
        ({"https_proxy": "p.example:3128"}, STREAM_URL, "http://p.example:3128"),
        ({"HTTPS_PROXY": "http://a:b%40c@p.example:3128"}, STREAM_URL, "http://a:b%40c@p.example:3128"),
        ({"HTTPS_PROXY": "http://p.example", "NO_PROXY": "amazonaws.com"}, STREAM_URL, None),
        ({"HTTPS_PROXY": "http://p.example", "NO_PROXY": "example.com"}, STREAM_URL, "http://p.example"),
        ({"HTTPS_PROXY": "http://p.example", "NO_PROXY": "*"}, STREAM_URL, None),
        ({"HTTP_PROXY": "http://p.example"}, STREAM_URL, None),
        ({"HTTPS_PROXY": "http://p.example", "HTTP_PROXY": "http://p.example"}, WS, None),
        ({"HTTPS_PROXY": "http://p.example"}, WS.replace("ws:", "wss:"), None),
    ],
)
def test_proxy_is_that_of_an_api_call(monkeypatch, environment, url, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert plane().websocket_opening(url).proxy_url == expected


def test_ca_bundle_is_that_of_an_api_call(home, monkeypatch):
    certificate = str(self_signed(home))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/requests.pem")
    assert plane().websocket_opening(STREAM_URL).ca_bundle == "/requests.pem"
    write_config(home, config=f"[default]\nca_bundle={certificate}\n")
    assert plane().websocket_opening(STREAM_URL).ca_bundle == certificate
    monkeypatch.setenv("AWS_CA_BUNDLE", "/aws.pem")
    assert plane().websocket_opening(STREAM_URL).ca_bundle == "/aws.pem"


# What must not be seen


def test_no_secret_in_any_repr():
    opening = WebSocketOpening(
        url=f"{STREAM_URL}&X-Amz-Signature=cafe",
        headers={"Authorization": "AWS4 cafe", "X-Amz-Security-Token": SESSION_TOKEN},
        ca_bundle="/ca.pem",
        proxy_url="http://alice:hunter2@p.example:3128",
    )
    for text in (repr(opening), str(opening), f"{opening}"):
        assert "/v1/data-channel/alice-0a1b2c3d4e5f67890" in text
        assert "Authorization" in text
        for hidden in ("cafe", SESSION_TOKEN, "hunter2"):
            assert hidden not in text
    started = StartedSession(session_id="a", stream_url="wss://h/", token=Secret("AAEA"))
    assert "AAEA" not in repr(started)
    assert SECRET not in repr(vars(plane()))


def test_no_secret_in_our_logs(caplog):
    with caplog.at_level(logging.DEBUG, logger="ssm_proxy"), running() as service:
        control_plane = plane(service.url)
        start(control_plane, reason="a ticket")
        control_plane.resume_session("alice-0a1b")
        control_plane.websocket_opening(STREAM_URL)
        control_plane.terminate_session("alice-0a1b")
        service.answers[:] = [error("ExpiredTokenException", "expired")]
        with pytest.raises(ConfigurationError):
            start(control_plane)
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("ssm_proxy"))
    for line in ("StartSession.started", "StartSession.complete", "StartSession.failed", "OpenDataChannel.complete"):
        assert line in text
    for hidden in (SECRET, SESSION_TOKEN, SESSION["TokenValue"], "Signature=", KEY_ID):
        assert hidden not in text


# What it costs


def test_importing_and_making_it_does_not_import_botocore():
    program = (
        "import sys\n"
        "from ssm_proxy.aws.control_plane import BotocoreControlPlane\n"
        "BotocoreControlPlane(profile='x', region='y', endpoint_url='z', stream_endpoint_url='w')\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'botocore', 'boto3', 'urllib3', 'websocket'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
