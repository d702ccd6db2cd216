"""An SSH connection to a managed node, in one call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ssm_proxy.api.service import Service, check_port, check_target, check_timeout, log_notice
from ssm_proxy.errors import UsageError
from ssm_proxy.secret import Secret
from ssm_proxy.sessions.port import STREAM_DOCUMENT
from ssm_proxy.ssh.login import STEP_TIMEOUT, Login
from ssm_proxy.ssh.settings import read_settings

if TYPE_CHECKING:
    import boto3
    import paramiko

    from ssm_proxy.api.connection import Connection
    from ssm_proxy.ssh.prompts import Prompter

Path = str | os.PathLike[str]


class Access(NamedTuple):
    """How nodes are reached. What is not said comes from ssh_config, or from the environment."""

    session: boto3.Session | None = None
    options: Mapping[str, str] = {}
    """Those of ``ssm-proxy proxy`` that choose account, region, endpoints, document, reason; by their names there."""
    port: int | None = None
    key_filename: Sequence[Path] = ()
    password: Secret | None = None
    config_file: Path | None = None
    prompter: Prompter | None = None
    timeout: float = STEP_TIMEOUT
    """Seconds for each step of the SSH connection."""
    begin_timeout: float | None = None
    """Seconds for the session to begin; None: as patient as ssh is with the ProxyCommand, which waits for its turn."""
    notify: Callable[[str], None] = log_notice
    """Shows a person one line. May be called from any thread."""


@contextlib.contextmanager
def login_to(host: str, user: str | None, access: Access) -> Iterator[Login]:
    """Give what logs in to a node, as often as is wanted; its connections end before the block does.

    Args:
        host: as ssh is given it.
        user: the account there; None: as for ssh.
        access: all else.

    Raises:
        ConfigurationError, UsageError: ssh_config, or the options.
    """
    reached = _Reached(host, user, access)
    with contextlib.closing(reached.service), reached.login(reached.dial) as login:
        yield login


class _Reached:
    """A host of ssh_config, and the service by which it is reached."""

    def __init__(self, host: str, user: str | None, access: Access) -> None:
        self._access = access
        self._settings = read_settings(
            host, user=user, port=access.port, identity_files=access.key_filename, config_file=access.config_file
        )
        # What the caller says comes first, then what the host's ProxyCommand in ssh_config says.
        options = {name.removeprefix("--"): value for name, value in self._settings.proxy_options.items()}
        if access.session is not None:
            options.pop("profile", None)  # that is what a session is for
        options.update(access.options)
        self._reason = options.get("reason")
        self._document_name = options.get("document-name", STREAM_DOCUMENT)
        self.service = Service(
            session=access.session,
            profile=options.get("profile"),
            region=options.get("region"),
            endpoint_url=options.get("endpoint-url"),
            stream_endpoint_url=options.get("stream-endpoint-url"),
            notify=access.notify,
        )

    def login(self, dial: Callable[[], Connection]) -> Login:
        return Login(
            self._settings,
            dial,
            give_up=self.service.give_up,
            prompter=self._access.prompter,
            password=self._access.password,
            notify=self._access.notify,
            timeout=self._access.timeout,
        )

    def dial(self) -> Connection:
        """Connect to the host's sshd. May be called from several threads."""
        return self._dial(_keep)

    def dial_last(self) -> Connection:
        """The same, and let go of the service when that connection ends."""
        return self._dial(self.service.close)

    def _dial(self, release: Callable[[], None]) -> Connection:
        return self.service.dial(
            self._settings.target,
            self._settings.port,
            reason=self._reason,
            document_name=self._document_name,
            timeout=self._access.begin_timeout,
            release=release,
        )


def ssh_client(
    target: str,
    username: str | None = None,
    *,
    session: boto3.Session | None = None,
    port: int | None = None,
    key_filename: Path | Sequence[Path] = (),
    password: str | None = None,
    config_file: Path | None = None,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    document_name: str | None = None,
    timeout: float = STEP_TIMEOUT,
) -> paramiko.SSHClient:
    """Give a connected `paramiko.SSHClient` to a managed node.

    Accounts, keys, ssh-agent, known hosts and host aliases are those of the user's ssh_config, and so are profile and
    region where the host's ProxyCommand is ``ssm-proxy proxy``. A new host key is accepted and remembered, a changed
    one never, unless ssh_config says otherwise. Nobody is asked anything: a key with a passphrase needs an agent, or
    ``password``.

    Closing the client ends the session. Safe to call from several threads at once; the client is paramiko's.

    Args:
        target: ``i-…``, ``mi-…``, or a host of ssh_config.
        username: the account there; None: as for ssh.
        session: whose AWS credentials, region and settings are used; else those of the environment.
        port: of sshd on the node; None: as for ssh.
        key_filename: private keys, tried first.
        password: of the account, or of the keys.
        config_file: instead of the user's and the system's ssh_config; ``none`` reads none.
        profile: as for ``connect``, and so are the five that follow.
        region: see there.
        reason: see there.
        endpoint_url: see there.
        stream_endpoint_url: see there.
        document_name: see there.
        timeout: seconds for each step: the session, the exchange of keys, authentication.

    Raises:
        SshError: ``AuthenticationFailed``, ``HostKeyChanged``, ``HostKeyUnknown``, ``SshConnectFailed``.
        ConfigurationError: ssh_config, region, credentials.
        SsmProxyError: as ``connect``.
    """
    access = make_access(
        session=session,
        port=port,
        key_filename=key_filename,
        password=password,
        config_file=config_file,
        profile=profile,
        region=region,
        reason=reason,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
        document_name=document_name,
        timeout=timeout,
    )
    check_target(target)
    if username is not None and not isinstance(username, str):
        raise UsageError(f"{username!r} is not the name of an account")
    reached = _Reached(target, username, access)
    with reached.login(reached.dial_last) as login:
        return login.open_client()


def make_access(
    *,
    session: boto3.Session | None,
    port: int | None,
    key_filename: Path | Sequence[Path],
    password: str | None,
    config_file: Path | None,
    timeout: float,
    **options: str | None,
) -> Access:
    """Give what the arguments of the public functions say; ``options`` are those of ``ssm-proxy proxy``.

    Raises:
        UsageError: no limit, or what is none.
    """
    if port is not None:
        check_port(port)
    check_timeout(timeout)
    if timeout is None:
        raise UsageError("timeout is None", hint="pass seconds: each step of an SSH connection needs a limit")
    return Access(
        session=session,
        options={name.replace("_", "-"): value for name, value in options.items() if value is not None},
        port=port,
        key_filename=[key_filename] if isinstance(key_filename, str | os.PathLike) else list(key_filename or ()),
        password=None if password is None else Secret(password),
        config_file=config_file,
        timeout=timeout,
        begin_timeout=timeout,
    )


def _keep() -> None:
    """Do not let go of the service: others use it."""
