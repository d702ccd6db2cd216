"""Which managed nodes there are, and their tags, which another service knows.

Systems Manager knows names, states and platforms; tags of EC2 instances and of hybrid nodes both come from the Resource
Groups Tagging API, all in one question. Its permission is a second one, which many who may start sessions do not have:
without it the list comes without tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from ssm_proxy.errors import SsmProxyError, UsageError

Ask = Callable[[str, Mapping[str, Any]], Iterable[Mapping[str, Any]]]
"""Makes all calls of one operation, and gives the pages of the answer."""

_TAGGED_TYPES: Final = ["ec2:instance", "ssm:managed-instance"]
_STATES: Final = {"Online": "online", "ConnectionLost": "lost", "Inactive": "inactive"}


class TagFilter(NamedTuple):
    """A tag that nodes must have."""

    key: str
    value: str | None
    """None: any; empty: the empty one."""


class ManagedNode(NamedTuple):
    """A machine whose agent is registered. What the service did not say is empty."""

    node_id: str
    name: str
    """Of the tag ``Name``, else as its registration or the machine itself has it; several may have the same."""
    state: str
    """online, lost (the connection to its agent) or inactive."""
    platform: str
    """linux, windows or macos."""
    platform_name: str
    platform_version: str
    agent_version: str
    address: str
    last_seen: datetime | None
    tags: Mapping[str, str]

    @property
    def is_online(self) -> bool:
        """Whether a session could be started now."""
        return self.state == "online"


class NodeList(NamedTuple):
    """What was found."""

    nodes: Sequence[ManagedNode]
    """By name, then by id."""
    tags_error: SsmProxyError | None
    """Why the nodes are without their tags; None if they are not."""


def list_nodes(ask: Ask, filters: Sequence[TagFilter]) -> NodeList:
    """Find the managed nodes of account and region, whatever their state.

    Args:
        ask: the service.
        filters: the service looks for nodes that have all these tags.

    Raises:
        UsageError: an empty value is wanted, and the tags cannot be had.
        SsmProxyError: Systems Manager did not answer as hoped.
    """
    # A tag may have an empty value, a filter may not: then the key is looked for, and the value here.
    wanted = [
        {"Key": f"tag:{each.key}", "Values": [each.value]} if each.value else {"Key": "tag-key", "Values": [each.key]}
        for each in filters
    ]
    empty = [each.key for each in filters if each.value == ""]
    found = [
        node
        for page in ask("DescribeInstanceInformation", {"Filters": wanted} if wanted else {})
        for node in _structures(page, "InstanceInformationList")
    ]
    tags: Mapping[str, Mapping[str, str]] = {}
    tags_error = None
    if found:
        try:
            tags = _tags_by_id(ask, filters)
        except SsmProxyError as error:
            if empty:
                raise UsageError(
                    f"nodes cannot be looked for by the empty value of their tag {empty[0]!r}",
                    cause=f"only their tags would tell, and: {error.message}",
                    hint=f"any value can be looked for all the same: --tag {empty[0]}; {error.hint or error.cause}",
                ) from error
            tags_error = error
    nodes = (_node(each, tags.get(_text(each, "InstanceId"), {})) for each in found)
    nodes = (node for node in nodes if all(node.tags.get(key) == "" for key in empty))
    return NodeList(sorted(nodes, key=lambda node: (node.name, node.node_id)), tags_error)


def _tags_by_id(ask: Ask, filters: Sequence[TagFilter]) -> Mapping[str, Mapping[str, str]]:
    request: dict[str, Any] = {"ResourceTypeFilters": _TAGGED_TYPES}
    if filters:
        request["TagFilters"] = [
            {"Key": each.key, "Values": [each.value]} if each.value else {"Key": each.key} for each in filters
        ]
    return {
        _text(resource, "ResourceARN").rpartition("/")[2]: {
            _text(tag, "Key"): _text(tag, "Value") for tag in _structures(resource, "Tags")
        }
        for page in ask("GetResources", request)
        for resource in _structures(page, "ResourceTagMappingList")
    }


def _node(values: Mapping[str, Any], tags: Mapping[str, str]) -> ManagedNode:
    state, seen = _text(values, "PingStatus"), values.get("LastPingDateTime")
    return ManagedNode(
        node_id=_text(values, "InstanceId"),
        name=tags.get("Name") or _text(values, "Name") or _text(values, "ComputerName"),
        state=_STATES.get(state, state.lower()),
        platform=_text(values, "PlatformType").lower(),
        platform_name=_text(values, "PlatformName"),
        platform_version=_text(values, "PlatformVersion"),
        agent_version=_text(values, "AgentVersion"),
        address=_text(values, "IPAddress"),
        last_seen=seen.astimezone(timezone.utc) if isinstance(seen, datetime) else None,
        tags=tags,
    )


def _structures(values: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return [each for each in values.get(name) or () if isinstance(each, Mapping)]


def _text(values: Mapping[str, Any], name: str) -> str:
    """Give a member; botocore does not look whether it is text."""
    value = values.get(name)
    return value if isinstance(value, str) else ""
