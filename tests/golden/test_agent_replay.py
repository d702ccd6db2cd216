"""The recorded client against the emulator's agent: it must say what the real agent said, in the same order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from transcripts import Record, records

from ssm_proxy.emulator import Faults
from ssm_proxy.emulator.agent_session import AgentSession
from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.emulator.documents import SERVICE_DOCUMENTS, ResolvedDocument, resolve_document
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message
from ssm_proxy.wire.constants import MessageType, PayloadType
from ssm_proxy.wire.payloads import decode_acknowledge

pytestmark = pytest.mark.integration  # real processes

COMMAND = "#!/bin/sh\necho to-stdout\necho to-stderr >&2\nexit 7\n"
DEADLINE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an agent says, without what differs from run to run."""

    states: list[str]
    """Payloads of agent_session_state."""
    payload_types: list[int]
    """Of output, runs of the same one as one: how a terminal's text is cut into messages is chance."""
    output: dict[int, bytes]
    """Joined payloads by type."""
    acknowledged: list[int]


def said_by(messages: Sequence[AgentMessage]) -> Said:
    numbered = {message.sequence_number: message for message in messages if message.message_type == MessageType.OUTPUT}
    assert sorted(numbered) == list(range(len(numbered)))
    payload_types: list[int] = []
    output: dict[int, bytes] = {}
    for number in sorted(numbered):
        message = numbered[number]
        if payload_types[-1:] != [message.payload_type]:
            payload_types.append(message.payload_type)
        payload = message.payload
        if message.payload_type == PayloadType.HANDSHAKE_COMPLETE:
            payload = b'"CustomerMessage"' + payload.partition(b'"CustomerMessage"')[2]  # without its time
        # The prompt says who runs it.
        output[message.payload_type] = output.get(message.payload_type, b"") + payload.replace(b"# ", b"$ ")
    acknowledges = [message.payload for message in messages if message.message_type == MessageType.ACKNOWLEDGE]
    return Said(
        states=[m.payload.decode() for m in messages if m.message_type == MessageType.AGENT_SESSION_STATE],
        payload_types=payload_types,
        output=output,
        acknowledged=sorted({decode_acknowledge(payload).sequence_number for payload in acknowledges}),
    )


class Recorder:
    """The agent's uplink: keeps what it says."""

    def __init__(self) -> None:
        self.messages: list[AgentMessage] = []
        self.outcome: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def send(self, messages: Sequence[bytes]) -> None:
        self.messages += [decode_agent_message(message) for message in messages]

    async def room(self) -> None:
        pass

    def task_complete(self, status: str, output: str) -> None:
        self.outcome.set_result((status, output))

    def output_sizes(self) -> dict[int, int]:
        """Give the size of each message of output by its number; of no account where it tells a time."""
        output = [message for message in self.messages if message.message_type == MessageType.OUTPUT]
        return {message.sequence_number: size_of(message) for message in output}


def size_of(message: AgentMessage) -> int:
    return 1 if message.payload_type == PayloadType.HANDSHAKE_COMPLETE else len(message.payload)


async def replay(name: str, document: ResolvedDocument) -> tuple[Said, tuple[str, str], Counter[str]]:
    """Hand over each frame of the client when the agent has said as much as the recorded one had before it."""
    defects: Counter[str] = Counter()
    uplink = Recorder()
    session = AgentSession(
        session_id=session_id_of(name),
        document=document,
        agent_version="3.3.0.0",
        address_of=lambda port: ("127.0.0.1", port),
        hosts={},
        uplink=uplink,
        pace_s=0.001,
        faults=lambda: Faults(agent_waits=0.02),
        defects=defects,
        counts=ChannelCounts(),
    )
    session.start()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    expected = 0
    try:
        for record in stream_records(name):
            message = decode_agent_message(record.data)
            if record.sender == "agent":
                expected += size_of(message) if message.message_type == MessageType.OUTPUT else 0
                continue
            while sum(uplink.output_sizes().values()) < expected:
                assert loop.time() < deadline, (uplink.output_sizes(), expected)
                await asyncio.sleep(0.002)
            is_acknowledge = message.message_type == MessageType.ACKNOWLEDGE
            # A terminal may say in one message what it once said in two: then there is no second one to acknowledge.
            if not is_acknowledge or decode_acknowledge(message.payload).sequence_number in uplink.output_sizes():
                session.deliver(record.data)
        outcome = await asyncio.wait_for(uplink.outcome, DEADLINE_S)
    finally:
        await session.stop()
    return said_by(uplink.messages), outcome, defects


def session_id_of(name: str) -> str:
    state = next(record for record in records(name) if record.kind == MessageType.AGENT_SESSION_STATE)
    return state.payload.decode().partition('"SessionId":"')[2].rstrip('"}')


def stream_records(name: str) -> list[Record]:
    return [record for record in records(name) if record.data and record.sender in ("client", "agent")]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("shell", resolve_document(SERVICE_DOCUMENTS["SSM-SessionManagerRunShell"], {})),
        (
            "interactive-command",
            resolve_document(SERVICE_DOCUMENTS["AWS-StartInteractiveCommand"], {"command": ["echo interactive-ok"]}),
        ),
        (
            "noninteractive",
            resolve_document(SERVICE_DOCUMENTS["AWS-StartNonInteractiveCommand"], {"command": ["sh cmd7.sh"]}),
        ),
        (
            "noninteractive-separate",
            ResolvedDocument(
                session_type="NonInteractiveCommands",
                properties={"linux": {"commands": "sh cmd7.sh", "separateOutputStream": True}},
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_our_agent_says_what_the_real_one_said(
    name: str, document: ResolvedDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmd7.sh").write_text(COMMAND)
    monkeypatch.setenv("HOME", str(tmp_path))
    recorded = said_by([decode_agent_message(each.data) for each in stream_records(name) if each.sender == "agent"])
    said, outcome, defects = asyncio.run(replay(name, document))
    assert said.states == recorded.states
    assert said.output == recorded.output
    assert said.acknowledged == recorded.acknowledged
    if name == "noninteractive-separate":  # its two streams have no order between them
        assert sorted(said.payload_types[:-1]) == sorted(recorded.payload_types[:-1])
        assert said.payload_types[-1] == recorded.payload_types[-1] == PayloadType.EXIT_CODE
    else:
        assert said.payload_types == recorded.payload_types
    assert outcome == ("Success", "")
    assert not defects
