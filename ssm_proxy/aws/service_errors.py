"""Errors that the service answered, by their code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssm_proxy.aws.call import Call
from ssm_proxy.errors import (
    AccessDenied,
    ConfigurationError,
    ControlPlaneError,
    DocumentRejected,
    SsmProxyError,
    TargetNotConnected,
    Throttled,
)

_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_TIME = frozenset({"RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"})
_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset(
    {
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DOCUMENT = frozenset({"InvalidDocument", "InvalidDocumentVersion", "InvalidDocumentContent"})
_FILTER = frozenset({"ValidationException", "InvalidFilterKey", "InvalidInstanceInformationFilterValue"})
_TIME_WORDS = ("signature expired", "not yet current", "skew", "clock")


def from_answer(response: Mapping[str, Any], operation: str, call: Call) -> SsmProxyError:
    """Say what an error answer means.

    Args:
        response: botocore's parsed answer: ``Error`` with ``Code`` and ``Message``, ``ResponseMetadata``.
        operation: what was really called, which may be a call of a credential provider.
        call: what the user wanted.
    """
    error = response.get("Error", {})
    code, text = str(error.get("Code", "")), str(error.get("Message", "")).strip()
    cause = f"{code}: {text}" if text else code
    signed = _from_signature(code, text, cause, call)
    if signed is not None:
        return signed
    if operation != call.operation:
        return ConfigurationError(
            f"could not get AWS credentials: {operation} was refused",
            cause=cause,
            hint=f"check the role and the login of the profile, with: aws sts get-caller-identity{call.profile_option}",
        )
    if call.service == "kms":
        from ssm_proxy.aws.kms import refusal

        return refusal(code, cause, call)
    if code in _DENIED:
        return AccessDenied(
            f"access denied: {call.service}:{operation}{_on(call)} ({call.place})",
            cause=cause,
            hint=_permission_hint(call),
        )
    if code == "TargetNotConnected":
        return TargetNotConnected(
            f"target '{call.target}' is not connected to Session Manager ({call.place})",
            cause=cause,
            hint="check that region and account are right, that the node and its SSM agent run, and that its instance "
            "profile has the policy AmazonSSMManagedInstanceCore",
        )
    if is_throttling(code):
        attempts = response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
        return Throttled(
            f"{operation} was throttled, also at attempt {attempts}",
            cause=cause,
            hint="start fewer sessions at once, or share one per node with ControlMaster and ControlPersist"
            if operation == "StartSession"
            else "try again in a minute",
        )
    return _from_request(response, code, cause, operation, call)


def is_throttling(code: object) -> bool:
    """Tell whether an error code means that there were too many calls."""
    return code in _THROTTLED


def says_session_is_gone(response: Mapping[str, Any]) -> bool:
    """Tell whether an error answer to ResumeSession or TerminateSession means that the session has ended.

    Source: docs/PROTOCOL.md sections 1.1 (DoesNotExistException) and 2.6 (the text of the live service).
    """
    details = response.get("Error", {})
    code = details.get("Code")
    if code in _DENIED | _EXPIRED | _TIME | _CREDENTIALS | _THROTTLED:
        return False
    return code == "DoesNotExistException" or "terminated" in str(details.get("Message", "")).lower()


def _from_signature(code: str, text: str, cause: str, call: Call) -> ConfigurationError | None:
    if code in _TIME or (code in _CREDENTIALS and any(words in text.lower() for words in _TIME_WORDS)):
        return ConfigurationError(
            "the service does not accept the time in our signature",
            cause=cause,
            hint="set the clock of this machine, for example with: sudo timedatectl set-ntp true",
        )
    if code in _EXPIRED:
        return ConfigurationError(
            f"the AWS credentials have expired ({call.place})", cause=cause, hint=call.renewal_hint()
        )
    if code in _CREDENTIALS:
        return ConfigurationError(
            f"the service does not accept the AWS credentials ({call.place})", cause=cause, hint=call.renewal_hint()
        )
    return None


def _from_request(response: Mapping[str, Any], code: str, cause: str, operation: str, call: Call) -> SsmProxyError:
    if code in _DOCUMENT:
        return DocumentRejected(
            f"the session document '{call.document}' cannot be used ({call.place})",
            cause=cause,
            hint="check --document-name; the documents there are: aws ssm list-documents --filters "
            f"Key=DocumentType,Values=Session{call.profile_option}",
        )
    if code == "InvalidParameters":
        return DocumentRejected(
            f"the session document '{call.document}' does not accept the parameters",
            cause=cause,
            hint=f"what it takes: aws ssm describe-document --name {call.document}{call.profile_option}; ssh needs the "
            "parameter portNumber, exec needs command",
        )
    if operation == "DescribeInstanceInformation" and code in _FILTER:
        return ControlPlaneError(
            "the service does not look for nodes with such a tag",
            cause=cause,
            hint="a tag is written KEY=VALUE, or KEY for any value, as in: ssm-proxy list --tag team=web",
        )
    if code in ("ValidationException", "InvalidInstanceId", "InvalidTarget"):
        return ControlPlaneError(
            f"the service does not accept the {operation} request{_on(call)}",
            cause=cause,
            hint="a target is an instance id (i-0123456789abcdef0) or the id of a managed node (mi-...)",
        )
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or code.startswith("InternalServerError"):
        return ControlPlaneError(
            f"the service failed at {operation} (HTTP status {status})",
            cause=cause,
            hint="try again in a minute; https://health.aws.amazon.com/health/status lists known disturbances",
        )
    return ControlPlaneError(
        f"the service refused {operation}{_on(call)} (HTTP status {status})",
        cause=cause,
        hint=f"check that the endpoint is the one of Systems Manager ({call.place})",
    )


def _on(call: Call) -> str:
    return f" on target '{call.target}'" if call.target else ""


def _permission_hint(call: Call) -> str:
    if call.service != "ssm" or call.operation == "DescribeInstanceInformation":
        return f"the IAM policy has to allow {call.service}:{call.operation}"
    if call.operation == "StartSession":
        return (
            "the IAM policy has to allow ssm:StartSession both on the node and on the document "
            f"arn:aws:ssm:*:*:document/{call.document}"
        )
    return f"the IAM policy has to allow ssm:{call.operation} on arn:aws:ssm:*:*:session/${{aws:userid}}-*"
