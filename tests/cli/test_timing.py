"""The table of ``--timing``."""

from __future__ import annotations

from ssm_proxy.cli.timing import LAST_STAGE, Timeline


def test_the_table_is_told_when_the_first_output_arrives() -> None:
    lines: list[str] = []
    timeline = Timeline(lines.append)
    timeline.mark("imports")
    timeline.mark("StartSession")
    assert lines == []
    timeline.mark(LAST_STAGE)
    assert [line.split(": ", 2)[2].rsplit(maxsplit=2)[0].strip() for line in lines] == [
        "start of Python (CPU time)",
        "imports",
        "StartSession",
        "first output",
        "together",
    ]
    values = [float(line.rsplit(maxsplit=2)[1]) for line in lines]
    assert all(value >= 0 for value in values)
    assert abs(sum(values[:-1]) - values[-1]) < 0.5


def test_it_is_told_once_and_repeats_are_ignored() -> None:
    lines: list[str] = []
    timeline = Timeline(lines.append)
    timeline.mark("WebSocket")
    timeline.mark("WebSocket")
    timeline.tell()
    count = len(lines)
    timeline.mark("WebSocket")
    timeline.mark(LAST_STAGE)
    timeline.tell()
    assert len(lines) == count == 3
