"""What the service tells of managed nodes: those of Systems Manager, and their tags by the Resource Groups Tagging API.

Source: the public API references for members, limits and error names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ssm_proxy.emulator.agent_features import AGENT_VERSION
from ssm_proxy.emulator.calls import Answer, ServiceError, check_allowed, page_of, structures
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.options import ECS_PREFIX, Node

_ACCOUNT: Final = "123456789012"
_LARGEST_PAGE: Final = 100
_MEMBERS: Final = {
    "InstanceIds": "InstanceId",
    "PingStatus": "PingStatus",
    "PlatformType": "PlatformType",
    "PlatformTypes": "PlatformType",
    "AgentVersion": "AgentVersion",
    "ResourceType": "ResourceType",
}


def describe_instance_information(request: Mapping[str, Any], nodes: Sequence[Node], agent_version: str) -> Answer:
    """Answer DescribeInstanceInformation.

    Raises:
        ServiceError: a filter or the page does not fit.
    """
    found = [each for each in nodes if not each.node_id.startswith(ECS_PREFIX)]
    filters = [(each.get("Key"), each.get("Values")) for each in structures(request, "Filters")]
    filters += [
        (each.get("key"), each.get("valueSet")) for each in structures(request, "InstanceInformationFilterList")
    ]
    for key, wanted in filters:
        if not isinstance(wanted, list) or not wanted:
            raise ServiceError("InvalidInstanceInformationFilterValue", "The filter has no values.")
        found = [each for each in found if _passes(each, key, wanted, agent_version)]
    values = [_node_value(each, agent_version) for each in found]
    return page_of("InstanceInformationList", values, request, smallest=5, largest=50, default=50)


def _passes(node: Node, key: object, wanted: Sequence[object], agent_version: str) -> bool:
    if key == "tag-key":
        return any(name in wanted for name in node.tags)
    if isinstance(key, str) and key.startswith("tag:"):
        return node.tags.get(key.removeprefix("tag:"), ()) in wanted
    if not isinstance(key, str) or key not in _MEMBERS:
        raise ServiceError("InvalidFilterKey", f"The filter key {key} is not valid.")
    return _node_value(node, agent_version)[_MEMBERS[key]] in wanted


def _node_value(node: Node, agent_version: str) -> Answer:
    is_hybrid = node.node_id.startswith("mi-")
    return {
        "InstanceId": node.node_id,
        "PingStatus": "Online" if node.is_online else "ConnectionLost",
        "LastPingDateTime": time.time() if node.is_online else time.time() - 3 * 3600,
        "AgentVersion": agent_version,
        "IsLatestVersion": agent_version == AGENT_VERSION,
        "PlatformType": node.platform,
        "PlatformName": node.platform_name,
        "PlatformVersion": "1",
        "ResourceType": "ManagedInstance" if is_hybrid else "EC2Instance",
        "IPAddress": "127.0.0.1",
        "ComputerName": node.computer_name,
    }


class TaggingService:
    """Answers the calls of the Resource Groups Tagging API by name.

    Args:
        nodes: by identifier; asked anew each time.
        region: a part of the names of resources.
        faults: asked anew each time.
    """

    def __init__(self, *, nodes: Mapping[str, Node], region: str, faults: Callable[[], Faults]) -> None:
        self._nodes = nodes
        self._region = region
        self._faults = faults

    def call(self, operation: str, request: Mapping[str, Any]) -> Answer:
        """Answer one call.

        Raises:
            ServiceError: what the caller gets instead.
        """
        if operation != "GetResources":
            raise ServiceError("UnknownOperationException", f"The operation {operation} is not known.")
        check_allowed(self._faults(), "tag", operation)
        types = request.get("ResourceTypeFilters") or []
        if not isinstance(types, list) or not all(isinstance(each, str) for each in types):
            raise ServiceError("InvalidParameterException", "ResourceTypeFilters is not a list of strings")
        found = [each for each in self._nodes.values() if each.tags and _is_of_type(each, types)]
        for wanted in structures(request, "TagFilters"):
            key, values = wanted.get("Key"), wanted.get("Values") or []
            if not isinstance(key, str) or not isinstance(values, list):
                raise ServiceError("InvalidParameterException", "A tag filter has no key, or no list of values.")
            found = [each for each in found if key in each.tags and (not values or each.tags[key] in values)]
        mappings = [
            {
                "ResourceARN": self._arn(node),
                "Tags": [{"Key": name, "Value": value} for name, value in node.tags.items()],
            }
            for node in found
        ]
        paging = {
            "MaxResults": request.get("ResourcesPerPage", _LARGEST_PAGE),
            "NextToken": request.get("PaginationToken") or None,
        }
        answer = page_of(
            "ResourceTagMappingList", mappings, paging, smallest=1, largest=_LARGEST_PAGE, default=_LARGEST_PAGE
        )
        # The end is an empty token here, not none.
        return {"PaginationToken": answer.pop("NextToken", ""), **answer}

    def _arn(self, node: Node) -> str:
        service, resource = _resource(node)
        return f"arn:aws:{service}:{self._region}:{_ACCOUNT}:{resource}/{node.node_id}"


def _resource(node: Node) -> tuple[str, str]:
    return ("ssm", "managed-instance") if node.node_id.startswith("mi-") else ("ec2", "instance")


def _is_of_type(node: Node, types: Sequence[str]) -> bool:
    service, resource = _resource(node)
    return not node.node_id.startswith(ECS_PREFIX) and (
        not types or service in types or f"{service}:{resource}" in types
    )
