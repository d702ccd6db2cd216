"""``ssm-proxy plugin`` as the AWS CLI starts it, without the AWS CLI: what that would not do on demand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import pytest
from forwards import serving
from nodes import EMBEDDED, MIB, WITHIN, MakeUser, StartEmulator, User, ending, exchange, wait_until

from ssm_proxy.cli.commands import plugin
from ssm_proxy.cli.main import main
from ssm_proxy.emulator import Emulator, Node
from ssm_proxy.emulator.documents import SessionDocument
from ssm_proxy.emulator.kms import KEY_ALIAS

pytestmark = pytest.mark.integration
TASK = "0123456789abcdef0123456789abcdef"
TARGET = f"ecs:prod_{TASK}_{TASK}-11"


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator, EMBEDDED)


def client(service: str, emulator: Emulator) -> Any:
    environment = emulator.environment()
    return boto3.client(
        service,
        endpoint_url=emulator.endpoint_url,
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def start_session(emulator: Emulator, **request: Any) -> dict[str, str]:
    answer = client("ssm", emulator).start_session(Target=EMBEDDED, **request)
    return {name: answer[name] for name in ("SessionId", "StreamUrl", "TokenValue")}


def start_stream(emulator: Emulator, port: int) -> dict[str, str]:
    return start_session(emulator, DocumentName="AWS-StartSSHSession", Parameters={"portNumber": [str(port)]})


def words(emulator: Emulator, response: Mapping[str, str], target: str = EMBEDDED) -> list[str]:
    request = json.dumps({"Target": target})
    return [json.dumps(response), "us-east-1", "StartSession", "", request, emulator.endpoint_url]


def run(user: User, *arguments: str, data: bytes = b"", timeout: float = 30) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["ssm-proxy", "plugin", *arguments],
        env=user.environment,
        input=data,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def running(user: User, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["ssm-proxy", "plugin", *arguments],
        env=user.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with process:
            process.kill()


def echo_until_bye(connection: socket.socket) -> None:
    """Send back what comes, up to and with these bytes: the protocol cannot tell a server that no more will come."""
    with connection:
        last = b""
        while not last.endswith(b"bye") and (data := connection.recv(65536)):
            connection.sendall(data)
            last = (last + data)[-3:]


def session_ends(emulator: Emulator, session_id: str) -> None:
    """Wait for the end of a session: a process that a signal ends waits for that, but not for a slow service."""

    def state() -> str:
        return next(each.status for each in emulator.sessions() if each.session_id == session_id)

    wait_until(lambda: state() == "Terminated", "the session has ended")


def test_standard_output_is_what_the_node_sent_and_nothing_else(user: User, emulator: Emulator) -> None:
    data = os.urandom(MIB) + b"bye"
    with serving(echo_until_bye) as port:
        response = start_stream(emulator, port)
        with running(user, *words(emulator, response)) as process:
            assert exchange(process, data, size=len(data)) == data
            status, errors = ending(process)
    assert (status, errors) == (0, "")
    session_ends(emulator, response["SessionId"])


def test_it_resumes_at_the_endpoint_that_it_was_given(user: User, emulator: Emulator) -> None:
    with serving(echo_until_bye) as port:
        response = start_stream(emulator, port)
        # The environment names another one, which nobody listens on.
        elsewhere = {**user.environment, "AWS_ENDPOINT_URL_SSM": "http://127.0.0.1:9"}
        away = User(host=user.host, config=user.config, environment=elsewhere, mark=user.mark, folder=user.folder)
        with running(away, *words(emulator, response)) as process:
            assert exchange(process, b"before\n", until=b"before\n") == b"before\n"
            assert emulator.drop_connections() == 1
            assert exchange(process, b"after, and bye", until=b"bye") == b"after, and bye"
            status, _ = ending(process)
    assert status == 0
    session_ends(emulator, response["SessionId"])


def test_an_old_aws_cli_with_three_arguments(user: User, emulator: Emulator) -> None:
    with serving(echo_until_bye) as port:
        response = start_stream(emulator, port)
        with running(user, *words(emulator, response)[:3]) as process:
            assert exchange(process, b"good bye", until=b"bye") == b"good bye"
            assert ending(process) == (0, "")
    session_ends(emulator, response["SessionId"])


def test_a_session_of_ecs_is_resumed_and_ended_at_systems_manager(
    start_emulator: StartEmulator, new_user: MakeUser
) -> None:
    emulator = start_emulator(nodes=[Node(node_id=TARGET)])
    # A session without handshake begins with the first output.
    answer = client("ecs", emulator).execute_command(
        cluster="prod", task=TASK, command="sh -c 'echo ready; cat'", interactive=True
    )
    arguments = words(emulator, answer["session"], TARGET)
    arguments[5] = "http://127.0.0.1:9"  # of ECS, as the AWS CLI has it: good for nothing here
    with running(new_user(emulator), *arguments) as process:
        exchange(process, b"", until=b"ready\r\n")
        exchange(process, b"before\n", until=b"before\r\nbefore\r\n")
        assert emulator.drop_connections() == 1
        exchange(process, b"after\n", until=b"after\r\nafter\r\n")
        process.send_signal(signal.SIGTERM)
        status, _ = ending(process)
    assert status == 128 + signal.SIGTERM
    session_ends(emulator, answer["session"]["sessionId"])


def test_an_encrypted_session(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    encrypted = SessionDocument(session_type="Standard_Stream", inputs={"kmsKeyId": KEY_ALIAS})
    emulator = start_emulator(documents={"Encrypted": encrypted})
    user = new_user(emulator)
    response = start_session(emulator, DocumentName="Encrypted")
    done = run(user, *words(emulator, response), data=b"echo $((6 * 7))\n")
    assert (done.returncode, done.stderr) == (0, b"ssm-proxy: This session is encrypted using AWS KMS.\n")
    assert b"42" in done.stdout
    response = start_session(emulator, DocumentName="Encrypted")
    done = run(user, *words(emulator, response)[:3])
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"hint: update the AWS CLI" in done.stderr


def test_a_session_that_is_over_already(user: User, emulator: Emulator) -> None:
    response = start_stream(emulator, 22)
    client("ssm", emulator).terminate_session(SessionId=response["SessionId"])
    done = run(user, *words(emulator, response))
    assert (done.returncode, done.stdout) == (9, b"")
    assert b"ssm-proxy: error: the session to" in done.stderr
    assert response["TokenValue"].encode() not in done.stderr


def test_a_log_that_cannot_be_written_ends_the_session(user: User, emulator: Emulator) -> None:
    response = start_stream(emulator, 22)
    done = run(user, "--log-file", "/nowhere/at/all", *words(emulator, response))
    assert (done.returncode, done.stdout) == (2, b"")
    session_ends(emulator, response["SessionId"])


def test_the_log_holds_no_token(user: User, emulator: Emulator) -> None:
    log = user.folder / "log"
    with serving(echo_until_bye) as port:
        response = start_stream(emulator, port)
        with running(user, "-vvv", "--log-file", str(log), *words(emulator, response)) as process:
            assert exchange(process, b"x\n", until=b"x\n") == b"x\n"
            emulator.drop_connections()
            assert exchange(process, b"bye", until=b"bye") == b"bye"
            ending(process)
    assert response["SessionId"] in log.read_text()
    assert response["TokenValue"] not in log.read_text()


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_before_anybody_runs_the_session_ends_it(
    name: str, status: int, user: User, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP")
    before = {each: signal.getsignal(getattr(signal, each)) for each in names}
    for variable, value in user.environment.items():
        if variable.startswith("AWS_"):
            monkeypatch.setenv(variable, value)

    @contextlib.contextmanager
    def interrupted(_arguments: object) -> Iterator[None]:
        signal.raise_signal(getattr(signal, name))
        yield

    monkeypatch.setattr(plugin, "surroundings", interrupted)
    # As the AWS CLI leaves it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        response = start_stream(emulator, 22)
        assert main(["plugin", *words(emulator, response)]) == status
        assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(getattr(signal, each), handler)
    session_ends(emulator, response["SessionId"])


def test_nothing_is_left_when_the_reader_has_gone(user: User, emulator: Emulator) -> None:
    with serving(echo_until_bye) as port:
        response = start_stream(emulator, port)
        with running(user, *words(emulator, response)) as process:
            assert process.stdout is not None
            exchange(process, b"x\n", until=b"x\n")
            process.stdout.close()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it may have noticed already, and be gone
                os.write(process.stdin.fileno(), b"y\n")
            process.wait(WITHIN)
    session_ends(emulator, response["SessionId"])
