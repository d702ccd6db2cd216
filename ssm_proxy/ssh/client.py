"""Makes an authenticated SSH connection over a connected socket. paramiko's exceptions stop here.

Every wait has a deadline, and what fails leaves neither a thread nor the socket.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import paramiko
from paramiko import MissingHostKeyPolicy, SSHClient
from paramiko.ssh_exception import IncompatiblePeer

from ssm_proxy.errors import SshConnectFailed, SsmProxyError
from ssm_proxy.ssh.auth import Authenticator
from ssm_proxy.ssh.host_keys import HostKeyCheck
from ssm_proxy.ssh.prompts import printable
from ssm_proxy.ssh.settings import SshSettings
from ssm_proxy.ssh.transport import SshTransport

DEFAULT_TIMEOUT: Final = 60.0
# Measured with paramiko 5.1 and sshd 9.2 over loopback, processor time of this side for a MiB: AES-GCM 1.5 ms down and
# 1.6 ms up, AES-CTR with HMAC-SHA-256 2.5 ms either way; through paramiko's SFTP 3.3 and 2.7 ms against 3.9 ms. So GCM
# first; paramiko itself would take CTR. A window of 16 MiB in place of paramiko's 2 MiB costs SFTP 10 ms for a MiB
# (what arrives in one piece is cut up by copying), one of 64 MiB 69 ms, and brings a plain channel nothing; larger
# packets bring nothing either. Keys are exchanged anew after 512 MiB, as paramiko does: it takes milliseconds.
_CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_MACS: Final = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "hmac-sha1",
)

# paramiko logs tracebacks as errors, which Python prints to standard error if nobody has set a handler. What it has to
# say is in our errors; a program that wants its log sets a handler.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

WhyEnded = Callable[[], "SsmProxyError | None"]
"""Gives the error by which the session under a socket ended, if it did."""


def open_client(
    sock: socket.socket,
    settings: SshSettings,
    authenticator: Authenticator,
    host_keys: HostKeyCheck,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    why_ended: WhyEnded | None = None,
) -> SSHClient:
    """Speak SSH on a socket until the user is let in. The socket is the client's from now on, also after an error.

    Args:
        sock: connected to the node's sshd.
        settings: of the host.
        authenticator: shared by the connections of one copy.
        host_keys: shared as well.
        timeout: from the server's first line to the end of the exchange of keys, and for each answer to an
            authentication; what a person takes to answer a question is not counted.
        why_ended: asked when the connection ends.

    Raises:
        SshConnectFailed: no SSH connection; ``is_busy`` if another attempt may succeed shortly.
        HostKeyChanged, HostKeyUnknown: the server's host key is not accepted.
        AuthenticationFailed: the server lets nobody in.
        SsmProxyError: by which the session ended.
    """
    transports: list[SshTransport] = []

    def make_transport(sock: socket.socket, **options: Any) -> SshTransport:
        transport = SshTransport(sock, **options)
        transport.handshake_timeout = 2 * timeout  # paramiko takes it for the server hanging up
        security = transport.get_security_options()
        security.ciphers = tuple(each for each in _CIPHERS if each in security.ciphers)
        security.digests = tuple(each for each in _MACS if each in security.digests)
        security.key_types = host_keys.algorithms(tuple(security.key_types))
        transports.append(transport)
        return transport

    client = SSHClient()
    client.set_missing_host_key_policy(_Policy(host_keys))
    try:
        with _mapped(transports, settings, timeout, why_ended):
            client.connect(
                settings.target,
                sock=sock,
                username=settings.user,
                timeout=timeout,  # ends the opening as a whole
                banner_timeout=2 * timeout,
                auth_timeout=timeout,
                channel_timeout=timeout,
                transport_factory=make_transport,  # type: ignore[arg-type]
                auth_strategy=authenticator,  # type: ignore[arg-type]
            )
    except BaseException:
        for transport in transports:
            transport.abandon()
        client.close()
        sock.close()
        raise
    if settings.keepalive:
        transports[0].set_keepalive(settings.keepalive)
    return client


class _Policy(MissingHostKeyPolicy):
    """Our check, at the place where paramiko asks about keys that it does not know; it knows none."""

    def __init__(self, host_keys: HostKeyCheck) -> None:
        self._host_keys = host_keys

    def missing_host_key(self, client: SSHClient, hostname: str, key: paramiko.PKey) -> None:
        self._host_keys.check(key)


@contextlib.contextmanager
def _mapped(
    transports: list[SshTransport], settings: SshSettings, timeout: float, why_ended: WhyEnded | None
) -> Iterator[None]:
    try:
        yield
    except SsmProxyError as error:
        own = why_ended() if why_ended is not None and isinstance(error, SshConnectFailed) else None
        if own is not None:
            raise own from error
        raise
    except Exception as error:  # from a server that sends nonsense, paramiko's thread hands on whatever that causes
        raise _own_error(error, why_ended) or _translated(
            error, transports[0] if transports else None, settings, timeout
        ) from error


def _own_error(error: BaseException, why_ended: WhyEnded | None) -> SsmProxyError | None:
    """Give the error of ours that is behind one of paramiko's, if there is one."""
    if why_ended is not None and (own := why_ended()) is not None:
        return own
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SsmProxyError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _translated(
    error: Exception, transport: SshTransport | None, settings: SshSettings, timeout: float
) -> SshConnectFailed:
    where = f"port {settings.port} of {settings.target}"
    is_late = _is_timeout(error) or (transport is not None and transport.is_active())
    if transport is None or not transport.is_greeted:
        if "Indecipherable" in str(error) or "Incompatible version" in str(error) or "Invalid SSH" in str(error):
            return SshConnectFailed(
                f"{where} is no SSH server",
                cause=f"it sent: {printable(str(error))[-200:]}",
                hint="is it the right port? -P PORT, or Port in ~/.ssh/config",
            )
        if is_late:
            return SshConnectFailed(
                f"the SSH server at {where} said nothing within {timeout:.0f} s",
                hint="is sshd well on the node? ssm-proxy shell goes there without it",
            )
        return SshConnectFailed(
            f"the SSH server at {where} hung up before it said a word",
            is_busy=True,
            cause="it may have too many connections that are not yet authenticated (MaxStartups in its sshd_config)",
            hint="try again, with fewer sessions",
        )
    if isinstance(error, IncompatiblePeer):
        return SshConnectFailed(
            f"{transport.remote_version!r} at {where} and we have no algorithm in common",
            cause=printable(str(error)),
            hint="see what the server allows: sshd -T | grep -E 'ciphers|macs|kex|hostkeyalgorithms'",
        )
    if not transport.initial_kex_done:
        what = f"the exchange of keys with {where} failed"
        if is_late:
            return SshConnectFailed(what, cause=f"it was not finished within {timeout:.0f} s")
        return SshConnectFailed(what, cause=_goodbye(transport) or _reason(error))
    return SshConnectFailed(f"the SSH connection to {where} broke", cause=_goodbye(transport) or _reason(error))


def _goodbye(transport: SshTransport) -> str:
    return f"the server said: {printable(transport.goodbye)}" if transport.goodbye else ""


def _is_timeout(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TimeoutError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _reason(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the server hung up"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error)) or type(error).__name__
