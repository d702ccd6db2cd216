"""Encryption of payloads, against the recorded session of a real agent and against every change on the way."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys

import pytest
from golden.transcripts import Record, records
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.channel import cipher
from ssm_proxy.channel.cipher import DATA_KEY_BYTES, OVERHEAD_BYTES, DataKey, PayloadCipher
from ssm_proxy.errors import DecryptionFailed, EncryptionError, KmsFailed

PLAINTEXT = bytes(range(100, 164))
KEY = DataKey(PLAINTEXT, b"wrapped")
SWAPPED = DataKey(PLAINTEXT[32:] + PLAINTEXT[:32], b"wrapped")
"""What the agent would make a client's cipher of: its halves serve the other directions."""


def pair(first_nonce: int = 0) -> tuple[PayloadCipher, PayloadCipher]:
    return PayloadCipher(KEY, first_nonce), PayloadCipher(SWAPPED, first_nonce)


class TestAgainstTheRecording:
    """``shell-encrypted`` was recorded with the official agent, and holds the data key of that session."""

    def key(self) -> DataKey:
        (event,) = [r.values for r in records("shell-encrypted") if r.values.get("event") == "kms_data_key"]
        return DataKey(bytes.fromhex(event["plaintext"]), b"")

    def messages(self, sender: str, payload_type: int) -> list[Record]:
        stream = ("input_stream_data", "output_stream_data")
        found = [r for r in records("shell-encrypted") if r.data and r.kind in stream and r.sender == sender]
        return [record for record in found if record.payload_type == payload_type]

    def challenge(self, sender: str, payload_type: int) -> bytes:
        (record,) = self.messages(sender, payload_type)
        return base64.b64decode(json.loads(record.payload)["Challenge"])

    def test_the_output_of_the_agent(self) -> None:
        ours = PayloadCipher(self.key(), 0)
        (record,) = self.messages("agent", 1)
        assert ours.decrypt(record.payload) == b"$ echo enc-$((40+2)); exit\r\nenc-42\r\n"

    def test_the_input_of_the_client_by_the_other_half(self) -> None:
        key = self.key()
        theirs = PayloadCipher(DataKey(key.plaintext[32:] + key.plaintext[:32], b""), 0)
        (record,) = self.messages("client", 1)
        assert theirs.decrypt(record.payload) == b"echo enc-$((40+2)); exit\n"

    def test_the_challenge_both_ways(self) -> None:
        key = self.key()
        ours = PayloadCipher(key, 0)
        theirs = PayloadCipher(DataKey(key.plaintext[32:] + key.plaintext[:32], b""), 0)
        challenge = ours.decrypt(self.challenge("agent", 8))
        assert len(challenge) == 64
        assert theirs.decrypt(self.challenge("client", 9)) == challenge

    def test_the_halves_are_not_exchanged(self) -> None:
        key = self.key()
        theirs = PayloadCipher(DataKey(key.plaintext[32:] + key.plaintext[:32], b""), 0)
        with pytest.raises(DecryptionFailed):
            theirs.decrypt(self.messages("agent", 1)[0].payload)


class TestRoundTrip:
    @given(st.binary(max_size=2000), st.integers(min_value=0, max_value=2**128 - 1))
    def test_what_one_side_encrypts_the_other_decrypts(self, plaintext: bytes, first_nonce: int) -> None:
        client, agent = pair(first_nonce)
        sealed = client.encrypt(plaintext)
        assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
        assert agent.decrypt(sealed) == plaintext
        assert client.decrypt(agent.encrypt(plaintext)) == plaintext

    def test_nobody_can_read_its_own(self) -> None:
        client, _ = pair()
        with pytest.raises(DecryptionFailed):
            client.decrypt(client.encrypt(b"data"))

    @given(st.binary(max_size=200))
    def test_what_was_not_encrypted_is_refused(self, data: bytes) -> None:
        client, _ = pair()
        with pytest.raises(DecryptionFailed):
            client.decrypt(data)

    @pytest.mark.parametrize("plaintext", [b"", b"x", b"some output of a shell\r\n"])
    def test_a_flipped_bit_in_any_byte_is_refused(self, plaintext: bytes) -> None:
        client, agent = pair()
        sealed = agent.encrypt(plaintext)
        for position in range(len(sealed)):
            for bit in (1, 128):
                changed = bytearray(sealed)
                changed[position] ^= bit
                with pytest.raises(DecryptionFailed):
                    client.decrypt(bytes(changed))
        assert client.decrypt(sealed) == plaintext

    def test_every_shorter_one_is_refused(self) -> None:
        client, agent = pair()
        sealed = agent.encrypt(b"data")
        for length in range(len(sealed)):
            with pytest.raises(DecryptionFailed):
                client.decrypt(sealed[:length])


class TestNonces:
    @pytest.mark.parametrize("first_nonce", [0, 2**96 - 5, 2**127 + 12345])
    def test_none_comes_twice_also_where_the_counter_turns(self, first_nonce: int) -> None:
        client, _ = pair(first_nonce)
        nonces = [client.encrypt(b"same")[:12] for _ in range(1000)]
        assert len(set(nonces)) == 1000
        assert nonces[0] == (first_nonce % 2**96).to_bytes(12, "little")

    def test_a_key_that_is_used_up_encrypts_nothing_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cipher, "MOST_MESSAGES", 3)
        client, agent = pair()
        for _ in range(3):
            client.encrypt(b"data")
        with pytest.raises(EncryptionError, match="used up"):
            client.encrypt(b"data")
        assert client.decrypt(agent.encrypt(b"still readable")) == b"still readable"


class TestDataKey:
    @pytest.mark.parametrize("size", [0, 32, DATA_KEY_BYTES - 1, DATA_KEY_BYTES + 1])
    def test_another_size_is_refused(self, size: int) -> None:
        with pytest.raises(KmsFailed):
            PayloadCipher(DataKey(bytes(size), b"wrapped"), 0)

    def test_nothing_shows_it(self) -> None:
        for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY])):
            assert "defg" not in text
            assert "***" in text
        with pytest.raises(TypeError):
            pickle.dumps(KEY)


def test_sessions_without_encryption_do_not_import_cryptography() -> None:
    program = (
        "import sys, ssm_proxy.channel.data_channel, ssm_proxy.channel.cipher\n"
        "sys.exit(any(name.partition('.')[0] == 'cryptography' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
