"""Files of this machine in a copy: shared ones, what a download may replace, what an interrupted one left; ranges."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.file_copy.board import Range
from ssm_proxy.file_copy.local_file import SharedFile, find_local_part, look_at_local_target
from ssm_proxy.file_copy.names import part_path
from ssm_proxy.file_copy.ranges import RangeList
from ssm_proxy.file_copy.values import RANGE_BYTES, FileError


@pytest.fixture
def shared(tmp_path: Path) -> SharedFile:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return SharedFile(os.open(path, os.O_RDWR))


def test_reading_and_writing_at_any_place(shared: SharedFile) -> None:
    assert shared.read_at(3, 4) == b"3456"
    assert shared.read_at(8, 100) == b"89"
    assert shared.read_at(50, 10) == b""
    shared.write_at(12, b"end")
    shared.write_at(0, b"")
    assert shared.read_at(0, 100) == b"0123456789\0\0end"
    shared.truncate(5)
    assert shared.stat().st_size == 5
    shared.close()


def test_short_reads_and_writes_are_gone_on_with(shared: SharedFile) -> None:
    real_read, real_write = os.pread, os.pwrite
    with (
        mock.patch("os.pread", lambda fd, size, offset: real_read(fd, min(size, 3), offset)),
        mock.patch("os.pwrite", lambda fd, data, offset: real_write(fd, data[:3], offset)),
    ):
        shared.write_at(2, b"abcdefgh")
        assert shared.read_at(1, 8) == b"1abcdefg"
    shared.close()


def test_nothing_is_done_after_the_end_however_often_it_ends(shared: SharedFile) -> None:
    shared.close()
    shared.close()
    calls: list[Callable[[], object]] = [
        lambda: shared.read_at(0, 1),
        lambda: shared.write_at(0, b"x"),
        lambda: shared.truncate(0),
        shared.stat,
        lambda: shared.data_stretches(1),
    ]
    for call in calls:
        with pytest.raises(FileError, match="over already"):
            call()


def sparse(path: Path, stretches: list[tuple[int, int]], size: int) -> SharedFile:
    with open(path, "wb") as file:
        for offset, length in stretches:
            os.pwrite(file.fileno(), b"x" * length, offset)
        file.truncate(size)
    return SharedFile(os.open(path, os.O_RDONLY))


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ([], 4 * MIB),
        ([(0, 10)], 4 * MIB),
        ([(2 * MIB, MIB)], 4 * MIB),
        ([(0, MIB), (3 * MIB, MIB)], 4 * MIB),
        ([(0, 10)], 10),
        ([], 0),
    ],
)
def test_all_data_is_in_the_stretches(tmp_path: Path, written: list[tuple[int, int]], size: int) -> None:
    shared = sparse(tmp_path / "file", written, size)
    stretches = shared.data_stretches(size)
    shared.close()
    position = 0
    for offset, length in stretches:
        assert offset >= position
        assert length > 0 or size == 0
        position = offset + length
    assert position <= size
    for offset, length in written:
        assert any(start <= offset and offset + length <= start + some for start, some in stretches)


def test_what_a_file_has_grown_by_is_no_data_of_it(tmp_path: Path) -> None:
    shared = sparse(tmp_path / "file", [(0, 10), (8 * MIB, 10)], 9 * MIB)
    for size in (4 * MIB, 10, 8 * MIB):
        stretches = shared.data_stretches(size)
        assert all(length > 0 and start + length <= size for start, length in stretches)
        assert stretches[0][0] == 0
    shared.close()


def test_a_file_system_that_knows_no_holes_has_data_everywhere(shared: SharedFile) -> None:
    with mock.patch("os.lseek", side_effect=OSError(errno.EINVAL, "what?")):
        assert shared.data_stretches(10) == [(0, 10)]
    with mock.patch.object(os, "SEEK_DATA", create=True):
        del os.SEEK_DATA
        assert shared.data_stretches(10) == [(0, 10)]
    shared.close()


# --- the target of a download -----------------------------------------------------------------------------------------


def test_what_a_download_replaces(tmp_path: Path) -> None:
    target = os.fsencode(tmp_path / "file")
    assert look_at_local_target(target) == (target, None)
    (tmp_path / "file").write_bytes(b"old")
    found = look_at_local_target(target)
    assert found.path == target
    assert found.existing is not None
    assert found.existing.st_size == 3


def test_links_are_followed_to_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("sub/file")
    (tmp_path / "sub").mkdir()
    real = os.fsencode(tmp_path.resolve() / "sub" / "file")
    assert look_at_local_target(os.fsencode(tmp_path / "link")) == (real, None)
    (tmp_path / "sub" / "file").write_bytes(b"old")
    assert look_at_local_target(os.fsencode(tmp_path / "link")).path == real


def test_what_a_download_leaves_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # a socket's name is short
    listener.bind("socket")
    os.chdir(here)
    listener.close()
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(FileError, match="folder of that name"):
        look_at_local_target(os.fsencode(tmp_path / "folder"))
    for name in ("fifo", "socket", "loop", "null"):
        with pytest.raises(FileError, match="no regular file"):
            look_at_local_target(os.fsencode(tmp_path / name))
    (tmp_path / "file").write_bytes(b"")
    with (
        mock.patch("os.access", lambda path, mode: mode != os.W_OK),  # root may write to anything
        pytest.raises(FileError, match="read-only"),
    ):
        look_at_local_target(os.fsencode(tmp_path / "file"))


def test_the_part_with_most_data_is_found(tmp_path: Path) -> None:
    target = os.fsencode(tmp_path / "file")
    assert find_local_part(target) is None
    small, large, link, folder, other = (Path(os.fsdecode(part_path(target))) for _ in range(5))
    other = Path(os.fsdecode(part_path(os.fsencode(tmp_path / "other"))))
    small.write_bytes(b"x" * 5000)
    large.write_bytes(b"x" * 500_000)
    os.truncate(small, 10 * MIB)  # what is not there yet does not count
    other.write_bytes(b"x" * 5_000_000)
    link.symlink_to(other)
    folder.mkdir()
    assert find_local_part(target) == os.fsencode(large)
    with mock.patch("os.geteuid", return_value=os.getuid() + 1):
        assert find_local_part(target) is None, "another user could change it when it is in place"


# --- ranges -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**6)), max_size=5), st.data())
def test_every_byte_is_given_once_and_what_comes_back_once_more(
    stretches: list[tuple[int, int]], data: st.DataObject
) -> None:
    ranges = RangeList()
    ranges.give_back(Range(5, 5))
    ranges.set(stretches)
    assert ranges.is_empty == (not any(size for _, size in stretches))
    taken: list[Range] = []
    returned = 0
    while (piece := ranges.take()) is not None:
        assert 0 < piece.size <= RANGE_BYTES
        if returned < 3 and data.draw(st.booleans()):
            ranges.give_back(piece)
            assert not ranges.is_empty
            returned += 1
        else:
            taken.append(piece)
    assert ranges.is_empty
    assert sum(piece.size for piece in taken) == sum(size for _, size in stretches)
    expected = sorted(
        (offset + at, min(RANGE_BYTES, size - at)) for offset, size in stretches for at in range(0, size, RANGE_BYTES)
    )
    assert sorted(taken) == expected


def test_a_part_keeps_the_permissions_that_its_file_will_have(tmp_path: Path) -> None:
    from ssm_proxy.file_copy.local_file import open_part

    part = tmp_path / "part"
    part.write_bytes(b"x")
    part.chmod(0o444)
    seen = []
    real = os.open

    def open_it(path: bytes, flags: int) -> int:
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        return real(path, flags)

    with mock.patch("os.open", open_it):
        fd = open_part(os.fsencode(part))
    os.close(fd)
    assert seen == [0o444, 0o644]
    assert stat.S_IMODE(part.stat().st_mode) == 0o444
