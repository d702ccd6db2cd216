"""`ssm_proxy.connect`: a socket as any other, whose failures cannot be taken for an end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import getpass
import http.client
import io
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import paramiko
import pytest
from forwards import echo, receive_all, receive_exactly, serving
from nodes import (
    EMBEDDED,
    MIB,
    OVER,
    REAL,
    WITHIN,
    BecomeUser,
    Key,
    StartEmulator,
    TimeBegins,
    open_sessions,
    reserved_port,
    wait_until,
)

import ssm_proxy
from ssm_proxy import Connection
from ssm_proxy.api.service import Service
from ssm_proxy.aws.start_budget import StartBudget
from ssm_proxy.emulator import Emulator, Faults, Node
from ssm_proxy.emulator.certificates import make_server_context
from ssm_proxy.transport.socket_stream import SocketStream

pytestmark = pytest.mark.integration
DATA = Random(5).randbytes(3 * MIB)


@pytest.fixture
def service(emulator: Emulator, become_user: BecomeUser) -> Emulator:
    """The shared emulator, with this process as its user. No session may be left open."""
    become_user(emulator)
    return emulator


@pytest.fixture
def own_service(start_emulator: StartEmulator, become_user: BecomeUser) -> Emulator:
    """One that may be given faults."""
    emulator = start_emulator()
    become_user(emulator)
    return emulator


def connect(port: int) -> Connection:
    connection = ssm_proxy.connect(EMBEDDED, port=port)
    connection.settimeout(WITHIN)
    return connection


@contextlib.contextmanager
def connected(serve: Callable[[socket.socket], None] = echo) -> Iterator[Connection]:
    """Connect to a server on the node until the end of the block."""
    with serving(serve) as port, connect(port) as connection:
        yield connection


def exchange(connection: Connection, data: bytes) -> bytes:
    """Send to an echo and receive as much, at once; then say that nothing more will come."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, data)
        received = receive_exactly(connection, len(data))
        sending.result()
    return received


# --- a socket ---------------------------------------------------------------------------------------------------------


def test_it_is_a_socket(service: Emulator) -> None:
    with connected() as connection:
        assert isinstance(connection, socket.socket)
        assert connection.fileno() >= 0
        assert select.select([connection], [connection], [], 0) == ([], [connection], [])
        connection.sendall(b"hello")
        assert select.select([connection], [], [], WITHIN)[0] == [connection]
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        assert poll.poll(0) == [(connection.fileno(), select.POLLIN)]
        assert connection.recv(2, socket.MSG_PEEK) == b"he"
        buffer = bytearray(3)
        assert connection.recv_into(buffer) == 3
        assert bytes(buffer) + connection.recv(100) == b"hello"
        assert connection.sendmsg([b"a", b"b"]) == 2
        assert connection.recvmsg(100)[0] == b"ab"
        assert connection.sendfile(io.BytesIO(b"from a file")) == 11
        assert receive_exactly(connection, 11) == b"from a file"
        with connection.makefile("rwb") as file:
            file.write(b"a line\n")
            file.flush()
            assert file.readline() == b"a line\n"
    assert connection.fileno() == -1
    assert open_sessions(service) == []


def test_timeouts_are_those_of_a_socket(service: Emulator) -> None:
    with connected() as connection:
        connection.settimeout(0.05)
        with pytest.raises(socket.timeout):
            connection.recv(1)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(WITHIN)
        connection.sendall(b"still there")
        assert receive_exactly(connection, 11) == b"still there"


@pytest.mark.parametrize(
    ("faults", "size"),
    [
        (Faults(), 3 * MIB),
        (Faults(drop_after_bytes=1_500_000, agent_away_s=0.05), 3 * MIB),
        (Faults(lose=0.01, reorder=0.01), 400_000),
    ],
    ids=["sound", "cut", "lossy"],
)
def test_megabytes_arrive_both_ways_as_they_are(own_service: Emulator, faults: Faults, size: int) -> None:
    own_service.set_faults(faults)
    with connected() as connection:
        assert exchange(connection, DATA[:size]) == DATA[:size]


def test_what_was_sent_before_closing_arrives(service: Emulator) -> None:
    received: list[bytes] = []
    with serving(lambda each: received.append(receive_all(each))) as port, connect(port) as connection:
        connection.sendall(DATA[:MIB])
    wait_until(lambda: received, "the server has seen the end")
    assert received == [DATA[:MIB]]
    assert open_sessions(service) == []


def test_closing_while_output_flows(service: Emulator) -> None:
    def flood(server: socket.socket) -> None:
        while True:
            server.sendall(bytes(65536))

    with connected(flood) as connection:
        receive_exactly(connection, MIB)
        wait_until(lambda: service.sessions()[-1].output_bytes > 2 * MIB, "much waits")
    assert open_sessions(service) == []


def test_a_server_that_closes_is_a_plain_end(service: Emulator) -> None:
    with connected(lambda server: server.sendall(DATA)) as connection:
        assert receive_all(connection) == DATA
        assert connection.recv(1) == b""
        assert connection.error is None


def test_a_server_that_says_nothing_and_closes_is_a_plain_end(service: Emulator) -> None:
    with connected(lambda server: None) as connection:
        assert connection.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            connection.sendall(DATA)


def test_sending_nothing_more_lets_the_answer_come(service: Emulator) -> None:
    def answer(server: socket.socket) -> None:
        receive_exactly(server, 8)
        server.sendall(DATA)

    with connected(answer) as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == DATA


def test_a_server_that_waits_for_the_end_of_input_is_no_plain_end(
    service: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssm_proxy.transport.socket_stream.QUIET_TIME", 0.3)
    with connected() as connection:
        connection.sendall(b"all there is")
        assert receive_exactly(connection, 12) == b"all there is"  # before the time runs in which more must come
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(ssm_proxy.TransportTimeout, match="did not end the connection"):
            connection.recv(1)


@pytest.mark.timeout(40)
@pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="needs /proc")
def test_closing_wakes_a_thread_that_waits(service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssm_proxy.api.session_thread.CLOSE_TIMEOUT", 60)
    with connected() as connection:
        connection.settimeout(None)
        received: list[bytes] = []
        waiting = threading.Thread(target=lambda: received.append(connection.recv(1)))
        waiting.start()
        wait_until(lambda: is_receiving(waiting), "it waits")
        connection.close()
        connection.close()
        waiting.join(WITHIN)
        assert received == [b""]


def is_receiving(thread: threading.Thread) -> bool:
    """Whether a thread waits in the kernel for a pair of sockets."""
    return "unix_stream" in Path(f"/proc/self/task/{thread.native_id}/wchan").read_text()


def test_a_file_made_of_it_keeps_it_open(service: Emulator) -> None:
    with connected() as connection:
        with connection.makefile("rwb") as file:
            connection.close()
            file.write(b"a line\n")
            file.flush()
            assert file.readline() == b"a line\n"
            assert len(open_sessions(service)) == 1
        assert open_sessions(service) == []


def test_one_that_is_dropped_ends_its_session(service: Emulator) -> None:
    with serving(echo) as port:
        with pytest.warns(ResourceWarning, match="unclosed"):
            drop(connect(port))
        wait_until(lambda: not open_sessions(service), "the session is over")


@pytest.fixture
def lost(own_service: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection with something under way that never arrives; to close it takes for ever."""
    monkeypatch.setattr("ssm_proxy.api.session_thread.CLOSE_TIMEOUT", 3600.0)
    monkeypatch.setattr("ssm_proxy.transport.socket_stream.LEAVE_TIME", 3600.0)
    with serving(echo) as port, connect(port) as connection:
        assert exchange(connection, b"there") == b"there"
        own_service.set_faults(Faults(lose=1.0))
        connection.sendall(b"never arrives")
        yield connection


def test_abort_does_not_wait_for_what_was_sent(lost: Connection, own_service: Emulator) -> None:
    with lost.dup():
        lost.abort()
        assert open_sessions(own_service) == []
        lost.abort()  # harmless


def test_abort_ends_also_what_somebody_waits_for_who_closes_it(lost: Connection, own_service: Emulator) -> None:
    closing = threading.Thread(target=lost.close)
    closing.start()
    wait_until(lambda: lost.fileno() < 0, "it is closed")
    lost.abort()
    closing.join(WITHIN)
    assert not closing.is_alive()
    assert open_sessions(own_service) == []


def drop(connection: Connection) -> None:
    """Forget the only reference."""
    del connection
    gc.collect()


# --- what others make of it -------------------------------------------------------------------------------------------


def test_paramiko_takes_it(service: Emulator, key: Key) -> None:
    sock = ssm_proxy.connect(REAL)
    transport = paramiko.Transport(sock)
    with contextlib.closing(transport):
        transport.connect(username=getpass.getuser(), pkey=paramiko.Ed25519Key.from_private_key_file(str(key.private)))
        with transport.open_session() as channel:
            channel.exec_command("cat")
            channel.sendall(b"through ssh")
            channel.shutdown_write()
            assert channel.makefile().read() == b"through ssh"
    transport.join(WITHIN)
    assert open_sessions(service) == []


def test_paramiko_hands_on_why_the_session_failed(own_service: Emulator, key: Key) -> None:
    with contextlib.closing(paramiko.Transport(ssm_proxy.connect(REAL))) as transport:
        transport.connect(username=getpass.getuser(), pkey=paramiko.Ed25519Key.from_private_key_file(str(key.private)))
        kill_sessions(own_service)
        # Whoever calls it while it notices gets this; who calls it later is told that it is not active.
        wait_until(lambda: not transport.is_active(), "paramiko has noticed")
        assert isinstance(transport.get_exception(), ssm_proxy.SessionEnded)
    transport.join(WITHIN)


def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Give what a server and its clients need."""
    server, authority = make_server_context(tmp_path, "localhost")
    return server, ssl.create_default_context(cafile=str(authority))


def test_tls_wraps_it(service: Emulator, tmp_path: Path) -> None:
    server_context, client_context = tls(tmp_path)

    def serve(plain: socket.socket) -> None:
        with server_context.wrap_socket(plain, server_side=True) as server:
            echo(server)

    with serving(serve) as port:
        with connect(port) as plain, client_context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            wrapped.sendall(DATA[:100_000])
            assert receive_exactly(wrapped, 100_000) == DATA[:100_000]
        assert open_sessions(service) == []  # leaving the outer block waits for that
        wrapped = client_context.wrap_socket(connect(port), server_hostname="localhost")
        wrapped.close()
        wait_until(lambda: not open_sessions(service), "the session ends with the TLS socket alone")


def test_tls_cannot_hide_that_the_session_failed(own_service: Emulator, tmp_path: Path) -> None:
    server_context, client_context = tls(tmp_path)

    def serve(plain: socket.socket) -> None:
        with server_context.wrap_socket(plain, server_side=True) as server:
            echo(server)

    def use(port: int) -> None:
        with connect(port) as plain, client_context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            own_service.set_faults(Faults(refuse_resume="gone"))
            own_service.drop_connections()
            assert wrapped.recv(1) == b""  # Python's default, which looks like an end

    with serving(serve) as port, pytest.raises(ssm_proxy.SessionEnded):
        use(port)


def fail_in_handshake(context: ssl.SSLContext, plain: Connection) -> None:
    context.wrap_socket(plain, server_hostname="localhost")


def raise_other(error: type[Exception]) -> Callable[[ssl.SSLContext, Connection], None]:
    """Make something that notices a refusal, and fails of something else."""

    def use(context: ssl.SSLContext, plain: Connection) -> None:
        with pytest.raises(OSError):  # an end, or a broken pipe
            context.wrap_socket(plain, server_hostname="localhost")
        raise error("what the program makes of it")

    return use


@pytest.mark.parametrize(
    ("use", "raised"),
    [
        (fail_in_handshake, ssm_proxy.RemotePortRefused),
        (raise_other(http.client.RemoteDisconnected), ssm_proxy.RemotePortRefused),
        (raise_other(http.client.BadStatusLine), ssm_proxy.RemotePortRefused),
        (raise_other(EOFError), ssm_proxy.RemotePortRefused),
        (raise_other(ValueError), ValueError),
    ],
    ids=["handshake", "disconnected", "bad status", "end of file", "something else"],
)
def test_what_tls_makes_of_a_refused_port(
    service: Emulator, use: Callable[[ssl.SSLContext, Connection], None], raised: type[Exception]
) -> None:
    with reserved_port() as port, pytest.raises(raised) as caught, connect(port) as plain:
        use(ssl.create_default_context(), plain)
    if raised is ssm_proxy.RemotePortRefused:
        assert caught.value.__context__ is not None, "what the program had seen is still told"
    assert open_sessions(service) == []


def test_what_tls_itself_refuses_is_told(service: Emulator, tmp_path: Path) -> None:
    server_context, _ = tls(tmp_path)

    def serve(plain: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), server_context.wrap_socket(plain, server_side=True):
            pass

    with serving(serve) as port, pytest.raises(ssl.SSLCertVerificationError), connect(port) as connection:
        fail_in_handshake(ssl.create_default_context(), connection)


# --- failures ---------------------------------------------------------------------------------------------------------


def kill_sessions(emulator: Emulator) -> None:
    """End all sessions for good, without a word."""
    emulator.set_faults(Faults(refuse_resume="gone"))
    emulator.drop_connections()


def test_a_session_that_fails_is_no_end(own_service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 400_000  # more than the pair of sockets holds: the rest is handed over after the end
    came: list[int] = []
    take = SocketStream.output

    def counted(self: SocketStream, pieces: Sequence[bytes], now: float) -> None:
        take(self, pieces, now)
        came.append(self.output_bytes)

    def serve(server: socket.socket) -> None:
        server.sendall(DATA[:size])
        server.recv(1)

    monkeypatch.setattr(SocketStream, "output", counted)
    with connected(serve) as connection:
        wait_until(lambda: came and came[-1] == size, "all has come")
        kill_sessions(own_service)
        wait_until(lambda: connection.error is not None, "the session has failed")
        with pytest.raises(ssm_proxy.SessionEnded):
            connection.sendall(bytes(MIB))  # though it has not read what came: that would take nothing more
        assert receive_some(connection) == DATA[:size]
        with pytest.raises(ssm_proxy.SessionEnded, match="is over"):
            connection.recv(1)
        with pytest.raises(ssm_proxy.SessionEnded):
            connection.send(b"x")
        with pytest.raises(ssm_proxy.SessionEnded):
            connection.sendall(b"x")


def receive_some(connection: Connection) -> bytes:
    data = bytearray()
    with contextlib.suppress(ssm_proxy.SsmProxyError):
        while piece := connection.recv(65536):
            data += piece
    return bytes(data)


def test_an_end_with_a_reason_is_an_error(own_service: Emulator) -> None:
    with connected() as connection:
        assert exchange(connection, b"hello") == b"hello"
        own_service.set_faults(Faults(idle_timeout_s=0.2))
        with pytest.raises(ssm_proxy.SessionEnded) as caught:
            connection.recv(1)
        assert "inactivity" in str(caught.value.cause)
        with pytest.raises(ssm_proxy.SessionEnded):
            connection.sendall(b"x")


def test_a_refused_port_shows_when_receiving(service: Emulator) -> None:
    with reserved_port() as port, connect(port) as connection, pytest.raises(ssm_proxy.RemotePortRefused) as caught:
        connection.recv(1)
    assert "connection refused" in str(caught.value.cause)


def test_a_node_that_is_not_connected(start_emulator: StartEmulator, become_user: BecomeUser) -> None:
    become_user(start_emulator(nodes=[Node(node_id=EMBEDDED, is_online=False)]))
    with pytest.raises(ssm_proxy.TargetNotConnected):
        ssm_proxy.connect(EMBEDDED)


def test_the_service_refuses(own_service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    own_service.set_faults(Faults(deny="StartSession"))
    with pytest.raises(ssm_proxy.AccessDenied):
        ssm_proxy.connect(EMBEDDED)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    own_service.set_faults(Faults(throttle_start=-1))
    with pytest.raises(ssm_proxy.Throttled):
        ssm_proxy.connect(EMBEDDED)
    assert own_service.sessions() == []


def test_that_it_waited_for_its_turn_is_told(
    own_service: Emulator, time_begins: TimeBegins, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    wait = StartBudget._wait

    def wait_and_tell(self: StartBudget, *arguments: Any) -> None:
        waits.set()
        wait(self, *arguments)

    monkeypatch.setattr(StartBudget, "_wait", wait_and_tell)
    time_begins(lambda _: waits.is_set())
    own_service.set_faults(Faults(throttle_start=-1))
    calls: list[Callable[[], object]] = [
        lambda: ssm_proxy.connect(EMBEDDED, timeout=0.5),
        lambda: asyncio.run(ssm_proxy.open_connection(EMBEDDED, timeout=0.5)),
    ]
    for call in calls:
        waits.clear()
        with pytest.raises(ssm_proxy.Throttled, match=r"no session to port 22 of .* within 0\.5 s") as caught:
            call()
        assert "StartSession is throttled, and this one was given up before its turn: " in str(caught.value.cause)


def test_a_gateway_that_takes_no_connection_is_told(service: Emulator, time_begins: TimeBegins) -> None:
    time_begins(lambda thread: thread._session is not None and thread._session.trouble)
    with reserved_port() as port, pytest.raises(ssm_proxy.TransportTimeout, match=r"within 0\.5 s") as caught:
        ssm_proxy.connect(EMBEDDED, stream_endpoint_url=f"ws://127.0.0.1:{port}", timeout=0.5)
    assert "refused" in str(caught.value.cause)
    assert open_sessions(service) == []


def test_it_takes_no_longer_than_it_may(own_service: Emulator, time_begins: TimeBegins) -> None:
    time_begins(lambda _: open_sessions(own_service))
    own_service.set_faults(Faults(stall_agent_s=60))
    with pytest.raises(ssm_proxy.TransportTimeout, match=r"no session to port 22 of i-0123456789abcdef0 within 0\.5 s"):
        ssm_proxy.connect(EMBEDDED, timeout=0.5)
    assert open_sessions(own_service) == []


@pytest.mark.parametrize("port", [0, 65536, "22", True])
def test_what_is_no_port(port: int) -> None:
    with pytest.raises(ssm_proxy.UsageError, match="is not a port"):
        ssm_proxy.connect(EMBEDDED, port=port)


# --- several sockets to one session -----------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_descriptor_that_was_given_away_is_not_waited_for(service: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssm_proxy.api.session_thread.CLOSE_TIMEOUT", 600)  # who waits for what goes on, hangs
    with serving(echo) as port:
        with connect(port) as connection:
            taken = socket.socket(fileno=connection.detach())
            connection.close()
        with taken:
            taken.settimeout(WITHIN)
            taken.sendall(b"it goes on")
            assert receive_exactly(taken, 10) == b"it goes on"
    wait_until(lambda: not open_sessions(service), "the session ends with the last of its owners")


def test_a_tls_socket_may_live_longer_than_the_block(service: Emulator, tmp_path: Path) -> None:
    server_context, client_context = tls(tmp_path)

    def serve(plain: socket.socket) -> None:
        with server_context.wrap_socket(plain, server_side=True) as server:
            echo(server)

    with serving(serve) as port:
        with connect(port) as connection:
            wrapped = client_context.wrap_socket(connection, server_hostname="localhost")
        with wrapped:
            wrapped.sendall(b"it goes on")
            assert receive_exactly(wrapped, 10) == b"it goes on"
    wait_until(lambda: not open_sessions(service), "the session ends with it")


def test_duplicates_share_a_session(service: Emulator) -> None:
    with connected() as connection:
        other = connection.dup()
        assert isinstance(other, Connection)
        connection.close()
        other.settimeout(WITHIN)
        assert exchange(other, b"it goes on") == b"it goes on"
        other.close()
        assert open_sessions(service) == []
    with (
        reserved_port() as port,
        connect(port) as connection,
        connection.dup() as other,
        pytest.raises(ssm_proxy.RemotePortRefused),
    ):
        other.recv(1)
    assert open_sessions(service) == []


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_threads_connect_at_once(service: Emulator) -> None:
    def use(port: int) -> bytes:
        with connect(port) as connection:
            return exchange(connection, DATA[:20_000])

    with serving(echo) as port, ThreadPoolExecutor(10) as pool:
        assert set(pool.map(use, [port] * 20)) == {DATA[:20_000]}
    assert open_sessions(service) == []
    wait_until(lambda: not session_threads(), "no thread is left")


def session_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("ssm-proxy session")]


def test_sessions_of_one_service_share_its_clients(service: Emulator) -> None:
    shared = Service()
    with serving(echo) as port, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(shared.dial(EMBEDDED, port)) for _ in range(3)]
        opened = shared.control_plane._open()
        for connection in connections:
            connection.sendall(b"hello")
        assert [receive_exactly(each, 5) for each in connections] == [b"hello"] * 3
        assert shared.control_plane._open() is opened
    assert {session.status for session in service.sessions()} <= set(OVER)
