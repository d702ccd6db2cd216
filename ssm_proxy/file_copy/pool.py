"""Opens links, not too many at once, and replaces those that are lost."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Protocol

from ssm_proxy.errors import (
    PortError,
    SessionEnded,
    SshConnectFailed,
    SsmProxyError,
    TargetNotConnected,
    Throttled,
    TransportError,
    TransportTimeout,
)
from ssm_proxy.file_copy.board import Board
from ssm_proxy.file_copy.context import Context
from ssm_proxy.file_copy.link import Link, share_under_way

if TYPE_CHECKING:
    import paramiko

OPENED_AT_ONCE = 4
"""sshd drops connections that are not authenticated yet beyond MaxStartups, 10 by default; others need some, too."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
FAILURES_IN_A_ROW = 6
"""After which no more are opened while some work; and the copy ends if none do."""
TRY_AGAIN_AFTER_S = 60.0
ANOTHER_AFTER_S = 5.0
"""While none works and the one that is being opened says nothing: an agent tells of a refused port after 60 s."""
NONE_IS_TOLD_AFTER_S = 3.0
SILENCE_IS_TOLD_AFTER_S = 15.0
"""While links work, and the node says nothing on any of them."""
TOLD_EVERY_S = 60.0
STANDS_STILL_S = 30.0
"""A link that waits so long for an answer, while others get theirs, is replaced."""
ALIVE_WITHIN_S = 10.0
NOTHING_MOVES_S = 20 * 60.0
"""No link hears anything: longer than a session is resumed for."""
JOIN_S = 5.0
CUT_S = 5.0
"""More than a session takes that is ended without regard to what is on its way."""
MEASURED_OVER_S = 0.3
BUSY_SHARE = 0.5
"""Of a processor. Python's threads share one: if one link takes half of it, several are no faster."""

logger = logging.getLogger("ssm_proxy.copy")


class Opener(Protocol):
    """What makes the connections of links; `ssh.login.Login` is one."""

    def open_client(self) -> paramiko.SSHClient:
        """Give a connected client; called from several threads at once, but not before the first one has been opened.

        Raises:
            SsmProxyError: there is none.
        """
        ...

    def give_up(self) -> None:
        """Have what is being opened fail soon."""
        ...

    def cut(self, client: paramiko.SSHClient) -> None:
        """End a client's connection without regard to what is on its way; harmless for one that has ended."""
        ...


class Pool:
    """The links of one copy. For one thread.

    Args:
        opener: makes their connections.
        board: what the links work on.
        context: shared by all links.
        most: links at the same time.
    """

    def __init__(self, opener: Opener, board: Board, context: Context, *, most: int) -> None:
        self._opener = opener
        self._board = board
        self._context = context
        self._most = most
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._opening = 0
        self._is_closed = False
        self._failures = 0  # to open one, in a row; those that were tried at the same time are one
        self._round = 0
        self._useless = 0  # that ended before they had brought anything, in a row
        self._error: SsmProxyError | None = None
        self._openers: list[threading.Thread] = []
        self._cutters: list[threading.Thread] = []
        self._next_at = 0.0
        self._began_opening_at = 0.0
        self._worked_at = time.monotonic()
        self._told_at: float | None = None  # that it does not go on
        self._has_told_fewer = False
        self._measured: tuple[float, float] | None = None  # when, and how much time of processors was used until then
        self.saves_processor = False
        """Whether more links are opened only as long as the processor has room: where no agent paces them."""
        self.most_at_once = 0
        """The most links that worked at once."""

    def open_first(self) -> None:
        """Open the first link, from the calling thread: it may have to ask a person something.

        Raises:
            SsmProxyError: it cannot be opened.
        """
        self._opening = 1
        for attempt in range(1, FAILURES_IN_A_ROW + 1):
            try:
                client = self._opener.open_client()
                break
            except SshConnectFailed as error:
                if attempt == FAILURES_IN_A_ROW or not error.is_busy:
                    raise
                time.sleep(FIRST_PAUSE_S * 2**attempt * (0.5 + random.random() / 2))
        self._begin(client, self._round)

    @property
    def working(self) -> int:
        with self._lock:
            return len(self._working())

    def _working(self) -> list[Link]:
        """Give the links whose SFTP has answered. The lock is held."""
        return [link for link in self._links if link.is_open]

    def transport(self) -> paramiko.Transport | None:
        """Give the connection of some link, to open a channel on; None if there is none just now."""
        with self._lock:
            return self._links[0].transport if self._links else None

    def manage(self, now: float) -> None:
        """Open links that are wanted, cut those that stand still. To be called again and again.

        Raises:
            SsmProxyError: no link works, and none can be opened.
        """
        self._cut_what_stands_still(now)
        with self._lock:
            works, links, opening, error = self._working(), len(self._links), self._opening, self._error
        working = len(works)
        begun = opening + links - working  # not all of them have to log in yet
        self._tell_whether_it_goes_on(now, works, error)
        if error is not None and not working:
            if max(self._failures, self._useless) >= FAILURES_IN_A_ROW or not _is_temporary(error):
                if not begun:
                    raise error
                return  # what is still being opened may work
        elif self._failures >= FAILURES_IN_A_ROW or (error is not None and not _is_temporary(error)):
            if not self._has_told_fewer and error is not None:
                self._has_told_fewer = True
                self._context.notice(f"going on with {working} sessions, no more can be opened: {error.message}")
            if error is not None and not _is_temporary(error):  # trying again and again may lock the user out
                return
        wanted = min(self._most, self._board.wanted_links)
        if now < self._next_at or (self.saves_processor and links and not self._has_room(now, opening)):
            return
        of_round = self._round
        more = min(wanted - links, OPENED_AT_ONCE) - opening
        if not working and (error is not None or not begun):  # it is not known whether any can
            is_silent = begun > 0 and now >= self._began_opening_at + ANOTHER_AFTER_S
            more = (min(begun + 1, OPENED_AT_ONCE) if is_silent else 1) - begun
        for _ in range(more):
            self._began_opening_at = now
            with self._lock:
                self._opening += 1
            opener = threading.Thread(target=self._open, args=(of_round,), name="ssm-proxy copy opening", daemon=True)
            self._openers = [each for each in self._openers if each.is_alive()] + [opener]
            opener.start()

    def _tell_whether_it_goes_on(self, now: float, works: list[Link], error: SsmProxyError | None) -> None:
        if works:
            self._worked_at = now
            silent = now - max((link.heard_at for link in works if link.stands_still), default=now)
            problem = (
                f"nothing has come from the node for {silent:.0f} s, waiting for it or for the network"
                if silent > SILENCE_IS_TOLD_AFTER_S
                else None
            )
        elif error is None or now < self._worked_at + NONE_IS_TOLD_AFTER_S:
            return
        else:
            problem = f"no session works any more, opening another: {error.message}"
        if problem is None:
            if self._told_at is not None:
                self._context.notice("the copy goes on")
            self._told_at = None
        elif self._told_at is None or now >= self._told_at + TOLD_EVERY_S:
            self._told_at = now
            self._context.notice(problem)

    def _has_room(self, now: float, opening: int) -> bool:
        """Whether the links, without the opening of others, have lately left most of a processor to this program."""
        used = time.process_time()
        since, before = self._measured or (now, used)
        is_over = now - since >= MEASURED_OVER_S
        if self._measured is None or is_over or opening:
            self._measured = now, used
        return is_over and not opening and used - before < BUSY_SHARE * (now - since)

    def close(self) -> None:
        """End all links; in bounded time. What is being opened may still wait for its turn, and is not needed."""
        with self._lock:
            self._is_closed = True
            links = list(self._links)
        self._opener.give_up()
        for link in links:
            link.stop()
        until = time.monotonic() + JOIN_S
        for link in links:
            link.join(max(0.0, until - time.monotonic()))
        for link in links:
            self._cut(link)
        for opener in self._openers:
            opener.join(max(0.0, until - time.monotonic()))
        until = time.monotonic() + CUT_S
        for cutter in self._cutters:
            cutter.join(max(0.0, until - time.monotonic()))

    def _cut(self, link: Link) -> None:
        """End a link that hears nothing, in a thread: even that may take seconds."""
        if link.is_being_cut:
            return
        link.is_being_cut = True
        cutter = threading.Thread(target=self._opener.cut, args=(link.client,), name="ssm-proxy copy end", daemon=True)
        self._cutters = [each for each in self._cutters if each.is_alive()] + [cutter]
        cutter.start()

    def _cut_what_stands_still(self, now: float) -> None:
        with self._lock:
            links = list(self._links)
        if not links:
            return
        answered = max(link.answered_at for link in links)
        for link in links:
            silent = now - link.heard_at
            if silent <= STANDS_STILL_S or not link.stands_still:
                continue
            if now - answered < ALIVE_WITHIN_S:
                logger.info("a session stands still for %.0f s and is replaced", silent)
                self._cut(link)
            elif silent > NOTHING_MOVES_S:
                raise TransportTimeout(
                    "the node answers nothing any more",
                    cause=f"no session has received anything for {NOTHING_MOVES_S / 60:.0f} minutes",
                    hint="run it again with --resume when the node answers",
                )
            else:  # whether it is this one alone, or the network, those tell that have nothing to do
                for other in links:
                    other.probe()

    # --- threads ----------------------------------------------------------------------------------------------------

    def _open(self, of_round: int) -> None:
        error: SsmProxyError | None = None
        client = None
        try:
            client = self._opener.open_client()
        except SsmProxyError as failure:
            error = failure
        except Exception as bug:  # noqa: BLE001 - the boundary of a thread: it must report, whatever happened
            error = SsmProxyError(f"unexpected {type(bug).__name__} while connecting; this is a bug of ssm-proxy")
            error.__cause__ = bug
        if client is not None:
            self._begin(client, of_round)
        elif error is not None:
            with self._lock:
                self._opening -= 1
                self._failed(error, of_round)
        self._board.wake()

    def _begin(self, client: paramiko.SSHClient, of_round: int) -> None:
        link = Link(
            client,
            self._board,
            self._context,
            most_under_way=share_under_way(self._most),
            opened=self._opened,
            ended=lambda link, error: self._ended(link, error, of_round),
        )
        with self._lock:
            self._opening -= 1
            is_wanted = not self._is_closed and len(self._links) < self._most
            if is_wanted:
                self._links.append(link)
                link.start()  # before ``close`` can see it, and join it
        if not is_wanted:
            client.close()  # without the lock: it waits for the end of the session

    def _opened(self) -> None:
        with self._lock:
            self._failures = 0
            self._error = None
            self.most_at_once = max(self.most_at_once, len(self._working()))
        self._board.wake()

    def _ended(self, link: Link, error: SsmProxyError | None, of_round: int) -> None:
        with self._lock:
            self._links.remove(link)
            if error is not None:
                logger.info("a session of the copy ended: %s (%s)", error.message, error.cause)
                if link.has_delivered:  # a bad network, or a node that was restarted
                    self._failures = self._useless = 0
                    self._error = error
                    self._next_at = time.monotonic() + FIRST_PAUSE_S * random.random()
                else:
                    self._useless += of_round == self._round
                    self._failed(error, of_round)
        self._board.wake()

    def _failed(self, error: SsmProxyError, of_round: int) -> None:
        """Take note of a failure. The lock is held."""
        self._error = error
        if of_round != self._round:  # one that was tried beside it has failed already
            return
        self._round += 1
        self._failures += 1
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures)
        if self._failures >= FAILURES_IN_A_ROW and self._links:
            pause = TRY_AGAIN_AFTER_S
        self._next_at = time.monotonic() + pause * (0.5 + random.random() / 2)
        logger.info("a session could not be had: %s (%s)", error.message, error.cause)


def _is_temporary(error: SsmProxyError) -> bool:
    """Whether the same may succeed in a moment."""
    return isinstance(
        error, TransportError | SessionEnded | PortError | SshConnectFailed | Throttled | TargetNotConnected
    )
