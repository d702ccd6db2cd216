"""Splits a command line into words as the agent does for commands that run without a shell.

Source: amazon-ssm-agent, agent/session/shell/shell_unix.go, and the library it calls, github.com/google/shlex;
docs/PROTOCOL.md section 8.4.
"""

from __future__ import annotations

from typing import Final

_BLANKS: Final = " \t\r\n"


class WordError(ValueError):
    """The line ends within quotes or after a backslash; the text is the library's."""


def split_words(line: str) -> list[str]:
    r"""Give the words. It knows both kinds of quotes, the backslash, and comments from ``#`` to the end of a line.

    Unlike in a shell a backslash within double quotes always goes, whatever it stands before, and one before the end of
    a line leaves that end in the word.

    Raises:
        WordError: the line ends too early.
    """
    words: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if character == "\\" and quote != "'":
            following = next(characters, None)
            if following is None:
                raise WordError("EOF found after escape character")
            word = (word or "") + following
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = (word or "") + character
        elif character in "'\"":
            quote = character
            word = word or ""
        elif character in _BLANKS:
            if word is not None:
                words.append(word)
            word = None
        elif character == "#" and word is None:
            for skipped in characters:
                if skipped == "\n":
                    break
        else:
            word = (word or "") + character
    if quote:
        raise WordError("EOF found when expecting closing quote")
    if word is not None:
        words.append(word)
    return words
