"""A server for measurements of forwarded ports, as a process of its own: ``python peer.py`` prints its port.

The first line of a connection says what happens. ``upload N``: N bytes are read, then ``done`` is answered.
``download N``: N bytes are sent. Anything else is taken for an HTTP request and answered with two bytes. Then the
connection is closed.
"""

from __future__ import annotations

import asyncio

_READ_BYTES = 1024 * 1024
_PIECE = bytes(256 * 1024)
_ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        line = (await reader.readline()).split()
        if line[:1] == [b"upload"]:
            left = int(line[1])
            while left and (data := await reader.read(_READ_BYTES)):
                left -= len(data)
            writer.write(b"done")
        elif line[:1] == [b"download"]:
            left = int(line[1])
            while left:
                piece = _PIECE[:left]
                writer.write(piece)
                left -= len(piece)
                await writer.drain()
        else:
            while (await reader.readline()).strip():
                pass
            writer.write(_ANSWER)
        await writer.drain()
    except (OSError, ValueError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_READ_BYTES, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
