"""Commands and SFTP on the node by paramiko's channels: what ends early, what is refused, what is lost."""

from __future__ import annotations

import re
import threading

import paramiko
import pytest

from ssm_proxy.errors import SsmProxyError, TransportClosed, TransportTimeout
from ssm_proxy.file_copy import channel as channel_module
from ssm_proxy.file_copy.channel import LinkLost, NodeShell, open_sftp, run_to_end
from ssm_proxy.sftp.connection import SftpConnection


class FakeChannel:
    """As much of a channel as a command needs.

    Args:
        said: what the command says, piece by piece; None for a while in which it says nothing.
        status: its exit status.
        send_error: what sending raises; None if all is taken.
        exec_error: what starting raises.
    """

    def __init__(
        self,
        said: list[bytes | None],
        *,
        status: int = 0,
        send_error: Exception | None = None,
        exec_error: Exception | None = None,
        takes: int = 1000,
    ) -> None:
        self.said = said
        self.exit_status = status
        self.send_error = send_error
        self.exec_error = exec_error
        self.takes = takes
        self.sent = b""
        self.is_closed = False
        self.has_ended_input = False
        self.status_event = threading.Event()
        self.status_event.set()

    def settimeout(self, seconds: float) -> None:
        pass

    def exec_command(self, command: str) -> None:
        if self.exec_error is not None:
            raise self.exec_error

    def send(self, data: bytes) -> int:
        if self.send_error is not None:
            raise self.send_error
        self.sent += data[: self.takes]
        return len(data[: self.takes])

    def shutdown_write(self) -> None:
        self.has_ended_input = True

    def recv(self, size: int) -> bytes:
        piece = self.said.pop(0) if self.said else b""
        if piece is None:
            raise TimeoutError
        return piece

    def recv_stderr_ready(self) -> bool:
        return False

    def close(self) -> None:
        self.is_closed = True


class FakeTransport:
    """What has ended tells its channels before it says so: it is seen by ``join``."""

    def __init__(
        self,
        channel: FakeChannel,
        *,
        is_active: bool = True,
        is_ending: bool = False,
        error: Exception | None = None,
    ) -> None:
        self.channel = channel
        self._is_active = is_active
        self._is_ending = is_ending
        self.error = error

    def open_session(self, timeout: float, **_: int) -> FakeChannel:
        if self.error is not None:
            raise self.error
        return self.channel

    def is_active(self) -> bool:
        return self._is_active

    def join(self, timeout: float) -> None:
        assert 0 < timeout < 1
        self._is_active = self._is_active and not self._is_ending

    def get_exception(self) -> Exception | None:
        return None


def run(transport: FakeTransport, *, is_wanted: bool = True) -> tuple[int, bytes] | None:
    shell = NodeShell(transport, lambda: is_wanted)  # type: ignore[arg-type]
    return shell.run("command", b"input" * 1000)


def test_a_command_gets_its_input_and_gives_its_output() -> None:
    channel = FakeChannel([b"one", None, b"two"], status=3)
    assert run(FakeTransport(channel)) == (3, b"onetwo")
    assert channel.sent == b"input" * 1000
    assert channel.has_ended_input
    assert channel.is_closed


@pytest.mark.parametrize("error", [OSError("Socket is closed"), EOFError()])
def test_a_command_that_ends_before_it_has_read_all_is_no_lost_connection(error: Exception) -> None:
    said = [b"This account is currently not available.\n"]
    assert run(FakeTransport(FakeChannel([*said], status=1, send_error=error))) == (1, said[0])


def test_a_connection_that_ends_meanwhile_is_lost() -> None:
    channel = FakeChannel([], send_error=OSError("Socket is closed"))
    with pytest.raises(LinkLost) as lost:
        run(FakeTransport(channel, is_active=False))
    assert isinstance(lost.value.error, TransportClosed)
    with pytest.raises(LinkLost):
        run(FakeTransport(FakeChannel([b""], status=-1), is_active=False))
    for channel in (FakeChannel([b""], status=-1), FakeChannel([], exec_error=paramiko.SSHException("no"))):
        with pytest.raises(LinkLost):
            run(FakeTransport(channel, is_ending=True))


def test_a_command_that_hangs_is_a_lost_connection_only_where_one_has_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "COMMAND_TIMEOUT", 0.0)
    hangs = FakeTransport(FakeChannel([None]))
    shell = NodeShell(hangs, lambda: True)  # type: ignore[arg-type]
    assert shell.run("command", b"") is None
    hangs.channel = FakeChannel([b"works"])
    assert shell.run("command", b"") == (0, b"works")
    hangs.channel = FakeChannel([None])
    with pytest.raises(LinkLost) as lost:
        shell.run("command", b"")
    assert isinstance(lost.value.error, TransportTimeout)


def test_what_the_node_refuses_is_no_error() -> None:
    assert run(FakeTransport(FakeChannel([]), error=paramiko.ChannelException(1, "no"))) is None
    assert run(FakeTransport(FakeChannel([], exec_error=paramiko.SSHException("no")))) is None
    with pytest.raises(LinkLost):
        run(FakeTransport(FakeChannel([], exec_error=paramiko.SSHException("no")), is_active=False))


def test_a_channel_that_is_refused_is_told_apart_from_a_node_without_a_shell() -> None:
    transport = FakeTransport(FakeChannel([b"works"]), error=paramiko.ChannelException(2, "Connect failed"))
    shell = NodeShell(transport, lambda: True)  # type: ignore[arg-type]
    assert shell.run("command", b"") is None
    assert shell.refusal is not None
    assert shell.refusal.startswith("the node's sshd opens no further channel for a command (")
    assert "MaxSessions" in shell.refusal
    transport.error = paramiko.ChannelException(1, "Administratively prohibited")
    assert shell.run("command", b"") is None
    assert shell.refusal.endswith("(it says: Administratively prohibited)")
    transport.error = None
    assert shell.run("command", b"") == (0, b"works")
    assert shell.refusal is None


def test_a_result_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    with pytest.raises(LinkLost) as lost:
        run(FakeTransport(FakeChannel([None])), is_wanted=False)
    assert isinstance(lost.value.error, SsmProxyError)


def test_a_channel_that_does_not_open_in_time_is_no_sshd_without_sftp() -> None:
    transport = FakeTransport(FakeChannel([]), error=paramiko.SSHException("Timeout opening channel."))
    with pytest.raises(LinkLost) as lost:
        open_sftp(transport)  # type: ignore[arg-type]
    assert lost.value.error.message == "the SSH connection was lost"
    assert lost.value.error.cause == "Timeout opening channel."


async def nothing_comes(sftp: SftpConnection) -> bytes:
    return await sftp.real_path(b".")


def answered() -> SftpConnection:
    """Give a client to which a server has said that it is there."""
    sftp = SftpConnection()
    sftp.data_to_send()
    sftp.receive(b"\0\0\0\5\2\0\0\0\3")
    return sftp


def wait_for_nothing(*, is_wanted: bool) -> SsmProxyError:
    sftp, channel = answered(), FakeChannel([None] * 3)
    transport = FakeTransport(channel)
    with pytest.raises(LinkLost) as lost:
        run_to_end(transport, channel, sftp, [nothing_comes(sftp)], is_wanted=lambda: is_wanted)  # type: ignore[arg-type]
    sftp.close()
    return lost.value.error


def test_sftp_that_says_nothing_is_told_with_what_may_be_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "COMMAND_TIMEOUT", -1.0)
    error = wait_for_nothing(is_wanted=True)
    assert isinstance(error, TransportTimeout)
    assert error.message == "the node's SFTP server does not answer"
    assert re.fullmatch(r"it has said nothing for \d+ s", error.cause or "")
    assert "file system" in (error.hint or "")


def test_sftp_whose_answer_is_not_wanted_any_more_is_not_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "COMMAND_TIMEOUT", -1.0)
    error = wait_for_nothing(is_wanted=False)
    assert isinstance(error, TransportClosed)
    assert error.message == "the copy has ended"
