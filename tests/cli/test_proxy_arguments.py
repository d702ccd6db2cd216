"""``ssm-proxy proxy`` up to the first byte: arguments, the two streams, signals. Real processes where it matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssm_proxy.cli.commands.proxy import check_port, check_target
from ssm_proxy.cli.main import make_parser
from ssm_proxy.errors import TargetError, UsageError

TIMEOUT = 30
PROXY = (sys.executable, "-m", "ssm_proxy", "proxy")


def run_proxy(*arguments: str, **changes: object) -> subprocess.CompletedProcess[str]:
    options: dict[str, object] = {"capture_output": True, "text": True, "timeout": TIMEOUT, "input": ""}
    return subprocess.run([*PROXY, *arguments], **{**options, **changes})  # type: ignore[call-overload,no-any-return]


class TestHost:
    @pytest.mark.parametrize("host", ["i-0123456789abcdef0", "i-1a2b3c4d", "mi-0123456789abcdef0"])
    def test_ids_of_managed_nodes(self, host: str) -> None:
        assert check_target(host) == host

    @pytest.mark.parametrize(
        "host", ["", "web-7", "10.0.0.1", "i-", "i-1;reboot", "i-1\n", "xi-1", "I-1", "i-1.example.org", "i-\u0661"]
    )
    def test_anything_else_is_refused(self, host: str) -> None:
        with pytest.raises(TargetError) as caught:
            check_target(host)
        assert caught.value.message.isprintable()
        assert "mi-" in (caught.value.hint or "")


class TestPort:
    @pytest.mark.parametrize(("text", "port"), [("22", 22), ("1", 1), ("65535", 65535), ("0022", 22)])
    def test_numbers(self, text: str, port: int) -> None:
        assert check_port(text) == port

    @pytest.mark.parametrize("text", ["", "0", "65536", "-1", "ssh", "2 2", "22\n", "\u0662\u0662", "1e3", "9" * 5000])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            check_port(text)


def test_defaults() -> None:
    arguments = make_parser().parse_args(["proxy", "i-1"])
    assert (arguments.port, arguments.document_name, arguments.verbosity) == ("22", "AWS-StartSSHSession", 0)
    for name in ("profile", "region", "reason", "endpoint_url", "stream_endpoint_url", "log_file"):
        assert getattr(arguments, name) is None


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["web-7"], 4, "'web-7' is not the id of a managed node"),
        (["i-1", "ssh"], 2, "'ssh' is not a port"),
        (["i-1", "--log-file", "/nonexistent/log"], 2, "the log file '/nonexistent/log' cannot be written"),
    ],
)
def test_refusals_are_told_on_standard_error_alone(arguments: list[str], status: int, text: str) -> None:
    done = run_proxy(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == f"ssm-proxy: error: {text}"
    assert 1 <= len(lines) <= 3


def test_the_log_file_tells_why_and_is_for_its_owner_only(tmp_path: Path) -> None:
    """With ControlPersist, ssh throws standard error away."""
    log = tmp_path / "log"
    done = run_proxy("i-1", "--log-file", str(log), "--stream-endpoint-url", "nonsense")
    assert done.returncode == 3
    assert all(line in log.read_text() for line in done.stderr.splitlines())
    assert "nonsense" in done.stderr
    assert log.stat().st_mode & 0o077 == 0


def test_a_terminal_is_shown_the_lines_for_ssh_config() -> None:
    controller, terminal = os.openpty()
    done = run_proxy("i-0123456789abcdef0", capture_output=False, stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    assert done.returncode == 2
    assert "here is a terminal" in done.stderr
    assert "    Host i-* mi-*\n        ProxyCommand ssm-proxy proxy %h %p\n" in done.stderr
    assert "ssh USER@i-0123456789abcdef0" in done.stderr
    os.set_blocking(controller, False)
    with pytest.raises(OSError, match=r"Input/output error|temporarily unavailable"):  # the terminal was shown nothing
        os.read(controller, 100)
    os.close(controller)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_a_closed_stream(closed: str) -> None:
    command = f'exec "$@" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, "sh", *PROXY, "i-1"], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "ssm-proxy: error: standard input or output is closed"
    assert done.stdout == ""


CLAIM = """
import os, subprocess, sys
from ssm_proxy.cli.streams import claim_streams
input_fd, output_fd = claim_streams()
print("a library prints")
os.write(1, b"a library writes\\n")
subprocess.run([sys.executable, "-c", "import sys; print('a child prints', repr(sys.stdin.read()))"])
print("read:", repr(sys.stdin.read()))
sys.stdout.flush()
assert not os.get_inheritable(input_fd) and not os.get_inheritable(output_fd)
os.write(output_fd, b"\\r\\n\\x00\\xff" + os.read(input_fd, 100))
"""


@pytest.mark.parametrize("has_stderr", [True, False])
def test_stdout_is_the_tunnels_alone_whatever_anybody_prints(has_stderr: bool) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@"' + ("" if has_stderr else " 2>&-"), "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", CLAIM], input=b"\r\n\x1a", capture_output=True, timeout=TIMEOUT, check=False
    )
    assert done.stdout == b"\r\n\x00\xff\r\n\x1a"
    if has_stderr:
        assert done.returncode == 0
        for text in (b"a library prints", b"a library writes", b"a child prints ''", b"read: ''"):
            assert text in done.stderr


SIGNALS = """
import signal
from ssm_proxy.cli.commands.proxy import _TERMINAL_SIGNALS
from ssm_proxy.transport.signal_watch import ignore_signals
ignore_signals(_TERMINAL_SIGNALS)
print(*[name for name in ("SIGINT", "SIGQUIT", "SIGTSTP", "SIGTERM", "SIGHUP")
        if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN])
"""


def test_signals_of_the_terminal_are_ignored() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout.split() == ["SIGINT", "SIGQUIT", "SIGTSTP"]


def test_a_signal_counts_while_credentials_are_fetched(tmp_path: Path) -> None:
    """No tunnel exists yet that it could be passed to."""
    asked = tmp_path / "asked"
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = eu-west-1\ncredential_process = /bin/sh -c 'touch {asked}; sleep 20'\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, "-m", "ssm_proxy", "proxy", "--endpoint-url", "http://127.0.0.1:9", "i-1"],
        env=environment | {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": os.devnull},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while not asked.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.terminate()
            assert process.wait(10) == 128 + signal.SIGTERM
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the credential program too


def test_modules_of_the_proxy_path_import_without_posix() -> None:
    """What Windows does not have must not be touched by an import."""
    code = """
import os, select, signal, socket, sys
for module, names in ((signal, ("SIGHUP", "SIGQUIT", "SIGTSTP")), (select, ("poll",)),
                      (os, ("set_blocking", "get_blocking", "openpty"))):
    for name in names:
        delattr(module, name)
for name in ("fcntl", "termios", "pty", "tty", "pwd", "grp", "resource"):
    sys.modules[name] = None
import ssm_proxy.cli.main, ssm_proxy.tunnel
from ssm_proxy.transport.poller import make_poller
from ssm_proxy.cli.commands.proxy import _ENDING_SIGNALS, _TERMINAL_SIGNALS
from ssm_proxy.transport.signal_watch import ignore_signals
ignore_signals(_TERMINAL_SIGNALS + _ENDING_SIGNALS)
print(type(make_poller()).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["SelectPoller"]


def test_no_secret_can_be_given_as_an_argument() -> None:
    """Arguments are shown to everybody on the machine by ps."""
    text = make_parser().parse_args(["proxy", "i-1"]).__dict__
    assert not [name for name in text if any(word in name for word in ("token", "key", "secret", "password"))]
