"""git over ssh: clone, push and fetch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from nodes import MIB, User, quiet, tool

pytestmark = pytest.mark.integration


def test_clone_push_and_fetch(user: User, tmp_path: Path) -> None:
    environment = {
        **user.environment,
        "GIT_SSH_COMMAND": user.remote_shell(),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        **{
            f"GIT_{who}_{what}": "test@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        },
    }

    def git(folder: Path, *arguments: str | Path) -> bytes:
        command = [tool("git"), "-C", folder, *arguments]
        return quiet(subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False))

    def commit(folder: Path, name: str, size: int) -> None:
        (folder / name).write_bytes(os.urandom(size))
        git(folder, "add", name)
        git(folder, "commit", "--quiet", "--message", name)

    central, first, second = (tmp_path / name for name in ("central.git", "first", "second clone"))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", central)
    git(tmp_path, "init", "--quiet", "--initial-branch=main", first)
    git(first, "remote", "add", "origin", f"ssh://{user.host}{central}")
    commit(first, "large", 3 * MIB)
    git(first, "push", "--quiet", "--set-upstream", "origin", "main")

    git(tmp_path, "clone", "--quiet", f"{user.host}:{central}", second)
    assert (second / "large").read_bytes() == (first / "large").read_bytes()

    commit(second, "small", 10)
    git(second, "push", "--quiet")
    git(first, "fetch", "--quiet")
    assert git(first, "rev-parse", "origin/main") == git(second, "rev-parse", "HEAD")
    git(first, "fsck", "--strict")
