"""Run a command on a managed node over SSH: ``python ssh_command.py ec2-user i-0123456789abcdef0 uptime``.

Keys, agent and known hosts are those of ``~/.ssh/config``, as for ssh.
"""

import shlex
import sys
import threading
from collections.abc import Callable
from typing import TextIO

import ssm_proxy


def show(receive: Callable[[int], bytes], stream: TextIO) -> None:
    while data := receive(65536):
        stream.buffer.write(data)
        stream.flush()


def main(user: str, target: str, *command: str) -> int:
    with ssm_proxy.ssh_client(target, user) as client:
        # No timeout: it would count from the last output, and a command may say nothing for long.
        _, output, _ = client.exec_command(shlex.join(command))
        channel = output.channel
        # Both streams at once: a command waits when one of them is full.
        errors = threading.Thread(target=show, args=(channel.recv_stderr, sys.stderr))
        errors.start()
        show(channel.recv, sys.stdout)
        errors.join()
        return channel.recv_exit_status()


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except ssm_proxy.SsmProxyError as error:
        sys.exit(f"{error}: {error.cause}\n{error.hint}")
