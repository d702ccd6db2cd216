"""``ssm-proxy cp``: files that change, full disks, what nobody may write, nodes without a shell and nodes that lie."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
from copies import Copier, InTheMiddle, parts, tree
from nodes import EMBEDDED, MIB, REAL, Key, MakeUser, Sshd, StartEmulator, tool, wait_until

from ssm_proxy.api.copying import CopyIncomplete, Progress
from ssm_proxy.emulator import Node
from ssm_proxy.errors import CopyError, TransportTimeout
from ssm_proxy.file_copy import channel as channel_module

pytestmark = pytest.mark.integration
NOBODY = 65534
WithSshd = Callable[..., Copier]
"""The fixture ``with_sshd``."""
BEGIN = r"\0\0\0\005\002\0\0\0\003"
"""The first packet of an SFTP server, as printf takes it."""
SHORTER = "it became shorter while it was read; nothing was put in its place"


# --- files that change ----------------------------------------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 1000)


def shrink(path: Path) -> None:
    os.truncate(path, MIB)


def rewrite(path: Path) -> None:
    """Change the file everywhere, to the same size."""
    with path.open("r+b") as file:
        file.write(b"new." * (path.stat().st_size // 4))


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"replaced" * MIB)
    new.rename(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_files_that_change_while_they_are_read(
    real: Copier,
    tmp_path: Path,
    in_the_middle: InTheMiddle,
    is_upload: bool,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    actions = {"grow": grow, "shrink": shrink, "rewrite": rewrite, "replace": replace, "remove": remove}
    before = {name: os.urandom(2 * MIB) for name in actions}
    for folder in (here, there):
        folder.mkdir()
        for name in actions:
            (folder / name).write_bytes(before[name] if folder is here else b"old")
    in_the_middle(lambda path: actions[path.name](path))
    source, destination = (f"{here}/.", real.remote(there)) if is_upload else (real.remote(f"{here}/."), str(there))
    notices: list[str] = []
    failures = real.failures(
        source, destination, recursive=True, progress=lambda each: notices.append(each.notice or "")
    )
    assert failures.pop("shrink") == SHORTER
    assert (there / "shrink").read_bytes() == b"old"
    assert (there / "grow").read_bytes() == before["grow"]
    assert [each for each in notices if "grow grew while it was read; its first 2097152 bytes were copied" in each]
    assert (there / "rewrite").read_bytes() == b"new." * (MIB // 2), "what differs is copied again"
    # A file that is open here goes on to exist; on the node every link opens it by its name.
    for name in ("replace", "remove"):
        content = (there / name).read_bytes()
        if name in failures:
            assert content == b"old"
        else:
            assert content in (before[name], b"replaced" * MIB, b"replaced" * (MIB // 4))
    assert is_upload <= (not failures)
    assert parts(tmp_path) == []


def test_a_small_file_that_changes_all_the_time(real: Copier, tmp_path: Path) -> None:
    """As its log is written to every millisecond, so it is read; what arrives is what it was at one moment."""
    log, there = tmp_path / "log", tmp_path / "there"
    log.write_bytes(b"")
    is_over = threading.Event()

    def write() -> None:
        with log.open("ab", buffering=0) as file:
            for number in range(20000):
                if is_over.wait(0.001):
                    return
                file.write(b"%07d\n" % number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: log.stat().st_size, "there is something to read")
        real.copy(log, real.remote(there))
        real.copy(real.remote(log), tmp_path / "back")
    finally:
        is_over.set()
        writer.join()
    for copy in (there, tmp_path / "back"):
        content = copy.read_bytes()
        assert content
        assert log.read_bytes().startswith(content)


# --- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB with an old file on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [tool("mount"), "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount: {done.stderr.strip()}")
    try:
        (disk / "one").write_text("old")
        yield disk
    finally:
        subprocess.run([tool("umount"), "-l", disk], check=True)


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_a_full_disk(real: Copier, tmp_path: Path, small_disk: Path, is_upload: bool) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("one", "two"):  # each has room, but not both
        (here / name).write_bytes(os.urandom(3 * MIB))
    (here / "huge").write_bytes(bytes(5 * MIB))
    for index in range(6):
        (here / f"small {index}").write_bytes(os.urandom(MIB - 1))

    source, destination = f"{here}/.", str(small_disk)
    if is_upload:
        failures = real.failures(source, real.remote(destination), recursive=True)
    else:
        failures = real.failures(real.remote(source), destination, recursive=True)
    side = "the node's disk" if is_upload else "the disk here"
    assert failures["huge"].startswith(f"{side} has room for ")
    full = (
        f"{side} is full",
        f"{side} has room for ",
        "the node could not write it: its disk was full",
        "it cannot be written: No space left on device",
    )
    assert [each for each in failures.values() if not each.startswith(full)] == []
    assert 4 <= len(failures) <= 8
    copied = {name.decode(): content for name, (_, _, content) in tree(small_disk).items()}
    assert parts(small_disk) == []
    if "one" in failures:
        assert copied.pop("one") == b"old"
    assert copied == {file.name: file.read_bytes() for file in here.iterdir() if file.name not in failures}


# --- what is not allowed --------------------------------------------------------------------------------------------


class Ordinary:
    """Somebody who is not root, here and on the node."""

    def __init__(self, copier: Copier, folder: Path) -> None:
        self.copier = copier
        self.folder = folder

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Be that user in the block."""
        if os.geteuid() != 0:
            yield
            return
        os.setresgid(NOBODY, NOBODY, 0)
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)


@pytest.fixture
def ordinary(start_emulator: StartEmulator, new_user: MakeUser, key: Key) -> Iterator[Ordinary]:
    """Where the tests are run by root, it is nobody, whose account has no shell."""
    with tempfile.TemporaryDirectory(prefix="ssm-") as name:
        folder = Path(name)
        for each in ("sshd", "own"):
            (folder / each).mkdir()
        shutil.copy(key.private, folder / "own" / "id")
        shutil.copy(key.public, folder / "authorized_keys")
        folder.chmod(0o755)
        with Sshd(folder / "sshd", folder / "authorized_keys") as server:
            emulator = start_emulator(nodes=[Node(node_id=REAL, ssh_address=("127.0.0.1", server.port))])
            user = new_user(emulator, REAL, sshd=server)
            shutil.copy(user.folder / "known_hosts", folder / "own" / "known_hosts")
            (folder / "own" / "config").write_text(
                f"IdentityFile {folder}/own/id\nIdentitiesOnly yes\nIdentityAgent none\n"
                f"UserKnownHostsFile {folder}/own/known_hosts\nGlobalKnownHostsFile none\n"
                + ("User nobody\n" if os.geteuid() == 0 else "")
            )
            if os.geteuid() == 0:
                for each in [folder / "own", *(folder / "own").iterdir()]:
                    os.chown(each, NOBODY, NOBODY)
            copier = Copier(user=user, emulator=emulator)
            object.__setattr__(copier, "user", dataclasses.replace(user, config=folder / "own" / "config"))
            # What is imported on use may be where only root can read it.
            copier.copy(key.public, copier.remote(folder / "own" / "imported"))
            yield Ordinary(copier, folder / "own")


def test_what_an_ordinary_user_may_not(ordinary: Ordinary) -> None:
    copier = ordinary.copier
    with ordinary.here():
        here = ordinary.folder / "here"
        (here / "closed").mkdir(parents=True)
        (here / "blind").mkdir()
        contents = {"read-only": b"new", "large": bytes(2 * MIB), "closed/old": b"new", "closed/new": b"new"}
        for name, content in contents.items():
            (here / name).write_bytes(content)
        for name in ("secret", "large secret"):
            (here / name).write_bytes(bytes(2 * MIB if name == "large secret" else 10))
            (here / name).chmod(0o000)
        (here / "blind").chmod(0o000)
        for target in (ordinary.folder / "there", ordinary.folder / "back"):
            (target / "closed").mkdir(parents=True)
            for name in ("read-only", "large", "closed/old"):
                (target / name).write_bytes(b"old")
            for name in ("read-only", "large"):
                (target / name).chmod(0o444)
            (target / "closed").chmod(0o555)
            if target.name == "there":
                failures = copier.failures(f"{here}/.", copier.remote(target), recursive=True)
                side = "on the node"
                unread = "it cannot be read: Permission denied"
            else:
                failures = copier.failures(copier.remote(f"{here}/."), target, recursive=True)
                side = "here"
                unread = "it cannot be read: permission denied on the node"
            assert failures == {
                "read-only": f"the file {side} is read-only",
                "large": f"the file {side} is read-only",
                "old": f"nothing can be put into its folder {side}: permission denied",
                "new": f"nothing can be put into its folder {side}: permission denied",
                "secret": unread,
                "large secret": unread,
                "blind": unread,
            }
            files = {name.decode(): content for name, (kind, _, content) in tree(target).items() if kind == "file"}
            assert files == {"read-only": b"old", "large": b"old", "closed/old": b"old"}
            assert parts(target) == []
            (target / "closed").chmod(0o755)
        (here / "blind").chmod(0o700)


def test_what_an_ordinary_user_may(ordinary: Ordinary) -> None:
    copier = ordinary.copier
    with ordinary.here():
        here, there, back, plain = (ordinary.folder / name for name in ("here", "there", "back", "plain"))
        (here / "closed").mkdir(parents=True)
        for name in ("small", "large", "closed/small"):
            (here / name).write_bytes(os.urandom(2 * MIB if name == "large" else 100))
            (here / name).chmod(0o400)
        (here / "closed").chmod(0o500)
        copier.copy(here, copier.remote(there), recursive=True, preserve=True)
        copier.copy(copier.remote(there), back, recursive=True, preserve=True)
        assert tree(there) == tree(back) == tree(here)
        copier.copy(copier.remote(there), plain, recursive=True)
        assert tree(plain) == tree(here)
        for folder in (here, there, back, plain):
            (folder / "closed").chmod(0o700)


# --- nodes that are not as others ------------------------------------------------------------------------------------


@pytest.fixture
def without_shell(
    start_emulator: StartEmulator, new_user: MakeUser, key: Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Copier]:
    """A node that does SFTP and nothing else."""
    with Sshd(tmp_path_factory.mktemp("sftp-only"), key.public, ["ForceCommand internal-sftp"]) as server:
        emulator = start_emulator(nodes=[Node(node_id=REAL, ssh_address=("127.0.0.1", server.port))])
        yield Copier(user=new_user(emulator, REAL, sshd=server), emulator=emulator)


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_what_is_read_to_be_compared_is_not_copied(without_shell: Copier, tmp_path: Path, is_upload: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(5 * MIB + 1))
    told: list[Progress] = []
    froms, to = (source, without_shell.remote(target)) if is_upload else (without_shell.remote(source), target)
    result = without_shell.copy(froms, to, progress=told.append, sessions=1, checksum=True)
    assert [each.outcome.verified for each in told if each.outcome] == [True]
    assert target.read_bytes() == source.read_bytes()
    assert result.copied_bytes == result.total_bytes == 5 * MIB + 1
    assert result.megabytes_per_second == pytest.approx((5 * MIB + 1) / result.seconds / 1e6)
    done = [each.done_bytes for each in told]
    assert done == sorted(done)


def test_what_was_damaged_is_copied_once_more(
    without_shell: Copier, tmp_path: Path, in_the_middle: InTheMiddle
) -> None:
    """While it is received for the second time, to be compared with what is on the disk."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes([255]) * (3 * MIB))

    def damage(_: Path) -> None:
        (part,) = parts(tmp_path)
        with part.open("r+b") as file:
            file.write(b"\0")

    in_the_middle(damage, pieces=[48])  # of 24, the second time
    result = without_shell.copy(without_shell.remote(source), target, sessions=1, checksum=True)  # in their order
    assert target.read_bytes() == source.read_bytes()
    assert result.copied_bytes == 3 * MIB + MIB // 8


def test_a_node_without_a_shell(without_shell: Copier, tmp_path: Path, in_the_middle: InTheMiddle) -> None:
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    here.mkdir()
    for name, size in (("large", 3 * MIB), ("small", 1000), ("empty", 0)):
        (here / name).write_bytes(os.urandom(size))
    notices: list[str] = []

    def note(each: Progress) -> None:
        notices.extend([each.notice] if each.notice else [])

    damaged: list[bool] = []

    def damage(_: Path) -> None:
        """Change a byte of what has been written."""
        for part in parts(tmp_path):
            if part.stat().st_size == 3 * MIB and not damaged:
                with part.open("r+b") as file:
                    data = file.read(3 * MIB)
                    position = next(index for index, byte in enumerate(data) if byte)
                    file.seek(position)
                    file.write(bytes([data[position] ^ 255]))
                damaged.append(True)

    in_the_middle(damage)
    result = without_shell.copy(here, without_shell.remote(there), recursive=True, checksum=True, progress=note)
    assert (result.files, damaged) == (3, [True])
    assert tree(there) == tree(here)
    assert result.copied_bytes > result.total_bytes, "what was damaged was sent again"
    assert [each for each in notices if "computes no checksums" in each] == notices
    assert len(notices) == 1
    damaged.clear()
    result = without_shell.copy(without_shell.remote(there), back, recursive=True, checksum=True, progress=note)
    assert (result.files, damaged) == (3, [True])
    assert tree(back) == tree(here)
    # Nothing to compare with: so all is copied, and nothing is taken to be right that is not.
    (there / "large").write_bytes(bytes(3 * MIB))
    result = without_shell.copy(f"{here}/.", without_shell.remote(there), recursive=True, resume=True)
    assert tree(there) == tree(here)
    assert parts(tmp_path) == []


@pytest.fixture
def with_sshd(
    start_emulator: StartEmulator, new_user: MakeUser, key: Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WithSshd]:
    """Gives somebody who copies to a node whose sshd has settings of its own."""
    with contextlib.ExitStack() as stack:

        def start(*settings: str) -> Copier:
            server = stack.enter_context(Sshd(tmp_path_factory.mktemp("sshd"), key.public, settings))
            emulator = start_emulator(nodes=[Node(node_id=REAL, ssh_address=("127.0.0.1", server.port))])
            return Copier(user=new_user(emulator, REAL, sshd=server), emulator=emulator)

        yield start


@pytest.mark.parametrize(
    ("said", "cause"),
    [("Welcome to web-7!", "it began with: Welcome to web-7!"), ("", "something came before the first packet of SFTP")],
)
def test_a_node_that_prints_text_before_sftp(with_sshd: WithSshd, tmp_path: Path, said: str, cause: str) -> None:
    server = tmp_path / "sftp-server"
    server.write_text(f"#!/bin/sh\nprintf '{said}\\n{BEGIN}'\nexec cat >/dev/null\n")
    server.chmod(0o755)
    copier = with_sshd(f"Subsystem sftp {server}")
    for source, destination in ((server, copier.remote(tmp_path / "up")), (copier.remote(server), tmp_path / "down")):
        status, output, errors = copier.run(source, destination)
        assert (status, output) == (7, b"")
        error, why, hint = errors.splitlines()[-3:]
        assert error == "ssm-proxy: error: what answers is no SFTP server"
        assert why == f"ssm-proxy: cause: {cause}"
        assert hint.startswith("ssm-proxy: hint: look for lines like 'Subsystem sftp' in the node's sshd_config")
        assert hint.endswith("print something")
    assert {path.name for path in tmp_path.iterdir()} == {"sftp-server"}


def test_a_node_whose_sftp_server_does_not_begin(
    with_sshd: WithSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_TIMEOUT", 0.5)
    server = tmp_path / "sftp-server"
    server.write_text("#!/bin/sh\nwhile read -r line; do :; done\n")  # as a start-up file that waits for input
    server.chmod(0o755)
    copier = with_sshd(f"Subsystem sftp {server}")
    with pytest.raises(TransportTimeout, match="the node's SFTP server does not answer") as caught:
        copier.copy(server, copier.remote(tmp_path / "up"))
    assert re.fullmatch(r"it was started, and said nothing for \d+ s", caught.value.cause or "")
    assert "start-up file" in (caught.value.hint or "")
    assert "ssh USER@HOST true" in (caught.value.hint or "")


def test_a_node_whose_sftp_server_begins_and_then_says_nothing(
    with_sshd: WithSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "COMMAND_TIMEOUT", 0.5)
    server = tmp_path / "sftp-server"
    server.write_text(f"#!/bin/sh\nprintf '{BEGIN}'\nwhile read -r line; do :; done\n")
    server.chmod(0o755)
    copier = with_sshd(f"Subsystem sftp {server}")
    with pytest.raises(TransportTimeout, match="the node's SFTP server does not answer") as caught:
        copier.copy(server, copier.remote(tmp_path / "up"))
    assert re.fullmatch(r"it has said nothing for \d+ s", caught.value.cause or "")
    assert "a file system of the node" in (caught.value.hint or "")


def test_an_sshd_that_allows_one_channel_on_a_connection(with_sshd: WithSshd, tmp_path: Path) -> None:
    copier = with_sshd("MaxSessions 1")
    with pytest.raises(CopyError, match="does not open a channel for SFTP") as caught:
        copier.copy(__file__, copier.remote(tmp_path / "up"))
    assert caught.value.cause == "most likely MaxSessions allows no more on one connection"
    assert "set MaxSessions in the node's sshd_config to 3 or more" in (caught.value.hint or "")


def test_an_sshd_that_allows_no_channel_for_commands(with_sshd: WithSshd, tmp_path: Path) -> None:
    copier = with_sshd("MaxSessions 2")
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    here.write_bytes(os.urandom(3 * MIB))
    notices: list[str] = []

    def note(each: Progress) -> None:
        notices.extend([each.notice] if each.notice else [])

    for source, destination in ((here, copier.remote(there)), (copier.remote(there), back)):
        copier.copy(source, destination, sessions=1, checksum=True, progress=note)
    assert back.read_bytes() == there.read_bytes() == here.read_bytes()
    assert len(notices) == 2
    for notice in notices:
        assert notice.startswith("the node's sshd opens no further channel for a command (most likely MaxSessions ")
        assert notice.endswith("; what was copied is read back instead")
    status, _, errors = copier.run("--sessions", "1", "--checksum", "-", copier.remote(there), data=b"stream")
    assert (status, there.read_bytes()) == (0, b"stream")
    assert "the stream was not verified: the node's sshd opens no further channel for a command" in errors


ESCAPED = os.fsencode(f"{tempfile.gettempdir()}/ssm-escaped-{os.getpid()}")
EVIL = (b"..", b".", b"../escaped", ESCAPED, b"inner/../../escaped", b"", b"nul\0byte", b"good")


class _LyingServer(asyncssh.SFTPServer):
    """Says that there are files of these names in every folder, each with a file in it as well."""

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for name in EVIL:
            yield asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs(size=5, permissions=0o100644))
        if b"deep" not in path:
            yield asyncssh.SFTPName(b"deep", attrs=asyncssh.SFTPAttrs(permissions=0o040755))
            yield asyncssh.SFTPName(b"../deep", attrs=asyncssh.SFTPAttrs(permissions=0o040755))

    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        if b"*" in path:
            raise asyncssh.SFTPNoSuchFile("no such file")
        is_folder = path.endswith((b"/source", b"deep", b"/"))
        return asyncssh.SFTPAttrs(size=5, permissions=0o040755 if is_folder else 0o100644)

    lstat = stat

    def realpath(self, path: bytes) -> bytes:
        if b"refused" in path:
            raise asyncssh.SFTPPermissionDenied("no")
        return b"/" if path == b"." else path

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> io.BytesIO:
        return io.BytesIO(b"bytes")


@pytest.fixture
def liar(start_emulator: StartEmulator, new_user: MakeUser, key: Key) -> Iterator[Copier]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    host_key = asyncssh.generate_private_key("ssh-ed25519")

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(key.public),
            sftp_factory=_LyingServer,
        )

    async def close(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        await acceptor.wait_closed()

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        emulator = start_emulator(nodes=[Node(node_id=EMBEDDED, ssh_address=("127.0.0.1", acceptor.get_port()))])
        known = f"{EMBEDDED} {host_key.export_public_key().decode()}"
        yield Copier(user=new_user(emulator, EMBEDDED, known_hosts=known), emulator=emulator)
    finally:
        asyncio.run_coroutine_threadsafe(close(acceptor), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_names_that_would_lead_out_of_the_destination(liar: Copier, tmp_path: Path) -> None:
    there = tmp_path / "a" / "there"
    there.mkdir(parents=True)
    with pytest.raises(CopyIncomplete) as caught:
        liar.copy(liar.remote("/source"), there, recursive=True)
    assert {path.decode() for path in tree(tmp_path / "a")} == {
        *("there", "there/source", "there/source/good", "there/source/deep", "there/source/deep/good")
    }
    left_out = [each.source for each in caught.value.result.failures]
    assert [each for each in left_out if each.endswith("../escaped")]
    for each in caught.value.result.failures:
        assert each.error == "its name could lead out of the destination; it was left out"
    with pytest.raises(CopyIncomplete, match="was not copied") as refused:
        liar.copy(liar.remote("/refused/source"), there, recursive=True)
    assert refused.value.cause == "it cannot be read: permission denied on the node"
    # The same by a pattern.
    again = tmp_path / "b" / "again"
    again.mkdir(parents=True)
    liar.copy(liar.remote("/x/*oo*"), again)
    assert {path.decode() for path in tree(tmp_path / "b")} == {"again", "again/good"}
    assert not os.path.exists(ESCAPED)
