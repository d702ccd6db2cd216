"""Managed nodes as text: a table for people, JSON for programs, an inventory for Ansible."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ssm_proxy.aws.nodes import ManagedNode
from ssm_proxy.cli.messages import printable

_HEADER: Final = ("ID", "NAME", "STATE", "PLATFORM", "AGENT", "ADDRESS", "SEEN")
_GAP: Final = "  "
_SHRINKABLE: Final = (3, 1)
"""Columns that a narrow terminal may cost some of their text: the platform first, then the name."""
_NARROWEST: Final = 8
_HOST: Final = re.compile(r"m?i-[0-9a-zA-Z]+", re.ASCII)
_MARKS: Final = "__ansible_"
"""Begins keys by which Ansible knows an object that stands for a value: ``__ansible_unsafe``, ``__ansible_vault``."""
_NOT_IN_GROUPS: Final = re.compile(r"[^A-Za-z0-9_]")
_AGES: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def table(nodes: Sequence[ManagedNode], *, now: datetime, width: int | None) -> str:
    """Give a line for each node below a header.

    Args:
        now: what "seen" is counted from.
        width: of the terminal; None cuts nothing.
    """
    rows = [_HEADER, *(_row(node, now) for node in nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    too_wide = 0 if width is None else sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for column in _SHRINKABLE:
        cut = max(0, min(too_wide, widths[column] - _NARROWEST))
        widths[column] -= cut
        too_wide -= cut
    return "".join(
        _GAP.join(_fit(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def as_json(nodes: Sequence[ManagedNode], *, with_tags: bool) -> str:
    """Give an array with an object for each node.

    Args:
        with_tags: False gives null for the tags: they are not known.
    """
    values = [{**_values(node), "tags": dict(node.tags) if with_tags else None} for node in nodes]
    return dump(values)


def dump(values: object) -> str:
    """Give values as JSON of plain ASCII, which is safe for any terminal."""
    return json.dumps(values, indent=2) + "\n"


def inventory(nodes: Sequence[ManagedNode]) -> dict[str, Any]:
    """Give what Ansible expects of an inventory script: the nodes that are online, in groups by tag and platform."""
    groups: dict[str, list[str]] = {}
    hosts = [node for node in nodes if node.is_online and _HOST.fullmatch(node.node_id)]
    for node in hosts:
        names = {_group("tag", key, value) for key, value in node.tags.items()}
        names |= {_group("platform", node.platform)} if node.platform else set()
        names |= {_group("platform_name", node.platform_name.lower())} if node.platform_name else set()
        for name in sorted(names) or ["ungrouped"]:
            groups.setdefault(name, []).append(node.node_id)
    return {
        "_meta": {"hostvars": {node.node_id: _host_variables(node) for node in hosts}},
        "all": {"children": sorted({"ungrouped", *groups})},
        **{name: {"hosts": groups[name]} for name in sorted(groups)},
    }


def _row(node: ManagedNode, now: datetime) -> tuple[str, ...]:
    platform = f"{node.platform_name or node.platform} {node.platform_version}"
    cells = (node.node_id, node.name, node.state, platform, node.agent_version, node.address, _age(node, now))
    return tuple(printable(cell) or "-" for cell in cells)


def _age(node: ManagedNode, now: datetime) -> str:
    if node.last_seen is None:
        return ""
    seconds = (now - node.last_seen).total_seconds()
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "now"


def _fit(text: str, size: int) -> str:
    return text.ljust(size) if len(text) <= size else text[: size - 1] + "…"


def _values(node: ManagedNode) -> dict[str, Any]:
    return {
        "id": node.node_id,
        "name": node.name,
        "state": node.state,
        "platform": node.platform,
        "platform_name": node.platform_name,
        "platform_version": node.platform_version,
        "agent_version": node.agent_version,
        "address": node.address,
        "last_seen": None if node.last_seen is None else node.last_seen.isoformat(timespec="seconds"),
    }


def _host_variables(node: ManagedNode) -> dict[str, Any]:
    facts = {f"ssm_{name}": value for name, value in _values(node).items() if name not in ("id", "state", "last_seen")}
    return {
        "ansible_host": node.node_id,
        **{name: _as_data(value) for name, value in facts.items()},
        # With such a key Ansible would take all the tags for one value, or not read the inventory at all.
        "ssm_tags": {key: _as_data(value) for key, value in node.tags.items() if not key.startswith(_MARKS)},
    }


def _as_data(text: str) -> str | Mapping[str, str]:
    """Keep Ansible from evaluating text as a template: whoever may tag a node must not run code on the controller."""
    return {"__ansible_unsafe": text} if "{" in text else text


def _group(*parts: str) -> str:
    return "_".join(_NOT_IN_GROUPS.sub("_", part) for part in parts if part)
