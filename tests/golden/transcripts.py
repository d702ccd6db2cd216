"""Reads the recorded conversations; see README.md beside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.jsonl"))
SSH_NAMES = [name for name in NAMES if name.startswith("ssh-")]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a transcript after the first."""

    number: int
    t: float
    sender: str
    to: str
    values: dict[str, Any]
    data: bytes

    @property
    def kind(self) -> str:
        return str(self.values.get("type", ""))

    @property
    def payload_type(self) -> int:
        return int(self.values["payload_type"])

    @property
    def seq(self) -> int:
        return int(self.values["seq"])

    @property
    def arrived(self) -> bool:
        """Whether these bytes reached ``to``; a faulted message arrives as further records, or not at all."""
        return "note" not in self.values

    @property
    def payload(self) -> bytes:
        return self.data[120:]


@cache
def records(name: str) -> list[Record]:
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line) for line in lines[1:]]
    return [
        Record(
            number=number,
            t=value["t"],
            sender=value.get("from", ""),
            to=value.get("to", ""),
            values=value,
            data=bytes.fromhex(value.get("hex", "")),
        )
        for number, value in enumerate(values, 2)
    ]


def frames(name: str) -> list[Record]:
    return [record for record in records(name) if record.data]
