"""What ``ssm-proxy cp`` loads: each module is a part of the time before it does anything, and it may be interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from ssm_proxy.cli.commands import cp
cp._import_paramiko()
import paramiko
print(paramiko.SSHClient.__name__, "invoke" in sys.modules)
"""


def run(*path: Path) -> str:
    program = "".join(f"import sys; sys.path.insert(0, {str(each)!r})\n" for each in path) + PROGRAM
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_paramiko_comes_without_what_only_its_own_match_exec_needs() -> None:
    assert run() == "SSHClient False"


def test_a_paramiko_that_cannot_do_without_it_gets_it(tmp_path: Path) -> None:
    (tmp_path / "paramiko").mkdir()
    (tmp_path / "paramiko" / "__init__.py").write_text("import invoke\nclass SSHClient: pass\n")
    assert run(tmp_path) == "SSHClient True"


SIGNALLED = """
import os, signal, time
os.kill(os.getpid(), signal.{name})
time.sleep(60)
"""
COMMAND = """
import sys
sys.path.insert(0, {folder!r})
from ssm_proxy.cli.main import main
sys.exit(main(["cp", {arguments}"file", "i-0123456789abcdef0:"]))
"""


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_it_loads(tmp_path: Path, name: str, status: int, is_json: bool) -> None:
    (tmp_path / "paramiko").mkdir()
    (tmp_path / "paramiko" / "__init__.py").write_text(SIGNALLED.format(name=name))
    program = COMMAND.format(folder=str(tmp_path), arguments="'--json', " if is_json else "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [each["message"] for each in told], done.stderr) == (
        status,
        [f"interrupted by {name}"] if is_json else [],
        "",
    )
