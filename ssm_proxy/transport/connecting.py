"""Makes connections in the background, so that the loop goes on meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ssm_proxy.errors import SsmProxyError, TransportTimeout
from ssm_proxy.secret import Secret

if TYPE_CHECKING:
    from ssm_proxy.channel.cipher import DataKey
    from ssm_proxy.channel.events import DataKeyNeeded
    from ssm_proxy.transport.websocket import WebSocketTransport

logger = logging.getLogger("ssm_proxy.transport")

WAIT_STEP = 0.1
ATTEMPT_TIMEOUT = 60.0
"""Bounds one attempt as a whole, however slowly the other side answers each step."""
FIRST_ATTEMPT_TIMEOUT = 300.0
"""The first one may have to wait for a person: an MFA code, or a credential program that opens a browser."""


class Connection(NamedTuple):
    """An open WebSocket, and the token to say first on it."""

    websocket: WebSocketTransport
    token: Secret


class Connector(Protocol):
    """Knows the session: the seam between this layer and the control plane."""

    @property
    def is_started(self) -> bool:
        """Whether StartSession succeeded: from then on ``connect`` resumes."""
        ...

    def connect(self) -> Connection:
        """Start the session, or resume it if it was started; open a WebSocket. Blocks.

        Raises:
            SessionEnded: the service says that the session is gone.
            SsmProxyError: anything else that kept it from connecting.
        """
        ...

    def terminate(self) -> None:
        """End the session, if it was started. Blocks."""
        ...

    def data_key(self, key_id: str, challenge: str | None) -> DataKey:
        """Get a data key to encrypt the session with. Blocks.

        Raises:
            SsmProxyError: there is none to be had.
        """
        ...


class Attempts:
    """Runs ``connector.connect`` in a thread, one attempt at a time.

    Args:
        connector: what connects.
        wake: called from the thread when a result can be taken.
    """

    def __init__(self, connector: Connector, wake: Callable[[], None]) -> None:
        self._connector = connector
        self._wake = wake
        self._results: SimpleQueue[tuple[int, Connection | SsmProxyError]] = SimpleQueue()
        self._current = 0

    def begin(self) -> None:
        """Begin an attempt; one that is still running is abandoned and its connection will be closed."""
        self._current += 1
        # A daemon: a name server that does not answer must not keep the process from ending.
        threading.Thread(target=self._run, args=(self._current,), name="ssm-proxy connect", daemon=True).start()

    def abandon(self) -> None:
        """Forget the attempt that is running, and its result if it has one already."""
        self._current += 1
        self.take_result()

    def take_result(self) -> Connection | SsmProxyError | None:
        """Give the result of the current attempt, or None while it runs."""
        while True:
            try:
                number, result = self._results.get_nowait()
            except Empty:
                return None
            if number == self._current:
                return result
            if isinstance(result, Connection):
                result.websocket.close()

    def _run(self, number: int) -> None:
        result: Connection | SsmProxyError
        try:
            result = self._connector.connect()
        except SsmProxyError as error:
            result = error
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: it must report, whatever happened
            result = SsmProxyError(f"unexpected {type(error).__name__} while connecting; this is a bug of ssm-proxy")
            result.__cause__ = error
        if number != self._current and isinstance(result, Connection):
            result.websocket.close()  # abandoned, and perhaps nobody is left to take it
            return
        self._results.put((number, result))
        self._wake()


class DataKeyRequest:
    """Gets a data key in a thread.

    Args:
        connector: what gets it.
        event: what the agent asks for.
        wake: called from the thread when the result can be taken.
    """

    def __init__(self, connector: Connector, event: DataKeyNeeded, wake: Callable[[], None]) -> None:
        self._connector = connector
        self._event = event
        self._wake = wake
        self._results: SimpleQueue[DataKey | SsmProxyError] = SimpleQueue()
        threading.Thread(target=self._run, name="ssm-proxy data key", daemon=True).start()

    def take_result(self) -> DataKey | SsmProxyError | None:
        """Give the result, or None while there is none."""
        try:
            return self._results.get_nowait()
        except Empty:
            return None

    def _run(self) -> None:
        result: DataKey | SsmProxyError
        try:
            result = self._connector.data_key(self._event.kms_key_id, self._event.challenge)
        except SsmProxyError as error:
            result = error
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: it must report, whatever happened
            result = SsmProxyError(f"unexpected {type(error).__name__} with the data key; this is a bug of ssm-proxy")
            result.__cause__ = error
        self._results.put(result)
        self._wake()


class Termination:
    """Ends the session in a thread, because the call may hang.

    Args:
        connector: what terminates; asked at once.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._thread = threading.Thread(target=self._run, name="ssm-proxy terminate", daemon=True)
        self._has_thread = True
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, and begins no more threads (from 3.12 on)
            self._has_thread = False

    def wait(self, until: Callable[[], float]) -> None:
        """Wait for the end of the call, at most until the time of the monotonic clock that ``until`` gives.

        It is asked again and again: somebody may get into a hurry meanwhile.
        """
        if not self._has_thread:
            self._run()
            return
        while self._thread.is_alive() and (left := until() - time.monotonic()) > 0:
            self._thread.join(min(left, WAIT_STEP))
        if self._thread.is_alive():
            logger.info("TerminateSession did not answer in time")

    def _run(self) -> None:
        try:
            self._connector.terminate()
        except SsmProxyError as error:
            logger.info("the session could not be terminated: %s (%s)", error.message, error.cause)
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: nobody waits for more than its end
            logger.info("the session could not be terminated: unexpected %s", type(error).__name__)


def attempt_took_too_long() -> TransportTimeout:
    """Give the error of an attempt that exceeded its time."""
    return TransportTimeout(
        "connecting took too long",
        cause="neither success nor failure in minutes",
        hint="check network, VPN, DNS and proxy, and whether a credential program waits for something",
    )
