"""A day of one tunnel, in seconds: the real tunnel in a virtual world, between a person's ssh and a node.

Each scenario is made from a seed and repeats. Bytes are compared in order at both ends, all the time; the turns of the
loop, connections and repeats are counted, because a tunnel that works but never rests is a defect too.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from dataclasses import dataclass, field

import pytest
from simulation.model_agent import ModelAgent
from simulation.model_service import IDLE_TIMEOUT, ModelService
from simulation.virtual_world import World

from ssm_proxy.connector import SessionConnector, SessionRequest
from ssm_proxy.errors import (
    ChannelClosed,
    ConfigurationError,
    ConnectFailed,
    NotRenewable,
    OpeningRefused,
    SessionEnded,
    SsmProxyError,
    Throttled,
)
from ssm_proxy.transport.bridge import BridgeOutcome
from ssm_proxy.transport.heartbeat import PING_INTERVAL, PONG_TIMEOUT, SUSPECT_PONG_TIMEOUT
from ssm_proxy.transport.recovery import BUDGET
from ssm_proxy.tunnel import Tunnel

MINUTE, HOUR = 60.0, 3600.0
REQUEST = SessionRequest(target="i-0123456789abcdef0", document_name="AWS-StartSSHSession")
GREETING = b"SSH-2.0-node\r\n"
KEEPALIVE = 300.0
"""ServerAliveInterval of the README."""
KEEPALIVE_BYTES = 100
EXPIRED = ConfigurationError(
    "the AWS credentials have expired", cause="ExpiredTokenException", hint="run: aws sso login"
)
THROTTLED = Throttled("ResumeSession was throttled", cause="ThrottlingException: Rate exceeded")


@dataclass(repr=False)
class Stream:
    """One direction: what was said, and how much of it has come."""

    said: bytearray = field(default_factory=bytearray)
    heard: int = 0

    def hear(self, data: bytes) -> None:
        assert data == self.said[self.heard : self.heard + len(data)], f"other bytes, somewhere after {self.heard}"
        self.heard += len(data)

    @property
    def is_complete(self) -> bool:
        return self.heard == len(self.said)

    def __repr__(self) -> str:
        return f"{self.heard} of {len(self.said)} bytes"


class Day:
    """A tunnel in a world of its own, the ssh at one end of it and the node at the other.

    Args:
        seed: of everything that is drawn.
        keepalive: whether ssh sends its keepalives.
    """

    def __init__(self, seed: int = 0, *, keepalive: bool = True) -> None:
        self.random = random.Random(seed)
        self.world = World(seed)
        self.up, self.down = Stream(), Stream()
        self.service = ModelService(self.world, ModelAgent(speaks=GREETING), self._node_heard)
        self.down.said += GREETING
        self.notices: list[str] = []
        self.outcome: BridgeOutcome | None = None
        self.acts = 0
        """How often ssh or the node had something to say."""
        self._unsent = bytearray()
        self._taken_by_node = 0
        self.tunnel: Tunnel | None = None
        self._has_input = True
        self._is_gone = False
        self._input, self._write_end = os.pipe()
        self._read_end, self._output = os.pipe()
        for fd in (self._write_end, self._read_end):
            os.set_blocking(fd, False)
        self.world.add_pump(self._pump)
        if keepalive:
            self._keep_alive()

    # --- ssh --------------------------------------------------------------------------------------------------------

    def type(self, size: int) -> None:
        """Let ssh send so many bytes, as soon as the pipe takes them. A machine that sleeps sends nothing."""
        if self._has_input and not self.world.is_asleep:
            data = self.random.randbytes(size)
            self.acts += 1
            self.up.said += data
            self._unsent += data

    def _keep_alive(self) -> None:
        self.world.awake(lambda: self.type(KEEPALIVE_BYTES))
        self.world.later(KEEPALIVE, self._keep_alive)

    def close_input(self) -> None:
        """Let whoever writes to the tunnel end, while its reader waits for more."""
        self._has_input = False
        os.close(self._write_end)

    def stop(self) -> None:
        assert self.tunnel is not None
        self.tunnel.stop(signal.SIGTERM)

    def leave(self) -> None:
        """Let ssh end: both its pipes close."""
        if not self._is_gone:
            self._is_gone = True
            self.world.remove_pump(self._pump)
            os.close(self._read_end)
            if self._has_input:
                self.close_input()

    def _pump(self) -> None:
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                del self._unsent[: os.write(self._write_end, self._unsent)]
        with contextlib.suppress(BlockingIOError):
            self.down.hear(os.read(self._read_end, 65536))

    # --- the node ---------------------------------------------------------------------------------------------------

    def _node_heard(self, count: int) -> None:
        self.up.hear(bytes(self.service.agent.received[self.up.heard :]))
        self.say(1 + count // 50)  # an echo, an answer, a window that moves on

    def say(self, size: int) -> None:
        data = self.random.randbytes(size)
        self.acts += 1
        self.down.said += data
        self.service.node_says(data)

    # --- the run ----------------------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether every byte has come, both ways."""
        return not self._unsent and self.up.is_complete and self.down.is_complete

    def at(self, hours: float, call: object, *arguments: object) -> None:
        """Plan something, by the hours since the beginning."""
        assert callable(call)
        self.world.later(hours * HOUR - self.world.now, lambda: call(*arguments))

    def run(self) -> BridgeOutcome:
        """Run the tunnel to its end, and what it sent behind that to the service."""
        with self.world.carry(self.service.open_websocket):
            self.tunnel = Tunnel(
                SessionConnector(self.service, REQUEST, mark=lambda stage: None),
                port=22,
                input_fd=self._input,
                output_fd=self._output,
                notify=self.notices.append,
                mark=lambda stage: None,
            )
            try:
                return self.tunnel.run()
            finally:
                self.leave()
                os.close(self._input)
                os.close(self._output)
                self.world.run(1.0)

    def run_until(self, hours: float) -> None:
        """Run until ssh leaves at that time; everything must have come by then, and nothing may stay."""
        self.at(hours, self._check_and_leave)
        outcome = self.run()
        assert (outcome.signal_number, outcome.closed_reason) == (None, None)
        assert self.world.now == pytest.approx(hours * HOUR, abs=10)
        self.check_nothing_is_left()

    def _check_and_leave(self) -> None:
        assert self.is_complete, (len(self._unsent), self.up, self.down)
        self.leave()

    def check_nothing_is_left(self) -> None:
        assert self.service.calls[-1] == "terminate"
        assert not self.service.is_open

    def fail(self) -> SsmProxyError:
        """Run the tunnel to an end by an error; the service must be rid of the session, if only by its idle timeout."""
        with pytest.raises(SsmProxyError) as caught:
            self.run()
        self.world.run(IDLE_TIMEOUT)
        assert not self.service.is_open
        return caught.value


pytestmark = pytest.mark.usefixtures("no_descriptor_stays")

# --- quiet hours ----------------------------------------------------------------------------------------------------


def test_a_quiet_day_costs_next_to_nothing() -> None:
    day = Day()
    day.run_until(24)
    assert day.notices == []
    assert day.service.connections == day.world.attempts == 24, "one for each hour"
    regular, keepalives = 24 * HOUR / PING_INTERVAL, 24 * HOUR / KEEPALIVE
    assert 0.9 * regular <= day.service.pings <= regular + keepalives + 2 * 24, "also behind what came, and at first"
    # Two for each ping, three for each keepalive and its answer, and some for a new connection.
    assert day.world.turns <= 2 * day.service.pings + 3 * keepalives + 24 * 10
    assert day.service.agent.repeat_count == 0


def test_without_data_the_service_ends_the_session() -> None:
    day = Day(keepalive=False)
    error = day.fail()
    assert isinstance(error, ChannelClosed)
    assert error.cause == "Your session timed out due to inactivity."
    assert "ServerAliveInterval" in str(error.hint)
    assert day.world.now == pytest.approx(2 * IDLE_TIMEOUT, abs=10)  # the second one is for what is left behind


@pytest.mark.parametrize("how", ["node", "input", "signal"])
def test_ends_after_hours(how: str) -> None:
    """The other ways; ssh that goes is the one of all other tests."""
    day = Day()
    day.at(5.51, {"node": day.service.end_by_node, "input": day.close_input, "signal": day.stop}[how])
    outcome = day.run()
    assert day.is_complete
    assert outcome.closed_reason == ("" if how == "node" else None)
    assert day.tunnel.pipes.fell_quiet == (how == "input")
    assert outcome.signal_number == (signal.SIGTERM if how == "signal" else None)
    assert not day.service.is_open
    assert day.world.now == pytest.approx(5.51 * HOUR, abs=15)


# --- the network is away --------------------------------------------------------------------------------------------


def away(day: Day, hours: float, seconds: float, network: str, manner: str = "silent") -> None:
    """Plan that the network goes away, and comes back."""

    def go() -> None:
        day.world.network = network
        day.service.break_connection(manner)

    def come_back() -> None:
        day.world.network = "up"

    day.at(hours, go)
    day.at(hours + seconds / HOUR, come_back)


AWAY = pytest.mark.parametrize("network", ["away", "silent", "hung"])


@AWAY
@pytest.mark.parametrize("manner", ["silent", "reset"])
def test_14_minutes_without_network_cost_nothing_but_time(network: str, manner: str) -> None:
    day = Day()
    away(day, 0.501, 14 * MINUTE, network, manner)  # just after a keepalive: the idle timeout runs from there
    day.at(0.6, day.type, 300_000)
    day.at(0.55, day.say, 100_000)
    day.run_until(0.501 + 17 / 60)
    assert len(day.notices) == 2
    assert day.notices[0].startswith("connection lost, trying to resume for 15 more minutes (")
    assert day.notices[1] == "the session goes on"
    assert day.world.attempts <= 2 + 14 * MINUTE / 10, "pauses grow to 20 s"


@AWAY
def test_16_minutes_without_network_end_the_session(network: str) -> None:
    day = Day()
    away(day, 0.5, 16 * MINUTE, network, "reset")
    error = day.fail()
    assert isinstance(error, SessionEnded)
    assert error.message == "the session was lost: no connection for 15 minutes"
    assert error.cause
    assert error.hint
    # An attempt that is under way is waited for, at most a minute.
    assert BUDGET <= day.world.now - IDLE_TIMEOUT - 0.5 * HOUR <= BUDGET + MINUTE + 20
    assert len(day.notices) == 1


def test_a_connection_that_went_silent_is_noticed() -> None:
    """A change of Wi-Fi: the old connection is dead, and new ones can be made."""
    day = Day()
    day.at(0.5, day.service.break_connection, "silent")
    day.at(0.5001, day.type, 50_000)
    day.run_until(0.5 + (PING_INTERVAL + PONG_TIMEOUT + 5) / HOUR)
    assert day.service.connections == 2
    assert day.notices == []


def test_openings_that_fail_use_up_their_tokens() -> None:
    day = Day()
    day.service.failing_openings = [ConnectFailed("no connection"), ConnectFailed("no connection")]
    unavailable = OpeningRefused("HTTP 503", status=503)
    day.at(0.49, day.service.failing_openings.extend, [unavailable, ConnectFailed("no connection"), unavailable] * 3)
    day.at(0.5, day.service.break_connection, "reset")
    day.run_until(0.6)
    assert day.service.calls.count("resume") == 10


# --- the machine sleeps ---------------------------------------------------------------------------------------------

SEEN = pytest.mark.parametrize("is_seen", [True, False], ids=["clock-goes-on", "clock-stands-still"])


@SEEN
@pytest.mark.parametrize("manner", ["silent", "reset", "close", ""])
def test_a_sleep_of_some_minutes(is_seen: bool, manner: str) -> None:
    """Whatever becomes of the connection meanwhile, what is typed after waking arrives soon."""
    day = Day()

    def sleep() -> None:
        day.world.later(MINUTE, lambda: day.service.break_connection(manner) if manner else None)
        day.type(100_000)
        day.say(10_000)  # the agent repeats it at ten messages a second
        day.world.sleep(10 * MINUTE, is_seen=is_seen)
        day.type(10)

    day.at(1.5, sleep)
    # The clock that stands still gives the sleep away, and the connection is suspected; else the next ping tells.
    patience = PONG_TIMEOUT if is_seen else SUSPECT_PONG_TIMEOUT
    day.run_until(1.5 + (10 * MINUTE + patience + 3) / HOUR)
    assert day.service.connections == (3 if manner else 2)


@SEEN
def test_a_sleep_during_which_the_service_ended_the_session(is_seen: bool) -> None:
    day = Day()
    day.at(0.5, day.world.later, 1.0, lambda: day.service.break_connection("silent"))
    day.at(0.5, lambda: day.world.sleep(2 * HOUR, is_seen=is_seen))
    error = day.fail()
    assert isinstance(error, SessionEnded)
    assert error.message == "the session to i-0123456789abcdef0 is over"
    assert "ServerAliveInterval" in str(error.hint)
    assert day.world.now - IDLE_TIMEOUT == pytest.approx(2.5 * HOUR, abs=PONG_TIMEOUT + 5)


@SEEN
def test_a_sleep_while_the_connection_is_lost(is_seen: bool) -> None:
    """The lid is closed, the Wi-Fi leaves, and comes back some seconds after waking."""
    day = Day()
    away(day, 0.5, 14 * MINUTE, "away", "reset")
    day.at(0.5 + MINUTE / HOUR, lambda: day.world.sleep(12.9 * MINUTE, is_seen=is_seen))
    day.run_until(0.5 + 15 / 60)
    assert day.notices[-1] == "the session goes on"


# --- the service says no --------------------------------------------------------------------------------------------


def refuse(day: Day, hours: float, seconds: float, error: SsmProxyError) -> None:
    """Plan that ResumeSession is refused from the loss of a connection on, for so long."""

    def change(refusal: SsmProxyError | None) -> None:
        day.service.refuses_resume = refusal

    day.at(hours, change, error)
    day.at(hours, day.service.break_connection, "close")
    day.at(hours + seconds / HOUR, change, None)


REFUSED = pytest.mark.parametrize("error", [EXPIRED, THROTTLED], ids=["expired", "throttled"])


@REFUSED
def test_a_refusal_of_14_minutes_is_waited_for(error: SsmProxyError) -> None:
    """A login that a person renews meanwhile, a service that is busy."""
    day = Day()
    refuse(day, 0.5, 14 * MINUTE, error)
    day.at(0.6, day.type, 100_000)
    day.run_until(0.5 + 15 / 60)
    assert day.notices[0].endswith(f"({error.message}: {error.cause})")
    assert day.notices[1:] == ["the session goes on"]


@REFUSED
def test_a_refusal_of_16_minutes_ends_the_session_with_its_cause(error: SsmProxyError) -> None:
    day = Day()
    refuse(day, 0.5, 16 * MINUTE, error)
    found = day.fail()
    assert isinstance(found, SessionEnded)
    assert found.cause == f"{error.message}: {error.cause}"
    assert found.hint == (error.hint or "connect again")


def test_credentials_that_this_process_cannot_renew_end_the_session_at_once() -> None:
    error = NotRenewable("the credentials of the role have expired", cause="a new MFA code is needed")
    day = Day()
    refuse(day, 0.5, 16 * MINUTE, error)
    assert day.fail() is error
    assert day.world.now - IDLE_TIMEOUT == pytest.approx(0.5 * HOUR, abs=5)


# --- everything -----------------------------------------------------------------------------------------------------


class EventfulDay(Day):
    """24 hours of work, silence and accidents, one after the other, each drawn."""

    def plan(self, hours: float) -> None:
        work = self.random.uniform(0.0, 0.5)
        while work < hours:
            work += self._work(work) / HOUR
        trouble = self.random.uniform(0.1, 0.5)
        while trouble < hours - 0.5:
            # A keepalive, or what ssh had waiting, must come through between two times without network.
            trouble += (self._trouble(trouble) + KEEPALIVE + self.random.expovariate(1 / (20 * MINUTE))) / HOUR

    def _work(self, hours: float) -> float:
        """Plan a stretch of one kind; give its seconds."""
        kind = self.random.choice(["keys", "upload", "download", "both", "silence", "silence"])
        if kind == "silence":
            return self.random.uniform(10 * MINUTE, 3 * HOUR)
        if kind == "keys":
            end = self.random.uniform(MINUTE, 20 * MINUTE)
            second = 0.0
            while second < end:
                self.at(hours + second / HOUR, self.type, self.random.choice([36, 36, 36, 500]))
                second += self.random.expovariate(1 / 6)
            return end
        pieces = self.random.randrange(1, 20)
        for piece in range(pieces):
            when = hours + piece / 10 / HOUR
            if kind != "download":
                self.at(when, self.type, 10_000)
            if kind != "upload":
                self.at(when, self.say, 3_000)
        return pieces / 10 + self.random.uniform(0.0, 10 * MINUTE)

    def _trouble(self, hours: float) -> float:
        """Plan an accident; give the seconds until it is over."""
        kind = self.random.choice(["break", "away", "sleep", "refusal", "openings", "agent", "stall"])
        manner = self.random.choice(["silent", "reset", "close"])
        seconds = self.random.choice([5.0, MINUTE, 5 * MINUTE, 12 * MINUTE]) * self.random.uniform(0.2, 1.0)
        if kind == "break":
            self.at(hours, self.service.break_connection, manner)
        elif kind == "away":
            away(self, hours, seconds, self.random.choice(["away", "silent", "hung"]), manner)
        elif kind == "sleep":
            self.at(hours + seconds / 2 / HOUR, self.service.break_connection, manner)
            self.at(hours, lambda: self.world.sleep(seconds, is_seen=bool(seconds % 2 < 1)))
        elif kind == "refusal":
            refuse(self, hours, seconds, self.random.choice([EXPIRED, THROTTLED]))
        elif kind == "openings":
            failures = [OpeningRefused("HTTP 503", status=503), ConnectFailed("no"), OpeningRefused("no", status=403)]
            self.at(hours, self.service.failing_openings.extend, failures)
            self.at(hours, self.service.break_connection, manner)
        elif kind == "agent":
            seconds = min(seconds, 2 * MINUTE)
            self.at(hours, self.service.lose_agent, seconds)
        else:
            seconds = min(seconds, 2 * MINUTE)
            self.at(hours, self.service.agent.stall)
            self.at(hours + seconds / HOUR, self.service.wake_agent)
        return seconds


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 23))])
def test_an_eventful_day(seed: int) -> None:
    day = EventfulDay(seed)
    day.plan(23.5)
    day.run_until(24)
    service, world = day.service, day.world
    losses = [
        text for text in day.notices if text.startswith("connection lost, trying to resume for 15 more minutes (")
    ]
    assert day.notices == [text for loss in losses for text in (loss, "the session goes on")]
    assert 24 <= service.connections <= world.attempts
    assert service.pings <= 24 * HOUR / PING_INTERVAL + day.acts + service.connections
    assert world.turns <= 2 * service.pings + 3 * day.acts + 10 * world.attempts


def test_the_same_seed_gives_the_same_day() -> None:
    def run(seed: int) -> tuple[int, int, int, int, float]:
        day = EventfulDay(seed)
        day.plan(3)
        day.run_until(4)
        return day.world.turns, day.service.pings, day.up.heard, day.down.heard, day.world.now

    assert run(1) == run(1)
    assert run(1) != run(2)
