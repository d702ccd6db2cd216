"""Shells and commands on the emulator's node, over real sockets, with real processes and terminals."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from emulator_peer import NODE, Peer, run, ssm_client

from ssm_proxy.emulator import Emulator, EmulatorOptions, Faults, Node, Parameter, SessionDocument, SessionSnapshot
from ssm_proxy.emulator.plugins.shell import Shell
from ssm_proxy.wire.agent_message import AgentMessage
from ssm_proxy.wire.constants import CLIENT_VERSION, PayloadType
from ssm_proxy.wire.payloads import decode_handshake_complete
from ssm_proxy.wire.shell_payloads import TerminalSize, encode_size

pytestmark = pytest.mark.integration  # real sockets in real time: not for the quick check

QUICK = Faults(agent_waits=0.02)


def command_document(session_type: str = "NonInteractiveCommands", **properties: Any) -> SessionDocument:
    platforms = {platform: {"commands": "{{ command }}", **properties} for platform in ("linux", "macos")}
    return SessionDocument(session_type=session_type, parameters={"command": Parameter()}, properties=platforms)


DOCUMENTS = {
    "Test-Separate": command_document(separateOutputStream="true"),
    "Test-Prefixed": command_document(
        separateOutputStream=True, stdOutSeparatorPrefix="STD_OUT:\n", stdErrSeparatorPrefix="STD_ERR:\n"
    ),
    "Test-WrongPrefix": command_document(separateOutputStream=True, stdErrSeparatorPrefix="STD$ERR"),
    "Test-WrongSwitch": command_document(separateOutputStream="perhaps"),
    "Test-WrongCommands": SessionDocument(
        session_type="InteractiveCommands", properties={"linux": "ls", "macos": "ls"}
    ),
    "Test-Profile": SessionDocument(
        session_type="Standard_Stream", inputs={"shellProfile": {"linux": "stty -echo\necho pro''file"}}
    ),
    "Test-Idle": SessionDocument(session_type="Standard_Stream", inputs={"idleSessionTimeout": "0.01"}),
    "Test-Short": SessionDocument(session_type="Standard_Stream", inputs={"maxSessionDuration": "0.01"}),
    "Test-Dropped": SessionDocument(session_type="Standard_Stream", schema_version="2.0"),
    "Test-Unknown": SessionDocument(session_type="Sideways_Stream"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(documents=DOCUMENTS, faults=QUICK)) as emulator:
        yield emulator


@pytest.fixture
def emulator(shared: Emulator) -> Iterator[Emulator]:
    yield shared
    shared.set_faults(QUICK)


@contextlib.asynccontextmanager
async def opened(
    emulator: Emulator, document: str | None = None, command: str | None = None, client_version: str = CLIENT_VERSION
) -> AsyncIterator[Peer]:
    """Give a peer behind its handshake, if its session has one, that repeats what is not acknowledged."""
    environment = emulator.environment()
    request: dict[str, Any] = {"Target": NODE}
    if document is not None:
        request["DocumentName"] = document
    if command is not None:
        request["Parameters"] = {"command": [command]}
    peer = await Peer(environment, ssm_client(environment).start_session(**request)).open()
    try:
        if has_handshake(document):
            await peer.shake_hands(client_version=client_version)
        peer.start_resending()
        yield peer
    finally:
        await peer.close()
        ssm_client(environment).terminate_session(SessionId=peer.response["SessionId"])


def has_handshake(document: str | None) -> bool:
    return document == "AWS-StartNonInteractiveCommand" or (
        document in DOCUMENTS and "command" in DOCUMENTS[document].parameters
    )


def data_of(peer: Peer) -> list[AgentMessage]:
    """Give what a session printed, in order and once each, without the handshake."""
    once = {message.sequence_number: message for message in peer.of_type("output_stream_data")}
    ordered = [once[number] for number in sorted(once)]
    return [m for m in ordered if m.payload_type not in (PayloadType.HANDSHAKE_REQUEST, PayloadType.HANDSHAKE_COMPLETE)]


def of_payload_type(peer: Peer, payload_type: int) -> bytes:
    return b"".join(message.payload for message in data_of(peer) if message.payload_type == payload_type)


async def type_and_see(peer: Peer, line: bytes, shown: bytes) -> None:
    """Type something, and wait until its result is there; what is shown must not stand in what is typed."""
    assert shown not in line
    await peer.send_input(line)
    await peer.until(lambda: shown in peer.output)


async def ended(peer: Peer) -> str:
    await peer.until(lambda: peer.closed_output is not None)
    return str(peer.closed_output)


def latest(emulator: Emulator) -> SessionSnapshot:
    return emulator.sessions()[-1]


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def open_fifo(path: Path) -> io.FileIO:
    """Open it for writing without waiting for a reader, for whom there is no end while it is open here."""
    return io.FileIO(os.open(path, os.O_RDWR | os.O_NONBLOCK), "r+")


async def typed_process_id(peer: Peer) -> int:
    """Ask the shell for its number."""
    await peer.send_input(b"echo pid=$$.\n")
    await peer.until(lambda: peer.output.count(b"pid=") > 1 and peer.output.rstrip(b"$# \r\n").endswith(b"."))
    return int(peer.output.rpartition(b"pid=")[2].partition(b".")[0])


# --- shells --------------------------------------------------------------------------------------------------------


def test_a_shell_on_a_terminal(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(b"stty size; echo $TERM; tty; exit\n")
            assert await ended(peer) == ""
            text = peer.output.decode()
            assert "0 0\r\nxterm-256color\r\n/dev/" in text
            assert {message.payload_type for message in data_of(peer)} == {PayloadType.OUTPUT}
            assert not peer.unacknowledged
        snapshot = latest(emulator)
        assert (snapshot.status, snapshot.document_name) == ("Terminated", "SSM-SessionManagerRunShell")
        assert snapshot.client_defects == {}

    run(scenario())


def test_the_size_of_the_terminal_follows(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            for columns, rows in ((91, 33), (132, 50)):
                size = TerminalSize(columns=65536 + columns, rows=rows)  # a u32 on the wire, a u16 in the terminal
                await peer.send_input(encode_size(size), PayloadType.SIZE)
                await peer.send_input(b"stty size\n")
                await peer.until(lambda shown=b"%d %d\r\n" % (rows, columns): shown in peer.output)

    run(scenario())


def test_a_size_that_cannot_be_read_is_not_acknowledged(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await type_and_see(peer, b"echo re''ady\n", b"ready")
            number = await peer.send_input(b"80x24", PayloadType.SIZE)
            await until(lambda: latest(emulator).refused_input > 1)
            assert number in peer.unacknowledged

    run(scenario())


def test_nothing_comes_for_a_second() -> None:
    async def scenario() -> None:
        with Emulator(EmulatorOptions(faults=Faults(agent_waits=0.5))) as emulator:
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with opened(emulator) as peer:
                await peer.send_input(b"echo ear''ly\n")
                await peer.until(lambda: bool(peer.output))
                assert loop.time() - began > 0.45
                await peer.until(lambda: b"early" in peer.output)

    run(scenario())


def test_other_payload_types_are_acknowledged_and_ignored(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            for payload_type in (PayloadType.FLAG, PayloadType.PARAMETER, PayloadType.STDERR, 77):
                await peer.send_input(b"\x00\x00\x00\x02", payload_type)
            await peer.until(lambda: not peer.unacknowledged)
            await type_and_see(peer, b"echo still he''re\n", b"still here")

    run(scenario())


def test_signals_of_the_keyboard(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await type_and_see(
                peer, b"trap 'echo inter''rupted' INT; echo se''t; while :; do sleep 0.1; done\n", b"set\r\n"
            )
            await type_and_see(peer, b"\x03", b"interrupted")

    run(scenario())


def test_a_profile_is_typed_at_the_start(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "Test-Profile") as peer:
            await peer.until(lambda: b"profile\r\n" in peer.output)

    run(scenario())


def test_much_output_arrives_whole(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.send_input(
                b"stty -echo -onlcr; i=0; while [ $i -lt 20000 ]; do echo '\xe2\x82\xac'$i; i=$((i+1)); done; exit\n"
            )
            await peer.until(lambda: peer.closed_output is not None, 20)
            expected = "".join(f"€{number}\n" for number in range(20000)).encode()
            assert peer.output.endswith(expected)
            assert max(len(message.payload) for message in data_of(peer)) <= 1027
            for message in data_of(peer):
                message.payload.decode()

    run(scenario())


def test_much_input_blocks_only_its_own_session(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await type_and_see(
                peer, b"stty raw -echo; echo re''ady; sleep 0.5; head -c 200000 | wc -c; exit\n", b"ready"
            )
            for _ in range(200):
                await peer.send_input(b"x" * 1000)
            async with opened(emulator) as other:
                await type_and_see(other, b"echo mean''while\n", b"meanwhile")
            assert await ended(peer) == ""
            assert b"200000" in peer.output

    run(scenario())


def test_the_end_by_the_api_leaves_no_process(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            process_id = await typed_process_id(peer)
            assert is_alive(process_id)
            ssm_client(peer.environment).terminate_session(SessionId=peer.response["SessionId"])
            assert await ended(peer) == ""
            await until(lambda: not is_alive(process_id))
        assert latest(emulator).status == "Terminated"

    run(scenario())


def test_a_process_that_does_not_want_to_go_is_killed() -> None:
    command = "trap '' HUP TERM INT; echo pid=$$.; while :; do sleep 0.1; done"

    async def scenario() -> None:
        with Emulator(EmulatorOptions(faults=QUICK)) as emulator:
            async with opened(emulator, "AWS-StartInteractiveCommand", command) as peer:
                await peer.until(lambda: b"." in peer.output)
                process_id = int(peer.output.partition(b"pid=")[2].partition(b".")[0])
        assert not is_alive(process_id)  # when the emulator has ended, nothing of it is left

    run(scenario())


def test_output_of_the_last_moment_is_repeated_until_it_arrives(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.until(lambda: bool(peer.output))
            emulator.set_faults(Faults(agent_waits=0, lose=1, direction="output"))
            before = latest(emulator).output_bytes
            await peer.send_input(b"echo one; echo two; exit\n")
            await until(lambda: latest(emulator).output_bytes > before + 30)
            emulator.set_faults(QUICK)
            assert await ended(peer) == ""
            assert b"one\r\ntwo\r\n" in peer.output

    run(scenario())


# --- interactive commands ------------------------------------------------------------------------------------------


def test_an_interactive_command(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "AWS-StartInteractiveCommand", "tty && read line && echo got $line") as peer:
            await peer.until(lambda: b"/dev/" in peer.output)
            await peer.send_input(b"this\r")
            assert await ended(peer) == ""
            assert peer.output.endswith(b"got this\r\n")
            assert not of_payload_type(peer, PayloadType.EXIT_CODE)

    run(scenario())


@pytest.mark.parametrize(
    ("document", "command", "text"),
    [
        ("AWS-StartInteractiveCommand", "  ", "Commands cannot be empty for session type InteractiveCommands"),
        ("AWS-StartNonInteractiveCommand", " \t", "Commands cannot be empty for session type NonInteractiveCommands"),
        ("Test-WrongCommands", None, "Invalid format in session properties"),
        ("Test-WrongPrefix", "true", "invalid stderrSeparatorPrefix STD$ERR"),
        ("Test-WrongSwitch", "true", "separateOutPutStream"),
        ("AWS-StartNonInteractiveCommand", "# nothing", "document process failed unexpectedly"),
    ],
)
def test_properties_that_fail_the_session(emulator: Emulator, document: str, command: str | None, text: str) -> None:
    async def scenario() -> None:
        async with opened(emulator, document, command) as peer:
            assert text in await ended(peer)
        assert latest(emulator).status == "Failed"

    run(scenario())


# --- commands without a terminal -----------------------------------------------------------------------------------


def test_joined_output_comes_when_the_command_has_ended(emulator: Emulator, tmp_path: Path) -> None:
    printed, go = tmp_path / "printed", tmp_path / "go"

    async def scenario() -> None:
        script = f"echo one; echo two >&2; : > {printed}; while [ ! -e {go} ]; do sleep 0.02; done; echo three; exit 7"
        async with opened(emulator, "AWS-StartNonInteractiveCommand", f"sh -c '{script}'") as peer:
            await until(printed.exists)
            await peer.send_input(b"still running?")
            await peer.until(lambda: not peer.unacknowledged)
            assert latest(emulator).output_messages == 2  # of the handshake
            go.touch()
            assert await ended(peer) == ""
            assert [(m.payload_type, m.payload) for m in data_of(peer)] == [(PayloadType.OUTPUT, b"one\ntwo\nthree\n")]
        assert latest(emulator).status == "Terminated"

    run(scenario())


def test_what_a_command_left_in_the_background_may_still_print(emulator: Emulator, tmp_path: Path) -> None:
    """Its output is lost: the agent has read to the end by then. What was printed before is sent once and whole."""
    done = tmp_path / "done"

    async def scenario() -> None:
        script = f"seq 20000; (seq 20000; : > {done}) &"
        async with opened(emulator, "AWS-StartNonInteractiveCommand", f"sh -c '{script}'") as peer:
            assert await ended(peer) == ""
            lines = bytes(peer.output).split()
            assert lines[:20000] == [b"%d" % number for number in range(1, 20001)]
        await until(done.exists)

    run(scenario())


def test_separate_output_and_the_exit_code(emulator: Emulator) -> None:
    async def scenario() -> None:
        command = "sh -c 'test -t 0 || echo no terminal; echo wrong >&2; exit 7'"
        async with opened(emulator, "Test-Separate", command) as peer:
            assert await ended(peer) == ""
            assert of_payload_type(peer, PayloadType.OUTPUT) == b"no terminal\n"
            assert of_payload_type(peer, PayloadType.STDERR) == b"wrong\n"
            assert data_of(peer)[-1].payload_type == PayloadType.EXIT_CODE
            assert data_of(peer)[-1].payload == b"EXIT_CODE: 7"

    run(scenario())


def test_separate_output_comes_while_the_command_runs(emulator: Emulator, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def scenario() -> None:
        async with opened(emulator, "Test-Separate", f"cat {fifo}") as peer:
            with open_fifo(fifo) as writer:
                writer.write(b"one\n")
                await peer.until(lambda: bytes(peer.output) == b"one\n")
                await peer.send_input(b"abc\x03")
                await ended(peer)
            assert of_payload_type(peer, PayloadType.EXIT_CODE) == b"EXIT_CODE: -1"  # ended by a signal

    run(scenario())


def test_prefixes_stand_before_the_first_data_and_after_each_read_that_ended_a_line(
    emulator: Emulator, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def scenario() -> None:
        command = f"sh -c 'printf one; read x < {fifo}; printf two\\\\n; read x < {fifo}; echo three; echo x >&2'"
        async with opened(emulator, "Test-Prefixed", command) as peer:
            with open_fifo(fifo) as writer:
                for expected in (b"STD_OUT:\none", b"STD_OUT:\nonetwo\n"):
                    await peer.until(lambda expected=expected: bytes(peer.output) == expected)
                    writer.write(b"go\n")
                assert await ended(peer) == ""
            assert bytes(peer.output) == b"STD_OUT:\nonetwo\nSTD_OUT:\nthree\n"
            assert of_payload_type(peer, PayloadType.STDERR) == b"STD_ERR:\nx\n"

    run(scenario())


def test_prefixes_count_in_the_size_of_messages(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "Test-Prefixed", "head -c 100000 /dev/zero") as peer:
            assert await ended(peer) == ""
            assert peer.output == b"STD_OUT:\n" + bytes(100_000)
            assert max(len(message.payload) for message in data_of(peer)) <= 1024

    run(scenario())


@pytest.mark.parametrize(("byte", "name"), [(b"\x03", "INT"), (b"\x1c", "QUIT")])
def test_signals_reach_the_command(emulator: Emulator, byte: bytes, name: str) -> None:
    async def scenario() -> None:
        script = f'trap "echo got {name}; exit 5" {name}; echo ready; while :; do sleep 0.02; done'
        async with opened(emulator, "Test-Separate", f"sh -c '{script}'") as peer:
            await peer.until(lambda: bytes(peer.output) == b"ready\n")
            await peer.send_input(encode_size(TerminalSize(columns=1, rows=1)), PayloadType.SIZE)
            await peer.send_input(b"nothing to read it\n")
            await peer.until(lambda: not peer.unacknowledged)
            await peer.send_input(byte)
            await ended(peer)
            assert bytes(peer.output) == f"ready\ngot {name}\n".encode()
            assert of_payload_type(peer, PayloadType.EXIT_CODE) == b"EXIT_CODE: 5"

    run(scenario())


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program x", 'exec: "no-such-program": executable file not found in $PATH'),
        ("./no-such-program", "fork/exec ./no-such-program: no such file or directory"),
        ("/etc/passwd", "fork/exec /etc/passwd: permission denied"),
    ],
)
@pytest.mark.parametrize("document", ["AWS-StartNonInteractiveCommand", "Test-Separate"])
def test_a_command_that_cannot_be_started(emulator: Emulator, document: str, command: str, reason: str) -> None:
    async def scenario() -> None:
        async with opened(emulator, document, command) as peer:
            text = f"----------ERROR-------\nError occurred starting the command: {reason}\n"
            assert await ended(peer) == text
            expected = [(int(PayloadType.STDERR), reason.encode())]
            if document == "Test-Separate":
                expected.insert(0, (int(PayloadType.EXIT_CODE), b"EXIT_CODE: 1"))
            assert [(m.payload_type, m.payload) for m in data_of(peer)] == expected
        assert latest(emulator).status == "Failed"

    run(scenario())


def test_a_command_line_that_cannot_be_split(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "AWS-StartNonInteractiveCommand", "echo 'x") as peer:
            text = "Unable to start command: Failed to parse commands input: EOF found when expecting closing quote\n\n"
            assert await ended(peer) == "----------ERROR-------\n" + text
            assert of_payload_type(peer, PayloadType.STDERR) == text.encode()

    run(scenario())


def test_a_pause_fails_a_command_with_separate_streams(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(
            emulator, "Test-Separate", "sh -c 'i=0; while [ $i -lt 60 ]; do echo x; sleep 0.03; i=$((i+1)); done'"
        ) as peer:
            await peer.until(lambda: len(peer.output) > 4)
            peer.acknowledges = False  # an acknowledge would end the pause: wait until none can be under way
            await peer.until(lambda: len(peer.of_type("output_stream_data")) > len(data_of(peer)) + 3)
            emulator.set_faults(Faults(agent_waits=0.02, pause_publication_s=20))
            await peer.until(lambda: peer.closed_output is not None, 10)
            assert not of_payload_type(peer, PayloadType.EXIT_CODE)
        assert latest(emulator).status == "Failed"

    run(scenario())


def test_the_end_by_the_api_ends_the_command(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "Test-Separate", "sh -c 'echo $$; exec sleep 60'") as peer:
            await peer.until(lambda: peer.output.endswith(b"\n"))
            process_id = int(peer.output)
            ssm_client(peer.environment).terminate_session(SessionId=peer.response["SessionId"])
            await ended(peer)
            await until(lambda: not is_alive(process_id))

    run(scenario())


def test_what_a_command_left_in_the_background_stays(emulator: Emulator) -> None:
    async def scenario() -> None:
        command = "sh -c 'sleep 60 >/dev/null 2>&1 & echo $!'"
        async with opened(emulator, "AWS-StartNonInteractiveCommand", command) as peer:
            assert await ended(peer) == ""
            process_id = int(peer.output)
        try:
            assert is_alive(process_id)
        finally:
            os.kill(process_id, signal.SIGKILL)

    run(scenario())


# --- documents and limits ------------------------------------------------------------------------------------------


def test_a_document_that_the_agent_drops_is_answered_by_silence(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "Test-Dropped") as peer:
            await peer.send_input(b"anyone?")
            with pytest.raises(asyncio.TimeoutError):
                await peer.until(lambda: bool(peer.received), 0.5)
            assert latest(emulator).status == "Connecting"

    run(scenario())


def test_an_unknown_session_type_fails_at_once(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator, "Test-Unknown") as peer:
            assert "Plugin with name Sideways_Stream is not supported" in await ended(peer)
            assert peer.of_type("output_stream_data") == []

    run(scenario())


@pytest.mark.parametrize(
    ("document", "text"), [("Test-Idle", "inactivity of 0.6 s"), ("Test-Short", "maximum duration")]
)
def test_limits_of_documents(emulator: Emulator, document: str, text: str) -> None:
    async def scenario() -> None:
        async with opened(emulator, document) as peer:
            assert text in await ended(peer)
        assert latest(emulator).status == "Terminated"

    run(scenario())


def test_the_end_waits_two_seconds_for_acknowledges(emulator: Emulator) -> None:
    async def scenario() -> None:
        async with opened(emulator) as peer:
            await peer.until(lambda: bool(peer.output))
            peer.acknowledges = False
            began = asyncio.get_running_loop().time()
            await peer.send_input(b"exit\n")
            assert await ended(peer) == ""
            assert asyncio.get_running_loop().time() - began > 1.9
        assert latest(emulator).status == "Terminated"

    run(scenario())


# --- old agents ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def old_agent(version: str) -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(documents=DOCUMENTS, faults=QUICK, agent_version=version)) as emulator:
        yield emulator


def test_an_agent_without_commands() -> None:
    async def scenario() -> None:
        with old_agent("2.3.600.0") as emulator:
            client = ssm_client(emulator.environment())
            answer = client.start_session(
                Target=NODE, DocumentName="AWS-StartInteractiveCommand", Parameters={"command": ["true"]}
            )
            peer = await Peer(emulator.environment(), answer).open()
            assert "InteractiveCommands is not supported" in await ended(peer)
            await peer.close()
            assert client.describe_instance_information()["InstanceInformationList"][0]["AgentVersion"] == "2.3.600.0"
            async with opened(emulator) as shell:
                await shell.until(lambda: bool(shell.output))
                await shell.send_input(b"exit\n")
                assert await ended(shell) == ""

    run(scenario())


def test_an_agent_without_handshake_does_not_encrypt_either() -> None:
    async def scenario() -> None:
        document = SessionDocument(session_type="Standard_Stream", inputs={"kmsKeyId": "alias/test"})
        with Emulator(
            EmulatorOptions(documents={"Test-Encrypted": document}, faults=QUICK, agent_version="2.3.500.0")
        ) as emulator:
            async with opened(emulator, "Test-Encrypted") as peer:
                await peer.until(lambda: bool(peer.output))
                assert {message.payload_type for message in peer.of_type("output_stream_data")} == {PayloadType.OUTPUT}

    run(scenario())


def test_an_agent_that_loses_what_comes_too_early() -> None:
    async def scenario() -> None:
        with old_agent("2.3.700.0") as emulator:
            emulator.set_faults(Faults(dial_delay_s=0.3))
            environment = emulator.environment()
            answer = ssm_client(environment).start_session(Target=NODE, DocumentName="AWS-StartSSHSession")
            peer = await Peer(environment, answer).open()
            await peer.shake_hands()
            number = await peer.send_input(b"lost")
            await peer.until(lambda: number in peer.acknowledged)
            assert not peer.output  # the port is not connected yet
            await peer.until(lambda: peer.output.startswith(b"SSH-"))
            assert latest(emulator).refused_input == 0
            await peer.close()

    run(scenario())


def test_an_agent_without_separate_streams() -> None:
    async def scenario() -> None:
        with old_agent("3.1.1000.0") as emulator:
            async with opened(emulator, "Test-Separate", "sh -c 'echo one; echo two >&2; exit 3'") as peer:
                assert await ended(peer) == ""
                assert [(m.payload_type, m.payload) for m in data_of(peer)] == [(PayloadType.OUTPUT, b"one\ntwo\n")]

    run(scenario())


def test_an_agent_that_does_not_wait_for_acknowledges() -> None:
    async def scenario() -> None:
        with old_agent("3.0.700.0") as emulator:
            async with opened(emulator) as peer:
                await peer.until(lambda: bool(peer.output))
                peer.acknowledges = False
                began = asyncio.get_running_loop().time()
                await peer.send_input(b"exit\n")
                assert await ended(peer) == ""
                assert asyncio.get_running_loop().time() - began < 1.9

    run(scenario())


def test_an_agent_that_ignores_repeats() -> None:
    async def scenario() -> None:
        with old_agent("3.2.1000.0") as emulator:
            async with opened(emulator) as peer:
                await peer.send_input(b"echo o''nce\n")
                message = next(iter(peer.unacknowledged.values()))
                await peer.until(lambda: b"once" in peer.output and not peer.unacknowledged)
                count = peer.acknowledged.count(0)
                await peer.send(message)
                await until(lambda: latest(emulator).repeats_received >= 1)
                await type_and_see(peer, b"echo af''ter\n", b"after")
                assert peer.acknowledged.count(0) == count

    run(scenario())


def test_an_old_client_is_asked_to_update(emulator: Emulator) -> None:
    async def scenario(client_version: str, expected: bool) -> None:
        async with opened(emulator, "Test-Separate", "true", client_version) as peer:
            await ended(peer)
            complete = next(m for m in peer.received if m.payload_type == PayloadType.HANDSHAKE_COMPLETE)
            assert ("1.2.312.0" in decode_handshake_complete(complete.payload).customer_message) == expected

    run(scenario(CLIENT_VERSION, False))
    run(scenario("1.2.279.0", True))


def test_the_account_can_have_its_own_default_document() -> None:
    async def scenario() -> None:
        own = SessionDocument(session_type="Standard_Stream", inputs={"shellProfile": {"linux": "echo o''urs"}})
        options = EmulatorOptions(
            nodes=(Node(node_id=NODE),), documents={"SSM-SessionManagerRunShell": own}, faults=QUICK
        )
        with Emulator(options) as emulator:
            async with opened(emulator) as peer:
                await peer.until(lambda: b"ours" in peer.output)

    run(scenario())


@pytest.mark.parametrize("payload_type", [PayloadType.OUTPUT, PayloadType.SIZE, PayloadType.FLAG])
def test_input_is_refused_until_there_is_a_terminal(payload_type: int) -> None:
    shell = Shell(Mock(spec_set=()))
    assert not shell.take_input(payload_type, b'{"cols":1,"rows":1}')
