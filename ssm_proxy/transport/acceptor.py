"""Takes local connections from a listener, as many as there is room for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ssm_proxy.transport.listener import Listener, OutOfDescriptors
from ssm_proxy.transport.local_connection import LocalConnection
from ssm_proxy.transport.poller import Poller

ACCEPTED_AT_ONCE = 64
RETRY_AFTER = 1.0


class Forward(NamedTuple):
    """What a forwarding is: where local programs connect, where that leads, and who hears of it."""

    listener: Listener
    destination: str
    """For people: ``port 80 of i-…``."""
    notify: Callable[[str], None]
    """Shows a person one line."""
    listening: Callable[[], None]
    """Called when the listener takes connections."""
    ready: Callable[[str], None] | None = None
    """Called when a probe has shown that the destination can be reached, with what it showed; None: do not probe."""
    closed: Callable[[bool], None] = lambda has_received: None
    """Called when the service has ended the session, while local programs still take its last output; with whether
    anything ever came from the destination's side."""
    ending: socket.socket | None = None
    """Becomes readable when the local programs are over: take what they have sent, accept nobody new."""
    drained: Callable[[], None] = lambda: None
    """Called once after that, when all they had sent has arrived, and they have taken what there was for them."""


class Acceptor:
    """Accepts connections while they are wanted.

    Args:
        forward: whose listener it is.
    """

    def __init__(self, forward: Forward) -> None:
        self._listener = forward.listener
        self._notify = forward.notify
        self._retry_at: float | None = None
        self._has_complained = False
        self._is_closed = False
        self._ending = forward.ending
        self.is_ending = False
        """Whether the local programs are over."""

    def open(self) -> None:
        """Begin to listen.

        Raises:
            PortError: somebody else was faster.
        """
        if not self._listener.is_listening:
            self._listener.listen()

    def watch(self, poller: Poller, *, wanted: bool) -> None:
        """Tell the poller whether connections are wanted."""
        if self._ending is not None:
            if self.is_ending:
                poller.remove(self._ending.fileno())
            else:
                poller.set(self._ending.fileno(), read=True)
        if self._is_closed:
            return
        if wanted and self._retry_at is None and self._listener.is_listening:
            poller.set(self._listener.fileno(), read=True)
        else:
            poller.remove(self._listener.fileno())

    def look(self, ready: Mapping[int, int]) -> None:
        """Take note of the end of the local programs, by the descriptors that the poller gave."""
        if self._ending is not None and self._ending.fileno() in ready:
            self.is_ending = True

    @property
    def is_pausing(self) -> bool:
        """Whether there is a pause, as no descriptors are left."""
        return self._retry_at is not None

    def is_ready(self, ready: Mapping[int, int]) -> bool:
        """Whether somebody waits to be accepted, by the descriptors that the poller gave."""
        return not self._is_closed and self._listener.fileno() in ready

    def accept(self, now: float, limit: int = ACCEPTED_AT_ONCE) -> list[LocalConnection]:
        """Give up to ``limit`` connections that wait."""
        accepted: list[LocalConnection] = []
        try:
            while len(accepted) < limit and (connected := self._listener.accept()) is not None:
                accepted.append(LocalConnection(connected))
        except OutOfDescriptors as error:
            self._retry_at = now + RETRY_AFTER
            if not self._has_complained:
                self._has_complained = True
                self._notify(f"{self._listener.name}: connections have to wait ({error}); raise the limit: ulimit -n")
        return accepted

    def deadline(self) -> float | None:
        """Give the time at which ``handle_deadline`` is due."""
        return self._retry_at

    def handle_deadline(self, now: float) -> None:
        """Accept again after a pause."""
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None

    def close(self, poller: Poller | None) -> None:
        """Accept no more: who connects from now on is refused."""
        if not self._is_closed:
            self._is_closed = True
            if poller is not None:
                poller.remove(self._listener.fileno())
            self._listener.close()
