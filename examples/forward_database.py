"""Run a database client against a database that only a managed node can reach.

    python examples/forward_database.py i-0123456789abcdef0 db.internal 5432 psql -U app orders

The client finds host and port in PGHOST and PGPORT, as those of PostgreSQL do.
"""

from __future__ import annotations

import os
import subprocess
import sys

import ssm_proxy


def main(target: str, database_host: str, database_port: str, *command: str) -> int:
    with ssm_proxy.forward(target, int(database_port), host=database_host) as (host, port):
        environment = {**os.environ, "PGHOST": host, "PGPORT": str(port)}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
