"""The client's side of each recorded session, played by the data channel, is an equivalent conversation."""

from __future__ import annotations

import base64
import json
import sys

import pytest
from golden.transcripts import NAMES, SSH_NAMES, Record, records
from simulation import wire_sketch
from simulation.pair import make_channel
from simulation.wire_sketch import Frame

from ssm_proxy.channel.cipher import DataKey, PayloadCipher
from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import (
    ChannelClosed,
    DataKeyNeeded,
    ErrorOutputReceived,
    Event,
    ExitCodeReceived,
    FlagReceived,
    MessageDropped,
    OutputReceived,
    PublicationChanged,
    SessionFailed,
    SessionStarted,
)
from ssm_proxy.errors import ChallengeFailed, DecryptionFailed, HandshakeFailed
from ssm_proxy.wire.constants import CLIENT_VERSION
from ssm_proxy.wire.shell_payloads import decode_challenge, decode_size


def recorded_data_key() -> DataKey:
    """Give the data key of ``shell-encrypted``, which its recording holds."""
    (plaintext,) = [
        bytes.fromhex(record.values["plaintext"])
        for record in records("shell-encrypted")
        if record.values.get("event") == "kms_data_key"
    ]
    (response,) = [record for record in records("shell-encrypted") if record.data and record.payload_type == 6]
    result = json.loads(response.payload)["ProcessedClientActions"][1]["ActionResult"]
    return DataKey(plaintext, base64.b64decode(result["KMSCipherTextKey"]))


DATA_KEY = recorded_data_key()
AGENT = PayloadCipher(DataKey(DATA_KEY.plaintext[32:] + DATA_KEY.plaintext[:32], b""), 0)
"""What the agent makes of the key: its halves serve the other directions."""


class Replay:
    """Feeds a channel what the recorded client received and typed, at the recorded times.

    An acknowledge for a message that this channel sends a little later than the official client did (it holds its first
    input back, 6.2) is handed over as soon as the message has left.
    """

    def __init__(self, name: str, channel: DataChannel, *, withhold_acknowledges_from: int | None = None) -> None:
        self.channel = channel
        self.sent: list[Frame] = []
        self.raw: list[bytes] = []
        self.events: list[Event] = []
        self.openings: list[dict[str, str]] = []
        self.resent_at_once: list[bytes] = []
        self.acknowledged_again: list[bytes] = []
        self._early: dict[int, bytes] = {}
        self._withheld_from = withhold_acknowledges_from
        typed = set()
        for record in records(name):
            self._advance(record.t)
            if "text" in record.values and record.sender == "client":
                before = len(self.raw)
                self.openings.append(json.loads(channel.open("token", record.t)))
                self._drain(record.t)
                at_once = [(data, wire_sketch.unpack(data)) for data in self.raw[before:]]
                self.resent_at_once = [data for data, frame in at_once if frame.kind == "input_stream_data"]
                self.acknowledged_again = [frame.payload for _, frame in at_once if frame.kind == "acknowledge"]
            elif record.data and record.to == "client" and record.arrived:
                self._receive(record)
            elif record.values.get("event") == "kms_data_key":
                channel.provide_data_key(DATA_KEY, record.t)
            elif record.kind == "input_stream_data" and record.payload_type == 1 and record.seq not in typed:
                typed.add(record.seq)
                payload = AGENT.decrypt(record.payload) if name == "shell-encrypted" else record.payload
                channel.send_input(payload, record.t)
            elif record.kind == "input_stream_data" and record.payload_type == 3:
                channel.send_size(decode_size(record.payload), record.t)
            self._drain(record.t)

    def _receive(self, record: Record) -> None:
        if record.kind == "acknowledge":
            number = wire_sketch.acknowledged_number(wire_sketch.unpack(record.data))
            if self._withheld_from is not None and number >= self._withheld_from and len(self.openings) == 1:
                return
            if number not in self.inputs():
                self._early[number] = record.data
                return
        self.channel.receive(record.data, record.t)

    def _advance(self, now: float) -> None:
        while (deadline := self.channel.next_deadline()) is not None and deadline <= now:
            self.channel.handle_deadline(deadline)
            self._drain(deadline)

    def _drain(self, now: float) -> None:
        while messages := self.channel.messages_to_send(now):
            for data in messages:
                self.raw.append(data)
                frame = wire_sketch.unpack(data)
                self.sent.append(frame)
                if frame.kind == "input_stream_data" and frame.seq in self._early:
                    self.channel.receive(self._early.pop(frame.seq), now)
        self.events += self.channel.events()

    def inputs(self) -> dict[int, Frame]:
        """Give the first sending of each input message; a repeat must be the same."""
        first: dict[int, Frame] = {}
        for frame in self.sent:
            if frame.kind == "input_stream_data":
                assert first.setdefault(frame.seq, frame) == frame
        return first

    def acknowledge_payloads(self) -> list[bytes]:
        return [frame.payload for frame in self.sent if frame.kind == "acknowledge"]

    def events_of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def once(values: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(values))


def recorded_inputs(name: str) -> list[tuple[int, int, bytes]]:
    first: dict[int, Record] = {}
    for record in records(name):
        if record.kind == "input_stream_data":
            first.setdefault(record.seq, record)
    return [(record.seq, record.payload_type, record.payload) for record in first.values()]


def recorded_acknowledges(name: str) -> list[bytes]:
    return [record.payload for record in records(name) if record.kind == "acknowledge" and record.sender == "client"]


def arrived_outputs(name: str) -> list[Record]:
    return [r for r in records(name) if r.kind == "output_stream_data" and r.to == "client" and r.arrived]


def acknowledge_payload(record: Record) -> bytes:
    frame = wire_sketch.unpack(record.data)
    return wire_sketch.unpack(wire_sketch.acknowledge(frame, frame.uid)).payload


def output_bytes(name: str, payload_type: int = 1) -> bytes:
    by_number = {record.seq: record for record in arrived_outputs(name)}
    chosen = (by_number[seq] for seq in sorted(by_number))
    return b"".join(record.payload for record in chosen if record.payload_type == payload_type)


@pytest.mark.parametrize("name", SSH_NAMES)
class TestStreamSessions:
    def test_input_has_the_recorded_numbers_types_and_payloads(self, name: str) -> None:
        ours = [
            (frame.seq, frame.payload_type, frame.payload) for frame in Replay(name, make_channel()).inputs().values()
        ]
        theirs = recorded_inputs(name)
        assert ours[1:] == theirs[1:]
        number, payload_type, response = theirs[0]
        version = CLIENT_VERSION.encode()
        assert ours[0] == (number, payload_type, response.replace(b"1.2.677.0", version))
        assert version in ours[0][2]
        assert sum(payload_type == 6 for _, payload_type, _ in ours) == 1

    def test_acknowledges_are_the_recorded_ones_and_one_for_each_repeat(self, name: str) -> None:
        replay = Replay(name, make_channel())
        ours = replay.acknowledge_payloads()
        if again := replay.acknowledged_again:  # said again at the resume, in case they were lost
            start = next(i for i in range(1, len(ours)) if ours[i : i + len(again)] == again)
            assert ours[:start] == again
            del ours[start : start + len(again)]
        arrived = arrived_outputs(name)
        assert ours == [acknowledge_payload(record) for record in arrived]
        theirs = recorded_acknowledges(name)
        extra = [payload for payload in once(ours) if payload not in theirs]
        assert [payload for payload in once(ours) if payload not in extra] == theirs
        # These reached the official client as its connection broke (resume) or as it was ending, and it never said so.
        numbers = [json.loads(payload)["AcknowledgedMessageSequenceNumber"] for payload in extra]
        assert numbers == {"ssh-resume": [20], "ssh-scp-upload-20k": [21]}.get(name, [])

    def test_output_is_delivered_once_and_in_order(self, name: str) -> None:
        replay = Replay(name, make_channel())
        delivered = b"".join(event.payload for event in replay.events if isinstance(event, OutputReceived))
        assert delivered == output_bytes(name)
        assert not replay.events_of(MessageDropped)
        assert not replay.events_of(SessionFailed)
        assert replay.events_of(SessionStarted) == [SessionStarted("Port", {"portNumber": "8122"}, "3.3.0.0", "")]

    def test_nothing_is_left_unacknowledged(self, name: str) -> None:
        assert Replay(name, make_channel()).channel.is_drained

    def test_opening_has_the_recorded_members(self, name: str) -> None:
        ours = Replay(name, make_channel()).openings
        theirs = [r.values["text"] for r in records(name) if "text" in r.values and r.sender == "client"]
        assert [set(opening) for opening in ours] == [set(opening) for opening in theirs]
        for opening in ours:
            assert (opening["MessageSchemaVersion"], opening["TokenValue"]) == ("1.0", "token")
        assert len({opening["ClientId"] for opening in ours}) == 1
        assert len({opening["RequestId"] for opening in ours}) == len(ours)


@pytest.mark.parametrize("name", ["ssh-exec", "ssh-scp-upload-20k"])
def test_channel_closed_ends_the_session(name: str) -> None:
    replay = Replay(name, make_channel())
    assert replay.events[-1] == ChannelClosed("")
    assert replay.channel.is_closed


def test_a_lost_message_is_sent_again_before_its_timer() -> None:
    replay = Replay("ssh-faults", make_channel())
    numbers = [frame.seq for frame in replay.sent if frame.kind == "input_stream_data"]
    assert [number for number in set(numbers) if numbers.count(number) > 1] == [18]
    # The official client sent it again after 29; later acknowledges show the hole as soon as 22 is acknowledged.
    assert numbers.index(18, numbers.index(18) + 1) <= numbers.index(24)
    # Twice, because the recorded agent answers the official client's repeat, which comes later than ours.
    assert replay.channel.retransmission_count == 2


def test_after_a_resume_all_that_is_unacknowledged_leaves_at_once() -> None:
    replay = Replay("ssh-resume", make_channel(), withhold_acknowledges_from=9)
    assert len(replay.openings) == 2
    originals = {wire_sketch.unpack(data).seq: data for data in replay.raw}
    assert [wire_sketch.unpack(data).seq for data in replay.resent_at_once] == [9, 10, 11, 12]
    assert replay.resent_at_once == [originals[number] for number in (9, 10, 11, 12)]


def test_after_a_resume_there_is_no_second_handshake() -> None:
    replay = Replay("ssh-resume", make_channel())
    assert [frame.payload_type for frame in replay.sent].count(6) == 1
    assert replay.resent_at_once == []


REFUSED = {
    "forward-mux": "it forwards a local port",
    "forward-mux-refused": "it forwards a local port",
    "forward-remote-host": "it forwards a local port",
    "interactive-command": "it is of type 'Standard_Stream'",
    "noninteractive": "it is of type 'NonInteractiveCommands'",
    "noninteractive-separate": "it is of type 'NonInteractiveCommands'",
    "shell": "it is of type 'Standard_Stream'",
    "shell-encrypted": "it is of type 'Standard_Stream'",
}


def test_every_recording_is_tried() -> None:
    assert sorted([*SSH_NAMES, *REFUSED]) == NAMES


@pytest.mark.parametrize("name", REFUSED)
def test_other_sessions_are_refused_with_the_reason(name: str) -> None:
    replay = Replay(name, make_channel())
    assert replay.channel.is_closed
    assert replay.channel.next_deadline() is None
    failure = replay.events[-1]
    assert isinstance(failure, SessionFailed)
    assert isinstance(failure.error, HandshakeFailed)
    assert REFUSED[name] in str(failure.error.cause)
    assert replay.events_of(OutputReceived) == []
    sent_types = [frame.payload_type for frame in replay.sent]
    if name in ("shell", "interactive-command"):  # no handshake to refuse in
        assert sent_types == [0]
        return
    assert sent_types == [0, 6]
    response = json.loads(replay.sent[1].payload)
    statuses = [(action["ActionType"], action["ActionStatus"]) for action in response["ProcessedClientActions"]]
    assert statuses == [("SessionType", 2), ("KMSEncryption", 2)][: 1 + (name == "shell-encrypted")]
    assert all(action["Error"] for action in response["ProcessedClientActions"])


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "shell-encrypted"])
def test_other_sessions_are_followed_where_the_caller_takes_them(name: str) -> None:
    replay = Replay(name, make_channel(check_session=lambda session_type, properties: None))
    assert replay.events_of(SessionFailed) == []
    assert replay.events[-1] == ChannelClosed("")
    delivered = b"".join(event.payload for event in replay.events if isinstance(event, OutputReceived))
    assert delivered == output_bytes(name)
    assert replay.events_of(FlagReceived) == ([FlagReceived(3)] if name == "forward-mux-refused" else [])
    assert replay.events_of(MessageDropped) == []
    assert once(replay.acknowledge_payloads()) == recorded_acknowledges(name)


def any_session(session_type: str, properties: object) -> None:
    return None


@pytest.mark.parametrize("name", ["noninteractive", "noninteractive-separate"])
def test_a_command_s_input_is_the_recorded_one(name: str) -> None:
    replay = Replay(name, make_channel(check_session=any_session))
    ours = [(frame.seq, frame.payload_type, frame.payload) for frame in replay.inputs().values()]
    assert ours[1:] == recorded_inputs(name)[1:]
    assert ours[1][1:] == (3, b'{"cols":300,"rows":100}')


def test_a_command_s_streams_and_exit_code_come_apart_and_in_order() -> None:
    replay = Replay("noninteractive-separate", make_channel(check_session=any_session))
    events = [event for event in replay.events if not isinstance(event, PublicationChanged)]
    assert events[1:-1] == [
        OutputReceived(b"to-stdout\n"),
        ErrorOutputReceived(b"to-stderr\n"),
        ExitCodeReceived(7),
    ]


class TestEncryptedShell:
    """The recorded agent is a real one; ours is the client that it speaks with here."""

    def replay(self) -> Replay:
        return Replay("shell-encrypted", make_channel(check_session=any_session))

    def test_events(self) -> None:
        asked, *rest = [event for event in self.replay().events if not isinstance(event, PublicationChanged)]
        assert asked == DataKeyNeeded(
            "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555", "VH3gsEwEdMEIY0YJPlTrNA=="
        )
        assert rest == [
            SessionStarted("Standard_Stream", None, "3.3.0.0", "This session is encrypted using AWS KMS."),
            OutputReceived(b"$ echo enc-$((40+2)); exit\r\nenc-42\r\n"),
            ChannelClosed(""),
        ]

    def test_input_is_the_recorded_one_but_for_nonces(self) -> None:
        ours = self.replay().inputs()
        theirs = {number: (kind, payload) for number, kind, payload in recorded_inputs("shell-encrypted")}
        assert {number: frame.payload_type for number, frame in ours.items()} == {0: 6, 1: 9, 2: 1}
        assert {number: kind for number, (kind, _) in theirs.items()} == {0: 6, 1: 9, 2: 1}
        response, recorded = json.loads(ours[0].payload), json.loads(theirs[0][1])
        result = response["ProcessedClientActions"][1]["ActionResult"]
        # Later clients announce the challenge (7.2), and a member without a value has none in the recording.
        assert result.pop("ChallengeAcknowledgement") is True
        assert result.pop("KMSCipherTextHash") is None
        assert response == {**recorded, "ClientVersion": CLIENT_VERSION}
        for number in (1, 2):
            assert ours[number].payload != theirs[number][1]
        challenges = [AGENT.decrypt(decode_challenge(payload)) for payload in (ours[1].payload, theirs[1][1])]
        assert challenges[0] == challenges[1]
        assert len(challenges[0]) == 64
        assert AGENT.decrypt(ours[2].payload) == AGENT.decrypt(theirs[2][1]) == b"echo enc-$((40+2)); exit\n"

    def test_acknowledges_are_the_recorded_ones(self) -> None:
        ours = [json.loads(payload) for payload in once(self.replay().acknowledge_payloads())]
        assert ours == [json.loads(payload) for payload in recorded_acknowledges("shell-encrypted")]

    def test_another_key_ends_the_session_at_the_challenge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules[__name__], "DATA_KEY", DataKey(bytes(64), b"wrapped"))
        replay = self.replay()
        failure = replay.events[-1]
        assert isinstance(failure, SessionFailed)
        assert isinstance(failure.error, ChallengeFailed)
        assert replay.events_of(SessionStarted) == replay.events_of(OutputReceived) == []

    @pytest.mark.parametrize("position", [0, 11, 12, 40, -1])
    def test_output_that_was_changed_ends_the_session_and_is_not_shown(self, position: int) -> None:
        channel = make_channel(check_session=any_session)
        receive = channel.receive

        def meddle(data: bytes, now: float) -> None:
            frame = wire_sketch.unpack(data)
            if frame.payload_type == 1:
                payload = bytearray(frame.payload)
                payload[position] ^= 1
                data = wire_sketch.pack(frame._replace(payload=bytes(payload)))
            receive(data, now)

        channel.receive = meddle  # type: ignore[method-assign]
        replay = Replay("shell-encrypted", channel)
        failure = replay.events[-1]
        assert isinstance(failure, SessionFailed)
        assert isinstance(failure.error, DecryptionFailed)
        assert replay.events_of(OutputReceived) == []
