"""Shells (Standard_Stream) and interactive commands: a process on a pseudo-terminal.

Source: amazon-ssm-agent, agent/session/shell/shell.go and shell_unix.go, agent/session/plugins/singlecommand/;
docs/PROTOCOL.md sections 8.2, 8.3 and 9.1.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from typing import Any, Final

from ssm_proxy.emulator.plugins import FAILED, PIECE_BYTES, SUCCESS, Outcome, PluginHost
from ssm_proxy.emulator.plugins.characters import CharacterCutter
from ssm_proxy.emulator.terminal import (
    Descriptor,
    end_process,
    login_environment,
    set_terminal_size,
    start_on_terminal,
)
from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.constants import PayloadType, SessionType
from ssm_proxy.wire.shell_payloads import TerminalSize, decode_size

START_FAILURE_S: Final = 2.0
"""From a start that failed to its report (8.2)."""
_SILENCE_S: Final = 1.0
"""From the start of the process to its first output (8.2)."""
_ERROR_TITLE: Final = "----------ERROR-------\n"


class Shell:
    """See :class:`ssm_proxy.emulator.plugins.Plugin`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._process: Process | None = None
        self._terminal: Descriptor | None = None
        self._to_write: list[bytes | TerminalSize] = []

    async def serve(self) -> Outcome:
        host = self._host
        arguments = ["sh"]
        if host.session_type == SessionType.INTERACTIVE_COMMANDS:
            try:
                arguments += ["-c", text_property(command_properties(host), "commands")]
            except PropertiesError as error:
                return FAILED, str(error)
        waits = host.faults().agent_waits
        try:
            self._process, self._terminal = await start_on_terminal(arguments[0], arguments, node_environment())
        except OSError as error:
            await asyncio.sleep(START_FAILURE_S * waits)
            return FAILED, error_output(f"Unable to start command: Failed to start pty: {error}\n\n")
        profile = shell_profile(host.inputs)
        if host.session_type == SessionType.STANDARD_STREAM and profile.strip():
            await self._terminal.write(profile.encode() + b"\n")
        await asyncio.sleep(_SILENCE_S * waits)
        await self._pump(self._terminal)
        await host.drain()
        host.tell_terminating()
        await self._process.wait()
        return SUCCESS, ""

    async def _pump(self, terminal: Descriptor) -> None:
        host = self._host
        cutter = CharacterCutter()
        while True:
            await host.room()
            data = await terminal.read(PIECE_BYTES)
            if not data:
                return
            await host.awake()
            if data := cutter.push(data):
                host.send(PayloadType.OUTPUT, data)
            await host.pace()

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if self._terminal is None:
            return False
        if payload_type == PayloadType.OUTPUT:
            self._to_write.append(payload)
        elif payload_type == PayloadType.SIZE:
            try:
                self._to_write.append(decode_size(payload))
            except MalformedMessage as error:
                self._host.log(f"invalid size message: {error.message}")
                return False
        return True

    async def write_pending(self) -> bool:
        if not self._to_write or self._terminal is None:
            return True
        pending, self._to_write = self._to_write, []
        try:
            for each in pending:
                if isinstance(each, TerminalSize):
                    set_terminal_size(self._terminal.number, (each.columns, each.rows, 0, 0))
                else:
                    await self._terminal.write(each)
        except OSError:  # the reading side reports the end
            return False
        return True

    def terminate(self) -> None:
        pass

    async def hang_up(self) -> None:
        if self._terminal is not None:
            self._terminal.close()
        if self._process is not None:
            await end_process(self._process)


class PropertiesError(ValueError):
    """The document's properties are not those of a command; the text is the agent's, for the task's output."""


def command_properties(host: PluginHost) -> Mapping[str, Any]:
    """Give what the properties say for this platform.

    Raises:
        PropertiesError: they have another shape, or there is no command in them.
    """
    properties = host.properties
    values = properties.get("macos" if sys.platform == "darwin" else "linux") if isinstance(properties, dict) else None
    if not isinstance(values, dict):
        raise PropertiesError(
            f"Invalid format in session properties {properties};\nerror: no commands for this platform"
        )
    if not text_property(values, "commands").strip():
        raise PropertiesError(f"Commands cannot be empty for session type {host.session_type}")
    return values


def text_property(values: Mapping[str, Any], name: str) -> str:
    """Give a text, empty if it is missing.

    Raises:
        PropertiesError: it is something else.
    """
    value = values.get(name, "")
    if not isinstance(value, str):
        raise PropertiesError(f"Invalid format in session properties {values};\nerror: {name} is not a string")
    return value


def shell_profile(inputs: Mapping[str, Any]) -> str:
    """Give what a document wants typed at the start of a shell; empty if nothing."""
    profile = inputs.get("shellProfile")
    text = profile.get("linux", "") if isinstance(profile, dict) else ""
    return text if isinstance(text, str) else ""


def node_environment() -> dict[str, str]:
    """Give the environment of shells and commands (8.2)."""
    return {"LANG": "C.UTF-8"} | login_environment() | {"TERM": "xterm-256color"}


def error_output(text: str) -> str:
    """Give the task's output for what failed before the session's work began (9.3)."""
    return _ERROR_TITLE + text
