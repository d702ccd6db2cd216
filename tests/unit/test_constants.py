"""Names and numbers as docs/PROTOCOL.md sections 2.1.1, 3, 4 and 6 have them, written out once more."""

from __future__ import annotations

from ssm_proxy.wire import constants
from ssm_proxy.wire.constants import ActionStatus, Flag, MessageType, PayloadType, SessionType


def public(holder: type) -> dict[str, str]:
    return {name: value for name, value in vars(holder).items() if name.isupper()}


def test_message_types() -> None:
    assert public(MessageType) == {
        "INPUT": "input_stream_data",
        "OUTPUT": "output_stream_data",
        "ACKNOWLEDGE": "acknowledge",
        "CHANNEL_CLOSED": "channel_closed",
        "START_PUBLICATION": "start_publication",
        "PAUSE_PUBLICATION": "pause_publication",
        "AGENT_SESSION_STATE": "agent_session_state",
    }


def test_payload_types() -> None:
    assert [member.name for member in sorted(PayloadType)] == [
        "NONE",
        "OUTPUT",
        "ERROR",
        "SIZE",
        "PARAMETER",
        "HANDSHAKE_REQUEST",
        "HANDSHAKE_RESPONSE",
        "HANDSHAKE_COMPLETE",
        "ENC_CHALLENGE_REQUEST",
        "ENC_CHALLENGE_RESPONSE",
        "FLAG",
        "STDERR",
        "EXIT_CODE",
    ]
    assert sorted(PayloadType) == list(range(13))


def test_flags_and_statuses() -> None:
    assert {member.name: member.value for member in Flag} == {
        "DISCONNECT_TO_PORT": 1,
        "TERMINATE_SESSION": 2,
        "CONNECT_TO_PORT_ERROR": 3,
    }
    assert {member.name: member.value for member in ActionStatus} == {"SUCCESS": 1, "FAILED": 2, "UNSUPPORTED": 3}
    assert (constants.SYN, constants.SYN_FIN) == (1, 3)


def test_session_types_and_actions() -> None:
    assert sorted(public(SessionType).values()) == [
        "InteractiveCommands",
        "NonInteractiveCommands",
        "Port",
        "Standard_Stream",
    ]
    assert (constants.ACTION_SESSION_TYPE, constants.ACTION_KMS_ENCRYPTION) == ("SessionType", "KMSEncryption")


def test_header_sizes() -> None:
    assert (constants.HEADER_LENGTH, constants.SHORT_HEADER_LENGTH) == (116, 112)
    assert (constants.SCHEMA_VERSION, constants.MESSAGE_TYPE_BYTES) == (1, 32)


def test_the_client_version_passes_every_gate() -> None:
    version = tuple(int(part) for part in constants.CLIENT_VERSION.split("."))
    assert len(version) == 4  # three parts count as old (12.17)
    assert version >= (1, 2, 764, 0)  # the service's minimum (2.1.1)
