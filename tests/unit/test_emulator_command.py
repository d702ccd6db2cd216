"""The command line of the emulator, in a process of its own where signals matter."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from emulator_peer import NODE, ssm_client

from ssm_proxy.cli.commands import emulator as command
from ssm_proxy.emulator import Emulator, EmulatorOptions, Node
from ssm_proxy.emulator.options import parse_credentials, parse_node, parse_pacing, parse_remote_host
from ssm_proxy.errors import ConfigurationError, UsageError

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

PROGRAM = (
    "import argparse, sys; from ssm_proxy.cli.commands import emulator as e;"
    "p = argparse.ArgumentParser(); e.add_parser(p.add_subparsers()); a = p.parse_args(); sys.exit(a.run(a))"
)
WITHIN = 30


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["emulator", *arguments])


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "emulator", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
            process.terminate()  # not killed: it has to take its folder with it
            process.wait(WITHIN)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_to_export_and_ends_on_a_signal(number: signal.Signals) -> None:
    with running("--json", "--tls", "--credentials", "KEY:SECRET:TOKEN", "--node", f"{NODE}=offline") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        values = json.loads(process.stdout.readline())
        environment = values["environment"]
        assert environment["AWS_ACCESS_KEY_ID"] == "KEY"
        assert environment["AWS_SESSION_TOKEN"] == "TOKEN"
        assert environment["AWS_ENDPOINT_URL_SSM"] == values["endpoint_url"]
        assert Path(environment["AWS_CA_BUNDLE"]).exists()
        assert oct(Path(values["identity_file"]).stat().st_mode & 0o777) == "0o600"
        assert values["nodes"] == []
        status = ssm_client(environment).get_connection_status(Target=NODE)["Status"]
        assert status == "notconnected"
        process.send_signal(number)
        assert process.wait(WITHIN) == 0
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
        assert not Path(values["identity_file"]).parent.exists()


def test_the_text_can_be_evaluated_by_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with Emulator() as emulator:
        command._announce(emulator, [NODE], as_json=False)
        environment = emulator.environment()
    text = capsys.readouterr().out
    for name, value in environment.items():
        assert f"export {name}={shlex.quote(value)}\n" in text
    assert f"-i {emulator_identity(text)}" in text
    assert text.rstrip().endswith("# Ctrl-C ends it")


def emulator_identity(text: str) -> str:
    return next(word for word in text.split() if word.endswith("id_ed25519"))


def test_the_conversation_is_logged_without_secrets() -> None:
    with running("--json", "-vv") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        environment = json.loads(process.stdout.readline())["environment"]
        client = ssm_client(environment)
        answer = client.start_session(Target=NODE, DocumentName="AWS-StartSSHSession")
        process.terminate()
        process.wait(WITHIN)
        log = process.stderr.read()
    assert "< StartSession 200" in log
    assert answer["SessionId"] in log
    assert answer["TokenValue"] not in log


def test_documents_of_the_account_and_the_version_of_the_agents(tmp_path: Path) -> None:
    (tmp_path / "Company-Shell.json").write_text('{"schemaVersion": "1.0", "sessionType": "Standard_Stream"}')
    with running("--json", "--documents", str(tmp_path), "--agent-version", "2.3.700.0") as process:
        assert process.stdout is not None
        client = ssm_client(json.loads(process.stdout.readline())["environment"])
        assert client.start_session(Target=NODE, DocumentName="Company-Shell")["TokenValue"]
        assert client.describe_instance_information()["InstanceInformationList"][0]["AgentVersion"] == "2.3.700.0"


def test_the_help_lists_every_option_and_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "drop_after_bytes=0" in text
    assert "--agent-pacing real|none|TIME" in text
    assert "ssm-proxy emulator --node" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("--node", "i-0=nowhere"),
        ("--node", "=x:1"),
        ("--agent-pacing", "8"),
        ("--remote-host", "db.internal=other.internal"),
        ("--fault", "lose=2"),
        ("--credentials", "KEY"),
        ("--port", "70000"),
        ("--agent-version", "3.3"),
        ("--documents", "/nowhere/Missing.json"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(arguments: tuple[str, str]) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError):
        command.run(parse(*arguments))
    assert threading.active_count() == before


def test_a_port_that_is_taken_is_reported() -> None:
    with Emulator() as emulator:
        port = int(emulator.endpoint_url.rpartition(":")[2])
        with pytest.raises(ConfigurationError) as caught, Emulator(EmulatorOptions(port=port)):
            pass
    assert "address already in use" in str(caught.value.cause)


def test_keys_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError) as caught,
        Emulator(EmulatorOptions(authorized_keys=tmp_path / "none")),
    ):
        pass
    assert "none" in str(caught.value.cause)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ssm_proxy.emulator")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("ssm_proxy.emulator", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigurationError) as caught:
        command.run(parse())
    assert caught.value.hint == "in the project's checkout: pip install '.[emulator]'"


def test_nothing_is_left_after_the_end() -> None:
    before = set(threading.enumerate())
    with Emulator() as emulator:
        directory = emulator.directory
        assert directory.exists()
    assert set(threading.enumerate()) == before
    assert not directory.exists()
    with pytest.raises(RuntimeError):
        emulator.endpoint_url  # noqa: B018


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("i-1", Node(node_id="i-1")),
        ("i-1=offline", Node(node_id="i-1", is_online=False)),
        ("i-1=localhost:2222", Node(node_id="i-1", ssh_address=("localhost", 2222))),
        ("i-1=[::1]:22", Node(node_id="i-1", ssh_address=("::1", 22))),
    ],
)
def test_nodes(text: str, node: Node) -> None:
    assert parse_node(text) == node


@pytest.mark.parametrize(("text", "pace_s"), [("real", 0.001), ("none", 0), ("8ms", 0.008), ("1.5s", 1.5)])
def test_pacing(text: str, pace_s: float) -> None:
    assert parse_pacing(text) == pytest.approx(pace_s)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db.internal=127.0.0.1", ("db.internal", "127.0.0.1")),
        ("db.internal=127.0.0.1:15432", ("db.internal", ("127.0.0.1", 15432))),
        ("db.internal=::1", ("db.internal", "::1")),
        ("db.internal=[::1]:15432", ("db.internal", ("::1", 15432))),
    ],
)
def test_remote_hosts(text: str, expected: object) -> None:
    assert parse_remote_host(text) == expected


@pytest.mark.parametrize("text", ["", "db", "=127.0.0.1", "db=", "db=127.0.0.1:0", "db=127.0.0.1:x", "db=[::1]:70000"])
def test_what_is_no_remote_host(text: str) -> None:
    with pytest.raises(UsageError, match="no remote host"):
        parse_remote_host(text)


def test_remote_hosts_are_known_on_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EmulatorOptions] = []

    def stop_here(options: EmulatorOptions) -> Emulator:
        seen.append(options)
        raise UsageError("far enough")

    monkeypatch.setattr("ssm_proxy.emulator.Emulator", stop_here)
    with pytest.raises(UsageError, match="far enough"):
        command.run(parse("--node", "i-1", "--node", "i-2", "--remote-host", "db.internal=127.0.0.1"))
    assert [node.hosts for node in seen[0].nodes] == [{"db.internal": "127.0.0.1"}] * 2


def test_credentials_are_never_quoted() -> None:
    credentials: Any = parse_credentials("KEY:SECRET:TO:KEN")
    assert credentials.session_token == "TO:KEN"
    with pytest.raises(UsageError) as caught:
        parse_credentials("KEYSECRET")
    assert "KEYSECRET" not in str(caught.value)
