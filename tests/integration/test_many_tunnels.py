"""Twenty tunnels at once, each carrying its own bytes both ways."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from nodes import EMBEDDED, MIB, REAL, MakeUser, ending, exchange, open_sessions, wait_until

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration
COUNT = 20
SIZE = MIB // 2


def test_twenty_tunnels_at_once(emulator: Emulator, new_user: MakeUser) -> None:
    users = [new_user(emulator, REAL if number % 2 else EMBEDDED) for number in range(COUNT)]
    processes = [user.start(user.host, "echo ready; exec cat") for user in users]
    try:
        with ThreadPoolExecutor(COUNT) as threads:
            list(threads.map(lambda process: exchange(process, b"", until=b"ready\n"), processes))
            assert len(open_sessions(emulator)) == COUNT
            sent = [os.urandom(SIZE) for _ in users]
            received = list(
                threads.map(lambda job: exchange(job[0], job[1], size=SIZE), zip(processes, sent, strict=True))
            )
        assert [one == other for one, other in zip(sent, received, strict=True)] == [True] * COUNT
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            status, errors = ending(process)
            # The shells on the node may quarrel over what they do at their start; that is theirs to tell.
            assert (status, "ssm-proxy" in errors) == (0, False)
    finally:
        for process in processes:
            with process:
                process.kill()
    wait_until(lambda: not open_sessions(emulator), "all sessions are terminated")
