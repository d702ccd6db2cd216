"""A machine from which Ansible runs: the user of nodes.py with Ansible's programs, and what a run reports."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from nodes import MakeUser, User, tool

from bench.sshd import Key
from ssm_proxy.emulator import Emulator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ansible"
_TIMEOUT = 280.0


@dataclass(frozen=True)
class Run:
    """What ``ansible-playbook`` reported."""

    returncode: int
    stats: Mapping[str, Mapping[str, int]]
    """By host: ok, changed, unreachable, failures and so on."""
    results: Mapping[str, Mapping[str, Any]]
    """By the name of the task, then by host."""
    errors: str

    def check(self, *hosts: str) -> None:
        """Check that all went well on these hosts."""
        for host in hosts:
            stats = self.stats[host]
            failed = [task[host] for task in self.results.values() if task.get(host, {}).get("failed")]
            assert (stats["failures"], stats["unreachable"]) == (0, 0), (failed or stats, self.errors)


@dataclass(frozen=True, kw_only=True)
class Controller:
    """Whoever has ``ansible.cfg`` of the example, or another one, and an inventory.

    Args:
        user: whose home folder it is, and who has the AWS settings.
        inventory: the hosts, all of them nodes.
        variables: of every run, as ``-e`` takes them; ``base`` is a folder for the nodes' own.
        settings: ``ANSIBLE_…`` of the environment, which go before ansible.cfg.
    """

    user: User
    inventory: Sequence[str | Path]
    variables: Mapping[str, object]
    settings: Mapping[str, str]

    def run(
        self, program: str, *arguments: str | Path, variables: Mapping[str, object] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Ansible's programs to its end."""
        found = shutil.which(program, path=self.user.environment["PATH"])
        if found is None:
            pytest.skip(f"{program} is not installed")
        inventory = [word for each in self.inventory for word in ("-i", each)]
        return subprocess.run(
            # Plays take all the processors there are: other tests that run at the same time go first.
            [
                "nice",
                "-n",
                "10",
                found,
                *inventory,
                "-e",
                json.dumps({**self.variables, **(variables or {})}),
                *arguments,
            ],
            env={**self.user.environment, **self.settings},
            cwd=self.user.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )

    def play(self, playbook: str | Path, *arguments: str | Path, **variables: object) -> Run:
        """Run a playbook, from a file or its text, with further variables."""
        if isinstance(playbook, str):
            text, playbook = playbook, self.user.folder / "playbook.yml"
            playbook.write_text(text)
        done = self.run("ansible-playbook", playbook, *arguments, variables=variables)
        begin = done.stdout.find("{\n")
        assert begin >= 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        report = json.loads(done.stdout[begin:])
        tasks = [task for play in report["plays"] for task in play["tasks"]]
        results = {task["task"]["name"]: task["hosts"] for task in tasks}
        return Run(done.returncode, report["stats"], results, done.stderr)

    @property
    def base(self) -> Path:
        """Has a folder for each node."""
        return Path(str(self.variables["base"]))

    def leave(self) -> None:
        """Close the connections that Ansible left open for its next run."""
        for control in self.control_sockets():
            subprocess.run(
                [tool("ssh"), "-S", control, "-O", "exit", "any"], capture_output=True, timeout=10, check=False
            )

    def control_sockets(self) -> list[Path]:
        return list((self.user.folder / ".ansible" / "cp").glob("*"))


def copy_example(folder: Path) -> Path:
    """Give a copy of the example whose user has done what the guide says: named the account, and no more."""
    example = folder / "example"
    shutil.copytree(EXAMPLE, example)
    variables = example / "group_vars" / "all.yml"
    text = variables.read_text()
    assert text.count("ec2-user") == 1
    variables.write_text(text.replace("ec2-user", getpass.getuser()))
    return example


def make_controller(
    emulator: Emulator,
    new_user: MakeUser,
    key: Key,
    *,
    inventory: Sequence[str | Path],
    settings: Mapping[str, str] | None = None,
    example: Path | None = None,
) -> Controller:
    """Make a controller with the example's ansible.cfg; from outside come the key, and where host keys are noted.

    Args:
        emulator: has the nodes.
        new_user: the fixture.
        key: that the nodes know.
        inventory: see :class:`Controller`.
        settings: see there.
        example: a copy that names the account; None: the example, and the account is a variable of every run.
    """
    if find_spec("ansible_collections.ansible.posix") is None:
        pytest.skip("the collection ansible.posix is not there: sh scripts/ansible-posix")
    user = new_user(emulator)
    config = user.folder / "keys_only"
    config.write_text(
        f"IdentityFile {key.private}\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {user.folder / 'hosts_met'}\nGlobalKnownHostsFile /dev/null\n"
    )
    # The node is this machine, whose other interpreters need not work.
    python = user.folder / "python"
    python.write_text(f'#!/bin/sh\nexec nice -n 10 {sys.executable} "$@"\n')
    python.chmod(0o755)
    common = {
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str((example or EXAMPLE) / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PYTHON_INTERPRETER": str(python),
        "ANSIBLE_REMOTE_TEMP": str(user.folder / "remote"),
        **{f"ANSIBLE_{name}_EXTRA_ARGS": f"-F {config}" for name in ("SSH", "SFTP", "SCP")},
    }
    return Controller(
        user=user,
        inventory=inventory,
        variables={"base": str(user.folder / "nodes"), **({} if example else {"ansible_user": getpass.getuser()})},
        settings=common | dict(settings or {}),
    )
