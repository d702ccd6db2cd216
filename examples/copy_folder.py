"""Fetch a folder from a managed node, or send one there, over several sessions at once, and tell how far it is.

    python examples/copy_folder.py ec2-user@i-0123456789abcdef0:/var/log/app/. logs
    python examples/copy_folder.py website/. ec2-user@i-0123456789abcdef0:/srv/website

Interrupted, or after an error, the same command goes on with what is missing. For that it has the ``/.``, which is all
that is in the folder: the folder itself goes into a destination that exists, as with cp and scp, and by then it does.
"""

from __future__ import annotations

import sys

import ssm_proxy


def show(progress: ssm_proxy.Progress) -> None:
    """Called from the thread that copies, several times a second and at the end of each file."""
    if progress.outcome is not None:
        print(f"{progress.outcome.state.value}: {progress.outcome.source}")
    elif progress.total_bytes and sys.stderr.isatty():
        share = progress.done_bytes / progress.total_bytes
        print(f"{share:.0%} over {progress.sessions} sessions", end="\r", file=sys.stderr)


def main(source: str, destination: str) -> int:
    try:
        result = ssm_proxy.copy(source, destination, recursive=True, preserve=True, resume=True, progress=show)
    except ssm_proxy.CopyIncomplete as error:
        for failure in error.result.failures:
            print(f"{failure.source}: {failure.error}", file=sys.stderr)
        return 1
    except ssm_proxy.SsmProxyError as error:
        print(f"{error} ({error.cause})", file=sys.stderr)
        return 1
    print(f"{result.files} files copied, {result.unchanged} were there: {result.megabytes_per_second:.1f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
