"""Commands: their text through a model of the agent's splitter and real shells, and the frames in their output."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_proxy.errors import UsageError
from ssm_proxy.sessions.command import (
    CommandStreams,
    OutputSorter,
    Piece,
    check_command_session,
    command_text,
    terminal_command_text,
)
from ssm_proxy.wire.shell_payloads import TerminalSize

MARKER = "0123456789abcdef" * 2
FRAME = b"\x1e" + MARKER.encode()
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=5)
TOOLS = ("sleep", "cat", "rm", "setsid", "printf", "sh")
END = FRAME + b"0\x1e"


def agent_words(text: str) -> list[str]:
    """Split a command line as the agent does: google/shlex, without a shell."""
    words: list[str] = []
    state, word, is_word = "", "", False
    for character in text + " ":
        if state == "escape":
            state, word = "", word + character
        elif state == "escape in double":
            state, word = '"', word + character
        elif state == '"' and character == "\\":
            state = "escape in double"
        elif state and character == state:
            state = ""
        elif state:
            word += character
        elif character in "'\"":
            state, is_word = character, True
        elif character == "\\":
            state, is_word = "escape", True
        elif character in " \t\r\n":
            if is_word:
                words.append(word)
            word, is_word = "", False
        else:
            assert is_word or character != "#", "a comment"
            word, is_word = word + character, True
    assert not state, f"open at the end: {state}"
    return words


# --- the text -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(WORDS)
def test_every_word_arrives_through_the_agents_splitter(words: list[str]) -> None:
    arrived = agent_words(command_text(words, MARKER))
    assert arrived[:2] == ["sh", "-c"]
    assert arrived[3] == MARKER
    assert arrived[6:] == words


@settings(max_examples=30, deadline=None)
@given(WORDS)
def test_every_word_arrives_through_a_shell(words: list[str]) -> None:
    text = terminal_command_text(["printf", "%s\\0", "first", *words], MARKER, TerminalSize(columns=80, rows=24))
    assert agent_words(text)[6:] == ["printf", "%s\\0", "first", *words]
    done = subprocess.run(["sh", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True)
    sorter = OutputSorter(MARKER)
    output = b"".join(piece.data for piece in sorter.feed(done.stdout))
    assert output.decode().split("\0")[:-1] == ["first", *words]
    assert sorter.status == 0


@settings(deadline=None)
@given(st.text(alphabet="{} x:'", max_size=20))
def test_nothing_looks_like_a_parameter(word: str) -> None:
    assert "{{" not in command_text([word], MARKER)


def test_what_is_not_text_cannot_be_sent() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        command_text(["ls", os.fsdecode(b"\xff")], MARKER)


def test_which_sessions_run_commands() -> None:
    assert check_command_session("NonInteractiveCommands", None) is None
    for session_type in ("Standard_Stream", "InteractiveCommands", "Port"):
        assert session_type in str(check_command_session(session_type, None))


# --- in real shells -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["dash", "bash", "busybox"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a node that has this shell and no other."""
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"{request.param} is not installed")
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "tmp").mkdir()
    for name in TOOLS:
        found = shell if name == "sh" or request.param == "busybox" else shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    if request.param == "bash":
        (programs / "bash").symlink_to(shell)
    return {"PATH": str(programs), "TMPDIR": str(tmp_path / "tmp"), "LC_ALL": "C.UTF-8"}


def start(node: dict[str, str], words: Sequence[str], output: int, errors: int) -> subprocess.Popen[bytes]:
    arguments = agent_words(command_text(words, MARKER))
    return subprocess.Popen(
        arguments, env=node, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
    )


def run(node: dict[str, str], words: Sequence[str], *, separate: bool) -> tuple[int | None, bytes, bytes]:
    """Run a command as an agent does: into one file, or two pipes. Give its status and its two streams."""
    sorters = OutputSorter(MARKER), OutputSorter(MARKER)
    if separate:
        process = start(node, words, subprocess.PIPE, subprocess.PIPE)
        output, errors = process.communicate(timeout=20)
    else:
        with tempfile.TemporaryFile() as collected:
            process = start(node, words, collected.fileno(), collected.fileno())
            process.wait(20)
            collected.seek(0)
            output, errors = collected.read(), b""
    pieces = sorters[0].feed(output) + sorters[0].finish()
    pieces += [Piece(piece.data, is_error=True) for piece in sorters[1].feed(errors)]
    assert sorters[0].status in (None, process.returncode)
    assert not list(Path(node["TMPDIR"]).glob("*"))
    streams = [b"".join(piece.data for piece in pieces if piece.is_error == is_error) for is_error in (False, True)]
    return sorters[0].status, streams[0], streams[1]


both = pytest.mark.parametrize("separate", [False, True], ids=["joined", "separate"])


@both
@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["printf", "%s|", "a b", "it's", "", "é\n"], (0, "a b|it's||é\n|".encode(), b"")),
        (["sh", "-c", "printf out; printf 'e\\0rr\\377' >&2; exit 7"], (7, b"out", b"e\0rr\xff")),
        (["sh", "-c", "kill -9 $$"], (137, b"", b"")),
        (["sh", "-c", "kill -15 $$"], (143, b"", b"")),
        (["sh", "-c", "exit 255"], (255, b"", b"")),
        (["cat"], (0, b"", b"")),
    ],
)
def test_a_command(node: dict[str, str], words: list[str], separate: bool, result: tuple[int, bytes, bytes]) -> None:
    assert run(node, words, separate=separate) == result


@both
def test_the_command_finds_its_environment_unchanged(node: dict[str, str], separate: bool) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    node |= dict.fromkeys(names, "value")
    script = f"for name in {' '.join(names)}; do eval printf '%s,' '\"$'$name'\"'; done"
    assert run(node, ["sh", "-c", script], separate=separate) == (0, b"value," * len(names), b"")


@both
def test_a_command_that_stops_itself_has_not_ended(node: dict[str, str], separate: bool) -> None:
    script = "(sleep 1; kill -CONT $$) & kill -STOP $$; echo went on; exit 4"
    assert run(node, ["sh", "-c", script], separate=separate) == (4, b"went on\n", b"")


@both
def test_a_command_that_is_not_there(node: dict[str, str], separate: bool) -> None:
    status, output, errors = run(node, ["nope"], separate=separate)
    assert (status, output) == (127, b"")
    assert b"nope: not found" in errors


@both
def test_a_builtin_is_no_program(node: dict[str, str], separate: bool) -> None:
    assert run(node, ["exit", "3"], separate=separate)[0] == 127


def test_without_a_place_for_files_the_streams_are_joined(node: dict[str, str]) -> None:
    node["TMPDIR"] = "/missing"
    words = ["sh", "-c", "printf out; printf err >&2; exit 7"]
    assert run(node, words, separate=False) == (7, b"outerr", b"")
    assert run(node, words, separate=True) == (7, b"out", b"err")


def test_what_goes_on_in_the_background_does_not_hold_up_the_end(node: dict[str, str]) -> None:
    began = time.monotonic()
    assert run(node, ["sh", "-c", "sleep 60 & echo $!"], separate=False)[0] == 0
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@both
def test_a_signal_is_handed_to_all_of_the_command(
    node: dict[str, str], separate: bool, number: signal.Signals, tmp_path: Path
) -> None:
    with tempfile.TemporaryFile() as collected:
        target = subprocess.PIPE if separate else collected.fileno()
        running = tmp_path / "running"
        # A child tells that it runs: one that was just being started would lose the signal, with every shell.
        child = f'echo > "{running}"; exec sleep 100'
        script = f"trap 'echo caught; exit 5' INT TERM; sh -c '{child}'; sleep 100"
        process = start(node, ["sh", "-c", script], target, target)
        _wait_for(running.exists)
        process.send_signal(number)
        output = process.communicate(timeout=20)[0]
        if not separate:
            collected.seek(0)
            output = collected.read()
    sorter = OutputSorter(MARKER)
    assert [piece.data for piece in sorter.feed(output) if not piece.is_error] == [b"caught\n"]
    assert sorter.status == process.returncode == 5


def test_the_command_follows_its_shell_that_is_killed(node: dict[str, str], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' INT TERM; echo $$ > '{pids}'; sleep 100; sleep 100"
    process = start(node, ["sh", "-c", script], subprocess.DEVNULL, subprocess.DEVNULL)
    _wait_for(lambda: pids.exists() and pids.read_text().strip())
    process.kill()
    process.wait(10)
    _wait_for(lambda: not _is_running(int(pids.read_text())))


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- the frames -----------------------------------------------------------------------------------------------------


def sort(stream: bytes, cuts: Sequence[int] = ()) -> tuple[bytes, bytes, int | None]:
    sorter = OutputSorter(MARKER)
    pieces: list[Piece] = []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        pieces += sorter.feed(stream[start:end])
    pieces += sorter.finish()
    streams = [b"".join(piece.data for piece in pieces if piece.is_error == is_error) for is_error in (False, True)]
    return streams[0], streams[1], sorter.status


@pytest.mark.parametrize(
    ("stream", "result"),
    [
        (b"", (b"", b"", None)),
        (b"out", (b"out", b"", None)),
        (b"out" + END, (b"out", b"", 0)),
        (FRAME + b"b\x1eout" + FRAME + b"255\x1e", (b"out", b"", 255)),
        (b"out" + FRAME + b"e\x1eerr" + FRAME + b"7\x1e", (b"out", b"err", 7)),
        (b"out" + FRAME + b"7\x1elate", (b"outlate", b"", 7)),
        (b"err" + FRAME + b"z\x1e", (b"err", b"", None)),
        (FRAME + b"e\x1eerr" + FRAME + b"7\x1elate" + END, (b"late" + END, b"err", 7)),
        (FRAME + b"256\x1e" + END, (FRAME + b"256\x1e", b"", 0)),
        (FRAME + b"\x1e" + END, (FRAME + b"\x1e", b"", 0)),
        (FRAME + b"1234\x1e", (FRAME + b"1234\x1e", b"", None)),
        (FRAME + b"x" + END, (FRAME + b"x", b"", 0)),
        (FRAME + END, (FRAME, b"", 0)),
        (FRAME[:-1] + END, (FRAME[:-1], b"", 0)),
        (b"\x1e\x1e" + END, (b"\x1e\x1e", b"", 0)),
        (MARKER.encode() + b"0\x1e", (MARKER.encode() + b"0\x1e", b"", None)),
        (b"out" + FRAME, (b"out" + FRAME, b"", None)),
        (b"out" + FRAME + b"25", (b"out" + FRAME + b"25", b"", None)),
    ],
)
def test_frames(stream: bytes, result: tuple[bytes, bytes, int | None]) -> None:
    assert sort(stream) == result
    assert sort(stream, range(len(stream))) == result
    for cut in range(len(stream)):
        assert sort(stream, [cut]) == result


PARTS = st.sampled_from([FRAME, FRAME[:5], b"\x1e", b"e\x1e", b"b\x1e", b"7\x1e", b"999\x1e", b"x", b"\n", b"12"])


@settings(deadline=None)
@given(st.lists(PARTS, max_size=12).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_how_output_is_cut(stream: bytes, cuts: list[int]) -> None:
    assert sort(stream, cuts) == sort(stream)


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 255), st.lists(st.integers(0, 700), max_size=6))
def test_every_byte_comes_through(output: bytes, errors: bytes, status: int, cuts: list[int]) -> None:
    stream = output + FRAME + b"e\x1e" + errors + FRAME + b"%d\x1e" % status
    assert sort(stream, cuts) == (output, errors, status)


def test_no_more_is_held_back_than_a_frame() -> None:
    sorter = OutputSorter(MARKER)
    for _ in range(100):
        shown = b"".join(piece.data for piece in sorter.feed(b"x" * 10_000 + FRAME[:20]))
        assert len(shown) >= 10_000
    assert b"".join(piece.data for piece in sorter.feed(b"a")) == FRAME[:20] + b"a"
    assert sorter.feed(b"b") == [Piece(b"b", is_error=False)]


# --- both streams -----------------------------------------------------------------------------------------------------


def test_streams_that_come_as_one_are_told_apart() -> None:
    streams = CommandStreams(MARKER)
    assert streams.output(b"out" + FRAME + b"e\x1eerr" + FRAME) == [Piece(b"out", False), Piece(b"err", True)]
    assert streams.status is None
    assert streams.output(b"7\x1elate") == [Piece(b"late", False)]
    assert streams.status == 7


def test_streams_that_come_apart_stay_apart() -> None:
    streams = CommandStreams(MARKER)
    assert streams.error_output(b"err" + FRAME + b"z\x1e") == [Piece(b"err", True)]
    assert streams.output(b"out" + END) == [Piece(b"out", False)]
    assert streams.status == 0


def test_what_was_held_back_comes_at_the_end() -> None:
    streams = CommandStreams(MARKER)
    assert streams.output(b"\x1e0") == []
    assert streams.error_output(b"\x1e01") == []
    assert streams.finish() == [Piece(b"\x1e0", False), Piece(b"\x1e01", True)]
    assert streams.status is None


def test_streams_without_frames_are_left_alone() -> None:
    streams = CommandStreams(None)
    assert streams.output(FRAME) == [Piece(FRAME, False)]
    assert streams.error_output(END) == [Piece(END, True)]
    assert (streams.finish(), streams.status) == ([], None)
