"""Ansible over its own ssh connection and our ProxyCommand: real plays on many nodes, some of which go away."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from ansible_runs import EXAMPLE, Controller, Run, copy_example, make_controller
from nodes import MIB, REAL, MakeUser, StartEmulator, check_sessions, open_sessions, tool, wait_until

from bench.sshd import Key, Sshd
from ssm_proxy.emulator import Emulator, Faults, Node

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NODES = [f"i-0123456789abcdef{number:x}" for number in range(10)]
GUIDE = EXAMPLE.parents[1] / "docs" / "ansible.md"
OFFLINE = "i-0fffffffffffffff0"
MakeController = Callable[..., Controller]


@pytest.fixture
def controller_of(new_user: MakeUser, key: Key) -> Iterator[MakeController]:
    """Make controllers: takes what make_controller takes. At the end they leave nothing running."""
    controllers: list[Controller] = []

    def make(emulator: Emulator, *inventory: str | Path, example: Path | None = None, **settings: str) -> Controller:
        controllers.append(
            make_controller(emulator, new_user, key, inventory=inventory, settings=settings, example=example)
        )
        return controllers[-1]

    yield make
    for controller in controllers:
        controller.leave()


def needs_sudo() -> None:
    if subprocess.run([tool("sudo"), "-n", "true"], capture_output=True).returncode != 0:
        pytest.skip("sudo asks for a password here")


class Reboot:
    """A node that goes as machines do: server and agent are dead at once, StartSession refuses it until it is back.

    Args:
        emulator: has the node.
        node: its id.
        folder: its folder; gets the program ``go_down`` and the file ``boot_id``.
        sshd: the node's own.
        sessions: see ``Emulator.set_online``.
    """

    def __init__(self, emulator: Emulator, node: str, folder: Path, sshd: Sshd, sessions: str) -> None:
        self._emulator, self._node, self._sshd, self._sessions = emulator, node, sshd, sessions
        self._goes, self._boot_id = folder / "goes", folder / "boot_id"
        self._play_is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._boot_id.write_text("first boot\n")
        # It still runs as the node goes: what ssh does then is up to its ServerAliveInterval.
        (folder / "go_down").write_text(f"#!/bin/sh\n: > {self._goes}\nexec sleep 60\n")
        (folder / "go_down").chmod(0o755)

    def __enter__(self) -> Reboot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._play_is_over.set()
        self._thread.join()

    def _run(self) -> None:
        wait_until(lambda: self._goes.exists() or self._play_is_over.is_set(), "the play comes to the reboot", 200)
        if self._goes.exists():
            self._emulator.set_online(self._node, False, sessions=self._sessions)
            self._sshd.kill()
            self._boot_id.write_text("second boot\n")
            # Longer than a first look at the node takes, so that one at least meets TargetNotConnected.
            self._play_is_over.wait(3)
            self._sshd.__enter__()
            self._emulator.set_online(self._node, True)


BEGIN = """
- hosts: all
  gather_facts: false
  vars:
    here: "{{ base }}/{{ inventory_hostname }}"
  tasks:
"""
FILES = """
    # Without a module to send: Ansible says no more than "Broken pipe" if ssh has closed its input, but not yet ended.
    - name: first contact
      ansible.builtin.raw: "true"
    - name: ping
      ansible.builtin.ping:
    - name: copy
      ansible.builtin.copy: {src: "{{ random_file }}", dest: "{{ here }}/copy", mode: "0600"}
    - name: push
      ansible.posix.synchronize:
        {src: "{{ tree }}/", dest: "{{ here }}/tree/", use_ssh_args: true, verify_host: true}
"""
REBOOT = """
    - name: reboot
      ansible.builtin.reboot:
        reboot_command: "{{ here }}/go_down"
        boot_time_command: cat {{ here }}/boot_id
        connect_timeout: 30
        post_reboot_delay: 0
      when: inventory_hostname == rebooted
"""
FILES_BACK = """
    - name: become
      ansible.builtin.command: id -un
      become: true
    - name: template
      ansible.builtin.template: {src: "{{ template_file }}", dest: "{{ here }}/template"}
    - name: pull
      ansible.posix.synchronize:
        {src: "{{ here }}/tree/", dest: "{{ back }}/{{ inventory_hostname }}/", mode: pull, use_ssh_args: true,
         verify_host: true}
    - name: fetch
      ansible.builtin.fetch: {src: "{{ here }}/copy", dest: "{{ back }}"}
"""
IMPATIENT = (
    "-o ControlMaster=auto -o ControlPersist=600 -o StrictHostKeyChecking=accept-new "
    "-o ServerAliveInterval=3 -o ServerAliveCountMax=4"
)
"""As the example's ssh_args, but three minutes for a node that is silent are too long for a test, and one may be too
short for what goes on at the other nodes, before there is more to do for a connection."""


def test_ten_nodes_of_which_one_reboots_and_an_eleventh_that_is_offline(
    start_emulator: StartEmulator, sshd: Sshd, key: Key, controller_of: MakeController, tmp_path: Path
) -> None:
    needs_sudo()
    tool("rsync")
    rebooted = NODES[-1]
    with Sshd(tmp_path, key.public) as own:
        nodes = [Node(node_id=each, ssh_address=("127.0.0.1", sshd.port)) for each in NODES[:-1]]
        nodes += [Node(node_id=rebooted, ssh_address=("127.0.0.1", own.port)), Node(node_id=OFFLINE, is_online=False)]
        emulator = start_emulator(nodes=nodes)
        controller = controller_of(emulator, ",".join([*NODES, OFFLINE]), ANSIBLE_SSH_ARGS=IMPATIENT)
        random_file, template, back, tree = (
            controller.user.folder / each for each in ("random", "template.j2", "back", "tree")
        )
        data = os.urandom(2 * MIB)
        random_file.write_bytes(data)
        template.write_text("{{ inventory_hostname }} of {{ ansible_play_hosts | length }} ü\n")
        (tree / "a folder").mkdir(parents=True)
        (tree / "a folder" / "binary").write_bytes(data[:100_000])
        (tree / "link").symlink_to("a folder/binary")
        for folder in (back, *(controller.base / node for node in NODES)):
            folder.mkdir(parents=True)

        with Reboot(emulator, rebooted, controller.base / rebooted, own, "silent"):
            run = controller.play(
                BEGIN + FILES + REBOOT + FILES_BACK,
                "--forks=10",
                random_file=str(random_file),
                template_file=str(template),
                back=str(back),
                tree=str(tree),
                rebooted=rebooted,
            )

        offline = run.results["first contact"][OFFLINE]
        assert offline["unreachable"] is True
        assert f"ssm-proxy: error: target '{OFFLINE}' is not connected to Session Manager" in offline["msg"]
        assert "ssm-proxy: hint: check that region and account are right" in offline["msg"]
        run.check(*NODES)
        assert run.results["reboot"][rebooted]["rebooted"] is True
        for node in NODES:
            assert run.results["become"][node]["stdout"] == "root"
            assert run.results["fetch"][node]["checksum"] == hashlib.sha1(data).hexdigest()
            there = controller.base / node
            assert (there / "copy").read_bytes() == data
            assert (back / node / str(there)[1:] / "copy").read_bytes() == data
            assert (there / "template").read_text() == f"{node} of 10 ü\n"
            for copy in (there / "tree", back / node):
                assert (copy / "a folder" / "binary").read_bytes() == data[:100_000]
                assert os.readlink(copy / "link") == "a folder/binary"
        # One session for all tasks but rsync's, which has one each time; the node that was down has more of them.
        counts = Counter(session.target for session in emulator.sessions())
        assert {counts[node] for node in NODES[:-1]} == {3}
        assert len(open_sessions(emulator)) == len(controller.control_sockets()) == len(NODES)
        controller.leave()
        check_sessions(emulator)


def test_a_node_reboots_and_the_service_ends_its_sessions(
    start_emulator: StartEmulator, key: Key, controller_of: MakeController, tmp_path: Path
) -> None:
    with Sshd(tmp_path, key.public) as own:
        emulator = start_emulator(nodes=[Node(node_id=NODES[0], ssh_address=("127.0.0.1", own.port))])
        controller = controller_of(emulator, f"{NODES[0]},")
        (controller.base / NODES[0]).mkdir(parents=True)
        after = "    - name: after\n      ansible.builtin.command: cat {{ here }}/boot_id\n"
        with Reboot(emulator, NODES[0], controller.base / NODES[0], own, "closed"):
            run = controller.play(BEGIN + REBOOT + after, rebooted=NODES[0])
        run.check(NODES[0])
        assert run.results["after"][NODES[0]]["stdout"] == "second boot"
        controller.leave()
        check_sessions(emulator)


def test_the_guide_with_the_example_as_it_is(
    start_emulator: StartEmulator, sshd: Sshd, controller_of: MakeController, tmp_path: Path
) -> None:
    needs_sudo()
    tool("rsync")
    ping, playbook, _ = guide()
    ids = [*NODES[:2], "mi-0123456789abcdef0"]
    emulator = start_emulator(nodes=[Node(node_id=each, ssh_address=("127.0.0.1", sshd.port)) for each in ids])
    controller = controller_of(emulator, example=(example := copy_example(tmp_path)))
    groups = dict.fromkeys(NODES[:2], "web") | {"db1": "database"}
    done = controller.run(*ping)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(host in done.stdout for host in groups)

    check_playbook(controller, play_example(controller, example / playbook[1]), groups)
    # The playbook had the connections of the ping; rsync has one of its own. Rarely a kept connection says goodbye by
    # itself as a run of Ansible ends (seen with OpenSSH 9.2): then the next run makes another.
    sessions = Counter(session.target for session in emulator.sessions())
    assert set(sessions) == set(ids)
    assert set(sessions.values()) <= {2, 3}


def test_the_guide_with_the_nodes_from_systems_manager(
    start_emulator: StartEmulator, sshd: Sshd, controller_of: MakeController, tmp_path: Path
) -> None:
    needs_sudo()
    tool("rsync")
    _, _, [_, option, script, playbook] = guide()
    address = ("127.0.0.1", sshd.port)
    nodes = [
        Node(node_id=NODES[0], ssh_address=address, tags={"Role": "web"}),
        Node(node_id=NODES[1], ssh_address=address),
    ]
    emulator = start_emulator(nodes=nodes)
    controller = controller_of(emulator, example=(example := copy_example(tmp_path)))
    run = play_example(controller, example / playbook, option, example / script)
    platform = f"platform_linux, platform_name_{nodes[0].platform_name.lower()}"
    check_playbook(controller, run, {NODES[0]: f"{platform}, tag_Role_web", NODES[1]: platform})


def guide() -> list[list[str]]:
    """Give the commands that the guide shows."""
    return [line.removeprefix("$ ").split() for line in GUIDE.read_text().splitlines() if line.startswith("$ ansible")]


def play_example(controller: Controller, playbook: Path, *arguments: str | Path) -> Run:
    """Run the example's playbook with the folders of the test, and nothing else that is not its own."""
    return controller.play(
        playbook,
        *arguments,
        app_folder=f"{controller.base}/{{{{ inventory_hostname }}}}",
        collected=str(controller.user.folder / "collected"),
    )


def check_playbook(controller: Controller, run: Run, groups: Mapping[str, str]) -> None:
    """Check what the example's playbook did to hosts that are in these groups."""
    assert sorted(run.stats) == sorted(groups)
    run.check(*groups)
    for host, names in groups.items():
        there = controller.base / host
        configuration = (there / "app.conf").read_text()
        assert f"node = {host}\ngroups = {names}\n" in configuration
        assert (controller.user.folder / "collected" / host / str(there)[1:] / "app.conf").read_text() == configuration
        assert there.owner() == getpass.getuser()
        assert run.results["Reload the app"][host]["stdout"] == "nothing to reload"
        for copy in (there / "inventory.yml", there / "example" / "inventory.yml"):
            assert copy.read_bytes() == (EXAMPLE / "inventory.yml").read_bytes()
        assert os.access(there / "example" / "inventory.sh", os.X_OK)
        assert run.results["Run a command as root"][host]["stdout"] == "root"


def test_a_controller_that_is_throttled_gets_there(
    start_emulator: StartEmulator, sshd: Sshd, controller_of: MakeController
) -> None:
    nodes = [Node(node_id=each, ssh_address=("127.0.0.1", sshd.port)) for each in NODES]
    emulator = start_emulator(nodes=nodes, faults=Faults(start_rate=1, start_burst=1, throttle_start=2))
    controller = controller_of(emulator, ",".join(NODES), ANSIBLE_STDOUT_CALLBACK="minimal")
    done = controller.run("ansible", "all", "-m", "ansible.builtin.ping", "--forks=10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"ping": "pong"') == len(NODES)
    assert len(emulator.sessions()) == len(NODES)
    statistics = emulator.statistics()
    assert statistics["throttled_starts"] > 0  # the first wave, even if it was not one
    # After that they take turns: without the budget each is refused again and again.
    assert statistics["start_calls"] < 4 * len(NODES)


@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_with_pipelining_and_without(emulator: Emulator, controller_of: MakeController, pipelining: str) -> None:
    """Without it modules are files that sftp brings, over the same session."""
    controller = controller_of(emulator, f"{REAL},", ANSIBLE_STDOUT_CALLBACK="minimal", ANSIBLE_PIPELINING=pipelining)
    before = len(emulator.sessions())
    done = controller.run("ansible", "all", "-m", "ansible.builtin.ping", "-vvv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("sftp> put" in done.stdout) == (pipelining == "false")
    assert len(emulator.sessions()) == before + 1
    controller.leave()


def test_the_inventory_script_gives_groups(
    start_emulator: StartEmulator, sshd: Sshd, controller_of: MakeController
) -> None:
    """Nodes by tag, one of them offline, from the script of the example as it is."""
    web, other, offline = NODES[:3]
    address = ("127.0.0.1", sshd.port)
    nodes = [
        Node(node_id=web, ssh_address=address, tags={"Role": "web", "Name": "web 1"}),
        Node(node_id=other, ssh_address=address, tags={"Role": "db"}),
        Node(node_id=offline, tags={"Role": "web"}, is_online=False),
    ]
    emulator = start_emulator(nodes=nodes)
    controller = controller_of(emulator, EXAMPLE / "inventory.sh", ANSIBLE_STDOUT_CALLBACK="minimal")
    done = controller.run("ansible", "tag_Role_web", "-m", "ansible.builtin.debug", "-a", "var=ssm_tags.Name")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{web} | SUCCESS" in done.stdout
    assert '"ssm_tags.Name": "web 1"' in done.stdout
    assert other not in done.stdout
    assert offline not in done.stdout
    done = controller.run("ansible", "platform_linux", "-m", "ansible.builtin.ping")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"ping": "pong"') == 2
