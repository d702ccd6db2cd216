"""``ssm_proxy.copy`` while things go wrong: what arrives is what was sent, or the copy says what is missing.

In process, so that the tests see how far a copy is and can do their worst at that moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from nodes import EMBEDDED, MIB, REAL, Key, MakeUser, StartEmulator, User, session_states, wait_until

from bench.sshd import Sshd
from ssm_proxy.api.copying import copy
from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.emulator import Emulator, Faults, Node
from ssm_proxy.errors import SsmProxyError
from ssm_proxy.file_copy import link, pool
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.values import CopyIncomplete, CopyResult, Progress

pytestmark = pytest.mark.integration
SIZE = 6 * MIB + 12_345
"""Worth four sessions."""
Worst = Callable[[], object]


class Copier:
    """Copies between here and a node of an emulator, and does something at certain moments.

    when_first: when it has one session, and has not asked for others.
    when_begun: when some of it has arrived; no more does meanwhile.
    held_until: when some of it has arrived no more does before this is true.
    """

    def __init__(self, emulator: Emulator, user: User) -> None:
        self.emulator = emulator
        self.user = user
        self.most_sessions = 0
        self.notices: list[str] = []
        self.last: Progress | None = None

    def __call__(
        self,
        source: Path | str | list[str],
        target: Path | str,
        *,
        when_begun: Worst | None = None,
        when_first: Worst | None = None,
        held_until: Callable[[], bool] = lambda: True,
        **options: Any,
    ) -> CopyResult:
        done = threading.Event()
        moved, open_first = Context.moved, pool.Pool.open_first

        def move(context: Context, size: int) -> None:
            moved(context, size)
            if context.done_bytes > SIZE // 8:
                wait_until(lambda: (when_begun is None or done.is_set()) and held_until(), "it may go on")

        def open_and_tell(opening: pool.Pool) -> None:
            open_first(opening)
            if when_first is not None:
                when_first()

        def progress(now: Progress) -> None:
            self.last = now
            self.most_sessions = max(self.most_sessions, now.sessions)
            if when_begun is not None and now.done_bytes > SIZE // 8 and not done.is_set():
                try:
                    when_begun()
                finally:
                    done.set()

            if now.notice:
                self.notices.append(now.notice)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Context, "moved", move)
            patch.setattr(pool.Pool, "open_first", open_and_tell)
            result = copy(
                source,
                target,
                session=self._session(),
                endpoint_url=self.emulator.endpoint_url,
                config_file=self.user.config,
                progress=progress,
                **{"sessions": 4, **options},
            )
        assert when_begun is None or done.is_set()
        return result

    def _session(self) -> boto3.Session:
        variables = self.emulator.environment()
        return boto3.Session(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_REGION"],
        )

    def both_ways(self, folder: Path, *, when_begun: Worst | None = None, **options: Any) -> None:
        """Copy a file to the node and back, and compare."""
        folder.mkdir(exist_ok=True)
        here, there, back = folder / "here", folder / "there", folder / "back"
        here.write_bytes(os.urandom(SIZE))
        self(here, f"{REAL}:{there}", when_begun=when_begun, **options)
        assert checksum(there) == checksum(here)
        self(f"{REAL}:{there}", back, when_begun=when_begun, **options)
        assert checksum(back) == checksum(here)
        assert {each.name for each in folder.iterdir() if not each.is_dir()} == {"here", "there", "back"}

    def open_sessions(self) -> list[str]:
        return [each.session_id for each in self.emulator.sessions() if each.status not in ("Terminated", "Failed")]

    def terminate(self, session_id: str) -> None:
        """End a session for good, as somebody at the console may."""
        self._session().client("ssm", endpoint_url=self.emulator.endpoint_url).terminate_session(SessionId=session_id)


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def make_copier(start_emulator: StartEmulator, new_user: MakeUser) -> Callable[..., Copier]:
    def make(**changes: Any) -> Copier:
        emulator = start_emulator(**changes)
        return Copier(emulator, new_user(emulator, REAL))

    return make


@pytest.mark.parametrize(
    "faults",
    [
        Faults(drop_after_bytes=700_000, drop_manner="close-1000", lose=0.01),
        Faults(lose=0.02, duplicate=0.02, reorder=0.02, drop_acknowledges=0.02),
    ],
    ids=["closed and lost", "lost, repeated, reordered"],
)
def test_a_bad_network(make_copier: Callable[..., Copier], tmp_path: Path, faults: Faults) -> None:
    copier = make_copier(faults=faults)
    copier.both_ways(tmp_path)
    # One that was just being opened at the end of the copy is given up when that has come to its end.
    wait_until(lambda: not copier.open_sessions(), "no session is left")


def test_the_pace_of_the_real_agent(make_copier: Callable[..., Copier], tmp_path: Path) -> None:
    copier = make_copier(agent_pace_s=0.001)
    copier.both_ways(tmp_path, held_until=lambda: copier.most_sessions == 4)


def test_a_session_that_is_ended_for_good_is_replaced(make_copier: Callable[..., Copier], tmp_path: Path) -> None:
    copier = make_copier(agent_pace_s=0.001)
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(4 * SIZE))  # more is left than what the others have under way

    def end_one() -> None:
        copier.terminate(copier.open_sessions()[0])

    copier(f"{REAL}:{here}", there, when_begun=end_one, held_until=lambda: copier.most_sessions == 4)
    assert checksum(there) == checksum(here)
    assert len(session_states(copier.emulator)) > 4
    copier.both_ways(tmp_path / "again", when_begun=lambda: copier.terminate(copier.open_sessions()[0]))


def test_all_sessions_ended_for_good_at_once(make_copier: Callable[..., Copier], tmp_path: Path) -> None:
    copier = make_copier(agent_pace_s=0.001)

    def end_all() -> None:
        for session_id in copier.open_sessions():
            copier.terminate(session_id)

    copier.both_ways(tmp_path, when_begun=end_all)


@contextlib.contextmanager
def own_sshd(folder: Path, key: Key) -> Iterator[Sshd]:
    folder.mkdir()
    with Sshd(folder, key.public) as server:
        yield server


def test_the_nodes_sshd_is_restarted(
    make_copier: Callable[..., Copier], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, key: Key
) -> None:
    with own_sshd(tmp_path_factory.mktemp("sshd") / "own", key) as server:
        node = Node(node_id=REAL, ssh_address=("127.0.0.1", server.port))
        copier = make_copier(agent_pace_s=0.001, nodes=(node,))

        def restart() -> None:
            server.kill()
            server.__enter__()

        with known(copier, server):
            copier.both_ways(tmp_path, when_begun=restart)


@contextlib.contextmanager
def known(copier: Copier, server: Sshd) -> Iterator[None]:
    """The user knows the host key of another server, for a while."""
    path = copier.user.folder / "known_hosts"
    before = path.read_text()
    path.write_text(f"{REAL} {server.host_key.public.read_text()}")
    try:
        yield
    finally:
        path.write_text(before)


def test_the_node_is_gone_for_good_and_the_copy_goes_on_later(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LONGEST_PAUSE_S", 0.2)
    copier = make_copier(agent_pace_s=0.001)
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(SIZE))
    there.write_bytes(b"old")

    def vanish() -> None:
        copier.emulator.set_faults(Faults(deny="StartSession,ResumeSession"))
        for session_id in copier.open_sessions():
            copier.terminate(session_id)

    with pytest.raises(SsmProxyError) as caught:
        copier(f"{REAL}:{here}", there, when_begun=vanish)
    assert "--resume" in (caught.value.hint or "")
    assert there.read_bytes() == b"old"
    (part,) = [path for path in tmp_path.iterdir() if path.name.endswith(".ssm-part")]
    copier.emulator.set_faults(Faults())
    result = copier(f"{REAL}:{here}", there, resume=True)
    assert checksum(there) == checksum(here)
    assert not part.exists()
    assert result.total_bytes == SIZE
    assert copier(f"{REAL}:{here}", there, resume=True).unchanged == 1


def test_what_a_node_of_several_gave_before_it_was_lost_counts(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LONGEST_PAUSE_S", 0.2)
    copier = make_copier(agent_pace_s=0.001)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    for name, size in (("small", 100), ("large", SIZE), ("other", 200)):
        (here / name).write_bytes(os.urandom(size))
    sources = [f"{EMBEDDED}:{here}/small", f"{EMBEDDED}:{here}/large", f"{REAL}:{here}/other"]
    with pytest.raises(CopyIncomplete) as caught:
        copier(sources, there, when_begun=lambda: copier.emulator.set_online(EMBEDDED, False, sessions="closed"))
    result = caught.value.result
    assert (result.files, result.total_bytes, result.copied_bytes > SIZE // 8) == (2, 300, True)
    assert [each.source for each in result.failures] == [f"{here}/large"]
    assert copier.last is not None
    assert (copier.last.done_files, copier.last.total_files, copier.last.total_bytes) == (3, 3, SIZE + 300)
    for name in ("small", "other"):
        assert checksum(there / name) == checksum(here / name)
    assert not (there / "large").exists()


def test_throttled_starts(make_copier: Callable[..., Copier], tmp_path: Path) -> None:
    copier = make_copier(faults=Faults(throttle_start=3))
    copier.both_ways(tmp_path)


def test_sessions_that_wait_for_their_turn_hold_nobody_up_at_the_end(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "OPENED_AT_ONCE", 1)
    copier = make_copier(agent_pace_s=0.001)
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(SIZE))
    result = copier(f"{REAL}:{here}", there, when_first=lambda: copier.emulator.set_faults(Faults(throttle_start=-1)))
    assert there.read_bytes() == here.read_bytes()
    assert result.sessions < 4, "others still waited"
    wait_until(lambda: "ssm-proxy copy opening" not in [each.name for each in threading.enumerate()], "they give up")


def test_an_agent_that_does_nothing_for_a_while(make_copier: Callable[..., Copier], tmp_path: Path) -> None:
    copier = make_copier(agent_pace_s=0.001, faults=Faults(stall_agent_s=3))
    copier.both_ways(tmp_path)


def test_fewer_sessions_rather_than_none(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "FIRST_PAUSE_S", 0.01)
    copier = make_copier(agent_pace_s=0.001)
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(SIZE))

    def deny_more() -> None:
        copier.emulator.set_faults(Faults(deny="StartSession"))

    # One session is there when the others are asked for.
    result = copier(f"{REAL}:{here}", there, sessions=8, when_first=deny_more, held_until=lambda: bool(copier.notices))
    assert checksum(there) == checksum(here)
    assert result.sessions == 1
    assert any("no more can be opened" in notice for notice in copier.notices)
    copier.emulator.set_faults(Faults())


def test_a_session_that_stands_still_is_replaced_when_all_others_are_done(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STANDS_STILL_S", 4.0)  # later than others do its ranges as well
    monkeypatch.setattr(pool, "ALIVE_WITHIN_S", 0.7)
    copier = make_copier()
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(SIZE))
    stopped: list[int] = []

    def stop_one() -> None:
        stopped.append(next(servers_with_files_in(tmp_path)))
        os.kill(stopped[0], signal.SIGSTOP)

    try:
        copier(here, f"{REAL}:{there}", when_begun=stop_one)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert checksum(there) == checksum(here)


def test_a_session_that_takes_nothing_any_more_is_replaced(
    make_copier: Callable[..., Copier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends to it is stuck in that."""
    monkeypatch.setattr(pool, "STANDS_STILL_S", 2.0)
    monkeypatch.setattr(link, "BUSY_S", 0.5)
    channels: list[DataChannel] = []
    stopped: list[DataChannel] = []
    room = DataChannel.input_room

    def input_room(self: DataChannel, now: float) -> int:
        if self not in channels:
            channels.append(self)
        return 0 if self in stopped else room(self, now)

    monkeypatch.setattr(DataChannel, "input_room", input_room)
    copier = make_copier(faults=Faults(bandwidth=1_000_000))  # so that there is more to send when it stops
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(SIZE))
    copier(here, f"{REAL}:{there}", when_begun=lambda: stopped.append(channels[0]))
    assert checksum(there) == checksum(here)


def servers_with_files_in(folder: Path) -> Iterator[int]:
    """Give the processes of sshd, which has SFTP in itself, that have files below a folder open."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # of another user, or it has just ended
            is_sshd = process.name.isdigit() and b"sshd" in (process / "cmdline").read_bytes()
            if is_sshd and any(os.readlink(fd).startswith(f"{folder}/") for fd in (process / "fd").iterdir()):
                yield int(process.name)


def test_sessions_are_not_opened_in_a_burst(
    make_copier: Callable[..., Copier], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, key: Key
) -> None:
    """An sshd that drops connections beyond two that are not authenticated yet."""
    folder = tmp_path_factory.mktemp("sshd") / "own"
    folder.mkdir()
    with Sshd(folder, key.public, settings=("MaxStartups 2",)) as server:
        copier = make_copier(nodes=(Node(node_id=REAL, ssh_address=("127.0.0.1", server.port)),), agent_pace_s=0.001)
        with known(copier, server):
            copier.both_ways(tmp_path, sessions=8, held_until=lambda: copier.most_sessions > 1)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [(("MaxSessions 1",), "MaxSessions"), (("Subsystem sftp /bin/false",), "Subsystem sftp")],
    ids=["one channel", "no SFTP"],
)
def test_a_node_that_cannot_be_copied_to_says_so_at_once(
    make_copier: Callable[..., Copier],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    key: Key,
    settings: tuple[str, ...],
    hint: str,
) -> None:
    folder = tmp_path_factory.mktemp("sshd") / "own"
    folder.mkdir()
    with Sshd(folder, key.public, settings=settings) as server:
        copier = make_copier(nodes=(Node(node_id=REAL, ssh_address=("127.0.0.1", server.port)),))
        (tmp_path / "here").write_bytes(b"data")
        with known(copier, server), pytest.raises(SsmProxyError) as caught:
            copier(tmp_path / "here", f"{REAL}:{tmp_path / 'there'}")
    assert hint in (caught.value.hint or "")
    assert len(copier.emulator.sessions()) == 1
    assert not (tmp_path / "there").exists()
