"""A program: many processes that start a session each, all at the same instant, and end it.

It loads what they need once, and forks: hundreds of interpreters would take longer to load than the service to answer.
Prints how many succeeded. Not a test itself.
"""

from __future__ import annotations

import os
import sys

from ssm_proxy.aws.control_plane import BotocoreControlPlane


def one(plane: BotocoreControlPlane, node: str, go: int) -> int:
    try:
        os.read(go, 1)
        started = plane.start_session(
            target=node, document_name="AWS-StartSSHSession", parameters={"portNumber": ["22"]}, reason=None
        )
        plane.terminate_session(started.session_id)
    except Exception as error:  # noqa: BLE001 - told to the test
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def main(node: str, count: int) -> None:
    plane = BotocoreControlPlane()
    plane._open().client()  # once for all: nothing is connected yet
    go, write_go = os.pipe()
    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            os.close(write_go)
            os._exit(one(plane, node, go))
        children.append(child)
    os.close(write_go)
    print(sum(os.waitpid(child, 0)[1] == 0 for child in children))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
