"""Targets: ids pass as they are, names of ECS tasks are looked up; against values, and against the emulated ECS."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from aws_service import Answer, clear_environment, error, running

from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.aws.targets import resolve_target
from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.errors import AccessDenied, ControlPlaneError, TargetAmbiguous, TargetError, TargetNotFound

OLD = "0" * 31 + "1"
NEW = "0" * 31 + "2"
PAIR = "0" * 31 + "3"
DOWN = "0" * 31 + "4"


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    nodes = (
        Node(node_id="i-0123456789abcdef0"),
        Node(node_id=f"ecs:prod_{OLD}_{OLD}-1111", ecs_names=("web", "nginx")),
        Node(node_id=f"ecs:prod_{NEW}_{NEW}-2222", ecs_names=("web", "nginx")),
        Node(node_id=f"ecs:prod_{PAIR}_{PAIR}-3333", ecs_names=("jobs", "worker")),
        Node(node_id=f"ecs:prod_{PAIR}_{PAIR}-4444", ecs_names=("jobs", "log_router")),
        Node(node_id=f"ecs:prod_{PAIR}_{PAIR}-5555", ecs_names=("jobs", "stuck"), is_online=False),
        Node(node_id=f"ecs:prod_{DOWN}_{DOWN}-6666", ecs_names=("down", "app"), is_online=False),
        Node(node_id=f"ecs:my_test_cluster_{OLD}_{OLD}-7777"),
    )
    with Emulator(EmulatorOptions(nodes=nodes)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Emulator]:
    clear_environment(monkeypatch, tmp_path)
    for name, value in shared.environment().items():
        monkeypatch.setenv(name, value)
    yield shared
    shared.set_faults(Faults())


def resolve(text: str) -> tuple[str, list[str]]:
    notes: list[str] = []
    return BotocoreControlPlane().resolve_target(text, notes.append), notes


def no_calls(operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError(f"{operation} was called with {request}")


@pytest.mark.parametrize(
    "text",
    [
        "i-0123456789abcdef0",
        "mi-0123456789abcdef0",
        f"ecs:prod_{OLD}_{OLD}-1111",
        "ecs:my_cluster_a_b",
        "a custom identifier/with a slash",
        "x" * 400,
    ],
)
def test_an_id_passes_as_it_is_without_a_call(text: str) -> None:
    assert resolve_target(text, no_calls, no_calls) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "x" * 401, "i-0\n", "\x1b[2J", "ecs:/web", "ecs:prod/", "ecs:prod/web/", "ecs:a/b/c/d", "ecs:prod/wéb"],
)
def test_what_can_be_no_target_is_refused_without_a_call(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        resolve_target(text, no_calls, no_calls)  # type: ignore[arg-type]
    assert type(caught.value) is TargetError
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (f"ecs:prod/{OLD}", f"ecs:prod_{OLD}_{OLD}-1111"),
        (f"ecs:prod/{OLD}/nginx", f"ecs:prod_{OLD}_{OLD}-1111"),
        (f"ecs:my_test_cluster/{OLD}", f"ecs:my_test_cluster_{OLD}_{OLD}-7777"),
        ("ecs:my_test_cluster/app", f"ecs:my_test_cluster_{OLD}_{OLD}-7777"),
        (f"ecs:prod/{PAIR}/worker", f"ecs:prod_{PAIR}_{PAIR}-3333"),
        ("ecs:prod/jobs/log_router", f"ecs:prod_{PAIR}_{PAIR}-4444"),
    ],
)
def test_a_name_is_looked_up(emulator: Emulator, text: str, target: str) -> None:
    assert resolve(text) == (target, [])


def test_of_several_tasks_the_newest_is_taken_and_told(emulator: Emulator) -> None:
    target, notes = resolve("ecs:prod/web/nginx")
    assert target == f"ecs:prod_{NEW}_{NEW}-2222"
    assert notes == [f"ecs:prod/web/nginx is task {NEW}, the newest; 1 other could be had as ecs:prod/TASK-ID"]


def test_several_containers_have_to_be_told_apart(emulator: Emulator) -> None:
    with pytest.raises(TargetAmbiguous) as caught:
        resolve("ecs:prod/jobs")
    assert caught.value.message == "'ecs:prod/jobs' has several containers: worker, log_router"
    assert caught.value.hint == "name one: ecs:prod/jobs/worker"
    assert caught.value.exit_status == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ecs:prod/nobody", "ECS does not know 'ecs:prod/nobody'"),
        ("ecs:nowhere/web", "ECS does not know 'ecs:nowhere/web'"),
        (f"ecs:prod/{'f' * 32}", f"there is no task {'f' * 32} in the cluster prod"),
        ("ecs:prod/jobs/db", f"the container db of task {PAIR} does not exist"),
        ("ecs:prod/jobs/stuck", f"the container stuck of task {PAIR} does not run, or its agent does not"),
        ("ecs:prod/down", "no container of 'ecs:prod/down' takes sessions"),
    ],
)
def test_what_is_not_there_is_named(emulator: Emulator, text: str, message: str) -> None:
    with pytest.raises(TargetNotFound) as caught:
        resolve(text)
    assert caught.value.message == message
    assert caught.value.hint


def test_a_missing_permission_is_named(emulator: Emulator) -> None:
    emulator.set_faults(Faults(deny="DescribeTasks"))
    with pytest.raises(AccessDenied) as caught:
        resolve("ecs:prod/web")
    assert caught.value.message.startswith(
        "access denied: ecs:DescribeTasks on target 'ecs:prod/web' (region us-east-1"
    )
    assert caught.value.hint == "the IAM policy has to allow ecs:DescribeTasks"


def test_the_endpoint_option_is_for_systems_manager_alone(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> None:
    target = BotocoreControlPlane(endpoint_url="http://127.0.0.1:9").resolve_target(f"ecs:prod/{OLD}", print)
    assert target == f"ecs:prod_{OLD}_{OLD}-1111"


def test_other_answers_are_errors_of_ours(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> None:
    for answer in (Answer(body="no JSON"), error("ServerException", status=500), Answer(body={"taskArns": None})):
        with running(answer) as service:
            monkeypatch.setenv("AWS_ENDPOINT_URL_ECS", service.url)
            with pytest.raises((ControlPlaneError, TargetNotFound)):
                resolve("ecs:prod/web")


# Answers that the emulated ECS never gives


def task(**changes: Any) -> dict[str, Any]:
    container = {
        "name": "app",
        "runtimeId": "r-1",
        "lastStatus": "RUNNING",
        "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": "RUNNING"}],
    }
    values = {
        "taskArn": f"arn:aws:ecs:eu-west-1:1:task/prod/{OLD}",
        "clusterArn": "arn:aws:ecs:eu-west-1:1:cluster/prod",
        "lastStatus": "RUNNING",
        "enableExecuteCommand": True,
        "startedAt": datetime.datetime.fromtimestamp(1000, datetime.timezone.utc),
        "containers": [container],
    }
    return values | changes


def resolve_among(*tasks: dict[str, Any], text: str = "ecs:prod/web") -> str:
    def call_ecs(operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if operation == "ListTasks":
            assert request["serviceName"] == "web"
            return {"taskArns": [each["taskArn"] for each in tasks]}
        return {"tasks": list(tasks), "failures": []}

    return resolve_target(text, call_ecs, lambda text: None)


def test_tasks_that_are_about_to_start_or_stop_do_not_count() -> None:
    starting = task(lastStatus="PENDING", startedAt=None, taskArn=f"x/{NEW}")
    later = datetime.datetime.fromtimestamp(2000, datetime.timezone.utc)
    stopping = task(lastStatus="DEACTIVATING", startedAt=later, taskArn=f"x/{PAIR}")
    assert resolve_among(starting, task(), stopping) == f"ecs:prod_{OLD}_r-1"
    with pytest.raises(TargetNotFound) as caught:
        resolve_among(starting, stopping)
    assert caught.value.cause == "its tasks are DEACTIVATING, PENDING"
    with pytest.raises(TargetNotFound) as caught:
        resolve_among()
    assert caught.value.cause == "the service web has none"


def test_a_task_whose_agent_runs_is_better_than_a_newer_one() -> None:
    newer = datetime.datetime.fromtimestamp(2000, datetime.timezone.utc)
    bare = [{"name": "app", "runtimeId": "r-2", "lastStatus": "RUNNING"}]
    assert resolve_among(task(), task(startedAt=newer, containers=bare, taskArn=f"x/{NEW}")) == f"ecs:prod_{OLD}_r-1"


def test_a_container_that_has_ended_does_not_count() -> None:
    (app,) = task()["containers"]
    ended = app | {"name": "setup", "runtimeId": "r-2", "lastStatus": "STOPPED"}
    assert resolve_among(task(containers=[ended, app])) == f"ecs:prod_{OLD}_r-1"


def test_tasks_without_ecs_exec_are_told_from_those_whose_agent_is_missing() -> None:
    bare = [{"name": "app", "runtimeId": "r-1", "lastStatus": "RUNNING"}]
    with pytest.raises(TargetNotFound) as caught:
        resolve_among(task(enableExecuteCommand=False, containers=bare))
    assert caught.value.cause == "they were started without ECS Exec (enableExecuteCommand)"
    assert caught.value.hint is not None
    assert "--enable-execute-command" in caught.value.hint
    with pytest.raises(TargetNotFound) as caught:
        resolve_among(task(containers=bare))
    assert caught.value.cause == "its ExecuteCommandAgent does not run"
