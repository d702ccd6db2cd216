"""Run a database client against a database that only a managed node can reach.

    python examples/forward_database.py i-0123456789abcdef0 db.internal 5432 psql -U app orders

The client finds host and port in PGHOST and PGPORT, as those of PostgreSQL do. Ctrl-C is for the client alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import ssm_proxy


def run_client(command: tuple[str, ...], environment: dict[str, str]) -> int:
    # A terminal sends Ctrl-C to both, and psql only cancels a query with it. SIG_IGN would be the client's as well.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def main(target: str, database_host: str, database_port: str, *command: str) -> int:
    try:
        with ssm_proxy.forward(target, int(database_port), host=database_host) as (host, port):
            return run_client(command, {**os.environ, "PGHOST": host, "PGPORT": str(port)})
    except ssm_proxy.SsmProxyError as error:
        print(f"{error} ({error.cause}); {error.hint}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
