"""Profiles of hypothesis: the same examples each time in CI, fresh ones elsewhere. A home, and a watch over signals."""

from __future__ import annotations

import os
import signal
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
