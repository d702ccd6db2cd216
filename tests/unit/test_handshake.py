"""The client's half of the handshake (docs/PROTOCOL.md section 6), apart from its transport."""

from __future__ import annotations

from typing import Any

import pytest

from ssm_proxy.channel.handshake import Handshake, HandshakeState
from ssm_proxy.errors import EncryptionError, HandshakeFailed
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.wire.constants import CLIENT_VERSION
from ssm_proxy.wire.payloads import HandshakeRequest, RequestedAction

PORT = RequestedAction(
    action_type="SessionType", parameters={"SessionType": "Port", "Properties": {"portNumber": "22"}}
)
KMS = RequestedAction(action_type="KMSEncryption", parameters={"KMSKeyId": "arn:aws:kms:x"})


def request(*actions: RequestedAction) -> HandshakeRequest:
    return HandshakeRequest(agent_version="3.3.987.0", requested_actions=actions)


def session_type(name: Any) -> RequestedAction:
    return RequestedAction(action_type="SessionType", parameters={"SessionType": name, "Properties": None})


def test_a_port_session_is_accepted() -> None:
    handshake = Handshake(check_stream_session)
    assert handshake.state is HandshakeState.WAITING
    response = handshake.answer(request(PORT))
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
    response = handshake.answer(request(session_type(name)))
    assert response.processed_actions[0].status == 2
    assert name in response.processed_actions[0].error
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert handshake.refusal.cause == response.processed_actions[0].error
    assert handshake.refusal.hint


@pytest.mark.parametrize("name", [None, 5, "", ["Port"]])
def test_a_session_type_that_is_no_text_is_answered_as_failed(name: Any) -> None:
    handshake = Handshake(check_stream_session)
    assert handshake.answer(request(session_type(name))).processed_actions[0].status == 2
    assert isinstance(handshake.refusal, HandshakeFailed)


def test_kms_is_answered_as_unsupported() -> None:
    handshake = Handshake(check_stream_session)
    response = handshake.answer(request(PORT, KMS))
    assert [action.status for action in response.processed_actions] == [1, 3]
    assert isinstance(handshake.refusal, EncryptionError)
    assert "AWS-StartSSHSession" in str(handshake.refusal.hint)


def test_an_unknown_action_is_answered_as_unsupported() -> None:
    handshake = Handshake(check_stream_session)
    response = handshake.answer(request(PORT, RequestedAction(action_type="Teleport")))
    assert [(action.action_type, action.status) for action in response.processed_actions] == [
        ("SessionType", 1),
        ("Teleport", 3),
    ]
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert "'Teleport'" in handshake.refusal.message


def test_actions_are_answered_in_their_order_one_by_one() -> None:
    handshake = Handshake(check_stream_session)
    response = handshake.answer(request(KMS, PORT, RequestedAction(action_type="X"), KMS))
    kinds = [action.action_type for action in response.processed_actions]
    assert kinds == ["KMSEncryption", "SessionType", "X", "KMSEncryption"]


def test_the_first_refusal_is_the_one_that_is_told() -> None:
    handshake = Handshake(check_stream_session)
    handshake.answer(request(session_type("Standard_Stream"), KMS))
    assert isinstance(handshake.refusal, HandshakeFailed)
    handshake = Handshake(check_stream_session)
    handshake.answer(request(KMS, session_type("Standard_Stream")))
    assert isinstance(handshake.refusal, EncryptionError)


def test_no_session_type_at_all_is_told_at_the_end() -> None:
    handshake = Handshake(check_stream_session)
    assert handshake.answer(request()).processed_actions == ()
    assert handshake.refusal is None
    handshake.complete()
    assert isinstance(handshake.refusal, HandshakeFailed)
    assert "session type" in handshake.refusal.message


def test_without_a_handshake_it_is_a_shell() -> None:
    handshake = Handshake(lambda session_type, properties: None)
    handshake.start_without_handshake()
    assert handshake.state is HandshakeState.COMPLETE
    assert (handshake.session_type, handshake.properties, handshake.refusal) == ("Standard_Stream", None, None)


def test_without_a_handshake_it_is_refused_where_shells_are() -> None:
    handshake = Handshake(check_stream_session)
    handshake.start_without_handshake()
    assert isinstance(handshake.refusal, HandshakeFailed)


@pytest.mark.parametrize("action", [session_type("Standard_Stream"), KMS, RequestedAction(action_type="X")])
def test_refusals_say_what_to_do_and_are_lower_case_without_a_full_stop(action: RequestedAction) -> None:
    handshake = Handshake(check_stream_session)
    handshake.answer(request(action))
    refusal = handshake.refusal
    assert refusal is not None
    assert refusal.hint
    for text in (refusal.message, refusal.cause or "x", refusal.hint):
        assert text[0].islower()
        assert not text.endswith(".")
