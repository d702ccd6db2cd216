"""How the agent compares versions.

Source: amazon-ssm-agent, agent/versionutil/versionutil.go; docs/PROTOCOL.md section 6.6.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import zip_longest


@lru_cache(maxsize=64)  # asked for each message
def compare_versions(left: str, right: str) -> int:
    """Give -1, 0 or 1: part by part, as numbers where both are numbers; the longer one is greater if all else is equal.

    An empty version is older than any other.
    """
    for ours, theirs in zip_longest(_parts(left), _parts(right)):
        if ours is None or theirs is None:
            return -1 if ours is None else 1
        if ours == theirs:
            continue
        if _is_number(ours) and _is_number(theirs):
            if int(ours) == int(theirs):
                continue
            return -1 if int(ours) < int(theirs) else 1
        return -1 if ours < theirs else 1
    return 0


def _parts(version: str) -> list[str]:
    return version.split(".") if version else []


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
