"""The log lines of messages: what they show, and at which level."""

from __future__ import annotations

import logging

import pytest

from ssm_proxy.transport.trace import TRACE, MessageTrace
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import SHORT_HEADER_LENGTH, MessageType, PayloadType
from ssm_proxy.wire.payloads import Acknowledge, encode_acknowledge

SECRET = b"correct horse battery staple, and forty more bytes"


@pytest.fixture
def logger() -> logging.Logger:
    logger = logging.getLogger("test.trace")
    logger.setLevel(logging.DEBUG)
    return logger


def message(kind: str, payload: bytes, number: int = 0, payload_type: int = 0, **changes: int) -> bytes:
    return encode_agent_message(AgentMessage(kind, payload, bytes(16), 1, number, payload_type, **changes))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_nothing_is_decoded_for_nobody(logger: logging.Logger) -> None:
    logger.setLevel(logging.INFO)
    assert MessageTrace.if_wanted(logger) is None


def test_one_line_for_each_message_without_its_payload(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    trace = MessageTrace.if_wanted(logger)
    assert trace is not None
    trace.sent(message(MessageType.INPUT, SECRET, 0, PayloadType.OUTPUT))
    trace.sent(message(MessageType.INPUT, SECRET, 1, PayloadType.OUTPUT))
    trace.sent(message(MessageType.INPUT, SECRET, 0, PayloadType.OUTPUT))
    trace.received(message(MessageType.OUTPUT, SECRET, 7, 77))
    trace.received(message(MessageType.ACKNOWLEDGE, encode_acknowledge(Acknowledge("input_stream_data", "x", 1))))
    trace.received(message(MessageType.ACKNOWLEDGE, b"{}"))
    trace.received(message(MessageType.START_PUBLICATION, b"{}", header_length=SHORT_HEADER_LENGTH))
    trace.received(b"junk")
    assert lines(caplog) == [
        "> input_stream_data seq=0 output 50 bytes",
        "> input_stream_data seq=1 output 50 bytes",
        "! input_stream_data seq=0 output 50 bytes",
        "< output_stream_data seq=7 type 77 50 bytes",
        "< acknowledge seq=1",
        "< acknowledge an acknowledge without a sequence number",
        "< start_publication 2 bytes",
        "< 4 bytes that are no message: an agent message of 4 bytes is shorter than its header",
    ]


def test_the_beginning_of_payloads_on_the_lowest_level_only(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    logger.setLevel(TRACE)
    trace = MessageTrace(logger)
    trace.received(message(MessageType.OUTPUT, SECRET, 0, PayloadType.OUTPUT))
    first, second = lines(caplog)
    assert first == "< output_stream_data seq=0 output 50 bytes"
    assert second == "<   " + SECRET[:32].hex(" ") + "…"
    assert caplog.records[1].levelno < logging.DEBUG
