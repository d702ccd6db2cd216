"""Where local programs connect: a TCP port or a Unix socket.

A listener is bound before the session is started, so that a port in use costs nobody a session, and listens when the
session has begun, so that a program that waits for the port to open does not come too early.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys

from ssm_proxy.errors import PortError

BACKLOG = 1024
"""Connections that may wait to be accepted; the system may bound it to less (net.core.somaxconn)."""
ANSWER_TIMEOUT = 1.0
ALL_INTERFACES = "*"
LAST_PRIVILEGED_PORT = 1023
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class OutOfDescriptors(Exception):
    """No connection can be accepted now, because the process or the system has too many files open."""


class Listener:
    """A bound socket. Use ``bind_port`` or ``bind_unix_socket`` to get one.

    Args:
        bound: the socket; from now on ours.
        name: for people, as they would type it.
        socket_path: of a Unix socket; its file is removed at the end.
    """

    def __init__(self, bound: socket.socket, name: str, socket_path: str | None = None) -> None:
        self._socket = bound
        self._socket.setblocking(False)
        self.name = name
        self.socket_path = socket_path
        self._file = None if socket_path is None else _identity(socket_path)
        self._is_listening = False

    @property
    def address(self) -> str:
        """The numeric address that it is bound to; empty for a Unix socket."""
        return "" if self.socket_path is not None else str(self._socket.getsockname()[0])

    @property
    def port(self) -> int:
        """The port that it is bound to; 0 for a Unix socket."""
        return 0 if self.socket_path is not None else int(self._socket.getsockname()[1])

    @property
    def is_listening(self) -> bool:
        return self._is_listening

    def fileno(self) -> int:
        return self._socket.fileno()

    def listen(self) -> None:
        """Let programs connect.

        Raises:
            PortError: another process that had bound the same port was faster.
        """
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise _port_error(error, self.name, self.port) from error
        self._is_listening = True

    def accept(self) -> socket.socket | None:
        """Give the next connection, non-blocking, or None if there is none.

        Raises:
            OutOfDescriptors: there is one, but no descriptor for it.
        """
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                raise OutOfDescriptors(error.strerror) from error
            return None  # none is there, or its other end has given up meanwhile
        connection.setblocking(False)
        if self.socket_path is None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Stop listening; what was not accepted is refused. Harmless if repeated."""
        self._socket.close()
        if self._file is not None and self.socket_path is not None:
            # Somebody may have put another one there since.
            if _identity(self.socket_path) == self._file:
                with contextlib.suppress(OSError):
                    os.unlink(self.socket_path)
            self._file = None


def bind_port(address: str, port: int) -> Listener:
    """Bind a TCP port.

    Args:
        address: numeric address or name of this machine; ``*`` is all interfaces.
        port: 0 takes any free one.

    Raises:
        PortError: it cannot be bound.
    """
    bound = None
    try:
        for family, place in _places(address, port):
            bound = socket.socket(family, socket.SOCK_STREAM)
            try:
                _bind(bound, place, is_dual=address == ALL_INTERFACES)
                break
            except OSError as error:
                bound.close()
                bound = None
                if not (address == ALL_INTERFACES and family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL):
                    raise
    except OSError as error:
        raise _port_error(error, _name(address, port), port) from error
    if bound is None:
        raise PortError(f"cannot listen on {_name(address, port)}", cause="there is no such address")
    return Listener(bound, _name(address, bound.getsockname()[1]))


def bind_unix_socket(path: str) -> Listener:
    """Bind a Unix socket that only this user may connect to, in place of one that was left behind. It listens at once.

    Raises:
        PortError: it cannot be bound, or somebody answers there.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise PortError(f"cannot listen on {path}", cause="this system has no Unix sockets")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            bound.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            bound.bind(path)
        # Nobody can connect before it listens, so there is no moment at which others may.
        os.chmod(path, 0o600)
        listener = Listener(bound, path, path)
        # At once: until it listens, it looks like one that was left behind.
        listener.listen()
    except OSError as error:
        bound.close()
        raise _socket_error(error, path) from error
    except PortError:
        bound.close()
        raise
    return listener


def _places(address: str, port: int) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    """Give what to try to bind, in order."""
    if address == ALL_INTERFACES:
        everywhere: list[tuple[socket.AddressFamily, tuple[object, ...]]] = [(socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104 - what was asked for
        if socket.has_dualstack_ipv6():
            everywhere.insert(0, (socket.AF_INET6, ("::", port)))
        return everywhere
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name may have several; IPv4 first, as most programs that connect try it too.
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return [(each[0], each[4]) for each in found[:1]]


def _bind(bound: socket.socket, place: tuple[object, ...], *, is_dual: bool) -> None:
    if sys.platform == "win32":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:  # also while connections of an earlier run are in TIME_WAIT
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if is_dual else 1)
    bound.bind(place)


def _name(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket of this user that nobody listens on.

    Raises:
        PortError: it is something else.
    """
    found = os.lstat(path)
    hint = "choose another path, or remove it"
    if not stat.S_ISSOCK(found.st_mode):
        raise PortError(f"cannot listen on {path}", cause="it exists and is no socket", hint=hint)
    if found.st_uid != os.getuid():
        raise PortError(f"cannot listen on {path}", cause="it is a socket of another user", hint=hint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(ANSWER_TIMEOUT)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:  # it listens, but does not accept any more
            pass
    raise PortError(f"cannot listen on {path}", cause="another program listens there", hint="choose another path")


def _port_error(error: OSError, name: str, port: int) -> PortError:
    cause = error.strerror or str(error)
    hint = None
    if isinstance(error, socket.gaierror):
        cause = f"the address cannot be looked up: {cause}"
    elif error.errno == errno.EADDRINUSE:
        cause = "another program listens there"
        hint = "choose another port; 0 takes a free one"
    elif error.errno in (errno.EACCES, errno.EPERM) and 0 < port <= LAST_PRIVILEGED_PORT:
        cause = "ports below 1024 are for the administrator"
        hint = "choose a higher port; 0 takes a free one"
    elif error.errno == errno.EADDRNOTAVAIL:
        cause = "this machine has no such address"
    return PortError(f"cannot listen on {name}", cause=cause, hint=hint)


def _socket_error(error: OSError, path: str) -> PortError:
    cause = error.strerror or str(error)
    hint = None
    if error.errno == errno.ENOENT:
        cause = "the folder does not exist"
    elif "too long" in str(error):
        cause = f"the path is too long for a Unix socket: it has {len(os.fsencode(path))} bytes, about 100 are allowed"
        hint = "choose a shorter one, below /tmp for instance"
    elif error.errno in (errno.EACCES, errno.EPERM):
        cause = "no permission to write into the folder"
    return PortError(f"cannot listen on {path}", cause=cause, hint=hint)
