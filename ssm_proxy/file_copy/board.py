"""Who does what: hands work to the links and takes it back when one is lost. Thread-safe; knows no clock and no IO.

What a file goes through:

    small    WHOLE ---------------------------------> done
             WHOLE --to be verified--> SETTLE ------> done
             CHECK --there already, and equal-------> done
             CHECK --else--> WHOLE
             WHOLE --grown--> PREPARE
    large    PREPARE --> RANGE, RANGE, ... --> FINISH --> done
             FINISH --some ranges differ--> RANGE ...        (the next round)
             FINISH --its link is lost--> FINISH

A range that a slow link has had for long is given to an idle one as well: to write the same bytes twice does no harm,
and whoever is done first counts. What a slow link still has when the next round begins counts for nothing in that
round, but the round's end waits for it: it may write what it read before the file changed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

MOST_SPLIT_AT_ONCE = 3
"""Large files under way: while one is finished the next is copied."""
MOST_QUEUED_FILES = 4096
SETTLED_AT_ONCE = 512
"""Files that are verified, or checked, by one command on the node."""
DOUBLED_AFTER = 2.0
"""Seconds after which a range is given to an idle link as well."""
MOST_LOSSES = 8
"""After so many links were lost while they had the same work, it is the work."""
FILES_WORTH_A_LINK = 64
"""Small files. A session takes as long to open as it brings so many of them at the agent's pace."""
UPLOADED_FILES_WORTH_A_LINK = 512
"""Nobody paces what goes up: there a session brings more meanwhile, and the processor is what they share."""
BYTES_WORTH_A_LINK = 2 * 1024 * 1024
SMALLEST_WEIGHT = 8 * 1024


class Range(NamedTuple):
    """A piece of a file."""

    offset: int
    size: int


class Job(Protocol):
    """What the board has to know of a file's copy."""

    @property
    def is_split(self) -> bool: ...

    @property
    def size(self) -> int: ...

    @property
    def wants_check(self) -> bool: ...

    @property
    def may_be_written_late(self) -> bool:
        """Whether a range that was copied twice may still be written when the file is put in place."""
        ...

    def take_range(self) -> Range | None:
        """Give the next piece that may be copied now; None if there is none yet, or none any more."""
        ...

    def give_back(self, piece: Range) -> None: ...

    @property
    def has_all_ranges(self) -> bool:
        """Whether ``take_range`` will never give another, unless one is given back."""
        ...


class Kind(Enum):
    WHOLE = "whole"
    CHECK = "check"
    SETTLE = "settle"
    PREPARE = "prepare"
    RANGE = "range"
    FINISH = "finish"


class Work:
    """Something for one link to do."""

    __slots__ = ("began", "is_doubled", "jobs", "kind", "piece", "round", "weight")

    def __init__(self, kind: Kind, jobs: Sequence[Job], piece: Range | None = None, of_round: int = 0) -> None:
        self.kind = kind
        self.jobs = jobs
        self.piece = piece
        self.round = of_round
        self.began = 0.0
        self.is_doubled = False
        self.weight = self._weigh()
        """How many bytes it keeps under way, about; the same at its end, whatever the file has become."""

    @property
    def job(self) -> Job:
        (job,) = self.jobs
        return job

    def _weigh(self) -> int:
        if self.piece is not None:
            return self.piece.size
        if self.kind is Kind.WHOLE:
            return max(SMALLEST_WEIGHT, self.job.size)
        return SMALLEST_WEIGHT


class _Split:
    """A large file under way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_copying = False
        self.is_finishing = False
        self.round = 0
        self.under_way: dict[Range, int] = {}  # how many links have it
        self.written: set[Range] = set()  # while another link still has it, too
        self.left_over = 0  # pieces of earlier rounds that links still have

    @property
    def is_complete(self) -> bool:
        if not self.is_copying or self.left_over:
            return False
        # What a slow link still has may be written to the file after it was put in place, where that is possible.
        waits_for = self.under_way if self.job.may_be_written_late else self.under_way.keys() - self.written
        return self.job.has_all_ranges and not waits_for

    @property
    def size_left(self) -> int:
        """What more links would help with: all of it, until the last of it is under way."""
        is_given_out = self.is_finishing or (self.is_copying and self.job.has_all_ranges)
        return 0 if is_given_out else self.job.size

    def counts(self, work: Work) -> bool:
        """Whether a piece is of this round, and nobody was faster."""
        return work.round == self.round and work.piece not in self.written


class Board:
    """The state of one copy."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Whoever waits is woken by what it waits for: with thousands of small files that is much less often.
        self._work = threading.Condition(self._lock)  # links: there may be something to do
        self._room = threading.Condition(self._lock)  # the planner: fewer files wait
        self._news = threading.Condition(self._lock)  # who looks after the copy: it is over, or links come and go
        self._files: deque[Job] = deque()
        self._to_check: deque[Job] = deque()
        self._to_settle: deque[Job] = deque()
        self._to_prepare: deque[Job] = deque()
        self._to_finish: deque[Job] = deque()
        self._splits: dict[Job, _Split] = {}
        self._held: dict[Hashable, list[Work]] = {}
        self._unfinished: set[Job] = set()
        self._failing: set[Job] = set()
        self._losses: dict[tuple[Job, Range | None], int] = {}
        self._is_planned = False
        self.files_worth_a_link = FILES_WORTH_A_LINK
        self.is_cancelled = False

    # --- the planner ------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Add a file; blocks while too many wait."""
        with self._lock:
            while self._queued_files >= MOST_QUEUED_FILES:
                if self.is_cancelled:
                    return
                self._room.wait(1.0)
            self._unfinished.add(job)
            if job.is_split:
                self._to_prepare.append(job)
            elif job.wants_check:
                self._to_check.append(job)
            else:
                self._files.append(job)
            self._work.notify()

    @property
    def _queued_files(self) -> int:
        return len(self._files) + len(self._to_check) + len(self._to_prepare)

    def planned(self) -> None:
        """Take note that no more files will be added."""
        with self._lock:
            self._is_planned = True
            self._news.notify_all()

    def cancel(self) -> None:
        """Hand out nothing more."""
        with self._lock:
            self.is_cancelled = True
            self.wake()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done."""
        with self._lock:
            return self.is_cancelled or (self._is_planned and not self._unfinished)

    @property
    def wanted_links(self) -> int:
        """For how many links there would be work now; more than can ever be had, where there is much."""
        with self._lock:
            whole = [*self._splits.values()]
            size = sum(split.size_left for split in whole) + sum(job.size for job in self._to_prepare)
            return 1 + size // BYTES_WORTH_A_LINK + len(self._files) // self.files_worth_a_link

    def wait_for_news(self, timeout: float) -> None:
        """Wait until the copy is over, or ``wake`` is called."""
        with self._lock:
            if not self.is_over:
                self._news.wait(timeout)

    def wait_for_work(self, timeout: float) -> None:
        """Wait until there may be something to take, or ``wake`` is called."""
        with self._lock:
            if not self.is_over:
                self._work.wait(timeout)

    def wake(self) -> None:
        """End every wait."""
        with self._lock:
            for each in (self._work, self._room, self._news):
                each.notify_all()

    # --- the links --------------------------------------------------------------------------------------------------

    def take(self, link: Hashable, now: float) -> Work | None:
        """Give something to do, or None while there is nothing."""
        with self._lock:
            if self.is_cancelled:
                return None
            work = self._choose() or self._double(link, now)
            if work is not None:
                if self._queued_files < MOST_QUEUED_FILES:
                    self._room.notify()
                work.began = now
                self._held.setdefault(link, []).append(work)
            return work

    def _choose(self) -> Work | None:
        for split in self._splits.values():  # a stream ends at some time, not when a piece of it is done
            self._look_at(split)
        if self._to_finish:
            return Work(Kind.FINISH, [self._to_finish.popleft()])
        if self._to_prepare and len(self._splits) < MOST_SPLIT_AT_ONCE:
            job = self._to_prepare.popleft()
            self._splits[job] = _Split(job)
            return Work(Kind.PREPARE, [job])
        for split in self._splits.values():
            if split.is_copying and (piece := split.job.take_range()) is not None:
                split.under_way[piece] = split.under_way.get(piece, 0) + 1
                return Work(Kind.RANGE, [split.job], piece, split.round)
        if self._to_check:
            return Work(Kind.CHECK, self._several(self._to_check))
        if len(self._to_settle) >= SETTLED_AT_ONCE:
            return Work(Kind.SETTLE, self._several(self._to_settle))
        if self._files:
            return Work(Kind.WHOLE, [self._files.popleft()])
        if self._to_settle:
            return Work(Kind.SETTLE, self._several(self._to_settle))
        return None

    def _double(self, link: Hashable, now: float) -> Work | None:
        """Give an idle link what a slow one has had for long."""
        mine = self._held.get(link, ())
        oldest: Work | None = None
        for other, works in self._held.items():
            if other == link or mine:
                continue
            for work in works:
                if work.kind is not Kind.RANGE or work.is_doubled or now - work.began < DOUBLED_AFTER:
                    continue
                split = self._splits.get(work.job)
                if split is None or not split.counts(work):
                    continue
                if oldest is None or work.began < oldest.began:
                    oldest = work
        if oldest is None or oldest.piece is None:
            return None
        oldest.is_doubled = True
        self._splits[oldest.job].under_way[oldest.piece] += 1
        work = Work(Kind.RANGE, oldest.jobs, oldest.piece, oldest.round)
        work.is_doubled = True
        return work

    @staticmethod
    def _several(waiting: deque[Job]) -> list[Job]:
        return [waiting.popleft() for _ in range(min(len(waiting), SETTLED_AT_ONCE))]

    # --- what becomes of work ---------------------------------------------------------------------------------------

    def is_needed(self, work: Work) -> bool:
        """Whether the result of a range still counts: its file is under way, and nobody was faster."""
        with self._lock:
            split = self._splits.get(work.job)
            return split is not None and split.counts(work)

    def done(self, link: Hashable, work: Work) -> None:
        """Take note that work of the kinds PREPARE and RANGE is done."""
        with self._lock:
            self._drop(link, work)
            split = self._splits.get(work.job)
            if split is None:  # it has failed meanwhile
                return
            if work.kind is Kind.PREPARE:
                split.is_copying = True
            elif work.round != split.round:
                split.left_over -= 1
            elif work.piece is not None:
                split.written.add(work.piece)
                self._let_go(split, work.piece)
            self._look_at(split)
            self._work.notify_all()

    def again(self, job: Job) -> None:
        """Take note that a file that was to be finished has pieces that have to be copied once more."""
        with self._lock:
            split = self._splits[job]
            split.round += 1
            split.left_over += sum(split.under_way.values())
            split.under_way.clear()
            split.written.clear()
            split.is_copying, split.is_finishing = True, False
            self._look_at(split)
            self._work.notify_all()

    def to_whole(self, jobs: Sequence[Job]) -> None:
        """Take note that files which were checked have to be copied."""
        with self._lock:
            self._files.extend(jobs)
            self._work.notify_all()

    def to_split(self, job: Job) -> None:
        """Take note that a file has to be copied in ranges, because it has grown."""
        with self._lock:
            self._to_prepare.append(job)
            self._work.notify_all()

    def to_settle(self, job: Job) -> None:
        """Take note that a file is written and has to be verified."""
        with self._lock:
            self._to_settle.append(job)
            self._work.notify()

    def works_of(self, link: Hashable) -> list[Work]:
        """Give what a link has, done or not, unless it was taken note of."""
        with self._lock:
            return list(self._held.get(link, ()))

    def unfinished(self) -> list[Job]:
        """Give the files that have not come to their end."""
        with self._lock:
            return list(self._unfinished)

    def take_unsettled(self) -> list[Job]:
        """Give the files that were written and will not be verified, because the copy was ended."""
        with self._lock:
            jobs = [*self._to_settle]
            self._to_settle.clear()
            return jobs

    def released(self, link: Hashable, work: Work) -> None:
        """Take note that a link has done its part of work of the other kinds."""
        with self._lock:
            self._drop(link, work)

    def fails(self, job: Job) -> bool:
        """Take note that nothing more is to be done for a file but to clean up; give whether that is news.

        ``over`` has to follow, whatever happens: the copy waits for it.
        """
        with self._lock:
            if job not in self._unfinished or job in self._failing:
                return False
            self._failing.add(job)
            if self._splits.pop(job, None) is not None:
                self._work.notify_all()
            return True

    def over(self, job: Job) -> bool:
        """Take note that a file is in place, or that its failure was told; give whether that is news."""
        with self._lock:
            if job not in self._unfinished:
                return False
            self._unfinished.discard(job)
            self._failing.discard(job)
            if self._splits.pop(job, None) is not None:  # the next one may be begun
                self._work.notify_all()
            if self.is_over:
                self.wake()
            return True

    def lost(self, link: Hashable) -> list[Job]:
        """Take back the work of a link that is gone; give files at which links were lost so often that it is no chance.

        The caller has to tell of them, and to call ``over``.
        """
        with self._lock:
            given_up: list[Job] = []
            for work in self._held.pop(link, []):
                # Of a file that has come to its end nothing is left to do: its link may have been about to clean up.
                jobs: list[Job] = []
                for job in work.jobs:
                    losses = self._losses[job, work.piece] = self._losses.get((job, work.piece), 0) + 1
                    if job in self._unfinished and job not in self._failing:
                        (jobs if losses < MOST_LOSSES else given_up).append(job)
                if work.kind is Kind.WHOLE:
                    self._files.extendleft(jobs)
                elif work.kind is Kind.CHECK:
                    self._to_check.extendleft(jobs)
                elif work.kind is Kind.SETTLE:
                    self._to_settle.extendleft(jobs)
                elif not jobs or (split := self._splits.get(work.job)) is None:
                    continue
                elif work.kind is Kind.PREPARE:
                    del self._splits[work.job]
                    self._to_prepare.appendleft(work.job)
                elif work.kind is Kind.FINISH:
                    self._to_finish.appendleft(work.job)
                elif work.round != split.round:
                    split.left_over -= 1
                    self._look_at(split)
                elif work.piece is not None:
                    self._give_back(split, work.piece)
                    self._look_at(split)
            self._work.notify_all()
            return given_up

    def _give_back(self, split: _Split, piece: Range) -> None:
        if piece not in split.written and split.under_way.get(piece) == 1:
            split.job.give_back(piece)
        self._let_go(split, piece)

    @staticmethod
    def _let_go(split: _Split, piece: Range) -> None:
        count = split.under_way.get(piece, 0)
        if count > 1:
            split.under_way[piece] = count - 1
        else:
            split.under_way.pop(piece, None)
            split.written.discard(piece)

    def _look_at(self, split: _Split) -> None:
        if split.is_complete:
            split.is_copying, split.is_finishing = False, True  # until ``again``
            self._to_finish.append(split.job)

    def _drop(self, link: Hashable, work: Work) -> None:
        works = self._held.get(link)
        if works is not None and work in works:
            works.remove(work)
