"""The board under any order of events: links that take, finish, fail and get lost, files of every kind.

At rest every file came to its end exactly once, and those that did not fail were copied in full.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ssm_proxy.file_copy.board import DOUBLED_AFTER, Board, Kind, Range, Work
from ssm_proxy.file_copy.ranges import RangeList
from ssm_proxy.file_copy.values import RANGE_BYTES

LINKS = st.sampled_from("abcd")
PIECES = st.integers(0, 4)
MOST_ROUNDS = 3


class FakeJob:
    """A file that knows what was done with it."""

    def __init__(self, *, is_split: bool, wants_check: bool, pieces: int, is_stream: bool) -> None:
        self.is_split = is_split
        self.wants_check = wants_check
        self.may_be_written_late = is_split and pieces % 2 == 0
        self.is_stream = is_stream
        self.size = pieces * RANGE_BYTES
        self.ranges = RangeList()
        self.missing: set[int] = set()
        self.has_ended = not is_stream
        self.rounds = 0
        self.copied_whole = 0
        self.ends = 0
        self.is_failed = False

    def begin_round(self, pieces: set[int]) -> None:
        self.rounds += 1
        self.missing = set(pieces)
        self.ranges.set([(index * RANGE_BYTES, RANGE_BYTES) for index in sorted(pieces)])

    def take_range(self) -> Range | None:
        return self.ranges.take()

    def give_back(self, piece: Range) -> None:
        assert piece.offset // RANGE_BYTES in self.missing, "it was copied already"
        self.ranges.give_back(piece)

    @property
    def has_all_ranges(self) -> bool:
        return self.has_ended and self.ranges.is_empty


class BoardMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.now = 0.0
        self.jobs: list[FakeJob] = []
        self.held: dict[str, list[tuple[Work, int]]] = {}
        """By link: the work, and the round of its file in which it was taken."""
        self.cleaning: set[Work] = set()
        """Their files have come to their ends, but not they."""
        self.doubled: set[Work] = set()

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(("small", "checked", "large", "stream")), pieces=PIECES)
    def add(self, kind: str, pieces: int) -> None:
        job = FakeJob(
            is_split=kind in ("large", "stream"),
            wants_check=kind == "checked",
            pieces=pieces,
            is_stream=kind == "stream",
        )
        self.jobs.append(job)
        self.board.add(job)

    @rule(which=st.integers(0, 20))
    def end_of_stream(self, which: int) -> None:
        streams = [job for job in self.jobs if not job.has_ended and job.rounds]
        if streams:
            streams[which % len(streams)].has_ended = True

    @rule(seconds=st.sampled_from((0.1, DOUBLED_AFTER)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(link=LINKS)
    def take(self, link: str) -> None:
        work = self.board.take(link, self.now)
        if work is None:
            return
        jobs = [self.known(job) for job in work.jobs]
        assert jobs
        assert not any(job.ends for job in jobs), "nothing is handed out after the end"
        others = [(other, taken) for works in self.held.values() for other, taken in works]
        if work.kind is Kind.RANGE:
            assert work.piece is not None
            same = [
                other
                for other, taken in others
                if other.kind is Kind.RANGE and other.job is work.job and other.piece == work.piece
                if taken == jobs[0].rounds
            ]
            assert len(same) <= 1
            if same:
                assert self.now - same[0].began >= DOUBLED_AFTER
                assert same[0] not in self.doubled, "once is enough"
                assert not self.held.get(link), "only idle links do what others do"
                self.doubled |= {same[0], work}
            assert work.piece.offset // RANGE_BYTES in jobs[0].missing
        else:
            busy = {id(job) for other, _ in others for job in other.jobs if other.kind is not Kind.RANGE}
            assert not busy & {id(job) for job in jobs}, "no two links have the same file"
        if work.kind is Kind.FINISH:
            assert not jobs[0].missing, "not all of it is copied"
            assert jobs[0].has_ended
            if jobs[0].rounds > 1:
                assert all(jobs[0] not in other.jobs for other, _ in others), "an old piece may still be written"
        self.held.setdefault(link, []).append((work, jobs[0].rounds))

    @precondition(lambda self: any(self.held.values()))
    @rule(link=LINKS, which=st.integers(0, 10), how=st.integers(0, 9), some=st.sets(PIECES))
    def go_on(self, link: str, which: int, how: int, some: set[int]) -> None:
        works = self.held.get(link)
        if works:
            self.step(link, *works[which % len(works)], how, some)

    @rule(link=LINKS)
    def lose(self, link: str) -> None:
        for work, _ in self.held.pop(link, []):
            if work in self.cleaning:
                self.cleaned(work)
        self.board.lost(link)

    # --- what a link does -------------------------------------------------------------------------------------------

    def step(self, link: str, work: Work, taken: int, how: int, some: set[int]) -> None:
        board, job = self.board, self.known(work.jobs[0])
        if work in self.cleaning:
            self.cleaned(work)
            self.release(link, work)
        elif work.kind is Kind.RANGE:
            assert work.piece is not None
            is_needed = board.is_needed(work)
            assert not is_needed or (taken == job.rounds and not job.ends)
            if is_needed and how == 0:
                self.fail(work, job)
                return
            if is_needed:
                job.missing.discard(work.piece.offset // RANGE_BYTES)
            self.let_go(link, work)
            board.done(link, work)
        elif work.kind is Kind.CHECK:
            there = [each for index, each in enumerate(work.jobs) if index % 10 < how]
            for each in there:
                self.end(self.known(each))
            board.to_whole([each for each in work.jobs if each not in there])
            self.release(link, work)
        elif work.kind is Kind.SETTLE:
            for each in list(work.jobs)[: how or 1]:  # the others wait for an answer
                if not self.known(each).ends:
                    self.end(self.known(each))
            if all(self.known(each).ends for each in work.jobs):
                self.release(link, work)
        elif how == 0:
            self.fail(work, job)
        elif work.kind is Kind.WHOLE:
            job.copied_whole += 1
            if how == 8:
                job.is_split = True
                board.to_split(job)
            elif how < 5:
                board.to_settle(job)
            else:
                self.end(job)
            self.release(link, work)
        elif work.kind is Kind.PREPARE:
            job.begin_round(set(range(job.size // RANGE_BYTES)))
            self.let_go(link, work)
            board.done(link, work)
        elif how < 5 and job.rounds < MOST_ROUNDS:
            job.begin_round({piece for piece in some if piece < job.size // RANGE_BYTES})
            board.again(job)
            self.release(link, work)
        else:
            self.end(job)
            self.release(link, work)

    def fail(self, work: Work, job: FakeJob) -> None:
        assert self.board.fails(job)
        assert not self.board.fails(job)
        job.ends += 1
        job.is_failed = True
        self.cleaning.add(work)

    def cleaned(self, work: Work) -> None:
        """Say that a file's failure has been told, and what there was of it removed, or the link lost meanwhile."""
        self.cleaning.discard(work)
        assert self.board.over(work.jobs[0])

    def end(self, job: FakeJob) -> None:
        assert self.board.over(job)
        assert not self.board.over(job)
        job.ends += 1

    def release(self, link: str, work: Work) -> None:
        self.let_go(link, work)
        if work.kind in (Kind.PREPARE, Kind.RANGE):
            self.board.done(link, work)
        else:
            self.board.released(link, work)

    def let_go(self, link: str, work: Work) -> None:
        self.cleaning.discard(work)
        self.held[link] = [each for each in self.held[link] if each[0] is not work]

    @staticmethod
    def known(job: object) -> FakeJob:
        assert isinstance(job, FakeJob)
        return job

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def each_file_ends_once(self) -> None:
        assert all(job.ends <= 1 for job in self.jobs)
        assert not self.board.is_over

    def teardown(self) -> None:
        """Lose all links, and let another one do the rest."""
        for link in "abcd":
            self.lose(link)
        self.board.planned()
        for job in self.jobs:
            job.has_ended = True
        for _ in range(10_000):
            self.now += 1
            self.take("z")
            works = self.held.get("z")
            if not works:
                break
            self.step("z", *works[0], 9, set())
        assert self.board.is_over
        for job in self.jobs:
            assert job.ends == 1
            if not job.is_failed and job.is_split:
                assert job.rounds
                assert not job.missing


TestBoard = BoardMachine.TestCase
TestBoard.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
