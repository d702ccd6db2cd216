"""Logs in to one host, as often as is wanted, with one set of credentials and one look at its host key."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from paramiko import SSHClient

    from ssm_proxy.secret import Secret
    from ssm_proxy.ssh.prompts import Prompter
    from ssm_proxy.ssh.settings import SshSettings

STEP_TIMEOUT = 60.0


class Login:
    """A context manager; connections outlive it. Threads may share it: the first one asks, the others wait for it.

    Args:
        settings: of the host.
        dial: gives a socket that is connected to its sshd. What the socket has as ``error`` in the end is why it ended,
            and ``abort``, if it has that, ends it without regard to what is on its way.
        give_up: has calls of ``dial`` that are under way fail soon, and later ones at once.
        prompter: asked for what is missing; None: nobody is.
        password: of the account, or of the keys.
        notify: told of a new host key.
        timeout: seconds for each step of a connection.
    """

    def __init__(
        self,
        settings: SshSettings,
        dial: Callable[[], socket.socket],
        *,
        give_up: Callable[[], None] = lambda: None,
        prompter: Prompter | None = None,
        password: Secret | None = None,
        notify: Callable[[str], None],
        timeout: float = STEP_TIMEOUT,
    ) -> None:
        from ssm_proxy.ssh.auth import Authenticator
        from ssm_proxy.ssh.host_keys import HostKeyCheck
        from ssm_proxy.ssh.prompts import NobodyToAsk

        asked = prompter or NobodyToAsk()
        self._settings = settings
        self._dial = dial
        self._give_up = give_up
        self._authenticator = Authenticator(settings, prompter=asked, password=password)
        self._host_keys = HostKeyCheck(settings, asked, notify)
        self._timeout = timeout
        self._connections: WeakKeyDictionary[SSHClient, socket.socket] = WeakKeyDictionary()

    def __enter__(self) -> Login:
        return self

    def __exit__(self, *_: object) -> None:
        self._authenticator.close()

    def open_client(self) -> SSHClient:
        """Connect and log in. Closing the client closes the connection.

        Raises:
            SsmProxyError: as ``dial`` and ``client.open_client``.
        """
        from ssm_proxy.ssh.client import open_client

        connection = self._dial()
        client = open_client(
            connection,
            self._settings,
            self._authenticator,
            self._host_keys,
            timeout=self._timeout,
            why_ended=lambda: getattr(connection, "error", None),
        )
        self._connections[client] = connection
        return client

    def cut(self, client: SSHClient) -> None:
        """End a client's connection now, and do not wait for what is on its way."""
        connection = self._connections[client]  # a client that is closed, or is being closed, has forgotten it
        getattr(connection, "abort", connection.close)()
        client.close()

    def give_up(self) -> None:
        """Have no more connections made: those that wait for their session fail soon."""
        self._give_up()
