"""The client's half of the handshake (docs/PROTOCOL.md section 6), apart from its transport."""

from __future__ import annotations

from typing import Any

import pytest

from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.channel.events import DataKeyNeeded, MessageDropped, SessionStarted
from ssm_proxy.channel.handshake import Handshake, HandshakeState, Step
from ssm_proxy.errors import AccessDenied, ChallengeFailed, HandshakeFailed, KmsFailed
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.wire.constants import CLIENT_VERSION
from ssm_proxy.wire.payloads import (
    HandshakeRequest,
    HandshakeResponse,
    RequestedAction,
    decode_handshake_response,
    encode_handshake_request,
)
from ssm_proxy.wire.shell_payloads import decode_challenge, encode_challenge

PORT = RequestedAction(
    action_type="SessionType", parameters={"SessionType": "Port", "Properties": {"portNumber": "22"}}
)
KMS = RequestedAction(action_type="KMSEncryption", parameters={"KMSKeyId": "arn:aws:kms:x"})
KEY = DataKey(bytes(range(64)), b"wrapped")
THEIRS = PayloadCipher(DataKey(KEY.plaintext[32:] + KEY.plaintext[:32], b""), 0)


def request(*actions: RequestedAction) -> HandshakeRequest:
    return HandshakeRequest(agent_version="3.3.987.0", requested_actions=actions)


def answered(handshake: Handshake, *actions: RequestedAction) -> HandshakeResponse:
    response = handshake.answer(request(*actions))
    assert response is not None
    return response


def session_type(name: Any) -> RequestedAction:
    return RequestedAction(action_type="SessionType", parameters={"SessionType": name, "Properties": None})


def test_a_port_session_is_accepted() -> None:
    handshake = Handshake(check_stream_session)
    assert handshake.state is HandshakeState.WAITING
    response = answered(handshake, PORT)
    assert response.client_version == CLIENT_VERSION
    assert [(a.action_type, a.status, a.result, a.error) for a in response.processed_actions] == [
        ("SessionType", 1, None, "")
    ]
    assert handshake.state is HandshakeState.ANSWERED
    assert (handshake.session_type, handshake.properties) == ("Port", {"portNumber": "22"})
    assert handshake.agent_version == "3.3.987.0"
    assert handshake.refusal is None
    handshake.complete()
    assert handshake.state is HandshakeState.COMPLETE
    assert handshake.refusal is None


def test_names_of_parameters_are_read_whatever_their_case() -> None:
    handshake = Handshake(check_stream_session)
    handshake.answer(
        request(RequestedAction(action_type="SessionType", parameters={"sessiontype": "Port", "PROPERTIES": {"a": 1}}))
    )
    assert (handshake.session_type, handshake.properties, handshake.refusal) == ("Port", {"a": 1}, None)


@pytest.mark.parametrize("name", ["Standard_Stream", "InteractiveCommands", "NonInteractiveCommands", "Unheard_Of"])
def test_another_session_type_is_answered_as_failed(name: str) -> None:
    handshake = Handshake(check_stream_session)
    response = answered(handshake, session_type(name))
    assert response.processed_actions[0].status == 2
    assert name in response.processed_actions[0].error
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert handshake.refusal.cause == response.processed_actions[0].error
    assert handshake.refusal.hint


@pytest.mark.parametrize("name", [None, 5, "", ["Port"]])
def test_a_session_type_that_is_no_text_is_answered_as_failed(name: Any) -> None:
    handshake = Handshake(check_stream_session)
    assert answered(handshake, session_type(name)).processed_actions[0].status == 2
    assert isinstance(handshake.refusal, HandshakeFailed)


def test_an_unknown_action_is_answered_as_unsupported() -> None:
    handshake = Handshake(check_stream_session)
    response = answered(handshake, PORT, RequestedAction(action_type="Teleport"))
    assert [(action.action_type, action.status) for action in response.processed_actions] == [
        ("SessionType", 1),
        ("Teleport", 3),
    ]
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert "'Teleport'" in handshake.refusal.message


def test_actions_are_answered_in_their_order_one_by_one() -> None:
    handshake = Handshake(check_stream_session)
    response = answered(handshake, KMS, PORT, RequestedAction(action_type="X"), KMS)
    kinds = [action.action_type for action in response.processed_actions]
    assert kinds == ["KMSEncryption", "SessionType", "X", "KMSEncryption"]


def test_the_first_refusal_is_the_one_that_is_told() -> None:
    handshake = Handshake(check_stream_session)
    unknown = RequestedAction(action_type="X")
    handshake.answer(request(session_type("Standard_Stream"), unknown))
    assert handshake.refusal is not None
    assert "document" in handshake.refusal.message
    handshake = Handshake(check_stream_session)
    handshake.answer(request(unknown, session_type("Standard_Stream")))
    assert handshake.refusal is not None
    assert "'X'" in handshake.refusal.message


def test_no_session_type_at_all_is_told_at_the_end() -> None:
    handshake = Handshake(check_stream_session)
    assert answered(handshake).processed_actions == ()
    assert handshake.refusal is None
    handshake.complete()
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert "session type" in handshake.refusal.message


def test_without_a_handshake_it_is_a_shell() -> None:
    handshake = Handshake(lambda session_type, properties: None)
    step = handshake.start_without_handshake()
    assert step == Step(event=SessionStarted("Standard_Stream", None, "", ""))
    assert handshake.state is HandshakeState.COMPLETE
    assert (handshake.session_type, handshake.properties, handshake.refusal) == ("Standard_Stream", None, None)


def test_without_a_handshake_it_is_refused_where_shells_are() -> None:
    handshake = Handshake(check_stream_session)
    assert handshake.start_without_handshake() == Step()
    assert isinstance(handshake.refusal, HandshakeFailed)


@pytest.mark.parametrize("action", [session_type("Standard_Stream"), RequestedAction(action_type="X")])
def test_refusals_say_what_to_do_and_are_lower_case_without_a_full_stop(action: RequestedAction) -> None:
    handshake = Handshake(check_stream_session)
    handshake.answer(request(action))
    refusal = handshake.refusal
    assert refusal is not None
    assert refusal.hint
    for text in (refusal.message, refusal.cause or "x", refusal.hint):
        assert text[0].islower()
        assert not text.endswith(".")


# --- encryption ----------------------------------------------------------------------------------------------------


def kms(**parameters: Any) -> RequestedAction:
    return RequestedAction(action_type="KMSEncryption", parameters=parameters)


def asked(*actions: RequestedAction) -> tuple[Handshake, Step]:
    handshake = Handshake(lambda session_type, properties: None)
    return handshake, handshake.receive(5, encode_handshake_request(request(*actions)))


def encrypted(challenge: str | None = "VH3g") -> tuple[Handshake, Step]:
    handshake, _ = asked(session_type("Standard_Stream"), kms(KMSKeyId="arn:aws:kms:x", Challenge=challenge))
    return handshake, handshake.provide_key(KEY, 7)


def response_of(step: Step) -> HandshakeResponse:
    assert step.reply is not None
    assert step.reply[0] == 6
    return decode_handshake_response(step.reply[1])


def challenge_of(plaintext: bytes) -> bytes:
    return encode_challenge(THEIRS.encrypt(plaintext))


@pytest.mark.parametrize("challenge", ["VH3gsEwEdMEIY0YJPlTrNA==", None])
def test_encryption_asks_for_a_key_before_it_answers(challenge: str | None) -> None:
    handshake, step = asked(PORT, kms(KMSKeyId="alias/session", Challenge=challenge))
    assert step == Step(event=DataKeyNeeded("alias/session", challenge))
    assert handshake.state is HandshakeState.KEY_NEEDED


@pytest.mark.parametrize(("challenge", "announced"), [("VH3g", {"ChallengeAcknowledgement": True}), (None, {})])
def test_the_answer_carries_the_key_and_announces_the_challenge(challenge: str | None, announced: Any) -> None:
    handshake, step = encrypted(challenge)
    assert [(a.action_type, a.status, a.result, a.error) for a in response_of(step).processed_actions] == [
        ("SessionType", 1, None, ""),
        ("KMSEncryption", 1, {"KMSCipherTextKey": "d3JhcHBlZA==", "KMSCipherTextHash": None, **announced}, ""),
    ]
    assert handshake.state is HandshakeState.ENCRYPTED
    assert handshake.refusal is None


def test_the_challenge_is_sent_back_under_the_other_key() -> None:
    handshake, _ = encrypted()
    step = handshake.receive(8, challenge_of(b"c" * 64))
    assert step.reply is not None
    assert step.reply[0] == 9
    assert THEIRS.decrypt(decode_challenge(step.reply[1])) == b"c" * 64
    assert handshake.state is HandshakeState.CHALLENGED
    started = handshake.receive(7, b'{"CustomerMessage":"encrypted"}')
    assert started == Step(event=SessionStarted("Standard_Stream", None, "3.3.987.0", "encrypted"))
    assert handshake.refusal is None


def test_a_challenge_is_answered_once() -> None:
    handshake, _ = encrypted()
    handshake.receive(8, challenge_of(b"c" * 64))
    assert handshake.receive(8, challenge_of(b"d" * 64)) == Step(
        event=MessageDropped("a challenge that was not expected")
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"Challenge":5}',
        b'{"Challenge":"%%%"}',
        b'{"Challenge":""}',
        encode_challenge(b"c" * 92),
        encode_challenge(PayloadCipher(KEY, 0).encrypt(b"c" * 64)),
    ],
)
def test_a_challenge_that_proves_nothing_fails_the_session(payload: bytes) -> None:
    handshake, _ = encrypted()
    assert handshake.receive(8, payload) == Step()
    assert isinstance(handshake.refusal, ChallengeFailed)


def test_a_completion_before_the_challenge_fails_the_session() -> None:
    handshake, _ = encrypted()
    assert handshake.receive(7, b"{}") == Step()
    assert isinstance(handshake.refusal, ChallengeFailed)


def test_a_completion_before_the_key_fails_the_session() -> None:
    handshake, _ = asked(session_type("Standard_Stream"), KMS)
    assert handshake.receive(7, b"{}") == Step()
    assert isinstance(handshake.refusal, ChallengeFailed)


@pytest.mark.parametrize("wait_for_key", [True, False])
def test_output_before_the_completion_fails_the_session(wait_for_key: bool) -> None:
    handshake = asked(session_type("Standard_Stream"), KMS)[0] if wait_for_key else encrypted()[0]
    assert handshake.start_without_handshake() == Step()
    assert isinstance(handshake.refusal, HandshakeFailed)


def test_without_a_key_the_agent_is_told_why() -> None:
    handshake, _ = asked(session_type("Standard_Stream"), KMS)
    error = AccessDenied("access denied: kms:GenerateDataKey", cause="no policy allows it")
    actions = response_of(handshake.refuse_key(error)).processed_actions
    assert [(action.status, action.result, action.error) for action in actions] == [
        (1, None, ""),
        (2, None, "access denied: kms:GenerateDataKey: no policy allows it"),
    ]
    assert handshake.refusal is error


def test_a_key_of_another_size_is_as_good_as_none() -> None:
    handshake, _ = asked(KMS, session_type("Standard_Stream"))
    actions = response_of(handshake.provide_key(DataKey(bytes(32), b"wrapped"), 0)).processed_actions
    assert [action.status for action in actions] == [2, 1]
    assert isinstance(handshake.refusal, KmsFailed)
    assert handshake.cipher is None


def test_a_key_that_nobody_waits_for_changes_nothing() -> None:
    handshake, _ = encrypted()
    cipher = handshake.cipher
    assert handshake.provide_key(KEY, 9) == Step()
    assert handshake.refuse_key(KmsFailed("late")) == Step()
    assert handshake.cipher is cipher
    assert (handshake.state, handshake.refusal) == (HandshakeState.ENCRYPTED, None)
    handshake = Handshake(check_stream_session)
    assert handshake.provide_key(KEY, 9) == Step()
    assert handshake.state is HandshakeState.WAITING


def test_a_session_that_is_refused_asks_for_no_key() -> None:
    handshake = Handshake(check_stream_session)
    step = handshake.receive(5, encode_handshake_request(request(session_type("Standard_Stream"), KMS)))
    assert [action.status for action in response_of(step).processed_actions] == [2, 2]
    assert step.event is None


@pytest.mark.parametrize("actions", [[kms()], [kms(KMSKeyId="")], [kms(KMSKeyId=5)], [KMS, KMS]])
def test_encryption_needs_one_key(actions: list[RequestedAction]) -> None:
    handshake, step = asked(session_type("Standard_Stream"), *actions)
    assert {action.status for action in response_of(step).processed_actions[1:]} == {2}
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert step.event is None


def test_a_challenge_in_a_session_without_encryption_is_ignored() -> None:
    handshake, _ = asked(PORT)
    assert handshake.receive(8, challenge_of(b"c" * 64)) == Step(
        event=MessageDropped("a challenge that was not expected")
    )
    assert handshake.refusal is None
