"""An error as ssh's own disconnect message: what other implementations read of it, and when it is not sent."""

from __future__ import annotations

import os
import socket
import threading
import time

import paramiko
import pytest

from ssm_proxy.cli.ssh_disconnect import disconnect_bytes, tell_ssh
from ssm_proxy.errors import TargetNotConnected

ERROR = TargetNotConnected("target 'i-1' is not connected", cause="it sleeps …", hint="wake it")


def lengths(data: bytes) -> tuple[int, int, bytes]:
    """Give what the packet says of its length and padding, and its text, as RFC 4253 has them."""
    greeting, _, packet = data.partition(b"\r\n")
    assert greeting == b"SSH-2.0-ssm-proxy"
    length, padding = int.from_bytes(packet[:4], "big"), packet[4]
    assert len(packet) == 4 + length
    assert packet[5:10] == b"\x01\0\0\0\x0b"
    size = int.from_bytes(packet[10:14], "big")
    assert packet[14 + size :] == bytes(4 + padding)
    return len(packet), padding, packet[14 : 14 + size]


@pytest.mark.parametrize("size", range(40))
def test_packets_are_whole_blocks(size: int) -> None:
    total, padding, text = lengths(disconnect_bytes("x" * size))
    assert total % 8 == 0
    assert 4 <= padding <= 11
    assert text == b"x" * size


def test_text_is_what_clients_can_show() -> None:
    assert lengths(disconnect_bytes("zu spät … 中"))[2] == b"zu sp?t ... ?"
    text = lengths(disconnect_bytes("x" * 500))[2]
    assert (len(text), text[-4:]) == (400, b"x...")


def test_another_client_shows_the_reason() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        speaker = threading.Thread(target=tell_ssh, args=(ERROR, ours.fileno(), ours.fileno()))
        speaker.start()
        transport = paramiko.Transport(theirs)
        # paramiko has the text in its log only, but knows the end for what it is.
        with pytest.raises((paramiko.SSHException, EOFError)):
            transport.start_client(timeout=10)
        transport.close()
        speaker.join(10)
        assert not speaker.is_alive()
    assert transport.remote_version == "SSH-2.0-ssm-proxy"


def test_it_waits_for_ssh_to_go_and_no_longer() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"SSH-2.0-client\r\n")
        timer = threading.Timer(0.2, theirs.close)
        began = time.monotonic()
        timer.start()
        tell_ssh(ERROR, ours.fileno(), ours.fileno())
        assert time.monotonic() - began >= 0.15
        timer.join()


def test_ssh_that_has_gone_is_no_error() -> None:
    source, sink = os.pipe()
    os.close(source)
    try:
        tell_ssh(ERROR, sink, sink)
    finally:
        os.close(sink)
