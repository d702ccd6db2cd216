"""Who does what in a copy: each rule by itself. Any order of events: tests/property/test_board_machine.py."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ssm_proxy.file_copy.board import (
    DOUBLED_AFTER,
    FILES_WORTH_A_LINK,
    MOST_LOSSES,
    MOST_QUEUED_FILES,
    MOST_SPLIT_AT_ONCE,
    SETTLED_AT_ONCE,
    SMALLEST_WEIGHT,
    UPLOADED_FILES_WORTH_A_LINK,
    Board,
    Job,
    Kind,
    Range,
    Work,
)
from ssm_proxy.file_copy.ranges import RangeList
from ssm_proxy.file_copy.values import RANGE_BYTES

NEW = 100.0
OLD = NEW + DOUBLED_AFTER


class Small:
    is_split = False
    size = 10

    may_be_written_late = False

    def __init__(self, *, wants_check: bool = False) -> None:
        self.wants_check = wants_check
        self.has_all_ranges = True

    def take_range(self) -> Range | None:
        raise AssertionError("a small file has no ranges")

    def give_back(self, piece: Range) -> None:
        raise AssertionError("a small file has no ranges")


class Large:
    is_split = True
    wants_check = False
    may_be_written_late = False

    def __init__(self, pieces: int = 2) -> None:
        self.size = pieces * RANGE_BYTES
        self.ranges = RangeList()
        self.ranges.set([(0, self.size)])

    def take_range(self) -> Range | None:
        return self.ranges.take()

    def give_back(self, piece: Range) -> None:
        self.ranges.give_back(piece)

    @property
    def has_all_ranges(self) -> bool:
        return self.ranges.is_empty


class Stream(Large):
    """Its pieces come when they come, and its end is known late."""

    def __init__(self) -> None:
        super().__init__(0)
        self.has_ended = False

    @property
    def has_all_ranges(self) -> bool:
        return self.has_ended and self.ranges.is_empty


def take(board: Board, link: str, now: float = NEW) -> Work:
    work = board.take(link, now)
    assert work is not None
    return work


def started(job: Job) -> Board:
    """Give a board with one file that is prepared."""
    board = Board()
    board.add(job)
    board.planned()
    board.done("a", take(board, "a"))
    return board


def test_a_small_file_is_copied_whole_and_is_over_once() -> None:
    board, job = Board(), Small()
    board.add(job)
    work = take(board, "a")
    assert (work.kind, work.job) == (Kind.WHOLE, job)
    assert board.take("b", NEW) is None
    assert not board.is_over
    assert board.over(job)
    assert not board.over(job)
    board.released("a", work)
    assert not board.is_over  # more may come
    board.planned()
    assert board.is_over


def test_a_large_file_goes_through_all_its_stages() -> None:
    job = Large()
    board = started(job)
    first, second = take(board, "a"), take(board, "b")
    assert [work.piece for work in (first, second)] == [Range(0, RANGE_BYTES), Range(RANGE_BYTES, RANGE_BYTES)]
    board.done("a", first)
    assert board.take("a", NEW) is None
    board.done("b", second)
    finish = take(board, "a")
    assert finish.kind is Kind.FINISH
    assert board.over(job)
    board.released("a", finish)
    assert board.is_over
    assert board.take("a", NEW) is None


def test_an_empty_large_file_is_finished_at_once() -> None:
    assert take(started(Large(0)), "b").kind is Kind.FINISH


def test_the_end_of_a_stream_that_comes_after_its_last_piece_is_seen() -> None:
    job = Stream()
    board = started(job)
    assert board.take("a", NEW) is None
    job.ranges.set([(0, 5)])
    board.done("a", take(board, "a"))
    assert board.take("a", NEW) is None
    job.has_ended = True
    assert take(board, "a").kind is Kind.FINISH


def test_only_a_few_large_files_are_under_way() -> None:
    board = Board()
    for _ in range(MOST_SPLIT_AT_ONCE + 1):
        board.add(Large())
    kinds = [take(board, "a").kind for _ in range(MOST_SPLIT_AT_ONCE)]
    assert kinds == [Kind.PREPARE] * MOST_SPLIT_AT_ONCE
    assert board.take("a", NEW) is None


def test_files_are_checked_and_settled_many_at_once() -> None:
    board = Board()
    jobs = [Small(wants_check=True) for _ in range(SETTLED_AT_ONCE + 1)]
    for job in jobs:
        board.add(job)
    check = take(board, "a")
    assert (check.kind, list(check.jobs)) == (Kind.CHECK, jobs[:SETTLED_AT_ONCE])
    board.to_whole(check.jobs[1:])
    assert board.over(jobs[0])
    board.released("a", check)
    assert take(board, "b").jobs == jobs[SETTLED_AT_ONCE:]
    wholes = [take(board, "a") for _ in range(SETTLED_AT_ONCE - 1)]
    assert [work.job for work in wholes] == jobs[1:SETTLED_AT_ONCE]
    for work in wholes:
        board.to_settle(work.job)
        board.released("a", work)
    settle = take(board, "a")
    assert (settle.kind, list(settle.jobs)) == (Kind.SETTLE, jobs[1:SETTLED_AT_ONCE])


def test_a_lost_link_gives_back_each_kind_of_work() -> None:
    board = Board()
    whole, checked, settled, large, finished = Small(), Small(wants_check=True), Small(), Large(), Large(0)
    board.add(finished)
    board.done("a", take(board, "a"))
    assert take(board, "lost").kind is Kind.FINISH
    board.add(large)
    assert take(board, "lost").kind is Kind.PREPARE
    board.add(checked)
    assert take(board, "lost").kind is Kind.CHECK
    board.add(settled)
    work = take(board, "a")
    board.to_settle(work.job)
    board.released("a", work)
    assert take(board, "lost").kind is Kind.SETTLE
    board.add(whole)
    assert take(board, "lost").kind is Kind.WHOLE
    assert board.take("b", NEW) is None
    board.lost("lost")
    found = {}
    while (work_again := board.take("b", NEW)) is not None:
        found[work_again.kind] = work_again.job
    assert found == {
        Kind.FINISH: finished,
        Kind.PREPARE: large,
        Kind.CHECK: checked,
        Kind.WHOLE: whole,
        Kind.SETTLE: settled,
    }


def test_a_file_that_has_failed_is_not_copied_when_the_link_that_cleans_up_is_lost() -> None:
    board, job = Board(), Small()
    board.add(job)
    board.planned()
    take(board, "a")
    assert board.over(job)  # the link removes what there is of it, and is lost while it waits
    board.lost("a")
    assert board.take("b", NEW) is None
    assert board.is_over


def test_of_several_files_only_those_are_verified_again_that_are_not_in_place() -> None:
    board = Board()
    jobs = [Small(), Small(), Small()]
    for job in jobs:
        board.add(job)
    board.planned()
    for _ in jobs:
        work = take(board, "a")
        board.to_settle(work.job)
        board.released("a", work)
    settle = take(board, "a")
    assert board.over(settle.jobs[0])
    board.lost("a")
    again = take(board, "b")
    assert set(again.jobs) == set(jobs[1:])
    for job in again.jobs:
        assert board.over(job)
    assert board.is_over


def test_a_range_is_doubled_when_it_is_old_and_once_and_for_a_link_that_is_idle() -> None:
    board = started(Large(2))
    slow, other = take(board, "slow"), take(board, "b")
    assert board.take("c", OLD - 0.01) is None
    assert board.take("b", OLD) is None  # it has something to do
    board.done("b", other)
    doubled = take(board, "b", OLD)
    assert (doubled.kind, doubled.piece) == (Kind.RANGE, slow.piece)
    assert board.take("c", OLD + 100) is None
    assert board.is_needed(slow)
    board.done("b", doubled)
    assert not board.is_needed(slow)
    finish = take(board, "b", OLD)
    assert finish.kind is Kind.FINISH
    board.done("slow", slow)
    board.over(finish.job)
    board.released("b", finish)
    assert board.is_over


def test_a_doubled_range_comes_back_only_when_both_links_are_lost() -> None:
    board = started(Large(1))
    piece = take(board, "slow").piece
    take(board, "b", OLD)
    board.lost("slow")
    assert board.take("c", NEW) is None
    board.lost("b")
    assert take(board, "c").piece == piece


def test_what_is_left_over_from_one_round_counts_for_nothing_in_the_next_which_waits_for_it() -> None:
    job = Large(1)
    board = started(job)
    slow = take(board, "slow")
    board.done("b", take(board, "b", OLD))
    finish = take(board, "b", OLD)
    job.ranges.set([(0, RANGE_BYTES)])  # the same piece has to be copied, or to be read back
    board.again(job)
    board.released("b", finish)
    assert not board.is_needed(slow)
    fresh = take(board, "b", OLD)
    assert fresh.piece == slow.piece
    board.done("slow", slow)
    assert board.is_needed(fresh)
    assert board.take("c", OLD) is None
    board.done("b", fresh)
    assert take(board, "c", OLD).kind is Kind.FINISH


def test_a_round_ends_after_what_is_left_over_from_the_last_one() -> None:
    for is_lost in (False, True):
        job = Large(1)
        board = started(job)
        slow = take(board, "slow")
        board.done("b", take(board, "b", OLD))
        finish = take(board, "b", OLD)
        job.ranges.set([(0, RANGE_BYTES)])
        board.again(job)
        board.released("b", finish)
        board.done("b", take(board, "b", OLD))
        assert board.take("c", OLD + 100) is None
        if is_lost:
            board.lost("slow")
        else:
            board.done("slow", slow)
        assert take(board, "c", OLD).kind is Kind.FINISH


def test_pieces_of_a_file_that_has_failed_are_not_needed() -> None:
    job = Large(2)
    board = started(job)
    first, second = take(board, "a"), take(board, "b")
    assert board.is_needed(second)
    assert board.over(job)
    assert not board.over(job)
    assert not board.is_needed(second)
    board.done("b", second)
    board.lost("a")
    assert not board.is_needed(first)
    assert board.take("c", OLD) is None
    assert board.is_over


def test_nothing_is_handed_out_after_the_copy_is_cancelled() -> None:
    board, job = Board(), Small()
    for each in (job, Small(), Large()):
        board.add(each)
    take(board, "a")
    board.cancel()
    assert board.take("a", NEW) is None
    assert board.is_over
    board.lost("a")
    assert board.take("b", NEW) is None


def test_what_was_written_and_will_not_be_verified_is_given_once() -> None:
    board, job = Board(), Small()
    board.add(job)
    board.to_settle(take(board, "a").job)
    board.cancel()
    assert board.take_unsettled() == [job]
    assert board.take_unsettled() == []


def test_the_planner_waits_while_too_many_files_do() -> None:
    board = Board()
    for _ in range(MOST_QUEUED_FILES):
        board.add(Small())
    is_added = threading.Event()

    def add() -> None:
        board.add(Small())
        is_added.set()

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    assert not is_added.wait(0.05)
    work = take(board, "a")
    board.over(work.job)
    assert is_added.wait(60)
    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    board.cancel()
    thread.join(60)
    assert not thread.is_alive()


def test_links_are_wanted_for_what_there_is() -> None:
    board = Board()
    assert board.wanted_links == 1
    board.add(Large(64))  # 8 MiB
    assert board.wanted_links == 5
    take(board, "a")
    assert board.wanted_links == 5
    for _ in range(FILES_WORTH_A_LINK):
        board.add(Small())
    assert board.wanted_links == 6
    board.files_worth_a_link = UPLOADED_FILES_WORTH_A_LINK
    assert board.wanted_links == 5


def test_no_more_links_are_wanted_for_what_is_given_out() -> None:
    job = Large(64)
    board = started(job)
    works = [take(board, "a") for _ in range(63)]
    assert board.wanted_links == 5
    works.append(take(board, "a"))
    assert board.wanted_links == 1
    for work in works:
        board.done("a", work)
    assert take(board, "a").kind is Kind.FINISH
    assert board.wanted_links == 1
    job.ranges.set([(0, job.size)])
    board.again(job)
    assert board.wanted_links == 5, "it has to be copied again"


def test_work_weighs_at_its_end_what_it_weighed_at_its_beginning() -> None:
    board, job = Board(), Small()
    job.size = 100_000
    board.add(job)
    work = take(board, "a")
    assert work.weight == 100_000
    job.size = 5  # it has become shorter
    assert work.weight == 100_000
    board.add(Small())
    assert take(board, "a").weight == SMALLEST_WEIGHT


def test_whoever_waits_is_woken() -> None:
    board = Board()
    for wait in (board.wait_for_news, board.wait_for_work):
        threading.Timer(0.05, board.wake).start()
        wait(60)
    board.planned()
    for wait in (board.wait_for_news, board.wait_for_work):
        wait(60)  # it is over: not at all


def test_files_that_wait_to_be_verified_do_not_wait_for_all_others() -> None:
    board = Board()
    jobs = [Small() for _ in range(SETTLED_AT_ONCE + 1)]
    for job in jobs:
        board.add(job)
    for job in jobs[:-1]:
        work = board.take("link", 0)
        assert work is not None
        board.to_settle(job)
        board.released("link", work)
    work = board.take("link", 0)
    assert work is not None
    assert work.kind is Kind.SETTLE
    assert len(work.jobs) == SETTLED_AT_ONCE


@pytest.mark.parametrize("job", [Small(), Large()], ids=["small", "large"])
def test_work_at_which_links_are_lost_again_and_again_is_given_up(job: Any) -> None:
    board = Board()
    board.add(job)
    for _ in range(MOST_LOSSES - 1):
        assert board.take("link", 0) is not None
        assert board.lost("link") == []
    assert board.take("link", 0) is not None
    assert board.lost("link") == [job]
    assert board.over(job)
    assert board.take("link", 0) is None
    board.planned()
    assert board.is_over


def test_a_file_is_not_finished_while_a_slow_link_may_still_write_to_it() -> None:
    board = Board()
    job = Large(1)
    job.may_be_written_late = True
    board.add(job)
    board.planned()
    prepare = board.take("slow", 0)
    assert prepare is not None
    board.done("slow", prepare)
    slow = board.take("slow", 0)
    quick = board.take("quick", DOUBLED_AFTER + 1)
    assert slow is not None
    assert quick is not None
    assert quick.piece == slow.piece
    board.done("quick", quick)
    assert board.take("quick", DOUBLED_AFTER + 1) is None
    assert board.lost("slow") == []
    finish = board.take("quick", DOUBLED_AFTER + 1)
    assert finish is not None
    assert finish.kind is Kind.FINISH
