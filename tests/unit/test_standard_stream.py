"""What is typed: escapes at the start of a line, and the end of piped input."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_proxy.sessions.standard_stream import MAX_LINE_BYTES, EscapeFilter, PipedInput, Typed, check_shell_session

TYPED = st.lists(st.sampled_from([b"~", b".", b"?", b"\r", b"\n", b"a", b"\xc3\xa9"]), max_size=30).map(b"".join)


def feed(pieces: list[bytes]) -> Typed:
    """Type pieces one after the other, up to one that ends the session."""
    escapes = EscapeFilter()
    data, wants_help = b"", False
    for piece in pieces:
        typed = escapes.feed(piece)
        data += typed.data
        wants_help |= typed.wants_help
        if typed.wants_end:
            return Typed(data, wants_help, wants_end=True)
    return Typed(data, wants_help)


@pytest.mark.parametrize(
    ("typed", "result"),
    [
        (b"ls\r", Typed(b"ls\r")),
        (b"~.", Typed(b"", wants_end=True)),
        (b"ls\r~.lost", Typed(b"ls\r", wants_end=True)),
        (b"ls\n~.", Typed(b"ls\n", wants_end=True)),
        (b"ls ~.\r", Typed(b"ls ~.\r")),
        (b"~~.\r", Typed(b"~.\r")),
        (b"~~~.", Typed(b"~~.")),
        (b"~?", Typed(b"", wants_help=True)),
        (b"~?~.", Typed(b"", wants_help=True, wants_end=True)),
        (b"~root\r", Typed(b"~root\r")),
        (b"~\r~.", Typed(b"~\r", wants_end=True)),
        (b"a\x03~.", Typed(b"a\x03~.")),
        (b"\xc3\xa9\x00\xff", Typed(b"\xc3\xa9\x00\xff")),
        (b"\r~", Typed(b"\r")),  # held back
    ],
)
def test_escapes(typed: bytes, result: Typed) -> None:
    assert feed([typed]) == result
    assert feed([typed[i : i + 1] for i in range(len(typed))]) == result


@settings(deadline=None)
@given(st.lists(TYPED, max_size=8))
def test_it_does_not_matter_how_it_is_cut(pieces: list[bytes]) -> None:
    assert feed(pieces) == feed([b"".join(pieces)])


@pytest.mark.parametrize(
    ("data", "ending"),
    [(b"", b"\x04"), (b"ls\n", b"\x04"), (b"ls", b"\n\x04"), (b"a\nls", b"\n\x04"), (b"a\n\n", b"\x04")],
)
def test_the_end_of_piped_input_is_told_at_the_start_of_a_line(data: bytes, ending: bytes) -> None:
    whole, bytewise = PipedInput(), PipedInput()
    whole.feed(data)
    for i in range(len(data)):
        bytewise.feed(data[i : i + 1])
    assert whole.ending() == bytewise.ending() == ending


@pytest.mark.parametrize(("length", "is_long"), [(MAX_LINE_BYTES - 1, False), (MAX_LINE_BYTES, True)])
@pytest.mark.parametrize("cut", [1, 1000, 4094])
def test_lines_that_a_terminal_cuts(length: int, is_long: bool, cut: int) -> None:
    piped = PipedInput()
    piped.feed(b"short\n")
    piped.feed(b"x" * cut)
    piped.feed(b"x" * (length - cut) + b"\nshort\n")
    assert piped.has_long_line == is_long


def test_which_sessions_are_for_a_terminal() -> None:
    for session_type in ("Standard_Stream", "InteractiveCommands", "NonInteractiveCommands"):
        assert check_shell_session(session_type, None) is None
    assert "Port" in str(check_shell_session("Port", {"portNumber": "22"}))
