"""`ssm_proxy.forward`: a local port for as long as a block runs."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from forwards import echo, receive_all, receive_exactly, serving
from nodes import EMBEDDED, MIB, WITHIN, BecomeUser, StartEmulator, open_sessions, reserved_port, wait_until

import ssm_proxy
from ssm_proxy.emulator import Emulator, Faults, Node

pytestmark = pytest.mark.integration
DATA = Random(7).randbytes(MIB)


@pytest.fixture
def service(start_emulator: StartEmulator, become_user: BecomeUser) -> Emulator:
    emulator = start_emulator(nodes=[Node(node_id=EMBEDDED, hosts={"db.internal": "127.0.0.1"})])
    become_user(emulator)
    return emulator


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, WITHIN) as connection, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, data)
        received = receive_exactly(connection, len(data))
        sending.result()
    return received


@pytest.mark.parametrize("host", [None, "db.internal"])
def test_a_port_while_the_block_runs(service: Emulator, host: str | None) -> None:
    with serving(echo) as port:
        with ssm_proxy.forward(EMBEDDED, port, host=host) as address:
            assert address.host == "127.0.0.1"
            with ThreadPoolExecutor(3) as pool:
                assert list(pool.map(exchange, [address] * 3, [DATA] * 3)) == [DATA] * 3
        assert open_sessions(service) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, WITHIN)


def test_the_port_that_was_asked_for(service: Emulator) -> None:
    with (
        serving(echo) as port,
        reserved_port() as wanted,
        ssm_proxy.forward(EMBEDDED, port, local_port=wanted, bind="localhost") as address,
    ):
        assert address == ("127.0.0.1", wanted)


def test_what_was_sent_last_arrives(service: Emulator) -> None:
    received: list[bytes] = []
    with serving(lambda each: received.append(receive_all(each))) as port:
        with ssm_proxy.forward(EMBEDDED, port) as address, socket.create_connection(address, WITHIN) as connection:
            connection.sendall(DATA)
        wait_until(lambda: received, "the server has seen the end")
    assert received == [DATA]


def test_a_connection_that_is_open_at_the_end_is_reset(service: Emulator) -> None:
    with serving(echo) as port, contextlib.ExitStack() as stack:
        with ssm_proxy.forward(EMBEDDED, port) as address:
            connection = stack.enter_context(socket.create_connection(address, WITHIN))
            connection.sendall(b"hello")
            assert receive_exactly(connection, 5) == b"hello"
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_refused_connection_is_reset_and_the_rest_goes_on(service: Emulator) -> None:
    with reserved_port() as refused, ssm_proxy.forward(EMBEDDED, refused) as address:
        with socket.create_connection(address, WITHIN) as connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        with serving(echo, refused):
            assert exchange(address, b"now it is there") == b"now it is there"


def test_a_session_that_fails_is_raised_at_the_end(service: Emulator) -> None:
    def use(port: int, mistake: Exception | None = None) -> None:
        with ssm_proxy.forward(EMBEDDED, port) as address:
            with socket.create_connection(address, WITHIN) as connection:
                connection.sendall(b"hello")
                assert receive_exactly(connection, 5) == b"hello"
                service.set_faults(Faults(refuse_resume="gone"))
                service.drop_connections()
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
            service.set_faults(Faults())
            if mistake is not None:
                raise mistake

    with serving(echo) as port:
        with pytest.raises(ssm_proxy.SessionEnded):
            use(port)
        with pytest.raises(ValueError, match="a mistake"):
            use(port, ValueError("a mistake"))


def test_what_cannot_begin(service: Emulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ssm_proxy.PortError, match="cannot listen"):
        ssm_proxy.forward(EMBEDDED, 80, local_port=taken.getsockname()[1]).__enter__()
    assert service.sessions() == []
    with pytest.raises(ssm_proxy.TargetNotConnected):
        ssm_proxy.forward("i-00000000000000000", 80).__enter__()
    service.set_faults(Faults(stall_agent_s=5))
    with pytest.raises(ssm_proxy.TransportTimeout):
        ssm_proxy.forward(EMBEDDED, 80, timeout=0.3).__enter__()


@pytest.mark.parametrize("local_port", [-1, 65536, 70000, True, "80", None])
def test_what_is_no_local_port(local_port: int) -> None:
    with (
        pytest.raises(ssm_proxy.UsageError, match="is not a port"),
        ssm_proxy.forward(EMBEDDED, 22, local_port=local_port),
    ):
        pass


def test_what_is_no_address() -> None:
    with pytest.raises(ssm_proxy.UsageError, match="is not an address"), ssm_proxy.forward(EMBEDDED, 22, bind=None):  # type: ignore[arg-type]
        pass


def test_what_the_block_failed_by_has_the_reason_of_the_session(service: Emulator) -> None:
    def lose(port: int) -> None:
        with ssm_proxy.forward(EMBEDDED, port) as address, socket.create_connection(address, WITHIN) as connection:
            connection.sendall(b"hello")
            assert receive_exactly(connection, 5) == b"hello"
            service.set_faults(Faults(refuse_resume="gone"))
            service.drop_connections()
            connection.recv(1)

    with serving(echo) as port, pytest.raises(ConnectionResetError) as caught:
        lose(port)
    assert isinstance(caught.value.__cause__, ssm_proxy.SessionEnded)
