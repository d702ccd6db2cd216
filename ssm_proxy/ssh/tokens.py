"""What stands for something else in the values of ssh_config: the home folder, variables, and tokens such as ``%h``.

Source: ssh_config(5), TOKENS; openssh-portable ssh.c (``default_client_percent_expand``), readconf.c
(``match_cfg_line``, ``ssh_connection_hash``, ``parse_jump``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ssm_proxy.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Names:
    """What is known before the files are read."""

    host: str
    """As the user typed it."""
    user: str | None
    local_user: str
    home: str
    environment: Mapping[str, str]


def tokens_of(names: Names, *, host: str, port: str, user: str, key_name: str, jump: str) -> dict[str, str]:
    """Give what each token stands for, without its percent sign.

    Args:
        names: who asks for which host.
        host: what HostName made of the name.
        port: of sshd.
        user: the account there.
        key_name: HostKeyAlias; without it the host in ``Match exec``, and what the user typed elsewhere.
        jump: the host of ProxyJump; ssh before 9.6 does not have it as a token, nor in ``%C``.
    """
    here = os.uname().nodename
    together = f"{here}{host}{port}{user}{jump}".encode(errors="surrogateescape")
    return {
        "%": "%",
        "C": hashlib.sha1(together, usedforsecurity=False).hexdigest(),
        "d": names.home,
        "h": host,
        "i": str(os.getuid()),
        "j": jump,
        "k": key_name,
        "L": here.partition(".")[0],
        "l": here,
        "n": names.host,
        "p": port,
        "r": user,
        "u": names.local_user,
    }


def jump_host(text: str) -> str:
    """Give the host that a ProxyJump goes through last, without account and port; empty for ``none``."""
    last = text.rpartition(",")[2].removeprefix("ssh://").rpartition("@")[2]
    if text.lower() == "none":
        return ""
    found = re.match(r"\[([^]]*)\]|[^:/]*", last)
    assert found is not None  # it may match nothing
    return found[1] or found[0]


def expand_tokens(text: str, tokens: Mapping[str, str], place: str) -> str:
    """Replace ``%x`` by what it stands for.

    Raises:
        ConfigurationError: there is no such token here.
    """

    def replace(found: re.Match[str]) -> str:
        try:
            return tokens[found[1]]
        except KeyError:
            raise ConfigurationError(f"{place}: the token %{found[1]} of {shown(text)} is not known here") from None

    return re.sub("%(.?)", replace, text, flags=re.DOTALL)


def expand_variables(text: str, environment: Mapping[str, str], place: str) -> str:
    """Replace ``${NAME}`` by the variable of the environment.

    Raises:
        ConfigurationError: it is not set; ssh ends then, too.
    """

    def replace(found: re.Match[str]) -> str:
        try:
            return environment[found[1]]
        except KeyError:
            raise ConfigurationError(
                f"{place}: the variable {found[1]} is not set", hint=f"set it, or correct {shown(text)}"
            ) from None

    return re.sub(r"\$\{([^}]*)\}", replace, text)


def expand_path(text: str, names: Names, tokens: Mapping[str, str], place: str) -> str:
    """Give the path that a value means: home, variables and tokens replaced."""
    path = with_home(text, names.home)
    return expand_tokens(expand_variables(path, names.environment, place), tokens, place)


def with_home(path: str, home: str) -> str:
    """Replace ``~`` and ``~user`` at the beginning."""
    if path == "~" or path.startswith("~/"):
        return home + path[1:]
    return os.path.expanduser(path) if path.startswith("~") else path


def shown(text: str) -> str:
    """Give a piece of a file for a message."""
    short = text if len(text) <= 60 else text[:57] + "…"
    return repr(short.encode(errors="replace").decode())
