"""After a connection was lost: whether to try again, how soon, and when to give up. Times are arguments."""

from __future__ import annotations

import random

from ssm_proxy.errors import (
    AccessDenied,
    CertificateNotTrusted,
    ConfigurationError,
    ControlPlaneError,
    DocumentRejected,
    NotRenewable,
    OpeningRefused,
    SessionEnded,
    SsmProxyError,
    TransportClosed,
    TransportError,
)
from ssm_proxy.transport.backoff import Backoff

BUDGET = 15 * 60.0
"""How long a lost connection is tried for before the session is given up."""
FIRST_CONNECTION_BUDGET = 15.0
"""Until the session has begun there is nothing to lose: fail soon enough for a person to wait for the message."""
LOSS_NOTICE_AFTER = 2.0
MAX_REFUSALS = 3


class Recovery:
    """Remembers one loss until a connection works again.

    Args:
        source: of the random part of pauses.
    """

    def __init__(self, source: random.Random) -> None:
        self._backoff = Backoff(source)
        self._lost_at: float | None = None
        self.error: SsmProxyError | None = None
        """What the latest attempt met, or the connection was lost by; None while it works."""
        self._has_begun = False
        self._was_told = False
        self._refusals = 0

    def lost_for(self, now: float) -> float | None:
        """Give the seconds since the connection was lost, or None if it works."""
        return None if self._lost_at is None else now - self._lost_at

    def works(self) -> bool:
        """Take note that something arrived on a connection; return whether a person was told of its loss."""
        was_told = self._was_told
        self._lost_at = None
        self.error = None
        self._was_told = False
        self._refusals = 0
        self._backoff.reset()
        return was_told

    def after(self, error: SsmProxyError, now: float, *, was_started: bool, has_begun: bool) -> float | SsmProxyError:
        """Say how to go on after a connection was lost or an attempt failed.

        Args:
            error: why.
            now: the time.
            was_started: whether StartSession succeeded.
            has_begun: whether the handshake is over, so that there is something to lose.

        Returns:
            Seconds until the next attempt, or the error to end with.
        """
        if self._lost_at is None:
            self._lost_at = now
        self._has_begun = has_begun
        self.error = error
        if not self._is_temporary(error, was_started):
            return error
        if now < self._lost_at + (BUDGET if has_begun else FIRST_CONNECTION_BUDGET):
            return self._backoff.next_delay()
        if has_begun:
            what = f"the session was lost: no connection for {BUDGET / 60:.0f} minutes"
        elif isinstance(error, TransportClosed):
            what = "the session could not be opened"
        else:
            return error
        return SessionEnded(what, cause=error.in_a_line, hint=error.hint or "connect again")

    @property
    def notice_at(self) -> float | None:
        """When ``notice`` has something to say, if ever."""
        if self._lost_at is None or self._was_told or not self._has_begun:
            return None
        return self._lost_at + LOSS_NOTICE_AFTER

    def notice(self, now: float) -> str | None:
        """Give what a person should be told about a loss that lasts, once for each."""
        notice_at = self.notice_at
        if notice_at is None or now < notice_at:
            return None
        self._was_told = True
        minutes = (BUDGET - (self.lost_for(now) or 0.0)) / 60
        why = "" if self.error is None else f" ({self.error.in_a_line})"
        return f"connection lost, trying to resume for {minutes:.0f} more minutes{why}"

    def _is_temporary(self, error: SsmProxyError, was_started: bool) -> bool:
        """Whether another attempt may succeed.

        By itself, or because a person renews a login meanwhile: but that is for a session that is worth it.
        """
        if isinstance(error, OpeningRefused):
            if 400 <= error.status < 500 and error.status not in (408, 429):
                self._refusals += 1
            return self._refusals < (MAX_REFUSALS if self._has_begun else 1)
        if isinstance(error, AccessDenied | DocumentRejected | NotRenewable):
            return False
        if isinstance(error, CertificateNotTrusted):
            return self._has_begun  # else a setting is wrong; later it may be the login page of some hotel
        if isinstance(error, ConfigurationError | ControlPlaneError):
            return self._has_begun
        return was_started and isinstance(error, TransportError)
