"""``ssm-proxy cp``: everything that a file system has beside plain files with plain names, up and down."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from copies import Copier, InTheMiddle, parts, tree
from nodes import MIB, tool

pytestmark = pytest.mark.integration


def up_and_down(copier: Copier, here: Path, tmp_path: Path) -> list[tuple[Path, str, str]]:
    """Give, for each direction, a folder to copy to, and what to copy where as the program is told it."""
    there, back = tmp_path / "there", tmp_path / "back"
    return [(there, f"{here}/.", copier.remote(there)), (back, copier.remote(f"{here}/."), str(back))]


# --- what is no plain file ------------------------------------------------------------------------------------------


def test_links_devices_and_what_is_empty(copier: Copier, tmp_path: Path) -> None:
    here, outside = tmp_path / "here", tmp_path / "outside"
    (here / "empty folder").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_text("outside")
    (here / "empty").touch()
    (here / "to file").symlink_to(outside / "file")
    (here / "to folder").symlink_to(outside)
    (here / "to nothing").symlink_to("nothing")
    (here / "to itself").symlink_to("to itself")
    (here / "to above").symlink_to(".")
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory(prefix="ssm-") as short:
        listener.bind(f"{short}/socket")
        os.rename(f"{short}/socket", here / "socket")
    failed = {"to nothing", "to itself", "to above", "fifo", "socket"}
    with contextlib.suppress(PermissionError):
        os.mknod(here / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        failed.add("device")

    for target, source, destination in up_and_down(copier, here, tmp_path):
        failures = copier.failures(source, destination, recursive=True)
        assert failures.keys() == failed
        assert failures["to nothing"].startswith("it is a link to nothing")
        assert failures["to above"] == "it is a link to a folder that it is in"
        for name in failed & {"fifo", "socket", "device"}:
            assert failures[name] == "it is no regular file, and was left out"
        assert {name: content for name, (_, _, content) in tree(target).items()} == {
            b"empty folder": b"",
            b"empty": b"",
            b"to file": b"outside",
            b"to folder": b"",
            b"to folder/file": b"outside",
        }
        assert not [path for path in target.iterdir() if path.is_symlink()]
    assert copier.failures(here / "fifo", copier.remote(tmp_path / "x"))
    assert copier.failures(copier.remote(here / "fifo"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


NAMES = (
    b" a name ",
    b"new\nline",
    b"tab\tand\rreturn",
    b"'quotes\" `id` $(id) $HOME ; & | > <",
    b"-rf",
    b"--",
    b"~",
    b"~root",
    b"*?[a]",
    b"back\\slash\\n",
    b"host:path",
    b"...",
    b"%s%d",
    "ünïcode ☃".encode(),
    b"latin-1: \xe4\xff\x80",
    b"\xff" * 255,
    b"\x01\x1b[31m\x7f",
)


def test_names_that_are_any_bytes(copier: Copier, tmp_path: Path) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    for index, name in enumerate(NAMES):
        folder = os.path.join(os.fsencode(here), b"folder " + name[:200])
        os.makedirs(folder)
        for each in (folder, os.fsencode(here)):
            with open(os.path.join(each, name), "wb") as file:
                file.write(b"%d" % index)
    with open(os.path.join(os.fsencode(here), b"large\n'\xff\\ "), "wb") as file:
        file.write(os.urandom(MIB + 1))
    result = copier.copy(here, copier.remote(there), recursive=True, checksum=True)
    assert (result.files, result.failures) == (2 * len(NAMES) + 1, [])
    assert tree(there) == tree(here)
    result = copier.copy(copier.remote(there), back, recursive=True, checksum=True)
    assert (result.files, result.failures) == (2 * len(NAMES) + 1, [])
    assert tree(back) == tree(here)
    # One by one, as arguments; those of this machine begin with a folder, so that they are no options and no nodes.
    single = tmp_path / "single"
    single.mkdir()
    files = [os.path.join(os.fsencode(here), name) for name in NAMES]
    copier.copy([os.fsdecode(each) for each in files], copier.remote(single))
    assert tree(single) == {name: value for name, value in tree(here).items() if name in NAMES}
    again = tmp_path / "again"
    again.mkdir()
    copier.copy([copier.remote(each) for each in files], again)
    assert tree(again) == tree(single)


def test_holes_stay_holes(real: Copier, tmp_path: Path) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    with here.open("wb") as file:
        file.seek(3 * MIB)
        file.write(os.urandom(1000))
        file.truncate(6 * MIB)
    if here.stat().st_blocks * 512 > MIB:
        pytest.skip("this file system has no holes")
    result = real.copy(here, real.remote(there))
    assert result.copied_bytes < MIB, "holes are not sent"
    assert result.total_bytes == 6 * MIB
    real.copy(real.remote(there), back)
    for copy in (there, back):
        assert copy.read_bytes() == here.read_bytes()
        assert copy.stat().st_blocks * 512 < MIB


def test_files_whose_size_is_not_known(copier: Copier, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    source = Path("/proc/version")
    if not source.exists():
        pytest.skip("there is no /proc")
    copier.copy(source, copier.remote(tmp_path / "up"))
    copier.copy(copier.remote(source), tmp_path / "down")
    assert (tmp_path / "up").read_bytes() == (tmp_path / "down").read_bytes() == source.read_bytes()
    # These say 4096, whatever is in them.
    strange = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if strange.exists():
        copier.copy(strange, copier.remote(tmp_path / "up"))
        copier.copy(copier.remote(strange), tmp_path / "down")
        assert (tmp_path / "up").read_bytes() == (tmp_path / "down").read_bytes() == strange.read_bytes()


# --- permissions and times ------------------------------------------------------------------------------------------

MODES = {"plain": 0o644, "read only": 0o444, "nobody": 0o000, "program": 0o755, "private": 0o600, "set-uid": 0o6755}
LONG_AGO = 1_000_000_000


@pytest.fixture
def modes(tmp_path: Path) -> Path:
    here = tmp_path / "here"
    for folder in (here, here / "closed", here / "open"):
        folder.mkdir()
        for name, mode in MODES.items():
            (folder / name).write_text(name)
            (folder / name).chmod(mode)
            os.utime(folder / name, (LONG_AGO + 1, LONG_AGO))
        (folder / "large").write_bytes(bytes(MIB + 1))
        (folder / "large").chmod(0o444)
        os.utime(folder / "large", (LONG_AGO + 1, LONG_AGO))
    for folder, mode in ((here / "open", 0o1777), (here / "closed", 0o555), (here, 0o750)):
        folder.chmod(mode)
        os.utime(folder, (LONG_AGO + 1, LONG_AGO))
    return here


def shape(folder: Path) -> dict[str, tuple[int, int]]:
    """Give permissions and time of a folder and of all that is in it."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        found[str(path.relative_to(folder))] = (stat.S_IMODE(status.st_mode), int(status.st_mtime))
    return found


def test_permissions_and_times(real: Copier, modes: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        (modes / "nobody").chmod(0o400)
        (modes / "open" / "nobody").chmod(0o400)
    there, back, plain, plain_back = (tmp_path / name for name in ("there", "back", "plain", "plain_back"))
    expected = {name: (mode & 0o777, when) for name, (mode, when) in shape(modes).items()}
    real.copy(modes, real.remote(there), recursive=True, preserve=True)
    assert shape(there) == expected
    real.copy(real.remote(there), back, recursive=True, preserve=True)
    assert shape(back) == expected
    assert int((back / "plain").stat().st_atime) >= LONG_AGO + 1

    before = int(time.time()) - 5
    real.copy(modes, real.remote(plain), recursive=True)
    real.copy(real.remote(modes), plain_back, recursive=True)
    mask = os.umask(0)
    os.umask(mask)
    for target in (plain, plain_back):
        found = shape(target)
        assert {name: mode for name, (mode, _) in found.items()} == {
            name: mode & ~mask for name, (mode, _) in expected.items()
        }
        assert min(when for _, when in found.values()) >= before


def test_what_is_there_keeps_its_permissions_and_its_owner(
    real: Copier, tmp_path: Path, in_the_middle: InTheMiddle
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    large = bytes(MIB + 1)
    for folder, content in ((here, b"new"), (there, b"old")):
        folder.mkdir()
        for name in ("private", "set-uid"):
            (folder / name).write_bytes(content)
        (folder / "large").write_bytes(large + content)
    for name in ("private", "large"):
        (there / name).chmod(0o600)
    (there / "set-uid").chmod(0o4755)
    if os.geteuid() == 0:
        for file in there.iterdir():
            os.chown(file, 65534, 65533)
        (there / "set-uid").chmod(0o4755)
    sources = sorted(here.iterdir())
    modes: set[int] = set()

    def note(_: Path) -> None:
        for part in parts(there):
            with contextlib.suppress(FileNotFoundError):  # a small one that has been put in place
                status = part.stat()
                modes.update([stat.S_IMODE(status.st_mode)] if status.st_size > MIB else [])

    in_the_middle(note)

    def check() -> None:
        assert modes == {0o600}, "what was nobody else's to read never is"
        for source in sources:
            target = there / source.name
            status = target.stat()
            assert target.read_bytes() == source.read_bytes()
            assert stat.S_IMODE(status.st_mode) == (0o755 if source.name == "set-uid" else 0o600)
            if os.geteuid() == 0:
                assert (status.st_uid, status.st_gid) == (65534, 65533)
            target.write_bytes(b"old")

    real.copy(sources, real.remote(there))
    check()
    (there / "set-uid").chmod(0o4755)
    real.copy([real.remote(each) for each in sources], there)
    check()


# --- what is at the target ------------------------------------------------------------------------------------------


def test_what_is_at_the_target(real: Copier, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "merged").mkdir(parents=True)
    contents = {
        "link": b"new",
        "large link": bytes(MIB + 1),
        "link to nothing": b"new",
        "merged/file": b"new",
        "folder": b"new",
        "large folder": bytes(MIB + 1),
        "fifo": b"new",
        "large fifo": bytes(MIB + 1),
    }
    for name, content in contents.items():
        (here / name).write_bytes(content)
    failed = {"folder", "large folder", "fifo", "large fifo"}
    for target, source, destination in up_and_down(real, here, tmp_path):
        elsewhere = tmp_path / f"else {target.name}"
        for folder in (target, elsewhere / "merged", target / "folder", target / "large folder"):
            folder.mkdir(parents=True)
        for name in ("link", "large link"):
            (elsewhere / name).write_text("old")
            (target / name).symlink_to(elsewhere / name)
        (target / "link to nothing").symlink_to(elsewhere / "made")
        (target / "merged").symlink_to(elsewhere / "merged")
        os.mkfifo(target / "fifo")
        os.mkfifo(target / "large fifo")
        failures = real.failures(source, destination, recursive=True)
        assert failures.keys() == failed
        assert "there is a folder of that name" in failures["folder"]
        assert "no regular file, and is left alone" in failures["fifo"]
        for name in ("link", "large link"):
            assert (target / name).is_symlink()
            assert (elsewhere / name).read_bytes() == contents[name]
        assert (elsewhere / "made").read_bytes() == b"new"
        assert (elsewhere / "merged" / "file").read_bytes() == b"new"
        assert (target / "folder").is_dir()
        assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
        assert parts(tmp_path) == []


def test_a_program_that_runs_is_replaced(real: Copier, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path(tool("sleep")).read_bytes())
    program.chmod(0o755)
    new = tmp_path / "new"
    new.write_text("#!/bin/sh\n")
    with subprocess.Popen([program, "60"]) as running:
        try:
            real.copy(new, real.remote(program))
            assert program.read_text() == "#!/bin/sh\n"
        finally:
            running.kill()
