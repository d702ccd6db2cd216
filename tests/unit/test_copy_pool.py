"""The links of a copy: how many are opened, when it is given up, which are cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
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
    SILENCE_IS_TOLD_AFTER_S,
    STANDS_STILL_S,
    TOLD_EVERY_S,
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

    def __init__(
        self,
        client: Any,
        *_: Any,
        opened: Callable[[], None],
        ended: Callable[[Any, SsmProxyError | None], None],
        **__: Any,
    ) -> None:
        self.were_opening = client._count_opening()
        self.client = client
        self.opened = opened
        self.ended = ended
        self.is_open = False
        self.has_delivered = True
        self.heard_at = self.answered_at = time.monotonic()
        self.stands_still = True
        self.is_probed = False
        self.is_being_cut = False
        self.was_seen = False

    def start(self) -> None:
        self.was_seen = not self.client._lock.locked()

    def probe(self) -> None:
        self.is_probed = True

    def open(self) -> None:
        """Have the node's SFTP answer."""
        self.is_open = True
        self.opened()

    def stop(self) -> None:
        """Take note of nothing."""

    def join(self, timeout: float) -> None:
        """Go on for ever."""


class Rig:
    """A pool whose links are made by ``open``."""

    def __init__(self) -> None:
        self.board = Board()
        self.board.add(Large())
        self.error: SsmProxyError | None = None
        self.attempts = 0
        self.may_open = threading.Event()
        self.may_open.set()
        self.has_sftp = True  # which answers
        self.closed: list[bool] = []  # whether the pool was locked meanwhile
        self.cuts: SimpleQueue[Any] = SimpleQueue()  # clients
        self.may_cut = threading.Event()
        self.may_cut.set()
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
        return SimpleNamespace(
            _lock=lock, _count_opening=lambda: self.pool._opening, close=lambda: self.closed.append(lock.locked())
        )

    def cut(self, client: Any) -> None:
        self.cuts.put(client)
        assert self.may_cut.wait(GIVEN_UP_WITHIN)

    def open_sftp(self) -> None:
        for link in self.links:
            if self.has_sftp and not link.is_open:
                link.open()

    @property
    def links(self) -> list[Any]:
        return list(self.pool._links)

    @property
    def notices(self) -> list[str]:
        return self.context.take_outcomes()[1]

    def wait_for_openers(self) -> None:
        for opener in self.pool._openers:
            opener.join(GIVEN_UP_WITHIN)
        self.open_sftp()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(module, "Link", FakeLink)
    rig = Rig()
    rig.pool.open_first()
    rig.open_sftp()
    return rig


def test_a_link_has_begun_before_anybody_can_wait_for_its_end(rig: Rig) -> None:
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    assert len(rig.links) == 1 + OPENED_AT_ONCE
    assert not any(link.was_seen for link in rig.links)


def test_one_that_has_been_opened_counts_until_it_is_a_link(rig: Rig) -> None:
    """Else the copy could end in between, as if there were none and none to come."""
    (link,) = rig.links
    assert link.were_opening == 1
    link.ended(link, TransportClosed("lost"))
    rig.pool.manage(time.monotonic() + 100.0)
    rig.wait_for_openers()
    (link,) = rig.links
    assert link.were_opening == 1
    assert rig.pool._opening == 0


def test_none_is_opened_beside_the_first_before_that_has_shown_what_it_costs(rig: Rig) -> None:
    (link,) = rig.links
    link.is_open = False
    rig.pool.saves_processor = True
    rig.pool.manage(time.monotonic())
    assert rig.pool._opening == 0


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
    for each in rig.links:
        each.heard_at = now + ANOTHER_AFTER_S * 8
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
    rig.pool._most = 1 + OPENED_AT_ONCE
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    silent, *others = rig.links
    began = time.monotonic()
    now = began + STANDS_STILL_S + ALIVE_WITHIN_S + 1
    for idle in others:
        idle.heard_at, idle.stands_still = now, False
    rig.pool.manage(now)
    assert rig.cuts.empty(), "it may be the network"
    assert all(link.is_probed for link in others)
    others[0].answered_at = now + 1
    rig.pool.manage(now + 1)
    assert rig.cuts.get(timeout=GIVEN_UP_WITHIN) is silent.client
    rig.pool.manage(now + 2)
    assert rig.cuts.empty(), "once is enough, and the others are alive"


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


def test_the_end_cuts_all_at_once_and_does_not_wait_for_those_that_stay(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOIN_S", 0.0)
    monkeypatch.setattr(module, "CUT_S", 0.1)
    rig.pool.manage(time.monotonic())
    rig.wait_for_openers()
    assert len(rig.links) == 1 + OPENED_AT_ONCE
    rig.may_cut.clear()
    try:
        rig.pool.close()
        clients = [link.client for link in rig.links]
        while clients:  # all are being cut, though none is yet
            clients.remove(rig.cuts.get(timeout=GIVEN_UP_WITHIN))
    finally:
        rig.may_cut.set()


def test_a_node_whose_sftp_says_nothing_is_no_session_that_works(rig: Rig) -> None:
    (link,) = rig.links
    rig.has_sftp = False
    link.ended(link, TransportClosed("lost"))
    now = time.monotonic()
    attempts = rig.attempts

    def fail_by_and_by() -> None:
        nonlocal now
        for _ in range(10 * FAILURES_IN_A_ROW):
            now += 100.0
            rig.pool.manage(now)
            rig.wait_for_openers()
            assert rig.pool.working == 0
            for each in rig.links:
                each.has_delivered = False
                each.ended(each, TransportTimeout("no SFTP"))

    with pytest.raises(TransportTimeout, match="no SFTP"):
        fail_by_and_by()
    assert rig.attempts - attempts == FAILURES_IN_A_ROW
    what = "no session works any more, opening another: "
    first, *others = rig.notices
    assert first == f"{what}lost"
    assert set(others) == {f"{what}no SFTP"}, "and nothing goes on"


def test_a_person_is_told_when_nothing_comes_from_the_node_and_when_something_does(rig: Rig) -> None:
    (link,) = rig.links
    rig.pool._most = 1
    began = link.heard_at
    rig.pool.manage(began + SILENCE_IS_TOLD_AFTER_S - 1)
    assert rig.notices == []
    for later in (1, 2, 3):
        rig.pool.manage(began + SILENCE_IS_TOLD_AFTER_S + later)
    assert rig.notices == ["nothing has come from the node for 16 s, waiting for it or for the network"]
    rig.pool.manage(began + SILENCE_IS_TOLD_AFTER_S + 1 + TOLD_EVERY_S)
    assert rig.notices == ["nothing has come from the node for 76 s, waiting for it or for the network"]
    link.heard_at += 80
    rig.pool.manage(began + 81)
    assert rig.notices == ["the copy goes on"]
    link.stands_still = False  # it has nothing to do, or the node has
    rig.pool.manage(began + 200)
    assert rig.notices == []
