"""Port forwarding's local side, many connections over one session (docs/PROTOCOL.md section 8.8).

What one local connection goes through:

    OPEN --the program sends no more--> HALF --quiet for `QUIET_TIME`--> reset, FIN to the node
    OPEN, HALF --FIN from the node, all delivered--> LINGERING --the program closes, or `LINGER_TIME`--> closed
    OPEN, HALF --the program has gone--> closed, FIN to the node
    any state --the destination refused, or the reader stood still too long--> reset

There is no half-close in the protocol: FIN closes both ways, and the destination's answer would be lost (12.15). TCP
does not tell a program that has gone from one that only sends no more. So a connection whose program sends no more
stays until the destination has closed it or has been silent for a while, which counts from when the agent has all that
the program sent. What ends then may be a part of an answer, hence the reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.errors import RemotePortRefused
from ssm_proxy.mux.session import MuxSession, StreamClosedByPeer, StreamDataReceived, StreamGivenUp
from ssm_proxy.sessions.port import PortKind, needs_keepalive, port_kind
from ssm_proxy.transport.acceptor import Acceptor, Forward
from ssm_proxy.transport.application import Application, ApplicationBase
from ssm_proxy.transport.basic_forwarding import BasicForwarding
from ssm_proxy.transport.local_connection import READ_BYTES, LocalConnection
from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller
from ssm_proxy.transport.probe import Probe
from ssm_proxy.wire.constants import Flag

QUIET_TIME = 10.0
"""How long the destination may be silent before a connection whose program sends no more is taken to be over."""
QUIET_TIME_IF_FULL = 1.0
"""The same while there are as many streams as there may be, and new connections have to wait for one to end."""
LINGER_TIME = 2.0
"""A socket that is closed while input waits in it is reset, and what the program has not read yet is lost with it: so
input is thrown away for so long after the last output, and again, where the system can tell that the program has not
taken all."""
LINGER_LIMIT = 300.0
"""But no longer than this."""
REFUSALS_TOLD_EVERY = 5.0
NEVER = float("inf")


def make_forwarding(channel: DataChannel, event: SessionStarted, forward: Forward) -> Application:
    """Give the application for a session of the basic or of the multiplexed kind."""
    if port_kind(event.properties, event.agent_version) is PortKind.MUX:
        return MuxForwarding(channel, forward)
    return BasicForwarding(channel, forward)


class _Stream:
    """One local connection and its stream."""

    __slots__ = (
        "connection",
        "has_received",
        "is_closed_by_peer",
        "linger_limit",
        "linger_until",
        "quiet_since",
        "sent_at_byte",
        "stream_id",
    )

    def __init__(self, stream_id: int, connection: LocalConnection) -> None:
        self.stream_id = stream_id
        self.connection = connection
        self.has_received = False
        self.is_closed_by_peer = False
        self.sent_at_byte: int | None = None  # HALF, and all left with this byte of the session
        self.quiet_since: float | None = None  # HALF, and all was delivered
        self.linger_until: float | None = None  # LINGERING
        self.linger_limit = NEVER


class MuxForwarding(ApplicationBase):
    """Carries the connections of one listener to one destination.

    Args:
        channel: where input goes.
        forward: listener and destination.
    """

    def __init__(self, channel: DataChannel, forward: Forward) -> None:
        super().__init__(channel)
        self._forward = forward
        self._acceptor = Acceptor(forward)
        self._mux: MuxSession | None = None
        self._streams: dict[int, _Stream] = {}
        self._by_fd: dict[int, _Stream] = {}
        self._changed: set[int] = set()  # streams whose descriptor has to be looked at by ``watch``
        self._undelivered: set[int] = set()  # streams in HALF whose last bytes are on their way
        self._sent_bytes = 0
        self._timed: set[int] = set()  # streams in HALF or LINGERING
        self._look_at = NEVER  # when the first of them may be due
        self._poller: Poller | None = None
        self._was_connected = False
        self._has_received = False
        self._is_drained = False
        self._refusals = 0  # told by flag, their FIN has not come
        self._refusals_untold = 0
        self._tell_refusals_at = 0.0
        self._probe: Probe | None = None

    @property
    def is_full(self) -> bool:
        return self._mux is not None and self._mux.is_full

    @property
    def wants_write(self) -> bool:
        return any(stream.connection.wants_write for stream in self._streams.values())

    # --- descriptors ------------------------------------------------------------------------------------------------

    def watch(self, poller: Poller, now: float) -> None:
        self._poller = poller
        self._acceptor.watch(poller, wanted=self._mux is not None and self._mux.may_open)
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        for stream_id in changed:
            stream = self._streams.get(stream_id)
            if stream is None:
                continue
            connection = stream.connection
            wants_read = not connection.input_ended and (stream.linger_until is not None or self._room(stream_id) > 0)
            if wants_read or connection.wants_write or connection.input_ended:
                poller.set(connection.fileno(), read=wants_read, write=connection.wants_write)
            else:  # nor for its hang-up, which would be reported again and again
                poller.remove(connection.fileno())
                self._changed.add(stream_id)  # there is room again when data leaves

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        mux = self._mux
        if mux is None:
            return
        if is_connected and not self._was_connected:
            mux.heard(now)
            self._begin_quiet_anew(now)
        elif mux.is_full:  # nothing was received
            self._begin_quiet_anew(now)
        self._was_connected = is_connected
        for fd, flags in ready.items():
            stream = self._by_fd.get(fd)
            if stream is not None:
                self._use(stream, flags, now)
        # After the others: it may get the number of a descriptor that was ready and has been closed.
        if self._acceptor.is_ready(ready):
            self._accept(mux, now)
        self._acceptor.handle_deadline(now)
        if is_connected:
            mux.handle_deadline(now)
            self._take_events(now)
        if is_connected and now >= self._look_at:
            self._look_at_times(now)
        if self._refusals_untold and now >= self._tell_refusals_at:
            self._tell_refusals(now)
        if self._probe is not None:
            self._probe.look(now, is_sent=not mux.pending_bytes and self.channel.is_drained, is_connected=is_connected)
            self._end_probe()
        self._acceptor.look(ready)
        if self._acceptor.is_ending and not self._is_drained:
            self._drain(mux, now)
        self._send(mux, now)

    def deadline(self) -> float | None:
        if self._mux is None:
            return None
        deadlines = [self._mux.next_deadline(), self._acceptor.deadline()]
        if self._look_at < NEVER:
            deadlines.append(self._look_at)
        if self._probe is not None:
            deadlines.append(self._probe.deadline())
        if self._refusals_untold:
            deadlines.append(self._tell_refusals_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _send(self, mux: MuxSession, now: float) -> None:
        channel = self.channel
        while mux.pending_bytes and (room := channel.input_room(now)):
            data = mux.data_to_send(room)
            self._sent_bytes += len(data)
            channel.send_input(data, now)
        if not self._undelivered:
            return
        # Acknowledges come in any order, so this may be off by what is under way; no more is needed here.
        capacity = channel.capacity()
        under_way = 0 if channel.is_drained else channel.window_bytes - capacity if capacity else self._sent_bytes
        for stream in [self._streams[stream_id] for stream_id in self._undelivered]:
            if stream.sent_at_byte is None and mux.is_sent(stream.stream_id):
                stream.sent_at_byte = self._sent_bytes
            if stream.sent_at_byte is not None and self._sent_bytes - under_way >= stream.sent_at_byte:
                self._undelivered.discard(stream.stream_id)
                stream.quiet_since = now
                self._time(stream)

    def _drain(self, mux: MuxSession, now: float) -> None:
        """Take what local programs that are over have left; tell when all of it has arrived, and all was taken."""
        self._accept(mux, now)
        is_all_accepted = mux.may_open and not self._acceptor.is_pausing
        for stream in list(self._streams.values()):
            connection = stream.connection
            while stream.linger_until is None and not connection.input_ended and self._read(stream):
                pass
            if connection.input_ended and not connection.wants_write:
                self._drop(stream, reset=stream.linger_until is None)
        if is_all_accepted:
            self._acceptor.close(self._poller)
            self._is_drained = not (
                mux.pending_bytes or mux.unanswered_count or not self.channel.is_drained or self.wants_write
            )
            if self._is_drained:
                self._forward.drained()

    def _room(self, stream_id: int) -> int:
        return 0 if self._mux is None else self._mux.stream_room(stream_id)

    def _accept(self, mux: MuxSession, now: float) -> None:
        while mux.may_open and (accepted := self._acceptor.accept(now, limit=1)):
            stream = _Stream(mux.open_stream(), accepted[0])
            self._streams[stream.stream_id] = stream
            self._by_fd[stream.connection.fileno()] = stream
            self._changed.add(stream.stream_id)
            self._use(stream, READ, now)  # most programs speak first, and have done so by now
        if not mux.may_open:
            self._look_at = now  # the quiet time is shorter now

    def _use(self, stream: _Stream, flags: int, now: float) -> None:
        connection = stream.connection
        if flags & (WRITE | HANGUP):
            connection.flush()
        if flags & (READ | HANGUP) and not connection.input_ended:
            self._read(stream)
        elif flags & HANGUP:
            connection.hang_up()
        self._settle(stream, now)

    def _read(self, stream: _Stream) -> int:
        """Read what the program has sent, as far as there is room; give how many bytes that was."""
        connection = stream.connection
        if stream.linger_until is not None:
            return len(connection.read(READ_BYTES))
        assert self._mux is not None
        room = self._mux.stream_room(stream.stream_id)
        if not room:  # reading nothing would look like the end
            return 0
        data = connection.read(room)
        self._mux.send(stream.stream_id, data)
        if connection.input_ended:
            self._undelivered.add(stream.stream_id)
        return len(data)

    def _settle(self, stream: _Stream, now: float) -> None:
        """Do what follows from what has just happened to the connection."""
        assert self._mux is not None
        connection = stream.connection
        self._changed.add(stream.stream_id)
        if settled := connection.take_settled():
            self._mux.consumed(stream.stream_id, settled)
            if stream.quiet_since is not None:  # the destination was not silent, or not waited for
                stream.quiet_since = now
                self._time(stream)
        if connection.is_deaf and connection.input_ended:
            self._drop(stream)
        elif stream.linger_until is not None:
            if connection.input_ended:
                self._drop(stream)
        elif stream.is_closed_by_peer and not connection.wants_write:
            connection.finish()
            self._mux.close_stream(stream.stream_id)
            self._undelivered.discard(stream.stream_id)
            stream.quiet_since = None
            stream.linger_until = now + LINGER_TIME
            stream.linger_limit = now + LINGER_LIMIT
            self._time(stream)
            if connection.input_ended:
                self._drop(stream)

    def _drop(self, stream: _Stream, *, reset: bool = False) -> None:
        assert self._mux is not None
        self._mux.close_stream(stream.stream_id)
        del self._streams[stream.stream_id]
        del self._by_fd[stream.connection.fileno()]
        self._changed.discard(stream.stream_id)
        self._undelivered.discard(stream.stream_id)
        self._timed.discard(stream.stream_id)
        if self._poller is not None:
            self._poller.remove(stream.connection.fileno())
        if reset:
            stream.connection.reset()
        else:
            stream.connection.close()

    # --- time -------------------------------------------------------------------------------------------------------

    def _time_of(self, stream: _Stream) -> float | None:
        if stream.linger_until is not None:
            return stream.linger_until
        if stream.quiet_since is None or stream.connection.wants_write:
            return None
        is_full = self._mux is not None and not self._mux.may_open
        return stream.quiet_since + (QUIET_TIME_IF_FULL if is_full else QUIET_TIME)

    def _look_at_times(self, now: float) -> None:
        """End what has been quiet or has lingered for long enough."""
        for stream in [self._streams[stream_id] for stream_id in self._timed]:
            until = self._time_of(stream)
            if until is None or now < until:
                continue
            is_taken = now >= stream.linger_limit or not stream.connection.untaken_bytes
            if stream.linger_until is None:
                if is_taken:  # it may have been a part only
                    self._drop(stream, reset=True)
                else:
                    stream.quiet_since = now
            elif is_taken:
                self._drop(stream)
            else:
                stream.linger_until = now + LINGER_TIME
        times = [self._time_of(self._streams[stream_id]) for stream_id in self._timed]
        self._look_at = min((time for time in times if time is not None), default=NEVER)

    def _time(self, stream: _Stream) -> None:
        """Have a stream that is in HALF or LINGERING looked at in time."""
        self._timed.add(stream.stream_id)
        until = self._time_of(stream)
        if until is not None:
            self._look_at = min(self._look_at, until)

    def _begin_quiet_anew(self, now: float) -> None:
        """Count from now: while nothing could come nobody could say that the destination was silent."""
        for stream_id in self._timed:
            stream = self._streams[stream_id]
            if stream.quiet_since is not None:
                stream.quiet_since = now

    # --- from the node ----------------------------------------------------------------------------------------------

    def started(self, event: SessionStarted, now: float) -> None:
        self._mux = MuxSession(needs_keepalive(event.agent_version), now)
        self._acceptor.open()
        self._forward.listening()
        if self._forward.ready is not None:
            self._probe = Probe(self._mux.open_stream())

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        assert self._mux is not None
        self._has_received = True
        self._mux.receive(pieces[0] if len(pieces) == 1 else b"".join(pieces), now)
        self._take_events(now)

    def flag(self, flag: int, now: float) -> None:
        if flag == Flag.CONNECT_TO_PORT_ERROR:
            self._refusals += 1

    def closed(self, reason: str) -> None:
        self._acceptor.close(self._poller)
        self._forward.closed(self._has_received)

    def close(self) -> None:
        self._acceptor.close(self._poller)
        for stream in list(self._streams.values()):
            # What is cut off must not look whole.
            self._drop(stream, reset=stream.linger_until is None)

    def _take_events(self, now: float) -> None:
        assert self._mux is not None
        # Consecutive pieces of one stream leave by one call.
        waiting: dict[int, list[bytes]] = {}
        for event in self._mux.events():
            if isinstance(event, StreamDataReceived):
                waiting.setdefault(event.stream_id, []).append(event.data)
                continue
            self._deliver(event.stream_id, waiting.pop(event.stream_id, ()), now)
            if isinstance(event, StreamClosedByPeer):
                self._closed_by_peer(event.stream_id, now)
            elif isinstance(event, StreamGivenUp):
                self._given_up(event)
            elif self._refusals and not event.has_received:  # whose program had left by then
                self._refused(now)
        for stream_id, pieces in waiting.items():
            self._deliver(stream_id, pieces, now)

    def _deliver(self, stream_id: int, pieces: Sequence[bytes], now: float) -> None:
        if not pieces:
            return
        if self._probe is not None and self._probe.stream_id == stream_id:
            self._probe.answered()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.has_received = True
        stream.connection.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._settle(stream, now)

    def _closed_by_peer(self, stream_id: int, now: float) -> None:
        if self._probe is not None and self._probe.stream_id == stream_id:
            if self._refusals:
                raise RemotePortRefused(
                    f"{self._forward.destination} cannot be reached",
                    cause="the agent could not connect",
                    hint="check that something listens there; on the node, /var/log/amazon/ssm/errors.log may say more",
                )
            self._probe.answered()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if self._refusals and not stream.has_received:
            self._refused(now)
            self._drop(stream, reset=True)
            return
        stream.is_closed_by_peer = True
        self._settle(stream, now)

    def _given_up(self, event: StreamGivenUp) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._forward.notify(
                f"{self._forward.listener.name}: a connection was reset: its program took nothing while "
                f"{event.undelivered_bytes} bytes waited for it, and other connections starved"
            )
            self._drop(stream, reset=True)

    def _refused(self, now: float) -> None:
        self._refusals -= 1
        self._refusals_untold += 1
        if now >= self._tell_refusals_at:
            self._tell_refusals(now)

    def _tell_refusals(self, now: float) -> None:
        count = self._refusals_untold
        connections = "a connection was" if count == 1 else f"{count} connections were"
        self._forward.notify(
            f"{self._forward.listener.name}: {connections} refused: the agent could not connect to "
            f"{self._forward.destination}"
        )
        self._refusals_untold = 0
        self._tell_refusals_at = now + REFUSALS_TOLD_EVERY

    def _end_probe(self) -> None:
        probe = self._probe
        if probe is None or probe.result is None or self._mux is None or self._forward.ready is None:
            return
        self._probe = None
        self._mux.close_stream(probe.stream_id)
        self._forward.ready(probe.result)
