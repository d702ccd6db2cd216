"""The AWS CLI itself, with ``ssm-proxy plugin`` in the place of its Session Manager plugin."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest
from forwards import echo, receive_exactly, serving
from nodes import EMBEDDED, MIB, WITHIN, MakeUser, StartEmulator, User, reserved_port, tool, wait_until
from terminals import PROMPT, Terminal, terminal

from ssm_proxy.cli.commands.plugin import install
from ssm_proxy.emulator import Emulator, Node

pytestmark = pytest.mark.integration
TASK = "0123456789abcdef0123456789abcdef"
CONTAINERS = (
    Node(node_id=EMBEDDED),
    Node(node_id=f"ecs:prod_{TASK}_{TASK}-11", ecs_names=("web", "nginx")),
    Node(node_id=f"ecs:prod_{TASK}_{TASK}-22", ecs_names=("web", "php")),
)


def start_on_terminal(user: User, *arguments: str) -> contextlib.AbstractContextManager[Terminal]:
    return terminal(["aws", *arguments], user.environment)


def aws(user: User, *arguments: str, data: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["aws", *arguments],
        env=user.environment,
        input=data,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which our launcher is the plugin, and the AWS CLI that of this environment."""
    tool("setsid")
    scripts = sysconfig.get_path("scripts")
    if shutil.which("aws", path=scripts) is None:
        pytest.skip("the AWS CLI is not installed")
    folder = tmp_path / "bin"
    folder.mkdir()
    install(folder)
    return os.pathsep.join([str(folder), scripts, os.environ["PATH"]])


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser, path: str) -> User:
    return new_user(emulator, EMBEDDED, environment={"PATH": path})


@pytest.fixture
def ecs_user(start_emulator: StartEmulator, new_user: MakeUser, path: str) -> User:
    return new_user(start_emulator(nodes=CONTAINERS), EMBEDDED, environment={"PATH": path})


# SSH


def test_ssh_with_the_aws_cli_as_its_proxy_command(user: User, emulator: Emulator) -> None:
    proxy = (
        "ProxyCommand=aws ssm start-session --target %h --document-name AWS-StartSSHSession --parameters portNumber=%p"
    )
    data = os.urandom(MIB)
    assert user.output("cat", "-o", proxy, data=data) == data
    assert user.ssh("exit 7", "-o", proxy).returncode == 7
    assert [each.status for each in emulator.sessions()[-2:]] == ["Terminated", "Terminated"]
    assert {each.document_name for each in emulator.sessions()[-2:]} == {"AWS-StartSSHSession"}


def test_the_token_is_in_no_argument_of_a_process(user: User) -> None:
    proxy = (
        "ProxyCommand=aws ssm start-session --target %h --document-name AWS-StartSSHSession --parameters portNumber=%p"
    )
    with user.open("echo ready; cat", "-o", proxy):
        arguments = [each for process in user.processes() for each in process.arguments]
    assert any("StartSession" in each for each in arguments)
    assert "AWS_SSM_START_SESSION_RESPONSE" in arguments
    assert not any("TokenValue" in each for each in arguments)


# Ports


def test_a_forwarded_port_until_ctrl_c(user: User, emulator: Emulator) -> None:
    with serving(echo) as remote, reserved_port() as port:
        parameters = json.dumps({"portNumber": [str(remote)], "localPortNumber": [str(port)]})
        with start_on_terminal(
            user,
            *("ssm", "start-session", "--target", EMBEDDED),
            *("--document-name", "AWS-StartPortForwardingSession", "--parameters", parameters),
        ) as running:
            connection = wait_until(lambda: connected(port), "the port listens")
            with connection:
                connection.sendall(b"through the plugin")
                assert receive_exactly(connection, 18) == b"through the plugin"
            running.type(b"\x03")
            assert running.end() == 0
            assert b"session-manager-plugin" not in running.screen, "the AWS CLI complains of a failure"
    wait_until(lambda: emulator.sessions()[-1].status == "Terminated", "the session has ended")


def connected(port: int) -> socket.socket | None:
    with contextlib.suppress(OSError):
        connection = socket.create_connection(("127.0.0.1", port), WITHIN)
        connection.settimeout(WITHIN)
        return connection
    return None


# Shells and commands


def test_a_shell(user: User, emulator: Emulator) -> None:
    with start_on_terminal(user, "ssm", "start-session", "--target", EMBEDDED, "--reason", "a test") as running:
        running.type(b"stty size; echo $((6 * 7))\r")
        running.expect(b"30 100")
        running.expect(b"42\r\n" + PROMPT)
        running.type(b"cat\r")
        running.type(b"again\r")
        running.expect(b"again\r\nagain\r\n")
        running.type(b"\x03")  # for the node's program, not for us
        running.expect(rb"\^C.*" + PROMPT)  # before that cat could still take the next line
        running.type(b"echo still $((40 + 2))\r")
        running.expect(b"still 42")
        running.type(b"exit\r")
        assert running.end() == 0
    assert emulator.sessions()[-1].status == "Terminated"


def test_a_command_in_a_container(ecs_user: User) -> None:
    with start_on_terminal(
        ecs_user,
        *("ecs", "execute-command", "--cluster", "prod", "--task", TASK, "--container", "php", "--interactive"),
        *("--command", "/bin/sh -c 'echo $((6 * 7)); read line; echo \"<$line>\"'"),
    ) as running:
        running.expect(b"42")
        running.type(b"typed\r")
        running.expect(b"<typed>")
        assert running.end() == 0


def test_output_of_a_container_is_all_that_is_on_standard_output(ecs_user: User) -> None:
    done = aws(
        ecs_user,
        *("ecs", "execute-command", "--cluster", "prod", "--task", TASK, "--container", "nginx", "--interactive"),
        *("--command", "echo nothing else"),
    )
    assert (done.returncode, done.stdout) == (0, b"nothing else\r\n")


# The same options, with and without the AWS CLI


@pytest.mark.parametrize(
    "parameters",
    [
        "command=echo one two",
        "command=\"sh -c 'echo a,b; echo c=d'\"",
        "command='echo \"in double quotes\"'",
        json.dumps({"command": ["sh -c 'echo $((6 * 7))'"]}),
        "file://{folder}/parameters",
        "command@=file://{folder}/command",
    ],
)
def test_start_session_means_the_same_to_both(user: User, parameters: str) -> None:
    (user.folder / "parameters").write_text('{"command":["echo from a file"]}\n')
    (user.folder / "command").write_text("echo from a file")
    options = ["start-session", "--target", EMBEDDED, "--document-name", "AWS-StartNonInteractiveCommand"]
    options += ["--reason", "a test", "--parameters", parameters.replace("{folder}", str(user.folder))]
    theirs = aws(user, "ssm", *options)
    assert (theirs.returncode, theirs.stderr) == (0, b"")
    assert theirs.stdout
    ours = subprocess.run(["ssm-proxy", *options], env=user.environment, capture_output=True, timeout=60, check=False)
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, theirs.stdout, b"")


def test_a_container_by_its_name(ecs_user: User) -> None:
    command = ["ssm-proxy", "exec", "ecs:prod/web/nginx", "--", "echo", "in the container"]
    done = subprocess.run(command, env=ecs_user.environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in the container\n", b"")


# Nodes


def test_nodes_and_their_tags(start_emulator: StartEmulator, new_user: MakeUser, path: str) -> None:
    nodes = (Node(node_id=EMBEDDED, tags={"team": "web"}), Node(node_id="i-0ff11ne", is_online=False))
    user = new_user(start_emulator(nodes=nodes), EMBEDDED, environment={"PATH": path})
    done = aws(user, "resourcegroupstaggingapi", "get-resources", "--tag-filters", "Key=team", "--output", "json")
    assert done.returncode == 0, done.stderr
    (resource,) = json.loads(done.stdout)["ResourceTagMappingList"]
    assert resource["ResourceARN"].endswith(f":instance/{EMBEDDED}")
    assert resource["Tags"] == [{"Key": "team", "Value": "web"}]
    found = ("ssm", "describe-instance-information", "--filters", "Key=tag:team,Values=web", "--output", "json")
    (node,) = json.loads(aws(user, *found).stdout)["InstanceInformationList"]
    assert node["InstanceId"] == EMBEDDED


# Failures


def test_an_error_reaches_the_caller_of_the_aws_cli(user: User, emulator: Emulator) -> None:
    with reserved_port() as port:
        done = aws(
            user,
            *("ssm", "start-session", "--target", EMBEDDED),
            *("--document-name", "AWS-StartSSHSession", "--parameters", f"portNumber={port}"),
        )
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"ssm-proxy: error: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_killing_the_plugin_ends_the_session(user: User, emulator: Emulator) -> None:
    with start_on_terminal(user, "ssm", "start-session", "--target", EMBEDDED) as running:
        running.type(b"echo $((6 * 7))\r")
        running.expect(b"42")
        plugins = [each for each in user.processes() if "plugin" in each.arguments]
        assert len(plugins) == 1
        os.kill(plugins[0].pid, signal.SIGTERM)
        assert running.end() != 0
    wait_until(lambda: emulator.sessions()[-1].status == "Terminated", "the session has ended")
