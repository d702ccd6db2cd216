"""The API as botocore sees it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from botocore.exceptions import ClientError
from emulator_peer import NODE, ssm_client

from ssm_proxy.emulator import Credentials, Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.emulator.calls import ServiceError
from ssm_proxy.emulator.control_plane import ControlPlane
from ssm_proxy.emulator.documents import ResolvedDocument
from ssm_proxy.emulator.service import _version
from ssm_proxy.emulator.session_table import SessionTable

SSH = {"Target": NODE, "DocumentName": "AWS-StartSSHSession"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    nodes = (
        Node(node_id=NODE, tags={"Name": "web-1", "team": "blue"}),
        Node(node_id="i-0ff11ne", is_online=False, tags={"team": "green"}),
        Node(node_id="mi-0123456789abcdef0", tags={"team": "blue"}, platform="Windows", computer_name="PC-1"),
    )
    with Emulator(EmulatorOptions(nodes=nodes)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(Faults())


@pytest.fixture
def client(emulator: Emulator) -> Any:
    return ssm_client(emulator.environment())


def error_of(call: Any, **arguments: Any) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["Error"]["Code"], response["Error"]["Message"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_start_session(client: Any) -> None:
    answer = client.start_session(**SSH, Parameters={"portNumber": ["22"]}, Reason="a test")
    assert answer["SessionId"].startswith("emulator-")
    assert len(answer["SessionId"]) <= 96
    assert len(answer["TokenValue"]) <= 300
    path = f"/v1/data-channel/{answer['SessionId']}?role=publish_subscribe"
    assert answer["StreamUrl"] == client.meta.endpoint_url.replace("http", "ws") + path


def test_botocore_parses_the_errors_into_their_classes(client: Any) -> None:
    with pytest.raises(client.exceptions.TargetNotConnected):
        client.start_session(**SSH | {"Target": "i-0000"})
    with pytest.raises(client.exceptions.InvalidDocument):
        client.start_session(Target=NODE, DocumentName="AWS-StartSomething")
    with pytest.raises(client.exceptions.DoesNotExistException):
        client.resume_session(SessionId="nobody-0")


def test_start_session_is_refused_as_by_the_service(client: Any) -> None:
    start = client.start_session
    assert error_of(start, **SSH | {"Target": "i-0000"}) == ("TargetNotConnected", "i-0000 is not connected.", 400)
    assert error_of(start, **SSH | {"Target": "i-0ff11ne"})[0] == "TargetNotConnected"
    assert error_of(start, Target=NODE, DocumentName="AWS-Other")[1] == "Document with name AWS-Other does not exist."
    assert error_of(start, Target=NODE, DocumentName="AWS-StartInteractiveCommand")[0] == "InvalidParameters"
    for parameters in ({"portNumber": ["0"]}, {"portNumber": ["22", "23"]}, {"host": ["x"]}, {"portNumber": ["65536"]}):
        assert error_of(start, **SSH, Parameters=parameters)[0] == "InvalidParameters"
    assert error_of(start, **SSH | {"Target": "i" * 401})[0] == "ValidationException"
    assert error_of(start, **SSH, Reason="r" * 257)[0] == "ValidationException"
    assert error_of(start, Target=NODE, DocumentName="a b c")[0] == "ValidationException"


def test_resume_and_terminate(client: Any) -> None:
    started = client.start_session(**SSH)
    resumed = client.resume_session(SessionId=started["SessionId"])
    assert resumed["StreamUrl"] == started["StreamUrl"]
    assert resumed["TokenValue"] != started["TokenValue"]
    assert client.terminate_session(SessionId=started["SessionId"])["SessionId"] == started["SessionId"]
    assert "TokenValue" not in client.resume_session(SessionId=started["SessionId"])
    client.terminate_session(SessionId=started["SessionId"])


def test_describe_sessions(client: Any) -> None:
    ids = [client.start_session(**SSH, Reason=f"reason {n}")["SessionId"] for n in range(3)]
    client.terminate_session(SessionId=ids[0])
    active = client.describe_sessions(State="Active")["Sessions"]
    assert [each["SessionId"] for each in active][:2] == [ids[2], ids[1]]
    assert active[0]["Reason"] == "reason 2"
    assert active[0]["Status"] == "Connecting"
    assert active[0]["DocumentName"] == "AWS-StartSSHSession"
    assert active[0]["Owner"].startswith("arn:aws:iam::")
    assert "EndDate" not in active[0]
    ended = client.describe_sessions(State="History", Filters=[{"key": "SessionId", "value": ids[0]}])["Sessions"]
    assert [(each["SessionId"], each["Status"]) for each in ended] == [(ids[0], "Terminated")]
    assert ended[0]["EndDate"] >= ended[0]["StartDate"]
    pages = client.get_paginator("describe_sessions").paginate(
        State="Active", Filters=[{"key": "Target", "value": NODE}], PaginationConfig={"PageSize": 1}
    )
    found = [each["SessionId"] for page in pages for each in page["Sessions"]]
    assert len(found) == len(set(found)) >= 2
    later = [{"key": "InvokedAfter", "value": "2999-01-01T00:00:00Z"}]
    assert client.describe_sessions(State="Active", Filters=later)["Sessions"] == []
    assert error_of(client.describe_sessions, State="Active", NextToken="!")[0] == "InvalidNextToken"
    assert error_of(client.describe_sessions, State="Lost")[0] == "ValidationException"


def test_nodes(client: Any) -> None:
    nodes = client.describe_instance_information()["InstanceInformationList"]
    states = [(each["InstanceId"], each["PingStatus"], each["ResourceType"]) for each in nodes]
    assert states == [
        (NODE, "Online", "EC2Instance"),
        ("i-0ff11ne", "ConnectionLost", "EC2Instance"),
        ("mi-0123456789abcdef0", "Online", "ManagedInstance"),
    ]
    wanted = [{"Key": "PingStatus", "Values": ["Online"]}, {"Key": "ResourceType", "Values": ["ManagedInstance"]}]
    found = client.describe_instance_information(Filters=wanted)["InstanceInformationList"]
    assert [each["InstanceId"] for each in found] == ["mi-0123456789abcdef0"]
    unknown = [{"Key": "Colour", "Values": ["red"]}]
    assert error_of(client.describe_instance_information, Filters=unknown)[0] == "InvalidFilterKey"
    assert client.get_connection_status(Target=NODE)["Status"] == "connected"
    assert client.get_connection_status(Target="i-0ff11ne")["Status"] == "notconnected"
    assert client.get_connection_status(Target="i-0000")["Status"] == "notconnected"


def test_unknown_operations(client: Any) -> None:
    assert error_of(client.list_documents)[0] == "UnknownOperationException"


@pytest.mark.parametrize("name", [["x"], {"x": "y"}, 5, None])
@pytest.mark.parametrize("operation", ["DescribeInstanceInformation", "DescribeSessions"])
def test_a_filter_whose_name_is_no_text_is_refused(operation: str, name: object) -> None:
    sessions = SessionTable(60.0)
    node = Node(node_id=NODE)
    document = ResolvedDocument(session_type="Port")
    sessions.add(node=node, document_name="AWS-StartSSHSession", document=document, reason="")
    plane = ControlPlane(
        nodes={NODE: node}, documents={}, sessions=sessions, data_plane=Mock(spec_set=()), faults=Faults
    )
    wanted = {"Key": name, "Values": ["x"], "key": name, "value": "x"}
    with pytest.raises(ServiceError) as caught:
        plane.call(operation, {"State": "Active", "Filters": [wanted]})
    assert caught.value.error_type == "InvalidFilterKey"


def test_a_request_that_is_nested_too_deep_is_no_json(emulator: Emulator) -> None:
    request = urllib.request.Request(f"{emulator.endpoint_url}/_emulator/faults", b'{"a":' * 100_000)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code == 400


@pytest.mark.parametrize(
    ("text", "version"), [("1.2.764.0", (1, 2, 764, 0)), ("1.x", ()), ("", ()), ("1." + "9" * 5000, ()), ("٣.1", ())]
)
def test_client_versions(text: str, version: tuple[int, ...]) -> None:
    assert _version(text) == version


def test_signatures_of_calls_are_verified(emulator: Emulator) -> None:
    environment = emulator.environment()
    for changes, code in (
        ({"secret": "wrong"}, "InvalidSignatureException"),
        ({"key": "somebody"}, "UnrecognizedClientException"),
        ({"token": "stray"}, "UnrecognizedClientException"),
    ):
        assert error_of(ssm_client(environment, **changes).describe_sessions, State="Active")[0] == code
    request = urllib.request.Request(
        emulator.endpoint_url, b"{}", {"X-Amz-Target": "AmazonSSM.StartSession", "Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code == 400
        assert json.load(answer)["__type"] == "MissingAuthenticationTokenException"


def test_credentials_can_be_rotated() -> None:
    first = Credentials(access_key_id="A", secret_access_key="a", session_token="t1")
    second = Credentials(access_key_id="B", secret_access_key="b", session_token="t2")
    with Emulator(EmulatorOptions(credentials=first)) as emulator:
        environment = emulator.environment()
        old = ssm_client(environment)
        started = old.start_session(**SSH)
        emulator.rotate_credentials(second)
        assert error_of(old.resume_session, SessionId=started["SessionId"])[0] == "ExpiredTokenException"
        assert emulator.environment()["AWS_ACCESS_KEY_ID"] == "B"
        new = ssm_client(emulator.environment())
        assert new.resume_session(SessionId=started["SessionId"])["TokenValue"]


def test_calls_can_be_refused_on_purpose(emulator: Emulator, client: Any) -> None:
    emulator.set_faults(Faults(throttle_start=2, deny="TerminateSession,DescribeSessions"))
    assert error_of(client.start_session, **SSH) == ("ThrottlingException", "Rate exceeded", 400)
    assert error_of(client.start_session, **SSH)[0] == "ThrottlingException"
    session_id = client.start_session(**SSH)["SessionId"]
    code, message, _ = error_of(client.terminate_session, SessionId=session_id)
    assert code == "AccessDeniedException"
    assert "is not authorized to perform: ssm:TerminateSession" in message
    assert error_of(client.describe_sessions, State="Active")[0] == "AccessDeniedException"
    emulator.set_faults(Faults(refuse_resume="gone"))
    assert "TokenValue" not in client.resume_session(SessionId=session_id)
    emulator.set_faults(Faults(refuse_resume="throttle"))
    assert error_of(client.resume_session, SessionId=session_id)[0] == "ThrottlingException"
    emulator.set_faults(Faults(refuse_resume="error"))
    assert error_of(client.resume_session, SessionId=session_id)[::2] == ("InternalServerError", 500)
    emulator.set_faults(Faults(refuse_resume="throttle", refuse_resume_times=1))
    assert error_of(client.resume_session, SessionId=session_id)[0] == "ThrottlingException"
    assert "TokenValue" in client.resume_session(SessionId=session_id)


def test_resuming_can_be_slow(emulator: Emulator, client: Any) -> None:
    session_id = client.start_session(**SSH)["SessionId"]
    emulator.set_faults(Faults(resume_delay_s=0.2))
    began = time.monotonic()
    assert "TokenValue" in client.resume_session(SessionId=session_id)
    assert time.monotonic() - began >= 0.2


def control(emulator: Emulator, what: str, values: Any = None) -> tuple[int, Any]:
    data = None if values is None else json.dumps(values).encode()
    try:
        with urllib.request.urlopen(f"{emulator.endpoint_url}/_emulator/{what}", data) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_control_endpoint(emulator: Emulator) -> None:
    assert control(emulator, "faults", {"lose": 0.5})[1]["lose"] == 0.5
    assert control(emulator, "faults", {"delay_ms": 3})[1]["lose"] == 0.5
    assert control(emulator, "faults")[1]["delay_ms"] == 3
    assert control(emulator, "faults?reset", {})[1]["lose"] == 0
    status, answer = control(emulator, "faults", {"lose": 7})
    assert (status, answer["error"]) == (400, "fault lose is a probability, from 0 to 1, not 7.0")
    assert control(emulator, "drop", {"side": "client", "manner": "gently"})[0] == 400
    down = {"node_id": "mi-0123456789abcdef0", "is_online": False, "sessions": "closed"}
    assert control(emulator, "nodes", down)[1]["mi-0123456789abcdef0"] == {"is_online": False}
    assert control(emulator, "nodes")[1]["i-0123456789abcdef0"] == {"is_online": True}
    for wrong in ({"node_id": "i-none", "is_online": True}, {"is_online": 1}, down | {"sessions": "gently"}):
        assert control(emulator, "nodes", wrong)[0] == 400
    statistics = control(emulator, "statistics")[1]
    assert statistics["open_sockets"] == 0
    assert {"input_bytes", "output_bytes", "resends", "client_defects", "sessions"} <= set(statistics)
    assert control(emulator, "credentials", {"access_key_id": "x"})[0] == 400
    same = {"access_key_id": "emulator", "secret_access_key": "emulator"}
    assert control(emulator, "credentials", same) == (200, {"access_key_id": "emulator"})
