"""The receiver's table of docs/PROTOCOL.md section 5.3."""

from __future__ import annotations

import pytest

from ssm_proxy.channel.incoming import MAX_STORED_BYTES, MAX_STORED_MESSAGES, Incoming
from ssm_proxy.wire.agent_message import AgentMessage

HALF = b"x" * (MAX_STORED_BYTES // 2)


def message(number: int, payload: bytes = b"x") -> AgentMessage:
    return AgentMessage("output_stream_data", payload, bytes(16), 1, number, 1)


def numbers(messages: list[AgentMessage]) -> list[int]:
    return [message.sequence_number for message in messages]


def test_the_expected_number_is_acknowledged_and_delivered() -> None:
    incoming = Incoming()
    for number in range(5):
        acknowledge, ready = incoming.accept(message(number))
        assert (acknowledge, numbers(ready)) == (True, [number])
    assert incoming.expected_sequence_number == 5


def test_a_later_number_is_acknowledged_and_kept_until_its_turn() -> None:
    incoming = Incoming()
    assert incoming.accept(message(2)) == (True, [])
    assert incoming.accept(message(1)) == (True, [])
    acknowledge, ready = incoming.accept(message(0))
    assert (acknowledge, numbers(ready)) == (True, [0, 1, 2])


def test_only_the_unbroken_run_is_delivered() -> None:
    incoming = Incoming()
    for number in (1, 2, 4):
        incoming.accept(message(number))
    assert numbers(incoming.accept(message(0))[1]) == [0, 1, 2]
    assert numbers(incoming.accept(message(3))[1]) == [3, 4]


def test_a_repeat_of_a_delivered_number_is_acknowledged_again_and_not_delivered() -> None:
    incoming = Incoming()
    incoming.accept(message(0))
    assert incoming.accept(message(0)) == (True, [])


def test_a_repeat_of_a_stored_number_is_acknowledged_again_and_stored_once() -> None:
    incoming = Incoming()
    assert incoming.accept(message(1, b"first")) == (True, [])
    assert incoming.accept(message(1, b"again")) == (True, [])
    assert [ready.payload for ready in incoming.accept(message(0))[1]] == [b"x", b"first"]


@pytest.mark.parametrize("number", [-1, -(2**63)])
def test_a_negative_number_is_not_acknowledged(number: int) -> None:
    incoming = Incoming()
    assert incoming.accept(message(number)) == (False, [])
    assert numbers(incoming.accept(message(0))[1]) == [0]


def test_there_is_no_limit_on_the_distance() -> None:
    incoming = Incoming()
    assert incoming.accept(message(2**63 - 1)) == (True, [])


def test_a_full_store_ignores_later_numbers_but_takes_the_expected_one() -> None:
    incoming = Incoming()
    for number in range(1, MAX_STORED_MESSAGES + 1):
        assert incoming.accept(message(number))[0]
    beyond = MAX_STORED_MESSAGES + 1
    assert incoming.accept(message(beyond)) == (False, [])
    assert incoming.accept(message(5)) == (True, [])  # it is there already
    assert numbers(incoming.accept(message(0))[1]) == list(range(beyond))
    assert incoming.accept(message(beyond + 1)) == (True, [])  # the room is back


def test_a_hole_is_known_as_long_as_something_behind_it_has_come() -> None:
    incoming = Incoming()
    assert not incoming.has_hole
    for number in (0, 2, 4):
        incoming.accept(message(number))
        assert incoming.has_hole == (number > 0)
    incoming.accept(message(1))
    assert incoming.has_hole, "3 is missing still"
    incoming.accept(message(1))
    incoming.accept(message(3))
    assert not incoming.has_hole
    incoming.accept(message(5))
    incoming.accept(message(2))  # a repeat is no hole
    assert not incoming.has_hole


def test_what_there_was_no_room_for_is_missing_as_well() -> None:
    incoming = Incoming()
    incoming.accept(message(1, HALF))
    incoming.accept(message(2, HALF))
    assert incoming.accept(message(3)) == (False, [])
    assert numbers(incoming.accept(message(0))[1]) == [0, 1, 2]
    assert incoming.has_hole
    incoming.accept(message(3))
    assert not incoming.has_hole


def test_the_store_is_bounded_in_bytes_as_well() -> None:
    incoming = Incoming()
    assert incoming.accept(message(1, HALF))[0]
    assert incoming.accept(message(2, HALF))[0]
    assert not incoming.accept(message(3, b"x"))[0]
    assert numbers(incoming.accept(message(0))[1]) == [0, 1, 2]
    for number in (4, 5):
        assert incoming.accept(message(number, HALF))[0]
    assert not incoming.accept(message(6, b"x"))[0]
