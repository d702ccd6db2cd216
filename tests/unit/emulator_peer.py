"""A small client of the data channel for the emulator's tests: aiohttp and the codec, nothing else of the package."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from ssm_proxy.wire.agent_message import AgentMessage, decode_agent_message, encode_agent_message
from ssm_proxy.wire.constants import CLIENT_VERSION, SYN_FIN, MessageType, PayloadType
from ssm_proxy.wire.payloads import (
    Acknowledge,
    HandshakeResponse,
    ProcessedAction,
    decode_acknowledge,
    decode_handshake_request,
    encode_acknowledge,
    encode_flag,
    encode_handshake_response,
    encode_open_data_channel,
    format_uuid,
)

NODE = "i-0123456789abcdef0"


def ssm_client(environment: dict[str, str], **changes: Any) -> Any:
    """Give a real botocore client for the emulator."""
    return boto3.client(
        "ssm",
        endpoint_url=environment["AWS_ENDPOINT_URL_SSM"],
        region_name=environment["AWS_REGION"],
        verify=environment.get("AWS_CA_BUNDLE"),
        aws_access_key_id=changes.get("key", environment["AWS_ACCESS_KEY_ID"]),
        aws_secret_access_key=changes.get("secret", environment["AWS_SECRET_ACCESS_KEY"]),
        aws_session_token=changes.get("token", environment["AWS_SESSION_TOKEN"] or None),
        config=boto3.session.Config(retries={"total_max_attempts": 1}),
    )


def signed_headers(url: str, environment: dict[str, str]) -> dict[str, str]:
    """Sign the opening with botocore's signer, which is not what verifies it."""
    credentials = Credentials(
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_SESSION_TOKEN"] or None
    )
    request = AWSRequest("GET", url.replace("ws", "http", 1))
    SigV4Auth(credentials, "ssmmessages", environment["AWS_REGION"]).add_auth(request)
    return dict(request.headers)


def input_message(number: int, payload: bytes, payload_type: int = PayloadType.OUTPUT, **changes: Any) -> bytes:
    values = {
        "message_type": MessageType.INPUT,
        "payload": payload,
        "message_id": uuid.uuid4().bytes,
        "created_date_ms": time.time_ns() // 1_000_000,
        "sequence_number": number,
        "payload_type": payload_type,
    }
    return encode_agent_message(AgentMessage(**(values | changes)))


def acknowledge_of(message: AgentMessage) -> bytes:
    payload = encode_acknowledge(
        Acknowledge(message.message_type, format_uuid(message.message_id), message.sequence_number)
    )
    return encode_agent_message(
        AgentMessage(MessageType.ACKNOWLEDGE, payload, uuid.uuid4().bytes, time.time_ns() // 1_000_000, flags=SYN_FIN)
    )


class Peer:
    """One session, driven step by step.

    ``received`` holds every binary message in order of arrival; ``output`` the joined payloads of output in sequence.
    """

    def __init__(self, environment: dict[str, str], response: dict[str, Any]) -> None:
        self.environment = environment
        self.response = response
        self.received: list[AgentMessage] = []
        self.raw: list[bytes] = []
        self.acknowledged: list[int] = []
        self.output = bytearray()
        self.expected = 0
        self.next_number = 0
        self.unacknowledged: dict[int, bytes] = {}
        self.stored: dict[int, AgentMessage] = {}
        self.acknowledges = True
        self.closed_output: str | None = None
        self.close_code: int | None = None
        self.is_closed = False
        self.request_properties: Any = None
        self.session: aiohttp.ClientSession | None = None
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._resender: asyncio.Task[None] | None = None

    async def open(self, *, token: str | None = None, signed: bool = True, ping_first: bool = False) -> Peer:
        if self.session is None:
            self.session = aiohttp.ClientSession()
        url = self.response["StreamUrl"]
        context: Any = True
        if "AWS_CA_BUNDLE" in self.environment:
            context = ssl.create_default_context(cafile=self.environment["AWS_CA_BUNDLE"])
        self.socket = await self.session.ws_connect(
            url, headers=signed_headers(url, self.environment) if signed else {}, max_msg_size=0, ssl=context
        )
        self.is_closed = False
        if ping_first:
            await self.socket.ping(b"keepalive")
        await self.socket.send_str(
            encode_open_data_channel(
                token=token or self.response["TokenValue"],
                request_id=str(uuid.uuid4()),
                client_id=str(uuid.uuid4()),
                client_version=CLIENT_VERSION,
            )
        )
        self._reader = asyncio.create_task(self._read())
        return self

    def start_resending(self) -> None:
        """Repeat everything unacknowledged every 100 ms; without it a peer sends each message once."""
        self._resender = asyncio.create_task(self._resend())

    def stop_resending(self) -> None:
        if self._resender is not None:
            self._resender.cancel()

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            if not self.is_closed:
                with contextlib.suppress(ConnectionError):
                    await self.send(*list(self.unacknowledged.values())[:200])

    async def close(self) -> None:
        if self._resender is not None:
            self._resender.cancel()
            await asyncio.gather(self._resender, return_exceptions=True)
        if self.socket is not None:
            await self.socket.close()
        if self._reader is not None:
            await self._reader
        if self.session is not None:
            await self.session.close()

    async def send(self, *messages: bytes) -> None:
        assert self.socket is not None
        for message in messages:
            await self.socket.send_bytes(message)

    async def send_input(self, payload: bytes, payload_type: int = PayloadType.OUTPUT) -> int:
        number = self.next_number
        self.next_number += 1
        message = input_message(number, payload, payload_type)
        self.unacknowledged[number] = message
        await self.send(message)
        return number

    async def send_flag(self, flag: int) -> int:
        return await self.send_input(encode_flag(flag), PayloadType.FLAG)

    async def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        """Wait for a condition that messages can make true."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not condition():
            if loop.time() >= deadline:
                raise asyncio.TimeoutError
            self._news.clear()
            timer = loop.call_at(deadline, self._news.set)  # wait_for loses cancellations before Python 3.12
            try:
                await self._news.wait()
            finally:
                timer.cancel()

    def of_type(self, kind: str) -> list[AgentMessage]:
        return [message for message in self.received if message.message_type == kind]

    async def shake_hands(self, *, status: int = 1, wait: bool = True, client_version: str = CLIENT_VERSION) -> None:
        await self.until(lambda: any(m.payload_type == PayloadType.HANDSHAKE_REQUEST for m in self.received))
        request = next(m for m in self.received if m.payload_type == PayloadType.HANDSHAKE_REQUEST)
        actions = decode_handshake_request(request.payload).requested_actions
        self.request_properties = actions[0].parameter("Properties")
        response = HandshakeResponse(
            client_version=client_version,
            processed_actions=[ProcessedAction(action_type=each.action_type, status=status) for each in actions],
        )
        await self.send_input(encode_handshake_response(response), PayloadType.HANDSHAKE_RESPONSE)
        if wait:
            await self.until(lambda: any(m.payload_type == PayloadType.HANDSHAKE_COMPLETE for m in self.received))

    async def _read(self) -> None:
        assert self.socket is not None
        socket = self.socket
        with contextlib.suppress(ConnectionError):
            async for item in socket:
                if item.type is aiohttp.WSMsgType.BINARY:
                    await self._take(item.data)
                self._news.set()
        if socket is self.socket:
            self.close_code = socket.close_code
            self.is_closed = True
            self._news.set()

    async def _take(self, data: bytes) -> None:
        message = decode_agent_message(data)
        self.received.append(message)
        self.raw.append(data)
        if message.message_type == MessageType.ACKNOWLEDGE:
            number = decode_acknowledge(message.payload).sequence_number
            self.acknowledged.append(number)
            self.unacknowledged.pop(number, None)
        elif message.message_type == MessageType.CHANNEL_CLOSED:
            self.closed_output = json.loads(message.payload)["Output"]
        elif message.message_type == MessageType.OUTPUT and self.acknowledges:
            await self.send(acknowledge_of(message))
            if message.sequence_number >= self.expected:
                self.stored[message.sequence_number] = message
            while (stored := self.stored.pop(self.expected, None)) is not None:
                self.expected += 1
                if stored.payload_type == PayloadType.OUTPUT:
                    self.output += stored.payload


def run(coroutine: Awaitable[None]) -> None:
    """Run one test's coroutine."""

    async def main() -> None:
        await asyncio.wait_for(coroutine, 30)

    asyncio.run(main())
