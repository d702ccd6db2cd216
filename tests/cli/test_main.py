"""The entry point: one place where errors become lines and exit statuses."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import pytest

from ssm_proxy import __version__, errors
from ssm_proxy.cli.commands import proxy
from ssm_proxy.cli.main import COMMANDS, main

Captured = pytest.CaptureFixture[str]


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(_arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(proxy, "run", run)
    return main(["proxy", "i-1"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SsmProxyError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.ConfigurationError("x"), 3),
        (errors.TargetNotConnected("x"), 4),
        (errors.AccessDenied("x"), 5),
        (errors.OpeningRefused("x", status=403), 6),
        (errors.HandshakeFailed("x"), 7),
        (errors.LocalProtocolError("x"), 1),
        (errors.EncryptionError("x"), 8),
        (errors.ChannelClosed("x"), 9),
        (errors.RemotePortRefused("x"), 10),
        (errors.CopyError("x"), 11),
    ],
)
def test_each_error_has_its_status(
    error: errors.SsmProxyError, status: int, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    assert raising(error, monkeypatch) == status
    assert capfd.readouterr() == ("", "ssm-proxy: error: x\n")


def test_an_error_is_what_why_and_what_next(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    error = errors.TargetNotConnected("'i-1' is not connected", cause="no agent", hint="start it")
    raising(error, monkeypatch)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "ssm-proxy: error: 'i-1' is not connected\nssm-proxy: cause: no agent\nssm-proxy: hint: start it\n"


def test_a_bug_is_told_without_its_text(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    monkeypatch.delenv("SSM_PROXY_DEBUG", raising=False)
    assert raising(KeyError("token-123"), monkeypatch) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "ssm-proxy: error: unexpected KeyError; this is a bug of ssm-proxy"
    assert len(err.splitlines()) == 2
    assert "token-123" not in err


def test_a_traceback_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    monkeypatch.setenv("SSM_PROXY_DEBUG", "1")
    raising(KeyError("x"), monkeypatch)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" in err


def test_ctrl_c_elsewhere_than_in_the_proxy(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    assert raising(KeyboardInterrupt(), monkeypatch) == 130
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["proxy"], ["proxy", "--prof", "x", "i-1"], ["proxy", "i-1", "22", "extra"]]
)
def test_wrong_arguments(arguments: list[str], capfd: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "usage: ssm-proxy" in err


def test_version_and_help(capfd: Captured) -> None:
    for arguments, text in (
        (["--version"], f"ssm-proxy {__version__}\n"),
        (["--help"], "ProxyCommand ssm-proxy proxy %h %p"),
        (["proxy", "--help"], "ssh -o ProxyCommand="),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        out, err = capfd.readouterr()
        assert text in out
        assert err == ""


def test_nothing_slow_is_imported_before_it_is_needed() -> None:
    slow = {"boto3", "botocore", "websocket", "ssl", "paramiko", "aiohttp", "asyncssh", "asyncio", "cryptography"}
    code = f"import sys, ssm_proxy.cli.main; print(*sorted(set(sys.modules) & {slow!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_the_command_in_use_is_loaded() -> None:
    """ssh waits while the ProxyCommand loads."""
    program = (
        "import sys; from ssm_proxy.cli.main import main\n"
        "try: main(['proxy', '--help'])\n"
        "finally: print(*(name for name in sys.modules if '.cli.commands.' in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert done.stderr.split() == ["ssm_proxy.cli.commands.proxy"]


def test_all_commands_are_in_the_help(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^    {name}( |$)", shown, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_begins_with_examples(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    _, _, after_usage = capsys.readouterr().out.partition("\n\n")
    title, *examples = after_usage.partition("\n\n")[0].splitlines()
    assert title == "examples:"
    assert len([line for line in examples if re.search(rf"\bssm-proxy {name}( |$)", line)]) >= 2


@pytest.mark.parametrize("name", ["session-manager-plugin", "session-manager-plugin.exe"])
def test_under_the_plugins_name(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/local/bin/{name}", "--version"])
    assert main() == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+\n", capsys.readouterr().out)
