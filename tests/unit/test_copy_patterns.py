"""Patterns of ``ssm-proxy cp``: as glob(3) of scp and sftp takes them."""

from __future__ import annotations

import fnmatch
import os
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ssm_proxy.file_copy.patterns import Pattern

TEXTS = st.text(r"ab-]![*?\.", max_size=8)


@pytest.mark.parametrize(
    ("pattern", "names"),  # what scp of OpenSSH 9.2 found in a folder with all of them
    [
        (r"\*star696\?\[x\]", ["*star696?[x]"]),
        (r"\a", ["a"]),
        (r"\\a", [r"\a"]),
        (r"my\ file", ["my file"]),
        (r"x\\y", [r"x\y"]),
        ("e\\", ["e\\"]),
        (r"e\\", ["e\\"]),
        (r"e[\\]", ["e\\"]),
        (r"[\]o]nly\]", ["only]"]),
        ("o*[]]", ["only]"]),
        (r"a[a\-z]b", ["a-b", "azb"]),
        ("a[a-z]b", ["azb"]),
        (r"\.h*", [".hid"]),
        ("[.]h*", []),
        (r"\[.]h*", ["[.]hid"]),
        (r"\*both", ["*both"]),
        (r"\\\*both", [r"\*both"]),
        ("*both", ["*both", r"\*both"]),
        ("?both", ["*both"]),
        (r"[\!a]", ["a"]),
        (r"none\*", []),
    ],
)
def test_what_scp_finds(pattern: str, names: list[str]) -> None:
    there = ["*both", "*star696?[x]", "[.]hid", r"\*both", r"\a", "a", "a-b", "azb", "e\\", "my file", "only]", r"x\y"]
    there += [".hid", "{a,b}"]
    assert {name for name in there if Pattern(os.fsencode(pattern)).matches(os.fsencode(name))} == set(names)


@given(pattern=TEXTS, name=TEXTS)
def test_without_backslashes_it_is_the_shells(pattern: str, name: str) -> None:
    pattern = pattern.replace("\\", "")
    assume(not re.search("-.!", pattern))  # fnmatch takes the ! in [b-a!] for a negation
    is_hidden = name.startswith(".") and not pattern.startswith(".")
    expected = not is_hidden and fnmatch.fnmatchcase(name, pattern)
    assert Pattern(os.fsencode(pattern)).matches(os.fsencode(name)) == expected


def test_a_range_that_is_empty_negates_nothing() -> None:
    assert [name for name in (b"!", b"a", b"b", b"c") if Pattern(b"[b-a!]").matches(name)] == [b"!"]


@given(name=TEXTS.filter(bool), other=TEXTS)
def test_a_name_in_which_all_is_quoted_stands_for_itself(name: str, other: str) -> None:
    pattern = Pattern(os.fsencode(re.sub("(.)", r"\\\1", name)))
    assert not pattern.is_magic
    assert pattern.literal == os.fsencode(name)
    assert pattern.matches(os.fsencode(name))
    assert pattern.matches(os.fsencode(other)) == (name == other)


@pytest.mark.parametrize(
    ("pattern", "is_magic"), [("a*", True), ("?", True), ("[a]", True), (r"\*\?\[a]", False), ("[a", False)]
)
def test_what_may_stand_for_several_names(pattern: str, is_magic: bool) -> None:
    assert Pattern(os.fsencode(pattern)).is_magic == is_magic


def test_bytes_that_are_no_utf_8_are_a_character_each() -> None:
    assert Pattern(rb"\?" + b"?\xff").matches(b"?\xfe\xff")


def test_many_stars_take_no_time() -> None:
    assert not Pattern(b"*a" * 100 + b"b").matches(b"a" * 255)  # it would not come to an end
