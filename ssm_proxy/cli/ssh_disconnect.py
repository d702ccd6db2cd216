"""The last way to be heard: ssh's own disconnect message, where ssh throws standard error away.

With ControlPersist the ProxyCommand's standard error is the null device (openssh-portable, sshconnect.c,
ssh_proxy_connect), and all that a person, or Ansible, would read is "Connection closed by UNKNOWN port 65535". As long
as the node's server has not said a word, we stand where it would begin: a server may greet, and leave with a reason,
which every client shows.

Source: RFC 4253, sections 4.2 (greeting), 6 (packets without encryption) and 11.1 (SSH_MSG_DISCONNECT).
"""

from __future__ import annotations

import os
import select
import stat
import time
from typing import TYPE_CHECKING

from ssm_proxy.cli import messages

if TYPE_CHECKING:
    from ssm_proxy.errors import SsmProxyError

_GREETING = b"SSH-2.0-ssm-proxy\r\n"
_SSH_MSG_DISCONNECT = 1
_BY_APPLICATION = 11
_LARGEST_TEXT = 400
"""OpenSSH shows no more (packet.c)."""
_BLOCK = 8
_SMALLEST_PADDING = 4
_WAIT = 2.0
"""For ssh to read it and go; it takes some milliseconds."""


def standard_error_is_discarded() -> bool:
    """Whether nobody can read what is written to standard error."""
    try:
        here, nothing = os.fstat(2), os.stat(os.devnull)
    except OSError:
        return False
    return stat.S_ISCHR(here.st_mode) and here.st_rdev == nothing.st_rdev


def tell_ssh(error: SsmProxyError, input_fd: int, output_fd: int) -> None:
    """Have the ssh at the other end of the two descriptors show an error. Nothing may have been written before.

    Returns when ssh has gone, or did not within a moment: to leave earlier would break its pipe before it has read.
    """
    if os.isatty(output_fd):
        return
    deadline = time.monotonic() + _WAIT
    try:
        os.write(output_fd, disconnect_bytes("\n".join(messages.error_lines(error))))  # less than any pipe takes
        while (left := deadline - time.monotonic()) > 0:
            if select.select([input_fd], [], [], left)[0] and not os.read(input_fd, 65536):
                return
    except (OSError, ValueError):
        return  # it has gone already


def disconnect_bytes(text: str) -> bytes:
    """Give greeting and goodbye of an SSH server; the text is cut to what clients show, and to ASCII."""
    plain = text.replace("…", "...").encode("ascii", "replace")
    if len(plain) > _LARGEST_TEXT:
        plain = plain[: _LARGEST_TEXT - 3] + b"..."
    payload = bytes((_SSH_MSG_DISCONNECT,)) + _BY_APPLICATION.to_bytes(4, "big") + _string(plain) + _string(b"")
    padding = _BLOCK - (5 + len(payload)) % _BLOCK
    if padding < _SMALLEST_PADDING:
        padding += _BLOCK
    length = 1 + len(payload) + padding
    return _GREETING + length.to_bytes(4, "big") + bytes((padding,)) + payload + bytes(padding)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
