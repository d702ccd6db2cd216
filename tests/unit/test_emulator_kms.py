"""The emulator's keys, asked by botocore; its signatures and contexts are checked as those of the service are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults
from ssm_proxy.emulator.kms import DISABLED_KEY_ALIAS, KEY_ALIAS, KEY_ID

CONTEXT = {"aws:ssm:SessionId": "s", "aws:ssm:TargetId": "t"}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions()) as running:
        yield running


def client_of(emulator: Emulator, **changes: Any) -> Any:
    environment = emulator.environment()
    return boto3.client(
        "kms",
        endpoint_url=environment["AWS_ENDPOINT_URL_KMS"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=changes.get("secret", environment["AWS_SECRET_ACCESS_KEY"]),
        aws_session_token=environment["AWS_SESSION_TOKEN"] or None,
        config=boto3.session.Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def kms(emulator: Emulator) -> Any:
    return client_of(emulator)


def arn(emulator: Emulator, region: str | None = None) -> str:
    return f"arn:aws:kms:{region or emulator.environment()['AWS_REGION']}:123456789012:key/{KEY_ID}"


def code_of(call: Any, **request: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**request)
    details = caught.value.response["Error"]
    return details["Code"], details["Message"]


@pytest.mark.parametrize("name", ["arn", "id", "alias", "alias arn"])
def test_a_data_key_comes_readable_and_wrapped(emulator: Emulator, kms: Any, name: str) -> None:
    whole = arn(emulator)
    key_id = {
        "arn": whole,
        "id": KEY_ID,
        "alias": KEY_ALIAS,
        "alias arn": whole.replace(f"key/{KEY_ID}", KEY_ALIAS),
    }[name]
    given = kms.generate_data_key(KeyId=key_id, NumberOfBytes=64, EncryptionContext=CONTEXT)
    assert given["KeyId"] == whole
    assert len(given["Plaintext"]) == 64
    assert given["Plaintext"] not in given["CiphertextBlob"]
    opened = kms.decrypt(CiphertextBlob=given["CiphertextBlob"], EncryptionContext=CONTEXT)
    assert (opened["Plaintext"], opened["KeyId"]) == (given["Plaintext"], whole)
    again = kms.generate_data_key(KeyId=key_id, NumberOfBytes=64, EncryptionContext=CONTEXT)
    assert again["Plaintext"] != given["Plaintext"]


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"aws:ssm:SessionId": "s"},
        {**CONTEXT, "aws:ssm:TargetId": "other"},
        {**CONTEXT, "aws:ssm:RandomChallenge": "VH3g"},
    ],
)
def test_another_context_opens_nothing(kms: Any, context: dict[str, str]) -> None:
    given = kms.generate_data_key(KeyId=KEY_ALIAS, NumberOfBytes=64, EncryptionContext=CONTEXT)
    blob = given["CiphertextBlob"]
    assert code_of(kms.decrypt, CiphertextBlob=blob, EncryptionContext=context)[0] == "InvalidCiphertextException"


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_changed_blob_opens_nothing(kms: Any, position: int) -> None:
    given = kms.generate_data_key(KeyId=KEY_ALIAS, NumberOfBytes=64, EncryptionContext=CONTEXT)
    blob = bytearray(given["CiphertextBlob"])
    blob[position] ^= 1
    assert (
        code_of(kms.decrypt, CiphertextBlob=bytes(blob), EncryptionContext=CONTEXT)[0] == "InvalidCiphertextException"
    )


def test_keys_that_cannot_be_used(emulator: Emulator, kms: Any) -> None:
    def refusal(key_id: str) -> tuple[str, str]:
        return code_of(kms.generate_data_key, KeyId=key_id, NumberOfBytes=64)

    assert refusal(DISABLED_KEY_ALIAS)[0] == "DisabledException"
    assert refusal("alias/none") == (
        "NotFoundException",
        f"Alias {arn(emulator).rpartition(':')[0]}:alias/none is not found.",
    )
    assert refusal(arn(emulator)[:-1] + "6")[0] == "NotFoundException"
    assert refusal(arn(emulator, "mars-north-1")) == ("NotFoundException", "Invalid arn mars-north-1")
    assert code_of(kms.generate_data_key, KeyId=KEY_ALIAS)[0] == "ValidationException"


def test_signatures_are_checked(emulator: Emulator) -> None:
    stranger = client_of(emulator, secret="wrong")
    assert code_of(stranger.generate_data_key, KeyId=KEY_ALIAS, NumberOfBytes=64)[0] == "InvalidSignatureException"


@pytest.mark.parametrize("operation", ["GenerateDataKey", "Decrypt"])
def test_operations_can_be_denied(operation: str) -> None:
    with Emulator(EmulatorOptions(faults=Faults(deny=operation))) as emulator:
        kms = client_of(emulator)
        calls = {"GenerateDataKey": kms.generate_data_key, "Decrypt": kms.decrypt}
        requests: dict[str, dict[str, Any]] = {
            "GenerateDataKey": {"KeyId": KEY_ALIAS, "NumberOfBytes": 64},
            "Decrypt": {"CiphertextBlob": b"x"},
        }
        code, text = code_of(calls[operation], **requests[operation])
        assert code == "AccessDeniedException"
        assert f"kms:{operation}" in text
