"""``ssm-proxy cp``: what an interrupted copy leaves is checked, and gone on from; and so is what has just arrived."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from copies import Copier, Interrupted, InTheMiddle, flip, parts, tree, when_cancelled
from nodes import MIB

from ssm_proxy.api.copying import CopyResult, Progress
from ssm_proxy.file_copy import node_files
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.upload import Upload

pytestmark = pytest.mark.integration
SIZE = 12 * MIB
LONG_AGO = 1_000_000_000
BOTH_WAYS = pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])


def copy(copier: Copier, source: Path, target: Path, *, is_upload: bool, **options: object) -> CopyResult:
    if is_upload:
        return copier.copy(source, copier.remote(target), **options)
    return copier.copy(copier.remote(source), target, **options)


def interrupt(copier: Copier, source: Path, target: Path, *, is_upload: bool) -> Path:
    """Begin a copy; give what it leaves: more than its first two blocks, as one session copies them in order."""

    enough = 9 * MIB
    moved = Context.moved

    def stop(progress: Progress) -> None:
        if progress.done_bytes >= enough:
            raise Interrupted

    old = target.read_bytes() if target.exists() else None
    with when_cancelled() as wait, pytest.MonkeyPatch.context() as patch:

        def move(self: Context, size: int) -> None:
            moved(self, size)
            if self.done_bytes >= enough:
                wait()

        patch.setattr(Context, "moved", move)
        with pytest.raises(Interrupted):
            copy(copier, source, target, is_upload=is_upload, progress=stop, sessions=1)
    assert (target.read_bytes() if target.exists() else None) == old
    (part,) = parts(target.parent)
    return part


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes to the parts of these tests."""
    monkeypatch.setattr(node_files, "QUIET_S", 0.0)


@BOTH_WAYS
def test_what_is_there_is_checked_and_not_copied_again(real: Copier, tmp_path: Path, is_upload: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "target"
    target.parent.mkdir()
    target.write_bytes(b"old")
    source.write_bytes(os.urandom(SIZE))
    part = interrupt(real, source, target, is_upload=is_upload)
    notices: list[str] = []

    def note(progress: Progress) -> None:
        notices.extend([progress.notice] if progress.notice else [])

    flip(part, 100)
    result = copy(real, source, target, is_upload=is_upload, resume=True, progress=note)
    assert target.read_bytes() == source.read_bytes()
    assert MIB <= result.copied_bytes < SIZE
    assert (result.files, result.total_bytes) == (1, SIZE)
    assert [f"{SIZE - result.copied_bytes} of {SIZE} bytes are there already" in each for each in notices] == [True]
    assert parts(tmp_path) == []
    # Once it is there, it is only compared.
    result = copy(real, source, target, is_upload=is_upload, resume=True)
    assert (result.copied_bytes, result.files, result.unchanged, result.total_bytes) == (0, 0, 1, SIZE)


@BOTH_WAYS
def test_blocks_are_mended_in_a_part_and_not_in_a_file_with_its_own_name(
    real: Copier, tmp_path: Path, is_upload: bool
) -> None:
    """As the help and docs/copying.md say."""
    source, target = tmp_path / "source", tmp_path / "there" / "target"
    target.parent.mkdir()
    source.write_bytes(os.urandom(SIZE))
    shutil.copy(source, target)
    flip(target, 100)
    result = copy(real, source, target, is_upload=is_upload, resume=True)
    assert (result.copied_bytes, result.files, result.unchanged) == (SIZE, 1, 0)
    assert target.read_bytes() == source.read_bytes()

    # With a part beside it, that is gone on from, although the file is nearer.
    target.unlink()
    interrupt(real, source, target, is_upload=is_upload)
    shutil.copy(source, target)
    flip(target, 100)
    result = copy(real, source, target, is_upload=is_upload, resume=True)
    assert 0 < result.copied_bytes < SIZE
    assert target.read_bytes() == source.read_bytes()
    assert parts(tmp_path) == []


@BOTH_WAYS
def test_a_source_that_has_changed_since(real: Copier, tmp_path: Path, is_upload: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "target"
    target.parent.mkdir()
    source.write_bytes(os.urandom(SIZE))
    interrupt(real, source, target, is_upload=is_upload)
    flip(source, 100)
    with source.open("ab") as file:
        file.write(os.urandom(MIB))
    result = copy(real, source, target, is_upload=is_upload, resume=True)
    assert target.read_bytes() == source.read_bytes()
    assert 2 * MIB <= result.copied_bytes < SIZE
    assert parts(tmp_path) == []

    # Of another size, and with somebody else's part beside it, which is not ours to take.
    target.unlink()
    interrupt(real, source, target, is_upload=is_upload)
    other = target.with_name(".0123456789ab.01234567.ssm-part")
    other.write_bytes(bytes(SIZE))
    os.truncate(source, 5 * MIB)
    copy(real, source, target, is_upload=is_upload, resume=True)
    assert target.read_bytes() == source.read_bytes()
    assert parts(tmp_path) == [other]


@BOTH_WAYS
def test_a_tree_of_which_some_is_there(real: Copier, tmp_path: Path, is_upload: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for index in range(40):
        file = source / f"folder {index % 3}" / f"odd\n{index}\\"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(100 * index))
    (source / "large").write_bytes(os.urandom(2 * MIB))
    (source / "large too").write_bytes(os.urandom(2 * MIB))
    shutil.copytree(source, target)
    (target / "folder 0" / "odd\n3\\").unlink()
    flip(target / "folder 1" / "odd\n4\\", 10)
    (target / "folder 2" / "odd\n5\\").write_bytes(b"shorter")
    flip(target / "large", MIB)
    for name in ("large too", "folder 1/odd\n7\\", "folder 2/odd\n8\\"):
        (source / name).chmod(0o440)
        os.utime(source / name, (LONG_AGO, LONG_AGO))
    sources, where = f"{source}/.", str(target)
    if is_upload:
        result = real.copy(sources, real.remote(where), recursive=True, resume=True, preserve=True)
    else:
        result = real.copy(real.remote(sources), where, recursive=True, resume=True, preserve=True)
    assert tree(target) == tree(source)
    for path in source.rglob("*"):
        assert int((target / path.relative_to(source)).stat().st_mtime) == int(path.stat().st_mtime)
    assert (result.files, result.unchanged) == (4, 38)
    assert parts(tmp_path) == []


@pytest.fixture
def damage(tmp_path: Path) -> Callable[[Path], None]:
    """Change a byte of what has arrived of a file."""

    def action(source: Path) -> None:
        for part in parts(tmp_path):
            with contextlib.suppress(FileNotFoundError):  # it has been put in place
                if part.stat().st_size == source.stat().st_size:
                    with part.open("r+b") as file, source.open("rb") as original:
                        file.write(bytes([original.read(1)[0] ^ 255]))

    return action


@BOTH_WAYS
def test_damage_on_the_way_is_found_and_mended(
    real: Copier, tmp_path: Path, in_the_middle: InTheMiddle, damage: Callable[[Path], None], is_upload: bool
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "once").write_bytes(os.urandom(2 * MIB))
    (here / "again and again").write_bytes(os.urandom(2 * MIB + 1))
    there.mkdir()
    for name in ("once", "again and again"):
        (there / name).write_bytes(b"old")

    def some(source: Path) -> None:
        if source.name != "once" or not some.is_done:  # type: ignore[attr-defined]
            damage(source)
            some.is_done = some.is_done or source.name == "once"  # type: ignore[attr-defined]

    some.is_done = False  # type: ignore[attr-defined]
    in_the_middle(some, pieces=range(4, 10000))
    sources = [here / "once", here / "again and again"]
    if is_upload:
        failures = real.failures(sources, real.remote(there))
    else:
        failures = real.failures([real.remote(each) for each in sources], there)
    assert failures.keys() == {"again and again"}
    assert "the checksums still differ after 3 repairs" in failures["again and again"]
    assert (there / "again and again").read_bytes() == b"old"
    assert (there / "once").read_bytes() == (here / "once").read_bytes()
    assert parts(tmp_path) == []


def test_damage_to_small_files(
    real: Copier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1000))
    target.write_bytes(b"old")
    really = Upload.copy_whole

    async def copy_whole(self: Upload, link: object) -> bool:
        answer = await really(self, link)  # type: ignore[arg-type]
        damage(source)
        return answer

    monkeypatch.setattr(Upload, "copy_whole", copy_whole)
    failures = real.failures(source, real.remote(target), checksum=True)
    assert "arrived damaged" in failures["source"]
    assert target.read_bytes() == b"old"
    assert parts(tmp_path) == []
