"""scp by both of its protocols, sftp and rsync: what arrives is what was sent."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from nodes import MIB, REAL, WITHIN, MakeUser, StartEmulator, User, quiet, tool, wait_until

pytestmark = pytest.mark.integration
SIZES = (0, 1, 1023, 1024, 1025, 65536, 8 * MIB)
PROTOCOLS = pytest.mark.parametrize("protocol", [(), ("-O",)], ids=["sftp-protocol", "scp-protocol"])


def contents(folder: Path) -> dict[str, str]:
    """Give the checksum of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): checksum(path) for path in files}


def checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def make_files(folder: Path, sizes: Iterable[int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{size} bytes" for size in sizes]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(os.urandom(size))
    return files


@PROTOCOLS
def test_scp_of_files_up_and_down(user: User, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    files = make_files(here, SIZES)
    there.mkdir()
    back.mkdir()
    quiet(user.run("scp", *protocol, *files, user.remote(there)))
    assert contents(there) == contents(here)
    quiet(user.run("scp", *protocol, user.remote(f"{there}/*"), back))
    assert contents(back) == contents(here)


@PROTOCOLS
def test_scp_of_folders_and_names_with_spaces(user: User, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    make_files(here, (0, 10))
    make_files(here / "a folder" / "ünïcode ☃", (1, 5000))
    (here / "empty").mkdir()
    (here / "run me").write_text("#!/bin/sh\n")
    (here / "run me").chmod(0o755)
    quiet(user.run("scp", *protocol, "-rp", here, user.remote(there)))
    quiet(user.run("scp", *protocol, "-rp", user.remote(there), back))
    assert contents(there) == contents(back) == contents(here)
    assert (back / "empty").is_dir()
    assert os.access(back / "run me", os.X_OK)


@PROTOCOLS
def test_scp_of_what_is_not_there(user: User, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    done = user.run("scp", *protocol, user.remote(tmp_path / "nothing"), tmp_path / "copy")
    assert done.returncode == 1
    assert b"No such file" in done.stderr
    assert not (tmp_path / "copy").exists()


def test_sftp_batch(user: User, tmp_path: Path) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    make_files(here, (0, 1025, 3 * MIB))
    back.mkdir()
    batch = (
        f"mkdir {there}\ncd {there}\nlcd {here}\nput *\nrename '1025 bytes' renamed\nchmod 600 renamed\nls -1\n"
        f"lcd {back}\nget *\nrm renamed\n"
    )
    output = quiet(user.run("sftp", "-q", "-b", "-", user.host, data=batch.encode()))
    assert b"renamed\n" in output
    expected = contents(here)
    expected["renamed"] = expected.pop("1025 bytes")
    assert contents(back) == expected
    assert sorted(path.name for path in there.iterdir()) == ["0 bytes", f"{3 * MIB} bytes"]


# --- rsync ----------------------------------------------------------------------------------------------------------


def rsync(user: User, *arguments: str | Path) -> bytes:
    command = [tool("rsync"), "-e", user.remote_shell(), *arguments]
    return quiet(subprocess.run(command, env=user.environment, capture_output=True, timeout=60, check=False))


def literal_bytes(statistics: bytes) -> int:
    """Give how much of the files rsync really sent."""
    (line,) = [line for line in statistics.splitlines() if line.startswith(b"Literal data:")]
    return int(line.split()[2].replace(b",", b""))


def test_rsync_up_down_and_what_has_changed(user: User, tmp_path: Path) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    make_files(here, SIZES)
    make_files(here / "a folder", (10,))
    rsync(user, "-a", f"{here}/", user.remote(f"{there}/"))
    assert contents(there) == contents(here)
    rsync(user, "-a", user.remote(f"{there}/"), f"{back}/")
    assert contents(back) == contents(here)

    with (here / f"{8 * MIB} bytes").open("r+b") as file:
        file.seek(4 * MIB)
        file.write(os.urandom(1000))
    statistics = rsync(user, "-a", "--stats", f"{here}/", user.remote(f"{there}/"))
    assert contents(there) == contents(here)
    assert 0 < literal_bytes(statistics) < 100_000


def test_rsync_goes_on_where_it_was_interrupted(user: User, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    (file,) = make_files(here, (8 * MIB,))
    arguments: list[str | Path] = ["-a", "--partial", "-e", user.remote_shell(), file, user.remote(f"{there}/")]
    interrupted = subprocess.Popen(
        [tool("rsync"), "--bwlimit=256K", *arguments],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: [each for each in there.iterdir() if each.stat().st_size > MIB // 2], "a part has arrived")
    interrupted.terminate()
    interrupted.communicate(timeout=WITHIN)
    partial = there / file.name
    wait_until(partial.exists, "the part is kept")
    wait_until(lambda: not user.processes(), "the first one has ended")
    kept = partial.stat().st_size
    assert MIB // 2 < kept < 8 * MIB
    statistics = rsync(user, "--stats", *arguments)
    assert contents(there) == contents(here)
    assert literal_bytes(statistics) < 8 * MIB - kept + 100_000


# --- much -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scp_of_a_gigabyte(start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path) -> None:
    user = new_user(start_emulator(), REAL)
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    with here.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(MIB))
    try:
        quiet(user.run("scp", here, user.remote(there), timeout=400))
        assert checksum(there) == checksum(here)
        quiet(user.run("scp", user.remote(there), back, timeout=400))
        assert checksum(back) == checksum(here)
    finally:
        for path in (here, there, back):
            path.unlink(missing_ok=True)
