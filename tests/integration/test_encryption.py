"""Sessions that KMS encrypts, through the whole program: a key from KMS, a challenge, payloads nobody else can read."""

from __future__ import annotations

import base64
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nodes import EMBEDDED, MakeUser, StartEmulator, User

from ssm_proxy.emulator import Faults
from ssm_proxy.emulator.documents import SERVICE_DOCUMENTS, SessionDocument
from ssm_proxy.emulator.kms import DISABLED_KEY_ALIAS, KEY_ALIAS, KEY_ID

pytestmark = pytest.mark.integration
TYPED = b"echo enc-$((40+2)); exit\n"
SHOWN = b"enc-42\r\n"
NOTICE = b"This session is encrypted using AWS KMS."


def encrypted_documents(key_id: str = KEY_ALIAS) -> dict[str, SessionDocument]:
    """Give the service's documents, each with a KMS key."""
    return {
        name: replace(document, inputs={**document.inputs, "kmsKeyId": key_id})
        for name, document in SERVICE_DOCUMENTS.items()
    }


def run(user: User, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "ssm_proxy", *arguments],
        env=user.environment,
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("agent_version", ["3.3.987.0", "3.3.0.0"])  # with and without a random challenge
def test_a_shell(start_emulator: StartEmulator, new_user: MakeUser, agent_version: str) -> None:
    emulator = start_emulator(documents=encrypted_documents(), agent_version=agent_version)
    done = run(new_user(emulator, EMBEDDED), "shell", EMBEDDED, data=TYPED)
    assert SHOWN in done.stdout
    assert NOTICE in done.stderr
    assert NOTICE not in done.stdout
    assert done.returncode == 0


def test_a_command_with_both_streams_and_its_status(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(documents=encrypted_documents())
    done = run(new_user(emulator, EMBEDDED), "exec", EMBEDDED, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.returncode) == (b"out\n", 7)
    assert done.stderr.endswith(b"err\n")


def test_a_session_that_is_cut_goes_on_with_its_key(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(documents=encrypted_documents(), faults=Faults(drop_after_bytes=20_000, drop_times=3))
    many = b"for i in 1 2 3 4 5 6 7 8 9; do head -c 9000 /dev/zero | tr '\\0' \"$i\"; done; echo; exit\n"
    done = run(new_user(emulator, EMBEDDED), "shell", EMBEDDED, data=many)
    for digit in b"123456789":
        assert done.stdout.count(bytes([digit]) * 9000) == 1
    (session,) = emulator.sessions()
    assert session.connections > 1
    assert done.returncode == 0


def test_ssh_is_never_encrypted_twice(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(documents=encrypted_documents(), faults=Faults(deny="GenerateDataKey,Decrypt"))
    assert new_user(emulator, EMBEDDED).output("echo marker") == b"marker\n"


@pytest.mark.parametrize(
    ("key_id", "message"),
    [
        (DISABLED_KEY_ALIAS, b"cannot be used"),
        ("alias/none", b"there is no KMS key 'alias/none'"),
        (f"arn:aws:kms:mars-north-1:123456789012:key/{KEY_ID}", b"of another region"),
    ],
)
def test_a_key_that_cannot_be_used(
    start_emulator: StartEmulator, new_user: MakeUser, key_id: str, message: bytes
) -> None:
    emulator = start_emulator(documents=encrypted_documents(key_id))
    done = run(new_user(emulator, EMBEDDED), "shell", EMBEDDED, data=TYPED)
    assert (done.returncode, done.stdout) == (8, b"")
    for part in (message, b"ssm-proxy: hint: "):
        assert part in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_key_that_the_client_may_not_use(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(documents=encrypted_documents(), faults=Faults(deny="GenerateDataKey"))
    done = run(new_user(emulator, EMBEDDED), "shell", EMBEDDED, data=TYPED)
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"access denied: kms:GenerateDataKey" in done.stderr
    (session,) = emulator.sessions()
    assert "KMSEncryption failed on client with status 2 error: access denied" in session.details


def test_a_key_that_the_agent_may_not_use(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(documents=encrypted_documents(), faults=Faults(deny="Decrypt"))
    done = run(new_user(emulator, EMBEDDED), "shell", EMBEDDED, data=TYPED)
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"kms:Decrypt" in done.stderr


def test_the_data_key_and_what_is_typed_show_nowhere(
    start_emulator: StartEmulator, new_user: MakeUser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys: list[bytes] = []
    make: Callable[[int | None], bytes] = secrets.token_bytes

    def collect(size: int | None = None) -> bytes:
        made = make(size)
        if size == 64:  # data keys and challenges
            keys.append(made)
        return made

    monkeypatch.setattr(secrets, "token_bytes", collect)
    emulator = start_emulator(documents=encrypted_documents())
    log = tmp_path / "log"
    user = new_user(emulator, EMBEDDED)
    done = run(user, "shell", EMBEDDED, "-vvv", "--log-file", str(log), data=TYPED)
    assert SHOWN in done.stdout
    text = log.read_bytes() + done.stderr
    assert b"> input_stream_data" in text
    assert len(keys) >= 2
    for key in keys:
        for half in (key[:32], key[32:]):
            for shown in (half, half.hex().encode(), base64.b64encode(half)[:40], half[:16].hex().encode()):
                assert shown not in text
    assert b"enc-" not in text
    assert b"enc-".hex().encode() not in text
