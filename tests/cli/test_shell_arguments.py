"""The command lines of ``shell`` and ``exec``."""

from __future__ import annotations

import pytest

from ssm_proxy.cli.main import main, make_parser

NODE = "i-0123456789abcdef0"


@pytest.mark.parametrize(
    ("arguments", "target", "words", "on_terminal"),
    [
        (f"{NODE} uptime", NODE, ["uptime"], False),
        (f"{NODE} -- uptime", NODE, ["uptime"], False),
        (f"{NODE} ls -t --all", NODE, ["ls", "-t", "--all"], False),
        (f"{NODE} -t top -d 1", NODE, ["top", "-d", "1"], True),
        (f"-t {NODE} -- top -- x", NODE, ["top", "--", "x"], True),
        (f"--region eu-west-1 {NODE} --reason x -vv -- -odd", NODE, ["-odd"], False),
        (f"--region=eu-west-1 {NODE} ls", NODE, ["ls"], False),
        (f"{NODE}", NODE, [], False),
    ],
)
def test_where_the_command_of_exec_begins(arguments: str, target: str, words: list[str], on_terminal: bool) -> None:
    parsed = make_parser().parse_args(["exec", *arguments.split()])
    assert (parsed.target, parsed.words, parsed.on_terminal) == (target, words, on_terminal)


def test_options_in_front_of_the_command_are_ours() -> None:
    parsed = make_parser().parse_args(["exec", "-v", NODE, "--reason", "ls -l", "-v", "--document-name", "Mine", "ls"])
    assert (parsed.verbosity, parsed.reason, parsed.document_name, parsed.words) == (2, "ls -l", "Mine", ["ls"])


def test_what_exec_does_not_understand_has_its_status_of_failures(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--bogus", NODE, "ls"], [], [NODE, "--region"]):
        with pytest.raises(SystemExit) as raised:
            main(["exec", *arguments])
        assert raised.value.code == 255
        assert "usage: ssm-proxy exec" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["shell", "exec"])
def test_help_begins_with_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage, examples, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage: ssm-proxy")
    lines = examples.splitlines()
    assert lines[0] == "examples:"
    assert [line.split()[:2] for line in lines[1:]] == [["ssm-proxy", command]] * 2
    assert all(len(line) <= 100 for line in examples.splitlines())
