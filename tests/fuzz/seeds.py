"""What fuzzing starts from: recorded messages of the official programs, and short lists of operations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fuzz.choices import EDGES
from fuzz.service_targets import STREAM_URL, URLS
from fuzz.websocket_target import upgrade_answer
from fuzz.wire_targets import MEMBERS
from simulation.smux_sketch import FIN, PSH, SYN, UPD, pack

from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message
from ssm_proxy.wire.constants import MessageType, PayloadType

GOLDEN = Path(__file__).parent.parent / "golden"
CORPUS = Path(__file__).parent.parent / "corpus"
_BY_PAYLOAD_TYPE = {
    PayloadType.FLAG: "flag",
    PayloadType.SIZE: "size",
    PayloadType.HANDSHAKE_REQUEST: "handshake_request",
    PayloadType.HANDSHAKE_RESPONSE: "handshake_response",
    PayloadType.HANDSHAKE_COMPLETE: "handshake_complete",
    PayloadType.ENC_CHALLENGE_REQUEST: "challenge",
    PayloadType.ENC_CHALLENGE_RESPONSE: "challenge",
    PayloadType.EXIT_CODE: "exit_code",
}
_BY_MESSAGE_TYPE = {
    MessageType.ACKNOWLEDGE: "acknowledge",
    MessageType.CHANNEL_CLOSED: "channel_closed",
    MessageType.AGENT_SESSION_STATE: "session_state",
}
_CHOICES = (bytes(40), bytes(range(1, 200, 3)), b"\xff" * 60)
_DEEP = b"\0" + b"[" * 5000
_LONG = b'\0{"a":' + b"1" * 5000 + b"}"
_EXAMPLES: dict[str, list[bytes]] = {
    "json_text": [_DEEP, _LONG, b"\0" + b'{"a":' * 1500],
    "exit_code": [b"\0EXIT_CODE: " + b"1" * 5000, b"\0EXIT_CODE: 0", b"\0 EXIT_CODE:  -4294967296 \n"],
    "size": [b'\0{"cols":80,"rows":24}'],
    "flag": [b"\0\0\0\0\1"],
    "channel_closed": [b'\0{"MessageType":"channel_closed","SessionId":"s","SchemaVersion":1,"Output":"over"}'],
    "websocket": [
        b"\0\0\x82\x03abc\x89\x02hi\x01\x01a\x00\x01b\x80\x01c\x88\x04\x03\xe8by",
        b"\x03\0\x01\x01\0\x02\x02\0\x03\x03\0\x82\x7e\x01\x00" + bytes(256),
        bytes((2, 9, 9, 0, 7, 0, 1, 8, 0, 3, 0x20, 0, 2, 0x20, 0, 0x23, 1, 3, 9, 9, 9, 6, 1, 5, 1)),
    ],
    "upgrade": [
        b"\0" + upgrade_answer(),
        b"\xffHTTP/1.1 200 Connection established\r\n\r\n" + upgrade_answer(),
        b"\0HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno no",
        b"\0HTTP/1.1 302 Found\r\nLocation: wss://elsewhere.invalid/\r\n\r\n",
        b"\0" + upgrade_answer().replace(b"\r\n\r\n", b"\r\nSet-Cookie: a@b=c; Path=/\r\n\r\n"),
    ],
    "control_plane": [
        bytes((call, status, kind, style, 5, 1))
        for call in range(3)
        for status in (0, 1, 3)
        for kind in (0, 2)
        for style in range(8)
    ],
    "url": [b"\0\1" + url.encode() for url in URLS]
    + [b"\2" + bytes((n,)) + b"\1" + STREAM_URL.encode() for n in range(8)],
    "values": [
        b"\0i-0123456789abcdef0",
        b"\0mi-0",
        b"\x0022",
        b"\x0065536",
        b"\0http://user:pass@proxy:3128",
        b"\0\x1b[2Jx",
    ],
    "parameters": [
        b"\0" + text
        for text in (
            b"portNumber=80,host=db.internal",
            b'a=\'b c\',d=[e,"f\\""],g=h\\,i',
            b"a@=[file://x,y] , b = c",
            b'{"a":["b","c"]}',
            b'{"a":[1]}',
            b"a={b=c}",
        )
    ]
    + [b"\1\3a=bfile://~/x", b"\3\2xy" + bytes(20)],
    "signature": [b"\1\0" + bytes(20), b"\1\2\1\x10" + b"20261122T000000Z" + b"\2\5token"],
    "channel": [
        # window, then: begin, complete, output, input, acknowledge, clock, ...
        bytes((5, 0, 0, 0, 0, 0, 9, 24, 5, 20, 5, 18, 0, 3, 25, 28, 16, 0, 18)),
        bytes((6, 1, 8, 19, 0, 8, 17, 2, 8, 18, 1, 0, 0, 0, 20, 7, 29, 0, 21, 3, 29, 1, 25, 25, 28, 18, 30)),
        bytes((3, 0, 0, 0, 0, 20, 9, 27, 200, 26, 26, 26, 26, 12, 1, 3, 7, 3, 2, 1, 31, 0)),
        # sizes and flags before the start, between input, in a pause; then the key of an encrypted session
        bytes((5, 0, 60, 61, 3, 0, 0, 0, 27, 20, 20, 5, 61, 9, 60, 29, 0, 20, 4, 60, 60, 61, 1, 29, 1, 18, 30, 18)),
        bytes((5, 0, 0, 4, 62, 1, 0, 0, 0, 7, 0, 216, 0, 20, 7, 60, 61, 4, 18, 0, 220, 1, 0, 7, 18)),
        bytes((5, 0, 0, 4, 62, 0, 18)),
        bytes((5, 0, 0, 4, 62, 1, 62, 1, 0, 0)),
        bytes((5, 0, 0, 4, 63, 18)),
    ],
    "smux": [bytes((3, 4, 8, 20)) + pack(SYN, 3) + pack(PSH, 3, b"hello") + pack(UPD, 3, bytes(8)) + pack(FIN, 3)],
    "mux": [
        # keepalive, then operations and their streams: open, receive, consume, send, clock, ...
        bytes((0, 0, 0, 12, 0, 9, 8, 0, 11, 5, 3, 0, 10, 12, 0, 11, 14, 0, 3, 15, 0, 12, 0, 12, 5, 0, 12, 0, 9)),
        bytes((1, 0, 0, 1, 0, 2, 1, 11, 12, 0, 8, 8, 0, 10, 8, 0, 10, 14, 0, 3, 6, 0, 8, 10, 1, 1, 13, 0, 3)),
    ],
    "sftp": [
        # extensions, then operations: ask, what, how often, sizes; answer, which, how, with what
        bytes((1, 1, 1, 1, 0, 0, 1, 4, 3, 0, 5, 3, 2, 7, 0, 6, 0, 5, 3, 6, 0, 5, 4, 6, 0, 5, 2)),
        bytes(
            (0, 0, 0, 0, 1, 8, 0, 6, 0, 5, 2, 3, 97, 98, 2, 2, 10, 0, 7, 0, 5, 15, 20, *range(20), 3, 13, 0, 8, 0, 5)
        ),
        bytes((1, 1, 1, 1, 0, 11, 0, 6, 0, 5, 40, *range(40), 0, 12, 0, 6, 0, 5, 47, *range(47), 6, 0, 1, 4)),
    ],
    "pair": [
        bytes((5, 0, 7, 60, 0, 7, 4, 7, 7, 60, 12, 90, 0, 6, 4, 6, 7, 90, 13, 7, 9, 14, 7, 60, 11, 3, 0, 7, 7, 99)),
        bytes((5, 1, 7, 60, 0, 7, 0, 7, 0, 7, 11, 4, 0, 6, 4, 6, 7, 90, 15, 1, 0, 7, 90, 15, 0, 0, 7, 90)),
    ],
}


def seeds(target: str) -> list[bytes]:
    """Give the starting inputs of a target, the kept finds among them, each once."""
    found = dict.fromkeys([b"", *_CHOICES, *(b"\x80" + each for each in _CHOICES), *_EXAMPLES.get(target, ())])
    for data in _golden_messages():
        for name, seed in _seeds_of(data):
            if name == target:
                found[seed] = None
    for data in _sftp_packets():
        if target == "sftp_reply":
            found[data[4:]] = None
        elif target == "sftp_stream":
            found[b"\3\1\5\x20" + data] = None
    for path in sorted((CORPUS / target).glob("*")):
        found[path.read_bytes()] = None
    return list(found)


def dictionary() -> str:
    """Give the words of the formats for libFuzzer, in its own notation."""
    words = [json.dumps(name).encode() for name in MEMBERS]
    words += [name.encode().ljust(32) for name in _BY_MESSAGE_TYPE] + [b"output_stream_data", b"pause_publication"]
    words += [str(number).encode() for number in EDGES] + [
        b"EXIT_CODE: ",
        b"true",
        b"null",
        b"NaN",
        b"\\ud800",
        b"://",
        b"@[",
        b"file://",
        b"@=file://~",
    ]
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


def _golden_messages() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            data = bytes.fromhex(json.loads(line).get("hex", ""))
            if data and len(data) < 700:
                yield data


def _sftp_packets() -> Iterator[bytes]:
    """Give what OpenSSH's server said."""
    for line in (GOLDEN / "sftp" / "openssh-9.2.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["from"] == "server":
            yield bytes.fromhex(record["hex"])


def _seeds_of(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name in ("agent_message", "read_message", "trace"):
        yield name, b"\0" + data
    yield "websocket", b"\0\0" + _frame(data)
    message: AgentMessage = decode_agent_message(data)
    payload = b"\0" + message.payload
    target = _BY_MESSAGE_TYPE.get(message.message_type)
    if message.message_type in (MessageType.INPUT, MessageType.OUTPUT):
        target = _BY_PAYLOAD_TYPE.get(PayloadType(message.payload_type))
    if target is not None:
        yield target, payload
    if message.payload[:1] == b"{":
        yield "json_text", payload


def _frame(data: bytes) -> bytes:
    size = len(data)
    return (bytes((0x82, size)) if size < 126 else b"\x82\x7e" + size.to_bytes(2, "big")) + data
