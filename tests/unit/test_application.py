"""The seam between driver and local side: a late choice passes everything on, and harmless defaults before it."""

from __future__ import annotations

import inspect
from typing import Any, cast

import pytest

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.errors import HandshakeFailed
from ssm_proxy.transport.application import Application, ApplicationBase, LateApplication
from ssm_proxy.transport.poller import make_poller

CHANNEL = cast(DataChannel, object())
STARTED = SessionStarted("Port", {"portNumber": "22"}, "3.3.987.0", "")
CALLS: dict[str, tuple[Any, ...]] = {
    "watch": (make_poller(), 1.0),
    "turn": ({}, 1.0),
    "output": ([b"x"], 1.0),
    "error_output": (b"x", 1.0),
    "exit_code": (3,),
    "flag": (2, 1.0),
    "heard": (1.0,),
    "closed": ("reason",),
    "last_words": (1.0,),
    "close": (),
}
"""All methods that give nothing, but ``started``."""


class Recorder(ApplicationBase):
    """Remembers its calls; all that it is asked, it affirms."""

    def __init__(self) -> None:
        super().__init__(CHANNEL)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def is_full(self) -> bool:
        return True

    @property
    def wants_write(self) -> bool:
        return True

    @property
    def is_over(self) -> bool:
        return True

    def deadline(self) -> float | None:
        return 7.0

    def __getattribute__(self, name: str) -> Any:
        if name not in (*CALLS, "started"):
            return super().__getattribute__(name)
        return lambda *arguments, **_: self.calls.append((name, arguments))


def call(application: Application, name: str) -> None:
    keywords = {"is_connected": True} if name == "turn" else {}
    getattr(application, name)(*CALLS[name], **keywords)


def answers(application: Application) -> list[bool]:
    return [application.is_full, application.wants_write, application.is_over]


def test_the_list_above_is_whole() -> None:
    methods = {name for name, _ in inspect.getmembers(ApplicationBase, inspect.isfunction) if name[0] != "_"}
    assert methods == {*CALLS, "started", "deadline"}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_happens_before_the_choice(name: str) -> None:
    application = LateApplication(CHANNEL, lambda event: Recorder())
    call(application, name)
    assert application.chosen is None
    assert answers(application) == [False, False, False]
    assert application.deadline() is None


@pytest.mark.parametrize("name", CALLS)
def test_after_it_everything_is_passed_on(name: str) -> None:
    chosen, events = Recorder(), []

    def choose(event: SessionStarted) -> Application:
        events.append(event)
        return chosen

    application = LateApplication(CHANNEL, choose)
    application.started(STARTED, 5.0)
    assert events == [STARTED]
    # Quiet since now, not since the beginning of time.
    assert chosen.calls == [("heard", (5.0,)), ("started", (STARTED, 5.0))]
    call(application, name)
    assert chosen.calls[2:] == [(name, CALLS[name])]
    assert answers(application) == [True, True, True]
    assert application.deadline() == 7.0


def test_a_session_that_cannot_be_used() -> None:
    def choose(event: SessionStarted) -> Application:
        raise HandshakeFailed(event.session_type)

    application = LateApplication(CHANNEL, choose)
    with pytest.raises(HandshakeFailed):
        application.started(STARTED, 5.0)
    application.close()


def test_error_output_is_output_where_nobody_tells_them_apart() -> None:
    class Joined(ApplicationBase):
        taken: list[bytes] = []  # noqa: RUF012 - one object, one test

        def output(self, pieces: Any, now: float) -> None:
            self.taken += pieces

    joined = Joined(CHANNEL)
    joined.output([b"a"], 1.0)
    joined.error_output(b"b", 1.0)
    assert joined.taken == [b"a", b"b"]
