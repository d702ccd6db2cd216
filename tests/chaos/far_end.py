"""The node's end of the transfers: runs there by ssh, obeys orders on standard input until it ends.

An order is a line ``up SIZE SEED``, and the bytes follow, or ``down SIZE SEED``, and the bytes are the answer. A line
with their SHA-256 ends both. Nothing is kept: all that passes is hashed piece by piece.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator

PIECE_BYTES = 256 * 1024
READY = b"ready\n"


def pieces(size: int, seed: int) -> Iterator[bytes]:
    """Give that many bytes, the same for the same seed."""
    source = random.Random(seed)
    while size:
        piece = source.randbytes(min(size, PIECE_BYTES))
        size -= len(piece)
        yield piece


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sink.write(READY)
    sink.flush()
    while order := source.readline():
        direction, size, seed = order.split()
        digest = hashlib.sha256()
        if direction == b"up":
            left = int(size)
            while left and (piece := source.read(min(left, PIECE_BYTES))):
                digest.update(piece)
                left -= len(piece)
        else:
            for piece in pieces(int(size), int(seed)):
                digest.update(piece)
                sink.write(piece)
        sink.write(digest.hexdigest().encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    main()
