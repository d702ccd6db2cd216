"""The emulated ECS as botocore sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from emulator_peer import ssm_client

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.emulator.options import parse_node

TASK = "0" * 32
OTHER = "1" * 32
NODES = (
    Node(node_id="i-0123456789abcdef0"),
    Node(node_id=f"ecs:my_prod_{TASK}_{TASK}-77", ecs_names=("web", "nginx")),
    Node(node_id=f"ecs:my_prod_{TASK}_{TASK}-88", ecs_names=("web", "php")),
    Node(node_id=f"ecs:my_prod_{OTHER}_{OTHER}-99", ecs_names=("jobs", "worker"), is_online=False),
    Node(node_id=f"ecs:default_{TASK}_{TASK}-66"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(nodes=NODES)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(Faults())


@pytest.fixture
def client(emulator: Emulator) -> Any:
    environment = emulator.environment()
    return boto3.client(
        "ecs",
        endpoint_url=environment["AWS_ENDPOINT_URL_ECS"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=boto3.session.Config(retries={"total_max_attempts": 1}),
    )


def error_of(call: Any, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def test_tasks_are_listed_by_cluster_and_service(client: Any) -> None:
    def ids(**request: Any) -> list[str]:
        return [arn.rpartition("/")[2] for arn in client.list_tasks(**request)["taskArns"]]

    assert ids(cluster="my_prod") == [TASK, OTHER]
    assert ids(cluster="arn:aws:ecs:us-east-1:123456789012:cluster/my_prod", serviceName="jobs") == [OTHER]
    assert ids(cluster="my_prod", family="web") == [TASK]
    assert ids(cluster="my_prod", desiredStatus="STOPPED") == []
    assert ids() == [TASK]
    assert error_of(client.list_tasks, cluster="gone")[0] == "ClusterNotFoundException"
    assert error_of(client.list_tasks, cluster="my_prod", serviceName="gone")[0] == "ServiceNotFoundException"


def test_a_task_is_described_with_its_containers(client: Any) -> None:
    answer = client.describe_tasks(cluster="my_prod", tasks=[TASK, f"arn:aws:ecs:x:1:task/my_prod/{OTHER}", "gone"])
    assert answer["failures"] == [{"arn": "gone", "reason": "MISSING"}]
    first, second = answer["tasks"]
    assert first["taskArn"].endswith(f":task/my_prod/{TASK}")
    assert first["clusterArn"].endswith(":cluster/my_prod")
    assert first["startedAt"] < second["startedAt"]
    assert [(each["name"], each["runtimeId"]) for each in first["containers"]] == [
        ("nginx", f"{TASK}-77"),
        ("php", f"{TASK}-88"),
    ]
    states = [task["containers"][0]["managedAgents"][0]["lastStatus"] for task in (first, second)]
    assert states == ["RUNNING", "STOPPED"]


def test_execute_command_starts_a_session_in_the_container(emulator: Emulator, client: Any) -> None:
    answer = client.execute_command(cluster="my_prod", task=TASK, container="php", command="ls; ls", interactive=True)
    assert (answer["containerName"], answer["interactive"]) == ("php", True)
    session = answer["session"]
    assert session["sessionId"].startswith("ecs-execute-command-")
    path = f"/v1/data-channel/{session['sessionId']}?role=publish_subscribe"
    assert session["streamUrl"] == emulator.endpoint_url.replace("http", "ws") + path
    assert 0 < len(session["tokenValue"]) <= 300
    seen = emulator.sessions()[-1]
    assert (seen.session_id, seen.target) == (session["sessionId"], f"ecs:my_prod_{TASK}_{TASK}-88")
    ssm_client(emulator.environment()).terminate_session(SessionId=session["sessionId"])
    assert emulator.sessions()[-1].status == "Terminated"


def test_execute_command_is_refused(emulator: Emulator, client: Any) -> None:
    request = {"cluster": "my_prod", "task": TASK, "container": "php", "command": "ls", "interactive": True}
    for change in ({"interactive": False}, {"task": "gone"}, {"container": "gone"}, {"command": ""}):
        assert error_of(client.execute_command, **request | change)[0] == "InvalidParameterException", change
    without = {name: value for name, value in request.items() if name != "container"}
    assert error_of(client.execute_command, **without)[0] == "InvalidParameterException"
    offline = request | {"task": OTHER, "container": "worker"}
    assert error_of(client.execute_command, **offline)[0] == "TargetNotConnectedException"
    emulator.set_faults(Faults(deny="ExecuteCommand"))
    code, text = error_of(client.execute_command, **request)
    assert code == "AccessDeniedException"
    assert "ecs:ExecuteCommand" in text
    assert len(emulator.sessions()) == len([each for each in emulator.sessions() if each.status == "Terminated"])


def test_other_operations_and_other_services_are_not_known(emulator: Emulator, client: Any) -> None:
    assert error_of(client.list_clusters)[0] == "UnknownOperationException"
    # What is signed for one service is not taken for another.
    ssm = ssm_client(emulator.environment())
    ssm.meta.events.register(
        "before-sign.ssm",
        lambda request, **_: request.headers.replace_header(
            "X-Amz-Target", "AmazonEC2ContainerServiceV20141113.ListTasks"
        ),
    )
    assert error_of(ssm.describe_sessions, State="Active")[0] == "InvalidSignatureException"


def test_containers_are_no_managed_instances_but_targets(emulator: Emulator) -> None:
    ssm = ssm_client(emulator.environment())
    listed = [each["InstanceId"] for each in ssm.describe_instance_information()["InstanceInformationList"]]
    assert listed == ["i-0123456789abcdef0"]
    answer = ssm.start_session(Target=NODES[1].node_id, DocumentName="AWS-StartSSHSession")
    ssm.terminate_session(SessionId=answer["SessionId"])


def test_a_container_can_be_named_on_the_command_line() -> None:
    assert parse_node("ecs:a_b_c=web/nginx") == Node(node_id="ecs:a_b_c", ecs_names=("web", "nginx"))
    assert parse_node("ecs:a_b_c") == Node(node_id="ecs:a_b_c", ecs_names=("app", "app"))
    assert parse_node("ecs:a_b_c=127.0.0.1:22") == Node(node_id="ecs:a_b_c", ssh_address=("127.0.0.1", 22))
