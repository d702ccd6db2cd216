"""Names of files: of the parts that become them, and which of the node's are safe to use here. Paths are bytes."""

from __future__ import annotations

import hashlib
import os
import secrets

from ssm_proxy.file_copy.values import SourceError

PART_SUFFIX = b".ssm-part"
_SPECIAL = frozenset({b"", b".", b".."})


def part_prefix(target: bytes) -> bytes:
    """Give how the names of all parts of one target begin, whatever is copying it.

    The name itself may be as long as names can be, so it is hashed.
    """
    return b"." + hashlib.sha256(os.path.basename(target)).hexdigest()[:12].encode() + b"."


def part_path(target: bytes) -> bytes:
    """Give a new name beside the target for what is not complete yet.

    No two programs that copy to the same target use the same one, so that neither can put the other's half in place.
    """
    name = part_prefix(target) + secrets.token_hex(4).encode() + PART_SUFFIX
    return os.path.join(os.path.dirname(target), name)


def is_part_of(name: bytes, target: bytes) -> bool:
    """Whether a name is that of a part of the target."""
    return name.startswith(part_prefix(target)) and name.endswith(PART_SUFFIX)


def is_safe(name: bytes) -> bool:
    """Whether a name that the node gave names something in the folder it is put into, and nothing else."""
    return name not in _SPECIAL and b"/" not in name and b"\0" not in name and (os.sep == "/" or b"\\" not in name)


def last_name(path: bytes) -> bytes:
    """Give the name under which something is put into another folder; empty for ``.`` and ``/``: it is that folder.

    Raises:
        SourceError: the last part is ``..``, which names nothing.
    """
    name = os.path.basename(path.rstrip(b"/"))
    if name == b"..":
        hint = "name the folder itself instead of .."
        text = f"it has no name to copy it under; {hint}"
        raise SourceError(f"{shown(path)} has no name to copy it under", text=text, hint=hint)
    return b"" if name == b"." else name


def join(folder: bytes, name: bytes) -> bytes:
    """Give the path of something in a folder; of the folder itself if the name is empty."""
    return os.path.join(folder, name) if name else folder


def shown(path: bytes) -> str:
    """Give a path for people."""
    return os.fsdecode(path)
