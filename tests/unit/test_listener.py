"""Where local programs connect: real sockets on loopback."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ssm_proxy.errors import PortError
from ssm_proxy.transport.listener import OutOfDescriptors, bind_port, bind_unix_socket

HAS_IPV6 = socket.has_dualstack_ipv6() and os.path.exists("/proc/net/if_inet6")


class TestPorts:
    def test_nobody_can_connect_before_it_listens(self) -> None:
        with closing(bind_port("127.0.0.1", 0)) as listener:
            assert (listener.address, listener.name) == ("127.0.0.1", f"127.0.0.1:{listener.port}")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", listener.port), 1)
            listener.listen()
            assert listener.accept() is None
            with socket.create_connection(("127.0.0.1", listener.port), 1) as ours:
                theirs = listener.accept()
                assert theirs is not None
                with theirs:
                    assert not theirs.getblocking()
                    assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert theirs.getpeername() == ours.getsockname()

    def test_a_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortError) as caught:
            bind_port("127.0.0.1", other.getsockname()[1])
        assert caught.value.cause == "another program listens there"

    def test_two_that_have_bound_the_same_port(self) -> None:
        with closing(bind_port("127.0.0.1", 0)) as first, closing(bind_port("127.0.0.1", first.port)) as second:
            first.listen()
            with pytest.raises(PortError):
                second.listen()

    def test_the_port_of_a_connection_in_time_wait_can_be_bound_again(self) -> None:
        with closing(bind_port("127.0.0.1", 0)) as listener:
            port = listener.port
            listener.listen()
            with socket.create_connection(("127.0.0.1", port), 1) as ours:
                theirs = listener.accept()
                assert theirs is not None
                theirs.close()  # the first one to close is the one that waits
                assert ours.recv(1) == b""
        bind_port("127.0.0.1", port).close()

    def test_an_address_of_another_machine(self) -> None:
        with pytest.raises(PortError) as caught:
            bind_port("192.0.2.1", 0)
        assert caught.value.cause == "this machine has no such address"

    def test_a_name_that_there_is_not(self) -> None:
        with pytest.raises(PortError) as caught:
            bind_port("no-such-name.invalid", 0)
        assert "cannot be looked up" in (caught.value.cause or "")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may bind every port")
    def test_a_privileged_port(self) -> None:
        with pytest.raises(PortError) as caught:
            bind_port("127.0.0.1", 1)
        assert "administrator" in (caught.value.cause or "")

    @pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
    def test_ipv6(self) -> None:
        with closing(bind_port("::1", 0)) as listener:
            assert listener.name == f"[::1]:{listener.port}"
            listener.listen()
            socket.create_connection(("::1", listener.port), 1).close()

    def test_all_interfaces(self) -> None:
        with closing(bind_port("*", 0)) as listener:
            assert listener.name == f"*:{listener.port}"
            listener.listen()
            socket.create_connection(("127.0.0.1", listener.port), 1).close()
            if HAS_IPV6:
                socket.create_connection(("::1", listener.port), 1).close()

    def test_without_a_descriptor_a_connection_waits(self) -> None:
        with closing(bind_port("127.0.0.1", 0)) as listener:
            listener.listen()
            with socket.create_connection(("127.0.0.1", listener.port), 1):
                with no_descriptors(), pytest.raises(OutOfDescriptors):
                    listener.accept()
                theirs = listener.accept()
                assert theirs is not None
                theirs.close()

    def test_it_can_be_closed_twice(self) -> None:
        listener = bind_port("127.0.0.1", 0)
        listener.close()
        listener.close()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestUnixSockets:
    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)  # the whole path may be too long
        return "./s"

    def test_it_is_for_its_owner_and_goes_with_us(self, path: str) -> None:
        with closing(bind_unix_socket(path)) as listener:
            assert os.stat(path).st_mode & 0o777 == 0o600
            assert (listener.name, listener.port, listener.address) == (path, 0, "")
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(path)
                theirs = listener.accept()
                assert theirs is not None
                theirs.close()
        assert not os.path.exists(path)

    def test_one_that_was_left_behind_is_replaced(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
        with closing(bind_unix_socket(path)), socket.socket(socket.AF_UNIX) as ours:
            ours.connect(path)

    def test_a_live_one_is_left_alone(self, path: str) -> None:
        with closing(bind_unix_socket(path)):
            with pytest.raises(PortError) as caught:
                bind_unix_socket(path)
            assert caught.value.cause == "another program listens there"
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(path)

    def test_one_whose_queue_is_full_is_alive(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen(0)
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            try:
                for each in waiting:
                    each.setblocking(False)
                    each.connect_ex(path)
                with pytest.raises(PortError):
                    bind_unix_socket(path)
            finally:
                for each in waiting:
                    each.close()
        assert os.path.exists(path)

    def test_a_file_is_left_alone(self, path: str) -> None:
        Path(path).write_text("precious")
        with pytest.raises(PortError) as caught:
            bind_unix_socket(path)
        assert caught.value.cause == "it exists and is no socket"
        assert Path(path).read_text() == "precious"

    def test_what_somebody_else_has_put_there_since_stays(self, path: str) -> None:
        with closing(bind_unix_socket(path)):
            os.unlink(path)
            Path(path).write_text("precious")
        assert Path(path).read_text() == "precious"

    @pytest.mark.parametrize(
        ("bad", "said"), [("./none/s", "folder does not exist"), ("./" + "x" * 200, "too long")], ids=["folder", "long"]
    )
    def test_paths_that_cannot_be(self, path: str, bad: str, said: str) -> None:
        with pytest.raises(PortError) as caught:
            bind_unix_socket(bad)
        assert said in (caught.value.cause or "")
