"""The table of ``--timing``."""

from __future__ import annotations

import re
import time

from ssm_proxy.cli.timing import LAST_STAGE, Timeline

LINE = re.compile(r"ssm-proxy: timing: (.{28}) ([ 0-9.]{8}) ms ([ 0-9.]{8}) ms CPU")


def columns(lines: list[str]) -> dict[str, tuple[float, float]]:
    """Give wall and processor time of each stage, in ms."""
    found = {}
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        found[match[1].rstrip()] = (float(match[2]), float(match[3]))
    return found


def test_the_table_is_told_when_the_first_output_arrives() -> None:
    lines: list[str] = []
    timeline = Timeline(lines.append)
    timeline.mark("imports")
    timeline.mark("StartSession sent")
    assert lines == []
    timeline.mark(LAST_STAGE)
    table = columns(lines)
    assert list(table) == ["start of Python", "imports", "StartSession sent", "first output", "together"]
    for column in (0, 1):
        values = [times[column] for times in table.values()]
        assert all(value >= 0 for value in values)
        assert abs(sum(values[:-1]) - values[-1]) < 0.5


def test_waiting_is_no_processor_time_and_working_is_both() -> None:
    lines: list[str] = []
    timeline = Timeline(lines.append)
    timeline.mark("imports")
    time.sleep(0.2)
    timeline.mark("waiting")
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    timeline.mark("working")
    timeline.tell()
    table = columns(lines)
    assert table["waiting"][0] >= 200 > 100 > table["waiting"][1]
    assert table["working"][1] >= 199
    assert table["working"][0] >= 199


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
