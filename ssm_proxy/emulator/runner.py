"""The emulator as one object: a thread with an event loop of its own, and thread-safe handles on it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ssm_proxy.emulator.certificates import make_server_context
from ssm_proxy.emulator.counts import SessionSnapshot
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.options import Credentials, EmulatorOptions
from ssm_proxy.emulator.service import EmulatedService
from ssm_proxy.emulator.ssh_server import EmbeddedSshServer, make_key
from ssm_proxy.errors import ConfigurationError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class _Running:
    """What exists between start and end."""

    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event
    service: EmulatedService
    ssh_address: tuple[str, int]
    authority_certificate: Path | None


class Emulator:
    """Service and nodes on loopback, for as long as the ``with`` block lasts.

    Example::

        with Emulator(EmulatorOptions(agent_pace_s=0)) as emulator:
            subprocess.run(command, env=os.environ | emulator.environment())
    """

    def __init__(self, options: EmulatorOptions | None = None) -> None:
        self._options = options or EmulatorOptions()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> Emulator:
        self._directory = tempfile.TemporaryDirectory(prefix="ssm-proxy-emulator-")
        self._thread = threading.Thread(target=self._run, name="ssm-proxy-emulator")
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            self._directory.cleanup()
            if isinstance(self._failure, OSError | ValueError):
                raise ConfigurationError("the emulator cannot start", cause=str(self._failure)) from self._failure
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        running = self._started()
        running.loop.call_soon_threadsafe(running.stopping.set)
        if self._thread is not None:
            self._thread.join()
        if self._directory is not None:
            self._directory.cleanup()
        self._running = None

    # --- what a client needs -------------------------------------------------------------------------------------

    @property
    def endpoint_url(self) -> str:
        return self._started().service.endpoint_url

    @property
    def directory(self) -> Path:
        """Keys and certificates of this run; gone afterwards."""
        if self._directory is None:
            raise RuntimeError("the emulator was not started")
        return Path(self._directory.name)

    @property
    def identity_file(self) -> Path | None:
        """Private key that the embedded SSH server lets in; None if ``authorized_keys`` was given."""
        return None if self._options.authorized_keys is not None else self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Host keys of the nodes with the embedded server, in OpenSSH's form."""
        return self.directory / "known_hosts"

    @property
    def ssh_address(self) -> tuple[str, int]:
        """Where the embedded SSH server can be reached without Session Manager, to compare."""
        return self._started().ssh_address

    def environment(self) -> dict[str, str]:
        """Give the variables that point an AWS SDK at this emulator, with the credentials now in force."""
        credentials = self._call(lambda service: service.credentials)
        variables = {
            "AWS_ENDPOINT_URL_SSM": self.endpoint_url,
            "AWS_ENDPOINT_URL_ECS": self.endpoint_url,
            "AWS_ENDPOINT_URL_KMS": self.endpoint_url,
            "AWS_ENDPOINT_URL_RESOURCE_GROUPS_TAGGING_API": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": credentials.access_key_id,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
            "AWS_REGION": self._options.region,
            "AWS_DEFAULT_REGION": self._options.region,
            "AWS_SESSION_TOKEN": credentials.session_token or "",  # empty hides one that is set outside
        }
        certificate = self._started().authority_certificate
        if certificate is not None:
            variables["AWS_CA_BUNDLE"] = str(certificate)
        return variables

    # --- run-time changes ----------------------------------------------------------------------------------------

    def set_faults(self, faults: Faults) -> None:
        """Put other faults in force."""
        self._call(lambda service: service.set_faults(faults))

    def drop_connections(self, side: str = "client", manner: str = "reset") -> int:
        """Cut the connection of one side of every open session; give how many there were to cut."""
        return self._call(lambda service: service.drop_connections(side, manner))

    def set_online(self, node_id: str, is_online: bool, *, sessions: str = "silent") -> None:
        """Let a node go down, with all its sessions, or come up again; ``sessions``: ``silent`` or ``closed``."""
        self._call(lambda service: service.set_online(node_id, is_online, sessions))

    def rotate_credentials(self, credentials: Credentials) -> None:
        """Accept other credentials from now on, and the old ones no more."""
        self._call(lambda service: service.rotate_credentials(credentials))

    def sessions(self) -> list[SessionSnapshot]:
        """Give all sessions, ended ones too, the latest last."""
        return self._call(lambda service: service.sessions())

    def statistics(self) -> dict[str, Any]:
        """Give everything that was counted, as plain values."""
        return self._call(lambda service: service.statistics())

    def _call(self, function: Callable[[EmulatedService], _T]) -> _T:
        running = self._started()

        async def run() -> _T:
            return function(running.service)

        return asyncio.run_coroutine_threadsafe(run(), running.loop).result()

    def _started(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the emulator is not running")
        return self._running

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed over to the thread that waits for the start
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        ssh_server = EmbeddedSshServer()
        service: EmulatedService | None = None
        try:
            authorized_keys, host_key = self._make_keys()
            if any(node.ssh_address is None for node in self._options.nodes):
                await ssh_server.start(host_key, authorized_keys)
            context = certificate = None
            if self._options.tls:
                context, certificate = make_server_context(self.directory, self._options.host)
            service = EmulatedService(self._options, ssh_server.address)
            await service.start(context)
            running = _Running(
                loop=asyncio.get_running_loop(),
                stopping=asyncio.Event(),
                service=service,
                ssh_address=ssh_server.address,
                authority_certificate=certificate,
            )
            self._running = running
            self._ready.set()
            await running.stopping.wait()
        finally:
            if service is not None:
                await service.stop()
            await ssh_server.stop()

    def _make_keys(self) -> tuple[Path, Path]:
        host_key = self.directory / "host_key"
        public = make_key(host_key, "emulator").export_public_key().decode()
        nodes = ",".join(node.node_id for node in self._options.nodes if node.ssh_address is None)
        self.known_hosts.write_text(f"{nodes} {public}" if nodes else "")
        if self._options.authorized_keys is not None:
            return self._options.authorized_keys, host_key
        identity = self.directory / "id_ed25519"
        make_key(identity, "emulator client")
        return identity.with_name("id_ed25519.pub"), host_key
