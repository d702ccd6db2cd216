"""Run a command on a managed node, with the credentials of a boto3 session.

python examples/run_command.py i-0123456789abcdef0 uptime
AWS_PROFILE=production python examples/run_command.py i-0123456789abcdef0 sh -c 'df -h | sort'
"""

from __future__ import annotations

import sys

import boto3
import botocore.exceptions

import ssm_proxy


def main(target: str, *command: str) -> int:
    try:
        session = boto3.Session()
        result = ssm_proxy.run(target, command, session=session, timeout=600)
    except botocore.exceptions.BotoCoreError as error:  # of boto3.Session: a profile that is not there, for one
        print(error, file=sys.stderr)
        return 1
    except ssm_proxy.SsmProxyError as error:
        print(f"{error} ({error.cause}); {error.hint}", file=sys.stderr)
        return error.exit_status
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
