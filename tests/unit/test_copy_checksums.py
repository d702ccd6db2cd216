"""Checksums of the node's files, by the shells and programs that nodes have, on files with names of every kind."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.file_copy.checksums import (
    MIB,
    MOST_BLOCKS,
    SMALLEST_BLOCK,
    InBackground,
    block_bytes,
    differing,
    hash_stretch,
    local_blocks,
    node_blocks,
    node_files,
)

NAMES = [
    b"plain",
    b"with space",
    b" leading and trailing ",
    b"line\nbreak",
    b"carriage\rreturn",
    b"back\\slash",
    b"\\n",
    b"it's",
    b'"double"',
    b"$HOME`id`$(id)",
    b"*?[a]",
    b"-n",
    b"--help",
    b"caf\xe9",
    b"\xff\x01\x7f",
    b"%b%s\\0101",
    b"a;b&c|d",
    b"trailing newline\n",
    b"#!{}~",
]
TOOLS = ("dd", "head", "xargs")
LOGIN_SHELLS = ["sh", "bash", "dash", "busybox sh", "zsh", "ksh", "mksh", "fish", "csh", "tcsh"]
DIGESTERS = ["sha256sum", "shasum", "openssl", "busybox"]


class LocalShell:
    """Runs commands as sshd does: by the user's login shell with -c.

    Args:
        shell: with its arguments.
        path: of the programs; None for all of this machine.
    """

    refusal: str | None = None

    def __init__(self, shell: str = "sh", path: Path | None = None) -> None:
        command, *arguments = shell.split()
        self._command = [shutil.which(command) or command, *arguments, "-c"]
        self._environment = {"PATH": os.environ["PATH"] if path is None else os.fspath(path), "HOME": "/dev/null"}
        self.commands: list[str] = []

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        self.commands.append(command)
        done = subprocess.run(
            [*self._command, command], input=data, capture_output=True, env=self._environment, check=False, timeout=60
        )
        return done.returncode, done.stdout


class SaysShell:
    """Says the same to every command."""

    refusal: str | None = None

    def __init__(self, status: int, output: bytes) -> None:
        self._answer = status, output

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        return self._answer


class NoShell:
    refusal: str | None = None

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd 'names")
    for number, name in enumerate(NAMES):
        path = os.path.join(os.fsencode(folder), name)
        try:
            with open(path, "wb") as file:
                file.write(b"%d" % number * 1000)
        except OSError:  # macOS takes UTF-8 only
            continue
    return folder


def paths(folder: Path) -> list[bytes]:
    found = [os.path.join(os.fsencode(folder), name) for name in NAMES]
    return [path for path in found if os.path.exists(path)]


def expected(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


@pytest.fixture(scope="module")
def only(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a folder for PATH with one program that computes digests, and with what else is needed."""

    def make(digester: str) -> Path:
        if shutil.which(digester) is None:
            pytest.skip(f"no {digester}")
        folder = tmp_path_factory.mktemp(digester)
        if digester == "busybox":
            for name in ("sh", "sha256sum", *TOOLS):
                (folder / name).symlink_to(shutil.which("busybox") or "")
            return folder
        for name in ("sh", digester, *TOOLS, *(["perl", "env"] if digester == "shasum" else [])):
            (folder / name).symlink_to(shutil.which(name) or "")
        return folder

    return make


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_any_login_shell_will_do(folder: Path, shell: str) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"no {shell}")
    known = paths(folder)
    missing = os.path.join(os.fsencode(folder), b"missing")
    digests = node_files(LocalShell(shell), [*known, missing])
    assert digests == [*map(expected, known), None]
    assert node_blocks(LocalShell(shell), known[3], 2000) == [expected(known[3])]


@pytest.mark.parametrize("digester", DIGESTERS)
def test_any_of_the_programs_will_do(folder: Path, only: Callable[[str], Path], digester: str) -> None:
    shell = LocalShell("busybox sh" if digester == "busybox" else "sh", only(digester))
    known = paths(folder)
    missing = [os.path.join(os.fsencode(folder), name) for name in (b"missing", b"miss\ning")]
    assert node_files(shell, [missing[0], *known, missing[1]]) == [None, *map(expected, known), None]
    for path in known:
        assert node_blocks(shell, path, os.stat(path).st_size) == [expected(path)]


def test_a_node_without_any_of_them_tells_nothing(folder: Path, tmp_path: Path) -> None:
    for name in ("sh", *TOOLS):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    shell = LocalShell("sh", tmp_path)
    for path in paths(folder):
        assert node_files(shell, [path]) is None
        assert node_blocks(shell, path, 10) is None


def test_a_node_without_xargs_tells_nothing(folder: Path, only: Callable[[str], Path]) -> None:
    programs = only("sha256sum")
    (programs / "xargs").unlink()
    assert node_files(LocalShell("sh", programs), paths(folder)[:1]) is None


@pytest.mark.parametrize(
    "shell",
    [
        NoShell(),
        SaysShell(1, b"This account is currently not available.\n"),
        SaysShell(0, b"This service allows sftp connections only.\n"),
        SaysShell(0, b""),
        SaysShell(127, b""),
        SaysShell(0, b"\0\0\0\5\2\0\0\0\3"),
    ],
    ids=["none", "nologin", "message", "silence", "not found", "sftp"],
)
def test_what_is_no_shell_tells_nothing(shell: SaysShell) -> None:
    assert node_files(shell, [b"/a"]) is None
    assert node_files(shell, [b"/a\n"]) is None
    assert node_blocks(shell, b"/a", 10) is None


def test_a_login_shell_that_talks_is_listened_past(folder: Path) -> None:
    path = paths(folder)[0]

    class Talks(LocalShell):
        def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
            return super().run(f"echo Welcome; {command}", data)

    odd = paths(folder)[3]
    assert node_files(Talks(), [path, odd]) == [expected(path), expected(odd)]
    assert node_blocks(Talks(), path, 1000) is None  # nobody can tell which line is which block


def test_no_path_is_seen_by_a_shell_as_it_is(folder: Path) -> None:
    shell = LocalShell()
    node_files(shell, paths(folder))
    for path in paths(folder):
        node_blocks(shell, path, 10)
    assert all(os.fsencode(folder.name) not in os.fsencode(command) for command in shell.commands)
    assert all("!" not in command and "\n" not in command for command in shell.commands)


@pytest.mark.parametrize(
    "size", [0, 1, SMALLEST_BLOCK - 1, SMALLEST_BLOCK, SMALLEST_BLOCK + 1, 2 * SMALLEST_BLOCK, 2 * SMALLEST_BLOCK + 7]
)
def test_blocks_there_are_those_here(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789abcdef!" * (size // 17 + 1))
    os.truncate(path, size)
    theirs = node_blocks(LocalShell(), os.fsencode(path), size)
    with open(path, "rb") as file:
        ours = local_blocks(Reads(file.fileno()), size)
    assert theirs == ours
    assert len(ours) == -(-size // SMALLEST_BLOCK)
    with open(path, "ab") as more:  # what is behind does not count
        more.write(b"more")
    assert node_blocks(LocalShell(), os.fsencode(path), size) == ours


def test_a_file_that_is_shorter_there_differs_in_its_last_blocks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    size = 2 * SMALLEST_BLOCK + 5
    path.write_bytes(bytes(size))
    with open(path, "rb") as file:
        ours = local_blocks(Reads(file.fileno()), size)
    os.truncate(path, SMALLEST_BLOCK + 1)
    theirs = node_blocks(LocalShell(), os.fsencode(path), size)
    assert theirs is not None
    assert differing(ours, theirs, size) == [(SMALLEST_BLOCK, SMALLEST_BLOCK), (2 * SMALLEST_BLOCK, 5)]


def test_a_missing_or_unreadable_file_has_no_blocks(tmp_path: Path) -> None:
    assert node_blocks(LocalShell(), os.fsencode(tmp_path / "missing"), 10) is None


def test_blocks_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * MIB + b"b" * MIB + b"c")
    assert node_blocks(LocalShell(), os.fsencode(path), 2 * MIB + 1, block=MIB) == [
        hashlib.sha256(each).digest() for each in (b"a" * MIB, b"b" * MIB, b"c")
    ]


@given(st.integers(0, 2**50))
def test_there_are_not_too_many_blocks_and_they_are_whole_mebibytes(size: int) -> None:
    block = block_bytes(size)
    assert block % MIB == 0
    assert block >= SMALLEST_BLOCK
    assert -(-size // block) <= MOST_BLOCKS


def test_what_differs_is_told_with_its_place() -> None:
    size = 3 * SMALLEST_BLOCK - 1
    assert differing([b"a", b"b", b"c"], [b"a", b"b", b"c"], size) == []
    assert differing([b"a", b"b", b"c"], [b"x", b"b", b"x"], size) == [
        (0, SMALLEST_BLOCK),
        (2 * SMALLEST_BLOCK, SMALLEST_BLOCK - 1),
    ]


class Reads:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)


def test_a_stretch_of_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as file:
        reads = Reads(file.fileno())
        assert hash_stretch(reads, 2, 3) == hashlib.sha256(b"234").digest()
        assert hash_stretch(reads, 8, 100) == hashlib.sha256(b"89").digest()
        assert hash_stretch(reads, 50, 100) == hashlib.sha256().digest()


def test_what_runs_in_the_background_gives_its_result_or_its_error() -> None:
    began = threading.Event()

    def work() -> list[bytes]:
        began.set()
        return [b"x"]

    def fail() -> list[bytes]:
        raise OSError("disk")

    assert InBackground(work).result() == [b"x"]
    assert began.is_set()
    with pytest.raises(OSError, match="disk"):
        InBackground(fail).result()
