"""Command lines, split as the agent's library splits them."""

from __future__ import annotations

import pytest

from ssm_proxy.emulator.plugins.words import WordError, split_words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        (" \t\r\n", []),
        ("ls -l /tmp", ["ls", "-l", "/tmp"]),
        ("  a\tb\r\nc ", ["a", "b", "c"]),
        ("""echo 'a "b" \\c' "d 'e' f" """, ["echo", 'a "b" \\c', "d 'e' f"]),
        ("a'b'\"c\"d", ["abcd"]),
        ("'' \"\" x", ["", "", "x"]),
        ("a\\ b \\'c \\\\", ["a b", "'c", "\\"]),
        ('"a\\nb\\"c\\\\"', ['anb"c\\']),  # a shell would keep the first backslash
        ("a\\\nb", ["a\nb"]),  # a shell would join the lines
        ("a # b 'c\nd#e #", ["a", "d#e"]),
        ("sh -c 'exit 7; # x'", ["sh", "-c", "exit 7; # x"]),
        ("a $HOME *.py | b > c; d && e", ["a", "$HOME", "*.py", "|", "b", ">", "c;", "d", "&&", "e"]),
        ("écho 'ü'\u00a0x", ["écho", "ü\u00a0x"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert split_words(line) == words


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("echo 'x", "EOF found when expecting closing quote"),
        ('echo "x', "EOF found when expecting closing quote"),
        ("echo x\\", "EOF found after escape character"),
        ('echo "x\\', "EOF found after escape character"),
    ],
)
def test_a_line_that_ends_too_early(line: str, text: str) -> None:
    with pytest.raises(WordError, match=text):
        split_words(line)
