"""The three calls round a session, and the signed opening of its WebSocket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from ssm_proxy.aws.botocore_session import BRIEF, PATIENT, PROMPT, QUICK, BotocoreSession
from ssm_proxy.aws.call import Call
from ssm_proxy.aws.error_mapping import mapped_errors, needs_mfa_code
from ssm_proxy.aws.opening import (
    WebSocketOpening,
    check_stream_url,
    is_loopback,
    is_presigned,
    replace_endpoint,
    sign_opening,
)
from ssm_proxy.aws.service_errors import says_session_is_gone
from ssm_proxy.aws.start_budget import StartBudget
from ssm_proxy.errors import ConfigurationError, ControlPlaneError, SsmProxyError, TargetNotFound, UsageError
from ssm_proxy.secret import DataKey, Secret

if TYPE_CHECKING:
    from botocore.session import Session

    from ssm_proxy.aws.nodes import NodeList, TagFilter

__all__ = ["BotocoreControlPlane", "ControlPlane", "StartedSession", "WebSocketOpening"]

logger = logging.getLogger("ssm_proxy.aws")

LONGEST_REASON = 256
"""Characters (docs/PROTOCOL.md section 1.1)."""
_UNKNOWN_IN_ECS = frozenset({"ClusterNotFoundException", "InvalidParameterException", "ServiceNotFoundException"})
_LISTS = {
    "DescribeInstanceInformation": ("ssm", "ssm", PATIENT, "describe_instance_information"),
    # Its endpoint is often out of reach where that of Systems Manager is not: no reason to wait for long.
    "GetResources": ("tag", "resourcegroupstaggingapi", PROMPT, "get_resources"),
}
"""Operation -> the service as IAM names it, as botocore does, patience, and the method."""


class StartedSession(NamedTuple):
    """What StartSession answers (docs/PROTOCOL.md section 1.1)."""

    session_id: str
    stream_url: str
    """Used as it is, also for every reconnect; ResumeSession's own URL is ignored."""
    token: Secret
    """Opens the data channel once; a reconnect needs a new one from ``resume_session``."""


class ControlPlane(Protocol):
    """The service's side of a session's life. Every method may block for seconds: call from a worker thread."""

    def start_session(
        self,
        *,
        target: str,
        document_name: str | None,
        parameters: Mapping[str, Sequence[str]],
        reason: str | None,
        given_up: threading.Event | None = None,
    ) -> StartedSession:
        """Start a session on a managed node.

        Args:
            given_up: set when nobody wants the session any more, so that waiting for it ends.
        """
        ...

    def resume_session(self, session_id: str) -> Secret | None:
        """Give a new token for the same session, or None when the session is gone."""
        ...

    def terminate_session(self, session_id: str) -> None:
        """End a session for good; quick, because a dying process waits for it."""
        ...

    def generate_data_key(self, *, session_id: str, target: str, key_id: str, challenge: str | None) -> DataKey:
        """Get a data key of KMS for a session; quick, because the agent waits for it."""
        ...

    def websocket_opening(self, stream_url: str) -> WebSocketOpening:
        """Say how to open the WebSocket now: address, signed headers, trust and proxy."""
        ...


class BotocoreControlPlane:
    """The control plane of AWS, or of whatever stands behind the endpoint settings.

    One botocore session, hence one credential provider, serves all calls and signatures. It is made on first use and
    forgotten after a failure, so that a new login counts at the next try. Safe to use from several threads.

    Args:
        profile: name of a profile; None takes what the environment says.
        region: None takes AWS_REGION, AWS_DEFAULT_REGION or the profile's.
        endpoint_url: replaces the address of the Systems Manager API.
        stream_endpoint_url: replaces scheme, host and port of every stream URL.
        sending_start: called when all is ready and a request for a session leaves, and again for each repeat.
        botocore_session: one that somebody has set up: its credentials, settings and region (unless another is given)
            are used, and no profile.
        notify: shows a person one line, when a session has to wait for its turn; None puts it into the log.
    """

    def __init__(
        self,
        *,
        profile: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        stream_endpoint_url: str | None = None,
        sending_start: Callable[[], None] | None = None,
        botocore_session: Session | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._profile = profile
        self._region = region
        self._endpoint_url = endpoint_url
        self._stream_endpoint_url = stream_endpoint_url
        self._sending_start = sending_start
        self._botocore_session = botocore_session
        self._lock = threading.Lock()
        self._session: BotocoreSession | None = None
        self._notify = notify or logger.info
        self._budget: tuple[Any, StartBudget] | None = None
        """The client that starts sessions, and what holds it back."""

    def resolve_target(self, text: str, notify: Callable[[str], None]) -> str:
        """Give the id that StartSession takes for what the user wrote; only names of ECS tasks take calls.

        Raises:
            TargetError, TargetNotFound, TargetAmbiguous: see ``targets``.
            SsmProxyError: the calls failed, as for ``start_session``.
        """
        from ssm_proxy.aws.targets import resolve_target

        return resolve_target(text, lambda operation, request: self._call_ecs(text, operation, request), notify)

    def list_nodes(self, filters: Sequence[TagFilter] = ()) -> NodeList:
        """Give the managed nodes of account and region that have all of some tags, with all of theirs.

        Raises:
            SsmProxyError: as for ``start_session``.
        """
        from ssm_proxy.aws.nodes import list_nodes

        return list_nodes(self._ask, filters)

    def describe_place(self) -> str:
        """Say where this asks, for a text: region and profile."""
        return Call("", self._open()).place

    def start_session(
        self,
        *,
        target: str,
        document_name: str | None,
        parameters: Mapping[str, Sequence[str]],
        reason: str | None,
        given_up: threading.Event | None = None,
    ) -> StartedSession:
        """Call StartSession; failed requests are repeated with growing random pauses, throttled ones in their turn.

        Args:
            given_up: ends the waiting for that turn when it is set.

        Raises:
            SessionEnded: ``given_up`` was set; Throttled, if that was while it waited.
            UsageError: the reason is too long, or empty.
            ConfigurationError, TargetNotConnected, AccessDenied, Throttled, DocumentRejected, ControlPlaneError,
            ConnectFailed: see ``error_mapping``.
        """
        # A wrong setting must not leave a session behind that nobody can open.
        check_stream_url(replace_endpoint("wss://stream.invalid/", self._stream_endpoint_url))
        request: dict[str, Any] = {
            "Target": target,
            "Parameters": {name: list(values) for name, values in parameters.items()},
        }
        if document_name is not None:
            request["DocumentName"] = document_name
        if reason is not None:
            if not 0 < len(reason) <= LONGEST_REASON:
                raise UsageError(
                    f"the reason must have 1 to {LONGEST_REASON} characters", hint="shorten it, or leave it out"
                )
            request["Reason"] = reason
        with self._call("StartSession", target=target, document_name=document_name) as session:
            client = session.client()
            with self._budget_of(session, client).start(given_up):
                answer = client.start_session(**request)
            return StartedSession(
                session_id=_text(answer, "SessionId", "StartSession"),
                stream_url=_text(answer, "StreamUrl", "StartSession"),
                token=Secret(_text(answer, "TokenValue", "StartSession")),
            )

    def resume_session(self, session_id: str) -> Secret | None:
        """Call ResumeSession, twice at most: the caller pauses and tries again itself.

        Returns:
            A token for one more opening of the data channel; None when the service says that the session is gone.

        Raises:
            as ``start_session``; the session may still be there.

        Source: docs/PROTOCOL.md sections 1.1 and 2.6.
        """
        with self._call("ResumeSession") as session:
            from botocore.exceptions import ClientError

            try:
                answer = session.client(BRIEF).resume_session(SessionId=session_id)
            except ClientError as error:
                if says_session_is_gone(error.response):
                    return None
                raise
            return Secret(_text(answer, "TokenValue", "ResumeSession")) if answer.get("TokenValue") else None

    def terminate_session(self, session_id: str) -> None:
        """Call TerminateSession. A session that is gone already is no error.

        Against a silent network it takes up to about 4 s and the time of a name look-up, which nothing can bound: who
        has less time must not wait for the thread.

        Raises:
            as ``start_session``.
        """
        with self._call("TerminateSession") as session:
            from botocore.exceptions import ClientError

            try:
                session.client(QUICK).terminate_session(SessionId=session_id)
            except ClientError as error:
                if not says_session_is_gone(error.response):
                    raise

    def generate_data_key(self, *, session_id: str, target: str, key_id: str, challenge: str | None) -> DataKey:
        """Call GenerateDataKey of KMS, in the region and with the credentials of the session.

        Args:
            session_id: of the session.
            target: as given to ``start_session``.
            key_id: the KMS key, as the agent named it.
            challenge: as the agent sent it, which is then part of the encryption context; None if it sent none.

        Raises:
            KmsFailed: KMS refused, and why.
            ConfigurationError, ConnectFailed, TransportTimeout: as ``start_session``.

        Source: docs/PROTOCOL.md sections 7.1 and 7.2.
        """
        from ssm_proxy.aws.kms import encryption_context, generate_data_key

        with self._call("GenerateDataKey", service="kms", kms_key_id=key_id) as session:
            client = session.client(PROMPT, "kms")
            return generate_data_key(client, key_id, encryption_context(session_id, target, challenge))

    def websocket_opening(self, stream_url: str) -> WebSocketOpening:
        """Sign the opening of the WebSocket with credentials as they are now.

        Unlike the official client, which then opens unsigned, missing credentials are an error: an expired login
        must be named here, not guessed from the 403 that the service would answer.

        Raises:
            ConfigurationError: credentials or stream endpoint.
            ControlPlaneError: the URL is not one that a token may be sent to.
        """
        url = replace_endpoint(stream_url, self._stream_endpoint_url)
        parts = check_stream_url(url)
        with self._call("OpenDataChannel") as session:
            headers: dict[str, str] = {}
            if not is_presigned(url):
                region = session.signing_region()
                headers = sign_opening(url, credentials=session.credentials(), region=region)
            proxy = None
            # Nothing for this machine goes through a proxy: it could not come back, and ws:// would show the token.
            if not is_loopback(parts.hostname or ""):
                proxy = session.proxy_url(urlsplit(url)._replace(scheme="https").geturl())
            return WebSocketOpening(
                url=url,
                headers=headers,
                ca_bundle=session.ca_bundle() if parts.scheme == "wss" else None,
                proxy_url=proxy,
            )

    def close(self) -> None:
        """Close the idle connections to the API, without which a process can end too. It can be used again."""
        with self._lock:
            session = self._session
        if session is not None:
            session.close()

    def _call_ecs(self, target: str, operation: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._call(operation, target=target, service="ecs") as session:
            from botocore.exceptions import ClientError

            client = session.client(service="ecs")
            method = {"ListTasks": client.list_tasks, "DescribeTasks": client.describe_tasks}[operation]
            try:
                answer: Mapping[str, Any] = method(**request)
            except ClientError as error:
                details = error.response.get("Error", {})
                if details.get("Code") in _UNKNOWN_IN_ECS:
                    raise TargetNotFound(
                        f"ECS does not know '{target}'",
                        cause=f"{details.get('Code')}: {details.get('Message')}",
                        hint="check region and account, and the names: aws ecs list-clusters; aws ecs list-services",
                    ) from error
                raise
            return answer

    def _ask(self, operation: str, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        service, name, patience, method = _LISTS[operation]
        with self._call(operation, service=service) as session:
            return list(session.client(patience, name).get_paginator(method).paginate(**request))

    def _budget_of(self, session: BotocoreSession, client: Any) -> StartBudget:
        account = session.account()  # may take a look-up of credentials
        with self._lock:
            if self._budget is None or self._budget[0] is not client:
                scope = (account, str(client.meta.region_name), str(client.meta.endpoint_url))
                # Whoever has chosen a number of attempts wants that one.
                repeats = not session.has_chosen_attempts
                self._budget = (client, StartBudget(scope, self._notify, repeats=repeats))
                self._budget[1].register(client)
                client.meta.events.register_last("before-send.ssm.StartSession", self._before_send)
            return self._budget[1]

    def _before_send(self, **_: object) -> None:
        if self._sending_start is not None:
            self._sending_start()

    @contextmanager
    def _call(
        self,
        operation: str,
        *,
        target: str | None = None,
        document_name: str | None = None,
        service: str = "ssm",
        kms_key_id: str | None = None,
    ) -> Iterator[BotocoreSession]:
        session = self._open()
        call = Call(operation, session, target, document_name, service, kms_key_id)
        logger.debug("%s.started", operation)
        try:
            with mapped_errors(call):
                yield session
        except SsmProxyError as error:
            logger.debug("%s.failed %s", operation, type(error).__name__)
            # A new session would ask for an MFA code, on the terminal that ssh is using just now.
            if isinstance(error, ConfigurationError) and not needs_mfa_code(error):
                self._forget(session)
            raise
        logger.debug("%s.complete", operation)

    def _forget(self, session: BotocoreSession) -> None:
        with self._lock:
            if self._session is session:
                self._session = None

    def _open(self) -> BotocoreSession:
        with self._lock:
            if self._session is None:
                self._session = BotocoreSession(
                    profile=self._profile,
                    region=self._region,
                    endpoint_url=self._endpoint_url,
                    existing=self._botocore_session,
                )
            return self._session


def _text(answer: Mapping[str, Any], name: str, operation: str) -> str:
    """Give a member of an answer; botocore does not look whether it is there, nor whether it is text."""
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise ControlPlaneError(
            f"the answer to {operation} is incomplete",
            cause=f"it has no {name}",
            hint="check that the endpoint is a Systems Manager endpoint",
        )
    return value
