"""The options of ``list`` that do not go together."""

from __future__ import annotations

import pytest

from ssm_proxy.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tag", "=x"], "is not a tag"),
        (["--tag", ""], "is not a tag"),
        (["--tag", "k" * 129], "is not a tag"),
        (["--tag", "k=" + "v" * 257], "is not a tag"),
        (["--tag", "k=\x1b[2J"], "is not a tag"),
        (["--list"], "for Ansible"),
        (["--host", "i-0", "--json"], "for Ansible"),
        (["--all", "--format", "ansible-inventory"], "nodes that are online"),
    ],
)
def test_what_cannot_be(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert message in errors
    assert "\x1b" not in errors
    assert "hint: " in errors
