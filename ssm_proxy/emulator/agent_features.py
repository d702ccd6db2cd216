"""Which version of the agent brought what: the emulator's agent behaves as the version that it is told to be.

Source: the release notes of amazon-ssm-agent; docs/PROTOCOL.md sections 6.6 and 6.7.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from ssm_proxy.emulator.versions import compare_versions

AGENT_VERSION: Final = "3.3.987.0"
"""What the agent says it is, unless told otherwise."""


class Feature(Enum):
    """Each with the first version that has it."""

    HANDSHAKE = "2.3.539"
    """And encryption. Before, shells only, always without a handshake."""
    INTERACTIVE_COMMANDS = "2.3.668"
    PORT_SESSIONS = "2.3.672"
    LOCAL_FORWARDING = "2.3.707"
    """``type`` is looked at; before, every port session is of the stream kind."""
    DISCONNECT_TO_PORT = "2.3.714"
    TERMINATE_FLAG = "2.3.756"
    REFUSED_INPUT = "3.0.655"
    """Input that comes too early is not acknowledged; before, it is acknowledged and lost."""
    MUX = "3.0.222"
    DRAIN = "3.0.732"
    """Output is acknowledged before the end, and a pause stops the readers."""
    NON_INTERACTIVE_COMMANDS = "3.0.1124"
    REMOTE_HOST = "3.1.1188"
    DENIED_HOSTS = "3.1.1374"
    SEPARATE_OUTPUT_STREAMS = "3.1.1511"
    MUX_WITHOUT_KEEPALIVE = "3.1.1575"
    """If the client's version is new enough too."""
    REPEATED_ACKNOWLEDGES = "3.2.1041"
    """Input that comes again is acknowledged again; before, it is ignored."""
    RANDOM_CHALLENGE = "3.3.808"
    """In the encryption context, and nonces that count."""


def agent_has(version: str, feature: Feature) -> bool:
    """Say whether an agent of this version (four numbers) has a feature."""
    return compare_versions(version, feature.value) >= 0
