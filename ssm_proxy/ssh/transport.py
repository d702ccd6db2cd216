"""paramiko's Transport, with what it lacks for many connections at once to servers of every make.

Built on ``ServiceRequestingTransport``, which asks for the authentication service once (asyncssh ends the connection
when asked again, as the plain Transport does for every key) and signs in the thread that authenticates, where an agent
that refuses does no harm. But it waits for the service without an end, cannot offer ``none``, and looks for the
server's answer only after it has sent the request: an answer that is quicker is lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from paramiko import Message, SSHException
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import cMSG_SERVICE_REQUEST, cMSG_USERAUTH_REQUEST
from paramiko.transport import ServiceRequestingTransport


class SshTransport(ServiceRequestingTransport):
    """Takes what Transport takes."""

    goodbye = ""
    """The server's reason for ending the connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._service_accepted = threading.Event()
        super().__init__(*arguments, **options)

    @property
    def is_greeted(self) -> bool:
        """Whether the server has said that it speaks SSH."""
        return bool(self.remote_version)

    def ensure_session(self) -> None:
        """Ask for the authentication service, the first time.

        Raises:
            SSHException: the connection is not open, or ends.
            TimeoutError: no answer within ``auth_timeout``.
        """
        if not self.is_active() or not self.initial_kex_done:
            raise SSHException("the connection is not open")
        if self._service_accepted.is_set():
            return
        request = Message()
        request.add_byte(cMSG_SERVICE_REQUEST)
        request.add_string("ssh-userauth")
        self._send_message(request)  # type: ignore[attr-defined]  # the stubs leave out what subclasses need
        waited = 0.0
        while not self._service_accepted.wait(0.1):
            waited += 0.1
            if not self.is_active():
                raise self.get_exception() or EOFError()
            if waited > self.auth_timeout:
                raise TimeoutError
        self.auth_handler = _AuthHandler(self)

    def abandon(self) -> None:
        """End at once; without this a timer of paramiko would hold the process for the time of the handshake."""
        self.packetizer.complete_handshake()
        self.close()

    def _parse_service_accept(self, message: Message) -> None:
        if message.get_text() == "ssh-userauth":
            self._service_accepted.set()

    def _parse_disconnect(self, message: Message) -> None:
        with contextlib.suppress(Exception):
            message.get_int()
            self.goodbye = message.get_text()


class _AuthHandler(AuthOnlyHandler):
    """Waits for the answer from before the request on."""

    def send_auth_request(
        self, username: str, method: str, finish_message: Callable[[Message], None] | None = None
    ) -> list[str]:
        self.auth_method = method
        self.username = username
        request = Message()
        request.add_byte(cMSG_USERAUTH_REQUEST)
        request.add_string(username)
        request.add_string("ssh-connection")
        request.add_string(method)
        if finish_message is not None:
            finish_message(request)
        self.auth_event = answered = threading.Event()
        with self.transport.lock:
            self.transport._send_message(request)  # type: ignore[attr-defined]  # within the lock
        remaining: list[str] = self.wait_for_response(answered)
        return remaining
