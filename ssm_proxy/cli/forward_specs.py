"""What ``ssm-proxy forward`` is to forward: ssh's own syntax for ``-L``, and short forms without a host.

    [BIND:]PORT:HOSTPORT            a port of the node itself
    [BIND:]PORT:HOST:HOSTPORT       a port of a host that the node reaches
    SOCKET:HOSTPORT                 the same from a Unix socket; its path has a slash in it
    SOCKET:HOST:HOSTPORT

IPv6 addresses stand in square brackets. A bind address that is empty or ``*`` is all interfaces, as in ssh.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ssm_proxy.cli.messages import printable
from ssm_proxy.errors import UsageError

LOOPBACK = "127.0.0.1"
ALL_INTERFACES = "*"
SHORTEST_HOST, LONGEST_HOST = 1, 255
_FIELD = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(:|\Z)")
_HINT = (
    "the forms are PORT:HOSTPORT, PORT:HOST:HOSTPORT and SOCKET:HOST:HOSTPORT, with a bind address before them if "
    "wanted: 8080:80, 5432:db.internal:5432, 127.0.0.1:5432:db.internal:5432, [::1]:8080:80, /tmp/db.sock:db:5432"
)


class ForwardSpec(NamedTuple):
    """One listener and its destination."""

    text: str
    """As the user typed it."""
    bind: str
    """Address or name to listen on, or ``*``; means nothing for a Unix socket."""
    port: int
    """To listen on; 0 is any free one, and what a Unix socket has."""
    socket_path: str | None
    host: str | None
    """None is the node itself."""
    host_port: int

    @property
    def destination(self) -> str:
        """Give the destination in words, without the node."""
        if self.host is None:
            return f"port {self.host_port}"
        return f"[{self.host}]:{self.host_port}" if ":" in self.host else f"{self.host}:{self.host_port}"


def parse_forward_spec(text: str) -> ForwardSpec:
    """Read one SPEC.

    Raises:
        UsageError: it has another form.
    """
    fields = _fields(text)
    if fields is None or not 2 <= len(fields) <= 4:
        raise _bad(text)
    if "/" in fields[0]:
        socket_path: str | None = fields[0]
        bind, port, rest = "", 0, fields[1:]
        if len(rest) > 2:
            raise _bad(text, cause="a Unix socket has no port")
    else:
        socket_path = None
        # Two fields have no bind address; three have one unless they begin with a port; four always have one.
        has_bind = len(fields) == 4 or (len(fields) == 3 and not _is_number(fields[0]))
        bind = (fields[0] or ALL_INTERFACES) if has_bind else LOOPBACK
        local, *rest = fields[1:] if has_bind else fields
        port = _port(local, text, least=0)
    *hosts, host_port = rest
    if "/" in host_port:
        raise _bad(text, cause="Session Manager reaches ports only, no sockets of the node; ssh -L reaches those")
    host = hosts[0] if hosts else None
    if host is not None and (not SHORTEST_HOST <= len(host) <= LONGEST_HOST or not host.isprintable() or " " in host):
        raise _bad(text, cause=f"{printable(host)!r} is not the name of a host")
    return ForwardSpec(text, bind, port, socket_path, host, _port(host_port, text, least=1))


def check_listeners(specs: Sequence[ForwardSpec]) -> None:
    """Check that no two listen at the same place.

    Raises:
        UsageError: two do.
    """
    taken: dict[tuple[str, int], ForwardSpec] = {}
    for spec in specs:
        if spec.socket_path is None and spec.port == 0:
            continue
        other = taken.setdefault((spec.socket_path or spec.bind, spec.port), spec)
        if other is not spec:
            raise UsageError(
                f"{printable(other.text)!r} and {printable(spec.text)!r} listen at the same place",
                hint="give each a port of its own; 0 takes a free one",
            )


def _fields(text: str) -> list[str] | None:
    """Split at colons, except in square brackets; None where brackets do not match or stand inside a field."""
    fields = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            return None
        fields.append(match[1] if match[1] is not None else match[2])
        position = match.end()
        if not match[3]:
            return fields


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _port(text: str, spec: str, *, least: int) -> int:
    if not (_is_number(text) and len(text) <= 5 and least <= int(text) < 65536):
        raise _bad(spec, cause=f"{printable(text)!r} is not a port from {least} to 65535")
    return int(text)


def _bad(text: str, cause: str | None = None) -> UsageError:
    return UsageError(f"{printable(text)!r} cannot be forwarded", cause=cause, hint=_HINT)
