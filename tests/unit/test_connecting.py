"""Attempts run in a thread and are reported once, however late."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from ssm_proxy.errors import ConnectFailed, SsmProxyError
from ssm_proxy.secret import Secret
from ssm_proxy.transport.connecting import Attempts, Connection, Termination
from ssm_proxy.transport.websocket import WebSocketTransport

DEADLINE = 10.0


class Gate:
    """A connector whose ``connect`` waits to be let through."""

    def __init__(self) -> None:
        self.is_started = True
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.result: Connection | Exception = ConnectFailed("no")
        self.threads: list[threading.Thread] = []

    def connect(self) -> Connection:
        result = self.result
        opened = self.opened
        self.threads.append(threading.current_thread())
        self.entered.release()
        assert opened.wait(DEADLINE)
        if isinstance(result, Exception):
            raise result
        return result

    def terminate(self) -> None:
        raise AssertionError


class Bell:
    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)

    def __call__(self) -> None:
        self.rung.release()

    def wait(self) -> None:
        assert self.rung.acquire(timeout=DEADLINE)


def connection() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE)
    return Connection(websocket=WebSocketTransport(ours), token=Secret("hush")), theirs


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def bell() -> Bell:
    return Bell()


def test_a_connection_is_given_once(gate: Gate, bell: Bell) -> None:
    gate.result, theirs = connection()
    attempts = Attempts(gate, bell)
    attempts.begin()
    assert attempts.take_result() is None
    gate.opened.set()
    bell.wait()
    assert attempts.take_result() is gate.result
    assert attempts.take_result() is None
    gate.result.websocket.close()
    theirs.close()


def test_an_error_is_given_as_it_is(gate: Gate, bell: Bell) -> None:
    attempts = Attempts(gate, bell)
    gate.opened.set()
    attempts.begin()
    bell.wait()
    assert attempts.take_result() is gate.result


def test_a_bug_is_reported_without_its_text(gate: Gate, bell: Bell) -> None:
    gate.result = KeyError("token-123")
    attempts = Attempts(gate, bell)
    gate.opened.set()
    attempts.begin()
    bell.wait()
    error = attempts.take_result()
    assert isinstance(error, SsmProxyError)
    assert "KeyError" in error.message
    assert "token-123" not in error.message


@pytest.mark.parametrize("is_late", [False, True])
def test_the_connection_of_an_abandoned_attempt_is_closed(gate: Gate, bell: Bell, is_late: bool) -> None:
    gate.result, theirs = connection()
    attempts = Attempts(gate, bell)
    attempts.begin()
    if not is_late:
        gate.opened.set()
        bell.wait()
    attempts.abandon()
    gate.opened.set()
    assert theirs.recv(100), "a close frame"
    assert theirs.recv(100) == b""
    assert attempts.take_result() is None
    theirs.close()


def test_the_next_attempt_is_not_given_the_result_of_the_one_before(gate: Gate, bell: Bell) -> None:
    attempts = Attempts(gate, bell)
    slow_gate = gate.opened
    attempts.begin()
    assert gate.entered.acquire(timeout=DEADLINE)
    gate.opened = threading.Event()
    gate.result, theirs = connection()
    attempts.begin()
    assert gate.entered.acquire(timeout=DEADLINE)
    slow_gate.set()
    bell.wait()
    assert attempts.take_result() is None
    gate.opened.set()
    bell.wait()
    assert attempts.take_result() is gate.result
    gate.result.websocket.close()
    theirs.close()


def test_a_hanging_attempt_does_not_keep_the_process(gate: Gate, bell: Bell) -> None:
    attempts = Attempts(gate, bell)
    attempts.begin()
    assert gate.entered.acquire(timeout=DEADLINE)
    assert gate.threads[0].daemon
    gate.opened.set()


def test_no_secret_in_the_repr() -> None:
    result, theirs = connection()
    assert "hush" not in repr(result)
    result.websocket.close()
    theirs.close()


class Terminator(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.threads_of_calls: list[threading.Thread] = []

    def terminate(self) -> None:
        self.threads_of_calls.append(threading.current_thread())


def test_a_session_is_ended_in_a_thread() -> None:
    connector = Terminator()
    Termination(connector).wait(lambda: time.monotonic() + DEADLINE)
    (thread,) = connector.threads_of_calls
    assert thread is not threading.current_thread()


def test_an_interpreter_that_is_ending_begins_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    connector = Terminator()
    termination = Termination(connector)
    assert connector.threads_of_calls == []  # the last words go first
    termination.wait(lambda: time.monotonic() + DEADLINE)
    assert connector.threads_of_calls == [threading.current_thread()]
