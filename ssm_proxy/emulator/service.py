"""HTTP and WebSocket of the emulated service: one listener for API calls, data channels and the control endpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import json
import logging
import re
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from ssm_proxy.emulator import rpc
from ssm_proxy.emulator.calls import ServiceError
from ssm_proxy.emulator.client_connection import ClientConnection, make_websocket
from ssm_proxy.emulator.control_plane import ControlPlane
from ssm_proxy.emulator.counts import ChannelCounts, SessionSnapshot
from ssm_proxy.emulator.documents import SERVICE_DOCUMENTS
from ssm_proxy.emulator.ecs import EcsControlPlane
from ssm_proxy.emulator.faults import MANNERS, SESSION_ENDS, SIDES, Faults, change_faults
from ssm_proxy.emulator.kms import KeyService
from ssm_proxy.emulator.managed_nodes import TaggingService
from ssm_proxy.emulator.options import Credentials, EmulatorOptions, Node
from ssm_proxy.emulator.relay import SessionRelay
from ssm_proxy.emulator.session_table import Session, SessionTable
from ssm_proxy.emulator.signatures import SignatureRefused, SignedRequest, verify_signature
from ssm_proxy.errors import UsageError

_LOG = logging.getLogger("ssm_proxy.emulator.service")
_OPENING_S: Final = 30.0
_GOODBYE_S: Final = 0.3
_OLDEST_CLIENT: Final = (1, 2, 764, 0)
"""The service's stated minimum (2.1.1)."""
_CONTROL: Final = "/_emulator"


class EmulatedService:
    """Everything that listens, and the sessions behind it. Lives in one event loop.

    Args:
        options: what was chosen at the start.
        ssh_address: where port 22 of a node is that has no address of its own.
    """

    def __init__(self, options: EmulatorOptions, ssh_address: tuple[str, int]) -> None:
        self._options = options
        self._ssh_address = ssh_address
        self.credentials = options.credentials
        self._expired: list[Credentials] = []
        self._faults = options.faults
        self._refused_openings = 0
        self._connections: set[ClientConnection] = set()
        self._relays: dict[str, SessionRelay] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._table = SessionTable(options.token_lifetime_s)
        self.nodes: dict[str, Node] = {node.node_id: node for node in options.nodes}
        self._control_plane = ControlPlane(
            nodes=self.nodes,
            documents={**SERVICE_DOCUMENTS, **options.documents},
            sessions=self._table,
            data_plane=self,
            faults=self.get_faults,
            agent_version=options.agent_version,
        )
        self._key_service = KeyService(region=options.region, faults=self.get_faults)
        ecs = EcsControlPlane(nodes=self.nodes, add_session=self._control_plane.add_session, faults=self.get_faults)
        tagging = TaggingService(nodes=self.nodes, region=options.region, faults=self.get_faults)
        self._apis: dict[str, tuple[str, Callable[[str, dict[str, Any]], dict[str, Any]]]] = {
            "AmazonSSM": ("ssm", self._control_plane.call),
            "AmazonEC2ContainerServiceV20141113": ("ecs", ecs.call),
            "TrentService": ("kms", self._key_service.call),
            "ResourceGroupsTaggingAPI_20170126": ("tagging", tagging.call),
        }
        """By the name that calls have for it: the service's name in signatures, and who answers."""
        self._runner: web.AppRunner | None = None
        self._scheme = "http"
        self.authority = ""
        """Host and port of the listener."""

    async def start(self, context: ssl.SSLContext | None) -> None:
        """Listen.

        Raises:
            OSError: the address is not free.
        """
        application = web.Application(client_max_size=1024 * 1024)
        application.router.add_post("/", self._answer_call)
        application.router.add_post(rpc.CBOR_PATH, self._answer_call)
        application.router.add_get("/v1/data-channel/{session_id}", self._open_data_channel)
        application.router.add_get(f"{_CONTROL}/faults", self._show_faults)
        application.router.add_post(f"{_CONTROL}/faults", self._change_faults)
        application.router.add_get(f"{_CONTROL}/statistics", self._show_statistics)
        application.router.add_post(f"{_CONTROL}/credentials", self._change_credentials)
        application.router.add_post(f"{_CONTROL}/drop", self._drop)
        application.router.add_get(f"{_CONTROL}/nodes", self._show_nodes)
        application.router.add_post(f"{_CONTROL}/nodes", self._change_node)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port, ssl_context=context)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._scheme = "http" if context is None else "https"
        self.authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """End all sessions, close all sockets."""
        for relay in tuple(self._relays.values()):
            relay.finish("Terminated", "")
            if relay.client is not None:
                relay.client.close()
        await asyncio.gather(*self._endings, return_exceptions=True)
        await self._connections_gone()
        for connection in self._connections:
            connection.abort()
        await self._connections_gone()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _connections_gone(self) -> None:
        deadline = asyncio.get_running_loop().time() + _GOODBYE_S
        while self._connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    @property
    def endpoint_url(self) -> str:
        return f"{self._scheme}://{self.authority}"

    # --- run-time changes ----------------------------------------------------------------------------------------

    def get_faults(self) -> Faults:
        return self._faults

    def set_faults(self, faults: Faults) -> None:
        """Put other faults in force, for open sessions too."""
        before, self._faults = self._faults, faults
        self._refused_openings = 0
        self._control_plane.faults_changed()
        disturbs = (faults.stall_agent_s, faults.pause_publication_s)
        is_new = disturbs != (before.stall_agent_s, before.pause_publication_s)
        for relay in self._relays.values():
            relay.faults_changed()
            if is_new:
                relay.disturb()

    def rotate_credentials(self, credentials: Credentials) -> None:
        """Accept other credentials from now on, and the old ones no more."""
        self._expired.append(self.credentials)
        self.credentials = credentials

    def drop_connections(self, side: str, manner: str) -> int:
        """Cut the connection of one side of every open session.

        Returns:
            How many were cut: a session whose connection is already lost has none.

        Raises:
            UsageError: an unknown side or manner.
        """
        if side not in SIDES or manner not in MANNERS:
            raise UsageError(
                f"no connections can be cut as '{side}', '{manner}'",
                hint=f"sides: {', '.join(SIDES)}; manners: {', '.join(MANNERS)}",
            )
        return sum(relay.cut(side, manner) for relay in tuple(self._relays.values()))

    def set_online(self, node_id: str, is_online: bool, sessions: str) -> None:
        """Let a node go down, with all its sessions, or come up again.

        Args:
            node_id: one of the nodes.
            is_online: while it is not, StartSession answers TargetNotConnected.
            sessions: what becomes of those that are open, one of :data:`ssm_proxy.emulator.faults.SESSION_ENDS`.

        Raises:
            UsageError: an unknown node or end.
        """
        if node_id not in self.nodes:
            raise UsageError(f"there is no node '{node_id}'", hint=f"nodes: {', '.join(self.nodes)}")
        if sessions not in SESSION_ENDS:
            raise UsageError(f"sessions cannot end '{sessions}'", hint=f"one of: {', '.join(SESSION_ENDS)}")
        self.nodes[node_id] = dataclasses.replace(self.nodes[node_id], is_online=is_online)
        if is_online:
            return
        for relay in tuple(self._relays.values()):
            if relay.session.node.node_id == node_id:
                relay.lose_agent()
                if sessions == "closed":
                    relay.finish("Terminated", "")
                else:
                    self._stop_agent(relay)

    def sessions(self) -> list[SessionSnapshot]:
        """Give all sessions, ended ones too, the latest last."""
        return [session.snapshot() for session in self._table.all()]

    def statistics(self) -> dict[str, Any]:
        """Give everything that was counted, as plain values."""
        sessions = self.sessions()
        defects: Counter[str] = Counter()
        for session in sessions:
            defects.update(session.client_defects)
        totals = {
            each.name: sum(getattr(session, each.name) for session in sessions)
            for each in dataclasses.fields(ChannelCounts)
        }
        return {
            "open_sessions": len(self._relays),
            "open_sockets": len(self._connections),
            **totals,
            "start_calls": self._control_plane.start_calls,
            "throttled_starts": self._control_plane.throttled_starts,
            "client_defects": dict(defects),
            "sessions": [dataclasses.asdict(session) for session in sessions],
        }

    # --- what the control plane asks for -------------------------------------------------------------------------

    def session_started(self, session: Session) -> None:
        relay = SessionRelay(
            session,
            address_of=lambda port: self._address_of(session.node, port),
            pace_s=self._options.agent_pace_s,
            agent_version=self._options.agent_version,
            faults=self.get_faults,
            ended=lambda status, details: self._session_ended(session, status, details),
            call_kms=self._key_service.call,
        )
        self._relays[session.session_id] = relay
        relay.watch_limits()
        _LOG.info("= %s started: %s for %s", session.session_id, session.document_name, session.node.node_id)

    def terminate(self, session: Session) -> None:
        relay = self._relays.get(session.session_id)
        if relay is not None:
            relay.finish("Terminated", "")

    def stream_path(self, session: Session) -> str:
        return f"/v1/data-channel/{quote(session.session_id, safe='')}?role=publish_subscribe"

    def _address_of(self, node: Node, port: int) -> tuple[str, int]:
        if port == 22:
            return node.ssh_address or self._ssh_address
        return ("127.0.0.1", port)

    def _session_ended(self, session: Session, status: str, details: str) -> None:
        relay = self._relays.pop(session.session_id)
        self._table.end(session, status=status, details=details)
        self._stop_agent(relay)

    def _stop_agent(self, relay: SessionRelay) -> None:
        ending = asyncio.get_running_loop().create_task(relay.agent.stop())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    # --- API calls -----------------------------------------------------------------------------------------------

    async def _answer_call(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = rpc.call_of(request)
        service, call = self._apis.get(asked.target, ("ssm", None))
        try:
            self._verify(request, body, service)
            if call is None or not asked.is_well_formed:
                raise ServiceError("UnknownOperationException", "")
            values = rpc.values_of(asked, body)
            if asked.operation == "ResumeSession":
                await asyncio.sleep(self._faults.resume_delay_s)
            answer = call(asked.operation, values)
        except SignatureRefused as refusal:
            return self._error(asked, refusal.error_type, refusal.message, 400)
        except ServiceError as error:
            return self._error(asked, error.error_type, error.message, error.status)
        _LOG.info("< %s 200", asked.operation)
        # The name that the client knows us by may differ from the address that we listen on.
        scheme = "wss" if self._scheme == "https" else "ws"
        for values, name in ((answer, "StreamUrl"), (answer.get("session", {}), "streamUrl")):
            if name in values:
                values[name] = f"{scheme}://{request.host}{values[name]}"
        return asked.form.answer(answer, 200)

    @staticmethod
    def _error(asked: rpc.Call, error_type: str, message: str, status: int) -> web.Response:
        _LOG.info("< %s %d %s", asked.operation, status, error_type)
        return asked.form.answer({"__type": error_type, "message": message}, status)

    def _verify(self, request: web.Request, body: bytes, service: str) -> None:
        path, _, query = request.raw_path.partition("?")
        verify_signature(
            SignedRequest(
                method=request.method,
                path=path,
                query=query,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body,
            ),
            service=service,
            credentials=self.credentials,
            expired=self._expired,
            now=datetime.datetime.now(datetime.timezone.utc),
        )

    # --- data channels -------------------------------------------------------------------------------------------

    async def _open_data_channel(self, request: web.Request) -> web.StreamResponse:
        session_id = request.match_info["session_id"]
        if not self._opening_is_allowed(request):
            _LOG.info("< opening of %s refused with 403", session_id)
            return web.json_response({"message": "Forbidden"}, status=403)
        websocket = make_websocket()
        await websocket.prepare(request)
        session = self._table.find(session_id)
        ordinal = 0 if session is None else session.connections
        connection = ClientConnection(
            request, websocket, self.get_faults, f"{self._options.seed}/{len(self._table.all())}/{ordinal}"
        )
        self._connections.add(connection)
        try:
            await self._serve_connection(session_id, connection)
        finally:
            self._connections.discard(connection)
        return websocket

    async def _serve_connection(self, session_id: str, connection: ClientConnection) -> None:
        session = self._table.find(session_id)
        text = await connection.receive_text(_OPENING_S)
        relay = self._relays.get(session_id)
        if session is None or relay is None or text is None or not self._opening_is_good(session, text):
            _LOG.info("= opening of %s closed without an answer", session_id)
            connection.close()
            await connection.wait_closed()
            return
        relay.client_joined(connection)
        _LOG.info("= %s client connected", session_id)
        try:
            await connection.serve(relay, relay.cut_by_fault)
        finally:
            connection.close()
            relay.client_left(connection)
            _LOG.info("= %s client gone after %d bytes", session_id, connection.passed_bytes)
            await connection.wait_closed()

    def _opening_is_allowed(self, request: web.Request) -> bool:
        limit = self._faults.refuse_open
        if limit:
            self._refused_openings += 1
            if limit < 0 or self._refused_openings <= limit:
                return False
        if "Authorization" not in request.headers and not self._options.require_signed_open:
            return True
        try:
            self._verify(request, b"", "ssmmessages")
        except SignatureRefused as refusal:
            _LOG.info("= %s: %s", refusal.error_type, refusal.message)
            return False
        return True

    def _opening_is_good(self, session: Session, text: str) -> bool:
        """Check OpenDataChannel (2.2). Members are matched without regard to case, unknown ones ignored."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(values, dict):
            return False
        members = {name.lower(): value for name, value in values.items()}
        texts = {name: value for name, value in members.items() if isinstance(value, str)}
        if texts.get("messageschemaversion") != "1.0" or not texts.get("requestid"):
            return False
        if not self._table.redeem_token(session, texts.get("tokenvalue", "")):
            return False
        version = texts.get("clientversion", "")
        if _version(version) < _OLDEST_CLIENT:
            _LOG.warning("= %s client version '%s' is below the minimum", session.session_id, version)
        return True

    # --- control endpoint ----------------------------------------------------------------------------------------

    async def _show_faults(self, request: web.Request) -> web.Response:
        return _control_answer(request, dataclasses.asdict(self._faults))

    async def _change_faults(self, request: web.Request) -> web.Response:
        """Change the faults named in the request; ``{}`` with ``?reset`` lifts all others."""
        base = Faults() if "reset" in request.query else self._faults
        try:
            self.set_faults(change_faults(base, await _control_body(request)))
        except UsageError as error:
            return web.json_response({"error": error.message, "hint": error.hint}, status=400)
        return _control_answer(request, dataclasses.asdict(self._faults))

    async def _drop(self, request: web.Request) -> web.Response:
        values = {"side": "client", "manner": "reset", **await _control_body(request)}
        try:
            count = self.drop_connections(str(values["side"]), str(values["manner"]))
        except UsageError as error:
            return web.json_response({"error": error.message, "hint": error.hint}, status=400)
        return _control_answer(request, {"sessions": count})

    async def _show_nodes(self, request: web.Request) -> web.Response:
        return _control_answer(request, {node.node_id: {"is_online": node.is_online} for node in self.nodes.values()})

    async def _change_node(self, request: web.Request) -> web.Response:
        values = {"sessions": SESSION_ENDS[0], **await _control_body(request)}
        is_online = values.get("is_online")
        if not isinstance(is_online, bool):
            return web.json_response(
                {"error": "node_id and is_online are needed, the latter true or false"}, status=400
            )
        try:
            self.set_online(str(values.get("node_id", "")), is_online, str(values["sessions"]))
        except UsageError as error:
            return web.json_response({"error": error.message, "hint": error.hint}, status=400)
        return await self._show_nodes(request)

    async def _change_credentials(self, request: web.Request) -> web.Response:
        values = await _control_body(request)
        key, secret, token = (values.get(name) for name in ("access_key_id", "secret_access_key", "session_token"))
        if not isinstance(key, str) or not isinstance(secret, str) or not (token is None or isinstance(token, str)):
            return web.json_response({"error": "access_key_id and secret_access_key are needed"}, status=400)
        self.rotate_credentials(Credentials(access_key_id=key, secret_access_key=secret, session_token=token))
        return _control_answer(request, {"access_key_id": key})

    async def _show_statistics(self, request: web.Request) -> web.Response:
        return _control_answer(request, self.statistics())


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts) if all(re.fullmatch("[0-9]{1,9}", part) for part in parts) else ()


def _is_loopback(request: web.Request) -> bool:
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _control_answer(request: web.Request, values: dict[str, Any]) -> web.Response:
    if not _is_loopback(request):
        raise web.HTTPForbidden(text="the control endpoint is for this machine only")
    return web.json_response(values)


async def _control_body(request: web.Request) -> dict[str, Any]:
    if not _is_loopback(request):
        raise web.HTTPForbidden(text="the control endpoint is for this machine only")
    try:
        values = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="the request is not JSON") from None
    if not isinstance(values, dict):
        raise web.HTTPBadRequest(text="the request is not a JSON object")
    return values
