"""Whatever becomes of a Python program, its sessions end with it; it says nothing that it was not told to say."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
from forwards import echo, serving
from nodes import EMBEDDED, WITHIN, MakeUser, User, open_sessions, wait_until

from ssm_proxy.emulator import Emulator

pytestmark = pytest.mark.integration
BEGIN = """\
import os, signal, socket, sys, threading, time
import ssm_proxy
NODE, PORT = sys.argv[1], int(sys.argv[2])

def connect():
    connection = ssm_proxy.connect(NODE, port=PORT)
    connection.sendall(b"ready")
    received = b""
    while received != b"ready":
        received += connection.recv(5)
    return connection

"""


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator)


def start(user: User, port: int, program: str) -> subprocess.Popen[str]:
    """Start a program for which each warning is an error."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BEGIN + textwrap.dedent(program), EMBEDDED, str(port)],
        env=user.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(user: User, program: str, *, tells: signal.Signals | None = None) -> tuple[int, str, str]:
    """Run a program to its end, by a signal when it says that it is ready; give its status and all that it said."""
    with serving(echo) as port, start(user, port, program) as process:
        try:
            if tells is not None:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                process.send_signal(tells)
            output, errors = process.communicate(timeout=WITHIN)
        finally:
            process.kill()
    return process.returncode, output, errors


FORGETS = "kept = [connect() for _ in range(3)]"


def test_a_program_that_closes(user: User, emulator: Emulator) -> None:
    program = """
    with connect() as connection:
        print(connection.error, flush=True)
    print(threading.active_count())
    """
    assert run(user, program) == (0, "None\n1\n", "")
    assert open_sessions(emulator) == []


def test_a_program_that_forgets_to_close(user: User, emulator: Emulator) -> None:
    status, output, errors = run(user, FORGETS)
    assert (status, output) == (0, "")
    # That it was not closed is what Python itself says of such a program, where it is asked for warnings.
    assert {line.partition(":")[0] for line in errors.splitlines()} <= {"Exception ignored in", "ResourceWarning"}
    assert open_sessions(emulator) == []


def test_a_program_that_ends_by_an_exception(user: User, emulator: Emulator) -> None:
    status, output, errors = run(user, FORGETS + "\nraise ValueError('a mistake')")
    assert (status, output) == (1, "")
    assert errors.count("Traceback") == 1
    assert "ValueError: a mistake" in errors
    assert open_sessions(emulator) == []


def test_a_program_that_ends_by_ctrl_c(user: User, emulator: Emulator) -> None:
    program = """
    kept = [connect() for _ in range(2)]
    with connect() as connection:
        print("ready", flush=True)
        connection.recv(1)
    """
    status, output, errors = run(user, program, tells=signal.SIGINT)
    assert (status, output) == (-signal.SIGINT, "")
    assert "KeyboardInterrupt" in errors
    assert open_sessions(emulator) == []


def test_ctrl_c_while_it_connects(user: User, emulator: Emulator) -> None:
    program = """
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            ssm_proxy.connect(NODE, port=PORT).close()
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert run(user, program) == (0, "interrupted\n", "")
    assert open_sessions(emulator) == []


def test_a_program_whose_other_thread_has_the_connection(user: User, emulator: Emulator) -> None:
    program = """
    def work():
        connection = connect()
        print("ready", flush=True)
        connection.recv(1)

    threading.Thread(target=work, daemon=True).start()
    sys.stdin.read()
    while not threading.active_count() > 2:
        time.sleep(0.01)
    """
    status, output, _ = run(user, program)
    assert (status, output) in ((0, "ready\n"), (0, ""))
    wait_until(lambda: not open_sessions(emulator), "no session is left")


def test_a_fork_of_the_program_ends_no_session(user: User) -> None:
    program = """
    import warnings
    warnings.simplefilter("ignore")  # newer Pythons warn of forks with threads
    with connect() as connection:
        if os.fork() == 0:
            connection.close()
            sys.exit()  # with its exit handlers
        assert os.wait()[1] == 0
        connection.sendall(b"still there")
        print(connection.recv(100).decode())
    """
    assert run(user, program) == (0, "still there\n", "")


def test_a_fork_that_leaves_a_block_ends_no_forwarding(user: User) -> None:
    program = """
    import warnings
    from ssm_proxy.api import forwarding
    warnings.simplefilter("ignore")
    forwarding.DRAIN_TIMEOUT = forwarding.STOP_TIMEOUT = 600  # whoever waits for what a fork does not have, hangs
    with ssm_proxy.forward(NODE, PORT) as address:
        child = os.fork()
        if child:
            assert os.wait()[1] == 0
            with socket.create_connection(address, 20) as connection:
                connection.sendall(b"still there")
                print(connection.recv(100).decode())
    if not child:
        sys.exit()
    """
    assert run(user, program) == (0, "still there\n", "")


@pytest.mark.parametrize(
    "statement",
    [
        "kept = ssm_proxy.forward(NODE, PORT); print(kept.__enter__().host)",
        "threading.Thread(target=ssm_proxy.run, args=(NODE, ['sleep', '60']), daemon=True).start(); time.sleep(1)",
    ],
    ids=["forward", "run"],
)
def test_others_that_are_forgotten(user: User, emulator: Emulator, statement: str) -> None:
    status, _, _ = run(user, statement)
    assert status == 0
    wait_until(lambda: not open_sessions(emulator), "no session is left")


def test_an_asyncio_program_that_forgets_to_close(user: User, emulator: Emulator) -> None:
    program = """
    import asyncio
    async def main():
        return await ssm_proxy.open_connection(NODE, port=PORT)
    kept = asyncio.run(main())
    """
    assert run(user, program)[:2] == (0, "")
    assert open_sessions(emulator) == []
