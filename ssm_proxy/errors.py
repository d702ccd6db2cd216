"""Every error that ssm-proxy raises on purpose, with its exit status.

    SsmProxyError                       1
      UsageError                        2   wrong options for this command
      ConfigurationError                3   region, profile, credentials
        NotRenewable
      TargetError                       4
        TargetNotConnected
        TargetNotFound
        TargetAmbiguous
      ControlPlaneError                 5   the Systems Manager API said no
        AccessDenied
        Throttled
        DocumentRejected
      TransportError                    6
        ConnectFailed
          CertificateNotTrusted
        OpeningRefused
        TransportClosed
        TransportTimeout
      ProtocolError                     7
        RemoteProtocolError             7   the other side broke the protocol
          MalformedMessage
          DigestMismatch
          HandshakeFailed
        LocalProtocolError              1   a bug of ours
      EncryptionError                   8
        KmsFailed
        ChallengeFailed
        DecryptionFailed
      SessionEnded                      9
        ChannelClosed
        AcknowledgeTimeout
      PortError                        10
        RemotePortRefused
      CopyError                        11   what was copied, what was not
      SshError                         12   the SSH connection inside the session
        SshConnectFailed
        HostKeyUnknown
        HostKeyChanged
        AuthenticationFailed
      CommandFailed                     1   a program asked for the command's status to be 0

An error is up to three lines for the person who reads it at night: what happened (``message``), why (``cause``) and
what to do next (``hint``). Messages are lower case, without a full stop, and never hold a token, key or payload.
"""

from __future__ import annotations

from typing import Any


class SsmProxyError(Exception):
    """Root of the tree.

    Args:
        message: what happened, quoting what the user typed.
        cause: why, in the words of whoever knows (the service, the operating system).
        hint: what to do next; may be a command line.
    """

    exit_status = 1

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    @property
    def in_a_line(self) -> str:
        """What happened, and why: the cause of another error, for one."""
        return self.message if self.cause is None else f"{self.message}: {self.cause}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Have it pass between processes as it is: those of a pool hand on what a function raised."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[SsmProxyError], arguments: tuple[Any, ...]) -> SsmProxyError:
    return kind.__new__(kind, *arguments)  # without its own arguments, which may be others; all else is its state


class UsageError(SsmProxyError):
    exit_status = 2


class ConfigurationError(SsmProxyError):
    exit_status = 3


class NotRenewable(ConfigurationError):
    """The credentials have expired, and this process cannot get new ones, however long it waits."""


class TargetError(SsmProxyError):
    exit_status = 4


class TargetNotConnected(TargetError):
    """The managed node has no agent connected to Session Manager."""


class TargetNotFound(TargetError):
    """A name stands for no node, task or container that a session could go to."""


class TargetAmbiguous(TargetError):
    """A name stands for several, and which one is meant matters."""


class ControlPlaneError(SsmProxyError):
    exit_status = 5


class AccessDenied(ControlPlaneError):
    """An IAM permission is missing."""


class Throttled(ControlPlaneError):
    """The service refused because of its rate limit, also after retries."""


class DocumentRejected(ControlPlaneError):
    """The session document does not exist, or does not accept the parameters."""


class TransportError(SsmProxyError):
    exit_status = 6


class ConnectFailed(TransportError):
    """The connection could not be made: name, route, proxy, TLS."""


class CertificateNotTrusted(ConnectFailed):
    """No trusted authority vouches for the other side; waiting does not change that, another network may."""


class OpeningRefused(TransportError):
    """The service answered the WebSocket upgrade with an HTTP error.

    Args:
        status: the HTTP status of the answer.
    """

    def __init__(self, message: str, *, status: int, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.status = status


class TransportClosed(TransportError):
    """The WebSocket ended; the session itself may go on (ResumeSession)."""


class TransportTimeout(TransportError):
    """Nothing was heard in time."""


class ProtocolError(SsmProxyError):
    exit_status = 7


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow."""


class MalformedMessage(RemoteProtocolError):
    """Bytes that are no agent message."""


class DigestMismatch(RemoteProtocolError):
    """The SHA-256 of the payload is not the one in the header."""


class HandshakeFailed(RemoteProtocolError):
    """The opening of the session cannot be completed."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol ourselves: a bug."""

    exit_status = 1


class EncryptionError(SsmProxyError):
    exit_status = 8


class KmsFailed(EncryptionError):
    """No data key could be had."""


class ChallengeFailed(EncryptionError):
    """The agent did not prove that it has the data key."""


class DecryptionFailed(EncryptionError):
    """A payload was not encrypted with the data key of the session."""


class SessionEnded(SsmProxyError):
    exit_status = 9


class ChannelClosed(SessionEnded):
    """The service closed the session and said why."""


class AcknowledgeTimeout(SessionEnded):
    """The other side stopped acknowledging for minutes."""


class PortError(SsmProxyError):
    exit_status = 10


class RemotePortRefused(PortError):
    """Nothing listens on the port of the managed node."""


class CopyError(SsmProxyError):
    exit_status = 11


class SshError(SsmProxyError):
    """The SSH connection inside the session could not be made, or broke."""

    exit_status = 12


class SshConnectFailed(SshError):
    """There is no SSH connection: no answer in time, no SSH server, no common algorithm, or it ended.

    Args:
        is_busy: sshd hung up before it said a word. It does so with MaxStartups connections that have not yet proved
            who they are; a moment later it may not.
    """

    def __init__(
        self, message: str, *, is_busy: bool = False, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.is_busy = is_busy


class HostKeyUnknown(SshError):
    """The host key is not in known_hosts, and a new one is not to be accepted."""


class HostKeyChanged(SshError):
    """The host key is not the one in known_hosts, or was revoked: never connect."""


class AuthenticationFailed(SshError):
    """The server let nobody in by what could be tried."""


class CommandFailed(SsmProxyError):
    """A command on a node ended with another status than 0, and whoever ran it wants that to be an error.

    Args:
        status: of the command.
        stdout: what it wrote.
        stderr: the same.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        stdout: bytes = b"",
        stderr: bytes = b"",
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
