"""Layer 5: what the end of a session means, for the command line and for programs alike."""

from __future__ import annotations

from ssm_proxy.errors import (
    ChannelClosed,
    HandshakeFailed,
    KmsFailed,
    RemotePortRefused,
    SessionEnded,
    SsmProxyError,
)

FAILED_AT_START_WITHIN = 90.0
"""An agent needs a minute to report that it could not connect at the start (12.14)."""

_KEY_REFUSED = "Fetching data key failed"
"""How the agent begins what it reports when KMS does not decrypt the data key (amazon-ssm-agent,
agent/session/crypto/blockcipher.go)."""

NOT_SENT_AGAIN = "it was lost on the way, and the agent did not send it again"
"""Why output is missing from a session that the node did not end."""
_LOST_BEFORE_END = "it was lost on the way just before the end, and the agent had no time to send it again"


def closed_by_service(target: str, reason: str, *, has_begun: bool = True) -> SsmProxyError:
    """Give the error for a session that the service ended.

    Args:
        target: for the text.
        reason: what the service gave; may be empty.
        has_begun: whether it was in use.
    """
    if _KEY_REFUSED in reason:
        return KmsFailed(
            f"the session to {target} cannot be encrypted: the node cannot decrypt the data key",
            cause=reason,
            hint="the node's instance profile or task role has to allow kms:Decrypt on the session's key",
        )
    if not has_begun:
        return HandshakeFailed(
            f"the session to {target} could not begin",
            cause=reason,
            hint="the session document may not fit the node; /var/log/amazon/ssm/errors.log there may say more",
        )
    return ChannelClosed(
        f"the service ended the session to {target}",
        cause=reason or "it gave no reason; somebody may have terminated it",
        hint="start it again; a session without traffic ends after the idle timeout of the account's Session Manager "
        "preferences (20 minutes by default)",
    )


def cannot_be_forwarded(destination: str, reason: str) -> RemotePortRefused:
    """Give the error for a forwarding that the service ended before anything ever came.

    Args:
        destination: for the text.
        reason: what the service gave.
    """
    return RemotePortRefused(
        f"{destination} cannot be forwarded",
        cause=reason,
        hint="on the node, /var/log/amazon/ssm/errors.log may say more",
    )


def output_missing(target: str, cause: str = "") -> SessionEnded:
    """Give the error for a session that is over while some of its output is known to be missing.

    Args:
        target: for the text.
        cause: what the service gave as its reason, or what else is known; may be empty.
    """
    return SessionEnded(
        f"some of what {target} sent did not arrive",
        cause=cause or _LOST_BEFORE_END,
        hint="what was received is not all; run it again",
    )


def command_status(
    target: str, *, status: int | None, code: int | None, closed_reason: str | None, output_is_missing: bool
) -> int:
    """Give the status of a command whose session is over.

    Args:
        target: for the text.
        status: its own, if that came.
        code: what the document reported, if anything; counts where its own did not come.
        closed_reason: what the service gave, None if it did not end the session.
        output_is_missing: whether some of what the node sent is known to be missing.

    Raises:
        SessionEnded: there is none, or the command's output is not all there.
    """
    from ssm_proxy.sessions.command import MAX_STATUS

    if status is None and code is not None and 0 < code <= MAX_STATUS:
        status = code
    if status is None:
        no_reason = "the service gave no reason; somebody may have terminated the session"
        raise SessionEnded(
            "the session ended, and the command's exit status did not come",
            cause=closed_reason or (_LOST_BEFORE_END if output_is_missing else no_reason),
            hint="its output, as far as it came, may not be all; a node without a POSIX shell needs start-session",
        )
    if output_is_missing:
        raise output_missing(target, closed_reason or "")
    return status
