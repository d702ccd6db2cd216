"""What ``import ssm_proxy`` gives: the names that are promised, and nothing that takes time or memory."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssm_proxy
from ssm_proxy import errors

HEAVY = {"boto3", "botocore", "paramiko", "asyncio", "websocket", "ssl", "socket", "cryptography", "concurrent"}


@pytest.mark.parametrize("name", ssm_proxy.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(ssm_proxy, name)
    assert name == "__version__" or found.__name__ == name
    assert name in dir(ssm_proxy)


def test_the_names_are_in_order_and_each_is_there_once() -> None:
    assert ssm_proxy.__all__ == sorted(set(ssm_proxy.__all__))


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(ssm_proxy.__file__).read_text(encoding="utf-8"))
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {"__version__", *told} == set(ssm_proxy.__all__)
    for name, full_name in told.items():
        assert full_name == f"{getattr(ssm_proxy, name).__module__}.{name}"


def test_the_errors_that_programs_catch_are_public() -> None:
    families = {each.__name__ for each in errors.SsmProxyError.__subclasses__()}
    assert {"SsmProxyError", *families} <= set(ssm_proxy.__all__)


@pytest.mark.parametrize("name", sorted({*ssm_proxy.__all__} - {"__version__"}))
def test_every_public_name_is_described(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{name}\b", text)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        ssm_proxy.conect  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import logging, sys, typing; before = set(sys.modules)\n"
        "import ssm_proxy\n"
        "dir(ssm_proxy)\n"
        "print(*sorted(set(sys.modules) - before))\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n") == ["ssm_proxy", "", ""]


def test_an_error_loads_only_the_errors() -> None:
    program = (
        "import sys, ssm_proxy as s; s.SsmProxyError; print(*sorted(n for n in sys.modules if n.startswith('ssm_p')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["ssm_proxy", "ssm_proxy.errors"]
