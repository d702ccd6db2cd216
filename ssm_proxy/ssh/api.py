"""What a Python program calls: one line that gives a connected ``paramiko.SSHClient``."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssm_proxy.secret import Secret
from ssm_proxy.ssh.settings import SshSettings, read_settings

if TYPE_CHECKING:
    from paramiko import SSHClient

    from ssm_proxy.ssh.prompts import Prompter

Dial = Callable[[SshSettings], socket.socket]
"""Gives a socket that is connected to the sshd of the settings' target and port."""

logger = logging.getLogger("ssm_proxy.ssh")


def ssh_client(
    target: str,
    username: str | None = None,
    *,
    port: int | None = None,
    key_filename: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    password: str | None = None,
    config_file: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    prompter: Prompter | None = None,
    dial: Dial,
) -> SSHClient:
    """Connect to a node by SSH. Closing the client closes the connection.

    Args:
        target: as ssh is given it; the user's ssh_config says the rest.
        username: the account; default as for ssh.
        port: of sshd on the node.
        key_filename: private keys, tried first.
        password: of the account, or of the keys.
        config_file: instead of the user's and the system's ssh_config; ``none`` reads none.
        timeout: for each step of the connection.
        prompter: asked for what is missing; by default nobody is.
        dial: makes the connection below.

    Raises:
        SsmProxyError: as ``read_settings``, ``dial`` and ``open_client``.
    """
    from ssm_proxy.ssh.auth import Authenticator
    from ssm_proxy.ssh.client import open_client
    from ssm_proxy.ssh.host_keys import HostKeyCheck
    from ssm_proxy.ssh.prompts import NobodyToAsk

    files = [key_filename] if isinstance(key_filename, str | os.PathLike) else list(key_filename)
    settings = read_settings(target, user=username, port=port, identity_files=files, config_file=config_file)
    asked = prompter or NobodyToAsk()
    authenticator = Authenticator(settings, prompter=asked, password=None if password is None else Secret(password))
    try:
        return open_client(
            dial(settings), settings, authenticator, HostKeyCheck(settings, asked, logger.info), timeout=timeout
        )
    finally:
        authenticator.close()
