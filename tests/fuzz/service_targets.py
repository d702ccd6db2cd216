"""What the control plane answers and what people type: a value or one of our errors, fit for a terminal."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse
from botocore.credentials import ReadOnlyCredentials
from fuzz.choices import Choices
from websocket._url import parse_url

from ssm_proxy.aws.control_plane import BotocoreControlPlane
from ssm_proxy.aws.opening import check_stream_url, host_header, is_presigned, replace_endpoint, sign_opening
from ssm_proxy.cli import parameters
from ssm_proxy.cli.commands.proxy import check_port, check_target
from ssm_proxy.cli.messages import MAX_TEXT, error_lines, printable
from ssm_proxy.errors import ConfigurationError, ControlPlaneError, SsmProxyError, TargetError, UsageError
from ssm_proxy.transport.opening import _parse_proxy

STREAM_URL = "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/alice-0a1b2c3d4e5f67890?role=publish_subscribe"
TOKEN = "AAEA-secret-token"
URLS = (
    STREAM_URL,
    "ws://127.0.0.1:8765/v1/data-channel/x",
    "ws://[::1]:1/",
    "wss://[bad/",
    "wss://host:99999/x",
    "http://localhost/",
    "wss://user@host/x",
    "wss://h\\@127.0.0.1/",
)
_MEMBERS = ("SessionId", "StreamUrl", "TokenValue", "__type", "message", "Message", "code", "Status")
_PARAMETER_NAMES = ("portNumber", "host", "command", "")
_CODES = (
    "AccessDeniedException",
    "DoesNotExistException",
    "ExpiredTokenException",
    "InvalidDocument",
    "InvalidParameters",
    "InvalidSignatureException",
    "TargetNotConnected",
    "ThrottlingException",
    "ValidationException",
    "com.amazonaws.ssm#InternalServerError",
)
_STATUSES = (200, 400, 403, 404, 500, 503, 204, 301, 413)
_TYPES = ("application/x-amz-json-1.1", "application/json", "text/html", "")


class _Body:
    """The stream of an answer, as botocore reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, **_options: Any) -> Iterator[bytes]:
        yield self._data


class _Service:
    """A control plane whose requests never leave: botocore asks a hook for the answer first."""

    def __init__(self) -> None:
        self.answer: tuple[int, str, bytes] = (200, "", b"{}")
        settings = {
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not a secret",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        with mock.patch.dict(os.environ, settings):
            self.control_plane = BotocoreControlPlane(region="eu-west-1", endpoint_url="https://ssm.invalid")
            session = self.control_plane._open()
            session.credentials()
            client = session.client()
            client.meta.events.register("before-send.ssm", self._reply)
            # One attempt for all three calls: the pauses between attempts are not what is tried here.
            session.client = lambda _patience=None: client  # type: ignore[method-assign]
            # A new one after a refusal of the credentials would ask the network.
            self.control_plane._forget = lambda _session: None  # type: ignore[method-assign]

    def _reply(self, request: Any, **_details: Any) -> AWSResponse:
        status, kind, body = self.answer
        headers = {"Content-Type": kind, "Content-Length": str(len(body))}
        return AWSResponse(request.url, status, headers, _Body(body))


@functools.cache
def _service() -> _Service:
    return _Service()


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except SsmProxyError as error:
        if error.message.endswith("unexpectedly"):
            # botocore's parser expects names in "__type", and an object round it; what it raises then is not our doing.
            steps = traceback.extract_tb(error.__cause__.__traceback__ if error.__cause__ else None)
            assert "botocore" in steps[-1].filename, (error.message, error.cause)  # noqa: PT017
        check_error(error)


def check_error(error: SsmProxyError) -> None:
    assert TOKEN not in f"{error.message} {error.cause} {error.hint}"
    for line in error_lines(error):
        assert line.isprintable(), line
        assert len(line) <= MAX_TEXT + 40


def check_control_plane(data: bytes) -> None:
    """Answers to the three calls, made of choices or as they come."""
    choices = Choices(data)
    call = choices.below(3)
    status = choices.one_of(_STATUSES) if choices.below(2) else 200
    kind = choices.one_of(_TYPES)
    style = choices.below(8)
    if style == 0:
        body = choices.rest()
    else:
        values: Any = {"SessionId": "alice-0a1b", "StreamUrl": STREAM_URL, "TokenValue": TOKEN}
        if status != 200 or style == 1:
            values = {"__type": choices.one_of(_CODES), "message": choices.text()}
        elif style == 2:
            values["StreamUrl"] = choices.one_of(URLS)
        elif style == 3:
            values["StreamUrl"] = choices.rest().decode("utf-8", "surrogateescape")
        values.update(choices.object(_MEMBERS) if style < 7 else {})
        body = json.dumps(choices.json(_MEMBERS) if style == 6 else values).encode()
    service = _service()
    service.answer = (status, kind, body)
    with _ours():
        if call == 0:
            started = service.control_plane.start_session(
                target="i-1", document_name="AWS-StartSSHSession", parameters={"portNumber": ("22",)}, reason=None
            )
            assert isinstance(started.session_id, str)
            assert isinstance(started.stream_url, str)
            assert isinstance(started.token.reveal(), str)
            opening = service.control_plane.websocket_opening(started.stream_url)
            assert TOKEN not in repr(opening)
            check_stream_url(opening.url)
        elif call == 1:
            token = service.control_plane.resume_session("alice-0a1b")
            assert token is None or isinstance(token.reveal(), str)
        else:
            service.control_plane.terminate_session("alice-0a1b")


def check_url(data: bytes) -> None:
    """A stream URL and an endpoint that replaces its host: never a token in the open, never to another host."""
    choices = Choices(data)
    style = choices.below(4)
    endpoint = None
    if style >= 2:
        endpoint = choices.one_of(URLS) if style == 2 else choices.take(choices.byte()).decode("utf-8", "replace")
    stream_url = choices.one_of(URLS) if choices.below(4) == 0 else choices.rest().decode("utf-8", "surrogateescape")
    try:
        url = replace_endpoint(stream_url, endpoint)
        parts = check_stream_url(url)
    except (ConfigurationError, ControlPlaneError) as error:
        for line in error_lines(error):
            assert line.isprintable()
        return
    # The library that connects has to understand the same host by it.
    host, port, resource, is_secure = parse_url(url)
    assert host == parts.hostname
    assert port == (parts.port or (443 if parts.scheme == "wss" else 80))
    assert is_secure == (parts.scheme == "wss")
    if not is_secure:
        assert host == "localhost" or ipaddress.ip_address(host).is_loopback
    if endpoint is not None:
        assert host == urlsplit(endpoint).hostname
    assert not any(character in url + resource for character in "\r\n\0 ")
    assert host in host_header(parts)
    if not is_presigned(url):
        headers = sign_opening(url, credentials=ReadOnlyCredentials("AKIDEXAMPLE", "x", None), region="eu-west-1")
        assert set(headers) == {"Authorization", "X-Amz-Date"}
        assert all(value.isprintable() for value in headers.values())


def check_values(data: bytes) -> None:
    """HOST, PORT and foreign text for a terminal, and the URL of a proxy."""
    text = data[1:].decode("utf-8", "surrogateescape")
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= MAX_TEXT
    assert shown == printable(shown)
    if text.isprintable() and len(text) <= MAX_TEXT:
        assert shown == text.strip()
    try:
        host = check_target(text)
    except TargetError as error:
        check_error(error)
    else:
        assert host == text
        assert host.isascii()
        assert host.partition("-")[0] in ("i", "mi")
        assert host.partition("-")[2].isalnum()
    try:
        port = check_port(text)
    except UsageError as error:
        check_error(error)
    else:
        assert 0 < port < 65536
        assert port == int(text)
    try:
        proxy = _parse_proxy(text)
    except ConfigurationError as error:
        check_error(error)
    else:
        assert proxy.host
        assert 0 < proxy.port < 65536


def check_parameters(data: bytes) -> None:
    """The value of --parameters, beside the one file that there is."""
    choices = Choices(data)
    style = choices.below(4)
    content = choices.take(choices.byte()) if style & 1 else b""
    if style < 2:
        text = choices.rest().decode("utf-8", "surrogateescape")
    else:
        text = json.dumps(choices.object(_PARAMETER_NAMES))

    def open_file(path: str, encoding: str) -> io.TextIOWrapper:
        if b"\0" in os.fsencode(path):
            raise ValueError("embedded null byte")
        return io.TextIOWrapper(io.BytesIO(content), encoding)

    with mock.patch.object(parameters, "open", open_file, create=True):
        try:
            values = parameters.parse_parameters(text)
        except UsageError as error:
            check_error(error)
            return
        assert all(isinstance(each, list) and all(isinstance(value, str) for value in each) for each in values.values())
        assert parameters.parse_parameters(json.dumps(values)) == values


TARGETS: dict[str, Callable[[bytes], None]] = {
    "control_plane": check_control_plane,
    "url": check_url,
    "values": check_values,
    "parameters": check_parameters,
}
