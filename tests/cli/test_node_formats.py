"""Managed nodes as text: nothing in it is trusted, and it fits where it can."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from ssm_proxy.aws.nodes import ManagedNode
from ssm_proxy.cli.node_formats import as_json, inventory, table

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=timezone.utc)
WEB = ManagedNode(
    node_id="i-0123456789abcdef0",
    name="web-1",
    state="online",
    platform="linux",
    platform_name="Amazon Linux",
    platform_version="2023",
    agent_version="3.3.987.0",
    address="10.0.0.7",
    last_seen=NOW - timedelta(seconds=20),
    tags={"Name": "web-1", "team": "web"},
)
DESK = WEB._replace(node_id="mi-0123456789abcdef0", platform="windows", platform_name="Windows Server", tags={})
LONG = WEB._replace(name="a-name-that-goes-on-and-on", platform_name="Microsoft Windows Server 2019 Datacenter")


def test_a_table() -> None:
    assert table([WEB], now=NOW, width=None).splitlines() == [
        "ID                   NAME   STATE   PLATFORM           AGENT      ADDRESS   SEEN",
        "i-0123456789abcdef0  web-1  online  Amazon Linux 2023  3.3.987.0  10.0.0.7  now",
    ]


def test_a_narrow_terminal_costs_the_platform_first_and_then_the_name() -> None:
    for width in (120, 100, 90, 80):
        lines = table([LONG, WEB], now=NOW, width=width).splitlines()
        assert max(len(line) for line in lines) <= width
        assert lines[1].startswith("i-0123456789abcdef0  a-name-")
        assert "3.3.987.0  10.0.0.7  now" in lines[1]
    lines = table([LONG], now=NOW, width=20).splitlines()
    assert lines[1] == "i-0123456789abcdef0  a-name-…  online  Microso…  3.3.987.0  10.0.0.7  now"


def test_text_of_the_service_does_nothing_to_the_terminal() -> None:
    evil = WEB._replace(name="\x1b[2J\x07web\n", state="\x9b31m", address="\u202e10", platform_name="", platform="")
    shown = table([evil], now=NOW, width=None)
    assert len(shown.splitlines()) == 2
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert as_json([evil], with_tags=True).isascii()
    assert "\x1b" not in as_json([evil], with_tags=True)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "now"), (59, "now"), (60, "1 min"), (3599, "59 min"), (7300, "2 h"), (86400 * 3.5, "3 d")],
)
def test_ages(seconds: float, shown: str) -> None:
    node = WEB._replace(last_seen=NOW - timedelta(seconds=seconds))
    assert table([node], now=NOW, width=None).rstrip("\n").endswith(f"10.0.0.7  {shown}")


def test_what_is_not_known_is_a_dash() -> None:
    bare = ManagedNode("mi-1", "", "lost", "", "", "", "", "", None, {})
    assert table([bare], now=NOW, width=None).splitlines()[1].split() == ["mi-1", "-", "lost", "-", "-", "-", "-"]
    (value,) = json.loads(as_json([bare], with_tags=False))
    assert (value["last_seen"], value["tags"], value["name"]) == (None, None, "")


def test_json() -> None:
    (value,) = json.loads(as_json([WEB], with_tags=True))
    assert value == {
        "id": "i-0123456789abcdef0",
        "name": "web-1",
        "state": "online",
        "platform": "linux",
        "platform_name": "Amazon Linux",
        "platform_version": "2023",
        "agent_version": "3.3.987.0",
        "address": "10.0.0.7",
        "last_seen": "2026-01-02T11:59:40+00:00",
        "tags": {"Name": "web-1", "team": "web"},
    }


def test_an_inventory() -> None:
    lost = WEB._replace(node_id="i-0f", state="lost")
    assert inventory([WEB, DESK, lost]) == {
        "_meta": {
            "hostvars": {
                WEB.node_id: {
                    "ansible_host": WEB.node_id,
                    "ssm_name": "web-1",
                    "ssm_platform": "linux",
                    "ssm_platform_name": "Amazon Linux",
                    "ssm_platform_version": "2023",
                    "ssm_agent_version": "3.3.987.0",
                    "ssm_address": "10.0.0.7",
                    "ssm_tags": {"Name": "web-1", "team": "web"},
                },
                DESK.node_id: {
                    "ansible_host": DESK.node_id,
                    "ssm_name": "web-1",
                    "ssm_platform": "windows",
                    "ssm_platform_name": "Windows Server",
                    "ssm_platform_version": "2023",
                    "ssm_agent_version": "3.3.987.0",
                    "ssm_address": "10.0.0.7",
                    "ssm_tags": {},
                },
            }
        },
        "all": {
            "children": [
                "platform_linux",
                "platform_name_amazon_linux",
                "platform_name_windows_server",
                "platform_windows",
                "tag_Name_web_1",
                "tag_team_web",
                "ungrouped",
            ]
        },
        "platform_linux": {"hosts": [WEB.node_id]},
        "platform_name_amazon_linux": {"hosts": [WEB.node_id]},
        "platform_name_windows_server": {"hosts": [DESK.node_id]},
        "platform_windows": {"hosts": [DESK.node_id]},
        "tag_Name_web_1": {"hosts": [WEB.node_id]},
        "tag_team_web": {"hosts": [WEB.node_id]},
    }


def test_an_inventory_of_nothing() -> None:
    assert inventory([]) == {"_meta": {"hostvars": {}}, "all": {"children": ["ungrouped"]}}


def test_a_node_without_anything_is_in_no_group() -> None:
    values = inventory([WEB._replace(platform="", platform_name="", tags={})])
    assert values["ungrouped"] == {"hosts": [WEB.node_id]}
    assert values["all"] == {"children": ["ungrouped"]}


@pytest.mark.parametrize(
    ("key", "value", "group"),
    [
        ("team", "web & more", "tag_team_web___more"),
        ("aws:autoscaling:groupName", "g-1", "tag_aws_autoscaling_groupName_g_1"),
        ("größe", "5", "tag_gr__e_5"),
        ("empty", "", "tag_empty"),
        ("x", "\n{{ y }}", "tag_x_____y___"),
    ],
)
def test_group_names_are_such_that_ansible_takes_them(key: str, value: str, group: str) -> None:
    assert group in inventory([WEB._replace(tags={key: value})])


def test_tags_that_mean_the_same_group_list_a_host_once() -> None:
    assert inventory([WEB._replace(tags={"a-b": "1", "a_b": "1"})])["tag_a_b_1"] == {"hosts": [WEB.node_id]}


def test_what_looks_like_a_template_is_marked_as_none() -> None:
    variables = inventory([WEB._replace(name="{{ x }}", tags={"a": "{% b %}", "c": "d"})])["_meta"]["hostvars"]
    assert variables[WEB.node_id]["ssm_name"] == {"__ansible_unsafe": "{{ x }}"}
    assert variables[WEB.node_id]["ssm_tags"] == {"a": {"__ansible_unsafe": "{% b %}"}, "c": "d"}


def test_keys_that_mean_something_to_ansible_are_no_variables() -> None:
    tags = {"__ansible_unsafe": "x", "__ansible_vault": "x", "__ansible_": "x", "ansible_unsafe": "x", "team": "web"}
    node = WEB._replace(tags=tags)
    variables = inventory([node])["_meta"]["hostvars"][WEB.node_id]
    assert variables["ssm_tags"] == {"ansible_unsafe": "x", "team": "web"}
    assert "tag___ansible_unsafe_x" in inventory([node])
    assert json.loads(as_json([node], with_tags=True))[0]["tags"] == tags


@pytest.mark.parametrize("node_id", ["-oProxyCommand=x", "", "i-1 2", "i-1\n", "localhost"])
def test_what_is_no_id_is_no_host(node_id: str) -> None:
    assert inventory([WEB._replace(node_id=node_id)])["_meta"]["hostvars"] == {}
