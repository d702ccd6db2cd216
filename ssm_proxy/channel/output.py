"""What the agent sends beside plain output: standard error and exit code of commands, control values.

Apart from the channel because a tunnel sees none of it in ordinary days.
"""

from __future__ import annotations

from ssm_proxy.channel.cipher import PayloadCipher
from ssm_proxy.channel.events import ErrorOutputReceived, Event, ExitCodeReceived, FlagReceived, MessageDropped
from ssm_proxy.errors import ProtocolError
from ssm_proxy.wire.constants import PayloadType
from ssm_proxy.wire.payloads import decode_flag


def read_output(payload_type: int, payload: bytes, cipher: PayloadCipher | None) -> Event:
    """Give the event that a payload means. What cannot be read has its number and its acknowledge, and is dropped:
    what stands behind it must go on.

    Raises:
        DecryptionFailed: a payload that has to be encrypted with the session's key (7.3) is not.
    """
    try:
        if payload_type == PayloadType.FLAG:
            return FlagReceived(decode_flag(payload))
        if payload_type in (PayloadType.STDERR, PayloadType.EXIT_CODE):
            if cipher is not None:
                payload = cipher.decrypt(payload)
            if payload_type == PayloadType.STDERR:
                return ErrorOutputReceived(payload)
            from ssm_proxy.wire.shell_payloads import decode_exit_code

            return ExitCodeReceived(decode_exit_code(payload))
    except ProtocolError as error:
        return MessageDropped(error.message)
    return MessageDropped(f"unknown payload type {payload_type}")
