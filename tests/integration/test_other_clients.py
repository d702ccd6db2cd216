"""The same ProxyCommand under other programs than OpenSSH's."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import warnings

import asyncssh
import paramiko
import pytest
from nodes import EMBEDDED, MIB, WITHIN, Key, MakeUser, User, ending, exchange, open_sessions, wait_until

from ssm_proxy.emulator import Emulator, Faults

pytestmark = pytest.mark.integration


@pytest.fixture
def command(emulator: Emulator, new_user: MakeUser) -> str:
    """A command line that needs nothing from the environment."""
    user = new_user(emulator)
    program = shutil.which("ssm-proxy", path=user.environment["PATH"])
    assert program is not None
    variables = [f"{name}={value}" for name, value in user.environment.items()]
    return shlex.join(["env", "-i", *variables, program, "proxy", EMBEDDED, "22"])


def test_paramiko(command: str, key: Key) -> None:
    socket = paramiko.ProxyCommand(command)
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    data = os.urandom(MIB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its process and pipes are left to the garbage collector
        try:
            client.connect(
                EMBEDDED,
                username="somebody",
                sock=socket,
                pkey=paramiko.Ed25519Key(filename=key.private),
                banner_timeout=WITHIN,  # the proxy starts first
            )
            sending, receiving, _ = client.exec_command("cat", timeout=30)
            sending.write(data[:1000])
            sending.channel.shutdown_write()
            assert receiving.read() == data[:1000]
            with client.open_sftp() as files:
                assert "etc" in files.listdir("/")
        finally:
            transport = client.get_transport()
            client.close()
            if transport is not None:
                transport.join(WITHIN)
            socket.process.communicate(timeout=WITHIN)
    assert socket.process.returncode in (0, 143)


def test_asyncssh(command: str, key: Key, emulator: Emulator) -> None:
    data = os.urandom(MIB)

    async def run() -> bytes:
        async with asyncssh.connect(
            EMBEDDED,
            username="somebody",
            config=None,
            known_hosts=None,
            client_keys=[str(key.private)],
            proxy_command=shlex.split(command),
        ) as connection:
            done = await connection.run("cat", input=data, encoding=None, check=True, timeout=30)
            assert isinstance(done.stdout, bytes)
            return done.stdout

    assert asyncio.run(asyncio.wait_for(run(), 60)) == data
    # At its end asyncssh kills its ProxyCommand with SIGKILL at once, so that nobody may be left to terminate the
    # session. The service ends it when it has been idle for long enough.
    emulator.set_faults(Faults(idle_timeout_s=0.1))
    wait_until(lambda: not open_sessions(emulator), "the service has ended the session")
    emulator.set_faults(Faults())


def test_pipes_of_a_plain_program(command: str) -> None:
    with subprocess.Popen(
        shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        greeting = exchange(process, b"SSH-2.0-test\r\n", until=b"\r\n")
        assert greeting.startswith(b"SSH-2.0-")
        process.terminate()
        assert ending(process) == (143, "")


def test_the_end_of_input_is_the_end_of_the_session_after_a_while(command: str) -> None:
    """The protocol has no half-close: what still comes is waited for, for a bounded time."""
    done = subprocess.run(shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert done.stdout.startswith(b"SSH-2.0-")
    assert (done.returncode, done.stderr) == (0, b"")


def test_standard_error_that_nobody_reads(user: User) -> None:
    """A full pipe there must not hold up the tunnel; paramiko, for one, never reads it."""
    reader, writer = os.pipe()
    data = os.urandom(2 * MIB)
    try:
        with user.start(
            "-o", "ProxyCommand=ssm-proxy proxy -vvv %h %p", user.host, "echo ready; exec cat", stderr=writer
        ) as process:
            exchange(process, b"", until=b"ready\n")
            assert exchange(process, data, size=len(data)) == data
            assert ending(process)[0] == 0
    finally:
        os.close(reader)
        os.close(writer)
