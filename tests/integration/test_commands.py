"""The two commands that need no AWS account: the demo, and the emulator as a process of its own."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nodes import WITHIN, MakeUser, quiet, tool, wait_until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("options", [(), ("--unpaced",)], ids=["real-pace", "unpaced"])
def test_the_demo(new_user: MakeUser, options: tuple[str, ...]) -> None:
    tool("ssh"), tool("scp")
    user = new_user(None)
    done = subprocess.run(
        ["ssm-proxy", "demo", "--size", "1", *options],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        executable=_program(user.environment["PATH"]),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hello from" in done.stdout
    assert "The file came back unchanged: SHA-256" in done.stdout
    assert "Sessions: 3 used, 0 left behind." in done.stdout


def _program(path: str) -> str:
    return str(Path(path.split(":")[0]) / "ssm-proxy")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_emulator_and_its_own_example(new_user: MakeUser, stop: signal.Signals) -> None:
    user = new_user(None)
    with subprocess.Popen(
        [_program(user.environment["PATH"]), "emulator", "--json", "--tls", "--require-signed-open"],
        env=user.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            announced: dict[str, Any] = json.loads(process.stdout.readline())
            environment = {**user.environment, **announced["environment"]}
            example = [*shlex.split(announced["example"]), "-F", "/dev/null", "-o", "BatchMode=yes", "echo here"]
            done = subprocess.run(example, env=environment, capture_output=True, timeout=WITHIN, check=False)
            assert quiet(done) == b"here\n"
            process.send_signal(stop)
            assert process.wait(WITHIN) == 0
            assert process.communicate(timeout=WITHIN) == (b"", b"")
        finally:
            process.kill()
    wait_until(lambda: not user.processes(), "nothing is left")
    assert not Path(announced["identity_file"]).exists()
