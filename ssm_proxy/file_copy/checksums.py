"""SHA-256 of files on the node, computed there by its shell, and here.

Files are compared by blocks, so that a difference is repaired instead of all being copied again, and an interrupted
copy goes on from what is really there.

Every node has another login shell. What it is given is a call of ``sh`` with one quoted line, without characters that
csh or fish take for themselves; paths travel in octal.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

MIB: Final = 1024 * 1024
SMALLEST_BLOCK: Final = MIB
MOST_BLOCKS: Final = 128
_DIGEST = re.compile(rb"\\?([0-9a-f]{64})[ *]{1,2}", re.ASCII)
_ODD = re.compile(rb"[\\\n\r]")
"""sha256sum writes names with such characters in a way of its own."""
_PICK: Final = (
    "if command -v sha256sum >/dev/null 2>&1; then h=sha256sum; "
    'elif command -v shasum >/dev/null 2>&1; then h="shasum -a 256"; '
    'elif command -v openssl >/dev/null 2>&1; then h="openssl dgst -sha256 -r"; '
    "else exit 90; fi; "
)
_PATH: Final = 'p=$(printf "%b_" "$1"); p=${p%_}; [ -r "$p" ] || exit 91; '
# By the MiB: dd takes as much memory as what it reads at once.
_BLOCKS: Final = (
    _PICK
    + _PATH
    + 'b() { dd if="$p" bs=1048576 skip=$(($1*$2)) count="$2" 2>/dev/null; }; '
    + 'i=0; while [ "$i" -lt "$3" ]; do b "$i" "$2" | $h; i=$((i+1)); done; '
    + '[ "$4" -eq 0 ] || b "$i" "$2" | head -c "$4" | $h'
)
_FILES: Final = (
    _PICK
    + 'while read -r l; do p=$(printf "%b_" "$l"); p=${p%_}; if [ -r "$p" ]; then $h <"$p"; else echo -; fi; done; '
    + "echo ssm-proxy"
)
_PLAIN_FILES: Final = _PICK + "xargs -0 $h; [ $? -lt 126 ] && echo ssm-proxy"
_END: Final = b"ssm-proxy\n"
"""Says that a shell was at work: what is none says something, too, or nothing."""


class Shell(Protocol):
    """Runs a command on the node."""

    @property
    def refusal(self) -> str | None:
        """Why the last command was not even given to the node's shell, for a person; None if it was."""
        ...

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        """Run a command.

        Args:
            command: for the login shell.
            data: its standard input.

        Returns:
            Exit status and standard output; None if the node does not run it.
        """
        ...


def block_bytes(size: int) -> int:
    """Give the size of the blocks that a file of so many bytes is compared by; whole MiB."""
    return max(SMALLEST_BLOCK, -(-size // MOST_BLOCKS // MIB) * MIB)


def node_blocks(shell: Shell, path: bytes, size: int, *, block: int | None = None) -> list[bytes] | None:
    """Give the digest of each block of the first ``size`` bytes of a file on the node; None if it cannot be told."""
    block = block or block_bytes(size)
    whole, rest = divmod(size, block)
    command = f"sh -c '{_BLOCKS}' ssm-proxy '{_octal(path)}' {block // MIB} {whole} {rest}"
    answer = shell.run(command, b"")
    if answer is None or answer[0] != 0:
        return None
    digests = [_digest(line) for line in answer[1].splitlines()]
    if len(digests) != whole + (rest > 0) or None in digests:
        return None
    return [digest for digest in digests if digest is not None]


def node_files(shell: Shell, paths: Sequence[bytes]) -> list[bytes | None] | None:
    """Give the digest of each file; None in the place of one that cannot be read, or None for all.

    Args:
        shell: of the node.
        paths: absolute.
    """
    digests: dict[bytes, bytes] = {}
    plain = [path for path in paths if not _ODD.search(path)]
    odd = [path for path in paths if _ODD.search(path)]
    if plain:
        answer = shell.run(f"sh -c '{_PLAIN_FILES}' ssm-proxy", b"\0".join(plain) + b"\0")
        if answer is None or not answer[1].endswith(_END):
            return None
        for line in answer[1].split(b"\n"):
            match = _DIGEST.match(line)
            if match is not None:
                digests[line[match.end() :]] = bytes.fromhex(match[1].decode())
    if odd:
        answer = shell.run(f"sh -c '{_FILES}' ssm-proxy", "".join(f"{_octal(path)}\n" for path in odd).encode())
        if answer is None or not answer[1].endswith(_END):
            return None
        lines = answer[1].split(b"\n")[-2 - len(odd) : -2]
        if len(lines) != len(odd):
            return None
        for path, line in zip(odd, lines, strict=True):
            if (digest := _digest(line)) is not None:
                digests[path] = digest
    return [digests.get(path) for path in paths]


class Readable(Protocol):
    def read_at(self, offset: int, size: int) -> bytes: ...


def local_blocks(file: Readable, size: int) -> list[bytes]:
    """Give the digest of each block of the first ``size`` bytes of a file; of what is there if it is shorter."""
    block = block_bytes(size)
    return [hash_stretch(file, start, min(block, size - start)) for start in range(0, size, block)]


def differing(ours: Sequence[bytes], theirs: Sequence[bytes], size: int) -> list[tuple[int, int]]:
    """Give offset and size of each block that is not the same."""
    block = block_bytes(size)
    return [
        (index * block, min(block, size - index * block))
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True))
        if one != other
    ]


class InBackground:
    """Runs a function in a thread; the two ends of a comparison are read at once."""

    def __init__(self, function: Callable[[], list[bytes]]) -> None:
        self._function = function
        self._result: list[bytes] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ssm-proxy checksum", daemon=True)
        self._thread.start()

    def result(self) -> list[bytes]:
        """Wait for it.

        Raises:
            Exception: as the function.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: ``result`` raises it again
            self._error = error


def hash_stretch(file: Readable, start: int, size: int) -> bytes:
    """Give the digest of a stretch of a file, or of what there is of it."""
    digest = hashlib.sha256()
    while size and (data := file.read_at(start, min(size, MIB))):
        digest.update(data)
        start += len(data)
        size -= len(data)
    return digest.digest()


def _digest(line: bytes) -> bytes | None:
    match = _DIGEST.match(line)
    return None if match is None else bytes.fromhex(match[1].decode())


def _octal(path: bytes) -> str:
    return "".join(f"\\0{byte:03o}" for byte in path)
