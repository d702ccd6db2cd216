"""``ssm-proxy start-session``: every command of docs/aws-cli.md as it stands there, and what goes wrong with others."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from forwards import echo, serving
from nodes import EMBEDDED, MakeUser, StartEmulator, User, ending, free_port, session_states, wait_until

from ssm_proxy.emulator import Emulator, Faults, Node, SessionDocument
from ssm_proxy.emulator.documents import Parameter
from ssm_proxy.wire.constants import SessionType

pytestmark = pytest.mark.integration
PAGE = Path(__file__).resolve().parents[2] / "docs" / "aws-cli.md"
COMMANDS = [line.removeprefix("$ ") for line in PAGE.read_text().splitlines() if line.startswith("$ ssm-proxy ")]
TASK = "ecs:prod_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-1234567890"
DATABASE = "mydb.example.us-east-2.rds.amazonaws.com"
LOG = "/var/log/amazon/ssm/amazon-ssm-agent.log"
START_TIMEOUT = 20.0
GREETING = b"hello from the destination\n"
CUSTOM = SessionDocument(
    session_type=SessionType.INTERACTIVE_COMMANDS,
    parameters={"logpath": Parameter()},
    properties={"linux": {"commands": "cat {{ logpath }}"}, "macos": {"commands": "cat {{ logpath }}"}},
)
UNKNOWN_TYPE = SessionDocument(session_type="Hologram")


@pytest.fixture
def remote() -> Iterator[int]:
    with serving(lambda connection: connection.sendall(GREETING)) as port:
        yield port


@pytest.fixture
def page_emulator(start_emulator: StartEmulator, remote: int) -> Emulator:
    """The account of the page: its nodes, its task, its document, its database."""
    hosts = {DATABASE: ("127.0.0.1", remote), "localhost": ("127.0.0.1", remote)}
    return start_emulator(
        nodes=(Node(node_id=EMBEDDED, hosts=hosts), Node(node_id=TASK, hosts=hosts, ecs_names=("web", "app"))),
        documents={"CustomCommandSessionDocument": CUSTOM, "Unknown": UNKNOWN_TYPE},
    )


@pytest.fixture
def page_user(page_emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(page_emulator)


def adapted(line: str, local: int, remote: int, log: Path) -> list[str]:
    """Give a command of the page with ports and a file that can be had here, and nothing else changed."""
    line = line.replace(LOG, str(log)).replace("~/.local/bin", str(log.parent))
    line = re.sub(r'("localPortNumber":\[|localPortNumber=)"\d+"', rf'\g<1>"{local}"', line)
    line = re.sub(r'("portNumber":\[|portNumber=)"80(80)?"', rf'\g<1>"{remote}"', line)
    line = re.sub(
        r"(forward \S+) \d+:((?:80)?80$)?", lambda match: f"{match[1]} {local}:{remote if match[2] else ''}", line
    )
    return shlex.split(line)


@contextlib.contextmanager
def running(user: User, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, env=user.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        with process:
            pass


def wait_for_listener(process: subprocess.Popen[bytes], local: int) -> str:
    """Read standard error up to the line that tells where it listens."""
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        text = b""
        while f"127.0.0.1:{local} -> ".encode() not in text or not text.endswith(b"\n"):
            assert selector.select(START_TIMEOUT), text
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, text
            text += piece
    return text.decode()


def sessions_end(emulator: Emulator, count: int = 1) -> None:
    """Wait for the end of all sessions: a process that a signal ends waits for that, but not for a slow service."""
    wait_until(lambda: session_states(emulator) == ["Terminated"] * count, "the session has ended")


def received(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        data = b""
        while piece := connection.recv(4096):
            data += piece
        return data


def test_the_page_has_each_kind() -> None:
    text = "\n".join(COMMANDS)
    assert len(COMMANDS) >= 12
    for name in ("start-session", "shell", "exec", "forward", "plugin"):
        assert f"ssm-proxy {name} " in text
    # What stands beside the AWS CLI's command is that command.
    lines = PAGE.read_text().splitlines()
    for line in lines:
        if line.startswith("$ aws ssm start-session"):
            assert line.replace("aws ssm", "ssm-proxy") in lines


@pytest.mark.parametrize("line", [each for each in COMMANDS if "ocalPort" in each or " forward " in each])
def test_a_port_of_the_page(line: str, page_emulator: Emulator, page_user: User, remote: int, tmp_path: Path) -> None:
    local = free_port()
    with running(page_user, adapted(line, local, remote, tmp_path)) as process:
        told = wait_for_listener(process, local)
        assert (f"Port {local} opened" in told) == (" start-session " in line)
        assert [received(local) for _ in range(3)] == [GREETING] * 3
        process.send_signal(signal.SIGINT)
        assert ending(process) == (130, "")
    sessions_end(page_emulator)


@pytest.mark.parametrize("line", [each for each in COMMANDS if each.endswith(EMBEDDED)])
def test_a_shell_of_the_page(line: str, page_emulator: Emulator, page_user: User) -> None:
    done = subprocess.run(
        shlex.split(line), env=page_user.environment, input=b"echo $((40 + 2))-it\n", capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\n42-it\r\n" in done.stdout
    sessions_end(page_emulator)


@pytest.mark.parametrize("line", [each for each in COMMANDS if "logpath" in each or " exec " in each])
def test_a_command_of_the_page(
    line: str, page_emulator: Emulator, page_user: User, tmp_path: Path, remote: int
) -> None:
    """The customer's document of the page, which has a terminal, and our own way."""
    log = tmp_path / "agent.log"
    log.write_text("one line of a log\n")
    done = subprocess.run(
        adapted(line, 0, remote, log),
        env=page_user.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    expected = b"one line of a log\n" if " exec " in line else b"one line of a log\r\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")
    sessions_end(page_emulator)


def test_the_plugin_of_the_page_is_installed(page_user: User, tmp_path: Path) -> None:
    (line,) = [each for each in COMMANDS if "--install" in each]
    done = subprocess.run(
        adapted(line, 0, 0, tmp_path / "log"), env=page_user.environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    version = subprocess.run([tmp_path / "session-manager-plugin", "--version"], capture_output=True, timeout=60)
    assert re.fullmatch(rb"\d+(\.\d+){3}\n", version.stdout)


def test_the_proxy_command_of_the_page(user: User) -> None:
    (line,) = re.findall(r"^ProxyCommand .*start-session.*$", PAGE.read_text(), re.MULTILINE)
    option = line.replace("ProxyCommand ", "ProxyCommand=", 1)
    assert user.output("cat", "-o", option, data=b"x" * 100_000) == b"x" * 100_000
    assert user.ssh("exit 5", "-o", option).returncode == 5


# --- what else it does ----------------------------------------------------------------------------------------------


def start_session(user: User, *arguments: str, target: str = EMBEDDED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssm-proxy", "start-session", "--target", target, *arguments],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def port_arguments(local: int | str, remote: int) -> list[str]:
    parameters = f"portNumber={remote},localPortNumber={local}"
    return ["--document-name", "AWS-StartPortForwardingSession", "--parameters", parameters]


def test_parameters_from_a_file(page_user: User, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("from a file\n")
    (tmp_path / "p.json").write_text('{"logpath": ["%s"]}' % (tmp_path / "log"))
    arguments = ["--document-name", "CustomCommandSessionDocument", "--parameters", f"file://{tmp_path / 'p.json'}"]
    done = start_session(page_user, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from a file\n", "")


def test_the_reason_is_in_the_history(page_emulator: Emulator, page_user: User) -> None:
    command = "command=true"
    arguments = [
        "--document-name",
        "AWS-StartNonInteractiveCommand",
        "--parameters",
        command,
        "--reason",
        "ticket 4711",
    ]
    assert start_session(page_user, *arguments).returncode == 0
    environment = page_emulator.environment()
    client = boto3.client(
        "ssm",
        endpoint_url=page_emulator.endpoint_url,
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    (session,) = client.describe_sessions(State="History")["Sessions"]
    assert session["Reason"] == "ticket 4711"


def test_both_streams_of_a_command_are_told_apart_and_its_status_is_ours(
    start_emulator: StartEmulator, new_user: MakeUser
) -> None:
    linux = {"commands": "sh -c 'echo out; echo err >&2; exit 9'", "separateOutputStream": True}
    document = SessionDocument(
        session_type=SessionType.NON_INTERACTIVE_COMMANDS, properties={"linux": linux, "macos": linux}
    )
    user = new_user(start_emulator(documents={"Apart": document}))
    done = start_session(user, "--document-name", "Apart")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_session_too(number: int, page_emulator: Emulator, page_user: User, remote: int) -> None:
    local = free_port()
    command = ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, remote)]
    with running(page_user, command) as process:
        wait_for_listener(process, local)
        process.send_signal(number)
        assert ending(process) == (128 + number, "")
    sessions_end(page_emulator)


def test_connections_live_on_while_the_websocket_is_cut(page_emulator: Emulator, page_user: User) -> None:
    local = free_port()
    with serving(echo) as remote:
        command = ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, remote)]
        with running(page_user, command) as process:
            wait_for_listener(process, local)
            with socket.create_connection(("127.0.0.1", local), 30) as connection:
                for manner in ("reset", "fin", "close-1001"):
                    connection.sendall(b"before")
                    assert connection.recv(6, socket.MSG_WAITALL) == b"before"
                    assert page_emulator.drop_connections("client", manner) == 1
                    connection.sendall(b"after.")
                    assert connection.recv(6, socket.MSG_WAITALL) == b"after."
            process.send_signal(signal.SIGINT)
            assert ending(process) == (130, "")


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--parameters", "portNumber=[80"], 2, "portNumber=[80"),
        (["--parameters", '{"portNumber": "80"'], 2, "error"),
        (["--parameters", "file:///does/not/exist"], 2, "/does/not/exist"),
        (["--reason", ""], 2, "1 to 256 characters"),
        (["--reason", "x" * 257], 2, "1 to 256 characters"),
        (["--document-name", "Nothing"], 5, "the session document 'Nothing' cannot be used"),
        (["--document-name", "AWS-StartSSHSession", "--parameters", "nonsense=1"], 5, "nonsense"),
        (["--document-name", "AWS-StartPortForwardingSession", "--parameters", "portNumber=99999"], 5, "portNumber"),
        (["--document-name", "Unknown"], 7, "not supported"),
    ],
)
def test_bad_input_has_its_message_and_its_status(
    arguments: list[str], status: int, text: str, page_user: User
) -> None:
    done = start_session(page_user, *arguments)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.startswith("ssm-proxy: error: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_that_is_not_there(page_user: User) -> None:
    done = start_session(page_user, target="i-00000000000000000")
    assert (done.returncode, done.stdout) == (4, "")
    assert "not connected" in done.stderr


def test_a_port_in_use(page_emulator: Emulator, page_user: User, remote: int) -> None:
    with serving(echo) as taken:
        done = start_session(page_user, *port_arguments(taken, remote))
    assert (done.returncode, done.stdout) == (10, "")
    assert f"cannot listen on 127.0.0.1:{taken}" in done.stderr
    assert "localPortNumber" in done.stderr
    sessions_end(page_emulator)


def test_a_host_that_is_denied(page_emulator: Emulator, page_user: User) -> None:
    document = "AWS-StartPortForwardingSessionToRemoteHost"
    parameters = "host=169.254.169.254,portNumber=80"
    done = start_session(page_user, "--document-name", document, "--parameters", parameters)
    assert (done.returncode, done.stdout) == (10, "")
    assert "Forwarding to IP address 169.254.169.254 is forbidden." in done.stderr


def test_a_forwarded_port_that_times_out_was_not_refused(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    user = new_user(emulator)
    local = free_port()
    with serving(echo) as remote:
        command = ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, remote)]
        with running(user, command) as process:
            wait_for_listener(process, local)
            with socket.create_connection(("127.0.0.1", local), 30) as connection:
                connection.sendall(b"works")
                assert connection.recv(5, socket.MSG_WAITALL) == b"works"
            emulator.set_faults(Faults(idle_timeout_s=0.5))  # now: there may be more than that before
            status, errors = ending(process, within=20)
    assert status == 9
    assert "the service ended the session" in errors
    assert "due to inactivity" in errors


def test_a_refused_connection_is_told_and_the_others_go_on(page_user: User) -> None:
    local, closed = free_port(), free_port()
    command = ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, closed)]
    with running(page_user, command) as process:
        wait_for_listener(process, local)
        with contextlib.suppress(ConnectionResetError):
            assert received(local) == b""
        with serving(echo, closed), socket.create_connection(("127.0.0.1", local), 30) as connection:
            connection.sendall(b"now")
            assert connection.recv(3, socket.MSG_WAITALL) == b"now"
        process.send_signal(signal.SIGINT)
        status, errors = ending(process)
    assert status == 130
    assert "refused" in errors


# --- what surrounds it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [(f"start-session -v --target {EMBEDDED}", 2), (f"shell -v {EMBEDDED}", 2), (f"exec -v {EMBEDDED} true", 255)],
)
def test_a_closed_descriptor_never_becomes_a_socket_of_ours(
    closed: str, command: str, status: int, page_emulator: Emulator, page_user: User
) -> None:
    done = subprocess.run(
        ["sh", "-c", f"ssm-proxy {command} {closed}"],
        env=page_user.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == status
    assert page_emulator.sessions() == []


def test_a_full_disk_is_an_error(page_emulator: Emulator, page_user: User) -> None:
    for command in (
        f"exec {EMBEDDED} echo x",
        f"start-session --target {EMBEDDED} --document-name "
        "AWS-StartNonInteractiveCommand --parameters command='echo x'",
    ):
        done = subprocess.run(
            ["sh", "-c", f"ssm-proxy {command} > /dev/full"], env=page_user.environment, capture_output=True, timeout=30
        )
        assert done.returncode in (1, 255)
        assert b"cannot be written" in done.stderr
        assert b"No space left" in done.stderr
    sessions_end(page_emulator, 2)


def test_a_command_that_says_nothing_ends_well(page_user: User) -> None:
    done = start_session(page_user, "--document-name", "AWS-StartInteractiveCommand", "--parameters", "command=true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_credential_programs_see_nothing_of_what_is_piped_in(
    emulator: Emulator, new_user: MakeUser, tmp_path: Path
) -> None:
    environment = emulator.environment()
    thief = tmp_path / "thief"
    thief.write_text(
        "#!/bin/sh\nhead -c 10 > " + str(tmp_path / "stolen") + "\n"
        f"""echo '{{"Version": 1, "AccessKeyId": "{environment["AWS_ACCESS_KEY_ID"]}", "SecretAccessKey": """
        f""""{environment["AWS_SECRET_ACCESS_KEY"]}"}}'\n"""
    )
    thief.chmod(0o755)
    user = new_user(
        emulator, environment={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "thief"}
    )
    (user.folder / "aws_config").write_text(f"[profile thief]\ncredential_process = {thief}\n")
    variables = {name: value for name, value in user.environment.items() if value}
    (line,) = re.findall(r"^ProxyCommand .*start-session.*$", PAGE.read_text(), re.MULTILINE)
    done = subprocess.run(
        user.command("ssh", "-o", line.replace("ProxyCommand ", "ProxyCommand=", 1), user.host, "echo works"),
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, b"works\n"), done.stderr
    assert (tmp_path / "stolen").read_bytes() == b""


def test_ctrl_c_again_and_again_ends_in_one_way(page_emulator: Emulator, page_user: User, remote: int) -> None:
    local = free_port()
    command = ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, remote)]
    with running(page_user, command) as process:
        wait_for_listener(process, local)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert ending(process) == (130, "")
    sessions_end(page_emulator)


def test_sigquit_ends_the_session_too(page_emulator: Emulator, page_user: User, remote: int) -> None:
    local = free_port()
    with running(
        page_user, ["ssm-proxy", "start-session", "--target", EMBEDDED, *port_arguments(local, remote)]
    ) as process:
        wait_for_listener(process, local)
        process.send_signal(signal.SIGQUIT)
        assert ending(process) == (128 + signal.SIGQUIT, "")
    sessions_end(page_emulator)
