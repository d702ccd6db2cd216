"""Layer 5: what the end of a session means, for commands and programs alike."""

from __future__ import annotations

from ssm_proxy.errors import ChannelClosed, HandshakeFailed, KmsFailed, SsmProxyError

_KEY_REFUSED = "Fetching data key failed"
"""How the agent begins what it reports when KMS does not decrypt the data key (amazon-ssm-agent,
agent/session/crypto/blockcipher.go)."""


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
