"""The SSH server behind port 22 of the emulated nodes: nothing needs to be installed for it.

It runs commands as the current user, so it listens on loopback only and lets in nobody but the holders of the keys it
was given. Any user name will do.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh

from ssm_proxy.emulator.ssh_process import run_process
from ssm_proxy.emulator.terminal import home_folder


class _Server(asyncssh.SSHServer):
    """Forwards for those who were let in, as an ordinary server does; who is let in is decided by the listener."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connections.discard(self._connection)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


class _SftpServer(asyncssh.SFTPServer):
    """The library's server, made like OpenSSH's where scp and sftp rely on it."""

    def map_path(self, path: bytes) -> bytes:
        """Take relative paths from the home, not from the folder in which the emulator was started."""
        return os.path.join(os.fsencode(home_folder()), super().map_path(path))

    def exit(self) -> None:
        # Without an exit status scp takes the end for a failure.
        self.channel.exit(0)


class EmbeddedSshServer:
    """Start with :meth:`start`; the address is then that of every node without one of its own."""

    def __init__(self) -> None:
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._commands: set[asyncio.Task[None]] = set()
        self.address = ("127.0.0.1", 0)

    async def start(self, host_key: Path, authorized_keys: Path) -> None:
        """Listen on any free port of loopback.

        Args:
            host_key: private key of the server.
            authorized_keys: public keys that are let in, in OpenSSH's form.

        Raises:
            OSError: a file cannot be read, or no port can be had.
            ValueError: the file of keys cannot be understood.
        """
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Server(self._connections),
            server_host_keys=[str(host_key)],
            authorized_client_keys=str(authorized_keys),
            process_factory=self._run_process,
            sftp_factory=_SftpServer,
            allow_scp=True,
            encoding=None,
            line_editor=False,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            login_timeout=30,
        )
        self.address = ("127.0.0.1", self._acceptor.get_port())

    async def stop(self) -> None:
        """Close the listener and every connection, and end what runs for them."""
        if self._acceptor is None:
            return
        self._acceptor.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self._acceptor.wait_closed()
        commands = tuple(self._commands)
        for task in commands:
            task.cancel()
        await asyncio.gather(*commands, return_exceptions=True)

    async def _run_process(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._commands.add(task)
        try:
            await run_process(process)
        finally:
            self._commands.discard(task)


def make_key(path: Path, comment: str) -> asyncssh.SSHKey:
    """Write a new private key, and its public half beside it."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    path.touch(mode=0o600)
    key.write_private_key(str(path))
    key.write_public_key(str(path.with_name(path.name + ".pub")))
    return key
