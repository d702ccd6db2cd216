"""Data keys of KMS for encrypted sessions, and what its refusals mean.

Source: docs/PROTOCOL.md sections 7.1 and 7.2; the error names are those of the API reference of GenerateDataKey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ssm_proxy.aws.call import Call
from ssm_proxy.errors import KmsFailed
from ssm_proxy.secret import DataKey

DATA_KEY_BYTES: Final = 64

_GONE: Final = frozenset({"NotFoundException", "InvalidArnException"})
_UNUSABLE: Final = frozenset({"DisabledException", "KMSInvalidStateException", "InvalidKeyUsageException"})
_UNAVAILABLE: Final = frozenset(
    {"DependencyTimeoutException", "KeyUnavailableException", "KMSInternalException", "ThrottlingException"}
)


def encryption_context(session_id: str, target: str, challenge: str | None) -> dict[str, str]:
    """Give the context that client and agent must name alike (7.2).

    Args:
        session_id: of the session.
        target: as StartSession was given it; the agent uses its own identifier.
        challenge: as the agent sent it; None if it sent none.
    """
    context = {"aws:ssm:SessionId": session_id, "aws:ssm:TargetId": target}
    if challenge is not None:
        context["aws:ssm:RandomChallenge"] = challenge
    return context


def generate_data_key(client: Any, key_id: str, context: Mapping[str, str]) -> DataKey:
    """Call GenerateDataKey.

    Args:
        client: botocore's, of KMS.
        key_id: as the agent named it: ARN, id or alias.
        context: see :func:`encryption_context`.

    Raises:
        KmsFailed: an answer without a usable key.
        botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: to be mapped by the caller.
    """
    answer = client.generate_data_key(KeyId=key_id, NumberOfBytes=DATA_KEY_BYTES, EncryptionContext=dict(context))
    plaintext, ciphertext = answer.get("Plaintext"), answer.get("CiphertextBlob")
    if not isinstance(plaintext, bytes) or not isinstance(ciphertext, bytes) or len(plaintext) != DATA_KEY_BYTES:
        raise KmsFailed(
            "the answer to GenerateDataKey is incomplete",
            cause=f"it has no data key of {DATA_KEY_BYTES} bytes",
            hint="check that the endpoint is a KMS endpoint (AWS_ENDPOINT_URL_KMS)",
        )
    return DataKey(plaintext, ciphertext)


def refusal(code: str, cause: str, call: Call) -> KmsFailed:
    """Say what an error answer of KMS means; credentials, clock and signature were looked at before.

    Args:
        code: name of the error.
        cause: name and text of the error.
        call: what was asked for; names the key.
    """
    key = call.kms_key_id or ""
    region, account = _place_of(key)
    if code.startswith("AccessDenied"):
        shared = f"; a key of account {account} may have to be shared in its key policy" if account else ""
        return KmsFailed(
            f"access denied: kms:GenerateDataKey on the session's key '{key}' ({call.place})",
            cause=cause,
            hint=f"the IAM policy, and the key policy too, have to allow kms:GenerateDataKey on it{shared}",
        )
    if region and region != call.settings.region:
        return KmsFailed(
            f"the session's KMS key '{key}' is of another region ({call.place})",
            cause=cause,
            hint="name a key of the session's region in its document or in the Session Manager preferences there",
        )
    if code in _GONE:
        return KmsFailed(
            f"there is no KMS key '{key}' as the session asks for ({call.place})",
            cause=cause,
            hint="correct the key in the session document or in the Session Manager preferences of the account",
        )
    if code in _UNUSABLE:
        return KmsFailed(
            f"the session's KMS key '{key}' cannot be used ({call.place})",
            cause=cause,
            hint="enable the key, or cancel its deletion; it has to be a symmetric key that encrypts and decrypts",
        )
    if code in _UNAVAILABLE:
        return KmsFailed(
            f"KMS could not give a data key of '{key}' just now ({call.place})", cause=cause, hint="try again"
        )
    return KmsFailed(
        f"KMS refused a data key of '{key}' ({call.place})",
        cause=cause,
        hint="check the KMS key in the session document or in the Session Manager preferences of the account",
    )


def _place_of(key_id: str) -> tuple[str, str]:
    """Give region and account of an ARN, empty where there is none: ``arn:aws:kms:REGION:ACCOUNT:key/...``."""
    parts = key_id.split(":")
    return (parts[3], parts[4]) if len(parts) >= 6 and parts[0] == "arn" else ("", "")
