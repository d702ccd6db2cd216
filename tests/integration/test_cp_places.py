"""``ssm-proxy cp``: where things go, what patterns stand for, and what of it is refused; as with scp."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from copies import Copier, tree
from nodes import EMBEDDED, REAL

from ssm_proxy.api.copying import copy_with
from ssm_proxy.api.ssh import Access
from ssm_proxy.errors import CopyError, TargetNotConnected, UsageError
from ssm_proxy.file_copy.plan_upload import SAME_NAME
from ssm_proxy.file_copy.values import CopyIncomplete, CopyOptions

pytestmark = pytest.mark.integration


def names(folder: Path) -> set[str]:
    return {os.fsdecode(path) for path in tree(folder)}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with two files, and a folder in it."""
    folder = tmp_path / "here"
    (folder / "inner").mkdir(parents=True)
    for name in ("one", "two", "inner/three"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def home(host: str) -> Iterator[Path]:
    """A folder in the home of the node's user: sshd's SFTP server looks for it in the password database."""
    of_user = pwd.getpwuid(os.getuid()).pw_dir if host == REAL else Path.home()
    with tempfile.TemporaryDirectory(dir=of_user, prefix="ssm-cp-") as folder:
        yield Path(folder)


ALL = {"one", "two", "inner", "inner/three"}


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_where_things_go(real: Copier, here: Path, there: Path, is_upload: bool) -> None:
    def copy(source: str, destination: str, *, recursive: bool = False) -> None:
        if is_upload:
            real.copy(f"{here}{source}", real.remote(f"{there}{destination}"), recursive=recursive)
        else:
            real.copy(real.remote(f"{here}{source}"), f"{there}{destination}", recursive=recursive)

    copy("/one", "")
    copy("/two", "/renamed")
    copy("/one", "/renamed")
    assert (there / "renamed").read_text() == "one"
    assert names(there) == {"one", "renamed"}

    (there / "folder").mkdir()
    copy("", "/folder", recursive=True)
    copy("/", "/new", recursive=True)
    copy("/inner/..", "/other", recursive=True)
    assert names(there / "folder") == {"here", *(f"here/{name}" for name in ALL)}
    assert names(there / "new") == names(there / "other") == ALL
    shutil.rmtree(there / "folder" / "here")
    copy("/.", "/folder/", recursive=True)
    assert names(there / "folder") == ALL


def test_several_sources(real: Copier, here: Path, there: Path, tmp_path: Path) -> None:
    sources = [here / "one", here / "two", here / "inner"]
    assert real.failures(sources, real.remote(there)) == {"inner": "it is a folder; -r copies folders"}
    assert names(there) == {"one", "two"}
    real.copy(sources, real.remote(there), recursive=True)
    assert names(there) == ALL

    back = tmp_path / "back"
    back.mkdir()
    remote = [real.remote(there / name) for name in ("one", "two", "inner", "nothing")]
    failures = real.failures(remote, back, recursive=True)
    assert failures == {"nothing": "no such file or folder on the node"}
    assert names(back) == ALL


def test_a_node_of_several_that_cannot_be_reached_does_not_stop_the_others(
    real: Copier, here: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    back.mkdir()
    there, gone = [real.remote(here / name) for name in ("one", "two")], "i-0ffffffffffffffff:/gone"
    with pytest.raises(CopyIncomplete) as caught:
        real.copy([there[0], gone, there[1]], back)
    result = caught.value.result
    (failure,) = result.failures
    assert (failure.source, failure.target) == (gone, os.fspath(back))
    assert "is not connected" in (failure.error or "")
    assert (result.files, names(back)) == (2, {"one", "two"})

    status, _, errors = real.run(gone, there[0], back)
    assert status == 11
    assert re.search(rf"^ssm-proxy: {gone}: .* is not connected", errors, re.MULTILINE)
    assert re.search(r"^ssm-proxy: i-0ffffffffffffffff: check that region and account", errors, re.MULTILINE)
    assert re.search(r"^copied 1 file, .*; 1 file not copied$", errors, re.MULTILINE)
    with pytest.raises(TargetNotConnected):
        real.copy([gone, "i-0eeeeeeeeeeeeeeee:/gone"], back)


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Two folders, a and b, with the same names in both; what is in each says where it is."""
    for name in ("a/file", "a/folder/inner", "b/file", "b/folder/inner", "b/folder/more", "b/other"):
        path = tmp_path / "twins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "twins"


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
@pytest.mark.parametrize(
    ("sources", "copied", "refused"),
    [
        (["a/file", "b/file"], ["a/file"], ["b/file"]),
        (["b/file", "./a/../a/file", "b/other"], ["b/file", "b/other"], ["./a/../a/file"]),
        (["a/file", "a/file", "a/file"], ["a/file"], ["a/file"] * 2),
        (["a/folder", "b/folder/"], ["a/folder/inner"], ["b/folder/"]),
        (["a/.", "b/folder", "b/."], ["a/file", "a/folder/inner", "b/other"], ["b/folder", "b/./file", "b/./folder"]),
        (["b/file", "a/."], ["b/file", "a/folder/inner"], ["a/./file"]),
        (["a/folder", "a/folder/inner", "b/folder/inner"], ["a/folder/inner"], ["b/folder/inner"]),
        (["nothing/file", "b/file"], ["b/file"], ["nothing/file"]),
    ],
    ids=repr,
)
def test_sources_of_one_name(
    real: Copier, twins: Path, there: Path, is_upload: bool, sources: list[str], copied: list[str], refused: list[str]
) -> None:
    """The first has it; none is replaced by another, and no folders are merged."""
    paths = [f"{twins}/{source}" for source in sources]
    froms, to = (paths, real.remote(there)) if is_upload else ([real.remote(path) for path in paths], there)
    with pytest.raises(CopyIncomplete) as caught:
        real.copy(froms, to, recursive=True)
    failures = caught.value.result.failures
    assert [each.source for each in failures] == [f"{twins}/{source}" for source in refused]
    assert {each.error for each in failures if "nothing" not in each.source} <= {SAME_NAME}
    assert {path.read_text() for path in there.rglob("*") if path.is_file()} == set(copied)


def test_what_has_one_name_in_several_folders_that_a_pattern_stands_for(real: Copier, twins: Path, there: Path) -> None:
    status, _, errors = real.run("-r", real.remote(twins / "?" / "f*"), there)
    assert status == 11
    for name in ("b/file", "b/folder"):
        assert f"ssm-proxy: {twins}/{name}: {SAME_NAME}\n" in errors
    assert {path.read_text() for path in there.rglob("*") if path.is_file()} == {"a/file", "a/folder/inner"}
    real.copy(real.remote(twins / "a" / "*"), there, recursive=True)  # another copy may replace what is there


def test_sources_of_one_name_from_several_nodes(real: Copier, twins: Path, there: Path) -> None:
    sources = [real.remote(twins / "a" / "file"), f"{EMBEDDED}:{twins}/b/*", real.remote(twins / "b" / "folder")]
    with pytest.raises(CopyIncomplete) as caught:
        real.copy(["i-0ffffffffffffffff:/gone/file", *sources], there, recursive=True)
    result = caught.value.result
    assert [(each.source, each.error) for each in result.failures[1:]] == [
        (f"{twins}/b/file", SAME_NAME),
        (f"{twins}/b/folder", SAME_NAME),
    ]
    assert result.failures[1].target == f"{there}/file"
    assert result.files == 4
    assert {path.read_text() for path in there.rglob("*") if path.is_file()} == {
        "a/file",
        "b/folder/inner",
        "b/folder/more",
        "b/other",
    }


def test_a_destination_that_is_none(real: Copier, here: Path, there: Path) -> None:
    (there / "file").write_text("old")
    several = [here / "one", here / "two"]
    for destination in ("nothing/", "file/"):
        for source, where in (
            (here / "one", real.remote(there / destination) + "/"),
            (real.remote(here / "one"), f"{there / destination}/"),
        ):
            with pytest.raises(CopyError, match="no folder") as caught:
                real.copy(source, where)
            assert caught.value.hint
    with pytest.raises(CopyError, match="no folder on the node"):
        real.copy(several, real.remote(there / "file"))
    with pytest.raises(CopyError, match="no folder here"):
        real.copy([real.remote(each) for each in several], there / "file")
    with pytest.raises(CopyError, match="no folder here"):
        real.copy(real.remote(here / "*"), there / "file")
    missing = there / "nothing" / "name"
    (why,) = real.failures(here / "one", real.remote(missing)).values()
    assert "no such file or folder on the node" in why
    (why,) = real.failures(real.remote(here / "one"), missing).values()
    assert why == "it cannot be written: No such file or directory"
    (why,) = real.failures(here, real.remote(there / "file"), recursive=True).values()
    assert "there is a file of that name" in why
    (why,) = real.failures(real.remote(here), there / "file", recursive=True).values()
    assert why == "the folder cannot be made: File exists"
    assert names(there) == {"file"}
    assert (there / "file").read_text() == "old"


def test_the_home_folder(copier: Copier, here: Path, home: Path, there: Path) -> None:
    copier.copy([here / "one", here / "two"], copier.remote(home.name))
    copier.copy(here / "one", copier.remote(f"~/{home.name}/tilde"))
    copier.copy(here / "one", copier.remote(f"./{home.name}/../{home.name}/dots"))
    assert names(home) == {"one", "two", "tilde", "dots"}
    copier.copy(copier.remote(f"{home.name}/[ot]*"), there)
    assert names(there) == {"one", "two", "tilde"}


def test_somebody_elses_home(real: Copier, there: Path) -> None:
    with pytest.raises(CopyError, match="~nobody-of-that-name") as caught:
        real.copy(real.remote("~nobody-of-that-name/file"), there)
    assert "write the whole path" in (caught.value.cause or "")
    # What sshd calls root's home may have nothing in it.
    assert real.failures(real.remote("~root/nothing of that name"), there)


def test_patterns(real: Copier, there: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    folders = ("x/1/data", "y/1/data", "y/2/data", "[z]/data", "q*/*star696?[x]", "q*/my file", "q*/b")
    for name in ("a.csv", "b.csv", "c.txt", ".hidden.csv", "*", "\\a", "a", "q*/\\b", *folders):
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)

    def found(pattern: str) -> set[str]:
        shutil.rmtree(there)
        there.mkdir()
        real.copy(real.remote(f"{source}/{pattern}"), there)
        return {file.read_text() for file in there.iterdir()}

    assert found("*.csv") == {"a.csv", "b.csv"}
    assert found(".*") == {".hidden.csv"}
    assert found("[!ab].???") == {"c.txt"}
    assert found("*") == {"*"}, "what is there under that name is meant"
    assert found("?/[23]/d*") == {"y/2/data"}
    assert found("[z]/d*") == {"[z]/data"}, "a folder that is there under that name is meant"
    assert found("\\a") == found("\\\\a") == {"\\a"}, "a backslash, too, may be a part of a name"
    assert found(r"q\*/\*star696\?\[x\]") == {"q*/*star696?[x]"}
    assert found(r"q?/my\ f*") == {"q*/my file"}
    assert found(r"q\*/\b") == {"q*/\\b"}
    assert found(r"q\*/[\b]") == {"q*/b"}
    assert real.failures(real.remote(source / "*.none"), there) == {"*.none": "no such file or folder on the node"}


def test_what_does_not_go_together(real: Copier, tmp_path: Path) -> None:
    node, here = real.remote("x"), tmp_path / "x"
    access = Access(session=real.session, config_file=real.user.config)
    for sources, destination, options in (
        ([], here, {}),
        ([""], here, {}),
        ([here], here, {}),
        ([node], node, {}),
        ([node, here], here, {}),
        ([here, node], node, {}),
        (["-", here], node, {}),
        ([node, node], "-", {}),
        (["-"], "-", {}),
        (["-"], node, {"resume": True}),
        ([node], "-", {"resume": True}),
        ([":x"], here, {}),
        ([node], here, {"sessions": 0}),
        ([node], here, {"sessions": 33}),
    ):
        with pytest.raises(UsageError) as caught:
            copy_with(sources, destination, CopyOptions(**options), access, None)
        assert caught.value.message
    assert not here.exists()
