"""Layer 5: one tunnel to one port of a managed node, and what its end means."""

from __future__ import annotations

from collections.abc import Callable

from ssm_proxy.channel.data_channel import DataChannel
from ssm_proxy.connector import SessionConnector
from ssm_proxy.ends import NOT_SENT_AGAIN, output_missing
from ssm_proxy.errors import ChannelClosed, RemotePortRefused
from ssm_proxy.session import Session
from ssm_proxy.sessions.port import check_stream_session
from ssm_proxy.transport.bridge import BridgeOutcome
from ssm_proxy.transport.endpoints import InputEnd, OutputEnd
from ssm_proxy.transport.pipes import QUIET_TIME, Pipes


class Tunnel:
    """A tunnel between two descriptors and a port of a managed node.

    Args:
        connector: knows the session.
        port: the node's port, for texts.
        input_fd: bytes for the node; not closed.
        output_fd: takes the node's bytes; not closed.
        notify: shows a person one line while the tunnel goes on.
        mark: called with the name of each stage as it is reached.
    """

    def __init__(
        self,
        connector: SessionConnector,
        *,
        port: int,
        input_fd: int,
        output_fd: int,
        notify: Callable[[str], None],
        mark: Callable[[str], None],
    ) -> None:
        self._target = connector.request.target
        self._port = port

        def make_pipes(channel: DataChannel) -> Pipes:
            self.pipes = Pipes(channel, source=InputEnd(input_fd), sink=OutputEnd(output_fd), notify=notify, mark=mark)
            return self.pipes

        self._session = Session(connector, make_pipes, check_session=check_stream_session, notify=notify, mark=mark)

    def stop(self, signal_number: int) -> None:
        """End the tunnel soon. May be called from a signal handler."""
        self._session.stop(signal_number)

    def run(self) -> BridgeOutcome:
        """Carry bytes until the tunnel ends.

        Raises:
            SsmProxyError: why it could not begin, or did not end as it should.
        """
        outcome = self._session.run()
        check_end(outcome, self.pipes, target=self._target, port=self._port)
        return outcome


def check_end(outcome: BridgeOutcome, pipes: Pipes, *, target: str, port: int | str) -> None:
    """Raise an error for an end that a person should hear of.

    Raises:
        RemotePortRefused: nothing ever came from the port.
        ChannelClosed: the service ended the session and said why.
        SessionEnded: some of the output is missing.
    """
    is_missing = outcome.output_is_missing or (pipes.fell_quiet and pipes.output_is_missing)
    if is_missing and not outcome.closed_reason:
        raise output_missing(target, "" if outcome.output_is_missing else NOT_SENT_AGAIN)
    if pipes.fell_quiet and not pipes.output_bytes and not pipes.input_bytes:
        raise RemotePortRefused(
            f"nothing came from port {port} of {target}",
            cause=f"neither output within {QUIET_TIME:.0f} seconds nor any input",
            hint="check that sshd runs there and listens on that port; an agent needs a minute to report that it "
            "does not",
        )
    reason = outcome.closed_reason
    if reason is not None and not is_missing and not pipes.output_bytes and not (pipes.input_ended and not reason):
        raise RemotePortRefused(
            f"port {port} of {target} did not answer",
            cause=reason or "the agent ended the session before the port had sent anything",
            hint="check that sshd runs there and listens on that port; /var/log/amazon/ssm/errors.log on the node "
            "may say more",
        )
    if reason:
        raise ChannelClosed(
            f"the service ended the session to {target}",
            cause=reason,
            hint="connect again; ServerAliveInterval in ssh_config keeps an idle session from timing out",
        )
