"""The operations of the Systems Manager API, on values: no HTTP here.

Source: docs/PROTOCOL.md section 1.1, the public API reference for limits and error names.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from ssm_proxy.emulator.agent_features import AGENT_VERSION
from ssm_proxy.emulator.calls import Answer, ServiceError, check_allowed, invalid, page_of, structures, without_none
from ssm_proxy.emulator.documents import (
    DEFAULT_DOCUMENT,
    ParameterError,
    SessionDocument,
    check_parameters,
    resolve_document,
)
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.managed_nodes import describe_instance_information
from ssm_proxy.emulator.options import Node
from ssm_proxy.emulator.session_table import OWNER, Session, SessionTable

_DOCUMENT_NAME: Final = r"[a-zA-Z0-9_\-.:/]{3,128}"
_ACTIVE: Final = frozenset({"Connected", "Connecting", "Disconnected", "Terminating"})


class SessionStarter(Protocol):
    """What the operations ask of the data plane."""

    def session_started(self, session: Session) -> None: ...
    def terminate(self, session: Session) -> None: ...
    def stream_path(self, session: Session) -> str: ...


class _Bucket:
    """What StartSession calls are answered from; full at first."""

    def __init__(self) -> None:
        self._taken = 0.0
        self._at = 0.0

    def take(self, rate: float, size: int, now: float) -> bool:
        """Take one; none is left when more than ``size`` were taken beyond ``rate`` per second. No rate, no end."""
        if not rate:
            return True
        self._taken = max(0.0, self._taken - rate * (now - self._at))
        self._at = now
        if self._taken > size - 1:
            return False
        self._taken += 1
        return True


class ControlPlane:
    """Answers calls by name.

    Args:
        nodes: by identifier; asked anew each time.
        documents: session documents by name.
        sessions: the table they are kept in.
        data_plane: starts and ends what stands behind a session.
        faults: asked anew each time.
        agent_version: what the agents of all nodes say they are.
    """

    def __init__(
        self,
        *,
        nodes: Mapping[str, Node],
        documents: Mapping[str, SessionDocument],
        sessions: SessionTable,
        data_plane: SessionStarter,
        faults: Callable[[], Faults],
        agent_version: str = AGENT_VERSION,
    ) -> None:
        self._nodes = nodes
        self._documents = documents
        self._sessions = sessions
        self._data_plane = data_plane
        self._faults = faults
        self._agent_version = agent_version
        self._start_calls = 0
        self._refused_resumes = 0
        self._bucket = _Bucket()
        self.start_calls = 0
        """All calls of StartSession, the throttled ones too."""
        self.throttled_starts = 0
        self._operations: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "StartSession": self._start_session,
            "ResumeSession": self._resume_session,
            "TerminateSession": self._terminate_session,
            "DescribeSessions": self._describe_sessions,
            "DescribeInstanceInformation": self._describe_instance_information,
            "GetConnectionStatus": self._get_connection_status,
        }

    def faults_changed(self) -> None:
        """Count the calls of ``throttle_start`` and ``refuse_resume_times`` anew, and fill the bucket of starts."""
        self._start_calls = 0
        self._refused_resumes = 0
        self._bucket = _Bucket()

    def call(self, operation: str, request: Mapping[str, Any]) -> Answer:
        """Answer one call. A StreamUrl in the answer is a path; who knows the listener makes it whole.

        Raises:
            ServiceError: what the caller gets instead.
        """
        method = self._operations.get(operation)
        if method is None:
            raise ServiceError("UnknownOperationException", f"The operation {operation} is not known.")
        check_allowed(self._faults(), "ssm", operation)
        return method(request)

    # --- sessions ------------------------------------------------------------------------------------------------

    def _start_session(self, request: Mapping[str, Any]) -> Answer:
        target = _text(request, "Target", largest=400, required=True)
        name = _text(request, "DocumentName", pattern=_DOCUMENT_NAME) or DEFAULT_DOCUMENT
        reason = _text(request, "Reason", largest=256, pattern=r".{1,256}")
        parameters = _parameters(request)
        self._check_rate()
        document = self._documents.get(name)
        if document is None:
            raise ServiceError("InvalidDocument", f"Document with name {name} does not exist.")
        try:
            check_parameters(document, parameters)
        except ParameterError as error:
            raise ServiceError("InvalidParameters", str(error)) from error
        node = self._nodes.get(target)
        if node is None or not node.is_online:
            raise ServiceError("TargetNotConnected", f"{target} is not connected.")
        resolved = resolve_document(document, parameters)
        return self.add_session(node=node, document_name=name, document=resolved, reason=reason)

    def _check_rate(self) -> None:
        faults = self._faults()
        self.start_calls += 1
        self._start_calls += 1
        if (
            faults.throttle_start < 0
            or self._start_calls <= faults.throttle_start
            or not self._bucket.take(faults.start_rate, faults.start_burst, time.monotonic())
        ):
            self.throttled_starts += 1
            raise ServiceError("ThrottlingException", "Rate exceeded")

    def add_session(self, **values: Any) -> Answer:
        """Start a session that has been checked; the values are those of ``SessionTable.add``."""
        session = self._sessions.add(**values)
        self._data_plane.session_started(session)
        return self._with_token(session)

    def _resume_session(self, request: Mapping[str, Any]) -> Answer:
        session = self._session(request)
        refusal = self._resume_refusal()
        if refusal == "error":
            raise ServiceError("InternalServerError", "An error occurred on the server side.", status=500)
        if refusal == "throttle":
            raise ServiceError("ThrottlingException", "Rate exceeded")
        if session.is_over or refusal == "gone":
            return {"SessionId": session.session_id}
        return self._with_token(session)

    def _resume_refusal(self) -> str:
        faults = self._faults()
        if not faults.refuse_resume or (
            faults.refuse_resume_times and self._refused_resumes >= faults.refuse_resume_times
        ):
            return ""
        self._refused_resumes += 1
        return faults.refuse_resume

    def _terminate_session(self, request: Mapping[str, Any]) -> Answer:
        session = self._session(request)
        self._data_plane.terminate(session)
        return {"SessionId": session.session_id}

    def _with_token(self, session: Session) -> Answer:
        return {
            "SessionId": session.session_id,
            "StreamUrl": self._data_plane.stream_path(session),
            "TokenValue": self._sessions.issue_token(session),
        }

    def _session(self, request: Mapping[str, Any]) -> Session:
        session_id = _text(request, "SessionId", largest=96, required=True)
        session = self._sessions.find(session_id)
        if session is None:
            raise ServiceError("DoesNotExistException", f"Session {session_id} does not exist.")
        return session

    def _describe_sessions(self, request: Mapping[str, Any]) -> Answer:
        state = _text(request, "State", required=True)
        if state not in ("Active", "History"):
            raise invalid(state, "state", "Member must satisfy enum value set: [Active, History]")
        sessions = [each for each in self._sessions.all() if (each.status in _ACTIVE) == (state == "Active")]
        for wanted in structures(request, "Filters", largest=6):
            sessions = [each for each in sessions if _matches(each, wanted)]
        values = [_session_value(each) for each in reversed(sessions)]
        return page_of("Sessions", values, request, smallest=1, largest=200, default=50)

    # --- nodes ---------------------------------------------------------------------------------------------------

    def _get_connection_status(self, request: Mapping[str, Any]) -> Answer:
        target = _text(request, "Target", largest=400, required=True)
        node = self._nodes.get(target)
        return {"Target": target, "Status": "connected" if node is not None and node.is_online else "notconnected"}

    def _describe_instance_information(self, request: Mapping[str, Any]) -> Answer:
        return describe_instance_information(request, tuple(self._nodes.values()), self._agent_version)


def _session_value(session: Session) -> Answer:
    return without_none(
        {
            "SessionId": session.session_id,
            "Target": session.node.node_id,
            "Status": session.status,
            "StartDate": session.start_date,
            "EndDate": session.end_date,
            "DocumentName": session.document_name,
            "Owner": OWNER,
            "Reason": session.reason or None,
            "Details": session.details or None,
        }
    )


def _matches(session: Session, wanted: Mapping[str, Any]) -> bool:
    key, value = wanted.get("key"), wanted.get("value")
    if not isinstance(key, str) or not isinstance(value, str) or not 1 <= len(value) <= 400:
        raise ServiceError("InvalidFilterKey", "A filter has no key, or no value.")
    members = {
        "Target": session.node.node_id,
        "Owner": OWNER,
        "Status": session.status,
        "SessionId": session.session_id,
        "AccessType": "Standard",
    }
    if key in members:
        return members[key] == value
    if key not in ("InvokedAfter", "InvokedBefore"):
        raise ServiceError("InvalidFilterKey", f"The filter key {key} is not valid.")
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise ServiceError("InvalidFilterKey", f"The filter value {value} is no time.") from None
    return session.start_date >= moment if key == "InvokedAfter" else session.start_date <= moment


# --- validation ----------------------------------------------------------------------------------------------------


def _text(
    request: Mapping[str, Any], name: str, *, largest: int | None = None, required: bool = False, pattern: str = ""
) -> str:
    value = request.get(name)
    member = name[0].lower() + name[1:]
    if value is None:
        if required:
            raise invalid(None, member, "Member must not be null")
        return ""
    if not isinstance(value, str):
        raise ServiceError("SerializationException", f"{name} is not a string")
    if not value:
        raise invalid(value, member, "Member must have length greater than or equal to 1")
    if largest is not None and len(value) > largest:
        raise invalid(value, member, f"Member must have length less than or equal to {largest}")
    if pattern and not re.fullmatch(pattern, value):
        raise invalid(value, member, f"Member must satisfy regular expression pattern: ^{pattern}$")
    return value


def _parameters(request: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    value = request.get("Parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ServiceError("SerializationException", "Parameters is not a map")
    for name, texts in value.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ServiceError("SerializationException", "a value of Parameters is not a list of strings")
        if not 1 <= len(name) <= 255:
            raise invalid(name, "parameters", "Map keys must have length between 1 and 255")
    return value
