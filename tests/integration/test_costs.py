"""What a tunnel costs: memory while much goes through it, processor time while nothing does. Guards, no benchmarks."""

from __future__ import annotations

import hashlib
import os
import time

import pytest
from nodes import MIB, REAL, WITHIN, MakeUser, Process, User, wait_until

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration
MOST_MEMORY = 80 * MIB
IDLE_TIME = 3.0
MOST_CPU = 0.05


@pytest.mark.timeout(500)
def test_memory_stays_flat_and_idling_is_free(emulator: Emulator, new_user: MakeUser) -> None:
    user = new_user(emulator, REAL)
    user.config.write_text(f"ControlMaster auto\nControlPath {user.folder}/c\n" + user.config.read_text())
    # Another ssh holds the shared connection, so that the proxy can be looked at when the transfers are over.
    with user.open("echo ready; exec cat"):
        proxy = user.proxy()
        data = os.urandom(64 * MIB)
        summed = user.output("sha256sum", data=data, timeout=200)
        assert summed.split()[0].decode() == hashlib.sha256(data).hexdigest()
        up = proxy.peak_bytes()
        assert up < MOST_MEMORY
        _check_download(user)
        assert proxy.peak_bytes() < MOST_MEMORY

        wait_until(lambda: _rests(proxy), "what the transfers left to do is done")
        before = proxy.cpu_seconds()
        time.sleep(IDLE_TIME)  # this is what is measured
        assert proxy.cpu_seconds() - before <= MOST_CPU


def _check_download(user: User) -> None:
    assert user.output("head -c 67108864 /dev/zero | tr '\\0' x", timeout=200) == b"x" * (64 * MIB)


def _rests(process: Process) -> bool:
    before = process.cpu_seconds()
    time.sleep(0.3)
    return process.cpu_seconds() - before < MOST_CPU / 10


def test_memory_stays_flat_while_the_reader_stands_still(emulator: Emulator, new_user: MakeUser) -> None:
    user = new_user(emulator, REAL)
    with user.open("echo ready; exec cat /dev/zero"):
        proxy = user.proxy()
        proxy_peak, quiet_since = 0, time.monotonic()
        deadline = quiet_since + WITHIN
        # Nobody reads what ssh writes: all buffers fill, then nothing moves any more.
        while time.monotonic() < quiet_since + 1.5:
            assert time.monotonic() < deadline
            peak = proxy.peak_bytes()
            if peak > proxy_peak:
                proxy_peak, quiet_since = peak, time.monotonic()
            time.sleep(0.05)
        assert proxy_peak < MOST_MEMORY
