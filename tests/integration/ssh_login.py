"""Logs in as ``ssm-proxy cp`` does, several times by one authenticator: for the tests with a terminal, and without one.

Arguments: host, port of 127.0.0.1, ssh_config, number of connections. At the end standard input is copied to standard
output, to show that nobody else has read it.
"""

import socket
import sys

from ssm_proxy.errors import SsmProxyError
from ssm_proxy.ssh.auth import Authenticator
from ssm_proxy.ssh.client import open_client
from ssm_proxy.ssh.host_keys import HostKeyCheck
from ssm_proxy.ssh.prompts import TerminalPrompter
from ssm_proxy.ssh.settings import read_settings


def main(host: str, port: str, config: str, times: str) -> int:
    settings = read_settings(host, config_file=config)
    prompter = TerminalPrompter()
    authenticator = Authenticator(settings, prompter=prompter)
    host_keys = HostKeyCheck(settings, prompter, lambda text: print(f"notice: {text}", flush=True))
    try:
        for number in range(int(times)):
            sock = socket.create_connection(("127.0.0.1", int(port)))
            client = open_client(sock, settings, authenticator, host_keys, timeout=20)
            _, output, _ = client.exec_command("echo $((20 + 22))")
            print(f"login {number}: {output.read().decode().strip()}", flush=True)
            client.close()
    except SsmProxyError as error:
        print(f"{type(error).__name__}: {error.message}\ncause: {error.cause}\nhint: {error.hint}", flush=True)
        return error.exit_status
    if not sys.stdin.isatty():
        sys.stdout.write(sys.stdin.read())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
