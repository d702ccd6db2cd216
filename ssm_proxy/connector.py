"""Layer 5: the life of one session in the service: started, opened, resumed, ended.

Imports only what StartSession needs: the rest of the program is loaded while that is under way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ssm_proxy.aws.control_plane import ControlPlane, StartedSession
from ssm_proxy.errors import KmsFailed, SessionEnded, SsmProxyError
from ssm_proxy.secret import Secret
from ssm_proxy.transport.connecting import Connection

if TYPE_CHECKING:
    from ssm_proxy.channel.cipher import DataKey

logger = logging.getLogger("ssm_proxy.session")

OPENING_TIMEOUT = 20.0


class SessionRequest(NamedTuple):
    """What StartSession is asked for."""

    target: str
    document_name: str | None = None
    """None: the account's default document, a shell."""
    parameters: Mapping[str, Sequence[str]] = MappingProxyType({})
    reason: str | None = None


class SessionConnector:
    """Starts the session at the first connection or before, resumes it at every later one.

    Args:
        control_plane: the service.
        request: what the session is to reach.
        mark: called with the name of each stage as it is reached.
        session: one that was started by somebody else already; from then on it is ours.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        request: SessionRequest,
        mark: Callable[[str], None],
        session: StartedSession | None = None,
    ) -> None:
        self.request = request
        self._control_plane = control_plane
        self._mark = mark
        self._starting = threading.Lock()
        self._early_failure: Exception | None = None
        self._given_up = threading.Event()
        self.start_error: SsmProxyError | None = None
        """What the latest StartSession met, if it failed."""
        self._session = session
        # Still good until a WebSocket came about: a session that was never opened may not be one that can be resumed,
        # and the official client tries again with the same token too (2.6). Tokens of ResumeSession are used once.
        self._first_token: Secret | None = None if session is None else session.token

    @property
    def is_started(self) -> bool:
        """Whether StartSession succeeded."""
        return self._session is not None

    def start_early(self, when_over: Callable[[], None]) -> None:
        """Begin to start the session, in a thread; ``connect`` waits for it, and raises what it met.

        Args:
            when_over: called from the thread at the end, good or bad.
        """
        # A daemon: a name server that does not answer must not keep the process from ending.
        threading.Thread(target=self._start_early, args=(when_over,), name="ssm-proxy start", daemon=True).start()

    def _start_early(self, when_over: Callable[[], None]) -> None:
        with self._starting:
            try:
                self._start()
            except Exception as error:  # noqa: BLE001 - the boundary of a thread: ``connect`` raises it again
                self._early_failure = error
        when_over()

    def connect(self) -> Connection:
        """Give an open WebSocket of the session. Blocks.

        Raises:
            SessionEnded: the service says that the session is gone.
            SsmProxyError: as the control plane and the opening say.
        """
        # websocket-client is loaded while the service answers.
        from ssm_proxy.transport.opening import open_websocket

        session = self._started()
        token = self._first_token
        if token is None:
            token = self._resume(session)
        opening = self._control_plane.websocket_opening(session.stream_url)
        websocket = open_websocket(
            opening.url,
            headers=opening.headers,
            ca_bundle=opening.ca_bundle,
            proxy_url=opening.proxy_url,
            timeout=OPENING_TIMEOUT,
        )
        self._first_token = None
        return Connection(websocket=websocket, token=token)

    def _resume(self, session: StartedSession) -> Secret:
        token = self._control_plane.resume_session(session.session_id)
        if token is None:
            raise SessionEnded(
                f"the session to {self.request.target} is over",
                cause="the service does not know it any more: it timed out, or somebody ended it",
                hint="connect again; an idle session ends after the idle timeout of the account's Session Manager "
                "preferences (20 minutes by default), which with ssh ServerAliveInterval in ssh_config prevents",
            )
        return token

    def terminate(self) -> None:
        """End the session, also one whose StartSession is just being answered. Blocks."""
        self._given_up.set()  # whoever is just about to start it comes too late, or stops waiting for its turn
        with self._starting:
            session = self._session
        if session is not None:
            self._control_plane.terminate_session(session.session_id)

    def data_key(self, key_id: str, challenge: str | None) -> DataKey:
        """Get a data key for the session, which was started. Blocks.

        Raises:
            KmsFailed: the target is not known.
            SsmProxyError: as the control plane says.
        """
        if not self.request.target:
            raise KmsFailed(
                "the session is encrypted, and whoever started it did not tell its target",
                cause="the encryption context names the target, and an old AWS CLI leaves it out",
                hint="update the AWS CLI",
            )
        return self._control_plane.generate_data_key(
            session_id=self._started().session_id, target=self.request.target, key_id=key_id, challenge=challenge
        )

    def _started(self) -> StartedSession:
        with self._starting:
            failure, self._early_failure = self._early_failure, None
            if failure is not None:
                raise failure
            return self._start()

    def _start(self) -> StartedSession:
        """Start the session unless there is one. The lock is held."""
        if self._session is None:
            if self._given_up.is_set():
                raise SessionEnded("the session was ended before it had been started")
            self.start_error = None
            try:
                self._session = self._control_plane.start_session(**self.request._asdict(), given_up=self._given_up)
            except SsmProxyError as error:
                self.start_error = error
                raise
            self._first_token = self._session.token
            logger.info("session %s to %s", self._session.session_id, self.request.target)
            self._mark("StartSession answered")
        return self._session
