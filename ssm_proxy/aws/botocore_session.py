"""One botocore session, set up for a short-lived program: few imports, little data, quick to fail.

Everything that AWS users configure (profiles, SSO, roles, processes, endpoints, trust, proxies, retries) is read by
botocore itself; this module only moves some defaults and spares it work.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ssm_proxy.aws.error_mapping import no_region

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from botocore.session import Session


class Patience(NamedTuple):
    """How long one call may take; times in seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    attempts: int | None = None
    """The first one included; None: as the user configured, else six, with pauses of up to 1, 2, 4, 8 and 16 s."""


PATIENT = Patience()
BRIEF = Patience(attempts=2)
"""For ResumeSession: who reconnects pauses and tries again itself, and wants to notice when the network is back."""
QUICK = Patience(connect_timeout=1.0, read_timeout=1.5, attempts=2)
"""For TerminateSession: a dying process waits for it."""
PROMPT = Patience(connect_timeout=3.0, read_timeout=4.0, attempts=3)
"""For data keys: the agent waits 15 s for the answer that they are part of. For tags, which are not everything."""
_DEFAULT_ATTEMPTS = 6
_SERVICES = frozenset({"ssm", "ecs", "kms", "sts", "sso", "sso-oidc", "signin", "resource-groups-tagging-api"})
"""Those that are ever called: Systems Manager, ECS for names of tasks, KMS, what the credential providers need, and the
tags of nodes."""
_MAKING_CLIENTS = threading.Lock()
"""botocore cannot make two clients of one session at once, and a session from outside may be in use here twice."""


class BotocoreSession:
    """Session, credentials and clients that belong together. Made without reading anything.

    Args:
        profile: as given by the user; None for what the environment says.
        region: as given by the user.
        endpoint_url: replaces the address of the Systems Manager API.
        existing: a session that somebody has set up, used as it is, with its own profile.
    """

    def __init__(
        self, *, profile: str | None, region: str | None, endpoint_url: str | None, existing: Session | None = None
    ) -> None:
        self._session = _create_session(profile, region) if existing is None else existing
        self._making = contextlib.nullcontext() if existing is None else _MAKING_CLIENTS
        self._region = region
        self._endpoint_url = endpoint_url
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, Patience], Any] = {}

    @property
    def profile(self) -> str | None:
        """Name of the profile in use, from the options or the environment; None is the default one."""
        name: str | None = self._session.get_config_variable("profile")
        return name

    @property
    def region(self) -> str | None:
        """The region as configured; None when there is none, or no telling."""
        from botocore.exceptions import BotoCoreError

        try:
            return self._configured_region()
        except BotoCoreError:
            return None

    def profiles(self) -> Mapping[str, Mapping[str, Any]]:
        """Give all profiles of the two configuration files, by name; none when the files cannot be read."""
        from botocore.exceptions import BotoCoreError

        try:
            found: Mapping[str, Mapping[str, Any]] = self._session.full_config["profiles"]
        except BotoCoreError:
            return {}
        return found

    def client(self, patience: Patience = PATIENT, service: str = "ssm") -> Any:
        """Give the client of a service for calls of this patience, made on the first call."""
        with self._lock:
            if (service, patience) not in self._clients:
                with self._making:
                    self._clients[service, patience] = self._create_client(service, patience)
            return self._clients[service, patience]

    def close(self) -> None:
        """Close the idle connections of the clients. They can be used again."""
        with self._lock:
            for client in self._clients.values():
                client.close()

    @property
    def has_chosen_attempts(self) -> bool:
        """Whether the user has set a number of attempts: in the environment, the profile, or the session."""
        from botocore.configprovider import ConfigChainFactory

        defaults = self._session.get_default_client_config()
        retries = getattr(defaults, "retries", None) or {}
        if "total_max_attempts" in retries or "max_attempts" in retries:
            return True
        # Not the session's own variable, which has a default if the session is ours.
        chain = ConfigChainFactory(session=self._session).create_config_chain(
            instance_name="max_attempts", env_var_names="AWS_MAX_ATTEMPTS", config_property_names="max_attempts"
        )
        return chain.provide() is not None

    def signing_region(self) -> str:
        """Give the region that signatures name; ``fips-`` and ``-fips`` in a region's name are not part of it."""
        region: str = self.client().meta.region_name
        return region

    def credentials(self) -> ReadOnlyCredentials:
        """Look up the credentials, and refresh them when they are about to expire.

        Raises:
            botocore.exceptions.NoCredentialsError: there are none.
        """
        from botocore.exceptions import NoCredentialsError

        found = self._session.get_credentials()
        if found is None:
            raise NoCredentialsError
        return found.get_frozen_credentials()

    def account(self) -> str:
        """Give what tells accounts apart, as far as it is known without a call: the account's id, else the profile."""
        account_id = getattr(self._session.get_credentials(), "account_id", None)
        return str(account_id or self.profile or "")

    def ca_bundle(self) -> str:
        """Give the file or folder of certificates that API calls trust."""
        from botocore.httpsession import get_cert_path

        # The order is that of botocore's endpoint: its own setting, then that of the requests library.
        chosen = self._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return str(chosen or get_cert_path(True))

    def proxy_url(self, url: str) -> str | None:
        """Give the proxy that an API call to this https URL would take, by HTTPS_PROXY and NO_PROXY."""
        from botocore.httpsession import ProxyConfiguration
        from botocore.utils import get_environ_proxies

        proxy: str | None = ProxyConfiguration(get_environ_proxies(url)).proxy_url_for(url)
        return proxy

    def _configured_region(self) -> str | None:
        name: str | None = self._region or self._session.get_config_variable("region")
        return name or None

    def _create_client(self, service: str, patience: Patience) -> Any:
        from botocore.config import Config

        region = self._configured_region()
        if region is None:
            raise no_region()
        config = Config(connect_timeout=patience.connect_timeout, read_timeout=patience.read_timeout)
        if patience.attempts is not None:  # None would replace what a session from outside has as its default
            config = config.merge(Config(retries={"total_max_attempts": patience.attempts}))
        endpoint_url = self._endpoint_url if service == "ssm" else None
        return self._session.create_client(service, region_name=region, endpoint_url=endpoint_url, config=config)


def _create_session(profile: str | None, region: str | None) -> Session:
    from botocore.config import Config
    from botocore.session import Session

    from ssm_proxy.aws.model_loader import create_loader

    session = Session(
        profile=profile,
        include_builtin_handlers=False,
        session_vars={
            # AWS_REGION first, as in the AWS CLI and all newer SDKs; botocore knows only the other name.
            "region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None),
            # Defaults only: the environment and the profile still decide.
            "retry_mode": ("retry_mode", "AWS_RETRY_MODE", "standard", None),
            "max_attempts": ("max_attempts", "AWS_MAX_ATTEMPTS", _DEFAULT_ATTEMPTS, int),
        },
    )
    _register_handlers(session)
    session.lazy_register_component("data_loader", lambda: create_loader(session.get_config_variable("data_path")))
    if region is not None:
        session.set_config_variable("region", region)
    # For the clients of the credential providers (STS, SSO) as well: an unreachable one must not hang for minutes.
    session.set_default_client_config(
        Config(connect_timeout=PATIENT.connect_timeout, read_timeout=PATIENT.read_timeout)
    )
    return session


def _register_handlers(session: Session) -> None:
    """Register botocore's own event handlers, as the session would by itself, but not those that can never be called.

    Four of five are for other services or for documentation; registering them takes a fifteenth of a cold start.
    """
    from botocore import handlers

    events = session.get_component("event_emitter")
    register = {
        handlers.REGISTER_FIRST: events.register_first,
        handlers.REGISTER_LAST: events.register_last,
    }
    for event, handler, *place in handlers.BUILTIN_HANDLERS:
        kind, _, rest = event.partition(".")
        service = rest.partition(".")[0]
        if kind != "docs" and (service in _SERVICES or service in ("", "*")):
            (register[place[0]] if place else events.register)(event, handler)
