"""Session documents: what the service checks, what the agent makes of them, and the files they come from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.emulator.document_files import load_documents, parse_document
from ssm_proxy.emulator.documents import (
    SERVICE_DOCUMENTS,
    Parameter,
    ParameterError,
    SessionDocument,
    check_parameters,
    resolve_document,
)
from ssm_proxy.errors import UsageError

FULL: dict[str, Any] = {
    "schemaVersion": "1.0",
    "description": "Shows a log",
    "sessionType": "InteractiveCommands",
    "inputs": {"kmsKeyId": "alias/{{ key }}", "idleSessionTimeout": "5", "maxSessionDuration": "60"},
    "parameters": {
        "logpath": {
            "type": "String",
            "description": "where",
            "default": "/var/log/messages",
            "allowedPattern": "^/[a-z/]+$",
            "minChars": 2,
            "maxChars": "40",
        },
        "level": {"type": "String", "default": "info", "allowedValues": ["info", "debug"]},
        "files": {"type": "StringList", "default": ["a", "b"], "minItems": 1, "maxItems": 3},
        "count": {"type": "Integer", "default": 5},
        "key": {"type": "String", "default": "k"},
    },
    "properties": {
        "linux": {"commands": "tail {{logpath}} {{ level }} {{  count  }}", "runAsElevated": True},
        "list": ["{{ files }}", "all: {{ files }}", "{{ unknown }}", 5, None],
    },
}


PARAMETER = ("type", "default", "allowedValues", "allowedPattern", "minChars", "maxChars", "minItems", "maxItems")


def changed(**members: Any) -> dict[str, Any]:
    return {**FULL, **members}


def test_a_full_document_with_its_defaults() -> None:
    resolved = resolve_document(parse_document(FULL), {})
    assert resolved.session_type == "InteractiveCommands"
    assert resolved.properties == {
        "linux": {"commands": "tail /var/log/messages info 5", "runAsElevated": True},
        "list": [["a", "b"], 'all: ["a", "b"]', "{{ unknown }}", 5, None],
    }
    assert (resolved.kms_key_id, resolved.inputs["idleSessionTimeout"], resolved.flaw) == ("alias/k", "5", "")


def test_parameters_of_the_caller() -> None:
    document = parse_document(FULL)
    given = {"logpath": ["/x"], "files": ["one", "two"], "level": ["debug"]}
    check_parameters(document, given)
    resolved = resolve_document(document, given)
    assert resolved.properties["linux"]["commands"] == "tail /x debug 5"
    assert resolved.properties["list"][0] == ["one", "two"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"nothing": ["x"]}, "not defined"),
        ({"logpath": ["x"]}, "allowed pattern"),
        ({"logpath": ["/" + "x" * 40]}, "too long"),
        ({"logpath": ["/x", "/y"]}, "exactly one value"),
        ({"logpath": []}, "exactly one value"),
        ({"level": ["trace"]}, "allowed values"),
        ({"files": []}, "too few"),
        ({"files": ["a"] * 4}, "too many"),
    ],
)
def test_parameters_that_the_service_refuses(given: dict[str, list[str]], text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        check_parameters(parse_document(FULL), given)


def test_a_parameter_without_a_default_has_to_be_given() -> None:
    with pytest.raises(ParameterError, match="command"):
        check_parameters(SERVICE_DOCUMENTS["AWS-StartNonInteractiveCommand"], {})


def test_patterns_are_not_anchored_by_themselves() -> None:
    document = SessionDocument(session_type="Port", parameters={"x": Parameter(pattern="b")})
    check_parameters(document, {"x": ["abc"]})


@pytest.mark.parametrize(
    ("document", "flaw"),
    [
        (changed(schemaVersion="2.0"), "schema version 2.0"),
        (changed(parameters={"x": {"type": "String", "default": "a", "allowedPattern": "^b$"}}), "allowed pattern"),
        (changed(properties={"linux": {"commands": "{{ ssm:secret }}"}}), "parameter store"),
    ],
)
def test_what_the_agent_drops(document: dict[str, Any], flaw: str) -> None:
    parsed = parse_document(document)
    check_parameters(parsed, {})
    assert flaw in resolve_document(parsed, {}).flaw


def test_the_agent_looks_at_names_of_letters_and_digits_only() -> None:
    document = SessionDocument(
        session_type="Port", parameters={"a_b": Parameter(default="x")}, properties={"p": "{{ a_b }}"}
    )
    assert resolve_document(document, {}).properties == {"p": "{{ a_b }}"}


def test_values_are_not_looked_at_again() -> None:
    document = SERVICE_DOCUMENTS["AWS-StartInteractiveCommand"]
    resolved = resolve_document(document, {"command": ["echo {{ command }}"]})
    assert resolved.properties["linux"]["commands"] == "echo {{ command }}"


@pytest.mark.parametrize(
    ("name", "given", "properties"),
    [
        ("SSM-SessionManagerRunShell", {}, None),
        ("AWS-StartSSHSession", {}, {"portNumber": "22"}),
        (
            "AWS-StartPortForwardingSession",
            {"portNumber": ["443"]},
            {"portNumber": "443", "localPortNumber": "0", "type": "LocalPortForwarding"},
        ),
        (
            "AWS-StartPortForwardingSessionToRemoteHost",
            {"host": ["db"], "localPortNumber": ["1"]},
            {"portNumber": "80", "localPortNumber": "1", "type": "LocalPortForwarding", "host": "db"},
        ),
        (
            "AWS-StartPortForwardingSessionToSocket",
            {"localUnixSocket": ["/tmp/s"]},
            {
                "portNumber": "80",
                "localUnixSocket": "/tmp/s",
                "localConnectionType": "unix",
                "type": "LocalPortForwarding",
            },
        ),
    ],
)
def test_documents_of_the_service(name: str, given: dict[str, list[str]], properties: Any) -> None:
    document = SERVICE_DOCUMENTS[name]
    check_parameters(document, given)
    resolved = resolve_document(document, given)
    assert (resolved.properties, resolved.flaw) == (properties, "")


@pytest.mark.parametrize("port", ["0", "65536", "22x", "22\n", "", "-1"])
def test_ports_that_are_none(port: str) -> None:
    with pytest.raises(ParameterError):
        check_parameters(SERVICE_DOCUMENTS["AWS-StartSSHSession"], {"portNumber": [port]})


# --- files ---------------------------------------------------------------------------------------------------------


def test_documents_from_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "Company-Logs.json").write_text(json.dumps(FULL))
    (folder / "notes.txt").write_text("not a document")
    single = tmp_path / "SSM-SessionManagerRunShell.json"
    single.write_text('{"schemaVersion": "1.0", "sessionType": "Standard_Stream", "inputs": {}}')
    documents = load_documents([folder, single])
    assert sorted(documents) == ["Company-Logs", "SSM-SessionManagerRunShell"]
    assert documents["SSM-SessionManagerRunShell"] == SessionDocument(session_type="Standard_Stream")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, ""),
        ("[]", "not a JSON object"),
        ("{}", "sessionType is missing"),
        ('{"sessionType": "Port"}', "schemaVersion is missing"),
        (json.dumps(changed(inputs={"idleSessionTimeout": "61"})), "idleSessionTimeout is not a text of 1 to 60"),
        (json.dumps(changed(inputs={"maxSessionDuration": 5})), "maxSessionDuration is not a text"),
        (json.dumps(changed(parameters={"x": {"type": "Map"}})), "parameter x has no type"),
        (json.dumps(changed(parameters={"x": {"allowedPattern": "("}})), "no regular expression"),
        (json.dumps(changed(parameters={"x": {"minChars": "many"}})), "not a number"),
        (json.dumps(changed(parameters={"x": {"type": "StringList", "default": "a"}})), "not a list"),
        (json.dumps(changed(parameters={"x": {"default": ["a"]}})), "not a single value"),
        (json.dumps(changed(parameters=[])), ""),
        (json.dumps(changed(description="x" * 70_000)), "more than 64 KiB"),
    ],
)
def test_files_that_are_no_documents(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "Broken.json"
    file.write_text(text)
    if cause or text.startswith("["):
        with pytest.raises(UsageError, match=r"Broken\.json' is no session document") as caught:
            load_documents([file])
        assert cause in str(caught.value.cause)
    else:
        assert load_documents([file])["Broken"].parameters == {}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["{{ x }}", "1.0", "String", "5"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FULL, *FULL["inputs"], *PARAMETER, "x"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(list(FULL)), JSON), JSON)
def test_any_json_is_a_document_or_named_as_none(members: dict[str, Any], parameter: Any) -> None:
    values = {**FULL, **members}
    if isinstance(values["parameters"], dict):
        values["parameters"] = {**values["parameters"], "x": parameter}
    try:
        document = parse_document(values)
    except ValueError as error:
        assert str(error)  # noqa: PT017
        return
    with contextlib.suppress(ParameterError):
        check_parameters(document, {})
    json.dumps(resolve_document(document, {}).properties)


def test_paths_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no session document in"):
        load_documents([tmp_path])
    with pytest.raises(UsageError, match="cannot be read"):
        load_documents([tmp_path / "Missing.json"])
    (tmp_path / "a b.json").write_text("{}")
    with pytest.raises(UsageError, match="no name for a document"):
        load_documents([tmp_path])
