"""One log line for each message, for ``-vv`` (its payload's beginning at ``-vvv``)."""

from __future__ import annotations

import logging

from ssm_proxy.errors import ProtocolError
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message
from ssm_proxy.wire.constants import MessageType, PayloadType
from ssm_proxy.wire.payloads import decode_acknowledge

TRACE = 5
"""Level of payload bytes, below DEBUG."""
_SHOWN_BYTES = 32


class MessageTrace:
    """Writes ``>`` for sent, ``<`` for received and ``!`` for sent again."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next_sequence_number = 0

    @classmethod
    def if_wanted(cls, logger: logging.Logger) -> MessageTrace | None:
        """Give a trace if the logger shows it, else None, so that nothing is decoded for nobody."""
        return cls(logger) if logger.isEnabledFor(logging.DEBUG) else None

    def sent(self, data: bytes) -> None:
        message = decode_agent_message(data)
        sign = ">"
        if message.message_type == MessageType.INPUT:
            if message.sequence_number < self._next_sequence_number:
                sign = "!"
            else:
                self._next_sequence_number = message.sequence_number + 1
        self._show(sign, message)

    def received(self, data: bytes) -> None:
        try:
            message = decode_agent_message(data)
        except ProtocolError as error:
            self._logger.debug("< %d bytes that are no message: %s", len(data), error.message)
            return
        self._show("<", message)

    def _show(self, sign: str, message: AgentMessage) -> None:
        kind = message.message_type
        if kind == MessageType.ACKNOWLEDGE:
            try:
                text = f"seq={decode_acknowledge(message.payload).sequence_number}"
            except ProtocolError as error:
                text = error.message
        elif kind in (MessageType.INPUT, MessageType.OUTPUT):
            text = f"seq={message.sequence_number} {_name(message.payload_type)} {len(message.payload)} bytes"
        else:
            text = f"{len(message.payload)} bytes"
        self._logger.debug("%s %s %s", sign, kind, text)
        # Bytes of people's data only: the opening text with its token is no agent message and never comes here.
        if message.payload and kind != MessageType.ACKNOWLEDGE and self._logger.isEnabledFor(TRACE):
            more = "…" if len(message.payload) > _SHOWN_BYTES else ""
            self._logger.log(TRACE, "%s   %s%s", sign, message.payload[:_SHOWN_BYTES].hex(" "), more)


def _name(payload_type: int) -> str:
    try:
        return PayloadType(payload_type).name.lower()
    except ValueError:
        return f"type {payload_type}"
