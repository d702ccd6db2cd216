"""The data channel: joins codec, order, retransmission and handshake. Nothing else may touch their insides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ssm_proxy.channel.events import (
    ChannelClosed,
    Event,
    MessageDropped,
    OutputReceived,
    PublicationChanged,
    SessionFailed,
)
from ssm_proxy.channel.handshake import Handshake, HandshakeState, SessionCheck, Step
from ssm_proxy.channel.incoming import Incoming
from ssm_proxy.channel.outgoing import Outgoing
from ssm_proxy.channel.output import read_output
from ssm_proxy.channel.pacing import SMALLEST_BURST_BYTES, Pacer
from ssm_proxy.channel.rtt import RoundTrip
from ssm_proxy.channel.window import Window
from ssm_proxy.errors import (
    AcknowledgeTimeout,
    EncryptionError,
    HandshakeFailed,
    RemoteProtocolError,
    SsmProxyError,
)
from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import CLIENT_VERSION, SYN_FIN, Flag, MessageType, PayloadType
from ssm_proxy.wire.payloads import (
    Acknowledge,
    decode_acknowledge,
    decode_channel_closed,
    encode_acknowledge,
    encode_flag,
    encode_open_data_channel,
    format_uuid,
)

if TYPE_CHECKING:
    from ssm_proxy.channel.cipher import DataKey, PayloadCipher
    from ssm_proxy.wire.shell_payloads import TerminalSize

MAX_PAYLOAD_BYTES = 1024
"""What both official programs send at most in one message; larger ones are not known to pass the service (10.3)."""
HANDSHAKE_TIMEOUT = 45.0
"""The agent itself waits 15 s for each step; the rest is for a node that is slow to start its session worker."""
SETTLE_TIME = 0.1
"""An agent announces the end of the handshake slightly before it takes data: what arrives within that instant is
acknowledged and thrown away (6.2). The first output proves that it is past it; where the server does not speak first,
as SSH servers do, this wait has to do. It is longer than the gap that was measured (below 10 ms), because a busy node
may take that long to be scheduled, and costs nothing where the server speaks first."""
PAUSE_LAPSE = 30.0
"""When a pause_publication is never followed by a start_publication, sending starts again after this (5.7)."""
RECENT_ACKNOWLEDGES = 2048
"""What an agent sends in two seconds; about 0.6 MB. Fewer where a ping was answered since."""
MAX_UNACKNOWLEDGED_MESSAGES = 10_000
"""What every receiver can put in order (10.2); a window of bytes alone could be filled with single keystrokes."""
LARGEST_SHARE_TO_WAIT_FOR = 16
"""Input is asked for when this part of the window is free, or a burst: less would cut it into many small messages."""
MAX_REJECTED_IN_A_ROW = 100
"""Rejected messages are dropped and come again by their sender's timer (3.3); so many without a good one between them
mean that we do not speak the same protocol."""

_OF_THE_HANDSHAKE = frozenset(
    {PayloadType.HANDSHAKE_REQUEST, PayloadType.ENC_CHALLENGE_REQUEST, PayloadType.HANDSHAKE_COMPLETE}
)


class DataChannel:
    """One session's conversation with the agent, over any number of WebSockets one after the other.

    The driver calls a method, and after *any* call sends ``messages_to_send``, drains ``events`` and re-arms its timer
    to ``next_deadline``. Times are seconds of one monotonic clock.

    Args:
        check_session: see :data:`~ssm_proxy.channel.handshake.SessionCheck`.
        window: bounds the bytes in flight.
        new_message_id: gives 16 fresh random bytes, a version 4 UUID, at each call.
        wall_clock_ms: gives milliseconds since the Unix epoch, for the created dates.
        clock_step: seconds by which the clock moves at a time.
        handshake_timeout: seconds from the first opening to the start of the session, None for no limit: a shell
            without handshake starts with its first output, and a silent one never does.
    """

    def __init__(
        self,
        *,
        check_session: SessionCheck,
        window: Window,
        new_message_id: Callable[[], bytes],
        wall_clock_ms: Callable[[], int],
        clock_step: float = 0.0,
        handshake_timeout: float | None = HANDSHAKE_TIMEOUT,
    ) -> None:
        self._window = window
        self._new_message_id = new_message_id
        self._wall_clock_ms = wall_clock_ms
        self._client_id = format_uuid(new_message_id())
        self._handshake_timeout = handshake_timeout
        self._handshake = Handshake(check_session)
        self._cipher: PayloadCipher | None = None
        self._round_trip = RoundTrip()
        self._outgoing = Outgoing(window, self._round_trip)
        self._incoming = Incoming()
        self._pacer = Pacer(clock_step)
        self._events: list[Event] = []
        self._acknowledges: list[bytes] = []
        self._recent_acknowledges: deque[bytes] = deque(maxlen=RECENT_ACKNOWLEDGES)
        self._acknowledge_count = 0
        self._count_at_ping: int | None = None  # of acknowledges that left before a ping that is not answered yet
        self._ready: list[bytes] = []  # numbered, stored, not yet handed to the driver
        self._waiting: deque[tuple[int, bytes]] = deque()  # payload type and payload of input that may not be sent yet
        self._waiting_bytes = 0
        self._waiting_size: bytes | None = None
        self._input_has_ended = False
        self._open_until: float | None = None  # deadline of the handshake
        self._settled_at: float | None = None  # when input may flow
        self._paused_until: float | None = None
        self._rejected_in_a_row = 0
        self._was_opened = False
        self.is_closed = False

    # --- what the driver calls --------------------------------------------------------------------------------------

    def open(self, token: str, now: float) -> str:
        """Give the text message that opens a WebSocket, the first one or the next.

        On every one but the first, all unacknowledged messages become due, as many at once as the window takes, and a
        pause is over (2.6, 5.8).
        """
        if self._was_opened:
            # What was handed to the lost connection is in the store; what was not is there as well.
            self._ready = self._outgoing.resend_all(now)
            # The last acknowledges may be lost as well. The agent would bring each of their messages again, one every
            # 100 ms (5.5), before it comes to those that really are missing: so all are said again, except those that a
            # pong proved to have arrived.
            self._acknowledges = list(self._recent_acknowledges)
            self._count_at_ping = None
            self._paused_until = None
        else:
            self._was_opened = True
            if self._handshake_timeout is not None:
                self._open_until = now + self._handshake_timeout
        return encode_open_data_channel(
            token=token,
            request_id=format_uuid(self._new_message_id()),
            client_id=self._client_id,
            client_version=CLIENT_VERSION,
        )

    def receive(self, data: bytes, now: float) -> None:
        """Take one WebSocket message, binary or text (2.4)."""
        if self.is_closed:
            return
        try:
            message = decode_agent_message(data)
            kind = message.message_type
            if kind == MessageType.ACKNOWLEDGE:
                self._end_pause()
                self._receive_acknowledge(message, now)
            elif kind == MessageType.OUTPUT:
                self._end_pause()
                self._receive_stream_message(message, now)
            elif kind == MessageType.CHANNEL_CLOSED:
                self.is_closed = True
                self._events.append(ChannelClosed(decode_channel_closed(message.payload).output))
            elif kind == MessageType.PAUSE_PUBLICATION:
                self._paused_until = now + PAUSE_LAPSE
                self._events.append(PublicationChanged(paused=True))
            elif kind == MessageType.START_PUBLICATION:
                self._paused_until = None
                self._events.append(PublicationChanged(paused=False))
            else:
                self._events.append(MessageDropped(f"unknown message type {kind!r}"))
        except RemoteProtocolError as error:
            self._reject(error)
        else:
            self._rejected_in_a_row = 0

    def send_input(self, data: bytes, now: float) -> None:
        """Take bytes for the managed node, at most ``capacity`` of them; they leave as soon as the agent is ready."""
        self._pacer.spend(len(data))
        if self._waiting or not self._may_send(now):
            self._waiting.append((PayloadType.OUTPUT, data))
            self._waiting_bytes += len(data)
        else:
            self._send_data(data, now)

    def send_size(self, size: TerminalSize, now: float) -> None:
        """Tell the size of the terminal (8.1); of those that may not be sent yet the latest counts."""
        from ssm_proxy.wire.shell_payloads import encode_size

        self._waiting_size = encode_size(size)
        self._send_waiting(now)

    def send_flag(self, flag: int, now: float) -> None:
        """Send a control value (4.3), behind all input."""
        payload = encode_flag(flag)
        if self._waiting or not self.is_started:
            self._waiting.append((PayloadType.FLAG, payload))
        else:
            self._send_stream_message(payload, PayloadType.FLAG, now)

    def provide_data_key(self, key: DataKey, now: float) -> None:
        """Answer ``DataKeyNeeded``: the handshake goes on, and what follows is encrypted."""
        if not self.is_closed:
            # A start that came twice would do no harm: each session has a key of its own.
            first_nonce = int.from_bytes(self._new_message_id(), "little")
            self._take_step(self._handshake.provide_key(key, first_nonce), now)

    def refuse_data_key(self, error: SsmProxyError, now: float) -> None:
        """Answer ``DataKeyNeeded`` with a failure: the agent is told, and the session ends with the error."""
        if not self.is_closed:
            self._take_step(self._handshake.refuse_key(error), now)

    def end_input(self) -> None:
        """Take note that ``send_input`` will not be called again. The protocol cannot tell the other side (8.6)."""
        self._input_has_ended = True

    def terminate(self, now: float) -> None:
        """Ask the agent to end the session, behind all input (FLAG TerminateSession, 4.3). Best effort."""
        if self.is_started and not self.is_closed:
            self.send_flag(Flag.TERMINATE_SESSION, now)

    def ping_sent(self) -> None:
        """Take note that a ping leaves behind all acknowledges that were given."""
        if self._count_at_ping is None:
            self._count_at_ping = self._acknowledge_count - len(self._acknowledges)

    def ping_answered(self) -> None:
        """Take note of a pong: the acknowledges before that ping arrived and need not be said again."""
        if self._count_at_ping is not None:
            later = self._acknowledge_count - self._count_at_ping
            self._count_at_ping = None
            while len(self._recent_acknowledges) > later:
                self._recent_acknowledges.popleft()

    def acknowledges_to_send(self) -> list[bytes]:
        """Give what is to leave before all data, also before data that was given earlier and still waits."""
        acknowledges = self._acknowledges
        self._acknowledges = []
        return acknowledges

    def messages_to_send(self, now: float) -> list[bytes]:
        """Give what has to leave now, one WebSocket message each; acknowledges first, unless they were taken."""
        messages = self.acknowledges_to_send()
        if self.is_closed:
            return messages
        if self._waiting or self._waiting_size is not None:
            self._send_waiting(now)
        # The agent waits 15 s for the answer to its request, which is no data: a pause does not hold it up.
        if self._paused_until is None or not self.is_started:
            messages += self._outgoing.retransmissions(now)
            if self._ready:
                messages += self._ready
                self._ready = []
        return messages

    def events(self) -> list[Event]:
        """Give what happened since the last call."""
        events = self._events
        self._events = []
        return events

    def capacity(self) -> int:
        """How many bytes ``send_input`` may be given now. Grows with acknowledges only."""
        if self.is_closed or self._outgoing.unacknowledged_count >= MAX_UNACKNOWLEDGED_MESSAGES:
            return 0
        return max(0, self._window.limit_bytes - self._outgoing.unacknowledged_bytes - self._waiting_bytes)

    def input_room(self, now: float) -> int:
        """Give how many bytes of input to read now: what ``capacity`` and the pace allow, 0 if it is not worth a read.

        Grows with acknowledges and, up to ``next_deadline``, with time.
        """
        room = int(min(self.capacity(), self._pacer.room(now, self._window.pace)))
        return room if room >= self._smallest_read() else 0

    def next_deadline(self) -> float | None:
        """Give the time at which ``handle_deadline`` is due if nothing else happens before."""
        if self.is_closed:
            return None
        deadlines = [self._open_until, self._paused_until]
        if self._paused_until is None or not self.is_started:
            deadlines.append(self._outgoing.deadline())
            if self._waiting or self._waiting_size is not None:
                deadlines.append(self._settled_at)
        size = self._smallest_read()
        if not self._input_has_ended and self.capacity() >= size:
            deadlines.append(self._pacer.ready_at(size, self._window.pace))
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """Act on the passing of time; harmless when nothing is due."""
        if self.is_closed:
            return
        if self._paused_until is not None and now >= self._paused_until:
            self._end_pause()
        if self._open_until is not None and now >= self._open_until:
            self._fail(
                HandshakeFailed(
                    "the managed node did not start the session in time",
                    cause="no handshake, or not all of it, from its agent within "
                    f"{self._handshake_timeout or HANDSHAKE_TIMEOUT:.0f} seconds",
                    hint="look at /var/log/amazon/ssm/amazon-ssm-agent.log on the node; restarting the agent may help",
                )
            )
        elif self._outgoing.has_given_up:
            self._fail(
                AcknowledgeTimeout(
                    "the managed node stopped answering",
                    cause="nothing that was sent to it has been acknowledged for about five minutes",
                    hint="check that the node is up and its disk is not full, then connect again",
                )
            )

    @property
    def window_bytes(self) -> int:
        """How much may be in flight, for who decides how much more may wait."""
        return self._window.limit_bytes

    @property
    def is_drained(self) -> bool:
        """Whether all input was acknowledged."""
        return not self._waiting and self._outgoing.is_empty

    @property
    def is_started(self) -> bool:
        """Whether the handshake is over."""
        return self._handshake.state is HandshakeState.COMPLETE

    @property
    def output_is_missing(self) -> bool:
        """Whether the agent sent something that has not come: later messages have. At the end it never will.

        What was lost with nothing behind it cannot be known.
        """
        return self._incoming.has_hole

    @property
    def retransmission_count(self) -> int:
        return self._outgoing.retransmission_count

    @property
    def round_trip_time(self) -> float:
        """Smoothed, in seconds."""
        return self._round_trip.smoothed

    # --- receiving --------------------------------------------------------------------------------------------------

    def _end_pause(self) -> None:
        """Take note that the other end is there: nobody knows whether a start follows each pause (13)."""
        if self._paused_until is not None:
            self._paused_until = None
            self._events.append(PublicationChanged(paused=False))

    def _receive_acknowledge(self, message: AgentMessage, now: float) -> None:
        number = decode_acknowledge(message.payload).sequence_number
        # One for a message that is not waiting is a repeat, or nonsense; either way there is nothing to do (5.2).
        self._outgoing.acknowledge(number, now)

    def _receive_stream_message(self, message: AgentMessage, now: float) -> None:
        if self._handshake.state is HandshakeState.WAITING and message.sequence_number == 0:
            payload_type = message.payload_type
            if payload_type not in (PayloadType.HANDSHAKE_REQUEST, PayloadType.OUTPUT):
                raise RemoteProtocolError(f"the session begins with payload type {payload_type}")
        acknowledge, in_order = self._incoming.accept(message)
        if acknowledge:
            self._acknowledge(message)
        else:
            self._events.append(MessageDropped(f"no room for output number {message.sequence_number}"))
        try:
            for ready in in_order:
                self._handle(ready, now)
                if self.is_closed:
                    return
        except EncryptionError as error:
            self._fail(error)

    def _handle(self, message: AgentMessage, now: float) -> None:
        payload_type = message.payload_type
        payload = message.payload
        if payload_type == PayloadType.OUTPUT:
            if self._handshake.state is not HandshakeState.COMPLETE:
                self._take_step(self._handshake.start_without_handshake(), now)
            if self.is_closed:
                return
            if self._cipher is not None:
                payload = self._cipher.decrypt(payload)
            if not payload:
                return
            self._settled_at = now
            self._events.append(OutputReceived(payload))
        elif payload_type in _OF_THE_HANDSHAKE:
            self._take_step(self._handshake.receive(payload_type, payload), now)
        elif self.is_started:
            self._events.append(read_output(payload_type, payload, self._cipher))
        else:
            self._events.append(MessageDropped(f"payload type {payload_type} before the session has started"))

    def _take_step(self, step: Step, now: float) -> None:
        handshake = self._handshake
        if step.reply is not None:
            payload_type, payload = step.reply
            self._send_stream_message(payload, payload_type, now)
        if step.event is not None:
            self._events.append(step.event)
        self._cipher = handshake.cipher
        if handshake.refusal is not None:
            self._fail(handshake.refusal)
        elif self._settled_at is None and self.is_started:
            self._open_until = None
            self._settled_at = now + SETTLE_TIME
        elif not self.is_started and self._open_until is None:
            self._open_until = now + HANDSHAKE_TIMEOUT  # a silent shell has no handshake, and this agent has begun one

    def _reject(self, error: RemoteProtocolError) -> None:
        self._events.append(MessageDropped(error.message))
        self._rejected_in_a_row += 1
        if self._rejected_in_a_row >= MAX_REJECTED_IN_A_ROW:
            self._fail(
                RemoteProtocolError(
                    "the service sends messages that cannot be understood",
                    cause=error.message,
                    hint="run again with -vv and report what it prints",
                )
            )

    def _fail(self, error: SsmProxyError) -> None:
        self.is_closed = True
        # What is ready still leaves: a refusal must reach the agent, which would wait for it otherwise.
        self._acknowledges += self._ready
        self._ready = []
        self._events.append(SessionFailed(error))

    # --- sending ----------------------------------------------------------------------------------------------------

    def _smallest_read(self) -> int:
        limit = self._window.limit_bytes
        return min(limit, SMALLEST_BURST_BYTES, max(MAX_PAYLOAD_BYTES, limit // LARGEST_SHARE_TO_WAIT_FOR))

    def _may_send(self, now: float) -> bool:
        return self._settled_at is not None and now >= self._settled_at and self._paused_until is None

    def _send_waiting(self, now: float) -> None:
        if not self._may_send(now):
            return
        if self._waiting_size is not None:
            self._send_stream_message(self._waiting_size, PayloadType.SIZE, now)
            self._waiting_size = None
        while self._waiting:
            payload_type, payload = self._waiting.popleft()
            if payload_type == PayloadType.OUTPUT:
                self._send_data(payload, now)
            else:
                self._send_stream_message(payload, payload_type, now)
        self._waiting_bytes = 0

    def _send_data(self, data: bytes, now: float) -> None:
        for start in range(0, len(data), MAX_PAYLOAD_BYTES):
            piece = data[start : start + MAX_PAYLOAD_BYTES]
            if self._cipher is not None:
                try:
                    piece = self._cipher.encrypt(piece)
                except EncryptionError as error:
                    self._fail(error)
                    return
            self._send_stream_message(piece, PayloadType.OUTPUT, now)

    def _send_stream_message(self, payload: bytes, payload_type: int, now: float) -> None:
        # One place takes the number, stores and sends, so that no two messages can share a number (12.9).
        data = encode_agent_message(
            AgentMessage(
                MessageType.INPUT,
                payload,
                self._new_message_id(),
                self._wall_clock_ms(),
                self._outgoing.next_sequence_number,
                payload_type,
            )
        )
        self._outgoing.add(data, len(payload), now)
        self._ready.append(data)

    def _acknowledge(self, message: AgentMessage) -> None:
        payload = encode_acknowledge(
            Acknowledge(message.message_type, format_uuid(message.message_id), message.sequence_number)
        )
        data = encode_agent_message(
            AgentMessage(MessageType.ACKNOWLEDGE, payload, self._new_message_id(), self._wall_clock_ms(), flags=SYN_FIN)
        )
        self._acknowledges.append(data)
        self._recent_acknowledges.append(data)
        self._acknowledge_count += 1
