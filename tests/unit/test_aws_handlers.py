"""botocore's event handlers: those of the services that are called are all there, in its order, and no others."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from aws_service import clear_environment
from botocore import credentials, handlers, tokens, utils
from botocore.session import Session

from ssm_proxy.aws.botocore_session import _SERVICES, BotocoreSession

KINDS = sorted({event.partition(".")[0] for event, *_ in handlers.BUILTIN_HANDLERS} - {"docs"})
OPERATIONS = ("StartSession", "AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "GetRoleCredentials")
OPERATIONS += ("CreateToken", "CreateOAuth2Token", "create_o_auth2_token")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)


def handlers_of(session: Session, event: str) -> list[Any]:
    return list(session._original_handler._handlers.prefix_search(event))


@pytest.mark.parametrize("service", sorted(_SERVICES))
def test_a_service_that_is_called_has_the_handlers_of_botocore(service):
    whole, ours = Session(), BotocoreSession(profile=None, region=None, endpoint_url=None)._session
    count = 0
    for kind in KINDS:
        for operation in OPERATIONS:
            event = f"{kind}.{service}.{operation}"
            expected = handlers_of(whole, event)
            assert handlers_of(ours, event) == expected, event
            count += len(expected)
    assert count > len(OPERATIONS)


def test_those_of_other_services_are_left_out():
    ours = BotocoreSession(profile=None, region=None, endpoint_url=None)._session
    event = "before-call.neptune.CreateDBCluster"
    assert len(handlers_of(ours, event)) < len(handlers_of(Session(), event))


def test_credential_providers_call_no_other_services():
    """Drift of the installed botocore: a new way to log in may bring a new service."""
    pattern = re.compile(
        r"(?:client_creator\(|create_client\(|create_nested_client\(\s*\w[\w.]*,)\s*['\"]([\w-]+)['\"]"
    )
    called = {name for module in (credentials, tokens, utils) for name in pattern.findall(inspect.getsource(module))}
    assert {"sts", "sso", "sso-oidc"} <= called <= _SERVICES
