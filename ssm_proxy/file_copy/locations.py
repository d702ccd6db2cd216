"""``[USER@]TARGET:PATH``, a path here, or ``-``: what scp's arguments look like."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ssm_proxy.errors import UsageError
from ssm_proxy.file_copy.names import shown

STREAM = "-"
_ON_NODE = re.compile(r"(?:(?P<user>[^/:]+)@)?(?P<host>ecs:[A-Za-z0-9_/-]+|[^/:@]+):(?P<path>.*)", re.DOTALL)
"""A colon before any slash, as for scp; the names of ECS have one themselves."""


class Location(NamedTuple):
    """Where something is."""

    path: bytes
    host: str | None = None
    """Of the node, as the user typed it; None is here."""
    user: str | None = None

    @property
    def shown(self) -> str:
        """For people: as it was typed."""
        user = f"{self.user}@" if self.user is not None else ""
        return f"{user}{self.host}:{shown(self.path)}" if self.host is not None else shown(self.path)

    @property
    def is_stream(self) -> bool:
        """Whether it is standard input or output."""
        return self.host is None and self.path == STREAM.encode()


def parse_location(text: str | os.PathLike[str]) -> Location:
    """Read one argument. A path object is always a path here.

    Raises:
        UsageError: it is empty, names no node before the colon, or cannot be a name.
    """
    if not isinstance(text, str | os.PathLike):
        raise UsageError(f"{text!r} is no path", hint="pass a text or a path object")
    if "\0" in os.fsdecode(text):
        raise UsageError("the name of a file has a null character in it")
    if isinstance(text, os.PathLike):
        path = os.fsencode(text) or b"."
        return Location(path if path != STREAM.encode() else os.path.join(b".", path))
    if not text:
        raise UsageError("the name of a file is empty")
    match = _ON_NODE.fullmatch(text)
    if match is not None:
        return Location(os.fsencode(match["path"]), match["host"], match["user"])
    if text.partition("/")[0].find(":") >= 0:
        raise UsageError(
            f"{text!r} names neither a file here nor one on a node",
            hint="write USER@TARGET:PATH for a file on a node, and ./NAME for one here that has a colon in it",
        )
    return Location(os.fsencode(text))
