"""Commands without a terminal (NonInteractiveCommands).

Source: amazon-ssm-agent, agent/session/shell/shell.go and shell_unix.go, agent/session/plugins/singlecommand/;
docs/PROTOCOL.md section 8.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from typing import Any, Final

from ssm_proxy.emulator.agent_features import Feature, agent_has
from ssm_proxy.emulator.plugins import FAILED, PIECE_BYTES, SUCCESS, Outcome, PluginHost
from ssm_proxy.emulator.plugins.characters import CharacterCutter
from ssm_proxy.emulator.plugins.shell import (
    START_FAILURE_S,
    PropertiesError,
    command_properties,
    error_output,
    node_environment,
    text_property,
)
from ssm_proxy.emulator.plugins.words import WordError, split_words
from ssm_proxy.emulator.terminal import Descriptor, end_process, home_folder
from ssm_proxy.emulator.versions import compare_versions
from ssm_proxy.wire.constants import PayloadType, SessionType
from ssm_proxy.wire.shell_payloads import encode_exit_code

_SIGNALS: Final = {0x03: signal.SIGINT, 0x1C: signal.SIGQUIT}
_PREFIX: Final = re.compile(r"[0-9a-zA-Z\r\n_:-]{0,30}", re.ASCII)
_ERROR_DELAY_S: Final = 1.0
"""Before the text of an error is sent (12.26)."""
_STREAMS: Final = (
    (PayloadType.OUTPUT, "stdOutSeparatorPrefix", "stdoutSeparatorPrefix"),
    (PayloadType.STDERR, "stdErrSeparatorPrefix", "stderrSeparatorPrefix"),
)
"""Payload type, property, and how the agent's error calls it."""


class Command:
    """See :class:`ssm_proxy.emulator.plugins.Plugin`."""

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._process: Process | None = None
        self._pipes: list[Descriptor] = []
        self._signal: signal.Signals | None = None

    async def serve(self) -> Outcome:
        host = self._host
        try:
            properties = command_properties(host)
            prefixes = _prefixes(properties) if wants_separate_streams(host) else None
        except PropertiesError as error:
            return FAILED, str(error)
        try:
            words = split_words(text_property(properties, "commands"))
        except WordError as error:
            text = f"Unable to start command: Failed to parse commands input: {error}\n\n"
            await asyncio.sleep(START_FAILURE_S * host.faults().agent_waits)
            await self._send_error(text)
            return FAILED, error_output(text)
        if not words:  # nothing but a comment: the agent's worker crashes
            return FAILED, "document process failed unexpectedly: document worker process exited with status 2"
        with tempfile.TemporaryFile() as collected:
            try:
                if prefixes is None:
                    self._process = await _start(words, collected.fileno(), collected.fileno())
                else:
                    self._process = await self._start_with_pipes(words)
            except OSError as error:
                reason = _go_start_error(words[0], error)
                if prefixes is not None:
                    host.send(PayloadType.EXIT_CODE, encode_exit_code(1))
                await self._send_error(reason)
                return FAILED, error_output(f"Error occurred starting the command: {reason}\n")
            if prefixes is None:
                await self._process.wait()
                await self._send_collected(collected.fileno())
                outcome = SUCCESS, ""
            else:
                outcome = await self._send_streams(self._process, prefixes)
        await host.drain()
        host.tell_terminating()
        return outcome

    async def _start_with_pipes(self, words: list[str]) -> Process:
        ends = []
        try:
            for _ in _STREAMS:
                reading, writing = os.pipe()
                self._pipes.append(Descriptor(reading))
                ends.append(writing)
            return await _start(words, *ends)
        finally:
            for end in ends:
                os.close(end)

    async def _send_collected(self, collected: int) -> None:
        host = self._host
        cutter = CharacterCutter()
        position = 0  # our own: what the command left in the background writes at the file's
        while data := os.pread(collected, PIECE_BYTES, position):
            position += len(data)
            await host.room()
            await host.awake()
            if data := cutter.push(data):
                host.send(PayloadType.OUTPUT, data)
            await host.pace()

    async def _send_streams(self, process: Process, prefixes: tuple[bytes, bytes]) -> Outcome:
        pumps = [
            self._pump(pipe, payload_type, prefix)
            for pipe, (payload_type, _, _), prefix in zip(self._pipes, _STREAMS, prefixes, strict=True)
        ]
        is_complete = all(await asyncio.gather(*pumps))
        status = await process.wait()
        if not self._host.is_paused:
            self._host.send(PayloadType.EXIT_CODE, encode_exit_code(max(status, -1)))  # -1: ended by a signal
        return (SUCCESS if is_complete else FAILED), ""

    async def _pump(self, pipe: Descriptor, payload_type: int, prefix: bytes) -> bool:
        """Send one stream while the command runs; False: given up, because the service told the agent to pause."""
        host = self._host
        cutter = CharacterCutter()
        needs_prefix = True
        while True:
            if host.is_paused:
                host.log("data channel not in active status")
                return False
            await host.room()
            data = await pipe.read(PIECE_BYTES - len(prefix))
            if not data:
                return True
            await host.awake()
            piece = cutter.push(prefix + data if needs_prefix else data)
            needs_prefix = data.endswith(b"\n")
            if piece:
                host.send(payload_type, piece)
            await host.pace()

    async def _send_error(self, text: str) -> None:
        await asyncio.sleep(_ERROR_DELAY_S * self._host.faults().agent_waits)
        self._host.send(PayloadType.STDERR, text.encode())
        await self._host.drain()

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        if payload_type == PayloadType.OUTPUT and self._signal is None:
            self._signal = next((_SIGNALS[byte] for byte in payload if byte in _SIGNALS), None)
        return True

    async def write_pending(self) -> bool:
        """Deliver a signal; the agent's reading thread then waits for the end of the process."""
        number, self._signal = self._signal, None
        if number is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)  # it alone, not what it has started (execcmd.go)
            await self._process.wait()
        return True

    def terminate(self) -> None:
        pass

    async def hang_up(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        if self._process is not None:
            await end_process(self._process)


async def _start(words: list[str], stdout: int, stderr: int) -> Process:
    environment = node_environment()
    program = shutil.which(words[0], path=environment.get("PATH"))
    if program is None and "/" not in words[0]:
        raise FileNotFoundError(words[0])
    return await asyncio.create_subprocess_exec(
        *words,
        executable=program or words[0],
        stdin=DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        cwd=home_folder(),
        env=environment,
    )


def wants_separate_streams(host: PluginHost) -> bool:
    """Say whether standard output and standard error go apart, and the exit code with them.

    Raises:
        PropertiesError: the properties cannot be read.
    """
    value = command_properties(host).get("separateOutputStream", False)
    if not agent_has(host.agent_version, Feature.SEPARATE_OUTPUT_STREAMS) or value == "":
        return False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise PropertiesError(f"fail to get separateOutPutStream property: unable to convert '{value}'")
    return value


def update_request(host: PluginHost) -> str:
    """Give the text for the user of a client that does not know separate streams (6.5, 6.6); empty for others."""
    if (
        host.session_type != SessionType.NON_INTERACTIVE_COMMANDS
        or compare_versions(host.client_version, "1.2.295") > 0
    ):
        return ""
    try:
        is_separate = wants_separate_streams(host)
    except PropertiesError:
        return ""
    text = "Please update session manager plugin version (minimum required version 1.2.312.0) to separate the outputs."
    return text if is_separate else ""


def _prefixes(properties: Mapping[str, Any]) -> tuple[bytes, bytes]:
    texts = []
    for _, name, shown in _STREAMS:
        text = text_property(properties, name)
        if not _PREFIX.fullmatch(text):
            raise PropertiesError(f"invalid {shown} {text}")
        texts.append(text.encode())
    return texts[0], texts[1]


def _go_start_error(program: str, error: OSError) -> str:
    """Name the failure of a start as the agent's language does."""
    if "/" not in program and isinstance(error, FileNotFoundError):
        return f'exec: "{program}": executable file not found in $PATH'
    return f"fork/exec {program}: {os.strerror(error.errno or 0).lower()}"
