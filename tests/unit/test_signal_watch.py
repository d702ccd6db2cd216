"""Signals as something to poll for."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from ssm_proxy.transport.signal_watch import SignalWatch


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
