"""The value of ``--parameters``: JSON, the AWS CLI's shorthand, or the name of a file with either.

The same text means the same here as in ``aws ssm start-session --parameters``. Source of the grammar: the AWS CLI user
guide ("Using shorthand syntax") and its own parser, awscli/shorthand.py; of the types and limits: the service model of
StartSession, a map of names to lists of strings.
"""

from __future__ import annotations

import json
import os
import re
import string
from typing import Any, Final, NoReturn

from ssm_proxy.errors import UsageError

_FILE: Final = "file://"
_NAME_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "-_.#/:")
_START: Final = r"!#-&(-+\--<>-Z\\-z|-\uffff"
_PIECE: Final = re.compile(rf"(?:\\,|[{_START}])(?:\\,|[\s!#-&(-+\--\\^-|~-\uffff])*")
"""A value without quotes, the first of its parameter."""
_FURTHER_PIECE: Final = re.compile(rf"(?:\\,|[{_START}])(?:\\,|[\s!#-&(-+\--<>-\uffff])*")
"""One behind a comma: an equals sign would make it the next parameter's name."""
_QUOTED: Final = {
    "'": re.compile(r"'((?:\\'|[^'])*)'"),
    '"': re.compile(r'"((?:\\"|[^"])*)"'),
}
_LARGEST_FILE: Final = 1024 * 1024
_LARGEST_NAME: Final = 255
_LARGEST_VALUE: Final = 65535
_SHOWN: Final = 60
"""Characters of the text that an error shows, about half of them before the mark."""
_EXAMPLES: Final = """portNumber=80,host=db.internal or '{"portNumber":["80"],"host":["db.internal"]}'"""


def parse_parameters(text: str) -> dict[str, list[str]]:
    """Read the parameters of a session document.

    Args:
        text: ``portNumber=80,host=db``, ``{"portNumber":["80"]}``, or ``file://`` and a path.

    Returns:
        Values by name; a single value in shorthand is a list of one.

    Raises:
        UsageError: the text has no such form, or the service would refuse the types or lengths.
    """
    if text.startswith(_FILE):
        text = _read_file(text)
    parameters = _parse_json(text) if text.strip().startswith(("{", "[")) else _Shorthand(text).parse()
    return {_checked_name(name): _checked_values(name, values) for name, values in parameters.items()}


class _Shorthand:
    """A reader of ``name=value,value,name=[value,value]``.

    Nested lists and structures, which the grammar has as well, cannot be the value of a session parameter.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def parse(self) -> dict[str, list[str]]:
        parameters: dict[str, list[str]] = {}
        while True:
            start = self._position
            name = self._name()
            # name@=file://path takes the value from a file.
            self._skip_space()
            takes_files = self._take("@")
            self._expect("=")
            values = self._values(takes_files)
            if name in parameters:
                self._refuse(f"the parameter {_quote(name)} is there twice", start)
            parameters[name] = values
            if self._current() == "":
                return parameters
            self._expect(",")

    def _name(self) -> str:
        start = self._position
        while self._current() in _NAME_CHARACTERS:
            self._position += 1
        return self._text[start : self._position]

    def _values(self, takes_files: bool) -> list[str]:
        if self._current() == "{":
            self._refuse("a structure cannot be the value of a parameter; it is one string or a list of strings")
        values = self._bracketed_values() if self._current() == "[" else self._plain_values()
        return [self._from_file(value) if takes_files else value for value in values]

    def _from_file(self, value: str) -> str:
        if value.startswith("fileb://"):
            self._refuse("the bytes of a fileb:// cannot be a value; values are strings, as file:// gives them")
        return _read_file(value) if value.startswith(_FILE) else value

    def _bracketed_values(self) -> list[str]:
        self._expect("[")
        values = []
        while self._current() != "]":
            if self._current() in ("[", "{"):
                self._refuse("a list in a list, or a structure, cannot be a value; values are strings")
            values.append(self._value())
            self._skip_space()
            if self._current() != "]":
                self._expect(",")
        self._position += 1
        return values

    def _plain_values(self) -> list[str]:
        values = [self._value()]
        self._skip_space()
        while self._current() == ",":
            comma = self._position
            self._expect(",")
            value = self._further_value()
            self._skip_space()
            if value is None or self._current() not in (",", ""):
                if self._current() == "":
                    self._refuse("a value is missing at the end")
                if value is not None:  # without one, at a second comma, the AWS CLI goes on there
                    self._position = comma
                break  # what follows is the next parameter
            values.append(value)
        return values

    def _value(self) -> str:
        """Take a value; without any it is an empty string."""
        if self._current() in _QUOTED:
            return self._quoted()
        match = _PIECE.match(self._text, self._position)
        return "" if match is None else self._unescaped(match)

    def _further_value(self) -> str | None:
        if self._current() in _QUOTED:
            return self._quoted()
        match = _FURTHER_PIECE.match(self._text, self._position)
        return None if match is None else self._unescaped(match)

    def _unescaped(self, match: re.Match[str]) -> str:
        self._position = match.end()
        return match[0].replace("\\,", ",").rstrip()

    def _quoted(self) -> str:
        quote = self._current()
        match = _QUOTED[quote].match(self._text, self._position)
        if match is None:
            self._refuse(f"the quotation mark {quote} is not closed")
        self._position = match.end()
        return match[1].replace("\\" + quote, quote).replace("\\\\", "\\")

    def _current(self) -> str:
        """Give the character here; an empty string at the end."""
        return self._text[self._position : self._position + 1]

    def _take(self, character: str) -> bool:
        if self._current() != character:
            return False
        self._position += 1
        return True

    def _expect(self, character: str) -> None:
        """Take a character with the white space around it."""
        self._skip_space()
        if not self._take(character):
            found = repr(self._current()) if self._current() else "the end"
            self._refuse(f"expected '{character}', found {found}")
        self._skip_space()

    def _skip_space(self) -> None:
        while self._current() and self._current() in string.whitespace:
            self._position += 1

    def _refuse(self, what: str, position: int | None = None) -> NoReturn:
        raise _refusal(what, self._text, self._position if position is None else position)


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refusal(f"the JSON is not valid: {error.msg[:1].lower()}{error.msg[1:]}", text, error.pos) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets of thousands of levels
        raise _refusal("the JSON is not valid", text, 0) from error
    if not isinstance(value, dict):
        raise _refusal("the JSON is not an object", text, text.index("["))
    return value


def _read_file(reference: str) -> str:
    try:
        path = os.path.expandvars(os.path.expanduser(reference.removeprefix(_FILE)))
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"the parameter file {reference!r} cannot be read", cause=error.strerror) from error
    except ValueError as error:  # of another encoding; or a path that no file can have
        raise UsageError(f"the parameter file {reference!r} cannot be read", cause="it is not UTF-8 text") from error
    if len(text) > _LARGEST_FILE:
        raise UsageError(f"the parameter file {reference!r} is too large", cause="more than a million characters")
    return text


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= _LARGEST_NAME:
        raise UsageError(
            "a session parameter has no name" if not name else f"the parameter name {_quote(name)} is too long",
            cause=f"names are 1 to {_LARGEST_NAME} characters long",
            hint=f"write as for the AWS CLI: {_EXAMPLES}",
        )
    return name


def _checked_values(name: str, values: object) -> list[str]:
    if not isinstance(values, list):
        raise UsageError(
            f"the value of the parameter {_quote(name)} is {_kind(values)}, not a list of strings",
            hint=f"in JSON, every value is a list of strings: {_EXAMPLES}",
        )
    for value in values:
        if not isinstance(value, str):
            raise UsageError(
                f"the parameter {_quote(name)} has {_kind(value)} among its values, not only strings",
                hint=f"put it in quotation marks, as numbers too have to be: {_EXAMPLES}",
            )
        if not 1 <= len(value) <= _LARGEST_VALUE:
            raise UsageError(
                f"a value of the parameter {_quote(name)} is {'too long' if value else 'empty'}",
                cause=f"values are 1 to {_LARGEST_VALUE} characters long",
            )
    return values


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", dict: "an object"}
    return names.get(type(value), "a list")


def _quote(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[: _SHOWN - 1] + "…")


def _refusal(what: str, text: str, position: int) -> UsageError:
    """Make the error about one place in a text, which the hint shows with a mark under it."""
    start = max(0, position - _SHOWN // 2)
    shown = text[start : start + _SHOWN]
    if start:
        shown = "…" + shown[1:]
    if start + _SHOWN < len(text):
        shown = shown[:-1] + "…"
    line = "".join(character if character.isprintable() else " " for character in shown)
    mark = " " * (position - start) + "^"
    return UsageError(
        "the session parameters cannot be read",
        cause=what,
        hint=f"see the mark; write as for the AWS CLI: {_EXAMPLES}\n    {line}\n    {mark}",
    )
