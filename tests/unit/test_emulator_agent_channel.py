"""The agent's end of the channel: without sockets, with time as an argument, and against recorded frames."""

from __future__ import annotations

import json
import struct
import uuid
from collections import Counter
from pathlib import Path

import pytest
from emulator_peer import acknowledge_of, input_message

from ssm_proxy.emulator.agent_channel import AgentChannel
from ssm_proxy.emulator.counts import ChannelCounts
from ssm_proxy.emulator.documents import ResolvedDocument
from ssm_proxy.emulator.handshake import AgentHandshake, State
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import PayloadType
from ssm_proxy.wire.payloads import decode_acknowledge

RECORDING = Path(__file__).parents[1] / "golden" / "ssh-exec.jsonl"


class Rig:
    """A channel with what it handed over."""

    def __init__(self) -> None:
        self.handled: list[bytes] = []
        self.is_ready = True
        self.defects: Counter[str] = Counter()
        self.channel = AgentChannel(self.handle, self.defects, ChannelCounts())

    def handle(self, payload_type: int, payload: bytes) -> bool:
        if self.is_ready:
            self.handled.append(payload)
        return self.is_ready

    def receive(self, *messages: bytes, now: float = 0.0) -> list[int]:
        for message in messages:
            self.channel.receive(message, now)
        replies = [decode_agent_message(reply) for reply in self.channel.take_replies()]
        return [decode_acknowledge(reply.payload).sequence_number for reply in replies]

    def acknowledge(self, sent: bytes, now: float) -> None:
        assert self.receive(acknowledge_of(decode_agent_message(sent)), now=now) == []


def without_chance(frame: bytes) -> bytes:
    """Blank out what differs from run to run: the created date and the message's own id."""
    return frame[:40] + bytes(8) + frame[48:64] + bytes(16) + frame[80:]


def test_frames_equal_those_of_the_real_agent() -> None:
    """The client's recorded frames go in; ours must come out as the real agent's did, byte for byte."""
    rig = Rig()
    frames = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    session_id = frames[0]["session_id"]
    compared = Counter[str]()
    for frame in frames:
        if frame.get("from") not in ("client", "agent") or "hex" not in frame:
            continue
        recorded = bytes.fromhex(frame["hex"])
        if frame["from"] == "client":
            rig.channel.receive(recorded, 0.0)
            continue
        message = decode_agent_message(recorded)
        if message.message_type == "acknowledge":
            ours = rig.channel._replies.pop(0)
        elif message.message_type == "agent_session_state":
            state = {"SchemaVersion": 1, "SessionState": "Connected", "SessionId": session_id}
            ours = rig.channel.session_state(json.dumps(state, separators=(",", ":")).encode())
        else:
            sent = rig.channel.send(message.payload_type, message.payload, 0.0)
            assert sent is not None
            ours = sent
        assert without_chance(ours) == without_chance(recorded)
        assert uuid.UUID(bytes=decode_agent_message(ours).message_id).version == 4
        compared[message.message_type] += 1
    assert compared == {"output_stream_data": 15, "acknowledge": compared["acknowledge"], "agent_session_state": 1}
    assert compared["acknowledge"] >= 10
    assert not rig.defects


def test_handshake_payloads_equal_those_of_the_real_agent() -> None:
    recorded = {
        frame["payload_type"]: bytes.fromhex(frame["hex"])[120:]
        for frame in map(json.loads, RECORDING.read_text().splitlines())
        if frame.get("payload_type") in (5, 6, 7)
    }
    document = ResolvedDocument(session_type="Port", properties={"portNumber": "8122"})
    handshake = AgentHandshake(document, "3.3.0.0", Counter())
    assert handshake.request() == recorded[5]
    assert handshake.take_input(PayloadType.HANDSHAKE_RESPONSE, recorded[6])
    assert handshake.state is State.ANSWERED
    assert not handshake.failure
    elapsed = json.loads(recorded[7])["HandshakeTimeToComplete"]
    assert json.loads(handshake.complete(elapsed / 1e9))["HandshakeTimeToComplete"] == pytest.approx(elapsed, abs=2)


def test_input_is_acknowledged_in_order_stored_and_repeated() -> None:
    rig = Rig()
    messages = [input_message(number, b"%d" % number) for number in range(4)]
    assert rig.receive(messages[0]) == [0]
    assert rig.receive(messages[2], messages[3]) == [2, 3]
    assert rig.handled == [b"0"]
    assert rig.receive(messages[1]) == [1]
    assert rig.handled == [b"0", b"1", b"2", b"3"]
    assert rig.receive(messages[2], messages[0]) == [2, 0]
    assert rig.handled == [b"0", b"1", b"2", b"3"]
    assert rig.channel.counts.repeats_received == 2
    assert rig.channel.counts.input_bytes == 4


def test_refused_input_is_not_acknowledged_and_comes_again() -> None:
    rig = Rig()
    rig.is_ready = False
    first, second = input_message(0, b"a"), input_message(1, b"b")
    assert rig.receive(first, second) == [1]  # what is ahead is stored and acknowledged all the same
    rig.is_ready = True
    assert rig.receive(first) == [0]
    assert rig.handled == [b"a", b"b"]


def test_only_the_head_is_resent_once_per_timeout() -> None:
    rig = Rig()
    sent = [rig.channel.send(PayloadType.OUTPUT, b"x", 0.0) for _ in range(3)]
    assert rig.channel.resend_due(0.2) is None  # not later than the timeout of 200 ms
    assert rig.channel.resend_due(0.25) == sent[0]
    assert rig.channel.resend_due(0.35) is None
    assert rig.channel.resend_due(0.46) == sent[0]
    assert sent[0] is not None
    rig.acknowledge(sent[0], 0.46)
    assert rig.channel.resend_due(0.9) == sent[1]
    assert rig.channel.counts.resends == 3


def test_the_timer_follows_the_arithmetic_of_the_agent() -> None:
    rig = Rig()
    sent = rig.channel.send(PayloadType.OUTPUT, b"x", 0.0)
    assert sent is not None
    rig.acknowledge(sent, 0.02)
    # V = 1/4 |0.1 - 0.02| = 0.02; S = 7/8 0.1 + 1/8 0.02 = 0.09; timeout = S + 4 V
    assert rig.channel.timeout_s == pytest.approx(0.17)
    sent = rig.channel.send(PayloadType.OUTPUT, b"x", 1.0)
    assert sent is not None
    rig.acknowledge(sent, 9.0)
    assert rig.channel.timeout_s == 1.0
    assert rig.channel.all_acknowledged
    assert rig.channel.unacknowledged_bytes == 0


def own_message(kind: str) -> bytes:
    return encode_agent_message(AgentMessage(kind, b"{}", uuid.uuid4().bytes, 1, flags=3, header_length=112))


def test_a_pause_holds_output_until_anything_is_heard() -> None:
    for wake in (own_message("start_publication"), input_message(0, b"x")):
        rig = Rig()
        rig.receive(own_message("pause_publication"))
        assert rig.channel.send(PayloadType.OUTPUT, b"x", 0.0) is None
        assert rig.channel.resend_due(5.0) is None
        rig.receive(wake)
        assert rig.channel.resend_due(5.0) is not None
    rig = Rig()
    sent = rig.channel.send(PayloadType.OUTPUT, b"x", 0.0)
    assert sent is not None
    rig.receive(own_message("pause_publication"))
    rig.acknowledge(sent, 0.0)
    assert not rig.channel.is_paused
    rig.receive(own_message("pause_publication"))
    rig.channel.reconnected()
    assert not rig.channel.is_paused


def test_after_a_restart_what_may_be_lost_is_repeated_a_few_at_a_time() -> None:
    rig = Rig()
    sent = [rig.channel.send(PayloadType.OUTPUT, b"%d" % number, 0.0) for number in range(100)]
    assert rig.channel.repeat_lost(0.0) == []
    rig.receive(own_message("start_publication"))
    assert rig.channel.repeat_lost(1.0) == sent[:64]
    assert rig.channel.repeat_lost(1.0) == []
    assert sent[1] is not None
    assert sent[70] is not None
    rig.acknowledge(sent[1], 1.0)
    rig.acknowledge(sent[70], 1.0)
    assert rig.channel.repeat_lost(1.0) == sent[64:65]
    rig.receive(own_message("start_publication"))
    assert rig.channel.repeat_lost(2.0) == [sent[0], *sent[2:65]]


def test_channel_closed_is_seen() -> None:
    rig = Rig()
    rig.receive(own_message("channel_closed"))
    assert rig.channel.is_closed


def test_a_header_length_beyond_the_end_deafens_for_good() -> None:
    rig = Rig()
    rig.receive(struct.pack(">I", 9999) + input_message(0, b"x")[4:])
    assert rig.receive(input_message(0, b"x")) == []
    assert rig.handled == []


def test_acknowledges_that_make_no_sense_are_counted() -> None:
    rig = Rig()
    sent = rig.channel.send(PayloadType.OUTPUT, b"x", 0.0)
    assert sent is not None
    message = decode_agent_message(sent)
    rig.receive(acknowledge_of(message._replace(sequence_number=5)))
    broken = AgentMessage("acknowledge", b"not json", uuid.uuid4().bytes, 1, flags=3)
    rig.receive(encode_agent_message(broken))
    rig.receive(encode_agent_message(broken._replace(message_type="something_else")))
    assert set(rig.defects) == {
        "acknowledge of a message never sent",
        "acknowledge that cannot be read, ignored",
        "unknown message type, ignored",
    }
    assert not rig.channel.all_acknowledged
