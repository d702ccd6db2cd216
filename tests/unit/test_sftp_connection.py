"""The SFTP connection: beside what OpenSSH's client sends, with OpenSSH's server, and with servers that are wrong."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sftp_peer import Client, packet, text

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.sftp import connection, packets
from ssm_proxy.sftp.connection import Pending, SftpConnection, SftpStatus
from ssm_proxy.sftp.packets import Attributes

GOLDEN = Path(__file__).parent.parent / "golden" / "sftp" / "openssh-9.2.jsonl"
RECORDS = [
    (record["from"], bytes.fromhex(record["hex"]))
    for record in map(json.loads, GOLDEN.read_text(encoding="utf-8").splitlines())
]
FROM_CLIENT = [data for sender, data in RECORDS if sender == "client"]
FROM_SERVER = [data for sender, data in RECORDS if sender == "server"]
VERSION = packet(2, struct.pack(">I", 3))
H = bytes(4)
UP = b"/srv/files/up.txt"
MOVED = b"/srv/files/moved.txt"
THERE = b"/srv/files/there"
SUB = b"/srv/files/sub"
ACCESSED = 0x6B07BBF9
OF_LOCAL = Attributes(permissions=0o640, times=(ACCESSED, 1700000000))
OF_THERE = Attributes(size=3, owner=(0, 0), permissions=0o100600, times=(1600000000, 1600000000))


def of_moved(permissions: int) -> Attributes:
    return Attributes(size=12, owner=(0, 0), permissions=permissions, times=(ACCESSED, 1700000000))


MISSING = (packets.NO_SUCH_FILE, "No such file")
ANY = object()
# For each of the recorded requests: ours, and what its recorded answer means; None where we never ask so.
CALLS: list[tuple[Callable[[SftpConnection], Pending[Any]], object] | None] = [
    None,  # limits: below
    (lambda sftp: sftp.real_path(b"."), b"/srv/files"),
    (lambda sftp: sftp.stat(UP), MISSING),
    (lambda sftp: sftp.open(UP, 0x02 | 0x08 | 0x10, OF_LOCAL), H),
    (lambda sftp: sftp.write(H, 0, b"hello world\n"), None),
    (lambda sftp: sftp.fsetstat(H, OF_LOCAL), None),
    (lambda sftp: sftp.close_handle(H), None),
    (lambda sftp: sftp.lstat(THERE), OF_THERE),
    (lambda sftp: sftp.stat(THERE), OF_THERE),
    (lambda sftp: sftp.open(THERE, 0x01), H),
    (lambda sftp: sftp.read(H, 0, 0x3FC00), b"abc"),
    (lambda sftp: sftp.read(H, 3, 0x3FBFD), b""),
    (lambda sftp: sftp.close_handle(H), None),
    (lambda sftp: sftp.lstat(b"/srv/files/missing"), MISSING),
    (lambda sftp: sftp.rename(UP, MOVED), None),
    (lambda sftp: sftp.make_folder(SUB, Attributes(permissions=0o777)), None),
    (lambda sftp: sftp.make_folder(SUB, Attributes(permissions=0o777)), (packets.FAILURE, "Failure")),
    (lambda sftp: sftp.open_folder(b"/srv/files"), H),
    (lambda sftp: sftp.read_folder(H), ANY),
    (lambda sftp: sftp.read_folder(H), []),
    (lambda sftp: sftp.close_handle(H), None),
    None,  # names of users
    (lambda sftp: sftp.lstat(MOVED), of_moved(0o100640)),
    (lambda sftp: sftp.setstat(MOVED, Attributes(permissions=0o600)), None),
    None,  # statvfs: below
    (lambda sftp: sftp.lstat(MOVED), of_moved(0o100600)),
    (lambda sftp: sftp.remove(MOVED), None),
    None,  # rmdir
]


def without_id(data: bytes) -> bytes:
    return data[:5] + data[9:]


def answered(reply: bytes, request: bytes) -> bytes:
    """Give a reply under the id of a request."""
    return reply[:5] + request[5:9] + reply[9:]


def opened(version: bytes = FROM_SERVER[0]) -> SftpConnection:
    sftp = SftpConnection()
    sftp.data_to_send()
    sftp.receive(version)
    return sftp


def result_of(sftp: SftpConnection, request: Callable[[SftpConnection], Pending[Any]], *replies: bytes) -> Any:
    """Make a request, answer it, and give what its answer means: a value or the error."""
    pending = request(sftp)
    sent = sftp.data_to_send()
    for reply in replies:
        sftp.receive(answered(reply, sent))
    return pending.result()


def test_the_first_packet_is_that_of_openssh() -> None:
    sftp = SftpConnection()
    assert sftp.data_to_send() == FROM_CLIENT[0]
    assert not sftp.is_open
    assert not sftp.is_idle
    sftp.receive(FROM_SERVER[0])
    assert sftp.is_open
    assert sftp.is_idle
    assert not sftp.has_data_to_send


@pytest.mark.parametrize("number", [number for number, call in enumerate(CALLS) if call is not None])
def test_requests_are_those_of_openssh_and_its_answers_are_understood(number: int) -> None:
    call = CALLS[number]
    assert call is not None
    request, expected = call
    sftp = opened()
    pending = request(sftp)
    sent = sftp.data_to_send()
    assert without_id(sent) == without_id(FROM_CLIENT[number + 1])
    sftp.receive(answered(FROM_SERVER[number + 1], sent))
    assert sftp.is_idle
    if isinstance(expected, tuple):
        with pytest.raises(SftpStatus) as refused:
            pending.result()
        assert (refused.value.code, refused.value.message) == expected
        assert refused.value.is_missing == (expected == MISSING)
    elif expected is not ANY:
        assert pending.result() == expected


def test_extensions_are_asked_as_openssh_asks() -> None:
    sftp, ends, found = opened(), [], []

    async def ask() -> None:
        await sftp.learn_limits()
        found.append((sftp.read_bytes, sftp.write_bytes))
        found.append(await sftp.free_bytes(b"/srv/files/."))

    sftp.start(ask(), ends.append)
    for number in (1, 25):
        sent = sftp.data_to_send()
        assert without_id(sent) == without_id(FROM_CLIENT[number])
        sftp.receive(answered(FROM_SERVER[number], sent))
    assert ends == [None]
    _, size_of_unit, _, _, available, *_ = struct.unpack(">11Q", FROM_SERVER[25][9:])
    assert found == [(65536, 65536), available * size_of_unit]


def test_what_was_written_is_stored_and_its_errors_are_met() -> None:
    for code, expected in ((packets.OK, [True]), (packets.UNSUPPORTED, [False]), (packets.FAILURE, [])):
        sftp, ends, found = opened(), [], []

        async def store(sftp: SftpConnection = sftp, found: list[bool] = found) -> None:
            found.append(await sftp.fsync(H))

        sftp.start(store(), ends.append)
        sent = sftp.data_to_send()
        assert without_id(sent) == without_id(packet(200, bytes(4) + text(b"fsync@openssh.com") + text(H)))
        sftp.receive(packet(101, sent[5:9] + struct.pack(">I", code)))
        assert found == expected
        assert [isinstance(end, SftpStatus) for end in ends] == [not expected]


def test_a_server_without_extensions_is_asked_for_none() -> None:
    sftp, ends, found = opened(VERSION), [], []

    async def ask() -> None:
        await sftp.learn_limits()
        found.extend([await sftp.free_bytes(b"/"), await sftp.expand_path(b"~x"), await sftp.fsync(H)])

    sftp.start(ask(), ends.append)
    assert ends == [None]
    assert found == [None, None, False]
    assert sftp.read_bytes == sftp.write_bytes == 32768
    assert not sftp.has_data_to_send
    assert not sftp.can_replace
    sftp.rename(b"a", b"b")
    assert sftp.data_to_send()[4] == packets.RENAME


def test_a_server_whose_file_system_tells_nothing_has_unknown_room() -> None:
    sftp, ends, found = opened(), [], []

    async def ask() -> None:
        found.append(await sftp.free_bytes(b"/"))

    sftp.start(ask(), ends.append)
    sftp.receive(packet(101, sftp.data_to_send()[5:9] + struct.pack(">I", 4)))
    assert (ends, found) == ([None], [None])


@pytest.mark.parametrize("said", [packet(2, struct.pack(">I", 6)), packet(2, b"")])
def test_a_version_that_is_not_ours_is_refused(said: bytes) -> None:
    with pytest.raises(MalformedMessage):
        SftpConnection().receive(said)


NO_TEXT = "something came before the first packet of SFTP"


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"Welcome to this machine!\r\n", "it began with: Welcome to this machine!"),
        (b"Welcome to\n\tweb-7!\n" + VERSION, "it began with: Welcome to web-7!"),
        ("Grüß Gott\n".encode(), "it began with: Grüß Gott"),
        (b"red: \x1b[31mred", "it began with: red:"),
        (b"word " * 1000, "it began with: " + "word " * 11 + "word"),
        (b"\n" + VERSION, NO_TEXT),
        (b"\r\n" + VERSION, NO_TEXT),
        (b"\x1b[2J" + VERSION, NO_TEXT),
        (packet(101, bytes(8)), NO_TEXT),
        (bytes(4), NO_TEXT),
    ],
    ids=repr,
)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_text_before_sftp_is_called_so(said: bytes, cause: str, cut: int) -> None:
    sftp = SftpConnection()
    sftp.receive(said[:cut])  # too little to tell
    with pytest.raises(MalformedMessage, match="no SFTP server") as caught:
        sftp.receive(said[cut:])
    assert caught.value.cause == cause
    assert "Subsystem sftp" in (caught.value.hint or "")
    assert "print something" in (caught.value.hint or "")


def test_text_behind_the_first_packet_is_a_packet_that_cannot_be() -> None:
    for sftp, said in ((opened(), b"Welcome"), (SftpConnection(), VERSION + b"Welcome")):
        with pytest.raises(MalformedMessage, match=r"an SFTP packet of [0-9]+ bytes was announced"):
            sftp.receive(said)


REQUESTS: list[Callable[[SftpConnection], Pending[Any]]] = [
    lambda sftp: sftp.open(b"p", 1),
    lambda sftp: sftp.close_handle(b"h"),
    lambda sftp: sftp.read(b"h", 0, 10),
    lambda sftp: sftp.write(b"h", 0, b"data"),
    lambda sftp: sftp.lstat(b"p"),
    lambda sftp: sftp.fstat(b"h"),
    lambda sftp: sftp.read_folder(b"h"),
    lambda sftp: sftp.real_path(b"p"),
]
KINDS = [
    packet(101, H + struct.pack(">I", 0)),
    packet(102, H + text(b"h")),
    packet(103, H + text(b"data")),
    packet(104, H + struct.pack(">I", 1) + text(b"name") + text(b"") + bytes(4)),
    packet(105, H + bytes(4)),
    packet(201, H + b"any"),
]
RIGHT = [102, 101, 103, 101, 105, 105, 104, 104]


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_an_answer_of_the_wrong_kind_is_met_by_who_awaits_it(number: int) -> None:
    for reply in KINDS:
        sftp = opened()
        if reply[4] == RIGHT[number]:
            result_of(sftp, REQUESTS[number], reply)
        else:
            with pytest.raises((MalformedMessage, SftpStatus)):
                result_of(sftp, REQUESTS[number], reply)


def test_more_than_was_asked_for_is_refused() -> None:
    assert result_of(opened(), lambda sftp: sftp.read(b"h", 0, 4), KINDS[2]) == b"data"
    with pytest.raises(MalformedMessage, match="4 bytes where 3 were asked for"):
        result_of(opened(), lambda sftp: sftp.read(b"h", 0, 3), KINDS[2])


def test_a_folder_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_ENTRIES", 20)
    sftp, ends = opened(), []
    sftp.start(sftp.list_folder(b"p"), ends.append)  # type: ignore[arg-type]  # what it gives does not matter here
    sftp.receive(answered(KINDS[1], sftp.data_to_send()))
    entry = text(b"name") + text(b"") + bytes(4)
    names = packet(104, H + struct.pack(">I", 10) + entry * 10)
    for count in range(3):
        assert not ends
        request = sftp.data_to_send()
        assert request[4] == packets.READDIR, count
        sftp.receive(answered(names, request))
    (error,) = ends
    assert isinstance(error, SftpStatus)
    assert "more than 20 entries" in error.message
    assert sftp.data_to_send()[4] == packets.CLOSE


def test_two_names_are_no_real_path() -> None:
    entry = text(b"name") + text(b"") + bytes(4)
    with pytest.raises(MalformedMessage):
        result_of(opened(), lambda sftp: sftp.real_path(b"p"), packet(104, H + struct.pack(">I", 2) + entry + entry))


def test_an_answer_to_nothing_ends_the_connection_and_so_does_a_second_one() -> None:
    with pytest.raises(MalformedMessage, match="not made"):
        opened().receive(KINDS[0])
    with pytest.raises(MalformedMessage, match="not made"):
        result_of(opened(), lambda sftp: sftp.stat(b"p"), KINDS[4], KINDS[4])


@given(st.permutations(range(6)), st.integers(1, 200))
def test_answers_may_come_in_any_order_and_in_any_pieces(order: list[int], size: int) -> None:
    sftp, found, ends = opened(VERSION), {}, []

    async def read(number: int) -> None:
        found[number] = await sftp.read(b"h", number, 10), await sftp.read(b"h", number + 10, 10)

    for number in range(6):
        sftp.start(read(number), ends.append)
    for _ in range(2):
        sent = sftp.data_to_send()
        requests = [sent[at : at + len(sent) // 6] for at in range(0, len(sent), len(sent) // 6)]
        ids = {int.from_bytes(each[14:22], "big") % 10: each[5:9] for each in requests}
        replies = b"".join(packet(103, ids[number] + text(b"%d" % number)) for number in order)
        for at in range(0, len(replies), size):
            sftp.receive(replies[at : at + size])
    assert found == {number: (b"%d" % number,) * 2 for number in range(6)}
    assert ends == [None] * 6
    assert sftp.is_idle


def test_what_a_coroutine_raises_is_told_and_ends_only_itself() -> None:
    sftp, ends = opened(), []

    async def stat(path: bytes) -> None:
        await sftp.stat(path)

    for path in (b"a", b"b"):
        sftp.start(stat(path), ends.append)
    sent = sftp.data_to_send()
    first, second = sent[5:9], sent[len(sent) // 2 + 5 : len(sent) // 2 + 9]
    sftp.receive(packet(101, first + struct.pack(">I", 2)))
    assert [type(end) for end in ends] == [SftpStatus]
    sftp.receive(packet(105, second + bytes(4)))
    assert ends[1:] == [None]


def test_several_may_await_the_same_answer_and_it_may_have_come() -> None:
    sftp, found, ends = opened(), [], []
    pending = sftp.open(b"p", 1)

    async def wait() -> None:
        found.append(await pending)

    sftp.start(wait(), ends.append)
    sftp.start(wait(), ends.append)
    sftp.receive(answered(KINDS[1], sftp.data_to_send()))
    sftp.start(wait(), ends.append)
    assert found == [b"h"] * 3


def test_closing_drops_what_waits_and_tells_nobody() -> None:
    sftp, ends, cleaned = opened(), [], []

    async def wait() -> None:
        try:
            await sftp.stat(b"p")
        finally:
            cleaned.append(True)

    sftp.start(wait(), ends.append)
    sent = sftp.data_to_send()
    sftp.close()
    sftp.receive(answered(KINDS[4], sent))
    assert (ends, cleaned) == ([], [True])


# --- OpenSSH's server -------------------------------------------------------------------------------------------------


def test_the_real_server_reads_writes_and_renames(client: Client, tmp_path: Path) -> None:
    sftp = client.sftp
    data = os.urandom(300_000)
    name = b"caf\xe9 \n'\"\\"

    async def everything() -> None:
        await sftp.learn_limits()
        assert sftp.read_bytes == sftp.write_bytes == 65536
        home = await sftp.real_path(b".")
        assert home == os.fsencode(tmp_path.resolve())
        flags = packets.OPEN_WRITE | packets.OPEN_CREATE | packets.OPEN_TRUNCATE
        handle = await sftp.open(name, flags, Attributes(permissions=0o640))
        writes = [sftp.write(handle, at, data[at : at + 65536]) for at in range(0, len(data), 65536)]
        closed = sftp.close_handle(handle)
        for each in writes:
            await each
        await closed
        handle = await sftp.open(name, packets.OPEN_WRITE)
        assert await sftp.fsync(handle)
        await sftp.close_handle(handle)
        assert (await sftp.stat(name)).size == len(data)
        await sftp.setstat(name, Attributes(permissions=0o600, times=(5, 6)))
        handle = await sftp.open(name, packets.OPEN_READ)
        found = await sftp.fstat(handle)
        assert (found.permissions, found.times) == (0o100600, (5, 6))
        reads = [sftp.read(handle, at, 65536) for at in range(0, len(data) + 65536, 65536)]
        assert b"".join([await each for each in reads]) == data
        await sftp.close_handle(handle)
        (tmp_path / "other").write_bytes(b"old")
        await sftp.rename(name, b"other")
        await sftp.make_folder(b"sub", Attributes(permissions=0o700))
        handle = await sftp.open_folder(b".")
        entries = dict(await sftp.read_folder(handle))
        assert set(entries) == {b".", b"..", b"other", b"sub"}
        assert entries[b"sub"].is_folder
        assert await sftp.read_folder(handle) == []
        await sftp.close_handle(handle)
        free = await sftp.free_bytes(b".")
        assert free is not None
        assert abs(free - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize) < 10**9
        assert await sftp.expand_path(b"~root/x") == os.fsencode(os.path.expanduser("~root/x"))
        await sftp.remove(b"other")

    client.run(everything())
    assert sorted(os.listdir(tmp_path)) == ["sub"]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda sftp: sftp.stat(b"missing"), packets.NO_SUCH_FILE),
        (lambda sftp: sftp.open(b"missing", packets.OPEN_READ), packets.NO_SUCH_FILE),
        (lambda sftp: sftp.open_folder(b"file"), packets.NO_SUCH_FILE),
        (lambda sftp: sftp.make_folder(b"file", Attributes()), packets.FAILURE),
        (lambda sftp: sftp.read(b"none", 0, 10), packets.FAILURE),
        (lambda sftp: sftp.rename(b"missing", b"x"), packets.NO_SUCH_FILE),
        (lambda sftp: sftp.remove(b"sub"), packets.FAILURE),
        (lambda sftp: sftp.fsync(b"none"), packets.NO_SUCH_FILE),
    ],
)
def test_the_real_server_refuses(client: Client, tmp_path: Path, call: Any, code: int) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "sub").mkdir()

    async def ask() -> None:
        await call(client.sftp)

    with pytest.raises(SftpStatus) as refused:
        client.run(ask())
    assert refused.value.code == code
    assert refused.value.is_missing == (code == packets.NO_SUCH_FILE)


def test_coroutines_run_together_and_their_first_error_is_told() -> None:
    sftp = SftpConnection()
    order: list[str] = []

    async def part(name: str, *, fails: bool = False) -> None:
        order.append(f"{name} begins")
        await sftp.real_path(name.encode())
        order.append(f"{name} ends")
        if fails:
            raise OSError(name)

    async def whole() -> None:
        await sftp.together([])
        await sftp.together([part("a"), part("b", fails=True), part("c")])

    ends: list[BaseException | None] = []
    sftp.start(whole(), ends.append)
    assert order == ["a begins", "b begins", "c begins"]
    version = struct.pack(">IBI", 5, packets.VERSION_REPLY, 3)
    name = struct.pack(">I", 1) + 2 * packets.encode_string(b"/") + struct.pack(">I", 0)
    answers = [packets.encode_request(packets.NAME, number, name) for number in (2, 0, 1)]
    sftp.receive(version + answers[0] + answers[1])
    assert ends == []
    sftp.receive(answers[2])
    assert order[3:] == ["c ends", "a ends", "b ends"]
    assert [str(end) for end in ends] == ["b"]
