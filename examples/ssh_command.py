"""Run a command on a managed node over SSH: ``python ssh_command.py ec2-user i-0123456789abcdef0 uptime``.

Keys, agent and known hosts are those of ``~/.ssh/config``, as for ssh.
"""

import shlex
import sys

import ssm_proxy


def main(user: str, target: str, *command: str) -> int:
    with ssm_proxy.ssh_client(target, user) as client:
        _, output, errors = client.exec_command(shlex.join(command), timeout=60)
        sys.stdout.write(output.read().decode(errors="replace"))
        sys.stderr.write(errors.read().decode(errors="replace"))
        return output.channel.recv_exit_status()


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except ssm_proxy.SsmProxyError as error:
        sys.exit(f"{error}: {error.cause}\n{error.hint}")
