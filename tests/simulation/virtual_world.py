"""Time, sleep, network and local ends for a real tunnel, without real time passing.

Everything of the package runs as it is: `Tunnel`, `Bridge`, its loop, the WebSocket's framing, pipes, sockets and
poll(2). `World.carry` puts other things in the place of what knows time, distance and threads, and it is the only place
that does so:

* ``time`` of the bridge: two clocks, of which one may stand still while the machine sleeps.
* its poller: polls for no time at all, and moves the clock to the next event when nothing is ready.
* `Attempts` and `Termination`: the threads that call the service become events.
* ``os.urandom``, from which the pauses between attempts are drawn: by seed.
* the opening of a WebSocket: gives one end of a socket pair, whose other end is the network's.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

from ssm_proxy.errors import ConnectFailed, SsmProxyError, TransportTimeout
from ssm_proxy.transport import bridge as bridge_module
from ssm_proxy.transport import opening as opening_module
from ssm_proxy.transport.connecting import Connection, Connector
from ssm_proxy.transport.poller import PollPoller
from ssm_proxy.transport.websocket import WebSocketTransport

LATENCY = 0.02
CLOCK_TICK = 1e-9
TURN = 20e-6
"""What a turn of the loop takes: a loop that spins moves the clock too, and is counted instead of hanging the test."""
MOST_TURNS_PER_SECOND = 2000
ATTEMPT_SECONDS = {"up": 0.4, "away": 0.05, "silent": 20.0, "hung": math.inf}
"""How long a call of the service takes for each state of the network: away is told by the machine itself, silent by a
timeout, and hung by nobody."""


class World:
    """Steps from one event to the next. Times are seconds since the beginning, by a clock that never stops."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.network = "up"
        self.is_asleep = False
        self.turns = 0
        self.attempts = 0
        self._slept_unseen = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._at_wake: list[Callable[[], None]] = []
        self._pumps: list[Callable[[], None]] = []
        self._recent_turns = (0, 0)

    # --- clocks and events ------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return 1000.0 + self.now - self._slept_unseen

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds < math.inf:
            heapq.heappush(self._events, (self.now + seconds, next(self._order), call))

    def awake(self, call: Callable[[], None]) -> None:
        """Call now, or when the machine wakes."""
        if self.is_asleep:
            self._at_wake.append(call)
        else:
            call()

    def add_pump(self, pump: Callable[[], None]) -> None:
        """Have something called that moves bytes between the kernel's buffers and the world."""
        self._pumps.append(pump)

    def remove_pump(self, pump: Callable[[], None]) -> None:
        self._pumps.remove(pump)

    def run(self, seconds: float) -> None:
        """Let time pass for everybody but the tunnel."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._next_event()
        self.now = max(self.now, end)
        self.pump()

    def sleep(self, seconds: float, *, is_seen: bool) -> None:
        """Let the machine sleep.

        Args:
            seconds: how long.
            is_seen: whether its monotonic clock goes on meanwhile, as on Windows, or stands still.
        """
        self.is_asleep = True
        self.run(seconds)
        self.is_asleep = False
        if not is_seen:
            self._slept_unseen += seconds
        calls, self._at_wake = self._at_wake, []
        for call in calls:
            call()

    def wait(self, real: PollPoller, timeout: float | None) -> dict[int, int]:
        """Be a poller's ``wait``."""
        self._count_turn()
        # As poll(2) counts: whole milliseconds, rounded up, of the monotonic clock.
        limit = math.inf if timeout is None else math.ceil(timeout * 1000) / 1000
        until = self.monotonic() + limit
        while True:
            self.pump()
            left = until - self.monotonic()
            if (ready := real.wait(0)) or left < CLOCK_TICK:
                return ready
            if self._events and self._events[0][0] <= self.now + left:
                self._next_event()
            else:
                assert left < math.inf, "the tunnel waits for ever, and nothing will happen"
                self.now += left

    def pump(self) -> None:
        if not self.is_asleep:
            for pump in tuple(self._pumps):
                pump()

    def _next_event(self) -> None:
        when, _, call = heapq.heappop(self._events)
        self.now = max(self.now, when)
        call()

    def _count_turn(self) -> None:
        self.turns += 1
        self.now += TURN
        second, count = self._recent_turns
        count = count + 1 if second == int(self.now) else 1
        assert count <= MOST_TURNS_PER_SECOND, "the loop spins"
        self._recent_turns = (int(self.now), count)

    # --- the network ------------------------------------------------------------------------------------------------

    def reach(self) -> None:
        """Raise what somebody meets who calls the service now."""
        if self.network == "away":
            raise ConnectFailed("cannot reach ssm", cause="network is unreachable", hint="check the network or VPN")
        if self.network != "up":
            raise TransportTimeout("no answer from ssm", hint="try again")

    @contextlib.contextmanager
    def carry(self, open_websocket: Callable[..., WebSocketTransport]) -> Iterator[None]:
        """Put the world in the place of time, threads and network, as the module's text says.

        Args:
            open_websocket: opens a connection to the service of this world.
        """
        with contextlib.ExitStack() as stack:
            for module, name, stand_in in (
                (bridge_module, "time", SimpleNamespace(monotonic=self.monotonic, time=self.time)),
                (bridge_module, "os", SimpleNamespace(urandom=self.random.randbytes)),
                (bridge_module, "make_poller", lambda: VirtualPoller(self)),
                (bridge_module, "Attempts", lambda connector, wake: VirtualAttempts(self, connector, wake)),
                (bridge_module, "Termination", VirtualTermination),
                (opening_module, "open_websocket", open_websocket),
            ):
                stack.enter_context(mock.patch.object(module, name, stand_in))
            yield


class VirtualPoller:
    """poll(2) on the descriptors that there are, and the world's clock."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._real = PollPoller()
        self.set = self._real.set
        self.remove = self._real.remove

    def wait(self, timeout: float | None) -> dict[int, int]:
        return self._world.wait(self._real, timeout)


class VirtualAttempts:
    """`Attempts` without a thread: the call is made as a whole when its time is over."""

    def __init__(self, world: World, connector: Connector, wake: Callable[[], None]) -> None:
        self._world = world
        self._connector = connector
        self._wake = wake
        self._current = 0
        self._result: Connection | SsmProxyError | None = None

    def begin(self) -> None:
        self._current += 1
        self._world.attempts += 1
        number = self._current
        self._world.later(
            ATTEMPT_SECONDS[self._world.network], lambda: self._world.awake(lambda: self._connect(number))
        )

    def abandon(self) -> None:
        self._current += 1
        result = self.take_result()
        if isinstance(result, Connection):
            result.websocket.close()

    def take_result(self) -> Connection | SsmProxyError | None:
        result, self._result = self._result, None
        return result

    def _connect(self, number: int) -> None:
        if number != self._current:
            return
        try:
            self._result = self._connector.connect()
        except SsmProxyError as error:
            self._result = error
        self._wake()


class VirtualTermination:
    """`Termination` without a thread: the call succeeds or fails at once."""

    def __init__(self, connector: Connector) -> None:
        with contextlib.suppress(SsmProxyError):
            connector.terminate()

    def wait(self, until: Callable[[], float]) -> None:
        """The call is over already."""


class Wire:
    """A TCP connection between the machine and the service: in order, with latency, and sometimes silent.

    Args:
        world: whose time and network it uses.
        deliver: takes what the client sent; ``b""`` is its end.
    """

    def __init__(self, world: World, deliver: Callable[[bytes], None]) -> None:
        self._world = world
        self._deliver = deliver
        self.near, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._arrived = bytearray()
        self._is_finished = False
        self._is_silent = False
        world.add_pump(self._pump)

    def send(self, data: bytes) -> None:
        """Send something to the client."""
        self._world.later(LATENCY, lambda: self._arrive(data))

    def finish(self) -> None:
        """Close the service's end, behind all that was sent."""
        self._world.later(LATENCY, self._finish)

    def silence(self) -> None:
        """Lose the connection without telling anybody, as an address that changes does."""
        self._is_silent = True

    def reset(self) -> None:
        """Break the connection on both sides at once; what is under way is lost."""
        self._deliver(b"")
        self._close()

    def _arrive(self, data: bytes) -> None:
        if not self._is_silent and self._world.network == "up":
            self._arrived += data
        else:  # what one segment lost, those behind it cannot repair before TCP gives up
            self._is_silent = True

    def _finish(self) -> None:
        self._is_finished = True

    def _pump(self) -> None:
        if self._is_silent:  # what the client writes stays in the socket's buffer
            if self.near.fileno() < 0:
                self._close()
            return
        try:
            while data := self._far.recv(65536):
                self._leave(data)
            self._leave(b"")
            self._close()
            return
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self._leave(b"")
            self._close()
            return
        if self._arrived:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                del self._arrived[: self._far.send(self._arrived)]
        if self._is_finished and not self._arrived:
            self._close()

    def _leave(self, data: bytes) -> None:
        if self._world.network == "up":
            self._world.later(LATENCY, lambda: self._deliver(data))
        else:
            self._is_silent = True

    def _close(self) -> None:
        if self._far.fileno() >= 0:
            self._far.close()
            self._world.remove_pump(self._pump)
