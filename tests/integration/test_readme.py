"""Every command that the README shows, in the order in which it shows them, in a fresh copy and a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssm_proxy.cli.messages import SSH_CONFIG_LINES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# The whole test suite cannot run inside itself; that the command passes it is seen by whoever runs this.
IN_PLACE_OF = {"scripts/test": "scripts/test -q -p no:cacheprovider tests/unit/test_errors.py"}
PAGE = "<h1>hello</h1>\n"
TOOLS = ("ssh", "scp", "sftp", "rsync", "git")


@dataclass(frozen=True)
class Newcomer:
    """Somebody who has cloned the project and follows its README."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        # Output goes to a file: what a command leaves running in the background must not hold a pipe open.
        output = self.folder / "output"
        with output.open("wb") as file:
            done = subprocess.run(
                ["sh", "-c", IN_PLACE_OF.get(command, command)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
        return subprocess.CompletedProcess(command, done.returncode, output.read_text(errors="replace"))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if tracked.returncode != 0:
        pytest.skip("git does not know this checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_text(PAGE)
    home = tmp_path_factory.mktemp("home")
    subprocess.run(["git", "init", "-q", "--bare", str(home / "project.git")], check=True)
    with emulated(home) as emulator:
        config = home / ".ssh" / "config"
        config.parent.mkdir(mode=0o700)
        config.write_text(
            f"IdentityFile {emulator['identity_file']}\nIdentitiesOnly yes\nBatchMode yes\n"
            f"UserKnownHostsFile {home / 'known_hosts'}\nStrictHostKeyChecking accept-new\n" + ssh_config_of_readme()
        )
        # ssh looks up the home folder in the password database and ignores HOME: so it is told where its file is.
        programs = tmp_path_factory.mktemp("programs")
        for tool in ("ssh", "scp", "sftp"):
            (programs / tool).write_text(f'#!/bin/sh\nexec {shutil.which(tool)} -F {config} "$@"\n')
            (programs / tool).chmod(0o755)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTEST_", "COV_"))},
            **emulator["environment"],
            "HOME": str(home),
            "PYTHON": sys.executable,
            "PATH": os.pathsep.join([str(folder / ".venv" / "bin"), str(programs), os.environ["PATH"]]),
            "GIT_SSH_COMMAND": str(programs / "ssh"),
        }
        yield Newcomer(folder, environment)


@contextmanager
def emulated(home: Path) -> Iterator[dict[str, Any]]:
    """The emulator as a process, so that its nodes have a home of their own."""
    command = [sys.executable, "-m", "ssm_proxy", "emulator", "--json", "--agent-pacing", "none"]
    command += ["--remote-host", "db.internal=127.0.0.1"]
    with subprocess.Popen(command, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(20)


def ssh_config_of_readme() -> str:
    match = re.search(r"```\n# ~/.ssh/config\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_the_readme_shows_the_lines_that_the_program_shows() -> None:
    assert [line.strip() for line in ssh_config_of_readme().splitlines()] == [
        line.strip() for line in SSH_CONFIG_LINES.splitlines()
    ]


def test_there_are_commands_to_run() -> None:
    assert "scripts/demo" in COMMANDS
    assert "scripts/test" in COMMANDS


def test_the_emulators_python_example_works() -> None:
    given: list[dict[str, str]] = []
    _, example = PYTHON
    exec(example, {"run_my_tests": lambda env: given.append(env)})
    assert given[0]["AWS_ENDPOINT_URL_SSM"].startswith("http://127.0.0.1:")


def test_the_python_api_example_works(newcomer: Newcomer) -> None:
    (newcomer.folder / "big.tar").write_bytes(os.urandom(3_000_000))
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[0]],
        cwd=newcomer.folder,
        env=newcomer.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "done_bytes=3000000" in done.stdout
    home = Path(newcomer.environment["HOME"])
    assert (home / "big.tar").read_bytes() == (newcomer.folder / "big.tar").read_bytes()


def test_every_command_works_in_its_order(newcomer: Newcomer) -> None:
    # The demo comes first for a newcomer too: it makes the environment that the other commands are found in.
    for command in ["scripts/demo", *COMMANDS]:
        began = time.monotonic()
        done = newcomer.run(command)
        print(f"$ {command}\n{done.stdout}({time.monotonic() - began:.1f} s)")
        assert done.returncode == 0, f"{command}\n{done.stdout}"
    for name in ("site-by-scp/index.html", "site-by-rsync/index.html", "site-by-cp/index.html", "index.html"):
        assert (Path(newcomer.environment["HOME"]) / name).read_text() == PAGE
    assert (newcomer.folder / "project" / ".git").is_dir()
    assert (newcomer.folder / "index.html").read_text() == PAGE
