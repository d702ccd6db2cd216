"""Which managed nodes there are: asked of the emulator through botocore, and of a service that answers oddly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from aws_service import Answer, clear_environment, error, running

from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.aws.nodes import ManagedNode, TagFilter, list_nodes
from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.errors import AccessDenied, ControlPlaneError, SsmProxyError, Throttled, UsageError

COUNT = 130
HYBRID = "mi-0123456789abcdef0"
NODES = (
    *(Node(node_id=f"i-{number:017x}", tags={"Name": f"web-{number:03}", "team": "web"}) for number in range(COUNT)),
    Node(node_id="i-0ff11ne", is_online=False, computer_name="old", tags={"spare": ""}),
    Node(
        node_id=HYBRID,
        tags={"team": "desks", "room": "7", "spare": "no"},
        platform="Windows",
        platform_name="Server",
    ),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(nodes=NODES)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator, monkeypatch: Any, tmp_path: Any) -> Iterator[Emulator]:
    clear_environment(monkeypatch, tmp_path)
    for name, value in shared.environment().items():
        monkeypatch.setenv(name, value)
    yield shared
    shared.set_faults(Faults())


def test_all_pages_of_nodes_and_of_tags(emulator: Emulator) -> None:
    found = BotocoreControlPlane().list_nodes()
    assert found.tags_error is None
    assert len(found.nodes) == COUNT + 2
    names = [node.name for node in found.nodes]
    assert names == sorted(names)
    assert {node.name for node in found.nodes} >= {"web-000", f"web-{COUNT - 1:03}", "old", "localhost"}
    assert all(node.tags["team"] == "web" for node in found.nodes if node.name.startswith("web-"))


def test_a_hybrid_node_and_one_that_is_lost(emulator: Emulator) -> None:
    nodes = {node.node_id: node for node in BotocoreControlPlane().list_nodes().nodes}
    hybrid = nodes[HYBRID]
    assert hybrid == ManagedNode(
        node_id=HYBRID,
        name="localhost",
        state="online",
        platform="windows",
        platform_name="Server",
        platform_version="1",
        agent_version="3.3.987.0",
        address="127.0.0.1",
        last_seen=hybrid.last_seen,
        tags={"team": "desks", "room": "7", "spare": "no"},
    )
    assert hybrid.last_seen is not None
    assert abs((datetime.now(timezone.utc) - hybrid.last_seen).total_seconds()) < 60
    assert (nodes["i-0ff11ne"].state, nodes["i-0ff11ne"].is_online) == ("lost", False)


def test_the_service_looks_for_tags(emulator: Emulator) -> None:
    plane = BotocoreControlPlane()
    assert [node.name for node in plane.list_nodes([TagFilter("Name", "web-007"), TagFilter("team", "web")]).nodes] == [
        "web-007"
    ]
    assert [node.node_id for node in plane.list_nodes([TagFilter("room", None)]).nodes] == [HYBRID]
    assert plane.list_nodes([TagFilter("team", "web"), TagFilter("room", None)]).nodes == []


def test_a_tag_with_an_empty_value(emulator: Emulator) -> None:
    plane = BotocoreControlPlane()
    assert [node.node_id for node in plane.list_nodes([TagFilter("spare", "")]).nodes] == ["i-0ff11ne"]
    assert {node.node_id for node in plane.list_nodes([TagFilter("spare", None)]).nodes} == {"i-0ff11ne", HYBRID}
    assert plane.list_nodes([TagFilter("spare", ""), TagFilter("room", None)]).nodes == []
    assert plane.list_nodes([TagFilter("nobody has it", "")]).nodes == []
    emulator.set_faults(Faults(deny="GetResources"))
    with pytest.raises(UsageError) as caught:
        plane.list_nodes([TagFilter("spare", "")])
    assert caught.value.message == "nodes cannot be looked for by the empty value of their tag 'spare'"
    assert "access denied: tag:GetResources" in (caught.value.cause or "")
    assert "--tag spare; the IAM policy has to allow tag:GetResources" in (caught.value.hint or "")


def test_without_its_permission_tags_are_missing_and_can_still_be_looked_for(emulator: Emulator) -> None:
    emulator.set_faults(Faults(deny="GetResources"))
    found = BotocoreControlPlane().list_nodes([TagFilter("Name", "web-007")])
    assert [node.tags for node in found.nodes] == [{}]
    assert isinstance(found.tags_error, AccessDenied)
    assert found.tags_error.hint == "the IAM policy has to allow tag:GetResources"


def test_without_the_other_permission_there_is_no_list(emulator: Emulator) -> None:
    emulator.set_faults(Faults(deny="DescribeInstanceInformation"))
    with pytest.raises(AccessDenied) as caught:
        BotocoreControlPlane().list_nodes()
    assert caught.value.hint == "the IAM policy has to allow ssm:DescribeInstanceInformation"


def test_tags_whose_service_cannot_be_reached(emulator: Emulator, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_RESOURCE_GROUPS_TAGGING_API", "http://127.0.0.1:9")
    found = BotocoreControlPlane().list_nodes([TagFilter("Name", "web-007")])
    assert (len(found.nodes), found.tags_error is not None) == (1, True)


def test_where_there_is_no_node_nobody_asks_for_tags() -> None:
    asked = []

    def ask(operation: str, request: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        asked.append((operation, request))
        return [{"InstanceInformationList": []}]

    assert list_nodes(ask, []) == ([], None)
    assert asked == [("DescribeInstanceInformation", {})]


def test_answers_with_holes() -> None:
    def ask(operation: str, request: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        return {
            "DescribeInstanceInformation": [
                {"InstanceInformationList": [{"InstanceId": "mi-1", "Name": "desk", "PingStatus": "New"}, None, {}]},
                {},
                {"InstanceInformationList": None},
            ],
            "GetResources": [
                {"ResourceTagMappingList": [None, {"ResourceARN": None, "Tags": [{}]}, {"ResourceARN": "a/mi-1"}]}
            ],
        }[operation]

    empty = ManagedNode("", "", "", "", "", "", "", "", None, {})
    found = list_nodes(ask, []).nodes
    assert found[1] == empty._replace(node_id="mi-1", name="desk", state="new")
    assert found[0].node_id == ""


@pytest.mark.parametrize(
    ("answer", "kind", "hint"),
    [
        (error("ThrottlingException"), Throttled, "try again in a minute"),
        (error("InvalidFilterKey"), ControlPlaneError, "KEY=VALUE"),
        (Answer(body={"InstanceInformationList": [], "NextToken": "the same"}), ControlPlaneError, "-vv"),
        (Answer(body={"InstanceInformationList": "x"}), SsmProxyError, ""),
    ],
)
def test_failures(monkeypatch: Any, tmp_path: Any, answer: Answer, kind: type[SsmProxyError], hint: str) -> None:
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with running(answer) as service, pytest.raises(kind) as caught:
        BotocoreControlPlane(region="eu-west-1", endpoint_url=service.url).list_nodes()
    assert hint in (caught.value.hint or "")
