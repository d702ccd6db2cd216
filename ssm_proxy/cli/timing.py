"""``--timing``: how long each stage of a connection took, as a person waits for it and as the processor works.

One line for each stage, in the order in which they were reached; the columns stand still, so that programs can read
them:

    ssm-proxy: timing: <stage, 28 columns> <wall time, 8 columns> ms <processor time, 8 columns> ms CPU

Wall time is that since the stage before, processor time that of all threads meanwhile. The stages:

    start of Python             from exec until our first line; only its processor time is known, both columns have it
    imports                     what is needed to begin
    StartSession sent           configuration, credentials and signature are done, the request leaves
    StartSession answered
    WebSocket                   connected, upgraded
    handshake                   the agent has reached the node's port
    first output                the server's greeting
    together                    the sum

Stages that were not reached are missing.
"""

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
        self._stages: list[tuple[str, float, float]] = []
        self._was_told = False
        # Wall time since exec is not to be had portably.
        self._began = time.monotonic() - time.process_time()
        self.mark("start of Python")

    def mark(self, stage: str) -> None:
        """Take note that a stage is over. Called again for a stage, on a reconnect, it does nothing."""
        if self._was_told or any(stage == name for name, _, _ in self._stages):
            return
        self._stages.append((stage, time.monotonic() - self._began, time.process_time()))
        if stage == LAST_STAGE:
            self.tell()

    def tell(self) -> None:
        """Show the table, once."""
        if self._was_told:
            return
        self._was_told = True
        wall = cpu = 0.0
        for stage, wall_until, cpu_until in self._stages:
            self._show_line(stage, wall_until - wall, cpu_until - cpu)
            wall, cpu = wall_until, cpu_until
        self._show_line("together", wall, cpu)

    def _show_line(self, stage: str, wall: float, cpu: float) -> None:
        self._show(f"ssm-proxy: timing: {stage:<28} {wall * 1000:8.1f} ms {cpu * 1000:8.1f} ms CPU")
