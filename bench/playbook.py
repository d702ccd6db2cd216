"""A playbook on many nodes: Ansible over its ssh connection through the tunnel, against the same over plain TCP."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.lab import STEP_TIMEOUT, Lab, Route, wait_until
from bench.processes import all_pids
from bench.rows import BenchError, Row, Target

_CONFIGURATION = Path(__file__).resolve().parents[1] / "examples" / "ansible" / "ansible.cfg"
_TASKS = (
    "ping: {}",
    'file: {path: "{{ here }}/app", state: directory}',
    'copy: {dest: "{{ here }}/app/motd", content: "{{ inventory_hostname }}"}',
    'template: {src: "{{ template }}", dest: "{{ here }}/app/conf"}',
    'command: cat "{{ here }}/app/conf"',
    'stat: {path: "{{ here }}/app/conf"}',
    'lineinfile: {path: "{{ here }}/app/conf", line: "{{ now() }}"}',
    'shell: "grep -c name {{ here }}/app/conf"',
    'slurp: {src: "{{ here }}/app/motd"}',
    'fetch: {src: "{{ here }}/app/motd", dest: "{{ here }}/fetched"}',
)
"""Twenty tasks are these twice over."""


def measure_playbook(lab: Lab, nodes: int, tasks: int, rounds: int) -> list[Row]:
    """Run the playbook so often by both ways in turn, each time on nodes without a connection, and then once more."""
    ids = [f"i-{number:017x}" for number in range(nodes)]
    with lab.tunnel(nodes=ids, pacing="real") as tunnel:
        runs = {name: _Runs(lab, name, route, ids, tasks) for name, route in _ways(lab, tunnel)}
        for _ in range(rounds):
            for each in runs.values():
                each.run_twice()
    what = f"playbook of {tasks} tasks on {nodes} nodes"
    return [
        Row(
            what=f"{what}, no connections before",
            tunnel=statistics.median(runs["tunnel"].cold),
            plain=statistics.median(runs["plain"].cold),
            unit="s",
            target=Target(of="ratio", bound=1.3),
        ),
        Row(
            what=f"{what}, connections kept from the run before",
            tunnel=statistics.median(runs["tunnel"].warm),
            plain=statistics.median(runs["plain"].warm),
            unit="s",
        ),
    ]


def _ways(lab: Lab, tunnel: Route) -> Iterator[tuple[str, Route]]:
    yield "tunnel", tunnel
    yield "plain", lab.plain()


class _Runs:
    """Ansible by one way, with the settings of examples/ansible but for the way itself."""

    def __init__(self, lab: Lab, name: str, route: Route, nodes: Sequence[str], tasks: int) -> None:
        folder = lab.folder / name
        program = shutil.which("ansible-playbook", path=sysconfig.get_path("scripts") + os.pathsep + os.defpath)
        if program is None:
            raise BenchError("ansible-playbook is not installed: pip install ansible-core")
        (folder / "nodes").mkdir(parents=True)
        for node in nodes:
            (folder / "nodes" / node).mkdir()
        (folder / "template.j2").write_text("name = {{ inventory_hostname }}\n")
        playbook = folder / "playbook.yml"
        playbook.write_text(
            f"- hosts: all\n  gather_facts: false\n  vars:\n    template: {folder}/template.j2\n"
            f'    here: "{folder}/nodes/{{{{ inventory_hostname }}}}"\n  tasks:\n'
            + "".join(f"    - ansible.builtin.{_TASKS[number % len(_TASKS)]}\n" for number in range(tasks))
        )
        self._command = [program, "-i", ",".join([*nodes, ""]), playbook]
        self._sockets = folder / "c"
        self._environment = {
            **route.environment,
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(_CONFIGURATION),
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {route.config}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._sockets),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        self.cold: list[float] = []
        self.warm: list[float] = []

    def run_twice(self) -> None:
        with self._connections():
            self.cold.append(self._run())
            self.warm.append(self._run())

    def _run(self) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            self._command,
            env=self._environment,
            cwd=self._sockets.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT,
        )
        if done.returncode != 0:
            raise BenchError(f"the playbook failed ({done.returncode}): {done.stdout[-2000:]}{done.stderr}")
        return time.perf_counter() - began

    @contextlib.contextmanager
    def _connections(self) -> Iterator[None]:
        """Close the connections that Ansible has left open, and wait until their proxies have gone."""
        try:
            yield
        finally:
            for control in self._sockets.glob("*"):
                subprocess.run(["ssh", "-S", control, "-O", "exit", "any"], capture_output=True, timeout=STEP_TIMEOUT)
            wait_until(lambda: not self._is_anything_left(), "the proxies end")

    def _is_anything_left(self) -> bool:
        """Say whether a process runs whose home is ours."""
        for pid in all_pids():
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                if f"HOME={self._environment['HOME']}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    return True
        return False
