"""The real process against a service that lies: ends with a name and a status, in bounded time and memory.

The API is the emulator's; the data channel is opened at a raw server that says whatever the test wants.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websocket_peer import CLOSE, PING, PONG, Answer, ScriptedServer, frame, upgrade

from ssm_proxy.emulator import Emulator, EmulatorOptions, Node
from ssm_proxy.wire.agent_message import AgentMessage, encode_agent_message
from ssm_proxy.wire.constants import SYN_FIN, MessageType, PayloadType
from ssm_proxy.wire.payloads import (
    Acknowledge,
    ChannelClosedPayload,
    HandshakeComplete,
    HandshakeRequest,
    RequestedAction,
    encode_acknowledge,
    encode_channel_closed,
    encode_handshake_complete,
    encode_handshake_request,
    format_uuid,
)

pytestmark = pytest.mark.integration

NODE = "i-0123456789abcdef0"
CONTINUATION = 0
TIMEOUT = 200
FLOOD_BYTES = 100_000_000
MESSAGE_FLOOD_BYTES = 30_000_000
MAX_PEAK_BYTES = 90 * 1024 * 1024
"""Half of it is Python with botocore; what the tunnel may hold of a flood is about 20 MiB."""
BLOCK_BYTES = 250_000
GARBAGE = frame(b"", rsv=4)
"""Ends every flood that does not end by itself: the proxy gets to it only if it reads on."""
SSH_ACTION = RequestedAction(
    action_type="SessionType", parameters={"SessionType": "Port", "Properties": {"portNumber": "22"}}
)

Script = Callable[[socket.socket], None]


# --- what the service says -----------------------------------------------------------------------------------------


def message(kind: str, payload: bytes, **fields: int) -> bytes:
    """Give a frame with an agent message."""
    return frame(encode_agent_message(AgentMessage(kind, payload, os.urandom(16), 1, **fields)))


def output(number: int, payload: bytes, payload_type: int = PayloadType.OUTPUT) -> bytes:
    return message(MessageType.OUTPUT, payload, sequence_number=number, payload_type=payload_type)


def acknowledge(number: int) -> bytes:
    payload = encode_acknowledge(Acknowledge(MessageType.INPUT, format_uuid(bytes(16)), number))
    return message(MessageType.ACKNOWLEDGE, payload, flags=SYN_FIN)


def handshake() -> bytes:
    """Give the agent's whole side of it, without waiting for the answer."""
    request = HandshakeRequest(agent_version="3.3.0.0", requested_actions=[SSH_ACTION])
    complete = HandshakeComplete(time_to_complete_ns=1)
    return (
        output(0, encode_handshake_request(request), PayloadType.HANDSHAKE_REQUEST)
        + output(1, encode_handshake_complete(complete), PayloadType.HANDSHAKE_COMPLETE)
        + acknowledge(0)
    )


def say(*data: bytes) -> Script:
    return lambda connection: connection.sendall(b"".join(data))


def flood(head: bytes, piece: bytes, total: int) -> Script:
    """Say the same again and again."""

    def script(connection: socket.socket) -> None:
        with reading(connection):
            connection.sendall(head)
            block = piece * (BLOCK_BYTES // len(piece) + 1)
            for _ in range(total // len(block)):
                connection.sendall(block)
            connection.sendall(GARBAGE)

    return script


def flood_of_numbers(total: int) -> Script:
    """Say output that is never in order, each number once."""

    def script(connection: socket.socket) -> None:
        with reading(connection):
            connection.sendall(handshake())
            for number in range(3, 3 + total // 8000):
                connection.sendall(output(number, b"x" * 8000))
            connection.sendall(GARBAGE)

    return script


@contextlib.contextmanager
def reading(connection: socket.socket) -> Iterator[None]:
    """Take, meanwhile and until it leaves, what the proxy says."""
    reader = threading.Thread(target=read_to_the_end, args=(connection,))
    reader.start()
    yield
    reader.join(TIMEOUT)


def read_to_the_end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


# --- the proxy -----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from ssm_proxy.transport import bridge, pipes
# A flood takes a slow machine its time: that is no news here.
bridge.BEGIN_NOTICE_AFTER = pipes.SILENCE_NOTICE_AFTER = 1e9
{changes}
from ssm_proxy.cli.main import main
status = main(sys.argv[2:])
try:
    with open("/proc/self/status") as values, open(sys.argv[1], "w") as peak:
        peak.write(values.read().partition("VmHWM:")[2].split()[0])
except OSError:  # elsewhere nobody measures
    pass
sys.exit(status)
"""


class Ended(NamedTuple):
    """What is left of a proxy."""

    status: int
    out: bytes
    lines: list[str]
    peak_bytes: int
    """Of resident memory; 0 where that is not measured."""

    def check(self, status: int, *texts: str, max_peak_bytes: int = MAX_PEAK_BYTES) -> None:
        """Insist on the exit status, on an error of the usual form that says this, and on flat memory."""
        assert self.status == status, self.lines
        assert 1 <= len(self.lines) <= 3
        assert all(line.startswith("ssm-proxy: ") for line in self.lines)
        assert self.lines[0].startswith("ssm-proxy: error: ")
        for text in texts:
            assert text in "\n".join(self.lines)
        assert "bug of ssm-proxy" not in self.lines[0]
        assert self.peak_bytes < max_peak_bytes


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorOptions(nodes=(Node(node_id=NODE),))) as emulator:
        yield emulator


Meet = Callable[..., Ended]


@pytest.fixture
def meet(emulator: Emulator, tmp_path: Path) -> Meet:
    """Run a proxy against a service all of whose connections go as the script says."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SSM_PROXY_")) and not name.lower().endswith("_proxy")
    }
    environment = {
        **kept,
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **emulator.environment(),
    }
    peak_file = tmp_path / "peak"

    def answer_by(script: Script) -> Answer:
        def answer(connection: socket.socket, request: bytes) -> None:
            connection.settimeout(TIMEOUT)
            upgrade(connection, request)
            script(connection)
            connection.shutdown(socket.SHUT_WR)
            read_to_the_end(connection)

        return answer

    def meet(script: Script, *, changes: str = "", arguments: tuple[str, ...] = ()) -> Ended:
        input_reader, input_writer = os.pipe()  # stays open: its end would be an end of the tunnel
        with ScriptedServer(answer_by(script)) as server:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", PROGRAM.format(changes=changes), str(peak_file)),
                    *("proxy", NODE, "--stream-endpoint-url", f"ws://127.0.0.1:{server.port}", *arguments),
                ],
                env=environment,
                stdin=input_reader,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                out, errors = process.communicate(timeout=TIMEOUT)
            finally:
                process.kill()
                os.close(input_reader)
                os.close(input_writer)
        peak = int(peak_file.read_text()) * 1024 if peak_file.exists() else 0
        return Ended(process.returncode, out, errors.decode().splitlines(), peak)

    return meet


class TestFrames:
    """Below the protocol."""

    @pytest.mark.parametrize(
        ("head", "piece"),
        [
            pytest.param(b"", frame(b"x" * 125, PING), id="pings"),
            pytest.param(b"", frame(b"x" * 125, PONG), id="pongs"),
            pytest.param(frame(b"", fin=False), frame(b"", CONTINUATION, fin=False), id="empty fragments"),
        ],
    )
    def test_a_flood_costs_no_memory(self, meet: Meet, head: bytes, piece: bytes) -> None:
        total = FLOOD_BYTES if len(piece) > 2 else FLOOD_BYTES // 20
        meet(flood(head, piece, total)).check(7, "no WebSocket frame", "reserved bits")

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            pytest.param(frame(b"x" * 1024, rsv=4), "reserved bits are set", id="compressed"),
            pytest.param(b"\x82\x85keyssecret", "masked", id="masked"),
            pytest.param(b"\x82\x7f" + (2**40).to_bytes(8, "big"), "none may be larger", id="oversized"),
            pytest.param(frame(b"", 11), "unknown opcode 11", id="opcode"),
            pytest.param(b"HTTP/1.1 502 Bad Gateway\r\n\r\nsecret", "no WebSocket frame", id="HTTP"),
        ],
    )
    def test_what_is_no_frame(self, meet: Meet, data: bytes, text: str) -> None:
        ended = meet(say(handshake(), output(2, b"before"), data))
        ended.check(7, text)
        assert not any("secret" in line for line in ended.lines)

    def test_fragments_without_end(self, meet: Meet) -> None:
        piece = frame(b"x" * 1000, CONTINUATION, fin=False)
        meet(flood(frame(b"", fin=False), piece, FLOOD_BYTES)).check(7, "none may be larger than 8388608")

    def test_one_that_ends_every_connection(self, meet: Meet) -> None:
        """It is resumed again and again; the session never begins."""
        changes = "from ssm_proxy.transport import recovery\nrecovery.FIRST_CONNECTION_BUDGET = 1.0"
        meet(say(frame(b"\x03\xe8Bye", CLOSE)), changes=changes).check(9, "could not be opened", "code 1000 ('Bye')")


class TestMessages:
    """In the words of the protocol."""

    @pytest.mark.parametrize(
        "piece",
        [
            pytest.param(acknowledge(4711), id="acknowledges of what was never sent"),
            pytest.param(acknowledge(2**63 - 1), id="acknowledges of the largest number"),
            pytest.param(output(0, b"x" * 1000), id="repeats"),
            pytest.param(output(-1, b"x" * 1000), id="negative numbers"),
            pytest.param(output(2**63 - 1, b"x" * 1000), id="the largest number"),
            pytest.param(message(MessageType.PAUSE_PUBLICATION, b""), id="pauses"),
            pytest.param(message("surprise", b"x" * 1000), id="unknown types"),
        ],
    )
    def test_a_flood_costs_no_memory(self, meet: Meet, piece: bytes) -> None:
        meet(flood(handshake(), piece, MESSAGE_FLOOD_BYTES)).check(7, "reserved bits")

    def test_output_out_of_order_is_kept_up_to_a_bound(self, meet: Meet) -> None:
        meet(flood_of_numbers(MESSAGE_FLOOD_BYTES)).check(7, "reserved bits")

    @pytest.mark.parametrize(
        ("head", "piece", "text"),
        [
            pytest.param(b"", frame(b""), "shorter than its header", id="empty"),
            pytest.param(b"", frame(b"\xff" * 200), "header length", id="a header that lies"),
            pytest.param(b"", frame(b"\0\0\0\x74" + b"\xff" * 200), "not ASCII", id="a type that is none"),
            pytest.param(b"", frame(output(2, b"x" * 99)[4:-1]), "digest", id="cut off"),
            pytest.param(b"", message(MessageType.ACKNOWLEDGE, b"[" * 100_000), "not JSON", id="deep JSON"),
            pytest.param(b"", message(MessageType.ACKNOWLEDGE, b'{"a":1e9999}'), "sequence number", id="no number"),
        ],
    )
    def test_messages_that_cannot_be_read(self, meet: Meet, head: bytes, piece: bytes, text: str) -> None:
        meet(flood(head, piece, 50_000_000)).check(7, "cannot be understood", text)

    @pytest.mark.parametrize(
        "payload", [b"", b"\xff\xfe", b"[]", b'{"Output": {}}', b'{"Output": ' + b"[" * 100_000, b"{" * 1000]
    )
    def test_an_end_whose_reason_is_garbage(self, meet: Meet, payload: bytes) -> None:
        ended = meet(say(handshake(), output(2, b"last words"), message(MessageType.CHANNEL_CLOSED, payload)))
        assert (ended.status, ended.out, ended.lines) == (0, b"last words", [])

    def test_a_reason_is_shown_without_what_a_terminal_would_obey(self, meet: Meet) -> None:
        payload = encode_channel_closed(ChannelClosedPayload(session_id="s", output="\x1b[2Jgone\n" + "!" * 10_000))
        ended = meet(say(handshake(), message(MessageType.CHANNEL_CLOSED, payload)))
        assert "\x1b" not in "".join(ended.lines)
        assert all(len(line) < 600 for line in ended.lines)

    def test_a_handshake_that_never_comes(self, meet: Meet) -> None:
        changes = "from ssm_proxy.channel import data_channel\ndata_channel.HANDSHAKE_TIMEOUT = 0.5"
        meet(read_to_the_end, changes=changes).check(7, "did not start the session in time")

    def test_a_handshake_that_never_comes_among_pauses(self, meet: Meet) -> None:
        """Not even they can put it off."""
        changes = "from ssm_proxy.channel import data_channel\ndata_channel.HANDSHAKE_TIMEOUT = 0.5"

        def script(connection: socket.socket) -> None:
            reader = threading.Thread(target=read_to_the_end, args=(connection,))
            reader.start()
            with contextlib.suppress(OSError):
                while reader.is_alive():
                    connection.sendall(message(MessageType.PAUSE_PUBLICATION, b""))
                    reader.join(0.01)

        meet(script, changes=changes).check(7, "did not start the session in time")

    def test_a_handshake_that_asks_for_everything(self, meet: Meet) -> None:
        """Read, answered in full and kept until it is acknowledged, the largest message takes some times its size."""
        actions = [RequestedAction(action_type="x" * 1000, parameters={}) for _ in range(6000)]
        request = encode_handshake_request(HandshakeRequest(agent_version="3", requested_actions=actions))
        script = say(output(0, request, PayloadType.HANDSHAKE_REQUEST), handshake())
        meet(script).check(7, "the agent asks for", max_peak_bytes=250 * 1024 * 1024)
