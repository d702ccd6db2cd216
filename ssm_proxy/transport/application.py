"""What a session is for on this side: the seam between the driver and the local ends.

The driver (``bridge``) carries messages, connections and time. What it carries them for, a pair of pipes, a terminal,
or a listener with its connections, is an `Application`. Every method is called from the driver's thread. One that
raises an `SsmProxyError` ends the session with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.channel.events import SessionStarted
from ssm_proxy.transport.poller import Poller


class Application(Protocol):
    """The local side of one session."""

    @property
    def is_full(self) -> bool:
        """Whether so much waits for local readers that nothing more should be received."""
        ...

    @property
    def wants_write(self) -> bool:
        """Whether what was received still waits for a local reader; so long does a closed session last."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the local side has ended, so that the session should end too."""
        ...

    def watch(self, poller: Poller, now: float) -> None:
        """Tell the poller which local descriptors can be used now, and for what."""
        ...

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        """Use what can be used: read input into the channel, as far as it has room, and write what waits.

        Args:
            ready: what became possible, by descriptor; may be empty, and may hold others' descriptors.
            now: the time.
            is_connected: whether there is a WebSocket; without one nothing that is due says anything about the node.
        """
        ...

    def deadline(self) -> float | None:
        """Give the time at which ``turn`` is due if nothing else happens; asked only while connected."""
        ...

    def started(self, event: SessionStarted, now: float) -> None:
        """Take note that the session has begun and what it is."""
        ...

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        """Take what came from the node, in order."""
        ...

    def error_output(self, data: bytes, now: float) -> None:
        """Take what a command wrote to its standard error, where the document keeps it apart."""
        ...

    def exit_code(self, code: int) -> None:
        """Take the exit status of a command, where the document tells it."""
        ...

    def flag(self, flag: int, now: float) -> None:
        """Take a control value from the agent."""
        ...

    def heard(self, now: float) -> None:
        """Take note that something came from the service, or that it was connected anew."""
        ...

    def closed(self, reason: str) -> None:
        """Take note that the service closed the session, so that nothing follows."""
        ...

    def last_words(self, now: float) -> None:
        """Take the input that is ready at this moment: a signal ends the session."""
        ...

    def close(self) -> None:
        """Leave all descriptors as they were found."""
        ...


class ApplicationBase:
    """An application that does nothing, for those that need only some of it.

    Args:
        channel: where input goes.
    """

    def __init__(self, channel: DataChannel) -> None:
        self.channel = channel

    @property
    def is_full(self) -> bool:
        return False

    @property
    def wants_write(self) -> bool:
        return False

    @property
    def is_over(self) -> bool:
        return False

    def watch(self, poller: Poller, now: float) -> None:
        pass

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        pass

    def deadline(self) -> float | None:
        return None

    def started(self, event: SessionStarted, now: float) -> None:
        pass

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        pass

    def error_output(self, data: bytes, now: float) -> None:
        self.output([data], now)

    def exit_code(self, code: int) -> None:
        pass

    def flag(self, flag: int, now: float) -> None:
        pass

    def heard(self, now: float) -> None:
        pass

    def closed(self, reason: str) -> None:
        pass

    def last_words(self, now: float) -> None:
        pass

    def close(self) -> None:
        pass


class LateApplication(ApplicationBase):
    """An application that is chosen when the session has told what it is.

    Args:
        channel: where input goes.
        choose: gives the application for a session that has begun; may raise an `SsmProxyError` instead.
    """

    def __init__(self, channel: DataChannel, choose: Callable[[SessionStarted], Application]) -> None:
        super().__init__(channel)
        self._choose = choose
        self._nothing = ApplicationBase(channel)
        self.chosen: Application | None = None

    @property
    def _now(self) -> Application:
        return self._nothing if self.chosen is None else self.chosen

    @property
    def is_full(self) -> bool:
        return self._now.is_full

    @property
    def wants_write(self) -> bool:
        return self._now.wants_write

    @property
    def is_over(self) -> bool:
        return self._now.is_over

    def watch(self, poller: Poller, now: float) -> None:
        self._now.watch(poller, now)

    def turn(self, ready: Mapping[int, int], now: float, *, is_connected: bool) -> None:
        self._now.turn(ready, now, is_connected=is_connected)

    def deadline(self) -> float | None:
        return self._now.deadline()

    def started(self, event: SessionStarted, now: float) -> None:
        self.chosen = self._choose(event)
        self.chosen.heard(now)
        self.chosen.started(event, now)

    def output(self, pieces: Sequence[bytes], now: float) -> None:
        self._now.output(pieces, now)

    def error_output(self, data: bytes, now: float) -> None:
        self._now.error_output(data, now)

    def exit_code(self, code: int) -> None:
        self._now.exit_code(code)

    def flag(self, flag: int, now: float) -> None:
        self._now.flag(flag, now)

    def heard(self, now: float) -> None:
        self._now.heard(now)

    def closed(self, reason: str) -> None:
        self._now.closed(reason)

    def last_words(self, now: float) -> None:
        self._now.last_words(now)

    def close(self) -> None:
        self._now.close()
