"""``ssm_proxy.copy``: what the caller's progress callback is told, and what comes of what it raises."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from copies import Copier, Interrupted, parts
from nodes import EMBEDDED, MIB, REAL, MakeUser, StartEmulator

from ssm_proxy.emulator import Faults
from ssm_proxy.errors import SsmProxyError, TransportTimeout
from ssm_proxy.file_copy.pool import Pool
from ssm_proxy.file_copy.values import CopyIncomplete, CopyResult, Progress

pytestmark = pytest.mark.integration


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("one", "two", "three"):
        (folder / name).write_text(name)
    (folder / "large").write_bytes(os.urandom(8 * MIB))
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def slow(start_emulator: StartEmulator, new_user: MakeUser) -> Copier:
    """Somebody whose sessions are so slow that a large file takes a second or more."""
    emulator = start_emulator()
    emulator.set_faults(Faults(bandwidth=1_000_000))
    return Copier(user=new_user(emulator, REAL), emulator=emulator)


def other(path: Path) -> str:
    """Give a path on another node; they share one file system."""
    return f"{EMBEDDED}:{path}"


# --- what it is told ------------------------------------------------------------------------------------------------


def test_progress_is_of_all_nodes_together(real: Copier, here: Path, there: Path) -> None:
    told: list[Progress] = []
    sources = [
        real.remote(here / "one"),
        real.remote(here / "large"),
        other(here / "two"),
        other(here / "nothing"),
        "i-0ffffffffffffffff:/gone",
        real.remote(here / "three"),
    ]
    with pytest.raises(CopyIncomplete) as caught:
        real.copy(sources, there, progress=told.append)
    for name in ("total_bytes", "done_bytes", "total_files", "done_files"):
        values = [getattr(each, name) for each in told]
        assert values == sorted(values), f"{name} grows"
    check_bounded(told)
    assert [each.current for each in told if each.current][-1] == told[-1].current == f"{here}/three"
    assert {each.is_counting for each in told if each.done_files < 5} == {True}, "until the last node was looked at"

    result, last = caught.value.result, told[-1]
    assert (result.files, len(result.failures)) == (4, 2)
    assert (last.done_files, last.total_files) == (6, 6)
    assert last.done_bytes == last.total_bytes == result.total_bytes == 8 * MIB + len("onetwothree")
    assert not last.is_counting


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_what_cannot_be_copied_counts_as_a_file(real: Copier, here: Path, there: Path, is_upload: bool) -> None:
    told: list[Progress] = []
    (here / "folder").mkdir()
    (here / "link").symlink_to("nothing")
    sources = [here / name for name in ("one", "folder", "link", "nothing", "two")]
    froms, to = (sources, real.remote(there)) if is_upload else ([real.remote(each) for each in sources], there)
    with pytest.raises(CopyIncomplete) as caught:
        real.copy(froms, to, progress=told.append)
    check_bounded(told)
    assert (caught.value.result.files, len(caught.value.result.failures)) == (2, 3)
    assert (told[-1].done_files, told[-1].total_files) == (5, 5)


def check_bounded(told: list[Progress]) -> None:
    assert all(each.done_files <= each.total_files for each in told)
    assert all(each.done_bytes <= each.total_bytes for each in told)


# --- what it raises -------------------------------------------------------------------------------------------------

NOTHING = CopyResult(copied_bytes=0, total_bytes=0, files=0, unchanged=0, seconds=0.0, sessions=0)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    "error", [TransportTimeout("no more"), CopyIncomplete("no more", result=NOTHING)], ids=["lost", "incomplete"]
)
def test_an_error_of_ours_that_the_callback_raises_is_no_nodes_failure(
    real: Copier, here: Path, there: Path, nodes: int, error: SsmProxyError
) -> None:
    raised = []

    def fail(progress: Progress) -> None:
        if progress.outcome is not None and not raised:
            raised.append(error)
            raise error

    with pytest.raises(type(error)) as caught:
        real.copy([real.remote(here / "one"), other(here / "two")][:nodes], there, progress=fail)
    assert caught.value is error
    assert {path.name for path in there.iterdir()} == {"one"}


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_error_of_ours_that_the_callback_raises_is_given_no_hint(
    slow: Copier, here: Path, there: Path, nodes: int
) -> None:
    error = TransportTimeout("enough", hint="its own")

    def fail(progress: Progress) -> None:
        if progress.done_bytes:
            raise error

    with pytest.raises(TransportTimeout) as caught:
        slow.copy([slow.remote(here / "large"), other(here / "two")][:nodes], there, progress=fail)
    assert caught.value is error
    assert parts(there), "there is something to resume"
    assert error.hint == "its own"
    assert not (there / "two").exists()


def test_the_callback_ends_a_copy_also_when_it_is_told_last_of_a_node_that_is_lost(
    real: Copier, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, error = Pool.close, TransportTimeout("enough")
    closed, raised = [], []

    def close_and_note(self: Pool) -> None:
        closed.append(self)
        close(self)

    def fail(progress: Progress) -> None:
        if progress.outcome is not None:
            shutil.rmtree(there, ignore_errors=True)  # so that nothing of the second node has a place any more
        if len(closed) == 2 and not raised:
            raised.append(error)
            raise error

    monkeypatch.setattr(Pool, "close", close_and_note)
    sources = [real.remote(here / "one"), other(here / "two"), other(here / "three"), real.remote(here / "two")]
    with pytest.raises(TransportTimeout) as caught:
        real.copy(sources, there, progress=fail)
    assert caught.value is error
    assert not there.exists()


@pytest.mark.parametrize("error", [Interrupted(), TransportTimeout("no more")], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_a_callback_that_has_raised_something_is_called_no_more(
    slow: Copier, here: Path, there: Path, is_upload: bool, error: Exception
) -> None:
    told: list[Progress] = []
    raised_at: list[int] = []

    def fail(progress: Progress) -> None:
        told.append(progress)
        if progress.done_bytes and not raised_at:
            raised_at.append(len(told))
            raise error

    source, target = (here / "large", slow.remote(there)) if is_upload else (slow.remote(here / "large"), there)
    with pytest.raises(type(error)) as caught:
        slow.copy(source, target, progress=fail)
    assert caught.value is error
    assert raised_at == [len(told)]


def test_a_signal_that_comes_while_the_callback_runs_is_told(slow: Copier, here: Path, there: Path) -> None:
    told: list[Progress] = []
    come: list[int] = []

    def interrupt(progress: Progress) -> None:
        told.append(progress)
        if progress.done_bytes and not come:
            come.append(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        slow.copy(slow.remote(here / "large"), there, progress=interrupt)
    (part,) = parts(there)
    notices = [each.notice for each in told if each.notice]
    assert notices[-1].startswith(f"interrupted; what is there already is kept ({part})")
