"""The error tree, its exit statuses, and the texts of the core's errors (section 3.4 of the house style)."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from ssm_proxy import errors
from ssm_proxy.errors import OpeningRefused, SsmProxyError
from ssm_proxy.file_copy.values import CopyIncomplete

STATUSES = {
    "SsmProxyError": 1,
    "UsageError": 2,
    "ConfigurationError": 3,
    "TargetError": 4,
    "TargetNotConnected": 4,
    "ControlPlaneError": 5,
    "AccessDenied": 5,
    "Throttled": 5,
    "DocumentRejected": 5,
    "TransportError": 6,
    "ConnectFailed": 6,
    "OpeningRefused": 6,
    "TransportClosed": 6,
    "TransportTimeout": 6,
    "ProtocolError": 7,
    "RemoteProtocolError": 7,
    "MalformedMessage": 7,
    "DigestMismatch": 7,
    "HandshakeFailed": 7,
    "LocalProtocolError": 1,
    "EncryptionError": 8,
    "SessionEnded": 9,
    "ChannelClosed": 9,
    "AcknowledgeTimeout": 9,
    "PortError": 10,
    "RemotePortRefused": 10,
    "SshError": 12,
    "SshConnectFailed": 12,
    "HostKeyUnknown": 12,
    "HostKeyChanged": 12,
    "AuthenticationFailed": 12,
}


def classes() -> dict[str, type[SsmProxyError]]:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, SsmProxyError)}


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_exit_statuses(name: str, status: int) -> None:
    assert classes()[name].exit_status == status


def test_every_error_passes_from_one_process_to_another() -> None:
    kinds = [*classes().values(), CopyIncomplete]
    for kind in kinds:
        needed = [each for each in inspect.signature(kind).parameters.values() if each.default is each.empty]
        more = {each.name: 3 for each in needed if each.name != "message"}
        error = kind("what", cause="why", hint="what next", **more)
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(other) is kind
            assert (str(other), other.args, vars(other)) == ("what", error.args, vars(error))


def test_every_error_of_the_module_is_one_of_ours() -> None:
    raised = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, BaseException)]
    assert set(raised) == set(classes().values())


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4,})([A-Z]\w+)\b(?!,)", line)
        if match is None:
            continue
        indent, name = len(match[1]), match[2]
        while above and above[-1][0] >= indent:
            above.pop()
        drawn[name] = above[-1][1] if above else None
        above.append((indent, name))
    real = {name: value.__bases__[0].__name__ for name, value in classes().items()}
    real["SsmProxyError"] = None
    assert drawn == real


def test_what_why_and_what_next() -> None:
    error = SsmProxyError("it broke", cause="a wire came off", hint="put it back")
    assert (str(error), error.message, error.cause, error.hint) == (
        "it broke",
        "it broke",
        "a wire came off",
        "put it back",
    )
    assert (SsmProxyError("x").cause, SsmProxyError("x").hint) == (None, None)


def test_opening_refused_keeps_the_http_status() -> None:
    error = OpeningRefused("refused", status=403, cause="c", hint="h")
    assert (error.status, error.message, error.cause, error.hint) == (403, "refused", "c", "h")
