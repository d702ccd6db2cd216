"""``ssm-proxy cp``: any tree of files arrives as it was, and comes back as it was."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from copies import Copier, parts, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes import MIB

pytestmark = pytest.mark.integration
SIZES = (0, 1, 4095, 32768, 65537, 131072, MIB - 1, MIB, MIB + 1, MIB + 131073, 2 * MIB, 3 * MIB - 1)
FILE_MODES = (0o644, 0o600, 0o444, 0o400, 0o755, 0o711)
FOLDER_MODES = (0o755, 0o700, 0o555, 0o500, 0o777)


class File(NamedTuple):
    size: int
    seed: int
    mode: int
    is_link: bool
    """To a file elsewhere, of that size."""

    def content(self) -> bytes:
        return bytes(self.size) if self.seed == 0 else random.Random(self.seed).randbytes(self.size)


class Folder(NamedTuple):
    mode: int
    entries: Mapping[bytes, File | Folder]


NAMES = st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"0"))
FILES = st.builds(
    File,
    size=st.sampled_from(SIZES) | st.integers(0, 200),
    seed=st.integers(0, 3),
    mode=st.sampled_from(FILE_MODES),
    is_link=st.booleans(),
)


def folders(inner: st.SearchStrategy[File | Folder]) -> st.SearchStrategy[Folder]:
    entries = st.dictionaries(NAMES.filter(lambda name: name not in (b".", b"..")), inner, max_size=5)
    return st.builds(Folder, mode=st.sampled_from(FOLDER_MODES), entries=entries)


TREES = folders(st.recursive(FILES, folders, max_leaves=12))


def make(path: bytes, folder: Folder, elsewhere: bytes) -> None:
    os.mkdir(path)
    for name, entry in folder.entries.items():
        inner = os.path.join(path, name)
        if isinstance(entry, Folder):
            make(inner, entry, elsewhere)
            continue
        real = inner
        if entry.is_link:
            real = os.path.join(elsewhere, b"%d" % len(os.listdir(elsewhere)))
            os.symlink(real, inner)
        with open(real, "wb") as file:
            file.write(entry.content())
        os.chmod(real, entry.mode)
    os.chmod(path, folder.mode)


def unlock(top: Path) -> None:
    """Make it possible to remove a tree."""
    for path, _, _ in os.walk(os.fsencode(top)):
        os.chmod(path, 0o700)


def round_trip(copier: Copier, folder: Folder, sessions: int | None) -> None:
    with tempfile.TemporaryDirectory(prefix="ssm-") as name:
        place = Path(name)
        elsewhere, here, there, back = (place / each for each in ("elsewhere", "here", "there", "back"))
        elsewhere.mkdir()
        make(os.fsencode(here), folder, os.fsencode(elsewhere))
        expected = tree(here)
        files = sum(1 for kind, _, _ in expected.values() if kind == "file")
        size = sum(len(content) for _, _, content in expected.values())
        try:
            options = {"recursive": True, "preserve": True, "sessions": sessions}
            result = copier.copy(here, copier.remote(there), **options)
            assert (result.files, result.total_bytes, result.failures) == (files, size, [])
            assert tree(there) == expected
            result = copier.copy(copier.remote(there), back, **options)
            assert (result.files, result.copied_bytes, result.failures) == (files, size, [])
            assert tree(back) == expected
            assert parts(place) == []
        finally:
            for each in (here, there, back):
                unlock(each)
            shutil.rmtree(elsewhere)


ONCE = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@ONCE
@given(folder=TREES)
def test_any_tree_up_and_down(real: Copier, folder: Folder) -> None:
    round_trip(real, folder, sessions=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(ONCE, max_examples=60, derandomize=False)
@given(folder=TREES, sessions=st.sampled_from([None, 1, 2, 8]))
def test_any_tree_up_and_down_often(copier: Copier, folder: Folder, sessions: int | None) -> None:
    round_trip(copier, folder, sessions)
