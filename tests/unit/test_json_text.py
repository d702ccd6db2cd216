"""JSON objects in payloads: strict about being one, lenient about the rest."""

from __future__ import annotations

import pytest

from ssm_proxy.errors import MalformedMessage
from ssm_proxy.wire.json_text import compact, member, parse_object, text_member


def test_an_object_is_parsed_whatever_its_blanks() -> None:
    assert parse_object(b' {"a" : 1,\n"b": "\xc3\xa9"} ', "it") == {"a": 1, "b": "é"}


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\xff{}", b'{"secret"}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_malformed_and_not_quoted(payload: bytes) -> None:
    with pytest.raises(MalformedMessage) as info:
        parse_object(payload, "a challenge")
    assert str(info.value) == "the payload of a challenge is not JSON"


@pytest.mark.parametrize("payload", [b"[]", b"null", b"3", b'"x"', b"true"])
def test_what_is_no_object_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedMessage, match="the payload of Size is not a JSON object"):
        parse_object(payload, "Size")


def test_member_prefers_the_exact_name_to_one_that_differs_in_case() -> None:
    assert member({"cols": 1, "Cols": 2}, "Cols") == 2
    assert member({"COLS": 1}, "cols") == 1
    assert member({"COLS": None}, "cols", 5) is None
    assert member({"col": 1}, "cols") is None
    assert member({"col": 1}, "cols", 5) == 5


@pytest.mark.parametrize("value", [None, 1, True, [], {}])
def test_a_text_member_that_is_no_text_counts_as_absent(value: object) -> None:
    assert text_member({"a": value}, "a") == ""
    assert text_member({}, "a") == ""
    assert text_member({"A": "x"}, "a") == "x"


def test_compact_has_no_spaces_keeps_the_order_and_is_ascii() -> None:
    assert compact({"b": [1, None], "a": {"é": True}}) == b'{"b":[1,null],"a":{"\\u00e9":true}}'
