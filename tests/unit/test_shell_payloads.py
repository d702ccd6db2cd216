"""Size, challenge, ExitCode and agent_session_state against docs/PROTOCOL.md; official bytes are in tests/golden."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.shell_payloads import (
    AgentSessionState,
    SessionState,
    TerminalSize,
    decode_agent_session_state,
    decode_challenge,
    decode_exit_code,
    decode_size,
    encode_agent_session_state,
    encode_challenge,
    encode_exit_code,
    encode_size,
)

DECODERS: list[Callable[[bytes], object]] = [
    decode_size,
    decode_challenge,
    decode_exit_code,
    decode_agent_session_state,
]
NOTHING = [b"", b"{", b"{}", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{}{}", b"[" * 100_000]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("payload", NOTHING, ids=range(len(NOTHING)))
def test_what_holds_nothing_is_malformed(decode: Callable[[bytes], object], payload: bytes) -> None:
    with pytest.raises(MalformedMessage) as info:
        decode(payload)
    assert len(str(info.value)) < 100


def test_a_tunnel_does_not_load_them() -> None:
    modules = "ssm_proxy.cli.commands.proxy, ssm_proxy.tunnel"
    program = f"import sys, {modules}; print(sorted(name for name in sys.modules if '.wire.' in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "'ssm_proxy.wire.payloads'" in done.stdout
    assert "shell_payloads" not in done.stdout


class TestSize:
    def test_literal(self) -> None:
        size = TerminalSize(columns=80, rows=24)
        assert encode_size(size) == b'{"cols":80,"rows":24}'
        assert decode_size(b'{"cols":80,"rows":24}') == size

    def test_is_read_whatever_the_case_order_and_further_members(self) -> None:
        assert decode_size(b'{"Rows": 24, "xpixel": 640, "COLS": 80}') == TerminalSize(columns=80, rows=24)

    @pytest.mark.parametrize("number", [0, 2**32 - 1])
    def test_the_ends_of_the_range(self, number: int) -> None:
        size = TerminalSize(columns=number, rows=number)
        assert decode_size(encode_size(size)) == size

    @pytest.mark.parametrize("number", ["-1", "80.0", "true", "null", '"80"', "[80]", str(2**32), "NaN"])
    @pytest.mark.parametrize("template", ['{"cols":%s,"rows":24}', '{"cols":80,"rows":%s}'])
    def test_without_two_usable_numbers_it_is_malformed(self, template: str, number: str) -> None:
        with pytest.raises(MalformedMessage, match=r"a Size without a usable number of (cols|rows)"):
            decode_size((template % number).encode())

    @pytest.mark.parametrize("payload", [b'{"cols":80}', b'{"rows":24}'])
    def test_half_a_size_is_malformed(self, payload: bytes) -> None:
        with pytest.raises(MalformedMessage):
            decode_size(payload)


class TestChallenge:
    def test_literal(self) -> None:
        assert encode_challenge(b"\xfb\xff\xfe\0") == b'{"Challenge":"+//+AA=="}'
        assert decode_challenge(b'{"Challenge":"+//+AA=="}') == b"\xfb\xff\xfe\0"

    def test_is_read_whatever_the_case_and_further_members(self) -> None:
        assert decode_challenge(b'{"new": 1, "challenge": "YWJj"}') == b"abc"

    @pytest.mark.parametrize("value", ["null", "5", "true", '["YWJj"]', '{"a":"YWJj"}'])
    def test_without_text_it_is_malformed(self, value: str) -> None:
        with pytest.raises(MalformedMessage, match="a challenge without a value"):
            decode_challenge(f'{{"Challenge":{value}}}'.encode())

    @pytest.mark.parametrize("text", ["YWJ", "YW Jj", "-_-_", "YW=Jj", "YWJj!", "é", r"\ud800"])
    def test_what_is_not_base64_is_malformed_and_not_quoted(self, text: str) -> None:
        with pytest.raises(MalformedMessage) as info:
            decode_challenge(f'{{"Challenge":"{text}"}}'.encode())
        assert str(info.value) == "the value of a challenge is not base64"


class TestExitCode:
    @pytest.mark.parametrize("code", [0, 7, 255, -1, -(2**31), 2**32 - 1])
    def test_literal(self, code: int) -> None:
        payload = f"EXIT_CODE: {code}".encode()
        assert encode_exit_code(code) == payload
        assert decode_exit_code(payload) == code

    @pytest.mark.parametrize("payload", [b"EXIT_CODE: 7\n", b"\r\nEXIT_CODE:7", b"EXIT_CODE:   7  "])
    def test_blanks_do_not_matter(self, payload: bytes) -> None:
        assert decode_exit_code(payload) == 7

    @pytest.mark.parametrize(
        "payload",
        [
            b"EXIT_CODE:",
            b"EXIT_CODE: x",
            b"EXIT_CODE: 7.0",
            b"EXIT_CODE: - 7",
            b"EXIT_CODE: 7 8",
            b"EXIT_CODE: 0x7",
            b"EXIT_CODE: 1_0",
            b"EXIT_CODE 7",
            b"XEXIT_CODE: 7",
            "EXIT_CODE: \u0667".encode(),
            b"EXIT_CODE: " + b"1" * 11,
            b"EXIT_CODE: " + b"1" * 5000,
        ],
        ids=range(12),
    )
    def test_other_text_is_malformed_and_not_quoted(self, payload: bytes) -> None:
        with pytest.raises(MalformedMessage) as info:
            decode_exit_code(payload)
        assert str(info.value) == "an ExitCode that names no number"


class TestAgentSessionState:
    @pytest.mark.parametrize("state", [SessionState.CONNECTED, SessionState.TERMINATING])
    def test_literal(self, state: str) -> None:
        value = AgentSessionState(session_id="alice-0a1b", state=state)
        payload = f'{{"SchemaVersion":1,"SessionState":"{state}","SessionId":"alice-0a1b"}}'.encode()
        assert encode_agent_session_state(value) == payload
        assert decode_agent_session_state(payload) == value

    def test_is_read_whatever_the_case_schema_and_further_members(self) -> None:
        payload = b'{"schemaversion": "2", "sessionstate": "Paused", "SESSIONID": "s", "new": []}'
        assert decode_agent_session_state(payload) == AgentSessionState(session_id="s", state="Paused")

    def test_a_session_id_that_is_no_text_counts_as_absent(self) -> None:
        payload = b'{"SessionState":"Connected","SessionId":5}'
        assert decode_agent_session_state(payload) == AgentSessionState(session_id="", state="Connected")

    @pytest.mark.parametrize("state", ["null", '""', "1", '["Connected"]'])
    def test_without_a_state_it_is_malformed(self, state: str) -> None:
        with pytest.raises(MalformedMessage, match="an agent_session_state without a state"):
            decode_agent_session_state(f'{{"SessionState":{state},"SessionId":"s"}}'.encode())
