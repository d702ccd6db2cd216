"""The tables in README.md and the pages of docs: what stands between two marks is written by a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.rows import BenchError

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
COPYING = ROOT / "docs" / "copying.md"
ANSIBLE = ROOT / "docs" / "ansible.md"


def fill(text: str, contents: Mapping[str, str]) -> str:
    """Put each content between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        BenchError: the text does not have the marks.
    """
    for name, content in contents.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise BenchError(f"there is no place for '{name}'")
        text = text[: text.index(begin) + len(begin)] + content + "\n" + text[text.index(end) :]
    return text


def update(page: Path, contents: Mapping[str, str]) -> None:
    page.write_text(fill(page.read_text(), contents))
