"""A TCP forwarder with rate, delay and queue of a slow link: ``shaped_link.py PORT BANDWIDTH DELAY_MS QUEUE_BYTES``.

For plain ssh, the counterpart of the emulator's faults of the same names. Prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from dataclasses import dataclass

_PIECE_BYTES = 1448
"""What a TCP segment carries: nothing has to wait for more than that in front of it to be whole."""


@dataclass(frozen=True)
class Shape:
    bandwidth: int
    """Bytes per second, each way."""
    delay_s: float
    """Each way."""
    queue_bytes: int
    """What waits for the link before it takes no more, which stops the sender's TCP."""


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shape: Shape) -> None:
    """Carry one direction to its end."""
    loop = asyncio.get_running_loop()
    under_way: deque[tuple[float, bytes]] = deque()
    is_fed = asyncio.Event()

    async def deliver() -> None:
        while True:
            while not under_way:
                is_fed.clear()
                await is_fed.wait()
            due, piece = under_way.popleft()
            await asyncio.sleep(due - loop.time())
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    busy_until = 0.0
    with contextlib.suppress(ConnectionError):
        piece = b"-"
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            busy_until = max(busy_until, loop.time()) + len(piece) / shape.bandwidth
            under_way.append((busy_until + shape.delay_s, piece))
            is_fed.set()
            await asyncio.sleep(busy_until - loop.time() - shape.queue_bytes / shape.bandwidth)
        await delivery
    delivery.cancel()


async def serve(port: int, shape: Shape) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
            for each in (writer, to_server):
                each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(carry(reader, to_server, shape), carry(from_server, writer, shape))
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    port, bandwidth, delay_ms, queue_bytes = map(int, sys.argv[1:])
    asyncio.run(serve(port, Shape(bandwidth, delay_ms / 1000, queue_bytes)))


if __name__ == "__main__":
    main()
