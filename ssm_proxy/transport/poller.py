"""Waits until one of a few file descriptors can be used."""

from __future__ import annotations

import select

READ = 1
WRITE = 2
HANGUP = 4
"""The other end has gone. Reported for every registered descriptor where the system can tell, asked for or not."""


class PollPoller:
    """poll(2): notices a vanished reader even while there is nothing to write."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}

    def set(self, fd: int, *, read: bool = False, write: bool = False) -> None:
        """Watch ``fd`` for what is asked, and for its hang-up in any case."""
        # POLLHUP is told unasked, says POSIX, but macOS watches nothing for an empty mask.
        mask = select.POLLHUP | (select.POLLIN if read else 0) | (select.POLLOUT if write else 0)
        if self._masks.get(fd) != mask:
            self._masks[fd] = mask
            self._poll.register(fd, mask)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``; no harm if it was not watched."""
        if self._masks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, timeout: float | None) -> dict[int, int]:
        """Give what became possible, by descriptor; empty when the timeout (seconds) has passed."""
        # Rounded up: a deadline that is half a millisecond away must not be polled for in a busy loop.
        limit = None if timeout is None else max(0, int(timeout * 1000 + 0.999))
        ready: dict[int, int] = {}
        for fd, mask in self._poll.poll(limit):
            flags = READ if mask & select.POLLIN else 0
            if mask & select.POLLOUT:
                flags |= WRITE
            if mask & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                flags |= HANGUP
            ready[fd] = flags
        return ready


class SelectPoller:
    """select(2), for systems without poll, where it takes sockets only. Reports no hang-ups."""

    def __init__(self) -> None:
        self._wanted: dict[int, tuple[bool, bool]] = {}

    def set(self, fd: int, *, read: bool = False, write: bool = False) -> None:
        """Watch ``fd`` for what is asked."""
        self._wanted[fd] = (read, write)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``; no harm if it was not watched."""
        self._wanted.pop(fd, None)

    def wait(self, timeout: float | None) -> dict[int, int]:
        """Give what became possible, by descriptor; empty when the timeout (seconds) has passed."""
        readers = [fd for fd, (read, _) in self._wanted.items() if read]
        writers = [fd for fd, (_, write) in self._wanted.items() if write]
        readable, writable, _ = select.select(readers, writers, [], timeout)
        ready = dict.fromkeys(readable, READ)
        for fd in writable:
            ready[fd] = ready.get(fd, 0) | WRITE
        return ready


Poller = PollPoller | SelectPoller


def make_poller() -> Poller:
    """Give the better poller that this system has."""
    return PollPoller() if hasattr(select, "poll") else SelectPoller()
