"""What an emulator is started with."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssm_proxy.emulator.addresses import Address
from ssm_proxy.emulator.agent_features import AGENT_VERSION
from ssm_proxy.emulator.documents import SessionDocument
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.errors import UsageError

REAL_PACE_S = 0.001
"""The agent's pause after each message (docs/PROTOCOL.md section 10.1)."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)", re.ASCII)
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_AGENT_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){3}", re.ASCII)
_ECS_NAMES = re.compile(r"([A-Za-z0-9_-]{1,255})/([A-Za-z0-9_-]{1,255})", re.ASCII)
_NODE_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,400}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """One key pair, perhaps with a session token, that signatures are checked against."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


DEFAULT_CREDENTIALS = Credentials(access_key_id="emulator", secret_access_key="emulator")  # noqa: S106 - opens nothing but this emulator


@dataclass(frozen=True, kw_only=True)
class Node:
    """A managed node: an identifier, and what answers on its port 22."""

    node_id: str
    ssh_address: tuple[str, int] | None = None
    """Host and port; None is the embedded SSH server. Other ports of the node are those of 127.0.0.1."""
    is_online: bool = True
    """False: known to the service, but its agent is not connected."""
    hosts: Mapping[str, Address | str] = field(default_factory=dict)
    """What names of remote hosts stand for, seen from this node: an IP address, or one with the port that is dialled
    instead of the one asked for. Other names are looked up on this machine."""
    ecs_names: tuple[str, str] = ("app", "app")
    """For a container of ECS: the names of its service and of itself."""
    tags: Mapping[str, str] = field(default_factory=dict)
    computer_name: str = "localhost"
    platform: str = "Linux"
    """What kind it says it is: Linux, Windows or MacOS. It behaves like this machine all the same."""
    platform_name: str = "Emulator"


ECS_PREFIX = "ecs:"
"""How the id of a container of ECS begins: ``ecs:CLUSTER_TASK_RUNTIME``."""

DEFAULT_NODES = (Node(node_id="i-0123456789abcdef0"), Node(node_id="mi-0123456789abcdef0"))


@dataclass(frozen=True, kw_only=True)
class EmulatorOptions:
    """Everything that can be chosen before the start; nothing here changes afterwards."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes any free one."""
    nodes: Sequence[Node] = DEFAULT_NODES
    credentials: Credentials = DEFAULT_CREDENTIALS
    require_signed_open: bool = False
    tls: bool = False
    authorized_keys: Path | None = None
    """Public keys that the embedded SSH server lets in; None makes a key pair for this run."""
    region: str = "us-east-1"
    """Only printed for the environment; requests may be signed for any region."""
    agent_pace_s: float = REAL_PACE_S
    """Pause of the agent after each message of at most 1,024 bytes; 0 is no pause."""
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    token_lifetime_s: float = 60.0
    documents: Mapping[str, SessionDocument] = field(default_factory=dict)
    """Further session documents by name, beside those of the service, or instead of them."""
    agent_version: str = AGENT_VERSION
    """What the agents say they are, and behave like: four numbers."""


def parse_pacing(text: str) -> float:
    """Give the agent's pause in seconds for ``real``, ``none`` or a duration such as ``8ms``.

    Raises:
        UsageError: anything else.
    """
    if text == "real":
        return REAL_PACE_S
    if text == "none":
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is no agent pacing", hint="use real, none, or a duration such as 8ms")
    return float(match[1]) * _UNIT_S[match[2]]


def parse_agent_version(text: str) -> str:
    """Give the text back if it is the version of an agent.

    Raises:
        UsageError: it is not four numbers.
    """
    if not _AGENT_VERSION.fullmatch(text):
        raise UsageError(f"'{text}' is no agent version", hint="an example: --agent-version 2.3.700.0")
    return text


def parse_node(text: str) -> Node:
    """Read ``ID``, ``ID=HOST:PORT`` or ``ID=offline``; for a container of ECS also ``ID=SERVICE/CONTAINER``.

    Raises:
        UsageError: the text has another form.
    """
    node_id, separator, rest = text.partition("=")
    if not _NODE_ID.fullmatch(node_id):
        raise UsageError(f"'{text}' names no managed node", hint="an example: --node i-0123456789abcdef0")
    if not separator:
        return Node(node_id=node_id)
    if rest == "offline":
        return Node(node_id=node_id, is_online=False)
    if node_id.startswith(ECS_PREFIX) and (names := _ECS_NAMES.fullmatch(rest)) is not None:
        return Node(node_id=node_id, ecs_names=(names[1], names[2]))
    host, separator, port = rest.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"'{rest}' is no HOST:PORT", hint=f"an example: --node {node_id}=127.0.0.1:2222")
    return Node(node_id=node_id, ssh_address=(host.removeprefix("[").removesuffix("]"), int(port)))


def parse_node_tag(text: str) -> tuple[str, str, str]:
    """Read ``ID:KEY=VALUE``; the key may hold colons, but no equals sign.

    Raises:
        UsageError: the text has another form.
    """
    name, separator, value = text.partition("=")
    node_id, colon, key = name.partition(":")
    if not separator or not colon or not _NODE_ID.fullmatch(node_id) or not key:
        raise UsageError(f"'{text}' is no tag of a node", hint="an example: --node-tag i-0123456789abcdef0:Name=web-1")
    return node_id, key, value


def parse_remote_host(text: str) -> tuple[str, Address | str]:
    """Read ``NAME=ADDRESS`` or ``NAME=ADDRESS:PORT``, the address of version 6 before a port in brackets.

    Raises:
        UsageError: the text has another form.
    """
    name, _, rest = text.partition("=")
    address, separator, port = rest.rpartition(":")
    is_bare = not separator or (":" in address and not address.endswith("]"))
    if is_bare:
        address, port = rest, "1"
    try:
        ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        if not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError
    except ValueError:
        hint = "an example: --remote-host db.internal=127.0.0.1:15432"
        raise UsageError(f"'{text}' is no remote host and its address", hint=hint) from None
    address = address.removeprefix("[").removesuffix("]")
    return name, address if is_bare else (address, int(port))


def parse_credentials(text: str) -> Credentials:
    """Read ``KEY:SECRET`` or ``KEY:SECRET:TOKEN``.

    Raises:
        UsageError: the text has another form; it is not quoted, as it holds a secret.
    """
    parts = text.split(":", 2)
    if len(parts) < 2 or not all(parts):
        raise UsageError("credentials have the form KEY:SECRET or KEY:SECRET:TOKEN")
    token = parts[2] if len(parts) == 3 else None
    return Credentials(access_key_id=parts[0], secret_access_key=parts[1], session_token=token)
