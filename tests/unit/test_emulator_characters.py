"""Where the agent cuts its output (docs/PROTOCOL.md sections 8.2 and 12.28)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.emulator.plugins.characters import CharacterCutter


def pushed(*reads: bytes) -> list[bytes]:
    cutter = CharacterCutter()
    return [cutter.push(each) for each in reads]


@pytest.mark.parametrize("character", ["ä", "€", "𝄞"])
def test_a_character_cut_by_a_read_waits_for_its_rest(character: str) -> None:
    data = character.encode()
    for cut in range(1, len(data)):
        assert pushed(b"ab" + data[:cut], data[cut:] + b"c") == [b"ab", data + b"c"]


def test_bytes_that_are_no_characters() -> None:
    assert pushed(b"\xff\xfeabcd") == [b"\xff\xfeabcd"]
    assert pushed(b"abcd\xff\n") == [b"abcd"]  # among the last three: lost if nothing follows
    assert pushed(b"abcd\xff\n", b"more") == [b"abcd", b"\xff\nmore"]
    assert pushed(b"\xc3", b"\xc3", b"\xc3", b"\xc3", b"x") == [b"", b"", b"", b"\xc3", b"\xc3"]


def test_the_replacement_character_is_taken_for_a_bad_byte() -> None:
    assert pushed("a\ufffdbcd".encode()) == [b"a\xefbcd"]
    assert pushed("a\ufffd".encode()) == [b"a"]


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])), st.data())
def test_text_arrives_whole_however_it_is_cut(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    reads = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    sent = pushed(*reads)
    assert b"".join(sent) == encoded
    for each in sent:
        each.decode()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_at_most_three_bytes_wait_and_other_bytes_keep_their_order(reads: list[bytes]) -> None:
    whole = b"".join(reads)
    if b"\xef\xbf\xbd" in whole:
        return
    sent = b"".join(pushed(*reads))
    assert whole.startswith(sent)
    assert len(whole) - len(sent) <= 3
