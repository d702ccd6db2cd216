"""Managed nodes and their tags as botocore sees them; the rate limit of StartSession."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from emulator_peer import ssm_client

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node
from ssm_proxy.emulator.calls import ServiceError
from ssm_proxy.emulator.control_plane import _Bucket
from ssm_proxy.emulator.options import parse_node_tag
from ssm_proxy.emulator.rpc import Call, CborForm, values_of
from ssm_proxy.errors import UsageError

WEB, OLD, HYBRID = "i-0123456789abcdef0", "i-0ff11ne", "mi-0123456789abcdef0"
NODES = (
    Node(node_id=WEB, tags={"Name": "web-1", "team": "blue"}),
    Node(node_id=OLD, is_online=False, tags={"team": "green"}),
    Node(node_id=HYBRID, tags={"team": "blue"}, platform="Windows", platform_name="Server", computer_name="PC-1"),
    Node(node_id="i-0untagged"),
    Node(node_id=f"ecs:my_{'0' * 32}_{'0' * 32}-77", tags={"team": "blue"}),
)
BOTH = ["ec2:instance", "ssm:managed-instance"]


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
    return ssm_client(emulator.environment())


@pytest.fixture
def tagging(emulator: Emulator) -> Any:
    """botocore's client, which speaks JSON or CBOR, as its version has it."""
    environment = emulator.environment()
    return boto3.client(
        "resourcegroupstaggingapi",
        endpoint_url=environment["AWS_ENDPOINT_URL_RESOURCE_GROUPS_TAGGING_API"],
        region_name="eu-west-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=boto3.session.Config(retries={"total_max_attempts": 1}),
    )


def found_by(client: Any, *filters: tuple[str, str]) -> list[str]:
    wanted = [{"Key": key, "Values": [value]} for key, value in filters]
    return [
        each["InstanceId"] for each in client.describe_instance_information(Filters=wanted)["InstanceInformationList"]
    ]


def test_filters_by_tag(client: Any) -> None:
    assert found_by(client, ("tag:team", "blue")) == [WEB, HYBRID]
    assert found_by(client, ("tag:team", "blue"), ("tag:Name", "web-1")) == [WEB]
    assert found_by(client, ("tag:team", "red")) == []
    assert found_by(client, ("tag-key", "Name")) == [WEB]
    assert found_by(client, ("PlatformTypes", "Windows")) == [HYBRID]
    (node,) = client.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [HYBRID]}])[
        "InstanceInformationList"
    ]
    assert (node["PlatformName"], node["ComputerName"]) == ("Server", "PC-1")


def test_tags_of_resources(tagging: Any) -> None:
    found = tagging.get_resources(ResourceTypeFilters=BOTH)["ResourceTagMappingList"]
    assert {
        each["ResourceARN"].rpartition("/")[2]: {tag["Key"]: tag["Value"] for tag in each["Tags"]} for each in found
    } == {
        WEB: {"Name": "web-1", "team": "blue"},
        OLD: {"team": "green"},
        HYBRID: {"team": "blue"},
    }
    (hybrid,) = tagging.get_resources(ResourceTypeFilters=["ssm"])["ResourceTagMappingList"]
    assert hybrid["ResourceARN"] == f"arn:aws:ssm:us-east-1:123456789012:managed-instance/{HYBRID}"
    wanted = [{"Key": "team", "Values": ["green", "red"]}]
    (old,) = tagging.get_resources(TagFilters=wanted)["ResourceTagMappingList"]
    assert old["ResourceARN"].endswith(f"instance/{OLD}")
    assert len(tagging.get_resources(TagFilters=[{"Key": "Name"}])["ResourceTagMappingList"]) == 1


def test_tags_come_in_pages(tagging: Any) -> None:
    pages = list(tagging.get_paginator("get_resources").paginate(ResourcesPerPage=1))
    assert [len(page["ResourceTagMappingList"]) for page in pages] == [1, 1, 1]


def test_tags_can_be_denied(emulator: Emulator, tagging: Any) -> None:
    emulator.set_faults(Faults(deny="GetResources"))
    with pytest.raises(ClientError) as caught:
        tagging.get_resources()
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    assert "tag:GetResources" in caught.value.response["Error"]["Message"]


@pytest.mark.parametrize("body", [b"\xff", b"\x81" * 100_000, b"\x01", b"\xc2\x41", b"\xc0\x61x", b"{}"])
def test_cbor_that_is_no_map_is_refused(body: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        values_of(Call("any", "any", CborForm(), is_well_formed=True), body)
    assert caught.value.error_type == "SerializationException"


def test_a_rate_of_starts(emulator: Emulator, client: Any) -> None:
    before = emulator.statistics()
    emulator.set_faults(Faults(start_rate=0.001, start_burst=2))
    outcomes = []
    for _ in range(4):
        try:
            started = client.start_session(Target=WEB, DocumentName="AWS-StartSSHSession")
            client.terminate_session(SessionId=started["SessionId"])
            outcomes.append("started")
        except ClientError as error:
            outcomes.append(error.response["Error"]["Code"])
    assert outcomes == ["started", "started", "ThrottlingException", "ThrottlingException"]
    after = emulator.statistics()
    assert after["start_calls"] - before["start_calls"] == 4
    assert after["throttled_starts"] - before["throttled_starts"] == 2


def test_the_bucket_fills_again() -> None:
    bucket = _Bucket()
    assert [bucket.take(2.0, 1, now) for now in (10.0, 10.1, 10.4, 10.5, 10.6, 11.0, 90.0, 90.0)] == [
        *(True, False, False, True, False, True, True, False)
    ]
    assert all(bucket.take(0.0, 1, 90.0) for _ in range(5))


def test_a_tag_of_a_node() -> None:
    assert parse_node_tag("i-0abc:Name=web=1") == ("i-0abc", "Name", "web=1")
    assert parse_node_tag("mi-0abc:aws:autoscaling:groupName=") == ("mi-0abc", "aws:autoscaling:groupName", "")
    for text in ("i-0abc", "i-0abc=x", "i-0abc:=x", ":a=b", "i-0abc:Name"):
        with pytest.raises(UsageError):
            parse_node_tag(text)
