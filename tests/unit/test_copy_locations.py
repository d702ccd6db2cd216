"""What the arguments of ``cp`` mean, beside scp's rules: a colon before any slash names a node."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.errors import UsageError
from ssm_proxy.file_copy.locations import Location, parse_location


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("file", Location(b"file")),
        ("/a/b", Location(b"/a/b")),
        ("./a:b", Location(b"./a:b")),
        ("/a:b", Location(b"/a:b")),
        ("sub/a:b", Location(b"sub/a:b")),
        ("user@host", Location(b"user@host")),
        ("with space", Location(b"with space")),
        ("a\nb", Location(b"a\nb")),
        ("caf\udce9", Location(b"caf\xe9")),
        ("-", Location(b"-")),
        ("--", Location(b"--")),
        ("host:path", Location(b"path", "host")),
        ("host:", Location(b"", "host")),
        ("host:/a:b", Location(b"/a:b", "host")),
        ("host:a@b", Location(b"a@b", "host")),
        ("host:-", Location(b"-", "host")),
        ("host:a b\nc", Location(b"a b\nc", "host")),
        ("host:caf\udce9", Location(b"caf\xe9", "host")),
        ("host:~/x", Location(b"~/x", "host")),
        ("user@host:path", Location(b"path", "host", "user")),
        ("DOMAIN\\user@host:", Location(b"", "host", "DOMAIN\\user")),
        ("user@mail@host:path", Location(b"path", "host", "user@mail")),
        ("i-0123456789abcdef0:*.csv", Location(b"*.csv", "i-0123456789abcdef0")),
        ("ecs:cluster_task_run-1:path", Location(b"path", "ecs:cluster_task_run-1")),
        ("ecs:cluster/service:path", Location(b"path", "ecs:cluster/service")),
        ("root@ecs:cluster/service/container:/a:b", Location(b"/a:b", "ecs:cluster/service/container", "root")),
        ("ecs:/path", Location(b"/path", "ecs")),
        (PurePosixPath("host:path"), Location(b"host:path")),
        (PurePosixPath(), Location(b".")),
        (PurePosixPath("-"), Location(b"./-")),
    ],
    ids=repr,
)
def test_arguments(text: str | os.PathLike[str], location: Location) -> None:
    assert parse_location(text) == location


def test_only_the_dash_here_is_a_stream() -> None:
    assert parse_location("-").is_stream
    for text in ("./-", "host:-", "--", PurePosixPath("-")):
        assert not parse_location(text).is_stream


@pytest.mark.parametrize("text", ["", ":", ":path", "user@:path", "@:x", "a\0b", "host:a\0b", PurePosixPath("a\0b")])
def test_what_names_nothing_is_refused(text: str | os.PathLike[str]) -> None:
    with pytest.raises(UsageError):
        parse_location(text)


@given(st.text(min_size=1))
def test_scps_rule_for_any_text(text: str) -> None:
    try:
        location = parse_location(text)
    except (UsageError, UnicodeEncodeError):
        return
    head, colon, _ = text.partition(":")
    is_remote = bool(colon) and "/" not in head and head != ""
    assert (location.host is not None) == is_remote
    if not is_remote:
        assert location.path == os.fsencode(text)
