"""The parts of the benchmark that could make a figure wrong without anybody noticing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.pages import fill
from bench.processes import cpu_seconds
from bench.rows import BenchError, Row, Target, percentile, table

SHAPED_LINK = Path(__file__).resolve().parents[2] / "bench" / "shaped_link.py"


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(bound=10), True),
        (Target(bound=9.9), False),
        (Target(bound=10, at_least=True), True),
        (Target(bound=10.1, at_least=True), False),
        (Target(of="added", bound=2), True),
        (Target(of="added", bound=1.9), False),
        (Target(of="ratio", bound=1.25, at_least=True), True),
        (Target(of="ratio", bound=1.3, at_least=True), False),
        (None, None),
    ],
)
def test_a_target_is_met_or_not(target: Target | None, met: bool | None) -> None:
    row = Row(what="x", tunnel=10, plain=8, unit="s", target=target)
    assert row.is_met is met
    assert row.as_json()["met"] is met
    last_cell = table([row]).rsplit("|", 2)[1].strip()
    assert last_cell.partition(",")[0] == {True: "yes", False: "**no**", None: ""}[met]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (100, 198, 200)
    assert percentile([3.0], 99) == percentile([3.0], 0) == 3


def test_a_page_keeps_what_stands_round_its_table() -> None:
    page = "before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n"
    filled = "before\n<!-- bench -->\nnew\n<!-- /bench -->\nafter\n"
    assert fill(page, {"bench": "new"}) == filled
    assert fill(filled, {"bench": "new"}) == filled


@pytest.mark.parametrize(
    "page", ["", "<!-- bench -->\n", "<!-- /bench -->\n<!-- bench -->\n", "<!-- bench -->\n<!-- /bench -->\n" * 2]
)
def test_a_page_without_its_place_is_not_touched(page: str) -> None:
    with pytest.raises(BenchError):
        fill(page, {"bench": "new"})


def test_the_processor_time_of_another_process_is_its_own() -> None:
    program = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(time.process_time(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        its_own = float(process.stdout.readline())
        measured = cpu_seconds(process.pid)
        process.communicate(b"\n", timeout=20)
    assert its_own <= measured < its_own + 0.1


# --- the shaped link ------------------------------------------------------------------------------------------------


@contextmanager
def shaped_link(bandwidth: int, delay_ms: int, queue_bytes: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of one connection through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        arguments = [listener.getsockname()[1], bandwidth, delay_ms, queue_bytes]
        with subprocess.Popen(
            [sys.executable, SHAPED_LINK, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), 20) as client:
                    server, _ = listener.accept()
                    with server:
                        server.settimeout(20)
                        yield client, server
            finally:
                process.kill()


def read_to_end(end: socket.socket) -> bytes:
    return b"".join(iter(lambda: end.recv(65536), b""))


def test_the_shaped_link_delays_each_way() -> None:
    with shaped_link(1_000_000, 100, 1_000_000) as (client, server):
        began = time.monotonic()
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        there = time.monotonic()
        server.sendall(b"y")
        assert client.recv(1) == b"y"
        assert there - began >= 0.1
        assert time.monotonic() - there >= 0.1


def test_the_shaped_link_keeps_its_rate_its_bytes_and_their_end() -> None:
    data = bytes(range(256)) * 2000
    with shaped_link(1_000_000, 0, 1_000_000) as (client, server):
        began = time.monotonic()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(server) == data
        assert time.monotonic() - began >= len(data) / 1_000_000
        server.sendall(b"the other way is still open")
        server.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b"the other way is still open"


def test_the_queue_of_the_shaped_link_is_bounded() -> None:
    with shaped_link(10_000, 0, 10_000) as (client, _server):
        client.settimeout(1.0)
        stopped = threading.Event()

        def send() -> None:
            try:
                client.sendall(bytes(64 * 1024 * 1024))
            except TimeoutError:
                stopped.set()

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(20)
        assert stopped.is_set()
