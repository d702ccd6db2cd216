"""``ssm_proxy.copy``: what the caller's progress callback is told, and what comes of what it raises."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from copies import Copier, parts
from nodes import EMBEDDED, MIB

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


def other(path: Path) -> str:
    """Give a path on another node; they share one file system."""
    return f"{EMBEDDED}:{path}"


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
    real: Copier, here: Path, there: Path, nodes: int
) -> None:
    error = TransportTimeout("enough", hint="its own")

    def fail(progress: Progress) -> None:
        if progress.done_bytes:
            raise error

    with pytest.raises(TransportTimeout) as caught:
        real.copy([real.remote(here / "large"), other(here / "two")][:nodes], there, progress=fail)
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
