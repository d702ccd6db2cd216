"""One file's copy, step by step, with OpenSSH's server and a local shell: what the links do, with their losses."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sftp_peer import Client, NoShell, PipeLink

from ssm_proxy.file_copy import node_files
from ssm_proxy.file_copy.board import SMALLEST_WEIGHT, Board, Kind, Range, Work
from ssm_proxy.file_copy.checksums import SMALLEST_BLOCK
from ssm_proxy.file_copy.context import AgainNeeded, BecameLarge, Context, explain
from ssm_proxy.file_copy.download import Download
from ssm_proxy.file_copy.link import Link
from ssm_proxy.file_copy.names import is_part_of, part_path
from ssm_proxy.file_copy.upload import Upload
from ssm_proxy.file_copy.values import SPLIT_BYTES, CopyOptions, FileError, FileOutcome, FileState, SourceFile
from ssm_proxy.sftp import packets
from ssm_proxy.sftp.connection import SftpStatus

LARGE = SMALLEST_BLOCK + 300_000


class Shell:
    """Runs commands here, where the server's files are."""

    refusal: str | None = None

    def __init__(self) -> None:
        self.is_gone = False

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        if self.is_gone:
            return None
        done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False)
        return done.returncode, done.stdout


def content(size: int) -> bytes:
    return os.urandom(size)


def test_limits_that_come_while_a_small_file_is_read_do_not_spoil_it(client: Client, tmp_path: Path) -> None:
    data, read = content(200_000), []
    (tmp_path / "file").write_bytes(data)

    async def read_it() -> None:
        handle = await client.sftp.open(b"file", packets.OPEN_READ)
        read.append((await node_files.read_whole(client.sftp, handle, len(data)))[0])

    async def learn_it() -> None:
        await client.sftp.stat(b"file")  # answered with the above, so that the reads are under way now
        client.sftp.read_bytes *= 2

    client.run_all([read_it(), learn_it()])
    assert read == [data]


class Copy:
    """One file to be copied in either direction."""

    def __init__(
        self, client: Client, tmp_path: Path, data: bytes, *, kind: type, shell: Any = None, **options: Any
    ) -> None:
        self.client = client
        self.source, self.target = tmp_path / "from" / "file", tmp_path / "to" / "file"
        self.source.parent.mkdir(exist_ok=True)
        self.target.parent.mkdir(exist_ok=True)
        self.source.write_bytes(data)
        self.source.chmod(0o640)
        os.utime(self.source, (1500000000, 1600000000))
        self.context = Context(CopyOptions(**options), is_striped=True)
        self.kind = kind
        self.link = PipeLink(client, Shell() if shell is None else shell)
        self.job = self.new_job()

    def new_job(self) -> Any:
        status = self.source.stat()
        return self.kind(
            SourceFile(
                source=os.fsencode(self.source),
                target=os.fsencode(self.target),
                size=status.st_size,
                permissions=stat.S_IMODE(status.st_mode),
                times=(int(status.st_atime), int(status.st_mtime)),
            ),
            self.context,
        )

    def copy_ranges(self) -> int:
        moved = 0
        while (piece := self.job.take_range()) is not None:
            moved += self.client.run(self.job.copy_range(self.link, piece))
        return moved

    def run(self) -> FileOutcome:
        """Do all that links do with a large file, in one thread."""
        self.client.run(self.job.prepare(self.link))
        self.copy_ranges()
        self.finish()
        outcome: FileOutcome = self.job.outcome()
        self.job.close()
        return outcome

    def finish(self, between: Callable[[], None] = lambda: None) -> int:
        """Finish it, with as many rounds more as that takes; give their number."""
        rounds = 0
        while True:
            between()
            try:
                self.client.run(self.job.finish(self.link))
            except AgainNeeded:
                rounds += 1
                self.copy_ranges()
            else:
                return rounds

    def parts(self) -> list[Path]:
        names = self.target.parent.iterdir()
        return [path for path in names if is_part_of(os.fsencode(path.name), os.fsencode(self.target))]


BOTH = pytest.mark.parametrize("kind", [Upload, Download])


@BOTH
@pytest.mark.parametrize("size", [0, 1, 32768, 32769, 300_000])
def test_a_small_file(client: Client, tmp_path: Path, kind: type, size: int) -> None:
    copy = Copy(client, tmp_path, content(size), kind=kind, preserve=True)
    assert not copy.job.is_split
    assert client.run(copy.job.copy_whole(copy.link)) is False
    assert copy.target.read_bytes() == copy.source.read_bytes()
    status = copy.target.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime == 1600000000
    assert copy.parts() == []
    assert copy.context.moved_bytes == size


@BOTH
def test_a_small_file_takes_the_place_and_the_permissions_of_the_old_one(
    client: Client, tmp_path: Path, kind: type
) -> None:
    copy = Copy(client, tmp_path, b"new", kind=kind)
    real = tmp_path / "real"
    real.write_bytes(b"old, and longer")
    real.chmod(0o604)
    copy.target.symlink_to(real)
    client.run(copy.job.copy_whole(copy.link))
    assert copy.target.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o604


@BOTH
def test_a_small_file_is_put_in_place_when_it_is_verified(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(5000), kind=kind, checksum=True)
    assert client.run(copy.job.copy_whole(copy.link)) is True
    assert not copy.target.exists()
    expected = hashlib.sha256(copy.source.read_bytes()).digest()
    assert client.run(copy.job.digest_read_back(copy.link)) == copy.job.digest == expected
    client.run(copy.job.put_settled(copy.link))
    assert copy.target.read_bytes() == copy.source.read_bytes()
    assert copy.job.outcome().verified


@BOTH
@pytest.mark.parametrize("has_shell", [True, False])
@pytest.mark.parametrize("size", [SPLIT_BYTES + 1, LARGE])
def test_a_large_file(client: Client, tmp_path: Path, kind: type, has_shell: bool, size: int) -> None:
    copy = Copy(client, tmp_path, content(size), kind=kind, shell=Shell() if has_shell else NoShell(), preserve=True)
    assert copy.job.is_split
    outcome = copy.run()
    assert copy.target.read_bytes() == copy.source.read_bytes()
    assert (outcome.state, outcome.size, outcome.verified) == (FileState.COPIED, size, True)
    status = copy.target.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o640, 1600000000)
    assert copy.parts() == []
    assert copy.context.parts == set()
    assert bool(copy.context.notices) == (not has_shell)


@BOTH
def test_a_damaged_piece_is_copied_again(client: Client, tmp_path: Path, kind: type) -> None:
    for shell in (Shell(), NoShell()):
        copy = Copy(client, tmp_path, content(LARGE), kind=kind, shell=shell)
        client.run(copy.job.prepare(copy.link))
        copy.copy_ranges()
        (part,) = copy.parts()
        with open(part, "r+b") as file:
            file.seek(SMALLEST_BLOCK + 5)
            file.write(b"damaged")
        assert copy.finish() >= 1
        copy.job.close()
        assert copy.target.read_bytes() == copy.source.read_bytes()
        assert copy.parts() == []


@BOTH
def test_what_is_damaged_all_the_time_is_given_up(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(SPLIT_BYTES + 1), kind=kind)
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()

    def damage() -> None:
        (part,) = copy.parts()
        with open(part, "r+b") as file:
            file.write(os.urandom(8))

    with pytest.raises(FileError, match="checksums still differ"):
        copy.finish(damage)
    client.run(copy.job.abandon(copy.link))
    assert copy.parts() == []
    assert not copy.target.exists()


@BOTH
def test_an_interrupted_copy_goes_on_from_what_is_really_there(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(2 * LARGE), kind=kind, resume=True)
    part = Path(os.fsdecode(part_path(os.fsencode(copy.target))))
    data = copy.source.read_bytes()
    part.write_bytes(b"wrong" + data[5 : 2 * SMALLEST_BLOCK])
    part.chmod(0o444)
    client.run(copy.job.prepare(copy.link))
    assert len(copy.parts()) == 1
    assert not part.exists(), "the part is ours now"
    assert copy.copy_ranges() == len(data) - SMALLEST_BLOCK
    client.run(copy.job.finish(copy.link))
    copy.job.close()
    assert copy.target.read_bytes() == data
    assert copy.parts() == []
    assert f"{SMALLEST_BLOCK} of {len(data)} bytes are there already" in copy.context.notices[0]


@BOTH
def test_a_part_that_cannot_be_compared_is_left(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind, shell=NoShell(), resume=True)
    old = content(LARGE - 5)
    Path(os.fsdecode(part_path(os.fsencode(copy.target)))).write_bytes(old)
    copy.run()
    assert copy.target.read_bytes() == copy.source.read_bytes()
    (part,) = copy.parts()
    assert Path(part).read_bytes()[: len(old)] == old
    assert [os.fspath(part) in each for each in copy.context.notices].count(True) == 1
    assert copy.context.parts == set()


@BOTH
def test_a_small_file_that_has_become_large_is_copied_in_ranges(client: Client, tmp_path: Path, kind: type) -> None:
    for before in (b"", b"small"):
        copy = Copy(client, tmp_path, before, kind=kind)
        assert not copy.job.is_split
        copy.source.write_bytes(content(LARGE))
        with mock.patch.object(os, "pread", wraps=os.pread) as pread, pytest.raises(BecameLarge):
            client.run(copy.job.copy_whole(copy.link))
        assert sum(call.args[1] for call in pread.mock_calls) < LARGE
        assert copy.job.is_split
        outcome = copy.run()
        assert (outcome.size, outcome.verified) == (LARGE, True)
        assert copy.target.read_bytes() == copy.source.read_bytes()
        assert copy.context.total_bytes == LARGE - len(before)
        copy.target.unlink()


@BOTH
def test_a_write_that_fails_late_keeps_the_file_from_its_name(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind)
    copy.target.write_bytes(b"old")
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()

    async def refused(_handle: bytes) -> None:
        raise SftpStatus(packets.FAILURE, "Failure")

    if kind is Download:
        late = mock.patch.object(os, "dup", side_effect=OSError(errno.EDQUOT, "Disk quota exceeded"))
    else:
        late = mock.patch.object(client.sftp, "close_handle", side_effect=refused)
    with late, pytest.raises((OSError, FileError), match="quota"):
        copy.finish()
    assert copy.target.read_bytes() == b"old"


@BOTH
def test_what_is_there_already_is_not_copied(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind, resume=True)
    copy.target.write_bytes(copy.source.read_bytes())
    outcome = copy.run()
    assert (outcome.state, outcome.verified) == (FileState.UNCHANGED, True)
    assert copy.context.moved_bytes == 0


@BOTH
def test_preparing_is_done_again_by_another_link(client: Client, tmp_path: Path, kind: type) -> None:
    for resume in (False, True):
        copy = Copy(client, tmp_path, content(LARGE), kind=kind, resume=resume)
        if resume:
            Path(os.fsdecode(part_path(os.fsencode(copy.target)))).write_bytes(b"x")
        client.run(copy.job.prepare(copy.link))
        copy.run()
        assert copy.target.read_bytes() == copy.source.read_bytes()
        assert copy.parts() == []
        copy.target.unlink()


def test_a_sparse_file_stays_sparse(client: Client, tmp_path: Path) -> None:
    for kind in (Upload, Download):
        copy = Copy(client, tmp_path, b"", kind=kind)
        os.truncate(copy.source, 16 * SPLIT_BYTES)
        with open(copy.source, "r+b") as file:
            file.seek(8 * SPLIT_BYTES)
            file.write(b"x" * 1000)
        copy.job = copy.new_job()
        copy.run()
        assert copy.target.stat().st_size == 16 * SPLIT_BYTES
        assert copy.target.stat().st_blocks * 512 < 8 * SPLIT_BYTES
        assert copy.target.read_bytes() == copy.source.read_bytes()
        copy.target.unlink()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes to the parts of these tests, unless they do it themselves."""
    monkeypatch.setattr(node_files, "QUIET_S", 0.0)


# --- files that change ------------------------------------------------------------------------------------------------


@BOTH
def test_a_large_file_that_becomes_shorter_is_given_up(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind)
    client.run(copy.job.prepare(copy.link))
    os.truncate(copy.source, LARGE - 1)
    with pytest.raises(FileError, match="became shorter"):
        copy.copy_ranges()
    with pytest.raises(FileError, match="became shorter"):
        client.run(copy.job.finish(copy.link))
    client.run(copy.job.abandon(copy.link))
    assert copy.parts() == []


@BOTH
def test_of_a_large_file_that_grows_its_first_bytes_are_copied(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind)
    data = copy.source.read_bytes()
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()
    with open(copy.source, "ab") as file:
        file.write(b"more")
    copy.finish()
    assert copy.target.read_bytes() == data
    assert "grew while it was read" in copy.context.notices[0]


@BOTH
def test_a_large_file_that_changes_is_copied_as_it_is_at_the_end(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=kind, checksum=False)
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()
    with open(copy.source, "r+b") as file:
        file.write(b"changed")
    with pytest.raises(AgainNeeded):
        client.run(copy.job.finish(copy.link))
    assert copy.job.has_all_ranges, "at first only what slow links still have is waited for"
    (part,) = copy.parts()
    with open(part, "r+b") as file:
        file.write(b"what a slow link had")
    assert copy.finish() == 1
    assert copy.target.read_bytes() == copy.source.read_bytes()


def test_a_small_file_that_changes_is_copied_as_it_was_at_one_moment(client: Client, tmp_path: Path) -> None:
    up = Copy(client, tmp_path, b"0123456789", kind=Upload)

    def change(made: object) -> None:
        up.source.write_bytes(b"changed")

    with mock.patch.object(Upload, "_last_attributes", side_effect=change, return_value=None):
        client.run(up.job.copy_whole(up.link))
    assert up.target.read_bytes() == b"0123456789"
    assert up.parts() == []
    up.target.unlink()
    down = Copy(client, tmp_path, b"0123456789", kind=Download)
    down.source.write_bytes(b"01234")
    with pytest.raises(FileError, match="became shorter"):
        client.run(down.job.copy_whole(down.link))
    assert client.sftp.is_idle is False, "the handle is being closed"
    down.source.write_bytes(b"0123456789 and more")
    client.run(down.job.copy_whole(down.link))
    assert down.target.read_bytes() == b"0123456789 and more"
    assert down.job.outcome().size == 19


def test_a_part_that_another_copy_writes_to_is_left_to_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = Copy(client, tmp_path, content(LARGE), kind=Download, resume=True)
    part = Path(os.fsdecode(part_path(os.fsencode(down.target))))
    part.write_bytes(content(LARGE)[:-5])
    with part.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        client.run(down.job.prepare(down.link))
    assert part.exists()
    assert ["another copy is at work" in each for each in down.context.notices] == [True]
    assert down.copy_ranges() == LARGE
    client.run(down.job.abandon(down.link))
    part.unlink()

    up = Copy(client, tmp_path, content(LARGE), kind=Upload, resume=True)
    part.write_bytes(content(LARGE)[:-5])
    monkeypatch.setattr(time, "sleep", lambda _seconds: part.write_bytes(content(LARGE)[:-4]))
    client.run(up.job.prepare(up.link))
    assert part.exists()
    assert ["another copy is at work" in each for each in up.context.notices] == [True]
    assert up.copy_ranges() == LARGE


# --- links that are lost, and what verifies ---------------------------------------------------------------------------


def test_a_part_is_not_opened_again_by_the_link_after_one_that_was_lost(client: Client, tmp_path: Path) -> None:
    """It may be read-only by then."""
    copy = Copy(client, tmp_path, content(LARGE), kind=Upload)
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()
    with mock.patch.object(client.sftp, "rename", side_effect=ConnectionError), pytest.raises(ConnectionError):
        client.run(copy.job.finish(copy.link))
    with mock.patch.object(client.sftp, "open", side_effect=AssertionError("it is opened")):
        client.run(copy.job.finish(copy.link))
    assert copy.target.read_bytes() == copy.source.read_bytes()


def test_a_link_lost_while_it_renamed_has_put_the_file_in_place(client: Client, tmp_path: Path) -> None:
    copy = Copy(client, tmp_path, content(LARGE), kind=Upload)
    copy.target.write_bytes(content(LARGE))  # of the same size
    client.run(copy.job.prepare(copy.link))
    copy.copy_ranges()
    copy.job._rename_sent = True  # but it was not done
    client.run(copy.job.finish(copy.link))
    assert copy.target.read_bytes() == copy.source.read_bytes()
    client.run(copy.job.finish(copy.link))  # it was
    assert copy.context.parts == set()


class FakeClient:
    """As much of paramiko's as a link needs to begin."""

    def get_transport(self) -> FakeClient:
        return self

    def close(self) -> None:
        pass


def settle(copy: Copy, jobs: list[Any], shell: Any = None) -> list[FileOutcome]:
    """Verify several small files as a link does."""
    board = Board()
    for job in jobs:
        board.add(job)
        assert board.take("writer", 0.0) is not None
        board.to_settle(job)
    link = Link(
        FakeClient(),  # type: ignore[arg-type]
        board,
        copy.context,
        most_under_way=1,
        opened=lambda: None,
        ended=lambda link, error: None,
    )
    link._sftp = copy.client.sftp
    link.shell = shell or copy.link.shell
    work = board.take(link, 0.0)
    assert work is not None
    assert work.kind is Kind.SETTLE
    copy.client.run(link._do(work))
    outcomes, _ = copy.context.take_outcomes()
    board.planned()
    board.released(link, work)
    assert board.is_over
    return outcomes


@BOTH
@pytest.mark.parametrize("shell", ["shell", "nologin", "none"])
def test_small_files_are_verified_whatever_the_node_can_do(
    client: Client, tmp_path: Path, kind: type, shell: str
) -> None:
    copy = Copy(client, tmp_path, content(5000), kind=kind, checksum=True)
    client.run(copy.job.copy_whole(copy.link))

    class NoLogin(Shell):
        def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
            return 1, b"This account is currently not available.\n"

    shells = {"shell": Shell(), "nologin": NoLogin(), "none": NoShell()}
    (outcome,) = settle(copy, [copy.job], shells[shell])
    assert (outcome.state, outcome.verified, outcome.error) == (FileState.COPIED, True, None)
    assert copy.target.read_bytes() == copy.source.read_bytes()
    assert copy.context.has_shell == (shell == "shell")


@BOTH
def test_a_small_file_that_arrived_damaged_is_not_put_in_place(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(5000), kind=kind, checksum=True)
    client.run(copy.job.copy_whole(copy.link))
    # What is compared is the part on the node, and the source there.
    damaged = copy.parts()[0] if kind is Upload else copy.source
    with open(damaged, "r+b") as file:
        file.write(b"damaged")
    (outcome,) = settle(copy, [copy.job])
    assert outcome.state is FileState.FAILED
    assert "checksums differ" in (outcome.error or "")
    assert not copy.target.exists()
    assert copy.parts() == []


@BOTH
def test_one_part_that_is_gone_fails_alone(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, content(5000), kind=kind, checksum=True)
    client.run(copy.job.copy_whole(copy.link))
    (part,) = copy.parts()
    gone = copy.new_job()
    gone.file = copy.job.file
    client.run(gone.copy_whole(copy.link))
    (other,) = set(copy.parts()) - {part}
    other.unlink()
    outcomes = settle(copy, [gone, copy.job], NoShell())
    assert [outcome.state for outcome in outcomes] == [FileState.FAILED, FileState.COPIED]
    assert "o such file" in (outcomes[0].error or "")


def test_a_small_file_that_a_lost_link_had_put_in_place_has_not_failed(client: Client, tmp_path: Path) -> None:
    copy = Copy(client, tmp_path, content(5000), kind=Upload, checksum=True)
    client.run(copy.job.copy_whole(copy.link))
    client.run(copy.job.put_settled(copy.link))  # its answer did not come
    (outcome,) = settle(copy, [copy.job])
    assert (outcome.state, outcome.verified) == (FileState.COPIED, True)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileError("it says why"), "it says why"),
        (SftpStatus(packets.NO_SUCH_FILE, "No such file"), "what: no such file or folder on the node"),
        (SftpStatus(packets.PERMISSION_DENIED, ""), "what: permission denied on the node"),
        (SftpStatus(packets.UNSUPPORTED, ""), "what: the node's SFTP server cannot do this"),
        (SftpStatus(packets.FAILURE, "Failure."), "what: the node says: Failure"),
        (SftpStatus(packets.FAILURE, " "), "what: the node says: failure"),
        (PermissionError(13, "Permission denied"), "what: Permission denied"),
        (OSError("no number"), "what: no number"),
        (ValueError("odd"), "what: odd"),
    ],
)
def test_why_a_file_is_not_copied(error: Exception, text: str) -> None:
    assert explain(error, "what") == text


@BOTH
def test_an_error_here_is_one_of_the_end_that_is_here(client: Client, tmp_path: Path, kind: type) -> None:
    copy = Copy(client, tmp_path, b"", kind=kind)
    here, there = ("read", "written") if kind is Upload else ("written", "read")
    assert copy.job.failure(PermissionError(13, "Permission denied")).error == f"it cannot be {here}: Permission denied"
    error = copy.job.failure(SftpStatus(packets.PERMISSION_DENIED, "")).error
    assert error == f"it cannot be {there}: permission denied on the node"


def test_nothing_is_written_to_a_folder_that_is_not_there(client: Client, tmp_path: Path) -> None:
    for kind in (Upload, Download):
        copy = Copy(client, tmp_path, b"data", kind=kind)
        copy.target.parent.rmdir()
        for step in (copy.job.copy_whole, copy.job.prepare):
            with pytest.raises((SftpStatus, OSError)) as failed:
                client.run(step(copy.link))
            assert "o such file" in str(copy.job.failure(failed.value).error)
        copy.target.parent.mkdir()


def test_a_disk_without_room_is_told_before(client: Client, tmp_path: Path) -> None:
    up = Copy(client, tmp_path, content(LARGE), kind=Upload)

    async def little(path: bytes) -> int:
        return 1000

    with mock.patch.object(client.sftp, "free_bytes", little), pytest.raises(FileError, match="room for 1000 bytes"):
        client.run(up.job.prepare(up.link))
    down = Copy(client, tmp_path, content(LARGE), kind=Download)
    full = mock.Mock(f_bavail=2, f_frsize=500)
    with mock.patch("os.statvfs", return_value=full), pytest.raises(FileError, match="room for 1000 bytes"):
        client.run(down.job.prepare(down.link))


def test_a_piece_after_the_end_is_refused(client: Client, tmp_path: Path) -> None:
    for kind in (Upload, Download):
        copy = Copy(client, tmp_path, content(LARGE), kind=kind)
        client.run(copy.job.prepare(copy.link))
        client.run(copy.job.abandon(copy.link))
        copy.job.close()
        with pytest.raises(FileError, match="over already"):
            client.run(copy.job.copy_range(copy.link, Range(0, 10)))


def test_work_tells_how_much_it_is() -> None:
    assert Work(Kind.RANGE, [], Range(0, 77)).weight == 77
    assert Work(Kind.SETTLE, []).weight == SMALLEST_WEIGHT
