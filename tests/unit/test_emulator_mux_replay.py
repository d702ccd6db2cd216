"""The frames of the official client, as recorded, get the recorded agent's answers from ours."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from emulator_peer import NODE, Peer, run, ssm_client
from golden.transcripts import Record, frames
from port_destinations import FORWARD, REMOTE, Destination, destination, unused_port
from smux_peer import FIN, PSH
from smux_peer import frames as mux_frames

from ssm_proxy.emulator import Emulator, EmulatorOptions
from ssm_proxy.wire.constants import PayloadType

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check


@contextlib.asynccontextmanager
async def nobody() -> AsyncIterator[Destination]:
    refusing = Destination()
    refusing.port = unused_port()
    yield refusing


def answers(records: list[Record]) -> list[tuple[int, bytes]]:
    """Give the agent's answers as (payload type, bytes), the mux's stream between two flags joined."""
    found: list[tuple[int, bytes]] = []
    for each in records:
        if each.payload_type == PayloadType.OUTPUT and found and found[-1][0] == PayloadType.OUTPUT:
            found[-1] = (PayloadType.OUTPUT, found[-1][1] + each.payload)
        else:
            found.append((each.payload_type, each.payload))
    return found


def answers_of(peer: Peer) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    messages = {m.sequence_number: m for m in peer.of_type("output_stream_data") if m.sequence_number >= 2}
    for _, each in sorted(messages.items()):
        if each.payload_type == PayloadType.OUTPUT and found and found[-1][0] == PayloadType.OUTPUT:
            found[-1] = (PayloadType.OUTPUT, found[-1][1] + each.payload)
        else:
            found.append((each.payload_type, each.payload))
    return found


def begin_with(found: list[tuple[int, bytes]], expected: list[tuple[int, bytes]]) -> bool:
    last = len(expected) - 1
    return (
        len(found) > last
        and found[:last] == expected[:last]
        and found[last][0] == expected[last][0]
        and found[last][1].startswith(expected[last][1])
    )


@pytest.mark.parametrize("name", ["forward-mux", "forward-remote-host", "forward-mux-refused"])
def test_the_recorded_agent_and_ours_answer_alike(name: str) -> None:
    """In step: the destination says what it said then when the recorded agent passed it on."""
    inputs = [each for each in frames(name) if each.kind == "input_stream_data" and each.arrived]
    outputs = [each for each in frames(name) if each.kind == "output_stream_data" and each.payload_type in (1, 10)]
    assert inputs
    assert outputs

    async def scenario() -> None:
        with Emulator(EmulatorOptions(agent_pace_s=0)) as emulator:
            environment = emulator.environment()
            where = nobody() if name == "forward-mux-refused" else destination()
            async with where as served:
                parameters = {"portNumber": [str(served.port)]}
                answer = ssm_client(environment).start_session(
                    Target=NODE,
                    DocumentName=REMOTE if name == "forward-remote-host" else FORWARD,
                    Parameters=parameters | ({"host": ["localhost"]} if name == "forward-remote-host" else {}),
                )
                peer = await Peer(environment, answer).open()
                await peer.until(lambda: bool(peer.of_type("output_stream_data")))
                opened: list[int] = []
                finished: set[int] = set()
                passed: list[Record] = []
                for each in sorted(inputs + outputs, key=lambda each: each.number):
                    if each.kind == "input_stream_data":
                        await peer.send(each.data)
                        await peer.until(lambda each=each: each.seq in peer.acknowledged)  # type: ignore[misc]
                        if each.payload_type == PayloadType.OUTPUT:
                            for frame in mux_frames(each.payload):
                                if frame.command == FIN:
                                    finished.add(frame.stream_id)
                                elif frame.command != PSH:
                                    opened.append(frame.stream_id)
                        continue
                    passed.append(each)
                    for frame in mux_frames(each.payload) if each.payload_type == PayloadType.OUTPUT else ():
                        if not served.connections and name == "forward-mux-refused":
                            continue
                        _, writer = await served.accepted(opened.index(frame.stream_id) + 1)
                        if frame.command == PSH:
                            before = len(peer.output)
                            writer.write(frame.data)
                            await peer.until(lambda before=before: len(peer.output) > before)  # type: ignore[misc]
                        elif frame.stream_id not in finished:
                            writer.close()
                    expected = answers(passed)
                    await peer.until(lambda expected=expected: begin_with(answers_of(peer), expected))  # type: ignore[misc]
                await peer.until(lambda: answers_of(peer) == answers(outputs))
                assert dict(emulator.sessions()[-1].client_defects) == {}
                await peer.close()

    run(scenario())
