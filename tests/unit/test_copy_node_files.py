"""Files of the node: which part an upload may go on from."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from unittest import mock

import pytest
from sftp_peer import Client

from ssm_proxy.file_copy.names import part_path
from ssm_proxy.file_copy.node_files import find_part
from ssm_proxy.sftp import connection, packets
from ssm_proxy.sftp.connection import SftpStatus
from ssm_proxy.sftp.packets import Attributes

NOBODY = 65534


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / "file"


def make_part(target: Path, size: int) -> Path:
    part = Path(os.fsdecode(part_path(os.fsencode(target))))
    part.write_bytes(bytes(size))
    return part


def find(client: Client, target: Path, in_use: Collection[Path] = ()) -> Path | None:
    found = client.run(find_part(client.sftp, os.fsencode(target), [os.fsencode(path) for path in in_use]))
    return None if found is None else Path(os.fsdecode(found))


def test_the_largest_part_that_no_other_file_of_this_copy_has(client: Client, target: Path) -> None:
    assert find(client, target) is None
    small, large, used = (make_part(target, size) for size in (10, 20, 30))
    (target.parent / "other").write_bytes(bytes(40))
    make_part(target.with_name("other"), 50)
    before = sorted(target.parent.iterdir())
    assert find(client, target, [used]) == large
    assert find(client, target, [used, large]) == small
    assert sorted(target.parent.iterdir()) == before


def test_the_part_of_another_user_is_left_alone_by_root_too(client: Client, target: Path) -> None:
    """Root may do with it what only its owner may: so it has to be looked at."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    theirs = make_part(target, 20)
    os.chown(theirs, NOBODY, NOBODY)
    assert find(client, target) is None
    ours = make_part(target, 10)
    assert find(client, target) == ours
    os.chown(ours, 0, NOBODY)  # as in a folder whose files have its group
    assert find(client, target) == ours
    assert set(target.parent.iterdir()) == {theirs, ours}


def test_where_nothing_can_be_made_no_part_is_anybodys(client: Client, target: Path) -> None:
    make_part(target, 20)
    real = client.sftp.open

    def refuse(path: bytes, flags: int, attributes: Attributes = Attributes()) -> object:  # noqa: B008
        return real(path + b"/x" if flags & packets.OPEN_CREATE else path, flags, attributes)

    with mock.patch.object(client.sftp, "open", refuse):
        assert find(client, target) is None


def test_a_server_that_tells_no_owners(client: Client, target: Path) -> None:
    part = make_part(target, 20)
    real = client.sftp.list_folder

    async def without_owners(path: bytes) -> list[tuple[bytes, Attributes]]:
        entries = await real(path)
        return [(name, Attributes(size=found.size, permissions=found.permissions)) for name, found in entries]

    with mock.patch.object(client.sftp, "list_folder", without_owners):
        assert find(client, target) == part


def test_a_folder_that_cannot_be_listed_has_no_part(
    client: Client, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_part(target, 20)
    with monkeypatch.context() as patches:
        patches.setattr(connection, "MOST_ENTRIES", 2)
        assert find(client, target) is None

    async def refuse(path: bytes) -> list[tuple[bytes, Attributes]]:
        raise SftpStatus(packets.PERMISSION_DENIED, "")

    monkeypatch.setattr(client.sftp, "list_folder", refuse)
    assert find(client, target) is None
