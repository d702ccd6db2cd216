"""The thread of one session: what is told to whom, and how it ends; with sessions that do as they are told."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Iterator

import pytest

from ssm_proxy.api import session_thread
from ssm_proxy.api.session_thread import SessionThread
from ssm_proxy.errors import ChannelClosed, SessionEnded, SsmProxyError, TargetNotConnected, TransportTimeout
from ssm_proxy.session import Session
from ssm_proxy.transport.bridge import BridgeOutcome

DEADLINE = 10.0


class ObedientSession(Session):
    """Goes on until it is stopped or given an end."""

    trouble: SsmProxyError | None = None

    def __init__(self, *, heeds_stop: bool = True) -> None:
        self.end: Exception | str | None = None
        self.stops: list[int] = []
        self.ending = threading.Event()
        self._heeds_stop = heeds_stop

    def stop(self, signal_number: int) -> None:
        self.stops.append(signal_number)
        if self._heeds_stop:
            self.ending.set()

    def finish(self, end: Exception | str | None) -> None:
        self.end = end
        self.ending.set()

    def run(self) -> BridgeOutcome:
        assert self.ending.wait(DEADLINE)
        if isinstance(self.end, Exception):
            raise self.end
        return BridgeOutcome(closed_reason=self.end, signal_number=self.stops[0] if self.stops else None)


@pytest.fixture
def session() -> Iterator[ObedientSession]:
    session = ObedientSession()
    yield session
    session.ending.set()


def judge(outcome: BridgeOutcome) -> SsmProxyError | None:
    return ChannelClosed(outcome.closed_reason) if outcome.closed_reason else None


def started(session: ObedientSession) -> SessionThread:
    thread = SessionThread(lambda: session, judge=judge)
    thread.start()
    return thread


def test_a_session_that_begins_and_ends(session: ObedientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[object] = []
    monkeypatch.setattr(atexit, "register", handlers.append)
    monkeypatch.setattr(atexit, "unregister", handlers.remove)
    thread = started(session)
    assert thread.daemon
    assert thread._at_exit in handlers
    thread.set_begun()
    thread.wait_begun(DEADLINE, "it")
    assert not thread.wait_over(0)
    session.finish("")
    thread.end()
    assert (thread.error, session.stops, thread.is_alive()) == (None, [], False)
    assert thread._at_exit not in handlers


def test_what_the_end_means_is_judged(session: ObedientSession) -> None:
    thread = started(session)
    thread.set_begun()
    session.finish("timed out")
    assert thread.wait_over(DEADLINE)
    assert isinstance(thread.error, ChannelClosed)


def test_what_was_known_before_the_end_stays(session: ObedientSession) -> None:
    thread = started(session)
    known = ChannelClosed("known early")
    thread.settle(known)
    session.finish(SessionEnded("later"))
    assert thread.wait_over(DEADLINE)
    assert thread.error is known


def test_a_session_that_cannot_begin(session: ObedientSession) -> None:
    thread = started(session)
    session.finish(TargetNotConnected("no"))
    with pytest.raises(TargetNotConnected):
        thread.wait_begun(DEADLINE, "it")


def test_a_bug_is_told_too(session: ObedientSession) -> None:
    thread = started(session)
    session.finish(ZeroDivisionError("secret words"))
    with pytest.raises(SsmProxyError, match="unexpected ZeroDivisionError in a session") as caught:
        thread.wait_begun(DEADLINE, "it")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_session_that_takes_too_long_is_ended(session: ObedientSession) -> None:
    thread = started(session)
    with pytest.raises(TransportTimeout, match=r"no session to port 22 of i-1 within 0\.01 s"):
        thread.wait_begun(0.01, "port 22 of i-1")
    assert len(session.stops) == 1
    assert thread.wait_over(DEADLINE)


def test_a_session_that_is_stopped_before_there_is_one(session: ObedientSession) -> None:
    resolved = threading.Event()

    def make_session() -> Session:
        assert resolved.wait(DEADLINE)
        return session

    thread = SessionThread(make_session, judge=judge)
    thread.start()
    thread.stop()
    thread.stop()
    resolved.set()
    assert thread.wait_over(DEADLINE)
    assert len(session.stops) == 1
    with pytest.raises(SessionEnded):
        thread.wait_begun(DEADLINE, "it")


def test_what_is_released_is_released_before_the_end_is_told(session: ObedientSession) -> None:
    order: list[str] = []
    thread: SessionThread = SessionThread(
        lambda: session,
        judge=judge,
        release=lambda: order.append(f"released, over: {thread.wait_over(0)}"),
        finish=lambda: order.append(f"finished, over: {thread.wait_over(0)}"),
    )
    thread.start()
    session.finish("")
    thread.join(DEADLINE)
    assert order == ["released, over: False", "finished, over: True"]


def test_the_end_of_the_program_ends_all_within_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_thread, "STOP_TIMEOUT", 0.3)
    deaf = [ObedientSession(heeds_stop=False) for _ in range(20)]
    obedient = ObedientSession()
    threads = [started(each) for each in (*deaf, obedient)]
    began = time.monotonic()
    for thread in threads:
        thread._at_exit()
    took = time.monotonic() - began
    assert [len(each.stops) for each in (*deaf, obedient)] == [1] * 21
    assert threads[-1].wait_over(DEADLINE)
    assert took < 20 * 0.3  # one limit, not one for each
    for each in deaf:
        each.ending.set()
    for thread in threads:
        thread.join(DEADLINE)


def test_a_fork_ends_nothing(session: ObedientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = started(session)
    monkeypatch.setattr("os.getpid", lambda: 1)
    thread._at_exit()
    thread.end()
    assert session.stops == []
