"""The user's budget of StartSession calls, shared by all processes through a small file.

Nobody knows the service's limit, so nothing is counted until it says that there are too many: then all processes of the
user take numbers, and wait for their turn. docs/design/0011 says why it is so. As long as nobody was refused a start
costs one look whether the file is there; what is needed beyond that is not even imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ssm_proxy.aws.service_errors import is_throttling
from ssm_proxy.errors import SessionEnded, Throttled

if TYPE_CHECKING:
    from ssm_proxy.aws.start_rate import Pace

logger = logging.getLogger("ssm_proxy.aws")

PATIENCE: Final = 240.0
"""How long a start waits for its turn, and is repeated, in all. Less than the tunnel waits for its first connection, so
that the person is told of the throttling and not of that."""
_MEMORY: Final = 300.0
"""``start_rate.MEMORY``; that is imported only when the file is younger."""
_LOCK_TIMEOUT: Final = 2.0
_LOCK_POLL: Final = 0.01
_LEAVING_TIMEOUT: Final = 0.5
"""For the lock, when nobody wants the session any more."""
_LONGEST_NAP: Final = 5.0
_SHORTEST_NAP: Final = 0.5
"""Who waits looks again after a quarter of the time left, within these: the rate may have changed."""
_JITTER: Final = 0.5
"""At most, in turns: processes that were started together do not stay together."""
_GIVEN_UP: Final = "this one was given up before its turn"
_WORTH_TELLING: Final = 3.0
_TELL_INTERVAL: Final = 30.0
_LARGEST_FILE: Final = 128 * 1024
"""More than ``start_rate.MOST_LISTED`` need."""
_FOLDER: Final = "ssm-proxy"
_LOCK: Final = "starts.lock"
"""One for all files: so they can be removed, which those that are locked themselves cannot safely be."""
_FORGOTTEN: Final = 24 * 3600.0
_OURS: Final = r"starts-[0-9a-f]{16}\.(json|json\.new|lock)"
"""Earlier versions had a lock for each file."""
_VERSION: Final = "2"
"""``start_rate.VERSION``, see there; a test has them be the same."""


class _Start:
    """One call of StartSession with all its repeats.

    Args:
        given_up: set when nobody wants the session any more.
    """

    def __init__(self, given_up: threading.Event) -> None:
        self.given_up = given_up
        self.until = time.monotonic() + PATIENCE
        self.in_turn = False
        """Whether the request that is under way waited for its turn."""
        self.may_wait = False
        """Whether its refusal was noted, so that all others know as well."""


class StartBudget:
    """Hooks into one client, and holds back its StartSession calls when it has to.

    Args:
        scope: what has a limit of its own: account, region, endpoint.
        notify: shows a person one line.
        repeats: whether refused calls are repeated for as long as `PATIENCE`; else botocore's attempts are all.
    """

    def __init__(self, scope: tuple[str, ...], notify: Callable[[str], None], *, repeats: bool) -> None:
        self._notify = notify
        self._told_at: float | None = None
        self._repeats = repeats
        self._current = threading.local()
        folder = _folder()
        name = hashlib.sha256("\n".join((_VERSION, *scope)).encode()).hexdigest()[:16]
        self._folder = folder
        self._path = None if folder is None else os.path.join(folder, f"starts-{name}.json")

    def register(self, client: Any) -> None:
        """Have this asked by a botocore client."""
        events = client.meta.events
        # Before the signature, which would grow too old.
        events.register("before-sign.ssm.StartSession", self._before_sign)
        events.register("response-received.ssm.StartSession", self._response_received)
        events.register_first("needs-retry.ssm.StartSession", self._needs_retry)

    @contextlib.contextmanager
    def start(self, given_up: threading.Event | None) -> Iterator[None]:
        """Make one call of StartSession within this, in the same thread.

        Args:
            given_up: ends the waiting at once when it is set.

        Raises:
            Throttled: the turn did not come in time, or not before ``given_up`` was set.
            SessionEnded: ``given_up`` was set.
        """
        self._current.start = _Start(given_up or threading.Event())
        try:
            yield
        finally:
            self._current.start = None

    # --- what botocore calls ----------------------------------------------------------------------------------------

    def _before_sign(self, **_: object) -> None:
        start: _Start = self._current.start
        start.in_turn = False
        if start.given_up.is_set():
            if start.may_wait:
                raise _throttled(_GIVEN_UP, "the service has refused it until now")
            raise SessionEnded("the session was ended before it had been started")
        if not self._is_needed():
            return
        from ssm_proxy.aws.start_holders import new_holder

        holder = new_holder()
        pace = self._update(lambda pace, now: None if pace is None else _looked_at(pace, now).with_number(now, holder))
        if pace is None:
            return
        try:
            self._wait(holder, pace, start)
        except BaseException:
            self._update(
                lambda pace, now: None if pace is None else pace.without([holder], now), timeout=_LEAVING_TIMEOUT
            )
            raise
        start.in_turn = True

    def _response_received(self, parsed_response: Mapping[str, Any] | None, **_: object) -> None:
        start: _Start = self._current.start
        start.may_wait = False
        if parsed_response is None:  # no answer
            return
        if _is_refusal(parsed_response):
            start.may_wait = self._note_refusal(in_turn=start.in_turn)
        elif start.in_turn:
            self._update(lambda pace, now: None if pace is None else pace.succeeded(now))

    def _needs_retry(self, **_: object) -> float | None:
        """Repeat a refused call at once, which then waits for its turn; None leaves it to botocore."""
        start: _Start = self._current.start
        return 0.0 if start.may_wait and self._repeats and time.monotonic() < start.until else None

    # --- waiting ----------------------------------------------------------------------------------------------------

    def _wait(self, holder: str, given: Pace, start: _Start) -> None:
        number = given.last_number
        is_listed = holder in given.waiting
        chance = random.random() * _JITTER
        while True:
            now = time.time()
            pace = self._read()
            if pace is not None and pace.is_ahead_of(now):
                pace = self._update(lambda pace, now: None if pace is None else pace.caught_up(now))
            elif pace is not None and pace.is_due_for_look(number, now):
                # Without a wait for the lock: whoever has it may be looking already.
                pace = (
                    self._update(lambda pace, now: None if pace is None else _looked_at(pace, now), timeout=0) or pace
                )
            if pace is None or pace.is_over(now):
                return
            if is_listed and holder not in pace.waiting:  # somebody saw that the turn had come
                return
            number = pace.waiting.get(holder, number)
            wait = pace.wait_for(number + chance, now)
            if wait <= 0:
                return
            left = start.until - time.monotonic()
            before = pace.before(number, now)
            if left <= 0:
                raise _throttled(f"it was not this one's turn within {PATIENCE / 60:.0f} minutes", _queue(before, pace))
            self._tell(wait, before)
            if start.given_up.wait(min(wait, left, max(_SHORTEST_NAP, min(wait / 4, _LONGEST_NAP)))):
                raise _throttled(_GIVEN_UP, _queue(before, pace))

    def _tell(self, wait: float, before: int) -> None:
        now = time.monotonic()
        if wait < _WORTH_TELLING or (self._told_at is not None and now - self._told_at < _TELL_INTERVAL):
            return
        self._told_at = now
        self._notify(f"StartSession is throttled; this one goes out in about {wait:.0f} s, {_others(before)}")

    # --- the file ---------------------------------------------------------------------------------------------------

    def _is_needed(self) -> bool:
        """Look whether anybody was refused lately."""
        if self._path is None:
            return False
        try:
            return abs(time.time() - os.stat(self._path).st_mtime) < _MEMORY
        except OSError:
            return False

    def _note_refusal(self, *, in_turn: bool) -> bool:
        from ssm_proxy.aws.start_rate import first_pace

        def change(pace: Pace | None, now: float) -> Pace:
            if pace is not None:
                return pace.throttled(now, in_turn=in_turn)
            self._remove_forgotten(now)
            return first_pace(now)

        pace = self._update(change)
        if pace is not None:
            logger.debug("StartSession was throttled; %.1f per second from now on", pace.rate)
        return pace is not None

    def _update(
        self, change: Callable[[Pace | None, float], Pace | None], timeout: float = _LOCK_TIMEOUT
    ) -> Pace | None:
        """Change the file, while nobody else does.

        Args:
            change: gets the pace that is in force, or None, and the time; gives None to leave the file as it is.
            timeout: seconds that others may take for theirs.

        Returns:
            What is in force now; None also when the file cannot be had: then there is no budget.
        """
        from filelock import FileLock

        from ssm_proxy.aws import start_rate

        if self._folder is None or self._path is None:
            return None
        try:
            if not _make_folder(self._folder):
                return None
            lock = FileLock(os.path.join(self._folder, _LOCK), mode=0o600)
            with lock.acquire(timeout=timeout, poll_interval=_LOCK_POLL):
                now = time.time()
                before = self._read()
                changed = change(None if before is None or before.is_over(now) else before, now)
                if changed is not None and changed is not before:
                    self._write(start_rate.to_text(changed))
                return changed
        except (OSError, NotImplementedError, RuntimeError) as error:  # a file system without locks, a full disk ...
            logger.debug("no budget for StartSession: %s", error)
            return None

    def _read(self) -> Pace | None:
        from ssm_proxy.aws.start_rate import from_text

        if self._path is None:
            return None
        try:
            with open(self._path, "rb") as file:
                return from_text(file.read(_LARGEST_FILE))
        except OSError:
            return None

    def _write(self, text: str) -> None:
        """Replace the file as a whole: who reads it takes no lock."""
        assert self._path is not None
        new = f"{self._path}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.replace(new, self._path)

    def _remove_forgotten(self, now: float) -> None:
        """Remove the files of accounts, regions and endpoints that nobody has used for long. The lock is held."""
        assert self._folder is not None
        with os.scandir(self._folder) as found:
            for each in found:
                with contextlib.suppress(OSError):  # then it stays
                    is_old = now - each.stat(follow_symlinks=False).st_mtime > _FORGOTTEN
                    if is_old and re.fullmatch(_OURS, each.name, re.ASCII):
                        os.unlink(each.path)


def _looked_at(pace: Pace, now: float) -> Pace:
    """Take those who have ended from the queue, unless somebody did so just now."""
    from ssm_proxy.aws.start_holders import find_ended
    from ssm_proxy.aws.start_rate import LOOK_INTERVAL

    if abs(now - pace.looked_at) < LOOK_INTERVAL:
        return pace
    return pace.without(find_ended(pace.waiting), now)._replace(looked_at=now)


def _is_refusal(answer: Mapping[str, Any]) -> bool:
    return is_throttling(answer.get("Error", {}).get("Code"))


def _queue(before: int, pace: Pace) -> str:
    return f"{_others(before)}, and the service takes about {pace.rate:.1f} per second"


def _others(before: int) -> str:
    return f"{before} {'is' if before == 1 else 'are'} before it" if before else "it is the next"


def _throttled(what: str, why: str) -> Throttled:
    return Throttled(
        f"StartSession is throttled, and {what}",
        cause=why,
        hint="start fewer sessions at once, or share one per node with ControlMaster and ControlPersist",
    )


def _folder() -> str | None:
    """Name the folder for what all processes of the user share, here and now; None if there is no place for it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_ours(runtime):  # su and sudo may leave that of somebody else
        return os.path.join(runtime, _FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.expanduser(os.path.join("~", ".cache"))
    return os.path.join(cache, _FOLDER) if os.path.isabs(cache) else None


def _make_folder(path: str) -> bool:
    """Make sure that a folder is there, is the user's, and nobody else's.

    Raises:
        OSError: it cannot be made.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    if not _is_ours(path):
        return False
    if os.name == "posix" and stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
        os.chmod(path, 0o700)
    return True


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (os.name != "posix" or found.st_uid == os.geteuid())
