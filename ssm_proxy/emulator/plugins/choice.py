"""Which plugin a session gets.

Source: docs/PROTOCOL.md sections 1.3, 6.6, 6.7 and 8.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.plugins import Plugin, PluginHost
from ssm_proxy.emulator.plugins.basic_port import BasicPort
from ssm_proxy.emulator.plugins.command import Command
from ssm_proxy.emulator.plugins.mux_port import MuxPort, knows_mux
from ssm_proxy.emulator.plugins.shell import Shell
from ssm_proxy.emulator.plugins.stream_port import StreamPort
from ssm_proxy.wire.constants import SessionType

_NEEDED: Final[Mapping[str, Feature | None]] = {
    SessionType.STANDARD_STREAM: None,
    SessionType.INTERACTIVE_COMMANDS: Feature.INTERACTIVE_COMMANDS,
    SessionType.NON_INTERACTIVE_COMMANDS: Feature.NON_INTERACTIVE_COMMANDS,
    SessionType.PORT: Feature.PORT_SESSIONS,
}


def is_supported(session_type: str, agent_version: str) -> bool:
    """Say whether an agent of this version has a plugin of the type's name."""
    if session_type not in _NEEDED:
        return False
    feature = _NEEDED[session_type]
    return feature is None or agent_has(agent_version, feature)


def choose_plugin(host: PluginHost) -> Plugin:
    """Give the plugin of a session of a supported type, whose handshake, if it has one, is complete."""
    if host.session_type == SessionType.NON_INTERACTIVE_COMMANDS:
        return Command(host)
    if host.session_type != SessionType.PORT:
        return Shell(host)
    properties = host.properties if isinstance(host.properties, dict) else {}
    forwards = agent_has(host.agent_version, Feature.LOCAL_FORWARDING)
    if properties.get("type") != "LocalPortForwarding" or not forwards:
        return StreamPort(host)
    return MuxPort(host) if knows_mux(host.client_version, host.agent_version) else BasicPort(host)
