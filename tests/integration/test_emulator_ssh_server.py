"""The embedded SSH server with the real programs, reached directly: what fails here is not the data channel."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import WITHIN, reserved_port, wait_until

from bench.processes import is_running
from ssm_proxy.emulator import Emulator

NODE = "i-0123456789abcdef0"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with Emulator() as emulator:
        path = tmp_path_factory.mktemp("ssh") / "config"
        host, port = emulator.ssh_address
        path.write_text(
            f"Host {NODE}\n HostName {host}\n Port {port}\n HostKeyAlias {NODE}\n User anyone\n BatchMode yes\n"
            f" IdentitiesOnly yes\n IdentityFile {emulator.identity_file}\n StrictHostKeyChecking yes\n"
            f" UserKnownHostsFile {emulator.known_hosts}\n GlobalKnownHostsFile none\n"
        )
        yield path


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    path = tmp_path / "random"
    path.write_bytes(random.Random(5).randbytes(3_000_000))
    return path


def run(*arguments: str | Path, **more: object) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL, "timeout": WITHIN} | more
    if "input" in more:
        options.pop("stdin")
    return subprocess.run(arguments, capture_output=True, check=False, **options)  # type: ignore[call-overload]


def ssh(config: Path, *arguments: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    return run("ssh", "-F", config, NODE, *arguments, **more)


def test_output_errors_and_exit_status(config: Path) -> None:
    done = ssh(config, "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_the_end_of_input_reaches_the_command(config: Path, random_file: Path) -> None:
    data = random_file.read_bytes()
    done = ssh(config, "cat; echo end >&2", input=data)
    assert (done.returncode, done.stderr) == (0, b"end\n")
    assert done.stdout == data


def test_death_by_signal(config: Path) -> None:
    assert ssh(config, "kill -KILL $$").returncode == 255


def test_commands_that_do_not_read_their_input_end_all_the_same(config: Path) -> None:
    assert ssh(config, "exec true", input=bytes(5_000_000)).returncode == 0


def test_an_interactive_shell_has_a_terminal(config: Path) -> None:
    done = ssh(config, "-tt", input=b"tty; stty size; exit 4\n")
    assert done.returncode == 4
    assert b"/dev/" in done.stdout
    done = ssh(config, "-tt", "test -t 0 && test -t 1 && echo yes")
    assert b"yes" in done.stdout


def test_a_terminals_last_output_waits_for_a_slow_reader(config: Path) -> None:
    command = ("ssh", "-F", config, NODE, "-tt", "stty -opost; seq 600000")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as reader:
        assert reader.stdout is not None
        output = bytearray()
        while piece := reader.stdout.read1(4096):  # type: ignore[attr-defined]
            output += piece
            time.sleep(0.0005)  # slower than the command
        assert output == b"".join(b"%d\n" % number for number in range(1, 600_001))
    assert reader.returncode == 0


def test_a_shell_without_a_terminal(config: Path) -> None:
    done = ssh(config, "-T", input=b"echo in the shell\nexit 5\n")
    assert (done.returncode, done.stdout) == (5, b"in the shell\n")


def test_a_client_that_goes_takes_its_command_along(config: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    client = subprocess.Popen(["ssh", "-F", config, NODE, f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 60"])
    try:
        wait_until(mark.exists, "the command runs")
        pid = int(mark.read_text())
        os.kill(pid, 0)
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    wait_until(lambda: not is_running(pid), "the command ends with its client")


@pytest.mark.parametrize("protocol", ["-s", "-O"], ids=["sftp", "scp"])
def test_scp(config: Path, tmp_path: Path, random_file: Path, protocol: str) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    empty = tmp_path / "empty"
    empty.touch()
    for source in (random_file, empty):
        assert run("scp", protocol, "-q", "-F", config, source, f"{NODE}:{there}").returncode == 0
        assert run("scp", protocol, "-q", "-F", config, f"{NODE}:{there}", back).returncode == 0
        assert filecmp.cmp(source, back, shallow=False)
    assert run("scp", protocol, "-q", "-F", config, f"{NODE}:{tmp_path}/absent", back).returncode != 0


def test_sftp(config: Path, tmp_path: Path, random_file: Path) -> None:
    batch = f"put {random_file} {tmp_path}/there\nget {tmp_path}/there {tmp_path}/back\nls {tmp_path}\n".encode()
    done = run("sftp", "-b", "-", "-F", config, NODE, input=batch)
    assert done.returncode == 0, done.stderr
    assert filecmp.cmp(random_file, tmp_path / "back", shallow=False)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync(config: Path, tmp_path: Path, random_file: Path) -> None:
    (tmp_path / "from").mkdir()
    shutil.copy(random_file, tmp_path / "from" / "a")
    (tmp_path / "from" / "empty").touch()
    shell = f"ssh -F {config}"
    for _ in range(2):
        done = run("rsync", "-a", "-e", shell, f"{tmp_path}/from/", f"{NODE}:{tmp_path}/to/")
        assert done.returncode == 0, done.stderr
    assert not filecmp.dircmp(tmp_path / "from", tmp_path / "to").diff_files
    assert filecmp.cmp(random_file, tmp_path / "to" / "a", shallow=False)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git(config: Path, tmp_path: Path, random_file: Path) -> None:
    environment = os.environ | {"GIT_SSH_COMMAND": f"ssh -F {config}", "GIT_CONFIG_GLOBAL": os.devnull}
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main")
    first, second, url = tmp_path / "first", tmp_path / "second", f"ssh://{NODE}{tmp_path}/bare"

    def git(*arguments: str | Path) -> None:
        done = run("git", *identity, *arguments, env=environment)
        assert done.returncode == 0, done.stderr

    git("init", "-q", "--bare", tmp_path / "bare")
    git("clone", "-q", url, first)
    shutil.copy(random_file, first / "file")
    git("-C", first, "add", "file")
    git("-C", first, "commit", "-q", "-m", "x")
    git("-C", first, "push", "-q", "origin", "HEAD:main")
    git("clone", "-q", "-b", "main", url, second)
    assert filecmp.cmp(random_file, second / "file", shallow=False)


def connected(port: int) -> socket.socket | None:
    with contextlib.suppress(ConnectionRefusedError):
        return socket.create_connection(("127.0.0.1", port), timeout=WITHIN)
    return None


def test_local_forwarding(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, reserved_port() as local:
        target = server.getsockname()[1]
        client = subprocess.Popen(
            ["ssh", "-F", config, "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{local}:127.0.0.1:{target}", NODE]
        )
        try:
            with wait_until(lambda: connected(local), "ssh listens") as near:
                far, _ = server.accept()
                with far:
                    near.sendall(b"there")
                    assert far.recv(5) == b"there"
                    far.sendall(b"back")
                    assert near.recv(4) == b"back"
        finally:
            client.terminate()
            client.wait()


def test_only_the_holder_of_the_key_is_let_in(config: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    text = "\n".join(line for line in config.read_text().splitlines() if "IdentityFile" not in line)
    (tmp_path / "config").write_text(f"{text}\n IdentityFile {tmp_path}/stranger\n")
    done = ssh(tmp_path / "config", "true")
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_keys_of_ones_own(tmp_path: Path) -> None:
    from ssm_proxy.emulator import EmulatorOptions

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "mine"], check=True)
    with Emulator(EmulatorOptions(authorized_keys=tmp_path / "mine.pub")) as emulator:
        assert emulator.identity_file is None
        host, port = emulator.ssh_address
        assert host == "127.0.0.1"
        options = f"-p {port} -i {tmp_path}/mine -o HostKeyAlias={NODE} -o UserKnownHostsFile={emulator.known_hosts}"
        done = run("ssh", "-F", "none", "-o", "BatchMode=yes", *options.split(), f"anyone@{host}", "echo in")
        assert done.stdout == b"in\n"
