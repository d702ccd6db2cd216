"""``ssm-proxy demo``: real ssh and scp through the ProxyCommand to an emulated managed node, in one command."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ssm_proxy.errors import ConfigurationError, CopyError, UsageError

if TYPE_CHECKING:
    from ssm_proxy.emulator import Emulator

_MIB = 1024 * 1024
_DEFAULT_SIZE_MIB = 8
_STEP_TIMEOUT = 600
_END_TIMEOUT = 3.0
_TOOLS = ("ssh", "scp")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="see ssh and scp work through an emulated Session Manager, without an AWS account",
        description="examples:\n"
        "  ssm-proxy demo\n"
        "  ssm-proxy demo --size 64 --unpaced\n"
        "\nStart the emulator, run a real ssh command and a real scp round trip through the ProxyCommand to\n"
        "its managed node, compare checksums, and tell how fast it was. Nothing is left behind.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--size",
        metavar="MIB",
        default=str(_DEFAULT_SIZE_MIB),
        help=f"size of the file in MiB (default: {_DEFAULT_SIZE_MIB})",
    )
    parser.add_argument(
        "--unpaced",
        action="store_true",
        help="let the emulated agent send as fast as it can; a real one sends at most 1 MB/s in one session",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the main job once, and tell what happened."""
    if not arguments.size.isdigit() or not 0 < int(arguments.size) <= 4096:
        raise UsageError("the size must be a number of MiB from 1 to 4096")
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            raise ConfigurationError(
                f"{tool} was not found", hint="install the OpenSSH client: apt-get install openssh-client"
            )
    try:
        from ssm_proxy.emulator import Emulator, EmulatorOptions
        from ssm_proxy.emulator.options import REAL_PACE_S
    except ImportError as error:
        raise ConfigurationError(
            "the emulator is not installed",
            cause=str(error),
            hint="in the project's checkout: pip install '.[emulator]'",
        ) from error
    options = EmulatorOptions(agent_pace_s=0.0 if arguments.unpaced else REAL_PACE_S)
    with tempfile.TemporaryDirectory(prefix="ssm-proxy-demo-") as folder, Emulator(options) as emulator:
        _Demo(emulator, options.nodes[0].node_id, Path(folder), int(arguments.size) * _MIB).run()
    return 0


class _Demo:
    def __init__(self, emulator: Emulator, node: str, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._node = node
        self._emulator = emulator
        self._config = folder / "ssh_config"
        # The three lines that a user writes, with this very Python instead of what is on the PATH.
        proxy_command = f"{shlex.quote(sys.executable)} -m ssm_proxy proxy %h %p"
        self._config.write_text(
            f"Host i-* mi-*\n    ProxyCommand {proxy_command}\n    ServerAliveInterval 300\n"
            f"    IdentityFile {emulator.identity_file}\n    IdentitiesOnly yes\n"
            f"    BatchMode yes\n    LogLevel ERROR\n"
            f"    UserKnownHostsFile {folder / 'known_hosts'}\n    StrictHostKeyChecking accept-new\n"
        )

    def run(self) -> None:
        print(f"The emulator plays Session Manager and the node {self._node} at {self._emulator.endpoint_url}.\n")
        output, seconds = self._step("ssh", f"demo@{self._node}", "echo hello from $(uname -n), over Session Manager")
        print(f"    {output.strip()}\n    {seconds:.2f} s from start to end\n")
        original, copy = self._folder / "original", self._folder / "copy"
        original.write_bytes(os.urandom(self._size))
        remote = f"demo@{self._node}:{self._folder / 'on the node'}"
        _, up = self._step("scp", "-q", str(original), remote)
        print(f"    {self._size / _MIB:.0f} MiB up in {up:.2f} s, {self._size / up / 1e6:.1f} MB/s\n")
        _, down = self._step("scp", "-q", remote, str(copy))
        print(f"    {self._size / _MIB:.0f} MiB down in {down:.2f} s, {self._size / down / 1e6:.1f} MB/s\n")
        if _sha256(original) != _sha256(copy):
            raise CopyError("the file came back changed", cause="its SHA-256 is not the same")
        print(f"The file came back unchanged: SHA-256 {_sha256(copy)[:16]}…")
        if down > 2 * up:
            print("A node's agent sends at most 1,024 bytes per millisecond; the emulator does as it does.")
        print(f"Sessions: {len(self._emulator.sessions())} used, {self._count_left()} left behind.")

    def _count_left(self) -> int:
        """Count sessions that were not ended; ssh does not wait for its ProxyCommand, so this does."""
        deadline = time.monotonic() + _END_TIMEOUT
        while True:
            left = sum(session.status != "Terminated" for session in self._emulator.sessions())
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    def _step(self, tool: str, *arguments: str) -> tuple[str, float]:
        print(f"$ {tool} {shlex.join(arguments)}")
        began = time.monotonic()
        try:
            done = subprocess.run(
                [tool, "-F", str(self._config), *arguments],
                env={**os.environ, **self._emulator.environment()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                timeout=_STEP_TIMEOUT,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise CopyError(
                f"{tool} failed with status {error.returncode}", hint="its own message stands above"
            ) from None
        except subprocess.TimeoutExpired:
            raise CopyError(f"{tool} did not end within {_STEP_TIMEOUT} seconds") from None
        return done.stdout, time.monotonic() - began


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_MIB):
            digest.update(block)
    return digest.hexdigest()
