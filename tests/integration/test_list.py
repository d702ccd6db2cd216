"""``ssm-proxy list`` as a person, a program and Ansible call it."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import EMBEDDED, HYBRID, MakeUser, User

from bench.sshd import find_program
from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node

pytestmark = pytest.mark.integration
EVIL = "{{ lookup('ansible.builtin.pipe', 'touch %s') }}"
MARKS = {"__ansible_unsafe": "{", "__ansible_vault": "x"}
"""Tags with keys that make Ansible take the object that they are in for something else."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that exists once a tag was taken for a template."""
    return tmp_path_factory.mktemp("evil") / "ran"


@pytest.fixture(scope="module")
def shared(ran: Path) -> Iterator[Emulator]:
    nodes = (
        Node(node_id=EMBEDDED, tags={"Name": "web-1", "team": "web", "evil": EVIL % ran, **MARKS}),
        Node(node_id="i-0ff", is_online=False, computer_name="old"),
        Node(node_id=HYBRID, tags={"team": "desks", "spare": ""}, platform="Windows", platform_name="Windows Server"),
    )
    with Emulator(EmulatorOptions(nodes=nodes)) as emulator:
        yield emulator


@pytest.fixture
def user(shared: Emulator, new_user: MakeUser) -> Iterator[User]:
    yield new_user(shared)
    shared.set_faults(Faults())


def listed(user: User, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssm-proxy", "list", *arguments], env=user.environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_table_of_what_is_online(user: User) -> None:
    done = listed(user)
    assert done.returncode == 0
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["ID", "NAME", "STATE"],
        [HYBRID, "localhost", "online"],
        [EMBEDDED, "web-1", "online"],
    ]
    assert done.stderr == "ssm-proxy: 1 more is not online: ssm-proxy list --all\n"


def test_all_and_json(user: User) -> None:
    done = listed(user, "--all", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert {node["id"]: node["state"] for node in json.loads(done.stdout)} == {
        EMBEDDED: "online",
        HYBRID: "online",
        "i-0ff": "lost",
    }


def test_nothing_found_is_explained(user: User) -> None:
    done = listed(user, "--tag", "team=nobody", "--json")
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "no managed node with team=nobody (region us-east-1, no profile chosen)" in done.stderr
    done = listed(user, "--tag", "team=nobody")
    assert (done.returncode, done.stdout) == (0, "")


def test_without_the_permission_for_tags(user: User, shared: Emulator) -> None:
    shared.set_faults(Faults(deny="GetResources"))
    done = listed(user, "--json", "--tag", "team=web")
    assert done.returncode == 0
    assert [(node["id"], node["tags"]) for node in json.loads(done.stdout)] == [(EMBEDDED, None)]
    (line,) = done.stderr.splitlines()
    assert line.startswith("ssm-proxy: the list has no tags: access denied: tag:GetResources")
    assert line.endswith("the IAM policy has to allow tag:GetResources")


def test_an_empty_value(user: User, shared: Emulator) -> None:
    done = listed(user, "--json", "--tag", "spare=")
    assert (done.returncode, done.stderr) == (0, "")
    assert [node["id"] for node in json.loads(done.stdout)] == [HYBRID]
    shared.set_faults(Faults(deny="GetResources"))
    done = listed(user, "--json", "--tag", "spare=")
    assert (done.returncode, done.stdout) == (2, "")
    assert "by the empty value of their tag 'spare'" in done.stderr


def test_nobody_reads_it_to_its_end(user: User) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        ["ssm-proxy", "list"], env=user.environment, stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in errors) == (141, False)


def test_ansible_reads_the_inventory(user: User, ran: Path) -> None:
    ansible = find_program("ansible-inventory") or _in_this_environment("ansible-inventory")
    if ansible is None:
        pytest.skip("ansible-core is not installed")
    script = user.folder / "inventory.sh"
    script.write_text('#!/bin/sh\nexec ssm-proxy list --format ansible-inventory "$@"\n')
    script.chmod(0o755)

    def ask(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [Path(ansible).with_name(program), "-i", script, *arguments],
            env={**user.environment, "LC_ALL": "C.UTF-8", "ANSIBLE_LOCAL_TEMP": str(user.folder / "ansible")},
            cwd=user.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
        return done.stdout

    values = json.loads(ask("ansible-inventory", "--list"))
    assert set(values["_meta"]["hostvars"]) == {EMBEDDED, HYBRID}
    tags = values["_meta"]["hostvars"][EMBEDDED]["ssm_tags"]
    assert sorted(tags) == ["Name", "evil", "team"]
    assert values["tag_team_web"]["hosts"] == [EMBEDDED]
    assert values["platform_windows"]["hosts"] == [HYBRID]
    shown = ask("ansible", "tag_team_web", "-c", "local", "-m", "debug", "-a", "msg={{ ssm_tags.evil }}")
    assert str(ran) in shown
    assert not ran.exists(), "a tag was taken for a template, and ran a command on the controller"


def _in_this_environment(program: str) -> str | None:
    path = Path(sysconfig.get_path("scripts")) / program
    return str(path) if path.exists() else None


def test_hosts_one_by_one(user: User) -> None:
    done = listed(user, "--format", "ansible-inventory", "--host", HYBRID)
    assert json.loads(done.stdout)["ssm_platform"] == "windows"
    assert json.loads(listed(user, "--format", "ansible-inventory", "--host", "i-0").stdout) == {}
