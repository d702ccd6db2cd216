"""One session in a thread of its own, which ends with the program, however that ends."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from ssm_proxy.errors import SessionEnded, SsmProxyError, Throttled, TransportTimeout
from ssm_proxy.session import Session
from ssm_proxy.transport.bridge import BridgeOutcome

CLOSE_TIMEOUT = 12.0
"""Longer than a session takes that ends in order: what was sent last gets 5 s to arrive, TerminateSession as much."""
STOP_TIMEOUT = 3.0
"""Longer than a session takes that was stopped."""

logger = logging.getLogger("ssm_proxy.api")


class SessionThread(threading.Thread):
    """Runs one session. A daemon: the program's end is not held up, but ends the session, and waits for that a moment.

    There is no list of sessions: each has an exit handler of its own, from its start to its end.

    Args:
        make_session: makes the session; called in the thread, and may take its time.
        judge: gives the error that an end without one stands for, if any.
        is_left: says whether nobody has the program's end of the session any more.
        release: called in the thread when the session is over at the service.
        finish: called in the thread after that, when `error` says how it ended; may take as long as it likes.
    """

    def __init__(
        self,
        make_session: Callable[[], Session],
        *,
        judge: Callable[[BridgeOutcome], SsmProxyError | None],
        is_left: Callable[[], bool] = lambda: True,
        release: Callable[[], None] = lambda: None,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="ssm-proxy session", daemon=True)
        self._make_session = make_session
        self._judge = judge
        self.is_left = is_left
        self._release = release
        self._finish = finish
        self._process_id = os.getpid()
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._stopped_at: float | None = None
        self._is_over = threading.Event()
        self._holders = 1
        self._begun: Future[None] = Future()
        self._begun.set_running_or_notify_cancel()  # who waits for it may give up, but not cancel it
        self._trouble: SsmProxyError | None = None  # what kept it from beginning, known when it is over
        self.error: SsmProxyError | None = None
        """Why the session ended, if not as it should; known before anybody can notice its end."""

    @property
    def begun(self) -> Future[None]:
        """Is done when the session has begun, or fails with what kept it from that."""
        return self._begun

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that the thread runs in, not a fork of it."""
        return os.getpid() == self._process_id

    def set_begun(self) -> None:
        """Take note that the session has begun. Called in the thread."""
        self._begun.set_result(None)

    def settle(self, error: SsmProxyError | None) -> None:
        """Take note why the session ends, before others can see that it does. The first reason stays."""
        if self.error is None:
            self.error = error

    def wait_begun(self, timeout: float | None, what: str) -> None:
        """Wait until the session has begun; end it if that fails.

        Args:
            timeout: seconds.
            what: for the text: ``port 22 of i-…``.

        Raises:
            SsmProxyError: why it could not begin.
            TransportTimeout: it took too long.
        """
        try:
            self._begun.result(timeout)
        except FutureTimeout as error:
            self.stop()
            self.wait_over(STOP_TIMEOUT)
            raise self.took_too_long(what, timeout) from error
        except BaseException:  # Ctrl-C, for one
            self.stop()
            self.wait_over(STOP_TIMEOUT)
            raise

    def took_too_long(self, what: str, timeout: float | None) -> SsmProxyError:
        """Give the error of a session that was stopped because it had not begun in time. Its end may tell more."""
        message = f"no session to {what} within {timeout:g} s"
        trouble = self._trouble
        if isinstance(trouble, Throttled):
            return Throttled(message, cause=trouble.in_a_line, hint=trouble.hint)
        return TransportTimeout(
            message,
            cause="it could neither be begun nor was it refused" if trouble is None else trouble.in_a_line,
            hint=(trouble and trouble.hint)
            or "check network and proxy, and whether the node's agent is busy; or give it more time",
        )

    def share(self) -> None:
        """Take note of one more socket that leads to the session."""
        with self._lock:
            self._holders += 1

    def let_go(self) -> bool:
        """Take note that one of them is about to be closed; give whether it is the last."""
        with self._lock:
            self._holders -= 1
            return self._holders == 0

    def stop(self) -> None:
        """Have the session end soon. May be called from any thread, also before there is one."""
        with self._lock:
            if self._stopped_at is not None:
                return
            self._stopped_at = time.monotonic()
            session = self._session
        if session is not None:
            session.stop(signal.SIGTERM)

    def wait_over(self, timeout: float | None) -> bool:
        """Wait until the session is over at the service; give whether it is."""
        return self._is_over.wait(timeout)

    def end(self) -> None:
        """Wait for the end of a session whose local side has ended; after a while end it all the same. Bounded."""
        if not self.is_ours or threading.current_thread() is self:
            return
        if self._stopped_at is not None or not self.wait_over(CLOSE_TIMEOUT):
            self.stop()
            self.wait_over(STOP_TIMEOUT)
        self.join(STOP_TIMEOUT)

    def start(self) -> None:
        """Begin to run the session.

        Raises:
            RuntimeError: the system, or an interpreter that is ending, begins no more threads.
        """
        # urllib3 closes connections by finalizers, which do nothing any more once their own exit handler has run: have
        # that come after ours, which still makes a call.
        weakref.finalize(self, str).detach()
        super().start()
        atexit.register(self._at_exit)
        if self._is_over.is_set():  # it has looked for the handler before there was one
            atexit.unregister(self._at_exit)

    def run(self) -> None:
        """Run the session to its end; what it met is in `error`, and nothing is raised."""
        error: SsmProxyError | None = None
        try:
            session = self._make_session()
            with self._lock:
                self._session = session
                is_stopped = self._stopped_at is not None
            if is_stopped:
                session.stop(signal.SIGTERM)
            outcome = session.run()
            self._trouble = session.trouble
            error = self._judge(outcome)
        except SsmProxyError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - the boundary of a thread: whoever uses the session is told
            error = SsmProxyError(f"unexpected {type(raised).__name__} in a session; this is a bug of ssm-proxy")
            error.__cause__ = raised
        logger.info("the session is over: %s", "in order" if error is None else error)
        self.settle(error)
        self._session = None
        self._release()
        self._is_over.set()
        atexit.unregister(self._at_exit)
        if not self._begun.done():
            self._begun.set_exception(self.error or SessionEnded("the session was ended before it had begun"))
        self._finish()

    def _at_exit(self) -> None:
        """End all sessions at once, and wait for this one: one time limit for all of them."""
        if not self.is_ours:
            return
        for thread in threading.enumerate():
            if isinstance(thread, SessionThread):
                thread.stop()
        if self._stopped_at is not None:
            self.wait_over(max(0.0, self._stopped_at + STOP_TIMEOUT - time.monotonic()))
