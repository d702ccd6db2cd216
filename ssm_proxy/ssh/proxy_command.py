"""Understands a ProxyCommand that is ours: what it says of profile, region and the rest is meant for copies too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final, NamedTuple

_VARIABLES: Final = {"AWS_PROFILE": "--profile", "AWS_REGION": "--region", "AWS_DEFAULT_REGION": "--region"}
"""Set for the command alone, in front of it, they choose as the options do."""
OPTIONS: Final = (
    "--profile",
    "--region",
    "--endpoint-url",
    "--stream-endpoint-url",
    "--document-name",
    "--reason",
)
"""What ``ssm-proxy proxy`` is told about the session."""
OTHER_OPTIONS: Final = ("--log-file",)
"""Its further options with a value; all others are flags."""
_DEFAULT_PORT: Final = "22"


class ProxyCommand(NamedTuple):
    """What ``ssm-proxy proxy`` would do.

    Args:
        host: the target.
        port: as it was written.
        options: those of ``OPTIONS`` that were given, with two hyphens in front.
    """

    host: str
    port: str
    options: Mapping[str, str]


def read_proxy_command(command: str) -> ProxyCommand | None:
    """Understand the command line of a ProxyCommand; its tokens stay as they are.

    Returns:
        None for every command that is not plainly ``ssm-proxy proxy``: a pipe, a script, another program.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    options: dict[str, str] = {}
    if words and words[0] == "exec":
        del words[0]
    if words and words[0] == "env":
        del words[0]
    while words and (found := re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", words[0], re.DOTALL)):
        if found[1] in _VARIABLES:
            options.setdefault(_VARIABLES[found[1]], found[2])
        del words[0]
    words = _without_program(words)
    if not words or words[0] != "proxy":
        return None
    return _read_words(words[1:], options)


def _without_program(words: list[str]) -> list[str]:
    if not words:
        return []
    name = PurePath(words[0]).name
    if name == "ssm-proxy":
        return words[1:]
    if re.fullmatch(r"python[0-9.]*", name):
        rest = words[1:]
        while rest and re.fullmatch("-[A-Za-z]+", rest[0]) and rest[0] != "-m":  # -I, -u
            del rest[0]
        if rest[:2] == ["-m", "ssm_proxy"]:
            return rest[2:]
        if rest and PurePath(rest[0]).name == "ssm-proxy":
            return rest[1:]
    return []


def _read_words(words: list[str], options: dict[str, str]) -> ProxyCommand | None:
    places: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=")
        if word == "--":
            places += left
            break
        if name in (*OPTIONS, *OTHER_OPTIONS):
            if not has_value:
                if not left:
                    return None
                value = left.pop(0)
            if name in OPTIONS:
                options[name] = value
        elif not word.startswith("-"):
            places.append(word)
    if not 1 <= len(places) <= 2:
        return None
    return ProxyCommand(places[0], places[1] if len(places) == 2 else _DEFAULT_PORT, options)
