"""Copies as a program makes them, in this process, and as a user does, by the command; and trees to compare."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import paramiko
import pytest
from nodes import WITHIN, User, wait_until

from ssm_proxy.api.copying import CopyIncomplete, CopyResult, copy, copy_with
from ssm_proxy.api.ssh import Access
from ssm_proxy.emulator import Emulator
from ssm_proxy.file_copy.board import Board
from ssm_proxy.file_copy.download import Download
from ssm_proxy.file_copy.upload import Upload
from ssm_proxy.file_copy.values import CopyOptions, FileOutcome, FileState

Where = str | Path | Sequence[str | Path]

_PART = re.compile(r"\.[0-9a-f]{12}\.[0-9a-f]{8}\.ssm-part")


@dataclass(frozen=True, kw_only=True)
class Copier:
    """Somebody who copies to and from one node."""

    user: User
    emulator: Emulator

    def remote(self, path: Path | str | bytes) -> str:
        return f"{self.user.host}:{os.fsdecode(path)}"

    def copy(self, sources: Where, destination: str | Path, **options: Any) -> CopyResult:
        """Copy in this process; neither a thread nor a part may be left of it, except for resumption."""
        settings = {"config_file": self.user.config, "endpoint_url": self.emulator.endpoint_url}
        with no_thread_left():
            return copy(sources, destination, **{**settings, "session": self.session, **options})

    def copy_stream(self, source: str, destination: str, streams: tuple[int, int]) -> CopyResult:
        """Copy in this process with other descriptors as standard input and output."""
        options = {"endpoint-url": self.emulator.endpoint_url}
        access = Access(session=self.session, options=options, config_file=self.user.config)
        with no_thread_left():
            return copy_with([source], destination, CopyOptions(), access, None, streams=streams)

    @cached_property
    def session(self) -> boto3.Session:
        variables = self.emulator.environment()
        return boto3.Session(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_REGION"],
        )

    def failures(self, sources: Where, destination: str | Path, **options: Any) -> dict[str, str]:
        """Copy what cannot be copied as a whole; give why, by the last part of each source's name."""
        with pytest.raises(CopyIncomplete) as caught:
            self.copy(sources, destination, **options)
        failures = caught.value.result.failures
        assert failures
        return {os.path.basename(each.source): each.error or "" for each in failures}

    def command(self, *arguments: str | Path | bytes) -> list[str | Path | bytes]:
        return ["ssm-proxy", "cp", "-F", self.user.config, *arguments]

    def start(self, *arguments: str | Path | bytes, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*arguments), env=self.user.environment, **{**pipes, **options})

    def run(self, *arguments: str | Path | bytes, data: bytes = b"") -> tuple[int, bytes, str]:
        """Run the command; give its exit status, standard output and standard error."""
        process = self.start(*arguments, stdin=subprocess.PIPE)
        try:
            output, errors = process.communicate(data, timeout=100)
        finally:
            process.kill()
        return process.returncode, output, errors.decode()


class InTheMiddle:
    """Has something done to the sources of large files while they are copied; the copy itself is the real one.

    Args:
        monkeypatch: undoes it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, action: Callable[[Path], None], *, pieces: Container[int] = (4,)) -> None:
        """Call the action with the source once some of it has been copied.

        Args:
            action: called from the thread that copies.
            pieces: after which pieces of each file.
        """
        seen: dict[object, int] = {}

        async def copy_range(self: Upload | Download, link: Any, piece: Any) -> int:
            size = await real[type(self)](self, link, piece)
            seen[self] = seen.get(self, 0) + 1
            if seen[self] in pieces:
                action(Path(os.fsdecode(self.file.source)))
            return size

        real: dict[type, Any] = {kind: kind.copy_range for kind in (Upload, Download)}
        for kind in real:
            self._monkeypatch.setattr(kind, "copy_range", copy_range)


class Interrupted(Exception):
    """Ends a copy."""


@contextmanager
def when_cancelled() -> Iterator[Callable[[], None]]:
    """Give what waits until a copy of the block has been ended: for its threads, so that they do not go on before."""
    is_cancelled = threading.Event()
    cancel = Board.cancel

    def cancel_and_tell(self: Board) -> None:
        cancel(self)
        is_cancelled.set()

    def wait() -> None:
        assert is_cancelled.wait(WITHIN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "cancel", cancel_and_tell)
        yield wait


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Check that the block leaves no thread of ours, and none of paramiko."""

    def ours() -> set[threading.Thread]:
        return {
            each
            for each in threading.enumerate()
            if each.name.startswith("ssm-proxy ") or isinstance(each, paramiko.Transport)
        }

    before = ours()
    try:
        yield
    finally:
        wait_until(lambda: not ours() - before, "no thread is left")


def parts(folder: Path) -> list[Path]:
    """Give what unfinished copies left."""
    return sorted(path for path in folder.rglob(".*") if _PART.fullmatch(path.name))


def tree(folder: Path | bytes, *, with_modes: bool = True) -> dict[bytes, tuple[str, int, bytes]]:
    """Give kind, permissions and contents of everything below a folder, by its path; links are followed."""
    top = os.fsencode(folder)
    found: dict[bytes, tuple[str, int, bytes]] = {}
    for path, folders, files in os.walk(top, followlinks=True):
        for name in [*folders, *files]:
            full = os.path.join(path, name)
            status = os.stat(full)
            is_folder = stat.S_ISDIR(status.st_mode)
            content = b""
            if not is_folder:
                with open(full, "rb") as file:
                    content = file.read()
            mode = stat.S_IMODE(status.st_mode) if with_modes else 0
            found[os.path.relpath(full, top)] = ("folder" if is_folder else "file", mode, content)
    return found


def flip(path: Path, offset: int) -> None:
    """Change a byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 255]))


def json_lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def states(outcomes: Sequence[FileOutcome]) -> dict[str, FileState]:
    return {os.path.basename(each.source): each.state for each in outcomes}
