"""Signals as something to poll for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading

from ssm_proxy.transport.signal_watch import SignalWatch, signals_wake


def is_readable(watch: SignalWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_signals_are_told_in_order_and_once() -> None:
    with contextlib.closing(SignalWatch(("SIGUSR1", "SIGUSR2", "SIGNOSUCH"))) as watch:
        assert not is_readable(watch)
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert is_readable(watch)
        assert watch.take() == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR1]
        assert not is_readable(watch)
        assert watch.take() == []


def test_more_signals_than_anybody_takes_do_no_harm() -> None:
    with contextlib.closing(SignalWatch(("SIGUSR1",))) as watch:
        for _ in range(1000):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert len(watch.take()) == 1000
        watch.take()
        assert not is_readable(watch)


def test_what_was_before_is_there_again() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        ignoring = SignalWatch(("SIGUSR1", "SIGUSR2"))
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL
        ignoring.close()
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_wakes_who_polls_even_if_another_thread_took_it() -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with contextlib.closing(reader), contextlib.closing(writer):
        with signals_wake(writer.fileno()):
            taker = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
            taker.start()
            taker.join()
            assert select.select([reader], [], [], 10)[0]
            reader.recv(4096)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not select.select([reader], [], [], 0)[0], "it is over"
    signal.signal(signal.SIGUSR1, before)


def test_a_loop_that_has_asked_for_the_same_keeps_it() -> None:
    (reader, writer), (other_reader, other_writer) = socket.socketpair(), socket.socketpair()
    for each in (writer, other_writer):
        each.setblocking(False)
    with contextlib.ExitStack() as stack:
        for each in (reader, writer, other_reader, other_writer):
            stack.enter_context(each)
        with signals_wake(writer.fileno()):
            with signals_wake(other_writer.fileno()):
                pass
            assert signal.set_wakeup_fd(-1) == writer.fileno()


def test_in_another_thread_nothing_is_asked_for() -> None:
    went: list[bool] = []

    def work() -> None:
        with signals_wake(1):
            went.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert went == [True]
