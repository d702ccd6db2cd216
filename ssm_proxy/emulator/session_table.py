"""The sessions that the service knows: tokens, states, history."""

from __future__ import annotations

import hmac
import secrets
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Final

from ssm_proxy.emulator.counts import ChannelCounts, SessionSnapshot
from ssm_proxy.emulator.documents import ResolvedDocument
from ssm_proxy.emulator.options import Node

CALLER: Final = "emulator"
OWNER: Final = "arn:aws:iam::123456789012:user/emulator"
_HISTORY: Final = 10_000


@dataclass
class Session:
    """One session as the service sees it; the states are those of the public API (1.1)."""

    session_id: str
    node: Node
    document_name: str
    document: ResolvedDocument
    reason: str
    start_date: float
    status: str = "Connecting"
    end_date: float | None = None
    details: str = ""
    token: str = field(default="", repr=False)
    token_deadline: float = 0.0
    """Of the monotonic clock."""
    connections: int = 0
    drops: int = 0
    defects: Counter[str] = field(default_factory=Counter)
    counts: ChannelCounts = field(default_factory=ChannelCounts)

    @property
    def is_over(self) -> bool:
        return self.end_date is not None

    def snapshot(self) -> SessionSnapshot:
        return SessionSnapshot(
            session_id=self.session_id,
            target=self.node.node_id,
            document_name=self.document_name,
            status=self.status,
            details=self.details,
            connections=self.connections,
            client_defects=dict(self.defects),
            **asdict(self.counts),
        )


class SessionTable:
    """All sessions by identifier, the latest last.

    Args:
        token_lifetime_s: how long a token can be used; it can be used once.
    """

    def __init__(self, token_lifetime_s: float) -> None:
        self._token_lifetime_s = token_lifetime_s
        self._sessions: dict[str, Session] = {}

    def add(
        self,
        *,
        node: Node,
        document_name: str,
        document: ResolvedDocument,
        reason: str,
        owner: str = CALLER,
    ) -> Session:
        session = Session(
            session_id=f"{owner}-{secrets.token_hex(9)[:17]}",
            node=node,
            document_name=document_name,
            document=document,
            reason=reason,
            start_date=time.time(),
        )
        self._sessions[session.session_id] = session
        if len(self._sessions) > _HISTORY:
            oldest = next((each for each in self._sessions.values() if each.is_over), None)
            if oldest is not None:
                del self._sessions[oldest.session_id]
        return session

    def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def all(self) -> list[Session]:
        return list(self._sessions.values())

    def issue_token(self, session: Session) -> str:
        """Make a token; the one before is void."""
        session.token = secrets.token_urlsafe(96)
        session.token_deadline = time.monotonic() + self._token_lifetime_s
        return session.token

    def redeem_token(self, session: Session, token: str) -> bool:
        """Say whether the token opens the session, and void it if so."""
        known = session.token
        if not known or session.is_over or time.monotonic() > session.token_deadline:
            return False
        if not hmac.compare_digest(known.encode(), token.encode()):
            return False
        session.token = ""
        return True

    def end(self, session: Session, *, status: str, details: str) -> None:
        session.status = status
        session.details = details
        session.end_date = time.time()
        session.token = ""
