"""The data cut out of botocore: still what the installed botocore says, and to the same effect."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from aws_service import clear_environment
from botocore.exceptions import BotoCoreError, UnknownServiceError
from botocore.loaders import Loader
from botocore.session import Session

from ssm_proxy.aws.botocore_session import BotocoreSession
from ssm_proxy.aws.model_loader import MODELS, create_loader

SERVICE = "ssm/2014-11-06/service-2"
TAGGING = "resourcegroupstaggingapi/2017-01-26/service-2"
SESSION_CALLS = ("StartSession", "ResumeSession", "TerminateSession")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    return tmp_path


def script() -> Any:
    path = str(Path(__file__).resolve().parents[2] / "scripts" / "trim_model")
    loader = importlib.machinery.SourceFileLoader("trim_model", path)
    spec = importlib.util.spec_from_loader("trim_model", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def drift(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """List what we have and the installed model has not, or has otherwise. New things there are no drift."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [line for name in ours for line in drift(ours[name], theirs.get(name), f"{place}/{name}")]
    if isinstance(ours, list) and isinstance(theirs, list):
        return [f"{place}: {item} is missing" for item in ours if item not in theirs]
    return [] if ours == theirs else [f"{place}: {ours} is now {theirs}"]


def test_nothing_that_session_calls_use_has_changed_in_the_installed_model():
    """The other calls may gain members with each version: scripts/trim_model --check shows those."""
    ours = json.loads(Path(MODELS, f"{SERVICE}.json").read_text())
    theirs = script().trim_service(Loader().load_data(SERVICE), script().SERVICES[SERVICE])
    assert drift(ours["operations"], theirs["operations"]) == []
    assert drift(reached_from(ours, SESSION_CALLS), theirs["shapes"]) == []
    for name in ("apiVersion", "endpointPrefix", "jsonVersion", "protocol", "signatureVersion", "targetPrefix"):
        assert ours["metadata"][name] == theirs["metadata"][name]


def reached_from(model: Any, operations: tuple[str, ...]) -> dict[str, Any]:
    names = set(script().shape_names([model["operations"][name] for name in operations]))
    while not names >= (more := set(script().shape_names([model["shapes"][name] for name in names]))):
        names |= more
    assert {"StartSessionRequest", "SessionManagerParameters", "TokenValue", "TargetNotConnected"} <= names
    return {name: model["shapes"][name] for name in names}


def test_session_calls_need_nothing_new():
    ours = json.loads(Path(MODELS, f"{SERVICE}.json").read_text())
    theirs = Loader().load_data(SERVICE)
    for name in SESSION_CALLS:
        shapes = [ours["operations"][name]["input"]["shape"], theirs["operations"][name]["input"]["shape"]]
        assert ours["shapes"][shapes[0]].get("required") == theirs["shapes"][shapes[1]].get("required")
        assert ours["operations"][name]["errors"] == theirs["operations"][name]["errors"]


def test_drift_is_seen():
    ours = json.loads(Path(MODELS, f"{SERVICE}.json").read_text())
    theirs = json.loads(json.dumps(ours))
    theirs["shapes"]["StartSessionRequest"]["members"]["Target"]["shape"] = "Other"
    theirs["shapes"]["StartSessionRequest"]["required"] = []
    del theirs["operations"]["ResumeSession"]
    theirs["shapes"]["StartSessionRequest"]["members"]["New"] = {"shape": "String"}
    assert len(drift(ours, theirs)) == 3


@pytest.mark.parametrize("service", [SERVICE, TAGGING])
def test_models_are_small_and_without_documentation(service):
    text = Path(MODELS, f"{service}.json").read_text()
    assert len(text) < 40_000
    assert '"documentation"' not in text
    assert sorted(json.loads(text)["operations"]) == sorted(script().SERVICES[service])


def test_tags_are_asked_for_in_the_form_that_every_botocore_knows():
    ours = json.loads(Path(MODELS, f"{TAGGING}.json").read_text())
    assert (ours["metadata"]["protocol"], ours["metadata"]["protocols"]) == ("json", ["json"])
    theirs = script().trim_service(Loader().load_data(TAGGING), script().SERVICES[TAGGING])
    assert drift(ours["shapes"], theirs["shapes"]) == []


def test_endpoints_are_those_of_botocore_without_the_other_services():
    ours = json.loads(Path(MODELS, "endpoints.json").read_text())
    theirs = Loader().load_data("endpoints")
    assert {partition["partition"] for partition in ours["partitions"]} >= {"aws", "aws-cn", "aws-us-gov"}
    for partition in ours["partitions"]:
        assert set(partition["services"]) <= set(script().ENDPOINT_PREFIXES)
    assert ours["version"] == theirs["version"]


REGIONS = ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "eusc-de-east-1", "xx-new-1"]


@pytest.mark.parametrize("service", ["ssm", "sts", "sso", "sso-oidc", "resourcegroupstaggingapi"])
@pytest.mark.parametrize(("fips", "dualstack"), [(False, False), (True, False), (False, True)])
def test_addresses_and_signing_regions_are_those_of_botocore(monkeypatch, service, fips, dualstack):
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", str(fips).lower())
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", str(dualstack).lower())
    plain, fast = Session(), Session()
    fast.register_component("data_loader", create_loader(None))
    for region in REGIONS:
        assert address_of(fast, service, region) == address_of(plain, service, region)


def address_of(session: Session, service: str, region: str) -> tuple[str, ...]:
    """Let botocore build a request, and stop it before it is sent."""
    calls = {
        "ssm": ("get_connection_status", {"Target": "i-0"}),
        "resourcegroupstaggingapi": ("get_resources", {}),
        "sts": ("get_caller_identity", {}),
        "sso": ("list_accounts", {"accessToken": "x"}),
        "sso-oidc": ("start_device_authorization", {"clientId": "a", "clientSecret": "b", "startUrl": "c"}),
    }
    name, arguments = calls[service]
    seen: list[tuple[str, ...]] = []

    class Stopped(Exception):
        pass

    def stop(request: Any, **_: Any) -> None:
        scope = request.headers.get("Authorization", b"").decode().partition(",")[0]
        seen.append((request.url, scope.partition("/")[2][9:]))
        raise Stopped

    try:
        client = session.create_client(service, region_name=region)
        client.meta.events.register("before-send", stop)
        getattr(client, name)(**arguments)
    except Stopped:
        return seen[0]
    except BotoCoreError as error:
        return (type(error).__name__, str(error))
    raise AssertionError("the request was sent")


def test_legacy_sts_region_is_that_of_botocore(monkeypatch):
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "legacy")
    plain, fast = Session(), Session()
    fast.register_component("data_loader", create_loader(None))
    for region in ("us-west-2", "aws-global", "eu-south-1"):
        assert address_of(fast, "sts", region) == address_of(plain, "sts", region)


def test_session_reads_our_model_and_not_the_whole_one():
    session = BotocoreSession(profile=None, region="eu-west-1", endpoint_url=None)
    assert sorted(session.client().meta.service_model.operation_names) == sorted(script().SERVICES[SERVICE])


def test_models_of_the_user_come_first(tmp_path):
    folder = tmp_path / "models" / "ssm" / "2014-11-06"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text('{"of": "the user"}')
    assert create_loader(str(tmp_path / "models")).load_data(SERVICE) == {"of": "the user"}
    assert create_loader(f"{tmp_path / 'nothing'}").load_data(SERVICE) != {"of": "the user"}


def test_unknown_service_is_still_an_error():
    with pytest.raises(UnknownServiceError):
        create_loader(None).load_service_model("no-such-service", "service-2")
