"""What the end of a session means to the commands that wait for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from simulation.pair import make_channel

from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.cli.any_session import _Choice
from ssm_proxy.cli.commands.shell import TerminalEnd, shell_status
from ssm_proxy.cli.session_command import Surroundings
from ssm_proxy.errors import ChannelClosed, HandshakeFailed, SessionEnded
from ssm_proxy.transport.bridge import BridgeOutcome
from ssm_proxy.transport.command_output import CommandOutput
from ssm_proxy.wire.constants import SessionType

NODE = "i-0123456789abcdef0"
MISSING = f"some of what {NODE} sent did not arrive"
INTERRUPTED = 130


def outcome(reason: str = "", *, is_missing: bool = True) -> BridgeOutcome:
    return BridgeOutcome(closed_reason=reason, signal_number=None, output_is_missing=is_missing)


@pytest.fixture
def choice() -> Iterator[_Choice]:
    reader, writer = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        yield _Choice(cast(Surroundings, None), NODE, (reader, writer), stack, INTERRUPTED)


def command_of(choice: _Choice) -> CommandOutput:
    event = SessionStarted(SessionType.NON_INTERACTIVE_COMMANDS, {}, "3.3.0.0", "")
    command = choice.choose(make_channel(), event)
    assert isinstance(command, CommandOutput)
    return command


def test_a_session_that_had_not_begun(choice: _Choice) -> None:
    assert choice.status(outcome(is_missing=False)) == 0
    with pytest.raises(SessionEnded, match=MISSING):
        choice.status(outcome())
    with pytest.raises(HandshakeFailed):
        choice.status(outcome("no shell"))


@pytest.mark.parametrize("code", [None, 0, 3])
def test_a_document_that_runs_a_command(choice: _Choice, code: int | None) -> None:
    command_of(choice).code = code
    assert choice.status(outcome(is_missing=False)) == (code or 0)
    with pytest.raises(SessionEnded, match=MISSING):
        choice.status(outcome())


def test_a_command_that_ctrl_c_has_ended(choice: _Choice) -> None:
    command = command_of(choice)
    command.interrupt_count = 1
    assert choice.status(outcome()) == INTERRUPTED, "nobody takes its output for whole"
    command.code = 0
    with pytest.raises(SessionEnded, match=MISSING):
        choice.status(outcome())


def test_a_shell() -> None:
    shell: Any = SimpleNamespace(was_interrupted=False, was_left=False, reader_is_gone=False, has_started=True)
    assert shell_status(TerminalEnd(outcome(is_missing=False), shell), NODE) == 0
    with pytest.raises(SessionEnded, match=MISSING):
        shell_status(TerminalEnd(outcome(), shell), NODE)
    with pytest.raises(ChannelClosed):
        shell_status(TerminalEnd(outcome("the idle timeout"), shell), NODE)
