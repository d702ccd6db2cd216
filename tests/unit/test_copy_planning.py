"""What there is to copy, found on OpenSSH's server and on one that lies.

Whatever a node lists, nothing is made or written outside the destination: a security property.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sftp_peer import SFTP_SERVER, Client, LyingServer, OpenSshServer, PipeLink, PipeNode

from ssm_proxy.errors import CopyError
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.download import Download
from ssm_proxy.file_copy.node import Node
from ssm_proxy.file_copy.plan_download import expand, plan_download
from ssm_proxy.file_copy.plan_upload import Tell, plan_upload
from ssm_proxy.file_copy.values import CopyOptions, FileError, SourceError, SourceFile

FOLDER, FILE, LINK, DEVICE = 0o40755, 0o100644, 0o120777, 0o20600


class Found:
    """What a planner told."""

    def __init__(self) -> None:
        self.files: list[SourceFile] = []
        self.failures: list[tuple[bytes, str]] = []
        self.tell = Tell(
            file=self.files.append,
            failure=lambda source, target, text: self.failures.append((source, text)),
            taken=set(),
        )

    def pairs(self, source: str | Path, target: str | Path) -> set[tuple[bytes, bytes]]:
        """Give source and target of each file, as far as they are below these."""
        return {
            (os.path.relpath(file.source, os.fsencode(source)), os.path.relpath(file.target, os.fsencode(target)))
            for file in self.files
        }


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if SFTP_SERVER is None:
        pytest.skip("no sftp-server")
    (tmp_path / "home").mkdir()
    server = OpenSshServer(tmp_path / "home")
    yield PipeNode(Client(server))
    server.close()


@pytest.fixture
def home(tmp_path: Path, node: Node) -> Path:
    return (tmp_path / "home").resolve()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return (tmp_path / "here").resolve()


def fill(folder: Path) -> None:
    """Make a tree with something of each kind."""
    (folder / "file").write_bytes(b"file")
    (folder / "file").chmod(0o640)
    os.utime(folder / "file", (1500000000, 1600000000))
    (folder / "empty").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    for name in (b"caf\xe9", b"line\nbreak", b"-rf", b" ", b"back\\slash"):
        try:
            with open(os.path.join(os.fsencode(folder), name), "wb"):
                pass
        except OSError:  # macOS takes UTF-8 only
            continue
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "file").write_bytes(b"deep")
    (folder / "nothing in it").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "to file").symlink_to("sub/deep/file")
    (folder / "to folder").symlink_to("sub/deep")
    (folder / "to nothing").symlink_to("nothing")
    (folder / "to itself").symlink_to("to itself")
    (folder / "sub" / "up").symlink_to("..")


def names_in(folder: Path) -> set[bytes]:
    return {
        os.path.relpath(os.path.join(top, name), os.fsencode(folder))
        for top, _, names in os.walk(os.fsencode(folder))
        for name in names
    }


LEFT_OUT = {
    "fifo": "no regular file",
    "to nothing": "link to nothing",
    "to itself": "link to nothing",
    "sub/up": "link to a folder that it is in",
}


def plain_files(folder: Path) -> set[bytes]:
    return names_in(folder) - {b"fifo", b"to nothing", b"to itself"} | {b"to folder/file"}


def check_left_out(found: Found, folder: Path) -> None:
    failures = {os.path.normpath(os.fsdecode(source)): text for source, text in found.failures}
    assert set(failures) == {str(folder / name) for name in LEFT_OUT}
    for name, text in LEFT_OUT.items():
        if name != "to itself":  # servers say of a loop what they like
            assert text in failures[str(folder / name)]


def test_a_tree_from_the_node(node: Node, home: Path, here: Path) -> None:
    fill(home)
    found = Found()
    end = plan_download(
        node, [b"."], os.fsencode(here / "copy"), CopyOptions(recursive=True, preserve=True), found.tell
    )
    assert found.pairs(home, here / "copy") == {(name, name) for name in plain_files(home)}
    assert found.tell.taken == {b"copy"}, "of what is in a folder no names are kept"
    check_left_out(found, home)
    (file,) = [each for each in found.files if each.source.endswith(b"/./file")]
    assert (file.size, file.permissions, file.times, file.is_new) == (4, 0o640, (1500000000, 1600000000), True)
    assert (here / "copy" / "nothing in it").is_dir()
    assert (here / "copy" / "to folder").is_dir()
    assert not (here / "copy" / "to folder").is_symlink()
    os.utime(home / "sub", (1300000000, 1400000000))
    failures: list[str] = []
    end.finish(lambda source, target, text: failures.append(text))
    assert failures == []
    assert stat.S_IMODE((here / "copy" / "sub").stat().st_mode) == stat.S_IMODE((home / "sub").stat().st_mode)


def test_a_tree_to_the_node(node: Node, home: Path, here: Path) -> None:
    fill(here)
    (here / "nothing in it").chmod(0o500)
    os.utime(here / "nothing in it", (1300000000, 1400000000))
    found = Found()
    end = plan_upload(node, [os.fsencode(here)], b"copy", CopyOptions(recursive=True, preserve=True), found.tell)
    assert found.pairs(here, home / "copy") == {(name, name) for name in plain_files(here)}
    assert found.tell.taken == {b"copy"}, "of what is in a folder no names are kept"
    check_left_out(found, here)
    failures: list[str] = []
    end.finish(lambda source, target, text: failures.append(text))
    assert failures == []
    made = (home / "copy" / "nothing in it").stat()
    assert stat.S_IMODE(made.st_mode) == 0o500
    assert made.st_mtime == 1400000000


@pytest.mark.parametrize(
    ("sources", "destination", "targets"),
    [
        ([b"sub"], "", [b"sub/deep/file"]),
        ([b"sub/"], "", [b"sub/deep/file"]),
        ([b"sub/."], "", [b"deep/file"]),
        ([b"sub"], "new", [b"new/deep/file"]),
        ([b"file"], "", [b"file"]),
        ([b"file"], "new", [b"new"]),
        ([b"file", b"empty"], "", [b"file", b"empty"]),
        ([b"f*"], "", [b"file", b"first"]),
        ([b"*/deep/f?le"], "", [b"file"]),
        ([b"[ef]*"], "", [b"empty", b"file", b"first"]),
        ([b"[!ef]*e*"], "", []),
        ([b"*"], "", [b"empty", b"file", b"first", b"sub/deep/file"]),
        ([b".h*"], "", [b".hidden"]),
        ([b""], "", [b".hidden", b"empty", b"file", b"first", b"sub/deep/file"]),
    ],
    ids=repr,
)
def test_where_files_of_the_node_go(
    node: Node, home: Path, here: Path, sources: list[bytes], destination: str, targets: list[bytes]
) -> None:
    (home / "sub" / "deep").mkdir(parents=True)
    for name in ("file", "first", "empty", ".hidden", "sub/deep/file"):
        (home / name).write_bytes(b"")
    found = Found()
    plan_download(node, sources, os.fsencode(here / destination), CopyOptions(recursive=True), found.tell)
    assert {target for _, target in found.pairs(home, here)} == set(targets)
    assert len(found.failures) == (not targets)


def test_what_is_there_is_no_pattern(node: Node, home: Path) -> None:
    (home / "a*").write_bytes(b"")
    (home / "ab").write_bytes(b"")
    assert [path for path, _ in expand(node, b"a*")] == [os.fsencode(home / "a*")]
    assert [path for path, _ in expand(node, b"a?")] == [os.fsencode(home / name) for name in ("a*", "ab")]
    assert expand(node, b"missing") == []
    assert expand(node, b"ab/*") == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (rb"d/\*star696\?\[x\]", ["d/*star696?[x]"]),
        (rb"\d/\*s*", ["d/*star696?[x]"]),
        (rb"*/my\ file", ["d/my file", "e/my file"]),
        (rb"*/\a", ["d/a", r"e/\a"]),
        (rb"[d-e]/\\a", [r"e/\a"]),
        (rb"e/x\y", [r"e/x\y"]),
        (rb"e/x[\\]y", [r"e/x\y"]),
        (rb"d/\*no", []),
        (rb"d/*\a", ["d/a"]),
        (rb"d/\..", ["d/.."]),
    ],
)
def test_a_backslash_takes_what_is_special_as_it_is_unless_it_is_part_of_a_name(
    node: Node, home: Path, pattern: bytes, found: list[str]
) -> None:
    for name in ("d/*star696?[x]", "d/my file", "d/a", "e/my file", r"e/\a", r"e/x\y"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"")
    assert [path for path, _ in expand(node, pattern)] == [os.fsencode(home / name) for name in found]


def test_what_is_quoted_needs_no_list_of_its_folder() -> None:
    modes = {b"/closed": FOLDER, b"/closed/a*": FILE}
    server = LyingServer(lambda path: [], mode=modes.get)
    assert [path for path, _ in expand(PipeNode(Client(server)), rb"/closed/a\*")] == [b"/closed/a*"]


def test_folders_need_to_be_asked_for(node: Node, home: Path, here: Path) -> None:
    (home / "sub").mkdir()
    (here / "sub").mkdir()
    found = Found()
    plan_download(node, [b"sub"], os.fsencode(here), CopyOptions(), found.tell)
    plan_upload(node, [os.fsencode(here / "sub"), os.fsencode(here / "missing")], b".", CopyOptions(), found.tell)
    assert [text for _, text in found.failures][:2] == ["it is a folder; -r copies folders"] * 2
    assert "No such file" in found.failures[2][1]
    assert found.files == []


@pytest.mark.parametrize("destination", [b"file", b"missing", b"missing/"])
def test_several_files_need_a_folder(node: Node, home: Path, here: Path, destination: bytes) -> None:
    for folder in (home, here):
        for name in ("file", "other"):
            (folder / name).write_bytes(b"")
    options = CopyOptions()
    with pytest.raises(CopyError, match="no folder on the node"):
        plan_upload(node, [os.fsencode(here / name) for name in ("file", "other")], destination, options, Found().tell)
    with pytest.raises(CopyError, match="no folder here"):
        plan_download(node, [b"file", b"other"], os.path.join(os.fsencode(here), destination), options, Found().tell)


def test_a_folder_in_the_place_of_a_file_is_told(node: Node, home: Path, here: Path) -> None:
    for folder in (home, here):
        (folder / "tree" / "sub").mkdir(parents=True)
    for folder in (home, here):
        (folder / "copy").mkdir()
        (folder / "copy" / "sub").write_bytes(b"a file")
    up, down = Found(), Found()
    plan_upload(node, [os.fsencode(here / "tree") + b"/."], b"copy", CopyOptions(recursive=True), up.tell)
    assert "file of that name" in up.failures[0][1]
    plan_download(node, [b"tree/."], os.fsencode(here / "copy"), CopyOptions(recursive=True), down.tell)
    assert "cannot be made" in down.failures[0][1]


def test_folders_that_link_to_each_other_are_each_copied_once_on_the_way(node: Node, home: Path, here: Path) -> None:
    for folder in (home, here):
        for name, other in (("a", "b"), ("b", "a")):
            (folder / "tree" / name).mkdir(parents=True)
            (folder / "tree" / name / "file").write_bytes(b"")
            for link in ("one", "two", "three"):
                (folder / "tree" / name / link).symlink_to(f"../{other}")
    down, up = Found(), Found()
    plan_download(node, [b"tree"], os.fsencode(here / "down"), CopyOptions(recursive=True), down.tell)
    plan_upload(node, [os.fsencode(here / "tree")], b"up", CopyOptions(recursive=True), up.tell)
    assert down.pairs(home / "tree", here / "down") == up.pairs(here / "tree", home / "up")
    assert len(down.files) == 2 + 2 * 3
    assert {text for _, text in [*down.failures, *up.failures]} == {"it is a link to a folder that it is in"}


def test_paths_on_the_node(node: Node, home: Path) -> None:
    place = os.fsencode(home)
    assert node.absolute(b"") == place
    assert node.absolute(b"~") == place
    assert node.absolute(b"~/x") == place + b"/x"
    assert node.absolute(b"x/y") == place + b"/x/y"
    assert node.absolute(b"/x") == b"/x"
    assert node.absolute(b"~root/x") == os.fsencode(os.path.expanduser("~root/x"))


def test_a_node_that_cannot_tell_a_home_says_so() -> None:
    node = PipeNode(Client(LyingServer(lambda path: [], mode=lambda path: FOLDER)))
    with pytest.raises(CopyError, match="does not tell what ~other is"):
        node.absolute(b"~other/x")


def test_what_may_not_be_looked_at_ends_no_copy(tmp_path: Path) -> None:
    modes = {b"/top": FOLDER, b"/top/good": FILE, b"/top/folder": FOLDER}
    listings = {b"/top": [(b"good", FILE), (b"secret", FILE)], b"/links": [(b"folder", LINK)]}
    server = LyingServer(
        lambda path: listings.get(path, []),
        mode=lambda path: FOLDER if path.startswith(b"/links") else modes.get(path, -1 if b"secret" in path else None),
        real=lambda path: None if path == b"/links/folder" else path,
    )
    node, found = PipeNode(Client(server)), Found()
    assert [path for path, _ in expand(node, b"/top/*")] == [b"/top/good"]
    plan_download(node, [b"/links"], os.fsencode(tmp_path), CopyOptions(recursive=True), found.tell)
    assert found.failures == [(b"/links/folder", "it cannot be read: the node says: no real path")]
    with pytest.raises(SourceError, match="cannot be looked at") as refused:
        expand(node, b"/secret")
    assert "permission denied" in (refused.value.cause or "")


def test_a_source_that_cannot_be_copied_does_not_stop_the_others(tmp_path: Path) -> None:
    modes = {b"/first": FILE, b"/last": FILE, b"/secret": -1, b"/unreal": FOLDER, b"/..": FOLDER}
    server = LyingServer(
        lambda path: [], mode=lambda path: modes.get(path), real=lambda path: None if path == b"/unreal" else path
    )
    bad = {
        b"/secret": "it cannot be looked at: permission denied on the node",
        b"~other/x": "the node does not tell what ~other is; "
        "write the whole path; for a file whose name begins so, ./~NAME",
        b"/..": "it has no name to copy it under; name the folder itself instead of ..",
        b"/unreal": "it cannot be read: the node says: no real path",
        b"/missing": "no such file or folder on the node",
    }
    found = Found()
    sources = [b"/first", *bad, b"/last"]
    plan_download(PipeNode(Client(server)), sources, os.fsencode(tmp_path), CopyOptions(recursive=True), found.tell)
    assert [file.source for file in found.files] == [b"/first", b"/last"]
    assert dict(found.failures) == bad


def test_a_source_here_without_a_name_does_not_stop_the_others(node: Node, home: Path, here: Path) -> None:
    (here / "file").write_bytes(b"")
    found = Found()
    above = os.fsencode(here / "..")
    plan_upload(node, [above, os.fsencode(here / "file")], b".", CopyOptions(recursive=True), found.tell)
    assert found.pairs(here, home) == {(b"file", b"file")}
    assert found.failures == [(above, "it has no name to copy it under; name the folder itself instead of ..")]


def test_a_node_that_does_not_tell_the_home_folder_says_so() -> None:
    node = PipeNode(Client(LyingServer(lambda path: [], mode=lambda path: FOLDER, real=lambda path: None)))
    with pytest.raises(CopyError, match="where the home folder is"):
        node.absolute(b"x")


# --- a node that lies -------------------------------------------------------------------------------------------------

EVIL = [
    b"..",
    b".",
    b"",
    b"/",
    b"../x",
    b"../../x",
    b"/nonexistent/x",
    b"a/../../x",
    b"sub/x",
    b"x\0y",
    b"\0",
    b"..\0",
    b"x/",
]


def run_download(server: LyingServer, destination: Path, sources: list[bytes]) -> Found:
    """Copy as the engine does, in this thread."""
    client, found = Client(server), Found()
    options = CopyOptions(recursive=True, preserve=True, checksum=False)
    end = plan_download(PipeNode(client), sources, os.fsencode(destination), options, found.tell)
    context = Context(options, is_striped=False)
    for file in found.files:
        job = Download(file, context)
        try:
            client.run(job.copy_whole(PipeLink(client)))
        except (FileError, OSError) as error:  # there is a folder of that name, or the name is too long
            found.failures.append((file.source, str(error)))
            job.remove_part()
    end.finish(lambda source, target, text: found.failures.append((source, text)))
    return found


def guarded(tmp_path: Path) -> Path:
    """Make a destination with something to be harmed around it."""
    folder = tmp_path / "around" / "dst"
    folder.mkdir(parents=True)
    (tmp_path / "around" / "x").write_bytes(b"ours")
    (tmp_path / "x").write_bytes(b"ours")
    return folder


def check_unharmed(tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {"around", "x"}
    assert {path.name for path in (tmp_path / "around").iterdir()} == {"dst", "x"}
    for path in (tmp_path / "x", tmp_path / "around" / "x"):
        assert path.read_bytes() == b"ours"
    for top, _, names in os.walk(tmp_path / "around" / "dst"):
        assert not [name for name in names if (Path(top) / name).is_symlink()]


@pytest.mark.parametrize("mode", [FILE, FOLDER, LINK])
def test_names_that_lead_out_are_left_out_and_told(tmp_path: Path, mode: int) -> None:
    destination = guarded(tmp_path)

    def listing(path: bytes) -> list[tuple[bytes, int]]:
        return [(name, mode) for name in [*EVIL, b"good"]] if path == b"/top" else []

    server = LyingServer(listing, mode=lambda path: FOLDER if path == b"/top" or mode == FOLDER else FILE)
    found = run_download(server, destination, [b"/top"])
    assert not any(name in path for path in server.asked for name in (b"/../", b"//", b"\0"))
    check_unharmed(tmp_path)
    assert {path.name for path in (destination / "top").iterdir()} == {"good"}
    refused = [text for _, text in found.failures]
    assert refused == ["its name could lead out of the destination; it was left out"] * (len(EVIL) - 2)  # . and ..


def test_patterns_match_no_names_that_lead_out(tmp_path: Path) -> None:
    destination = guarded(tmp_path)
    server = LyingServer(
        lambda path: [(name, FILE) for name in [*EVIL, b"good"]],
        mode=lambda path: FILE if path in (b"/top/good", b"/top/../x", b"/nonexistent/x") else None,
    )
    found = run_download(server, destination, [b"/top/*", b"/top/.*"])
    check_unharmed(tmp_path)
    assert [file.target for file in found.files] == [os.fsencode(destination / "good")]


def test_a_source_whose_own_name_leads_out_is_refused(tmp_path: Path) -> None:
    destination = guarded(tmp_path)
    sources = [b"/top/..", b".."]
    found = run_download(LyingServer(lambda path: [], mode=lambda path: FOLDER), destination, sources)
    assert ["no name to copy it under" in text for _, text in found.failures] == [True, True]
    check_unharmed(tmp_path)
    assert list(destination.iterdir()) == []


def test_a_link_of_ours_that_was_there_is_not_replaced_by_what_is_behind_it(tmp_path: Path) -> None:
    destination = guarded(tmp_path)
    (destination / "top").mkdir()
    (destination / "top" / "null").symlink_to("/dev/null")
    found = Found()
    client = Client(LyingServer(lambda path: [(b"null", FILE)] if path == b"/top" else [], mode=lambda path: FOLDER))
    plan_download(PipeNode(client), [b"/top"], os.fsencode(destination), CopyOptions(recursive=True), found.tell)
    assert [file.is_new for file in found.files] == [False]


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    destination = guarded(tmp_path)
    server = LyingServer(
        lambda path: [(b"device", DEVICE), (b"socket", 0o140755), (b"untold", 0)], mode=lambda path: FOLDER
    )
    found = run_download(server, destination, [b"/top"])
    assert {path.name for path in (destination / "top").iterdir()} == {"untold"}
    assert [text for _, text in found.failures] == ["it is no regular file, and was left out"] * 2


def test_folders_without_end_come_to_an_end(tmp_path: Path) -> None:
    destination = guarded(tmp_path)
    server = LyingServer(lambda path: [(b"n" * 250, FOLDER)], mode=lambda path: FOLDER)
    found = run_download(server, destination, [b"/top"])
    assert len(found.failures) == 1
    assert "File name too long" in found.failures[0][1]


NAMES = st.sampled_from([*EVIL, b"a", b"b", b"top"]) | st.binary(max_size=6)
ENTRIES = st.lists(st.tuples(NAMES, st.sampled_from([FILE, FOLDER, LINK, DEVICE, 0])), max_size=5)


@given(
    st.lists(ENTRIES, min_size=1, max_size=4),
    st.lists(st.sampled_from([FILE, FOLDER, None]), min_size=1, max_size=4),
    st.sampled_from([b"/", b"/top", b"/elsewhere", b"..", b""]),
)
@settings(max_examples=60)
def test_whatever_a_node_lists_nothing_outside_is_touched(
    tmp_path_factory: pytest.TempPathFactory,
    listings: list[list[tuple[bytes, int]]],
    behind: list[int | None],
    real: bytes,
) -> None:
    tmp_path = tmp_path_factory.mktemp("lying")
    destination = guarded(tmp_path)
    modes = iter(behind * 40)

    def listing(path: bytes) -> list[tuple[bytes, int]]:
        depth = path.count(b"/") - 1
        return listings[depth] if depth < len(listings) else []

    server = LyingServer(
        listing, mode=lambda path: FOLDER if path == b"/top" else next(modes, None), real=lambda path: real
    )
    run_download(server, destination, [b"/top"])
    check_unharmed(tmp_path)
