"""The terminal is left as it was found."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

CHILD = """
import os, sys, termios
fd = os.open(sys.argv[1], os.O_RDWR)  # the first terminal that the leader of a session opens is its own
from ssm_proxy.cli.terminal import TerminalGuard
def switch_off(flags):
    settings = termios.tcgetattr(fd)
    settings[3] &= ~flags
    termios.tcsetattr(fd, termios.TCSANOW, settings)
if sys.argv[2] == "before":
    switch_off(termios.ECHO)
guard = TerminalGuard()
switch_off(termios.ECHO | (termios.ICANON if sys.argv[2] == "raw" else 0))
guard.restore()
print(bool(termios.tcgetattr(fd)[3] & termios.ECHO))
"""


@pytest.mark.parametrize(("case", "echoes"), [("prompt", "True"), ("before", "False"), ("raw", "False")])
def test_the_echo_that_a_prompt_switched_off_is_on_again(case: str, echoes: str) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, os.ttyname(follower), case],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=100,
            start_new_session=True,
            check=True,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.stdout.strip() == echoes


def test_without_a_terminal_there_is_nothing_to_do() -> None:
    code = "from ssm_proxy.cli.terminal import TerminalGuard; TerminalGuard().restore()"
    subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, timeout=100, start_new_session=True, check=True
    )
