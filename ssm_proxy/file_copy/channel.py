"""What paramiko's channels are used for: to move SFTP's bytes, and to run commands. The door for its exceptions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ssm_proxy.errors import CopyError, SsmProxyError, TransportClosed, TransportTimeout
from ssm_proxy.sftp.connection import NO_SFTP_HINT, SftpConnection, SftpStatus

if TYPE_CHECKING:
    import paramiko

STEP = 0.25
"""Seconds after which whoever waits looks whether it is still to wait."""
OPENING_TIMEOUT = 30.0
ANSWER_TIMEOUT = 30.0
"""How long the node's SFTP server may take to begin: sshd starts it by the account's shell."""
COMMAND_TIMEOUT = 300.0
"""How long a command on the node may say nothing: it reads some MiB from a disk before each line."""
ENDS_WITHIN = 0.2
READ_BYTES = 256 * 1024
WINDOW_BYTES = 4 * 1024 * 1024
PACKET_BYTES = 128 * 1024
"""What the node may send in one SSH packet: the larger, the less work for each byte."""

_T = TypeVar("_T")


class LinkLost(Exception):
    """The SSH connection is of no use any more. Met by the link's thread.

    Args:
        error: why, as a person would be told.
    """

    def __init__(self, error: SsmProxyError) -> None:
        super().__init__(error.message)
        self.error = error


@contextlib.contextmanager
def lost_if_it_fails(transport: paramiko.Transport) -> Iterator[None]:
    """Turn whatever ends an SSH connection into `LinkLost`."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise LinkLost(_why(transport, error)) from error


def has_ended(transport: paramiko.Transport) -> bool:
    """Whether a connection is over, seen from a channel that has ended: it tells its channels first."""
    if transport.is_active():
        transport.join(ENDS_WITHIN)
    return not transport.is_active()


def lost(transport: paramiko.Transport) -> LinkLost:
    """Give the exception for a connection that has ended without one."""
    return LinkLost(_why(transport, None))


def _why(transport: paramiko.Transport, error: Exception | None) -> SsmProxyError:
    deeper = transport.get_exception() or error
    if isinstance(deeper, SsmProxyError):
        return deeper
    return TransportClosed("the SSH connection was lost", cause=str(deeper) if deeper and str(deeper) else None)


def open_sftp(transport: paramiko.Transport) -> tuple[paramiko.Channel, SftpConnection]:
    """Start SFTP on a connection. Blocks.

    Raises:
        LinkLost: it cannot be started.
        SsmProxyError: the server has no SFTP, or does not begin.
    """
    import paramiko

    with lost_if_it_fails(transport):
        try:
            channel = transport.open_session(
                window_size=WINDOW_BYTES, max_packet_size=PACKET_BYTES, timeout=OPENING_TIMEOUT
            )
        except paramiko.ChannelException as error:
            raise CopyError(
                "the node's sshd does not open a channel for SFTP",
                cause=_why_no_channel(error),
                hint="a copy needs two or three on each connection: set MaxSessions in the node's sshd_config to 3 or "
                "more (10 is the default); scp needs one",
            ) from error
        channel.settimeout(STEP)
        try:
            channel.invoke_subsystem("sftp")
        except paramiko.SSHException as error:
            if has_ended(transport):
                raise
            raise CopyError(
                "the node's sshd has no SFTP", cause="it refused the subsystem", hint=NO_SFTP_HINT
            ) from error
    sftp = SftpConnection()
    began = time.monotonic()
    while not sftp.is_open:
        if (waited := time.monotonic() - began) > ANSWER_TIMEOUT:
            raise _does_not_answer(
                f"it was started, and said nothing for {waited:.0f} s",
                "a start-up file of its account's shell may take long, or wait for input; see what these do: "
                "ssh USER@HOST true; sftp USER@HOST",
            )
        try:
            move(transport, channel, sftp)
        except LinkLost as error:
            if has_ended(transport):
                raise
            raise CopyError("the node's SFTP server ended before it said a word", hint=NO_SFTP_HINT) from error
    sftp.start(sftp.learn_limits(), _no_matter)  # until the answer comes, the draft's own limits are good
    return channel, sftp


def _why_no_channel(error: paramiko.ChannelException) -> str:
    """Say why a channel was refused: OpenSSH says of one beyond its limit that the connecting failed."""
    import paramiko

    if error.code == paramiko.common.OPEN_FAILED_CONNECT_FAILED:
        return "most likely MaxSessions allows no more on one connection"
    return f"it says: {error.text}"


def _does_not_answer(cause: str, hint: str) -> TransportTimeout:
    return TransportTimeout("the node's SFTP server does not answer", cause=cause, hint=hint)


def _no_matter(error: BaseException | None) -> None:
    """Stand in where the answer is not needed."""


def move(transport: paramiko.Transport, channel: paramiko.Channel, sftp: SftpConnection) -> bool:
    """Send what is to be sent, wait for something to come for `STEP` at most, and handle it; give whether it did.

    Raises:
        LinkLost: the connection has ended.
        MalformedMessage: what came is no SFTP.
    """
    data = exchange(transport, channel, sftp, _nobody_asks)
    sftp.receive(data)
    return bool(data)


def exchange(
    transport: paramiko.Transport, channel: paramiko.Channel, sftp: SftpConnection, went_on: Callable[[], None]
) -> bytes:
    """Send what is to be sent, wait for something to come for `STEP` at most; give it.

    To send blocks for as long as the session takes nothing.

    Args:
        transport: has the channel.
        channel: of SFTP.
        sftp: what is sent.
        went_on: called when some of it has been taken.

    Raises:
        LinkLost: the connection has ended.
    """
    with lost_if_it_fails(transport):
        while sftp.has_data_to_send:
            _send(transport, channel, sftp.data_to_send(), went_on)
        try:
            data = channel.recv(READ_BYTES)
        except TimeoutError:
            return b""
    if not data:
        raise lost(transport)
    return data


def _nobody_asks() -> None:
    """Stand in where nobody asks how a transfer goes on."""


def _send(
    transport: paramiko.Transport, channel: paramiko.Channel, data: bytes, went_on: Callable[[], None] = _nobody_asks
) -> None:
    """Send all. What is asked for never fills the node's window for long, as it handles all that comes."""
    until = time.monotonic() + COMMAND_TIMEOUT
    with memoryview(data) as view:
        sent = 0
        while sent < len(view):
            try:
                count = channel.send(bytes(view[sent : sent + PACKET_BYTES]))
            except TimeoutError:
                if time.monotonic() > until or not transport.is_active():
                    raise
                continue
            if not count:
                raise EOFError
            sent += count
            went_on()
            until = time.monotonic() + COMMAND_TIMEOUT


def run_to_end(
    transport: paramiko.Transport,
    channel: paramiko.Channel,
    sftp: SftpConnection,
    coroutines: Sequence[Coroutine[Any, Any, _T]],
    *,
    is_wanted: Callable[[], bool],
) -> list[_T | SftpStatus]:
    """Run coroutines at once on a connection that nobody else uses, and give what each gave, or the server's refusal.

    Raises:
        LinkLost: the connection has ended, or it is not wanted any more.
        Exception: any other that one of them raised.
    """
    results: dict[int, _T | SftpStatus] = {}
    ends: list[BaseException | None] = []

    async def keep(index: int, coroutine: Coroutine[Any, Any, _T]) -> None:
        try:
            results[index] = await coroutine
        except SftpStatus as error:
            results[index] = error

    for index, coroutine in enumerate(coroutines):
        sftp.start(keep(index, coroutine), ends.append)
    heard = time.monotonic()
    while len(ends) < len(coroutines):
        if move(transport, channel, sftp):
            heard = time.monotonic()
        elif not is_wanted():
            raise LinkLost(TransportClosed("the copy has ended"))
        elif (waited := time.monotonic() - heard) > COMMAND_TIMEOUT:
            raise LinkLost(
                _does_not_answer(
                    f"it has said nothing for {waited:.0f} s",
                    "a file system of the node may answer nothing, as one of the network whose server is away; see "
                    "whether this comes to its end: ssh USER@HOST ls -l FOLDER",
                )
            )
    for end in ends:
        if end is not None:
            raise end
    return [results[index] for index in range(len(coroutines))]


class NodeShell:
    """Runs commands on the node over an SSH connection.

    Args:
        transport: the connection.
        is_wanted: asked while waiting.
    """

    def __init__(self, transport: paramiko.Transport, is_wanted: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_wanted = is_wanted
        self._has_worked = False
        self.refusal: str | None = None
        """See ``checksums.Shell``."""

    def run(self, command: str, data: bytes) -> tuple[int, bytes] | None:
        """See ``checksums.Shell``.

        Raises:
            LinkLost: the connection has ended, or its result is not wanted any more.
        """
        import paramiko

        self.refusal = None
        with lost_if_it_fails(self._transport):
            try:
                channel = self._transport.open_session(timeout=OPENING_TIMEOUT)
            except paramiko.ChannelException as error:
                self.refusal = f"the node's sshd opens no further channel for a command ({_why_no_channel(error)})"
                return None
            with contextlib.closing(channel):
                channel.settimeout(STEP)
                try:
                    channel.exec_command(command)
                except paramiko.SSHException:
                    if has_ended(self._transport):
                        raise
                    return None  # refused
                try:
                    _send(self._transport, channel, data)
                    channel.shutdown_write()
                except (OSError, EOFError):
                    if has_ended(self._transport):
                        raise
                    # It has ended before it read all: its status tells why.
                return self._result(channel)

    def _result(self, channel: paramiko.Channel) -> tuple[int, bytes] | None:
        output = bytearray()
        until = time.monotonic() + COMMAND_TIMEOUT
        while True:
            try:
                piece = channel.recv(READ_BYTES)
            except TimeoutError:
                if not self._is_wanted():
                    raise LinkLost(TransportClosed("the copy has ended")) from None
                if time.monotonic() > until:
                    self._took_too_long()
                    return None
                while channel.recv_stderr_ready():
                    channel.recv_stderr(READ_BYTES)
                continue
            if not piece:
                break
            output += piece
            until = time.monotonic() + COMMAND_TIMEOUT
        if not channel.status_event.wait(OPENING_TIMEOUT):
            self._took_too_long()
            return None
        if channel.exit_status < 0 and has_ended(self._transport):
            raise lost(self._transport)
        self._has_worked = self._has_worked or channel.exit_status == 0
        return channel.exit_status, bytes(output)

    def _took_too_long(self) -> None:
        """Judge a command that says nothing: where commands have worked before it is the connection.

        Raises:
            LinkLost: they have.
        """
        if self._has_worked:
            raise LinkLost(TransportTimeout("a command on the node does not come to its end"))
