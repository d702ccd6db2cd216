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
from paramiko.pkey import PublicBlob

if TYPE_CHECKING:
    from paramiko import Message

_CERTIFICATE: Final = "-cert-v01@openssh.com"
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
        keys = self.get_keys()
        held = frozenset(key.blob for key in keys)
        return [SigningKey(key, self, held) for key in keys]

    def close(self) -> None:
        """Close the connection; its keys cannot sign any more."""
        with contextlib.suppress(OSError):
            self._close()  # type: ignore[attr-defined]

    def _send_message(self, msg: Any) -> Any:
        with self._lock:
            return super()._send_message(msg)  # type: ignore[misc]


class SigningKey(AgentKey):
    """A key in an agent, or a certificate; that the agent does not sign counts as a refusal of this key only.

    Args:
        key: as the agent lists it.
        connection: to the agent.
        held: all that the agent lists.
    """

    def __init__(self, key: AgentKey, connection: AgentConnection, held: frozenset[bytes]) -> None:
        super().__init__(connection, key.blob, key.comment)
        self._connection = connection
        self._held = held
        if self.get_name().endswith(_CERTIFICATE):  # paramiko shows the plain key under the name of the certificate
            self.public_blob = PublicBlob(self.get_name(), key.blob)  # type: ignore[assignment]  # by its stubs, None

    def __copy__(self) -> SigningKey:
        # Python's own way asks the half-made copy for inner_key, and paramiko's __getattr__ does so without an end.
        made = SigningKey(self, self._connection, self._held)
        made.public_blob = self.public_blob
        return made

    def asbytes(self) -> bytes:
        """Give what the agent signs with: the plain key of a certificate if the agent has it, as paramiko wants it."""
        plain = super().asbytes()
        return plain if plain in self._held else self.blob

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Message:  # type: ignore[override]
        try:
            return super().sign_ssh_data(data, algorithm)
        except (SSHException, OSError) as error:
            raise AuthenticationException("the agent does not sign") from error
