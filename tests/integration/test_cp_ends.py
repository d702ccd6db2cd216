"""``ssm_proxy.copy``: how it ends, in the moments in which its threads could miss each other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from copies import Copier, Interrupted, parts, tree, when_cancelled
from nodes import MIB, REAL, MakeUser, StartEmulator, open_sessions, wait_until

from ssm_proxy.api import session_thread
from ssm_proxy.api.copying import Progress
from ssm_proxy.emulator import Faults
from ssm_proxy.file_copy import link, pool
from ssm_proxy.file_copy.checksums import Shell, node_files
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.values import FileOutcome
from ssm_proxy.transport import socket_stream

pytestmark = pytest.mark.integration
COUNT = 30


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    for number in range(COUNT):
        (folder / str(number)).write_bytes(bytes([number]) * 1000)
    return folder


@pytest.mark.parametrize("has_shell", [True, False], ids=["by the node", "by reading back"])
def test_interrupted_while_small_files_are_verified(
    real: Copier, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_shell: bool
) -> None:
    there = tmp_path / "there"
    is_verifying = threading.Event()

    def interrupt(_: Progress) -> None:
        if is_verifying.is_set():
            raise Interrupted

    with when_cancelled() as wait:

        def verify(shell: Shell, paths: Sequence[bytes]) -> list[bytes | None] | None:
            is_verifying.set()
            wait()
            return node_files(shell, paths) if has_shell else None

        monkeypatch.setattr(link, "node_files", verify)
        with pytest.raises(Interrupted):
            real.copy(f"{here}/.", real.remote(there), recursive=True, checksum=True, progress=interrupt)
    assert parts(tmp_path) == []
    whole = tree(here)
    assert all(whole[name] == file for name, file in tree(there).items())


def test_a_progress_callback_that_fails_at_the_very_end(real: Copier, here: Path, tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        if progress.done_files == COUNT and progress.outcome is None:
            raise Interrupted

    with pytest.raises(Interrupted):
        real.copy(f"{here}/.", real.remote(tmp_path / "there"), recursive=True, progress=fail)
    assert tree(tmp_path / "there") == tree(here)


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_interrupted_while_the_node_takes_nothing_and_says_nothing(
    start_emulator: StartEmulator,
    new_user: MakeUser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_upload: bool,
) -> None:
    """What is on its way has no chance then, and no session is waited for longer than others."""
    for_ever = 3600.0
    monkeypatch.setattr(session_thread, "CLOSE_TIMEOUT", for_ever)
    monkeypatch.setattr(socket_stream, "LEAVE_TIME", for_ever)
    monkeypatch.setattr(pool, "JOIN_S", 0.5)
    monkeypatch.setattr(pool, "SILENCE_IS_TOLD_AFTER_S", 1.0)
    emulator = start_emulator(faults=Faults(bandwidth=2 * MIB))  # of a session: it takes a minute and more
    copier = Copier(user=new_user(emulator, REAL), emulator=emulator)
    source, target = tmp_path / "here", tmp_path / "there"
    source.write_bytes(b"")
    os.truncate(source, 512 * MIB)
    notices = []

    def interrupt(progress: Progress) -> None:
        if progress.notice is not None:
            notices.append(progress.notice)
            raise Interrupted
        if progress.sessions == 4 and progress.done_bytes > 0:
            emulator.set_faults(Faults(lose=1.0))

    way = (source, copier.remote(target)) if is_upload else (copier.remote(source), target)
    with pytest.raises(Interrupted):
        copier.copy(*way, sessions=4, progress=interrupt)
    assert notices[0].startswith("nothing has come from the node for ")
    wait_until(lambda: not open_sessions(emulator), "all sessions have ended")


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_what_is_told_last_is_told_before_the_copy_is_over(
    real: Copier, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_upload: bool
) -> None:
    there = tmp_path / "there"
    (there / "1").mkdir(parents=True)  # where a file is to go
    tell = Context.tell

    def tell_late(self: Context, outcome: FileOutcome) -> None:
        time.sleep(0.3)
        tell(self, outcome)

    monkeypatch.setattr(Context, "tell", tell_late)
    for name in ("0", "1"):
        source, target = (here / name, real.remote(there)) if is_upload else (real.remote(here / name), there)
        if name == "0":
            assert real.copy(source, target).files == 1
        else:
            assert list(real.failures(source, target)) == ["1"]
