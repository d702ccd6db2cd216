"""smux once more: its frames, and the end of it that the agent plays, after docs/PROTOCOL.md section 8.8 and without
the package, so that a mistake of the package cannot agree with itself.
"""

from __future__ import annotations

SYN, FIN, PSH, NOP, UPD = range(5)
RECEIVE_BUFFER = 4 * 1024 * 1024

Frame = tuple[int, int, bytes]
"""Command, stream id, data."""


def pack(command: int, stream_id: int, data: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return bytes((version, command)) + size.to_bytes(2, "little") + stream_id.to_bytes(4, "little") + data


def parse(stream: bytes) -> tuple[list[Frame], int, bool]:
    """Cut a stream into whole frames; give them, how many bytes they are, and whether what follows is no frame."""
    frames: list[Frame] = []
    at = 0
    while len(stream) - at >= 8:
        version, command = stream[at], stream[at + 1]
        size = int.from_bytes(stream[at + 2 : at + 4], "little")
        stream_id = int.from_bytes(stream[at + 4 : at + 8], "little")
        is_wrong = version != 1 or command > UPD or (command != PSH and size != (8 if command == UPD else 0))
        if is_wrong:
            return frames, at, True
        if len(stream) - at < 8 + size:
            break
        frames.append((command, stream_id, stream[at + 8 : at + 8 + size]))
        at += 8 + size
    return frames, at, False


class ModelServer:
    """The agent's end. Reads no further while more than its buffer is unread, whichever stream it is of."""

    def __init__(self) -> None:
        self.open: dict[int, bytearray] = {}
        """What is unread of each stream that is open here."""
        self.seen: list[int] = []
        """Ids in the order of their SYN."""
        self.closed_by_client: set[int] = set()
        self.nops = 0
        self.largest_frame = 0
        self.out = bytearray()
        self._in = bytearray()

    def receive(self, data: bytes) -> None:
        self._in += data
        self._read_frames()

    def read(self, stream_id: int, count: int) -> bytes:
        unread = self.open[stream_id]
        data = bytes(unread[:count])
        del unread[:count]
        self._read_frames()
        return data

    def write(self, stream_id: int, data: bytes) -> None:
        for start in range(0, len(data), 32768):
            self.out += pack(PSH, stream_id, data[start : start + 32768])

    def close(self, stream_id: int) -> None:
        del self.open[stream_id]
        self.out += pack(FIN, stream_id)
        self._read_frames()

    @property
    def is_stuck(self) -> bool:
        return sum(map(len, self.open.values())) >= RECEIVE_BUFFER

    def _read_frames(self) -> None:
        while not self.is_stuck:
            frames, _, is_wrong = parse(bytes(self._in[: 8 + 65535]))
            assert not is_wrong or frames, "the client sent what is no frame"
            if not frames:
                return
            for command, stream_id, data in frames:
                if not self.is_stuck:
                    del self._in[: 8 + len(data)]
                    self._take(command, stream_id, data)

    def _take(self, command: int, stream_id: int, data: bytes) -> None:
        if command == SYN:
            assert stream_id % 2, "the ids of clients are odd"
            assert stream_id == self.seen[-1] + 2 if self.seen else stream_id == 3
            self.seen.append(stream_id)
            self.open[stream_id] = bytearray()
        elif command == PSH:
            assert 0 < len(data) <= 32768
            assert stream_id in self.seen, "data before SYN"
            assert stream_id not in self.closed_by_client, "data after FIN"
            self.largest_frame = max(self.largest_frame, len(data))
            if stream_id in self.open:
                self.open[stream_id] += data
        elif command == FIN:
            assert stream_id in self.seen, "FIN before SYN"
            assert stream_id not in self.closed_by_client, "a second FIN"
            self.closed_by_client.add(stream_id)
        else:
            assert (command, stream_id) == (NOP, 0)
            self.nops += 1
