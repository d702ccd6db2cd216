"""``python -m bench.frames``: processor time for each message in the parts of the path that run in Python.

Given as microseconds and as a ratio to hashing one payload, which every client has to do.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable

from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.transport.frames import BINARY, code_frames
from ssm_proxy.transport.websocket import WebSocketTransport
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import MessageType, PayloadType
from ssm_proxy.wire.payloads import (
    Acknowledge,
    HandshakeRequest,
    RequestedAction,
    encode_acknowledge,
    encode_handshake_request,
    format_uuid,
)

MESSAGES = 20_000
BATCH = 64
PAYLOAD = os.urandom(1024)
NOW = 1.0


def message(kind: str, sequence_number: int, payload_type: int, payload: bytes) -> bytes:
    return encode_agent_message(AgentMessage(kind, payload, os.urandom(16), 1, sequence_number, payload_type))


def acknowledge(sequence_number: int) -> bytes:
    payload = encode_acknowledge(Acknowledge(MessageType.INPUT, format_uuid(os.urandom(16)), sequence_number))
    return message(MessageType.ACKNOWLEDGE, 0, 0, payload)


def started_channel() -> DataChannel:
    channel = DataChannel(
        check_session=lambda session_type, properties: None,
        window=CongestionWindow(),
        new_message_id=lambda: os.urandom(16),
        wall_clock_ms=lambda: 1,
    )
    channel.open("token", 0.0)
    action = RequestedAction(action_type="SessionType", parameters={"SessionType": "Port", "Properties": {}})
    request = encode_handshake_request(HandshakeRequest(agent_version="3.3.0.0", requested_actions=[action]))
    channel.receive(message(MessageType.OUTPUT, 0, PayloadType.HANDSHAKE_REQUEST, request), 0.0)
    channel.receive(message(MessageType.OUTPUT, 1, PayloadType.HANDSHAKE_COMPLETE, b"{}"), 0.0)
    channel.messages_to_send(0.0)
    channel.receive(acknowledge(0), 0.0)
    channel.events()
    return channel


def hash_payloads() -> Callable[[], None]:
    def run() -> None:
        for _ in range(MESSAGES):
            hashlib.sha256(PAYLOAD).digest()

    return run


def send_and_acknowledge() -> Callable[[], None]:
    channel = started_channel()
    acknowledges = [acknowledge(number) for number in range(1, MESSAGES + 1)]

    def run() -> None:
        for start in range(0, MESSAGES, BATCH):
            channel.send_input(PAYLOAD * BATCH, NOW)
            channel.messages_to_send(NOW)
            for data in acknowledges[start : start + BATCH]:
                channel.receive(data, NOW)

    return run


def receive_output() -> Callable[[], None]:
    channel = started_channel()
    outputs = [message(MessageType.OUTPUT, number, PayloadType.OUTPUT, PAYLOAD) for number in range(2, MESSAGES + 2)]

    def run() -> None:
        for start in range(0, MESSAGES, BATCH):
            for data in outputs[start : start + BATCH]:
                channel.receive(data, NOW)
            channel.messages_to_send(NOW)
            channel.events()

    return run


def code() -> Callable[[], None]:
    data = message(MessageType.INPUT, 1, PayloadType.OUTPUT, PAYLOAD)

    def run() -> None:
        for _ in range(0, MESSAGES, BATCH):
            code_frames(BINARY, [data] * BATCH)

    return run


def parse() -> Callable[[], None]:
    ours, theirs = socket.socketpair()
    websocket = WebSocketTransport(ours)
    data = message(MessageType.OUTPUT, 1, PayloadType.OUTPUT, PAYLOAD)
    batch = (struct.pack(">BBH", 0x80 | BINARY, 126, len(data)) + data) * BATCH  # a server's frames are not masked

    def run() -> None:
        for _ in range(0, MESSAGES, BATCH):
            theirs.sendall(batch)
            received = 0
            while received < BATCH:
                received += len(websocket.receive())

    return run


PARTS = {
    "hash a payload of 1,024 bytes": hash_payloads,
    "core: send a message, take its acknowledge": send_and_acknowledge,
    "core: receive a message, acknowledge it": receive_output,
    "WebSocket: code and mask a frame": code,
    "WebSocket: read and parse a frame": parse,
}


def table() -> str:
    """Measure everything, and give it as Markdown."""
    lines = ["| part | µs a message | ratio |", "|---|---:|---:|"]
    unit = 0.0
    for name, prepare in PARTS.items():
        times = []
        for _ in range(3):
            run = prepare()
            began = time.process_time()
            run()
            times.append((time.process_time() - began) / MESSAGES * 1e6)
        unit = unit or min(times)
        lines.append(f"| {name} | {min(times):.1f} | {min(times) / unit:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
