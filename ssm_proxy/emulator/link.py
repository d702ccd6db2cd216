"""One direction of the connection between a client and the service, with delay, rate and accidents on it."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ssm_proxy.emulator.faults import Faults

_LATE_S: Final = 0.02
"""How late a reordered message comes, at least."""
_LOOK_AGAIN_S: Final = 0.05
_LARGEST_QUEUE: Final = 64 * 1024 * 1024
"""Bounds what a long delay can hold of a sender without a window."""
_ACKNOWLEDGE: Final = b"acknowledge "


class Item(NamedTuple):
    """What travels: a WebSocket message, or a control frame that only time can touch."""

    data: bytes
    is_message: bool = True


class Link:
    """A queue that lets everything through at once as long as no fault is set.

    Args:
        direction: ``input`` or ``output``; decides which faults count.
        faults: asked for each item, as faults may change.
        rng: decides about accidents; give each link its own, so that runs repeat.
        deliver: takes what arrives.
    """

    def __init__(
        self,
        direction: str,
        faults: Callable[[], Faults],
        rng: random.Random,
        deliver: Callable[[Sequence[Item]], None],
    ) -> None:
        self._direction = direction
        self._faults = faults
        self._rng = rng
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[float, int, Item]] = []
        self._count = 0
        self._queued_bytes = 0
        self._busy_until = 0.0
        self._latest_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def is_clear(self) -> bool:
        """True: nothing waits and nothing would be touched, so the link may be passed by."""
        return not self._queue and not self._faults().shapes(self._direction)

    def put(self, items: Sequence[Item]) -> None:
        if self._is_closed:
            return
        faults = self._faults()
        now = self._loop.time()
        shapes = faults.shapes(self._direction)
        for item in items:
            for each in self._accidents(item, faults) if shapes and item.is_message else (item,):
                self._enqueue(each, faults if shapes else None, now)
        self._arm(now)

    async def room(self) -> None:
        """Wait until the queue in front of the bandwidth limit is short enough to put more."""
        while not self._is_closed and (wait := self._backlog_s()) > 0:
            await asyncio.sleep(min(wait, _LOOK_AGAIN_S))

    def _backlog_s(self) -> float:
        faults = self._faults()
        if self._queued_bytes > _LARGEST_QUEUE:
            return _LOOK_AGAIN_S
        if not faults.bandwidth:
            return 0.0
        return self._busy_until - self._loop.time() - faults.queue_bytes / faults.bandwidth

    def close(self) -> None:
        """Lose whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._queue.clear()
        self._queued_bytes = 0
        self._is_closed = True

    def _accidents(self, item: Item, faults: Faults) -> Sequence[Item]:
        rng = self._rng
        if faults.lose and rng.random() < faults.lose:
            return ()
        is_acknowledge = item.data.startswith(_ACKNOWLEDGE, 4)
        if faults.drop_acknowledges and is_acknowledge and rng.random() < faults.drop_acknowledges:
            return ()
        if faults.duplicate and rng.random() < faults.duplicate:
            return (item, item)
        return (item,)

    def _enqueue(self, item: Item, faults: Faults | None, now: float) -> None:
        due = now
        if faults is not None:
            if faults.bandwidth:
                self._busy_until = max(self._busy_until, now) + len(item.data) / faults.bandwidth
                due = self._busy_until
            due += faults.delay_ms / 1000
            if faults.reorder and item.is_message and self._rng.random() < faults.reorder:
                due += _LATE_S * (1 + self._rng.random())
        elif self._queue:
            due = max(due, self._latest_due)  # faults were just lifted: stay behind what still waits
        self._latest_due = max(self._latest_due, due)
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, item))
        self._queued_bytes += len(item.data)

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queue:
            return
        if self._queue[0][0] <= now:
            self._deliver_due()
        else:
            self._timer = self._loop.call_at(self._queue[0][0], self._deliver_due)

    def _deliver_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        items = []
        while self._queue and self._queue[0][0] <= now:
            item = heapq.heappop(self._queue)[2]
            self._queued_bytes -= len(item.data)
            items.append(item)
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0][0], self._deliver_due)
        if items:
            self._deliver(items)
