"""The emulator's own decoders: what a client may send it."""

from __future__ import annotations

import datetime
import functools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from fuzz.choices import Choices
from fuzz.wire_targets import MEMBERS, repair_digest

from ssm_proxy.emulator.calls import ServiceError
from ssm_proxy.emulator.control_plane import ControlPlane
from ssm_proxy.emulator.documents import SERVICE_DOCUMENTS
from ssm_proxy.emulator.faults import Faults, change_faults
from ssm_proxy.emulator.inspection import DeafeningMessage, read_message
from ssm_proxy.emulator.options import Credentials, Node
from ssm_proxy.emulator.session_table import Session, SessionTable
from ssm_proxy.emulator.signatures import SignatureRefused, SignedRequest, verify_signature
from ssm_proxy.errors import ProtocolError, UsageError
from ssm_proxy.wire.agent_message import decode_agent_message


def check_read_message(data: bytes) -> None:
    """The agent's parser; where both read a message, both read the same."""
    repair, data = data[:1] > b"\x7f", data[1:]
    if repair:
        data = repair_digest(data)
    defects: Counter[str] = Counter()
    try:
        message = read_message(data, defects)
    except DeafeningMessage:
        assert defects
        return
    if message is None:
        assert defects
        return
    try:
        ours = decode_agent_message(data)
    except ProtocolError:
        return
    if ours.header_length >= 116:
        assert message.payload == ours.payload
        assert message.message_id == ours.message_id
        assert message.sequence_number == ours.sequence_number
        assert message.payload_type == ours.payload_type


def check_signature(data: bytes) -> None:
    """Headers of any content: nobody gets in who does not know the key."""
    choices = Choices(data)
    headers = {"host": "h", "x-amz-date": "20261122T000000Z"}
    scope = "Credential=AKID/20261122/eu-west-1/ssm/aws4_request"
    if choices.below(2):
        headers["authorization"] = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host;x-amz-date, Signature=" + "0" * 64
    for _ in range(choices.below(4)):
        name = choices.one_of(("authorization", "x-amz-date", "x-amz-security-token", "host"))
        headers[name] = choices.take(choices.byte()).decode("latin-1")
    request = SignedRequest(
        method="POST",
        path=choices.take(choices.below(32)).decode("latin-1"),
        query=choices.take(choices.below(32)).decode("latin-1"),
        headers=headers,
        body=choices.rest(),
    )
    try:
        verify_signature(
            request,
            service="ssm",
            credentials=Credentials(access_key_id="AKID", secret_access_key="unknown", session_token=None),
            now=datetime.datetime(2026, 11, 22, tzinfo=datetime.timezone.utc),
        )
    except SignatureRefused as refusal:
        assert "unknown" not in refusal.message  # noqa: PT017
    else:
        raise AssertionError("a signature was accepted that nobody made")


class _DataPlane:
    def session_started(self, session: Session) -> None:
        """Nothing runs behind it."""

    def terminate(self, session: Session) -> None:
        """Nothing runs behind it."""

    def stream_path(self, session: Session) -> str:
        return f"/v1/data-channel/{session.session_id}"


_OPERATIONS = (
    "StartSession",
    "ResumeSession",
    "TerminateSession",
    "DescribeSessions",
    "DescribeInstanceInformation",
    "GetConnectionStatus",
    "NoSuchThing",
)
_MEMBERS = (
    "Target",
    "DocumentName",
    "Reason",
    "Parameters",
    "SessionId",
    "State",
    "MaxResults",
    "NextToken",
    "Filters",
    "InstanceInformationFilterList",
)
_FILTER_MEMBERS = ("Key", "Values", "key", "value", "valueSet")
_NODE = "i-0123456789abcdef0"


def check_emulated_calls(data: bytes) -> None:
    """A few calls one after the other, of any content."""
    choices = Choices(data)
    faults = Faults()
    plane = ControlPlane(
        nodes={_NODE: Node(node_id=_NODE)},
        documents=SERVICE_DOCUMENTS,
        sessions=SessionTable(60.0),
        data_plane=_DataPlane(),
        faults=lambda: faults,
    )
    for _ in range(1 + choices.below(4)):
        request: dict[str, Any] = {}
        if choices.below(2):
            request = {"Target": _NODE, "DocumentName": "AWS-StartSSHSession", "Parameters": {"portNumber": ["22"]}}
            request |= {"State": "Active", "Filters": [choices.object(_FILTER_MEMBERS)]}
        request |= choices.object(_MEMBERS)
        try:
            answer = plane.call(choices.one_of(_OPERATIONS), request)
        except ServiceError as error:
            assert error.error_type  # noqa: PT017
        else:
            json.dumps(answer)


def check_faults(data: bytes) -> None:
    """Faults as the control endpoint takes them."""
    choices = Choices(data)
    try:
        changed = change_faults(Faults(), choices.object(_fault_names()))
    except UsageError:
        return
    for direction in ("input", "output"):
        assert changed.shapes(direction) in (False, True)


@functools.cache
def _fault_names() -> tuple[str, ...]:
    return (*Faults.__dataclass_fields__, *MEMBERS[:2])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "read_message": check_read_message,
    "signature": check_signature,
    "emulated_calls": check_emulated_calls,
    "faults": check_faults,
}
