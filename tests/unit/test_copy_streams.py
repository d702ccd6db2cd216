"""Standard input to a file of the node and back: pieces in any order, slow readers, ends that come late."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sftp_peer import SIZELESS, Client, LyingServer, NoShell, PipeLink

from ssm_proxy.file_copy.checksums import local_blocks
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.names import is_part_of
from ssm_proxy.file_copy.streams import MOST_WAITING, FromInput, ToOutput, _Digests
from ssm_proxy.file_copy.values import RANGE_BYTES, CopyOptions, FileError, FileState
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpStatus

NOBODY = 65534


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class Shell:
    refusal: str | None = None

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False)
        return done.returncode, done.stdout


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def context() -> Context:
    return Context(CopyOptions(), is_striped=True)


def send(client: Client, job: FromInput, link: Any, *, order: random.Random | None = None) -> None:
    """Copy pieces until there are no more; in any order, some of them twice."""
    taken = []
    while not job.has_all_ranges or taken:
        while (piece := job.take_range()) is not None:
            taken.append(piece)
        if not taken:
            time.sleep(0.001)
            continue
        piece = taken.pop(order.randrange(len(taken)) if order else 0)
        if order and order.random() < 0.2:
            job.give_back(piece)
        else:
            client.run(job.copy_range(link, piece))


def test_a_stream_to_the_node(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    data = os.urandom(4 * 1024 * 1024 + 300_000)
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, Shell())

    def write() -> None:
        with open(pipe[1], "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    client.run(job.prepare(link))
    client.run(job.prepare(link))  # the link that began was lost
    send(client, job, link, order=random.Random(1))
    writer.join()
    client.run(job.finish(link))
    job.close()
    assert (tmp_path / "target").read_bytes() == data
    assert os.listdir(tmp_path) == ["target"]
    outcome = job.outcome()
    assert (outcome.source, outcome.size, outcome.verified) == ("-", len(data), True)


def test_a_piece_that_another_link_has_sent_is_no_error(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client)
    os.write(pipe[1], b"data")
    client.run(job.prepare(link))
    wait_until(lambda: job._data)
    piece = job.take_range()
    assert piece is not None
    assert client.run(job.copy_range(link, piece)) == 4
    assert client.run(job.copy_range(link, piece)) == 0
    client.run(job.abandon(link))
    with pytest.raises(FileError, match="over already"):
        client.run(job.copy_range(link, piece))
    assert os.listdir(tmp_path) == []


def test_an_old_file_of_the_same_size_is_not_taken_for_what_was_renamed(
    client: Client, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    (tmp_path / "target").write_bytes(b"old!")
    (tmp_path / "target").chmod(0o604)
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, NoShell())
    os.write(pipe[1], b"new!")
    os.close(pipe[1])
    client.run(job.prepare(link))
    send(client, job, link)
    job._rename_sent = True  # by a link that was lost before it was done
    client.run(job.finish(link))
    assert (tmp_path / "target").read_bytes() == b"new!"
    client.run(job.finish(link))  # by one that was lost after it
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o604


def test_what_replaces_a_file_gets_its_owner_and_its_permissions(
    client: Client, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (tmp_path / "target").write_bytes(b"old")
    os.chown(tmp_path / "target", NOBODY, NOBODY)
    (tmp_path / "target").chmod(0o604)
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, NoShell())
    os.close(pipe[1])
    client.run(job.prepare(link))
    send(client, job, link)
    client.run(job.finish(link))
    status = (tmp_path / "target").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_size) == (NOBODY, NOBODY, 0o604, 0)


@pytest.mark.parametrize("has_fsync", [True, False])
def test_an_error_that_comes_late_leaves_the_old_file(
    client: Client, tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, has_fsync: bool
) -> None:
    """Over NFS, for instance, that the disk is full is said when what was written is stored: at the latest at CLOSE."""
    (tmp_path / "target").write_bytes(b"old")
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, NoShell())
    os.write(pipe[1], b"new")
    os.close(pipe[1])
    client.run(job.prepare(link))
    send(client, job, link)

    real = client.sftp.close_handle

    async def fsync(handle: bytes) -> bool:
        if has_fsync:
            raise SftpStatus(packets.FAILURE, "Failure")
        return False

    async def close_handle(handle: bytes) -> None:
        await real(handle)
        if not has_fsync:
            raise SftpStatus(packets.FAILURE, "Failure")

    monkeypatch.setattr(client.sftp, "fsync", fsync)
    monkeypatch.setattr(client.sftp, "close_handle", close_handle)
    with pytest.raises(FileError, match="its disk was full, or a quota is used up"):
        client.run(job.finish(link))
    assert (tmp_path / "target").read_bytes() == b"old"
    monkeypatch.undo()
    client.run(job.abandon(link))
    assert os.listdir(tmp_path) == ["target"]


def test_input_that_does_not_block_is_waited_for(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, NoShell())
    client.run(job.prepare(link))
    time.sleep(0.02)
    os.write(pipe[1], b"late")
    os.close(pipe[1])
    send(client, job, link)
    client.run(job.finish(link))
    assert (tmp_path / "target").read_bytes() == b"late"


def test_what_cannot_be_read_is_told(client: Client, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # a folder
    woken = threading.Event()
    job = FromInput(fd, os.fsencode(tmp_path / "target"), context(), woken.set)
    link = PipeLink(client)
    client.run(job.prepare(link))
    assert woken.wait(60)
    assert job.has_all_ranges
    with pytest.raises(OSError) as failed:
        client.run(job.finish(link))
    os.close(fd)
    assert job.failure(failed.value).error == "standard input cannot be copied: Is a directory"
    client.run(job.abandon(link))
    assert [name for name in os.listdir(tmp_path) if is_part_of(os.fsencode(name), b"target")] == []


def test_input_is_read_only_so_far_ahead(client: Client, tmp_path: Path) -> None:
    job = FromInput(os.open("/dev/zero", os.O_RDONLY), os.fsencode(tmp_path / "target"), context(), lambda: None)
    client.run(job.prepare(PipeLink(client)))
    wait_until(lambda: len(job._data) >= MOST_WAITING)
    job.close()
    assert job._reader is not None
    job._reader.join(60)
    assert len(job._data) <= MOST_WAITING + 1


def test_damage_on_the_way_is_found(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    job = FromInput(pipe[0], os.fsencode(tmp_path / "target"), context(), lambda: None)
    link = PipeLink(client, Shell())
    os.write(pipe[1], b"data")
    os.close(pipe[1])
    client.run(job.prepare(link))
    send(client, job, link)
    (part,) = tmp_path.iterdir()
    part.write_bytes(b"xata")
    with pytest.raises(FileError, match="checksums differ"):
        client.run(job.finish(link))


# --- to standard output -----------------------------------------------------------------------------------------------


def to_output(
    fd: int,
    source: Path,
    *,
    wake: Callable[[], object] = lambda: None,
    is_wanted: Callable[[], bool] = lambda: True,
    nobody_reads: Callable[[], None] = lambda: None,
) -> ToOutput:
    return ToOutput(fd, os.fsencode(source), 0, context(), wake, is_wanted, nobody_reads)


def receive(client: Client, job: ToOutput, link: Any) -> None:
    """Copy all pieces, the later ones first as far as that can be."""
    while not job.has_all_ranges:
        taken = []
        while len(taken) < 8 and (piece := job.take_range()) is not None:
            taken.append(piece)
        for piece in reversed(taken):
            client.run(job.copy_range(link, piece))
            client.run(job.copy_range(link, piece))  # a second link was as fast
        time.sleep(0.001)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_file_to_a_stream(client: Client, tmp_path: Path, pipe: tuple[int, int], is_blocking: bool) -> None:
    data = os.urandom(4 * 1024 * 1024 + 300_000)
    (tmp_path / "source").write_bytes(data)
    os.set_blocking(pipe[1], is_blocking)
    job = to_output(pipe[1], tmp_path / "source")
    link = PipeLink(client, Shell())
    found = bytearray()

    def read() -> None:
        while piece := os.read(pipe[0], 50_000):
            found.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    client.run(job.prepare(link))
    receive(client, job, link)
    client.run(job.finish(link))
    job.close()
    os.close(pipe[1])
    reader.join(60)
    assert found == data
    assert (job.outcome().size, job.outcome().verified, job.outcome().state) == (len(data), True, FileState.COPIED)


def test_a_reader_that_is_slow_is_no_links_work(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    (tmp_path / "source").write_bytes(bytes(300_000))
    woken = threading.Semaphore(0)
    job = to_output(pipe[1], tmp_path / "source", wake=woken.release)
    link = PipeLink(client, NoShell())
    client.run(job.prepare(link))
    while (piece := job.take_range()) is not None:
        client.run(job.copy_range(link, piece))
    assert not job.has_all_ranges, "nobody has read it yet"
    left = 300_000
    while left:
        left -= len(os.read(pipe[0], left))
    wait_until(lambda: job.has_all_ranges)
    assert woken.acquire(timeout=60)
    client.run(job.finish(link))
    job.close()


def test_a_reader_that_has_gone_is_no_failure_of_the_file(
    client: Client, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    (tmp_path / "source").write_bytes(bytes(300_000))
    os.close(pipe[0])
    gone = threading.Event()
    job = to_output(pipe[1], tmp_path / "source", is_wanted=lambda: not gone.is_set(), nobody_reads=gone.set)
    link = PipeLink(client)
    client.run(job.prepare(link))
    piece = job.take_range()
    assert piece is not None
    client.run(job.copy_range(link, piece))
    assert gone.wait(60)
    client.run(job.copy_range(link, piece))  # what is on its way comes to its end
    assert not job.has_all_ranges
    with pytest.raises(FileError, match="interrupted"):
        client.run(job.finish(link))


def test_an_output_that_takes_nothing_is_told(client: Client, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(300_000))
    read_only = os.open(tmp_path / "source", os.O_RDONLY)
    job = to_output(read_only, tmp_path / "source")
    link = PipeLink(client)
    client.run(job.prepare(link))
    piece = job.take_range()
    assert piece is not None
    client.run(job.copy_range(link, piece))
    wait_until(lambda: job.has_all_ranges)
    for step in (lambda: job.copy_range(link, piece), lambda: job.finish(link)):
        with pytest.raises(OSError, match="Bad file descriptor") as failed:
            client.run(step())
    os.close(read_only)
    assert job.failure(failed.value).error == "standard output cannot be written: Bad file descriptor"


def test_no_more_is_read_than_may_wait(client: Client, tmp_path: Path, pipe: tuple[int, int]) -> None:
    path = tmp_path / "source"
    path.touch()
    os.truncate(path, 2 * MOST_WAITING * RANGE_BYTES)
    job = to_output(pipe[1], path)
    client.run(job.prepare(PipeLink(client)))
    pieces = []
    while (piece := job.take_range()) is not None:
        pieces.append(piece)
    assert len(pieces) == MOST_WAITING
    assert not job.has_all_ranges
    job.give_back(pieces[3])
    assert job.take_range() == pieces[3]
    job.close()


@pytest.mark.parametrize(("size", "lost_at"), [(100_000, 3), (0, 0), (10, 0)])
def test_a_file_that_says_nothing_of_its_size_is_read_to_its_end(
    pipe: tuple[int, int], size: int, lost_at: int
) -> None:
    """As those of /proc; also when a link is lost in the middle of it."""
    content = os.urandom(size)
    client = Client(LyingServer(lambda path: [], content=content, mode=lambda path: SIZELESS))
    job = to_output(pipe[1], Path("/proc/x"))
    link = PipeLink(client, NoShell())
    found = bytearray()

    def read() -> None:
        while piece := os.read(pipe[0], 50_000):
            found.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    client.run(job.prepare(link))
    assert job.has_all_ranges
    if lost_at:
        real, calls = client.sftp.read, iter(range(lost_at))

        def read_some(handle: bytes, offset: int, count: int) -> Any:
            if next(calls, None) is None:
                raise ConnectionResetError
            return real(handle, offset, count)

        with mock.patch.object(client.sftp, "read", read_some), pytest.raises(ConnectionResetError):
            client.run(job.finish(link))
    client.run(job.finish(link))
    job.close()
    os.close(pipe[1])
    reader.join(60)
    assert found == content


@pytest.mark.parametrize(("name", "why"), [("folder", "it is a folder"), ("fifo", "it is no regular file")])
def test_what_cannot_be_streamed(client: Client, tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    job = to_output(1, tmp_path / name)
    with pytest.raises(FileError, match=why):
        client.run(job.prepare(PipeLink(client)))


@given(st.lists(st.integers(0, 3), max_size=12))
def test_digests_of_blocks_come_out_the_same_however_the_stream_is_cut(sizes: list[int]) -> None:
    block = 1000
    data = bytes(range(250)) * 16
    lengths = [(0, 1, 999, 2500)[size] for size in sizes]
    with mock.patch("ssm_proxy.file_copy.streams._BLOCK", block):
        digests, whole = _Digests(), bytearray()
        for length in lengths:
            digests.update(data[:length])
            whole += data[:length]
        digests.end()
        digests.end()

    class Whole:
        def read_at(self, offset: int, size: int) -> bytes:
            return bytes(whole[offset : offset + size])

    with mock.patch("ssm_proxy.file_copy.checksums.block_bytes", return_value=block):
        assert digests.done == local_blocks(Whole(), len(whole))
