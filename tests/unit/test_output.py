"""Payloads beside plain output, to events."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.channel.events import ErrorOutputReceived, ExitCodeReceived, FlagReceived, MessageDropped
from ssm_proxy.channel.output import read_output
from ssm_proxy.errors import DecryptionFailed

PLAINTEXT = bytes(range(64))
OURS = PayloadCipher(DataKey(PLAINTEXT, b""), 0)
THEIRS = PayloadCipher(DataKey(PLAINTEXT[32:] + PLAINTEXT[:32], b""), 0)


def test_standard_error() -> None:
    assert read_output(11, b"ls: no such file\n", None) == ErrorOutputReceived(b"ls: no such file\n")
    assert read_output(11, THEIRS.encrypt(b"no"), OURS) == ErrorOutputReceived(b"no")


@pytest.mark.parametrize(("payload", "code"), [(b"EXIT_CODE: 0", 0), (b"EXIT_CODE: 255", 255), (b"EXIT_CODE: -1", -1)])
def test_exit_code(payload: bytes, code: int) -> None:
    assert read_output(12, payload, None) == ExitCodeReceived(code)
    assert read_output(12, THEIRS.encrypt(payload), OURS) == ExitCodeReceived(code)


@pytest.mark.parametrize("payload_type", [11, 12])
def test_what_is_not_encrypted_where_all_is_passes_nowhere(payload_type: int) -> None:
    with pytest.raises(DecryptionFailed):
        read_output(payload_type, b"EXIT_CODE: 0", OURS)


def test_flags_are_never_encrypted() -> None:
    assert read_output(10, struct.pack(">I", 3), OURS) == FlagReceived(3)
    assert read_output(10, struct.pack(">I", 77), None) == FlagReceived(77)


@pytest.mark.parametrize(("payload_type", "payload"), [(10, b"\0\0\0"), (12, b"secret"), (12, b""), (99, b"secret")])
def test_what_cannot_be_read_is_dropped_and_not_shown(payload_type: int, payload: bytes) -> None:
    event = read_output(payload_type, payload, None)
    assert isinstance(event, MessageDropped)
    assert "secret" not in event.reason


@given(st.integers(min_value=0, max_value=2**32 - 1), st.binary(max_size=40))
def test_any_payload_is_an_event(payload_type: int, payload: bytes) -> None:
    read_output(payload_type, payload, None)
