"""The data channel under any list of operations, beside a model of what it owes to its driver and to the agent.

The input is the list: each operation is a byte and its arguments. What the channel takes is judged once more with the
decoder alone, so that damaged messages need no second opinion about the wire format; the order of output, what is
acknowledged, what may leave when, in which order, what is encrypted, and the room for input are modelled apart.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from unittest import mock

from fuzz.choices import Choices
from fuzz.wire_targets import MEMBERS
from simulation import wire_sketch
from simulation.fixed_window import FixedWindow
from simulation.wire_sketch import Frame

from ssm_proxy.channel import data_channel, incoming
from ssm_proxy.channel.cipher import OVERHEAD_BYTES, DataKey, PayloadCipher
from ssm_proxy.channel.congestion import CongestionWindow
from ssm_proxy.channel.data_channel import (
    HANDSHAKE_TIMEOUT,
    MAX_PAYLOAD_BYTES,
    PAUSE_LAPSE,
    RECENT_ACKNOWLEDGES,
    SETTLE_TIME,
    DataChannel,
)
from ssm_proxy.channel.events import (
    ChannelClosed,
    DataKeyNeeded,
    ErrorOutputReceived,
    ExitCodeReceived,
    FlagReceived,
    OutputReceived,
    SessionFailed,
    SessionStarted,
)
from ssm_proxy.channel.window import Window
from ssm_proxy.errors import EncryptionError, ProtocolError
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.wire.agent_message import decode_agent_message
from ssm_proxy.wire.constants import MessageType, PayloadType
from ssm_proxy.wire.json_text import compact
from ssm_proxy.wire.payloads import decode_acknowledge, encode_flag
from ssm_proxy.wire.shell_payloads import TerminalSize, decode_challenge, encode_challenge, encode_size

_LIMITS = (0, 1, 100, 1024, 5000, 20 * 1024, 512 * 1024)
_SIZES = (0, 1, 2, 100, 1023, 1024, 1025, 3000, 10_000, 40_000)
_STEPS = (0.0, 0.001, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 29.999, 30.0, 45.0, 3600.0)
_LARGE = bytes(4000)
_COMPLETE = b'{"HandshakeTimeToComplete":1,"CustomerMessage":""}'
_PAUSE = wire_sketch.pack(Frame("pause_publication", b"{}"))
_START = wire_sketch.pack(Frame("start_publication", b"{}"))
_KEY = DataKey(bytes(range(64)), b"wrapped")
_KEY_OF_THE_AGENT = DataKey(_KEY.plaintext[32:] + _KEY.plaintext[:32], b"")
_KEY_TOO_SHORT = DataKey(bytes(32), b"wrapped")
_CHALLENGE = bytes(64)
_JUDGE = PayloadCipher(_KEY, 0)
_PATTERN = bytes(range(251)) * 4200
_MOST_OPERATIONS = 400
_MOST_NOT_LEFT = 1000
"""More messages than fit the largest window."""


def make_window(choices: Choices) -> Window:
    """Give a fixed window of some size, or the one of tunnels."""
    limit = choices.one_of(_LIMITS)
    return CongestionWindow() if choices.below(2) else FixedWindow(limit)


class Machine:
    """A channel, its driver and the model."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.window = make_window(choices)
        ids = itertools.count(1)
        self.channel = DataChannel(
            check_session=check_stream_session,
            window=self.window,
            new_message_id=lambda: next(ids).to_bytes(16, "big"),
            wall_clock_ms=lambda: 1_700_000_000_000,
        )
        self.now = 1000.0
        # What the agent sends, judged apart.
        self.expected = 0
        self.held: dict[int, tuple[int, bytes]] = {}
        self.held_bytes = 0
        self.owed: list[tuple[str, int]] = []  # acknowledges that have to leave, by id and number
        self.recent: deque[tuple[str, int]] = deque(maxlen=RECENT_ACKNOWLEDGES)
        self.said: dict[bytes, tuple[str, int]] = {}  # by the message that said it
        self.outputs: list[bytes] = []
        self.errors: list[bytes] = []  # standard error
        self.rejected_in_a_row = 0
        # What the channel says and sends.
        self.delivered: list[bytes] = []
        self.delivered_errors: list[bytes] = []
        self.is_started = False
        self.has_ended = False
        self.last_chance = False  # what was ready when the channel failed leaves with the next batch
        self.sent: dict[int, bytes] = {}  # by number
        self.judged = 0  # numbers below it have been read, as the agent does: in order
        self.acknowledged: set[int] = set()
        self.resumed: set[int] = set()  # lined up at a resume: leave also if acknowledged meanwhile
        self.peer_lied = False  # it acknowledged what had not left yet: nothing can be said about the numbers then
        self.given = 0
        self.left_bytes = 0
        self.acknowledged_bytes = 0
        self.flags: deque[tuple[int, bytes]] = deque()  # not yet sent, with how much input was given before
        self.sizes: list[bytes] = []  # given after the last one that left
        self.columns = itertools.count(1)
        self.key_is_needed = False
        self.agent: PayloadCipher | None = None  # once the channel has a key
        self.paused_until: float | None = None
        self.settled_at: float | None = None
        self.channel.open("token", self.now)
        self.drive()

    # --- operations -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for _ in range(_MOST_OPERATIONS):
            if self.choices.is_over:
                break
            kind = self.choices.byte()
            self.operation(kind & 63)
            if kind < 0xC0:  # else the driver takes more from the socket before it sends
                self.drive()
        self.drive()
        self.finish()

    def operation(self, kind: int) -> None:
        choices = self.choices
        if kind >= 60:
            self.beside_input(kind - 60)
            return
        kind &= 31
        if kind < 8:
            self.receive(self.stream_message(ahead=0))
        elif kind < 10:
            self.receive(self.stream_message(ahead=1 + choices.below(4)))
        elif kind == 10:
            self.receive(self.stream_message(ahead=choices.byte() - 16))
        elif kind == 11:
            self.receive(self.stream_message(ahead=choices.integer()))
        elif kind == 12:
            self.receive(self.damaged(self.stream_message(ahead=choices.below(4))))
        elif kind == 13:
            self.receive(choices.take(choices.byte()))
        elif kind == 14:
            self.receive(self.odd_message())
        elif kind < 18:
            self.receive(wire_sketch.input_acknowledge(max(0, len(self.sent) - 1 - choices.below(8))))
        elif kind == 18:
            self.acknowledge_all()
        elif kind == 19:
            self.receive(wire_sketch.input_acknowledge(choices.integer() & 2**63 - 1))
        elif kind < 24:
            self.send_input(choices.one_of(_SIZES))
        elif kind == 24:
            self.advance(self.now + choices.one_of(_STEPS))
        elif kind < 27:
            deadline = self.channel.next_deadline()
            self.advance(max(self.now, deadline or 0.0))
        elif kind == 27:
            self.advance(self.now + choices.byte() / 100)
        elif kind == 28:
            self.open()
        elif kind == 29:
            self.receive(choices.one_of((_PAUSE, _START)))
        elif kind == 30:
            if self.channel.is_started:
                self.flags.append((self.given, b"\0\0\0\x02"))
            self.channel.terminate(self.now)
        elif choices.below(8) == 0:
            self.receive(wire_sketch.pack(Frame("channel_closed", compact(choices.object(MEMBERS)))))
        else:
            self.receive(self.begin())

    def beside_input(self, kind: int) -> None:
        choices = self.choices
        if kind == 0:
            size = TerminalSize(columns=next(self.columns), rows=24)
            self.channel.send_size(size, self.now)
            self.sizes.append(encode_size(size))
        elif kind == 1:
            flag = choices.byte()
            self.channel.send_flag(flag, self.now)
            self.flags.append((self.given, encode_flag(flag)))
        else:
            self.drive()  # the driver has to be asked before it answers
            was_closed = self.channel.is_closed
            if kind == 2:
                is_good = choices.below(8) != 0
                self.channel.provide_data_key(_KEY if is_good else _KEY_TOO_SHORT, self.now)
            else:
                is_good = False
                self.channel.refuse_data_key(EncryptionError("there is no key"), self.now)
            if self.key_is_needed and not was_closed:
                self.key_is_needed = False
                assert self.channel.is_closed != is_good
                self.last_chance = not is_good
                if is_good:
                    self.agent = PayloadCipher(_KEY_OF_THE_AGENT, 0)

    def acknowledge_all(self) -> None:
        for number in sorted(set(self.sent) - self.acknowledged):
            self.receive(wire_sketch.input_acknowledge(number))

    def stream_message(self, ahead: int) -> bytes:
        number = self.expected + ahead
        if not -(2**63) <= number < 2**63:
            number = 0
        choices = self.choices
        if number == 0:
            return self.begin()
        if number == 1 and self.agent is not None:
            challenge = encode_challenge(self.agent.encrypt(_CHALLENGE))
            return wire_sketch.output(1, challenge, PayloadType.ENC_CHALLENGE_REQUEST)
        if number == (1 if self.agent is None else 2):
            return wire_sketch.output(number, _COMPLETE, PayloadType.HANDSHAKE_COMPLETE)
        style = choices.byte()
        if style >= 240:
            return wire_sketch.output(number, self.sealed(_LARGE))
        if style >= 232:
            return wire_sketch.output(number, choices.take(choices.below(8)), PayloadType.FLAG)
        if style >= 224:
            return wire_sketch.output(number, choices.take(choices.below(16)), choices.below(14))
        if 216 <= style < 224:
            kind, payload = choices.one_of(((PayloadType.STDERR, b"oh"), (PayloadType.EXIT_CODE, b"EXIT_CODE: 7")))
            return wire_sketch.output(number, self.sealed(payload), kind)
        return wire_sketch.output(number, self.sealed(b"%d " % number * (style & 7)))

    def sealed(self, payload: bytes) -> bytes:
        return payload if self.agent is None else self.agent.encrypt(payload)

    def begin(self) -> bytes:
        """Give message 0, mostly the request that a tunnel expects."""
        style = self.choices.below(32)
        if style == 1:
            return wire_sketch.output(0, b"$ ")
        if style == 2:
            return wire_sketch.output(0, compact(self.choices.object(MEMBERS)), PayloadType.HANDSHAKE_REQUEST)
        if style == 3:
            return wire_sketch.output(0, b"{}", self.choices.below(16))
        if style in (4, 5):
            kms = {"ActionType": "KMSEncryption", "ActionParameters": {"KMSKeyId": "k"}}
            payload = wire_sketch.handshake_request("Port", None, kms)
            return wire_sketch.output(0, payload, PayloadType.HANDSHAKE_REQUEST)
        return wire_sketch.output(0, wire_sketch.handshake_request(), PayloadType.HANDSHAKE_REQUEST)

    def odd_message(self) -> bytes:
        choices = self.choices
        style = choices.below(4)
        if style == 0:
            return wire_sketch.pack(Frame("acknowledge", compact(choices.object(MEMBERS))))
        kinds = (
            "pause_publication",
            "start_publication",
            "agent_session_state",
            "input_stream_data",
            "x",
            "acknowledge",
        )
        kind = choices.one_of(kinds)
        payload = choices.take(choices.below(32))
        if style == 1:
            return wire_sketch.pack(Frame(kind, payload), header_length=112)
        number, payload_type = choices.integer(), choices.below(16)
        if not -(2**63) <= number < 2**63:
            number = -1
        return wire_sketch.pack(Frame(kind, payload, number, payload_type, created=choices.below(4)))

    def damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(1 + self.choices.below(3)):
            changed[self.choices.u16() % len(changed)] ^= 1 << self.choices.below(8)
        return bytes(changed[: len(changed) - (self.choices.below(4) == 0) * self.choices.byte()])

    # --- the model --------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        was_closed = self.channel.is_closed
        is_waiting = self.expected == 0 and not self.is_started
        self.channel.receive(data, self.now)
        if was_closed:
            return
        try:
            message = decode_agent_message(data)
            if message.message_type in (MessageType.ACKNOWLEDGE, MessageType.OUTPUT):
                self.paused_until = None  # whoever is heard is there
            if message.message_type == MessageType.ACKNOWLEDGE:
                number = decode_acknowledge(message.payload).sequence_number
                self.take_acknowledge(number)
            elif message.message_type == MessageType.OUTPUT:
                opens = message.payload_type in (PayloadType.HANDSHAKE_REQUEST, PayloadType.OUTPUT)
                if is_waiting and message.sequence_number == 0 and not opens:
                    raise ProtocolError("no beginning")
                identity = message.message_id.hex()
                self.take_output(message.sequence_number, identity, message.payload_type, message.payload)
            elif message.message_type == MessageType.PAUSE_PUBLICATION:
                self.paused_until = self.now + PAUSE_LAPSE
            elif message.message_type == MessageType.START_PUBLICATION:
                self.paused_until = None
            elif message.message_type == MessageType.CHANNEL_CLOSED:
                assert self.channel.is_closed
        except ProtocolError:
            self.rejected_in_a_row += 1
            assert self.channel.is_closed == (self.rejected_in_a_row >= data_channel.MAX_REJECTED_IN_A_ROW)
        else:
            self.rejected_in_a_row = 0
        if self.channel.is_closed:
            self.last_chance = True

    def take_acknowledge(self, number: int) -> None:
        if number not in self.sent:
            # Nobody can acknowledge what has not left. Where nothing can be kept under that number yet, it is ignored.
            self.peer_lied = self.peer_lied or number < len(self.sent) + _MOST_NOT_LEFT
        elif number not in self.acknowledged:
            self.acknowledged.add(number)
            self.acknowledged_bytes += self.input_size(wire_sketch.unpack(self.sent[number]))

    def take_output(self, number: int, identity: str, payload_type: int, payload: bytes) -> None:
        if number < 0:
            return
        if number > self.expected and number not in self.held:
            is_full = len(self.held) >= incoming.MAX_STORED_MESSAGES
            if is_full or self.held_bytes + len(payload) > incoming.MAX_STORED_BYTES:
                return
            self.held[number] = (payload_type, payload)
            self.held_bytes += len(payload)
        self.owed.append((identity, number))
        self.recent.append((identity, number))
        if number == self.expected:
            self.deliver(payload_type, payload)
            while (kept := self.held.pop(self.expected, None)) is not None:
                self.held_bytes -= len(kept[1])
                self.deliver(*kept)

    def deliver(self, payload_type: int, payload: bytes) -> None:
        self.expected += 1
        if self.agent is not None and payload_type in (PayloadType.OUTPUT, PayloadType.STDERR, PayloadType.EXIT_CODE):
            try:
                payload = _JUDGE.decrypt(payload)
            except EncryptionError:
                assert self.channel.is_closed, "what is not encrypted does not count"
                return
        if payload_type == PayloadType.OUTPUT and payload:
            self.outputs.append(payload)
            self.settled_at = self.now
        elif payload_type == PayloadType.STDERR and self.settled_at is not None:
            self.errors.append(payload)
        elif payload_type == PayloadType.HANDSHAKE_COMPLETE and self.settled_at is None:
            self.settled_at = self.now + SETTLE_TIME

    def send_input(self, size: int) -> None:
        size = min(size, self.channel.input_room(self.now))
        start = self.given % 251
        self.channel.send_input(_PATTERN[start : start + size], self.now)
        self.given += size

    def open(self) -> None:
        self.channel.open("another", self.now)
        self.owed = list(self.recent)
        self.resumed = set(self.sent) - self.acknowledged
        self.paused_until = None

    def advance(self, when: float) -> None:
        self.now = when
        was_closed = self.channel.is_closed
        self.channel.handle_deadline(when)
        if self.paused_until is not None and when >= self.paused_until:
            self.paused_until = None
        self.last_chance = self.last_chance or (self.channel.is_closed and not was_closed)

    # --- the driver, and what always holds --------------------------------------------------------------------------

    def drive(self) -> None:
        """Do what the driver does after any call."""
        self.send_and_tell()
        assert 0 <= self.channel.input_room(self.now) <= self.channel.capacity()
        deadline = self.channel.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.advance(self.now)
            self.send_and_tell()
            self.channel.input_room(self.now)
            deadline = self.channel.next_deadline()
            assert deadline is None or deadline > self.now, "a deadline in the past makes the driver spin"
        if self.channel.is_closed:
            assert deadline is None
            assert self.channel.capacity() == self.channel.input_room(self.now) == 0
            assert self.channel.messages_to_send(self.now) == []
        else:
            self.check_room()
            assert deadline is None or deadline <= self.now + max(HANDSHAKE_TIMEOUT, PAUSE_LAPSE)

    def check_room(self) -> None:
        limit = self.window.limit_bytes
        capacity = self.channel.capacity()
        assert 0 <= capacity <= max(0, limit)
        if len(self.sent) - len(self.acknowledged) >= data_channel.MAX_UNACKNOWLEDGED_MESSAGES:
            assert capacity == 0 or self.peer_lied
        if not self.peer_lied:
            assert capacity <= max(0, limit - (self.given - self.acknowledged_bytes))
            is_drained = len(self.acknowledged) == len(self.sent) and self.left_bytes == self.given
            assert not self.channel.is_drained or is_drained
            if self.channel.is_drained:
                assert capacity == limit

    def send_and_tell(self) -> None:
        was_closed = self.channel.is_closed
        urgent = self.channel.acknowledges_to_send()
        acknowledges = []
        for number, data in enumerate(urgent + self.channel.messages_to_send(self.now)):
            if (said := self.said.get(data)) is not None:
                acknowledges.append(said)
                continue
            frame = wire_sketch.unpack(data)
            assert len(data) == 120 + len(frame.payload)
            if frame.kind == MessageType.ACKNOWLEDGE:
                decoded = decode_acknowledge(frame.payload)
                assert decoded.message_type == MessageType.OUTPUT
                assert frame.seq == 0
                self.said[data] = (decoded.message_id.replace("-", ""), decoded.sequence_number)
                acknowledges.append(self.said[data])
            else:
                assert number >= len(urgent) or self.last_chance
                assert not was_closed or self.last_chance
                self.check_input(data, frame)
        self.last_chance = False
        assert acknowledges == self.owed, "each message is acknowledged each time, all of them again after a resume"
        self.owed = []
        self.tell()

    def check_input(self, data: bytes, frame: Frame) -> None:
        assert frame.kind == MessageType.INPUT
        assert self.paused_until is None or not self.is_started or self.channel.is_closed, "sent during a pause"
        if frame.seq in self.sent:
            assert data == self.sent[frame.seq], "a message is repeated as it was"
            is_known = frame.seq in self.acknowledged and frame.seq not in self.resumed
            assert not is_known or self.peer_lied, "it has arrived already"
            self.resumed.discard(frame.seq)
            return
        if self.peer_lied:
            return
        if frame.payload_type not in (PayloadType.SIZE, PayloadType.FLAG):
            # Those two may overtake what was lined up and then lost its connection: no window holds them back.
            assert frame.seq <= max(self.sent, default=-1) + 1, "a number was left out"
        if frame.payload_type in (PayloadType.OUTPUT, PayloadType.SIZE):
            assert self.settled_at is not None, "input before the agent takes it"
            assert self.now >= self.settled_at
        self.sent[frame.seq] = data
        while (ready := self.sent.get(self.judged)) is not None:
            self.judged += 1
            self.judge(wire_sketch.unpack(ready))

    def judge(self, frame: Frame) -> None:
        """Read what was sent in the order of the numbers."""
        payload = frame.payload
        if frame.payload_type == PayloadType.OUTPUT:
            assert 0 < self.input_size(frame) <= MAX_PAYLOAD_BYTES
            start = self.left_bytes % 251
            if self.agent is not None:
                payload = self.agent.decrypt(payload)
            assert payload == _PATTERN[start : start + len(payload)]
            self.left_bytes += len(payload)
            assert self.left_bytes <= self.given
            assert not self.flags or self.left_bytes <= self.flags[0][0], "before a flag that was given earlier"
        elif frame.payload_type == PayloadType.FLAG:
            assert (self.left_bytes, payload) == self.flags.popleft()
        elif frame.payload_type == PayloadType.SIZE:
            del self.sizes[: self.sizes.index(payload) + 1]
        elif frame.payload_type == PayloadType.ENC_CHALLENGE_RESPONSE:
            assert self.agent is not None
            assert frame.seq == 1
            assert self.agent.decrypt(decode_challenge(payload)) == _CHALLENGE
        else:
            assert frame.payload_type == PayloadType.HANDSHAKE_RESPONSE
            assert frame.seq == 0

    def input_size(self, frame: Frame) -> int:
        if frame.payload_type != PayloadType.OUTPUT:
            return 0
        return len(frame.payload) - (0 if self.agent is None else OVERHEAD_BYTES)

    def tell(self) -> None:
        for event in self.channel.events():
            assert not self.has_ended, "something happened after the end"
            if isinstance(event, SessionStarted):
                assert not self.is_started
                self.is_started = True
            elif isinstance(event, OutputReceived):
                assert self.is_started
                self.delivered.append(event.payload)
            elif isinstance(event, FlagReceived):
                assert 0 <= event.flag < 2**32
            elif isinstance(event, ErrorOutputReceived):
                assert self.is_started
                self.delivered_errors.append(event.payload)
            elif isinstance(event, ExitCodeReceived):
                assert self.is_started
            elif isinstance(event, DataKeyNeeded):
                assert not self.key_is_needed
                assert self.agent is None
                self.key_is_needed = True
            elif isinstance(event, SessionFailed | ChannelClosed):
                self.has_ended = True
        assert self.has_ended == self.channel.is_closed
        if self.channel.is_closed:
            assert self.delivered == self.outputs[: len(self.delivered)]
            assert self.delivered_errors == self.errors[: len(self.delivered_errors)]
        else:
            assert self.delivered == self.outputs, "in order, once, and at once"
            assert self.delivered_errors == self.errors
            assert self.channel.is_started == self.is_started

    def finish(self) -> None:
        """Let the agent acknowledge all: then nothing is left to repeat, and all room is there again."""
        if self.channel.is_closed or self.peer_lied or not self.is_started:
            return
        self.receive(_START)
        self.advance(max(self.now, self.settled_at or 0.0))
        for _ in range(3):
            self.drive()
            self.acknowledge_all()
        self.drive()
        if self.settled_at is None or self.channel.is_closed:  # it had given up just now
            return
        assert self.channel.is_drained
        assert self.left_bytes == self.given
        assert not self.flags
        assert not self.sizes, "the last size counts"
        for _ in range(3):  # for the pace, and once more for the rest of a byte; then never again
            if (deadline := self.channel.next_deadline()) is not None:
                self.advance(deadline)
                self.drive()
        assert self.channel.next_deadline() is None
        assert self.channel.capacity() == self.window.limit_bytes


def check_channel(data: bytes) -> None:
    """With limits that a short input can reach."""
    with (
        mock.patch.object(incoming, "MAX_STORED_MESSAGES", 6),
        mock.patch.object(incoming, "MAX_STORED_BYTES", 10_000),
        mock.patch.object(data_channel, "MAX_UNACKNOWLEDGED_MESSAGES", 100),
        mock.patch.object(data_channel, "MAX_REJECTED_IN_A_ROW", 10),
    ):
        Machine(Choices(data)).run()


TARGETS: dict[str, Callable[[bytes], None]] = {"channel": check_channel}
