"""The agent's half of an encrypted session: against the recorded client, and against a client that does it wrong."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import boto3
import pytest
from emulator_peer import NODE, Peer, ssm_client
from golden.transcripts import Record, records

from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, encryption
from ssm_proxy.emulator.calls import ServiceError
from ssm_proxy.emulator.documents import ResolvedDocument, SessionDocument
from ssm_proxy.emulator.encryption import CUSTOMER_MESSAGE, AgentEncryption, KeyRefused
from ssm_proxy.emulator.handshake import AgentHandshake, State
from ssm_proxy.emulator.kms import KEY_ALIAS
from ssm_proxy.wire.constants import CLIENT_VERSION, PayloadType
from ssm_proxy.wire.payloads import (
    HandshakeResponse,
    ProcessedAction,
    decode_handshake_complete,
    decode_handshake_request,
    encode_handshake_response,
)
from ssm_proxy.wire.shell_payloads import decode_challenge, encode_challenge

PLAINTEXT = bytes(range(64))
KEY_ARN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


def client_cipher(plaintext: bytes = PLAINTEXT) -> PayloadCipher:
    return PayloadCipher(DataKey(plaintext, b""), 0)


class Kms:
    """Opens any data key, and remembers what it was asked."""

    def __init__(self, plaintext: bytes = PLAINTEXT) -> None:
        self.plaintext = plaintext
        self.requests: list[Mapping[str, Any]] = []

    def __call__(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        assert operation == "Decrypt"
        self.requests.append(request)
        return {"Plaintext": base64.b64encode(self.plaintext).decode()}


def make(kms: Any, version: str = "3.3.987.0") -> AgentEncryption:
    return AgentEncryption(key_id=KEY_ARN, session_id="s", target="t", agent_version=version, call_kms=kms)


class TestAgainstTheRecording:
    """``shell-encrypted``: with its random values, the emulator's agent says what the real one said, byte by byte."""

    def payload(self, sender: str, payload_type: int) -> bytes:
        found: list[Record] = [r for r in records("shell-encrypted") if r.data and r.kind.endswith("_stream_data")]
        (payload,) = [r.payload for r in found if r.sender == sender and r.payload_type == payload_type]
        return payload

    def events(self, name: str) -> dict[str, Any]:
        (values,) = [r.values for r in records("shell-encrypted") if r.values.get("event") == name]
        return values

    def test_the_whole_conversation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        key = bytes.fromhex(self.events("kms_data_key")["plaintext"])
        sealed = decode_challenge(self.payload("agent", 8))
        request = json.loads(self.payload("agent", 5))
        random = {
            16: base64.b64decode(request["RequestedClientActions"][1]["ActionParameters"]["Challenge"]),
            64: client_cipher(key).decrypt(sealed),
        }
        monkeypatch.setattr(encryption.secrets, "token_bytes", random.__getitem__)
        monkeypatch.setattr(encryption.secrets, "randbits", lambda bits: int.from_bytes(sealed[:12], "little"))
        kms = Kms(key)
        context = self.events("kms_decrypt")["asked_with"]
        agent = AgentEncryption(
            key_id=KEY_ARN,
            session_id=context["aws:ssm:SessionId"],
            target=context["aws:ssm:TargetId"],
            agent_version="3.3.987.0",
            call_kms=kms,
        )
        defects: Counter[str] = Counter()
        document = ResolvedDocument(session_type="Standard_Stream", inputs={"kmsKeyId": KEY_ARN})
        handshake = AgentHandshake(document, "3.3.987.0", defects, agent)
        assert handshake.request() == self.payload("agent", 5).replace(b'"3.3.0.0"', b'"3.3.987.0"')
        assert handshake.take_input(6, self.payload("client", 6))
        assert not handshake.failure
        (asked,) = kms.requests
        assert asked["EncryptionContext"] == context
        assert asked["KeyId"] == KEY_ARN
        assert handshake.challenge() == self.payload("agent", 8)
        assert handshake.take_input(9, self.payload("client", 9))
        assert handshake.state is State.PROVEN
        assert agent.decrypt(self.payload("client", 1)) == b"echo enc-$((40+2)); exit\n"
        output = self.payload("agent", 1)
        assert agent.encrypt(client_cipher(key).decrypt(output)) == output
        assert not defects


class TestKey:
    @pytest.mark.parametrize(
        ("version", "announced", "has_challenge"),
        [("3.3.987.0", True, True), ("3.3.987.0", False, False), ("3.3.0.0", True, False)],
    )
    def test_the_challenge_is_in_the_context_where_the_client_announces_it(
        self, version: str, announced: bool, has_challenge: bool
    ) -> None:
        kms = Kms()
        agent = make(kms, version)
        challenge = agent.action().parameters.get("Challenge")
        assert (challenge is not None) == (version == "3.3.987.0")
        agent.take_key({"KMSCipherTextKey": "AAAA", "ChallengeAcknowledgement": announced})
        context = {"aws:ssm:SessionId": "s", "aws:ssm:TargetId": "t"}
        if has_challenge:
            context["aws:ssm:RandomChallenge"] = challenge
        assert kms.requests[0]["EncryptionContext"] == context

    def test_a_refusal_of_kms_is_told(self) -> None:
        def refuse(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            raise ServiceError("AccessDeniedException", "not authorized to perform: kms:Decrypt")

        with pytest.raises(KeyRefused, match="AccessDeniedException: not authorized"):
            make(refuse).take_key({"KMSCipherTextKey": "AAAA"})

    @pytest.mark.parametrize(("version", "counts"), [("3.3.987.0", True), ("3.3.0.0", False)])
    def test_nonces_count_from_a_version_on(self, version: str, counts: bool) -> None:
        agent = make(Kms(), version)
        agent.take_key({"KMSCipherTextKey": "AAAA"})
        numbers = [int.from_bytes(agent.encrypt(b"")[:12], "little") for _ in range(50)]
        assert len(set(numbers)) == 50
        assert all((b - a) % 2**96 == 1 for a, b in itertools.pairwise(numbers)) == counts


# --- whole sessions ------------------------------------------------------------------------------------------------

SHELL = SessionDocument(session_type="Standard_Stream", inputs={"kmsKeyId": KEY_ALIAS})
PORT = SessionDocument(session_type="Port", properties={"portNumber": "22"}, inputs={"kmsKeyId": KEY_ALIAS})
DOCUMENTS = {"Test-Shell": SHELL, "Test-Port": PORT}


class EncryptedClient:
    """A client whose wrong ways can be chosen."""

    def __init__(self, emulator: Emulator, peer: Peer, session_id: str) -> None:
        self.peer = peer
        self.session_id = session_id
        self.emulator = emulator
        self.cipher = client_cipher()

    async def request(self) -> Any:
        await self.peer.until(lambda: self.of(PayloadType.HANDSHAKE_REQUEST))
        return decode_handshake_request(self.of(PayloadType.HANDSHAKE_REQUEST)[0]).requested_actions

    def of(self, payload_type: int) -> list[bytes]:
        return [message.payload for message in self.peer.received if message.payload_type == payload_type]

    async def respond(self, *, target: str = NODE) -> None:
        _, asked = await self.request()
        context = {"aws:ssm:SessionId": self.session_id, "aws:ssm:TargetId": target}
        context["aws:ssm:RandomChallenge"] = asked.parameter("Challenge")
        environment = self.emulator.environment()
        kms = boto3.client(
            "kms",
            endpoint_url=environment["AWS_ENDPOINT_URL_KMS"],
            region_name=environment["AWS_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )
        call = asyncio.to_thread(
            kms.generate_data_key, KeyId=asked.parameter("KMSKeyId"), NumberOfBytes=64, EncryptionContext=context
        )
        key = await call
        self.cipher = client_cipher(key["Plaintext"])
        result = {
            "KMSCipherTextKey": base64.b64encode(key["CiphertextBlob"]).decode(),
            "KMSCipherTextHash": None,
            "ChallengeAcknowledgement": True,
        }
        actions = [ProcessedAction("SessionType", 1), ProcessedAction("KMSEncryption", 1, result)]
        response = HandshakeResponse(client_version=CLIENT_VERSION, processed_actions=actions)
        await self.peer.send_input(encode_handshake_response(response), PayloadType.HANDSHAKE_RESPONSE)

    async def challenge(self) -> bytes:
        await self.peer.until(lambda: self.of(PayloadType.ENC_CHALLENGE_REQUEST))
        return self.cipher.decrypt(decode_challenge(self.of(PayloadType.ENC_CHALLENGE_REQUEST)[0]))

    async def answer(self, challenge: bytes) -> None:
        payload = encode_challenge(self.cipher.encrypt(challenge))
        await self.peer.send_input(payload, PayloadType.ENC_CHALLENGE_RESPONSE)

    def shown(self) -> bytes:
        return b"".join(self.cipher.decrypt(payload) for payload in self.of(PayloadType.OUTPUT))

    def details(self) -> str:
        return self.emulator.sessions()[-1].details


async def connect(emulator: Emulator, document: str) -> EncryptedClient:
    environment = emulator.environment()
    ssm = ssm_client(environment)
    response = await asyncio.to_thread(ssm.start_session, Target=NODE, DocumentName=document)
    peer = await Peer(environment, response).open()
    return EncryptedClient(emulator, peer, response["SessionId"])


@pytest.fixture
def emulator():
    with Emulator(EmulatorOptions(documents=DOCUMENTS, agent_pace_s=0)) as running:
        yield running


def test_an_encrypted_shell(emulator: Emulator) -> None:
    async def run() -> None:
        client = await connect(emulator, "Test-Shell")
        await client.respond()
        challenge = await client.challenge()
        assert len(challenge) == 64
        await client.answer(challenge)
        await client.peer.until(lambda: client.of(PayloadType.HANDSHAKE_COMPLETE))
        complete = decode_handshake_complete(client.of(PayloadType.HANDSHAKE_COMPLETE)[0])
        assert complete.customer_message == CUSTOMER_MESSAGE
        client.peer.start_resending()
        await client.peer.send_input(client.cipher.encrypt(b"echo enc-$((40+2)); exit\n"))
        await client.peer.until(lambda: client.peer.closed_output is not None)
        assert b"enc-42\r\n" in client.shown()
        assert b"enc-42" not in b"".join(client.peer.raw)
        await client.peer.close()

    asyncio.run(run())
    assert emulator.statistics()["client_defects"] == {}


def test_input_that_does_not_decrypt_is_not_acknowledged(emulator: Emulator) -> None:
    async def run() -> None:
        client = await connect(emulator, "Test-Shell")
        await client.respond()
        await client.answer(await client.challenge())
        await client.peer.until(lambda: client.shown())
        await client.peer.send_input(b"echo plain; exit\n")
        await client.peer.until(lambda: "input that does not decrypt" in emulator.sessions()[-1].client_defects)
        assert 2 not in client.peer.acknowledged
        assert b"plain" not in client.shown()
        await client.peer.close()

    asyncio.run(run())


@pytest.mark.parametrize("wrong", ["other bytes", "other key"])
def test_a_wrong_answer_to_the_challenge_fails_the_session(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr("ssm_proxy.emulator.agent_session.TIMEOUT_S", 1.0)

    async def run() -> None:
        client = await connect(emulator, "Test-Shell")
        await client.respond()
        challenge = await client.challenge()
        if wrong == "other key":
            client.cipher = client_cipher(bytes(64))
        else:
            challenge = bytes(64)
        await client.answer(challenge)
        await client.peer.until(lambda: client.peer.closed_output is not None)
        assert "Timed out waiting for encryption challenge." in str(client.peer.closed_output)
        assert 1 not in client.peer.acknowledged
        await client.peer.close()

    asyncio.run(run())
    assert emulator.statistics()["client_defects"] == {"wrong EncChallengeResponse": 1}


@pytest.mark.parametrize("reason", ["context", "denied"])
def test_a_key_that_the_agent_cannot_open_fails_the_session(emulator: Emulator, reason: str) -> None:
    if reason == "denied":
        emulator.set_faults(Faults(deny="Decrypt"))

    async def run() -> None:
        client = await connect(emulator, "Test-Shell")
        await client.respond(target="somebody-else" if reason == "context" else NODE)
        await client.peer.until(lambda: client.peer.closed_output is not None)
        name = "InvalidCiphertextException" if reason == "context" else "AccessDeniedException"
        assert f"Fetching data key failed: Unable to retrieve data key, Error when decrypting data key {name}" in str(
            client.peer.closed_output
        )
        await client.peer.close()

    asyncio.run(run())


def test_ports_are_never_encrypted(emulator: Emulator) -> None:
    async def run() -> None:
        client = await connect(emulator, "Test-Port")
        actions = await client.request()
        assert [action.action_type for action in actions] == ["SessionType"]
        await client.peer.shake_hands()
        await client.peer.until(lambda: client.peer.output.startswith(b"SSH-2.0-"))
        await client.peer.close()

    asyncio.run(run())
