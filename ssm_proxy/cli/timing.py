"""``--timing``: how long each stage of a connection took."""

from __future__ import annotations

import time
from collections.abc import Callable

LAST_STAGE = "first output"


class Timeline:
    """Collects the moments at which stages were reached, and tells them once.

    Args:
        show: shows a person one line.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._began = time.monotonic()
        # Python's own start and the imports so far; wall time since exec is not to be had portably.
        self._cpu_before = time.process_time()
        self._stages: list[tuple[str, float]] = []
        self._was_told = False

    def mark(self, stage: str) -> None:
        """Take note that a stage is over. Called again for a stage, on a reconnect, it does nothing."""
        if self._was_told or any(stage == name for name, _ in self._stages):
            return
        self._stages.append((stage, time.monotonic() - self._began))
        if stage == LAST_STAGE:
            self.tell()

    def tell(self) -> None:
        """Show the table, once."""
        if self._was_told:
            return
        self._was_told = True
        self._show(f"ssm-proxy: timing: {'start of Python (CPU time)':<28} {self._cpu_before * 1000:7.1f} ms")
        previous = 0.0
        for stage, at in self._stages:
            self._show(f"ssm-proxy: timing: {stage:<28} {(at - previous) * 1000:7.1f} ms")
            previous = at
        self._show(f"ssm-proxy: timing: {'together':<28} {(self._cpu_before + previous) * 1000:7.1f} ms")
