"""Port forwarding's local side with old agents: one connection at a time (docs/PROTOCOL.md section 8.7).

    IDLE --somebody connects--> OPEN --the program sends no more--> HALF
    HALF --the destination is quiet, shorter if somebody waits--> reset, LEAVING
    OPEN, HALF --the program has gone--> LEAVING
    LEAVING --the agent has acknowledged--> IDLE

The agent connects to the destination before anybody has connected here, and again when the first bytes of the next
connection arrive: until then a destination that speaks first says nothing. That the destination has closed its
connection cannot be seen. So what ends because of silence may be a part of an answer, and is reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.transport.acceptor import Acceptor, Forward
from ssm_proxy.transport.application import ApplicationBase
from ssm_proxy.transport.local_connection import READ_BYTES, LocalConnection
from ssm_proxy.transport.poller import HANGUP, READ, WRITE, Poller
from ssm_proxy.transport.probe import UNKNOWN, Probe
from ssm_proxy.wire.constants import Flag

QUIET_TIME = 10.0
QUIET_TIME_IF_SOMEBODY_WAITS = 1.0
MAX_PENDING_BYTES = 512 * 1024
"""Beyond this nothing is received, until the local program has taken some of it."""


class BasicForwarding(ApplicationBase):
    """Carries the connections of one listener to one destination, one after the other.

    Args:
        channel: where input goes.
        forward: listener and destination.
    """

    def __init__(self, channel: DataChannel, forward: Forward) -> None:
        super().__init__(channel)
        self._forward = forward
        self._acceptor = Acceptor(forward)
        self._connection: LocalConnection | None = None
        self._early: list[bytes] = []  # came before anybody had connected
        self._pending_bytes = 0  # received, and not yet taken by a program
        self._has_started = False
        self._is_leaving = False
        self._somebody_waits = False
        self._was_connected = False
        self._has_received = False
        self._is_drained = False
        self._quiet_since: float | None = None
        self._poller: Poller | None = None
        self._probe: Probe | None = None

    @property
    def is_full(self) -> bool:
        return self._pending_bytes >= MAX_PENDING_BYTES

    @property
    def wants_write(self) -> bool:
        return self._connection is not None and self._connection.wants_write

    def watch(self, poller: Poller, now: float) -> None:
        self._poller = poller
        connection = self._connection
        is_half = self._quiet_since is not None
        # While one that sends no more may still get its answer, it matters whether somebody waits.
        wanted = (
            self._has_started
            and not self._is_leaving
            and (connection is None or (is_half and not self._somebody_waits))
            and not self._acceptor.is_ending
        )
        self._acceptor.watch(poller, wanted=wanted)
        if connection is None:
            return
        wants_read = not connection.input_ended and self.channel.input_room(now) > 0
        if wants_read or connection.wants_write or connection.input_ended:
            poller.set(connection.fileno(), read=wants_read, write=connection.wants_write)
        else:  # nor for its hang-up, which would be reported again and again
            poller.remove(connection.fileno())

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        if not self._has_started:
            return
        connection = self._connection
        if connection is not None:
            self._use(connection, ready.get(connection.fileno(), 0), now)
        self._acceptor.handle_deadline(now)
        if self._acceptor.is_ready(ready):
            if self._connection is not None:
                self._somebody_waits = True
            elif not self._is_leaving:
                self._accept(now)
        is_back = is_connected and not self._was_connected
        self._was_connected = is_connected
        if self._quiet_since is not None and (is_back or self.wants_write or not self.channel.is_drained):
            self._quiet_since = now  # nobody could say that the destination was silent
        if is_connected and (until := self._quiet_until()) is not None and now >= until:
            self._leave(now, reset=True)
        if self._is_leaving and self.channel.is_drained:
            self._is_leaving = False
        self._acceptor.look(ready)
        if self._acceptor.is_ending and not self._is_drained:
            self._drain(now)
        if self._probe is not None:
            self._probe.look(now, is_sent=self.channel.is_drained, is_connected=is_connected)
            self._end_probe()

    def deadline(self) -> float | None:
        deadlines = [self._acceptor.deadline(), self._quiet_until()]
        if self._probe is not None:
            deadlines.append(self._probe.deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def started(self, event: SessionStarted, now: float) -> None:
        self._has_started = True
        self._acceptor.open()
        self._forward.notify(
            f"{self._forward.listener.name}: the agent ({event.agent_version or 'of unknown version'}) is so old that "
            "it carries one connection at a time; others wait"
        )
        self._forward.listening()
        if self._forward.ready is not None:
            self._probe = Probe(silence=UNKNOWN)

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        if self._probe is not None:
            self._probe.answered()
        self._has_received = True
        if self._is_leaving:  # meant for a connection that is no more
            return
        data = b"".join(pieces)
        self._pending_bytes += len(data)
        if self._connection is None:
            self._early.append(data)
            return
        if self._quiet_since is not None:
            self._quiet_since = now
        self._connection.write(data)
        self._settle(self._connection, now)

    def closed(self, reason: str) -> None:
        self._acceptor.close(self._poller)
        self._forward.closed(self._has_received)

    def close(self) -> None:
        self._acceptor.close(self._poller)
        if self._connection is not None:
            self._forget(self._connection).reset()

    def _accept(self, now: float) -> None:
        for connection in self._acceptor.accept(now, limit=1):
            self._connection = connection
            early, self._early = b"".join(self._early), []
            if early:
                connection.write(early)
            self._use(connection, READ, now)

    def _use(self, connection: LocalConnection, flags: int, now: float) -> None:
        if flags & (WRITE | HANGUP):
            connection.flush()
        if flags & (READ | HANGUP) and not connection.input_ended:
            self._read(connection, now)
        elif flags & HANGUP:
            connection.hang_up()
        self._settle(connection, now)

    def _drain(self, now: float) -> None:
        """Take what local programs that are over have left; tell when all of it has arrived, and all was taken."""
        if self._connection is None and not self._is_leaving:
            self._accept(now)
        connection = self._connection
        if connection is not None:
            while not connection.input_ended and self._read(connection, now):
                pass
            if connection.input_ended and not connection.wants_write:
                self._leave(now, reset=True)
        # Of a program that is not over after all nothing more is awaited, and nobody else's turn comes.
        is_all_read = self.channel.is_drained and self.channel.input_room(now) > 0
        if is_all_read and not (self._is_leaving or self.wants_write or self._acceptor.is_pausing):
            self._is_drained = True
            self._acceptor.close(self._poller)
            self._forward.drained()

    def _read(self, connection: LocalConnection, now: float) -> int:
        """Read what the program has sent, as far as there is room; give how many bytes that was."""
        room = self.channel.input_room(now)
        if not room:  # reading nothing would look like the end
            return 0
        if data := connection.read(min(room, READ_BYTES)):
            self.channel.send_input(data, now)
        if connection.input_ended:
            self._quiet_since = now
        return len(data)

    def _settle(self, connection: LocalConnection, now: float) -> None:
        self._pending_bytes -= connection.take_settled()
        if connection.is_deaf and connection.input_ended:
            self._leave(now)

    def _quiet_until(self) -> float | None:
        if self._quiet_since is None or self.wants_write:
            return None
        return self._quiet_since + (QUIET_TIME_IF_SOMEBODY_WAITS if self._somebody_waits else QUIET_TIME)

    def _leave(self, now: float, *, reset: bool = False) -> None:
        """Close the local connection and have the agent close its own."""
        if self._connection is None:
            return
        connection = self._forget(self._connection)
        if reset:
            connection.reset()
        else:
            connection.close()
        self.channel.send_flag(Flag.DISCONNECT_TO_PORT, now)
        self._is_leaving = True

    def _forget(self, connection: LocalConnection) -> LocalConnection:
        if self._poller is not None:
            self._poller.remove(connection.fileno())
        self._connection = None
        self._quiet_since = None
        self._somebody_waits = False
        self._pending_bytes = 0
        return connection

    def _end_probe(self) -> None:
        probe = self._probe
        if probe is None or probe.result is None or self._forward.ready is None:
            return
        self._probe = None
        self._forward.ready(probe.result)
