"""The package's own shape: who may import whom, no IO in the core, sizes, a test file for each module of the core."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import ssm_proxy

PACKAGE = Path(ssm_proxy.__file__).parent
TESTS = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
CORE = ("wire", "channel", "mux", "sessions", "sftp")
LARGEST_MODULE = 500

# Part of the package -> the parts it may import, itself aside. Parts that are not listed may import anything.
ALLOWED = {
    "errors": set[str](),
    "secret": set[str](),
    "wire": {"errors"},
    "channel": {"wire", "errors", "secret"},
    "mux": {"wire", "errors"},
    "sessions": {"channel", "wire", "errors"},
    "emulator": {"wire", "errors"},
    "aws": {"errors", "secret"},
    "ssh": {"errors", "secret"},
    "sftp": {"errors"},
    # It is handed connected clients: how they are come by is not its business.
    "file_copy": {"sftp", "errors"},
    "transport": {"wire", "channel", "mux", "sessions", "errors", "secret"},
    "ends": {"errors", "sessions"},
    # Programs do without the command line, and without the stand-in for the service.
    "api": {
        "aws",
        "channel",
        "connector",
        "ends",
        "errors",
        "file_copy",
        "secret",
        "session",
        "sessions",
        "ssh",
        "transport",
    },
}
# A clock, a socket, a thread or chance in the core would make its runs differ.
NO_IO = {
    "asyncio",
    "boto3",
    "botocore",
    "datetime",
    "http",
    "io",
    "multiprocessing",
    "os",
    "paramiko",
    "pathlib",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "threading",
    "time",
    "urllib",
    "uuid",
    "websocket",
}


def imports(path: Path, source: str) -> set[str]:
    """Give the full name of every module that a module imports, wherever in it."""
    package = ("ssm_proxy", *path.parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names.add(module)
            if module == "ssm_proxy":  # ``from ssm_proxy import wire`` names a part as well
                names |= {f"ssm_proxy.{alias.name}" for alias in node.names}
    return names


def part_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("ssm_proxy.") else ""


def wrong_arrows(path: Path, source: str) -> set[str]:
    part = path.parts[0].removesuffix(".py")
    allowed = ALLOWED.get(part)
    if allowed is None:
        return set()
    return {name for name in imports(path, source) if part_of(name) not in {"", part, *allowed}}


def forbidden(path: Path, source: str) -> set[str]:
    if path.parts[0].removesuffix(".py") not in (*CORE, "errors"):
        return set()
    return {name for name in imports(path, source) if name.split(".")[0] in NO_IO}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_to_lower_layers_only(path: Path) -> None:
    assert wrong_arrows(path, (PACKAGE / path).read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] in CORE], ids=str)
def test_the_core_does_no_io_and_knows_no_clock(path: Path) -> None:
    assert forbidden(path, (PACKAGE / path).read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] in CORE], ids=str)
def test_the_core_needs_the_standard_library_only(path: Path) -> None:
    top = {name.split(".")[0] for name in imports(path, (PACKAGE / path).read_text(encoding="utf-8"))}
    beside = {"cryptography"} if path == Path("channel/cipher.py") else set[str]()
    assert top - {"ssm_proxy"} - beside <= sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_is_a_giant(path: Path) -> None:
    assert len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) <= LARGEST_MODULE


def test_every_module_of_the_core_has_a_test_file() -> None:
    modules = {path for path in MODULES if path.parts[0] in CORE and path.name != "__init__.py"}
    assert len(modules) >= 10
    tests = {path.name for path in (TESTS / "unit").iterdir()}
    missing = {path for path in modules if not {f"test_{path.stem}.py", f"test_{path.parts[0]}_{path.stem}.py"} & tests}
    # Values and interfaces without behaviour: what emits or implements them is what is tested.
    assert missing == {Path("channel/events.py"), Path("channel/window.py")}


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("wire/x.py", "from ssm_proxy.channel.rtt import RoundTrip", {"ssm_proxy.channel.rtt"}),
        ("wire/x.py", "from ..channel import rtt", {"ssm_proxy.channel"}),
        ("wire/x.py", "from ssm_proxy import channel", {"ssm_proxy.channel"}),
        ("wire/x.py", "from .constants import SYN\nfrom ..errors import SsmProxyError", set()),
        ("channel/x.py", "def f():\n    import ssm_proxy.sessions.port", {"ssm_proxy.sessions.port"}),
        ("channel/x.py", "from ssm_proxy.wire import constants", set()),
        ("mux/x.py", "from ssm_proxy.channel import rtt", {"ssm_proxy.channel"}),
        ("emulator/x.py", "from ssm_proxy.channel.data_channel import DataChannel", {"ssm_proxy.channel.data_channel"}),
        ("aws/x.py", "import ssm_proxy.secret, ssm_proxy.wire.constants", {"ssm_proxy.wire.constants"}),
        ("errors.py", "import ssm_proxy.wire", {"ssm_proxy.wire"}),
        ("api/x.py", "from ssm_proxy.cli import messages", {"ssm_proxy.cli"}),
        ("sftp/x.py", "from ssm_proxy.file_copy import values", {"ssm_proxy.file_copy"}),
        ("file_copy/x.py", "from ssm_proxy.sftp import packets\nimport ssm_proxy.ssh", {"ssm_proxy.ssh"}),
        ("cli/x.py", "import ssm_proxy.wire, ssm_proxy.emulator.service", set()),
    ],
)
def test_a_wrong_arrow_is_seen(path: str, source: str, wrong: set[str]) -> None:
    assert wrong_arrows(Path(path), source) == wrong


@pytest.mark.parametrize("source", ["import time", "def f():\n    from os import path", "import asyncio.events"])
def test_a_clock_in_the_core_is_seen(source: str) -> None:
    assert forbidden(Path("channel/x.py"), source)
    assert not forbidden(Path("transport/x.py"), source)
