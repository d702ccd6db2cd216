"""Run a command on a managed node, with the credentials of a boto3 session.

python examples/run_command.py i-0123456789abcdef0 uptime
PROFILE=production python examples/run_command.py i-0123456789abcdef0 sh -c 'df -h | sort'
"""

from __future__ import annotations

import os
import sys

import boto3

import ssm_proxy


def main(target: str, *command: str) -> int:
    session = boto3.Session(profile_name=os.environ.get("PROFILE"))
    try:
        result = ssm_proxy.run(target, command, session=session, timeout=600)
    except ssm_proxy.SsmProxyError as error:
        print(f"{error} ({error.cause}); {error.hint}", file=sys.stderr)
        return error.exit_status
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
