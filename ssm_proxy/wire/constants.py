"""Names and numbers of the data channel, each as the official programs write it.

Source: session-manager-plugin, src/message/clientmessage.go; amazon-ssm-agent,
agent/session/contracts/model.go; docs/PROTOCOL.md sections 3 and 4.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class MessageType:
    """Names in the MessageType field (4.1)."""

    INPUT: Final = "input_stream_data"
    OUTPUT: Final = "output_stream_data"
    ACKNOWLEDGE: Final = "acknowledge"
    CHANNEL_CLOSED: Final = "channel_closed"
    START_PUBLICATION: Final = "start_publication"
    PAUSE_PUBLICATION: Final = "pause_publication"
    AGENT_SESSION_STATE: Final = "agent_session_state"


class PayloadType(IntEnum):
    """What the payload of a stream message is (4.2)."""

    NONE = 0
    OUTPUT = 1
    ERROR = 2
    SIZE = 3
    PARAMETER = 4
    HANDSHAKE_REQUEST = 5
    HANDSHAKE_RESPONSE = 6
    HANDSHAKE_COMPLETE = 7
    ENC_CHALLENGE_REQUEST = 8
    ENC_CHALLENGE_RESPONSE = 9
    FLAG = 10
    STDERR = 11
    EXIT_CODE = 12


class Flag(IntEnum):
    """Payload of a FLAG message, u32 big-endian (4.3)."""

    DISCONNECT_TO_PORT = 1
    TERMINATE_SESSION = 2
    CONNECT_TO_PORT_ERROR = 3


class ActionStatus(IntEnum):
    """Outcome of one requested action of the handshake (6.4)."""

    SUCCESS = 1
    FAILED = 2
    UNSUPPORTED = 3


class SessionType:
    """Session types that a session document can name (1.3)."""

    STANDARD_STREAM: Final = "Standard_Stream"
    INTERACTIVE_COMMANDS: Final = "InteractiveCommands"
    NON_INTERACTIVE_COMMANDS: Final = "NonInteractiveCommands"
    PORT: Final = "Port"


ACTION_SESSION_TYPE: Final = "SessionType"
ACTION_KMS_ENCRYPTION: Final = "KMSEncryption"

SYN: Final = 1
"""Header flag of the first message of a stream; nobody reads it (4.4)."""
SYN_FIN: Final = 3
"""Header flags of acknowledges (4.4)."""

HEADER_LENGTH: Final = 116
"""HeaderLength of the long form: offset of PayloadLength, so 4 less than the offset of the payload (3.1)."""
SHORT_HEADER_LENGTH: Final = 112
"""HeaderLength of messages that the service makes itself; they have no PayloadType (3.2)."""
SCHEMA_VERSION: Final = 1
MESSAGE_TYPE_BYTES: Final = 32

CLIENT_VERSION: Final = "1.2.896.0"
"""What we report. At least 1.2.764.0, the service's stated minimum, which is also the one that signs the opening as
we do (2.1.1). It decides how the agent speaks: 1.1.70 and later mean mux, later than 1.2.331.0 no mux keepalive (6.6).
"""
