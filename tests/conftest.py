"""Profiles of hypothesis: the same examples each time in CI, fresh elsewhere. A home, and watches over what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A shared machine stalls now and then: how long one example takes proves nothing, so there is no deadline.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say where long bytes differ, instead of showing all of them; pytest does in CI, in a hundred thousand lines."""
    if not isinstance(left, bytes) or not isinstance(right, bytes) or len(left) + len(right) < 2000:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    offset = next((index for index, (one, other) in pairs if one != other), min(len(left), len(right)))
    here = slice(offset, offset + 16)
    return [
        f"{len(left)} bytes {op} {len(right)} bytes",
        f"they are the same up to byte {offset}; then {left[here]!r} and {right[here]!r}",
    ]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home for the tests: their shells read nobody's start-up files, and leave no trace in anybody's history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def signals_stay_as_they_are() -> Iterator[None]:
    """Children inherit signals that are ignored: a test that leaves one so makes others fail, later and elsewhere."""
    watched = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in watched}
    yield
    after = {number: signal.getsignal(number) for number in watched}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def _open_descriptors() -> set[tuple[str, str]]:
    """Give number and file of each, where the system tells."""
    found = set()
    folder = "/proc/self/fd"
    for number in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(FileNotFoundError):  # the list's own, and what was closed meanwhile
            found.add((number, os.readlink(f"{folder}/{number}")))
    return found


@pytest.fixture
def no_descriptor_stays() -> Iterator[None]:
    """See that the test leaves nothing open. What other tests' threads still do meanwhile settles in a moment."""
    before = _open_descriptors()
    yield
    for _ in range(500):
        left = _open_descriptors() - before
        if not left:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"left open: {left}")
