"""Names of files. That none of the node's leads out of the destination is a security property: here by itself, and with
a node that lies in test_copy_planning.py.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.errors import CopyError
from ssm_proxy.file_copy.names import is_part_of, is_safe, join, last_name, part_path, part_prefix, shown


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"/", b"/etc/passwd", b"../x", b"x/..", b"a/b", b"a/", b"./x", b"\0", b"a\0b", b"..\0"]
)
def test_names_that_lead_elsewhere_are_not_safe(name: bytes) -> None:
    assert not is_safe(name)


@pytest.mark.parametrize("name", [b"a", b"...", b"..a", b" ", b"\n", b"-rf", b"~", b"caf\xe9", b"\\", b"a:b", b"*"])
def test_odd_names_are_names_all_the_same(name: bytes) -> None:
    assert is_safe(name)


@given(st.binary(max_size=20) | st.lists(st.sampled_from([b"..", b".", b"/", b"a", b"\0"]), max_size=6).map(b"".join))
def test_a_safe_name_is_one_in_its_folder(name: bytes) -> None:
    if is_safe(name):
        path = os.path.join(b"/dst/folder", name)
        assert os.path.normpath(path) == path
        assert os.path.dirname(path) == b"/dst/folder"


@pytest.mark.parametrize("target", [b"/a/b", b"b", b"/b", b"/a/" + b"n" * 255, b"/a/caf\xe9\n"])
def test_a_part_is_beside_its_target_and_is_known_as_such(target: bytes) -> None:
    part = part_path(target)
    folder, name = os.path.split(part)
    assert folder == os.path.dirname(target)
    assert name.startswith(b".")
    assert len(name) < 50
    assert is_safe(name)
    assert is_part_of(name, target)
    assert part_path(target) != part
    assert not is_part_of(name, b"/a/other")
    assert not is_part_of(os.path.basename(target), target)
    assert not is_part_of(part_prefix(target), target)


@pytest.mark.parametrize(
    ("path", "name"),
    [(b"/a/b", b"b"), (b"b", b"b"), (b"a/b//", b"b"), (b"/", b""), (b".", b""), (b"a/.", b""), (b"", b"")],
)
def test_the_name_in_another_folder(path: bytes, name: bytes) -> None:
    assert last_name(path) == name


@pytest.mark.parametrize("path", [b"..", b"../", b"/a/.."])
def test_what_has_no_name_is_refused(path: bytes) -> None:
    with pytest.raises(CopyError, match="no name") as refused:
        last_name(path)
    assert refused.value.hint


def test_joining() -> None:
    assert join(b"/a", b"b") == b"/a/b"
    assert join(b"/a/", b"b") == b"/a/b"
    assert join(b"/a", b"") == b"/a"
    assert shown(b"caf\xe9") == "caf\udce9"
