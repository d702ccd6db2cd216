"""The links of a copy: how many are opened, when it is given up, which are cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ssm_proxy.errors import SessionEnded, SsmProxyError, TransportClosed, TransportTimeout
from ssm_proxy.file_copy import pool as module
from ssm_proxy.file_copy.board import Board, Range
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.pool import (
    ALIVE_WITHIN_S,
    ANOTHER_AFTER_S,
    BUSY_SHARE,
    FAILURES_IN_A_ROW,
    MEASURED_OVER_S,
    NOTHING_MOVES_S,
    OPENED_AT_ONCE,
    STANDS_STILL_S,
    Pool,
)
from ssm_proxy.file_copy.values import CopyOptions

GIVEN_UP_WITHIN = 20.0


class Large:
    """A file that is worth many links."""

    is_split = True
    size = 2**30
    wants_check = False
    may_be_written_late = False
    has_all_ranges = False

    def take_range(self) -> Range | None:
        return None

    def give_back(self, piece: Range) -> None:
        raise AssertionError(piece)


class FakeLink:
    """What the pool has to do with of a link."""

    def __init__(self, client: Any, *_: Any, ended: Callable[[Any, SsmProxyError | None], None], **__: Any) -> None:
        self.client = client
        self.ended = ended
        self.has_delivered = True
        self.heard_at = self.answered_at = time.monotonic()
        self.stands_still = True
        self.is_cut = False
        self.is_probed = False
        self.was_seen = False

    def start(self) -> None:
        self.was_seen = not self.client._lock.locked()

    def probe(self) -> None:
        self.is_probed = True

    def cut(self) -> None:
        self.is_cut = True


class Rig:
    """A pool whose links are made by ``open``."""

    def __init__(self) -> None:
        self.board = Board()
        self.board.add(Large())
        self.error: SsmProxyError | None = None
        self.attempts = 0
        self.may_open = threading.Event()
        self.may_open.set()
        self.closed: list[bool] = []  # whether the pool was locked meanwhile
        self.context = Context(CopyOptions(), is_striped=True)
        self.pool = Pool(self, self.board, self.context, most=8)

    def give_up(self) -> None:
        self.error = SessionEnded("given up")
        self.may_open.set()

    def open_client(self) -> Any:
        self.attempts += 1
        assert self.may_open.wait(GIVEN_UP_WITHIN)
        if self.error is not None:
            raise self.error
        lock = self.pool._lock
        return SimpleNamespace(_lock=lock, close=lambda: self.closed.append(lock.locked()))

    @property
    def links(self) -> list[Any]:
        return list(self.pool._links)

    @property
    def notices(self) -> list[str]:
        return self.context.take_outcomes()[1]

    def wait_for_openers(self) -> None:
        for opener in self.pool._openers:
            opener.join(GIVEN_UP_WITHIN)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "Link", FakeLink)
    rig = Rig()
    rig.pool.open_first()
    return rig


def test_a_link_has_begun_before_anybody_can_wait_for_its_end(rig: Rig) -> None:
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    assert len(rig.links) == 1 + OPENED_AT_ONCE
    assert not any(link.was_seen for link in rig.links)


def test_more_links_are_opened_as_long_as_the_processor_has_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = time.monotonic(), 0.0
    monkeypatch.setattr(time, "process_time", lambda: used)
    rig.pool.saves_processor = True

    def links_after(seconds: float, share: float) -> int:
        nonlocal now, used
        now += seconds
        used += share * seconds
        rig.pool.manage(now)
        rig.wait_for_openers()
        return len(rig.links)

    rig.pool.manage(now)
    assert links_after(MEASURED_OVER_S * 1.1, BUSY_SHARE * 1.1) == 1
    assert links_after(MEASURED_OVER_S * 0.9, 0.0) == 1, "not over yet"
    assert links_after(MEASURED_OVER_S * 0.2, 0.0) == 1 + OPENED_AT_ONCE
    assert links_after(MEASURED_OVER_S * 1.1, BUSY_SHARE * 1.1) == 1 + OPENED_AT_ONCE
    assert links_after(MEASURED_OVER_S * 1.1, BUSY_SHARE * 0.9) == 8
    # None that is lost is missed; but one at least has to work.
    for link in rig.links:
        link.ended(link, None)
    rig.pool.manage(now)
    rig.wait_for_openers()
    assert len(rig.links) == 1


def test_links_that_cannot_be_opened_at_the_same_time_are_one_failure(rig: Rig) -> None:
    rig.error = TransportClosed("no network")
    rounds = 0
    now = time.monotonic()
    while rounds < FAILURES_IN_A_ROW - 1:
        now += 100.0  # however long it pauses
        before = rig.attempts
        rig.pool.manage(now)
        rig.wait_for_openers()
        rounds += rig.attempts > before
        assert rig.attempts - before in (0, OPENED_AT_ONCE)
    assert rig.pool._failures == FAILURES_IN_A_ROW - 1


def test_one_is_tried_when_none_works_and_given_up_after_some_rounds(rig: Rig) -> None:
    (link,) = rig.links
    rig.error = TransportClosed("no network")
    link.ended(link, TransportClosed("lost"))
    before = rig.attempts

    def manage_for_long() -> None:
        now = time.monotonic()
        for _ in range(10 * FAILURES_IN_A_ROW):
            now += 100.0
            rig.pool.manage(now)
            rig.wait_for_openers()

    with pytest.raises(TransportClosed, match="no network"):
        manage_for_long()
    assert rig.attempts - before == FAILURES_IN_A_ROW


def test_another_is_tried_beside_one_that_says_nothing_and_a_person_is_told(rig: Rig) -> None:
    (link,) = rig.links
    link.ended(link, TransportClosed("lost"))
    rig.may_open.clear()
    now = time.monotonic() + 100.0
    for later, opening in ((0.0, 1), (ANOTHER_AFTER_S / 2, 1), (ANOTHER_AFTER_S, 2), (ANOTHER_AFTER_S * 2, 3)):
        rig.pool.manage(now + later)
        assert rig.pool._opening == opening
    rig.pool.manage(now + ANOTHER_AFTER_S * 4)
    rig.pool.manage(now + ANOTHER_AFTER_S * 8)
    assert rig.pool._opening == OPENED_AT_ONCE
    assert rig.notices == ["no session works any more, opening another: lost"]
    rig.may_open.set()
    rig.wait_for_openers()
    rig.pool.manage(now + ANOTHER_AFTER_S * 8)
    assert rig.notices == ["the copy goes on"]


def test_who_is_still_trying_at_the_end_is_waited_for_and_nobody_else_tries(rig: Rig) -> None:
    (link,) = rig.links
    rig.error = TransportClosed("no network")
    link.ended(link, TransportClosed("lost"))
    now = time.monotonic()
    while rig.pool._failures < FAILURES_IN_A_ROW - 1:
        now += 100.0
        rig.pool.manage(now)
        rig.wait_for_openers()
    rig.may_open.clear()
    now += 100.0
    rig.pool.manage(now)
    rig.pool.manage(now + ANOTHER_AFTER_S)
    assert rig.pool._opening == 2
    rig.pool._failed(rig.error, rig.pool._round)
    for step in range(2, 10):
        rig.pool.manage(now + step * ANOTHER_AFTER_S)
    assert rig.pool._opening == 2
    rig.may_open.set()
    rig.wait_for_openers()
    with pytest.raises(TransportClosed, match="no network"):
        rig.pool.manage(now + 100.0)


def test_there_are_never_more_links_than_allowed(rig: Rig) -> None:
    rig.pool._most = 2
    (link,) = rig.links
    link.ended(link, TransportClosed("lost"))
    rig.may_open.clear()
    now = time.monotonic() + 100.0
    for step in range(4):
        rig.pool.manage(now + step * ANOTHER_AFTER_S)
    assert rig.pool._opening == 4
    rig.may_open.set()
    rig.wait_for_openers()
    assert len(rig.links) == 2
    assert rig.closed == [False, False]


def test_a_silent_link_is_cut_when_those_answer_that_have_nothing_to_do(rig: Rig) -> None:
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    silent, *others = rig.links
    began = time.monotonic()
    now = began + STANDS_STILL_S + ALIVE_WITHIN_S + 1
    for idle in others:
        idle.heard_at, idle.stands_still = now, False
    rig.pool.manage(now)
    assert not silent.is_cut, "it may be the network"
    assert all(link.is_probed for link in others)
    others[0].answered_at = now + 1
    rig.pool.manage(now + 1)
    assert silent.is_cut
    assert not any(link.is_cut for link in others)


def test_a_network_that_is_away_for_too_long_ends_the_copy_also_while_some_have_nothing_to_do(rig: Rig) -> None:
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    _silent, *others = rig.links
    now = time.monotonic() + NOTHING_MOVES_S + 60.0
    for idle in others:
        idle.heard_at, idle.stands_still = now, False
    with pytest.raises(TransportTimeout, match="answers nothing"):
        rig.pool.manage(now)


def test_what_is_still_being_opened_at_the_end_is_given_up(rig: Rig) -> None:
    (link,) = rig.links
    link.ended(link, TransportClosed("lost"))
    rig.may_open.clear()
    rig.pool.manage(time.monotonic() + 100.0)
    openers = list(rig.pool._openers)
    assert openers
    rig.pool.close()
    assert not any(opener.is_alive() for opener in openers)
