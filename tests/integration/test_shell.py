"""``ssm-proxy shell``: a real terminal on both sides."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import EMBEDDED, MakeUser, StartEmulator, User, open_sessions, wait_until
from terminals import PROMPT, Terminal, terminal

from ssm_proxy.emulator import Emulator, Faults

pytestmark = pytest.mark.integration
ARGUMENTS = ["ssm-proxy", "shell", EMBEDDED]


@pytest.fixture
def user(emulator: Emulator, new_user: MakeUser) -> User:
    return new_user(emulator, EMBEDDED)


@contextlib.contextmanager
def shell(user: User, *options: str) -> Iterator[Terminal]:
    """Open a shell, and wait for its prompt; end it if the test did not."""
    with terminal([*ARGUMENTS, *options], user.environment) as opened:
        opened.expect(PROMPT)
        yield opened
        opened.process.terminate()
        opened.process.wait(30)


def piped(user: User, data: bytes, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ARGUMENTS, env=user.environment, input=data, capture_output=True, timeout=timeout, check=False
    )


def hex_reader(count: int) -> bytes:
    """Give the command that shows, as hexadecimal numbers, what so many bytes of input are, untouched by a terminal."""
    return b"stty raw -echo; printf 're''ady\\n'; dd bs=1 count=%d 2>/dev/null | od -An -v -tx1; stty sane\r" % count


# --- a person at a terminal -----------------------------------------------------------------------------------------


def test_a_command_its_output_and_the_end(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"echo $((6*7))\r")
        terminal.expect(rb"\r\n42\r\n")
        terminal.type(b"exit\r")
        assert terminal.end() == 0
        assert terminal.is_as_before
        assert b"ssm-proxy" not in terminal.screen


def test_the_size_is_the_terminals_from_the_start_and_after_each_change(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"stty size\r")
        terminal.expect(rb"\n30 100\r")
        terminal.expect(PROMPT)
        terminal.type(b"while sleep 0.1; do stty size; done\r")
        for columns, rows in ((132, 43), (80, 24)):
            terminal.resize(columns, rows)
            terminal.expect(rb"\n%d %d\r" % (rows, columns))


def test_all_keys_reach_the_node_as_bytes(user: User) -> None:
    keys = b"\x03\x1a\x1c\x04\x0f\x11\x13\n\r\t\x7f\x1b\x00\xff\xc3\xa9"  # Ctrl-C Ctrl-Z Ctrl-\ Ctrl-D Ctrl-O ...
    with shell(user) as terminal:
        terminal.type(hex_reader(len(keys)))
        terminal.expect(rb"ready")
        terminal.type(keys)
        terminal.expect(keys.hex(" ").encode().replace(b" ", b"\\s+"))


def test_output_arrives_untouched(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"stty -opost; printf 'a\\303\\251b\\000\\377\\n\\033[1mc'; stty opost\r")
        terminal.expect("aéb".encode() + rb"\x00\xff\n\x1b\[1mc")


def test_ctrl_c_ends_a_command_and_not_the_shell(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"sh -c 'echo run''ning; exec sleep 100'\r")
        terminal.expect(rb"running\r\n")  # before that Ctrl-C is the shell's, which may not care
        terminal.type(b"\x03")
        terminal.expect(PROMPT)


def test_ctrl_c_stops_a_flood(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"yes\r")
        terminal.expect(rb"(y\r\n){1000}")
        terminal.type(b"\x03")
        terminal.expect(PROMPT)


def test_pasting_arrives_whole(user: User, tmp_path: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(10_000)).encode()
    assert len(text) > 100 * 1024
    pasted = tmp_path / "pasted"
    with shell(user) as terminal:
        terminal.type(f"cat > '{pasted}'; printf 'do''ne\\n'\r".encode())
        terminal.expect(rb"\r\n")
        terminal.type(text.replace(b"\n", b"\r"))
        terminal.type(b"\x04")
        terminal.expect(rb"done\r", within=40)
        assert hashlib.sha256(pasted.read_bytes()).digest() == hashlib.sha256(text).digest()


def test_what_is_typed_too_early_is_kept(user: User) -> None:
    with terminal(ARGUMENTS, user.environment) as early:
        early.type(b"echo $((6*7)); exit\n")
        early.expect(rb"\r\n42\r\n")
        assert early.end() == 0


# --- escapes --------------------------------------------------------------------------------------------------------


def test_escapes_at_the_start_of_a_line(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"\r~?")
        terminal.expect(rb"~\.  end the session here and now")
        terminal.type(b"~~.\r")
        terminal.expect(rb"~\.\r\n.*not found")
        terminal.expect(PROMPT)  # or it would come between what is typed next and its output
        terminal.type(b"echo x~.y\r")
        terminal.expect(rb"\r\nx~\.y\r\n")
        terminal.type(b"~.")
        assert terminal.end() == 9
        assert terminal.is_as_before


def test_a_session_whose_node_stands_still_can_be_left(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    with shell(new_user(emulator)) as terminal:
        emulator.set_faults(Faults(lose=1.0))
        terminal.type(b"x" * 70_000)  # more than may be on its way
        terminal.type(b"\r~.")
        assert terminal.end() == 9
        assert terminal.is_as_before
        emulator.set_faults(Faults())


# --- the terminal is left as it was found -----------------------------------------------------------------------------


def test_keys_are_raw_while_the_session_has_the_terminal(user: User) -> None:
    with shell(user) as terminal:
        assert terminal.is_raw
        terminal.process.send_signal(signal.SIGSTOP)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.type(b"exit\r")
        terminal.end()
        assert terminal.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal(user: User, emulator: Emulator, number: signal.Signals) -> None:
    with shell(user) as terminal:
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        assert terminal.is_as_before
    wait_until(lambda: not open_sessions(emulator), "the session is over")


def test_a_session_that_the_service_ends(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator()
    with shell(new_user(emulator)) as terminal:
        emulator.set_faults(Faults(idle_timeout_s=0.5))  # now: there may be more than that before the prompt
        assert terminal.end() == 9
        assert terminal.is_as_before
        assert b"ssm-proxy: error: the service ended the session" in terminal.screen


def test_a_window_that_is_closed(user: User, emulator: Emulator) -> None:
    with shell(user) as terminal:
        terminal.hang_up()
        assert terminal.process.wait(30) in (9, 128 + signal.SIGHUP)
    wait_until(lambda: not open_sessions(emulator), "the session is over")


def test_a_shell_that_is_killed_on_the_node(user: User) -> None:
    with shell(user) as terminal:
        terminal.type(b"kill -9 $$\r")
        assert terminal.end() == 0
        assert terminal.is_as_before


def test_ctrl_c_before_the_session_has_begun(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(faults=Faults(agent_waits=60.0))
    with terminal(ARGUMENTS, new_user(emulator).environment) as early:
        wait_until(lambda: early.is_raw, "the session has the terminal")
        early.type(b"\x03")
        assert early.end() == 128 + signal.SIGINT
        assert early.is_as_before


# --- pipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"echo $((6*7))\n", b"echo $((6*7))", b"sleep 2; echo $((6*7))\n", b"exit; echo\n"])
def test_piped_input_ends_the_shell(user: User, data: bytes) -> None:
    done = piped(user, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"\r\n42\r\n" in done.stdout) == (b"42" not in data and b"6*7" in data)


def test_piped_input_of_any_length_arrives(user: User, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    text = "".join(f"line {number}\n" for number in range(20_000))
    done = piped(user, f"stty -echo; cat > '{copied}' <<'END OF IT'\n{text}END OF IT\n".encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert copied.read_text() == text


def test_a_line_that_a_terminal_may_cut_is_told(user: User) -> None:
    done = piped(user, b": " + b"x" * 5000 + b"\nexit\n")
    assert b"longer than 4095 bytes" in done.stderr


def test_a_shell_that_edits_its_lines_ends_too(user: User) -> None:
    if not os.access("/bin/bash", os.X_OK):
        pytest.skip("bash is not installed")
    done = piped(user, b"exec bash --norc -i\necho $((6*7))\n")
    assert done.returncode == 0
    assert b"42\r\n" in done.stdout


def test_a_reader_that_goes_away_ends_the_session(user: User, emulator: Emulator) -> None:
    script = f"printf 'yes\\n' | {' '.join(ARGUMENTS)} | head -n 3; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", script], env=user.environment, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (141, b"")
    wait_until(lambda: not open_sessions(emulator), "the session is over")


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "agent"])
def test_a_broken_connection_costs_nothing(user: User, emulator: Emulator, side: str) -> None:
    with shell(user) as terminal:
        for number in range(3):
            emulator.drop_connections(side)
            terminal.type(b"echo $((%d+1000))\r" % number)
            terminal.expect(rb"\n%d\r" % (number + 1000))
            terminal.expect(PROMPT)  # or it would come between what is typed next and its output
        terminal.type(b"exit\r")
        assert terminal.end() == 0


def test_messages_that_are_lost_repeated_and_reordered(start_emulator: StartEmulator, new_user: MakeUser) -> None:
    emulator = start_emulator(faults=Faults(lose=0.05, duplicate=0.05, reorder=0.05, drop_acknowledges=0.05), seed=7)
    with shell(new_user(emulator)) as terminal:
        terminal.type(b"stty -echo; seq 1 5000; echo end\r")
        shown = terminal.expect(rb"\r\nend\r", within=60)
        lines = shown.string[: shown.start()].split(b"\r\n")
        assert lines[-5000:] == [b"%d" % number for number in range(1, 5001)]


def test_a_program_that_ends_at_once() -> None:
    """What the other tests stand on: a program that ends at once leaves its status, and the terminal as it was."""
    with terminal([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ)) as opened:
        assert opened.end() == 3
        assert opened.is_as_before
