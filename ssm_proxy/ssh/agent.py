"""Keys in an ssh-agent, at whatever address.

paramiko's own ``Agent`` takes the address from SSH_AUTH_SOCK only, which belongs to the whole process; its keys may not
be used by two connections at once. So the connection to the agent is made here, and paramiko's ``AgentSSH``, the class
that is there to be given one, speaks on it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from paramiko import AgentKey, AuthenticationException, SSHException
from paramiko.agent import AgentSSH

if TYPE_CHECKING:
    from paramiko import Message

_LIST_TIMEOUT: Final = 10.0
_SIGN_TIMEOUT: Final = 100.0
"""The agent may ask a person, or wait for a touch; sshd waits for 120 seconds."""


class AgentConnection(AgentSSH):
    """A connection to an agent that several threads may use.

    Args:
        address: path of its socket; ``@name`` for an abstract one, as in IdentityAgent.

    Raises:
        OSError: nobody answers there, or not in time.
        SSHException: what answers is no agent.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self._lock = threading.Lock()
        path = "\0" + address[1:] if address.startswith("@") else os.path.expanduser(address)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_LIST_TIMEOUT)
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # for subclasses; the stubs leave it out
            connection.settimeout(_SIGN_TIMEOUT)
        except BaseException:
            connection.close()
            raise

    def signing_keys(self) -> list[SigningKey]:
        """Give its keys in its order."""
        return [SigningKey(key, self) for key in self.get_keys()]

    def close(self) -> None:
        """Close the connection; its keys cannot sign any more."""
        with contextlib.suppress(OSError):
            self._close()  # type: ignore[attr-defined]

    def _send_message(self, msg: Any) -> Any:
        with self._lock:
            return super()._send_message(msg)  # type: ignore[misc]


class SigningKey(AgentKey):
    """A key in an agent; that the agent does not sign counts as a refusal of this key only."""

    def __init__(self, key: AgentKey, connection: AgentConnection) -> None:
        super().__init__(connection, key.blob, key.comment)

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Message:  # type: ignore[override]
        try:
            return super().sign_ssh_data(data, algorithm)
        except (SSHException, OSError) as error:
            raise AuthenticationException("the agent does not sign") from error
