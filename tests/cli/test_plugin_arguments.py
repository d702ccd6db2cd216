"""``ssm-proxy plugin``: its arguments, its other answers, and the launcher that stands under the plugin's name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssm_proxy.cli.commands.plugin import VARIABLE, PluginCall, install, read_call
from ssm_proxy.cli.main import main
from ssm_proxy.errors import UsageError

TOKEN = "AAEA-secret-token"
RESPONSE = {
    "SessionId": "alice-0a1b2c3d4e5f67890",
    "StreamUrl": "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/alice-0a1b2c3d4e5f67890",
    "TokenValue": TOKEN,
}
REQUEST = {"Target": "i-0123456789abcdef0", "DocumentName": "AWS-StartSSHSession", "Parameters": {"portNumber": ["22"]}}
ENDPOINT = "https://ssm.eu-west-1.amazonaws.com"
WORDS = (json.dumps(RESPONSE), "eu-west-1", "StartSession", "work", json.dumps(REQUEST), ENDPOINT)


def changed(position: int, word: str) -> list[str]:
    return [*WORDS[:position], word, *WORDS[position + 1 :]]


def check_whole(call: PluginCall) -> None:
    assert call.started.session_id == RESPONSE["SessionId"]
    assert call.started.stream_url == RESPONSE["StreamUrl"]
    assert call.started.token.reveal() == TOKEN
    assert (call.region, call.profile, call.target) == ("eu-west-1", "work", "i-0123456789abcdef0")
    assert call.endpoint_url == ENDPOINT


# What the AWS CLI says


def test_the_response_as_an_argument() -> None:
    check_whole(read_call(WORDS, {}))


@pytest.mark.parametrize("name", [VARIABLE, VARIABLE + "_1"])
def test_the_response_in_a_variable_which_is_taken_away(name: str) -> None:
    environment = {name: WORDS[0], "PATH": "/bin"}
    check_whole(read_call(changed(0, name), environment))
    assert environment == {"PATH": "/bin"}


def test_an_old_cli_gives_three_arguments() -> None:
    call = read_call(WORDS[:3], {})
    assert (call.started.session_id, call.region) == (RESPONSE["SessionId"], "eu-west-1")
    assert (call.profile, call.target, call.endpoint_url) == (None, "", None)


def test_no_profile_is_an_empty_argument_and_a_new_cli_may_say_more() -> None:
    assert read_call(changed(3, ""), {}).profile is None
    check_whole(read_call([*WORDS, "whatever comes"], {}))


def test_ecs_writes_its_members_otherwise_and_gives_an_endpoint_that_is_not_ours() -> None:
    session_id = "ecs-execute-command-0123456789abcdef0"
    response = {"sessionId": session_id, "streamUrl": RESPONSE["StreamUrl"], "tokenValue": TOKEN}
    request = {"Target": "ecs:prod_0123_4567"}
    words = [json.dumps(response), "eu-west-1", "StartSession", "", json.dumps(request), "https://ecs.eu-west-1.x"]
    call = read_call(words, {})
    assert (call.started.session_id, call.started.token.reveal()) == (session_id, TOKEN)
    assert (call.target, call.endpoint_url) == ("ecs:prod_0123_4567", None)


@pytest.mark.parametrize("name", RESPONSE)
@pytest.mark.parametrize("value", [None, "", 5, ["x"], "absent"])
def test_a_member_of_the_response_is_missing(name: str, value: object) -> None:
    response = {key: each for key, each in (RESPONSE | {name: value}).items() if each != "absent"}
    with pytest.raises(UsageError) as caught:
        read_call(changed(0, json.dumps(response)), {})
    assert caught.value.message == f"the response has no {name}"


MALFORMED = [
    "",
    "{",
    "[]",
    "null",
    '"x"',
    "5",
    "{'SessionId': 'x'}",
    "[" * 100_000,
    f'{{"TokenValue": "{TOKEN}"',
    "\x00",
]


@pytest.mark.parametrize(
    "words",
    [
        WORDS[:1],
        WORDS[:2],
        WORDS[:4],
        WORDS[:5],
        *(changed(0, text) for text in MALFORMED),
        *(changed(4, text) for text in MALFORMED),
        changed(0, VARIABLE),
        changed(0, VARIABLE + "_GONE"),
        changed(1, ""),
        changed(2, "ResumeSession"),
        changed(2, ""),
        changed(4, "{}"),
        changed(4, '{"Target": ""}'),
        changed(4, '{"Target": 5}'),
        changed(5, ""),
        changed(5, "ssm.eu-west-1.amazonaws.com"),
        changed(5, "ftp://ssm"),
        changed(5, "https://"),
        changed(5, "https://[x"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_anything_else_is_an_error_with_status_2_and_shows_no_token(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", *words]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ssm-proxy: error: ")
    assert TOKEN not in captured.err
    assert "Traceback" not in captured.err


# Without a session


def test_the_version_is_one_that_the_aws_cli_accepts(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin", "--version"]) == 0
    captured = capfd.readouterr()
    # Below 1.2.497 it hands the token over for everybody to see, below 1.2.764 it warns.
    assert re.fullmatch(r"\d+(\.\d+){3}\n", captured.out)
    assert tuple(map(int, captured.out.split("."))) > (1, 2, 764, 0)
    assert captured.err == ""


def test_without_arguments_it_says_that_it_works_and_leaves_standard_output_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["plugin"]) == 0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


# Under the plugin's name


def run_program(program: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [program, *arguments], capture_output=True, text=True, timeout=30, check=False, **options
    )


def check_program(program: Path, **options: object) -> None:
    done = run_program(program, "--version", **options)
    assert (done.returncode, done.stdout.count("."), done.stderr) == (0, 3, "")
    done = run_program(program, "{}", "eu-west-1", "StartSession", "", "{}", ENDPOINT, **options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the response has no SessionId" in done.stderr


@pytest.mark.parametrize("how", ["symlink", "copy"])
def test_a_link_or_copy_of_the_program_is_the_plugin(tmp_path: Path, how: str) -> None:
    program = Path(sys.executable).with_name("ssm-proxy")
    link = tmp_path / "session-manager-plugin"
    if how == "symlink":
        link.symlink_to(program)
    else:
        link.write_bytes(program.read_bytes())
        link.chmod(0o755)
    check_program(link)


def test_the_installed_launcher_needs_neither_path_nor_current_folder(tmp_path: Path) -> None:
    launcher = install(tmp_path)
    assert launcher == tmp_path / "session-manager-plugin"
    assert launcher.stat().st_mode & 0o777 == 0o755
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("ssm_proxy", "json", "argparse", "sys"):  # what a hostile folder would hold
        (elsewhere / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    check_program(launcher, cwd=elsewhere, env={"PATH": "/nowhere"})


def test_it_may_be_installed_again_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["plugin", "--install", str(tmp_path)]) == 0
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[0] == f"ssm-proxy: installed {tmp_path}/session-manager-plugin"
    assert [each.name for each in tmp_path.iterdir()] == ["session-manager-plugin"]


def test_a_path_with_spaces_and_quotes_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "a 'quoted\" $place" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    # The link is not in the environment's own folder, so that has to be named.
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    check_program(install(tmp_path))


@pytest.mark.parametrize("kind", ["program", "symlink", "dangling symlink", "folder"])
def test_what_is_somebody_elses_is_left_alone(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "session-manager-plugin"
    if kind == "program":
        place.write_text("#!/bin/sh\necho the original\n")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(sys.executable if kind == "symlink" else tmp_path / "gone")
    before = (place.is_symlink(), place.is_dir(), place.is_file() and place.read_bytes())
    assert main(["plugin", "--install", str(tmp_path)]) == 2
    assert "is there already, and is not ours" in capfd.readouterr().err
    assert (place.is_symlink(), place.is_dir(), place.is_file() and place.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("gone", "file"):
        assert main(["plugin", "--install", str(tmp_path / folder)]) == 2
        assert "cannot be installed in" in capfd.readouterr().err


def test_the_user_is_told_what_the_path_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, original = tmp_path / "ours", tmp_path / "original"
    ours.mkdir()
    original.mkdir()
    (original / "session-manager-plugin").write_text("#!/bin/sh\n")
    (original / "session-manager-plugin").chmod(0o755)
    for path, hint in (
        ("/nowhere", f"add {ours} to the PATH"),
        (f"{original}:{ours}", f"put {ours} before {original} in the PATH"),
        (f"{ours}:{original}", None),
    ):
        monkeypatch.setenv("PATH", path)
        assert main(["plugin", "--install", str(ours)]) == 0
        lines = capfd.readouterr().err.splitlines()[1:]
        assert lines == ([] if hint is None else [f"ssm-proxy: hint: {hint}"])


def test_the_libraries_of_the_aws_cli_are_not_for_our_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "show"
    shown.write_text('#!/bin/sh\necho "${LD_LIBRARY_PATH-unset}"\n')
    shown.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shown))
    launcher = install(tmp_path)
    bundled = "/usr/local/aws-cli/v2/2.31.0/dist"
    for given, seen in (
        ({}, "unset"),
        ({"LD_LIBRARY_PATH": "/opt/own"}, "/opt/own"),
        ({"LD_LIBRARY_PATH": bundled}, ""),
        ({"LD_LIBRARY_PATH": f"{bundled}:/opt/own", "LD_LIBRARY_PATH_ORIG": "/opt/own"}, "/opt/own"),
    ):
        assert run_program(launcher, env=given).stdout == seen + "\n", given
