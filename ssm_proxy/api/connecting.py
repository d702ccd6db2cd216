"""A connected socket to a port of a managed node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssm_proxy.api.service import BEGIN_TIMEOUT, Service
from ssm_proxy.sessions.port import STREAM_DOCUMENT

if TYPE_CHECKING:
    import boto3

    from ssm_proxy.api.connection import Connection


def connect(
    target: str,
    *,
    session: boto3.Session | None = None,
    port: int = 22,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    document_name: str = STREAM_DOCUMENT,
    timeout: float | None = BEGIN_TIMEOUT,
) -> Connection:
    """Connect to a TCP port of a managed node through Session Manager.

    Blocks until the session has begun. Safe to use from several threads at once. Do not fork while connections are
    open: the child's copy keeps descriptors open, and has no thread that serves them.

    Args:
        target: ``i-…``, ``mi-…``, or ``ecs:CLUSTER/SERVICE-OR-TASK[/CONTAINER]``.
        session: whose credentials, region and settings are used; else those of the environment.
        port: on the node.
        profile: of the AWS configuration, where no session is given.
        region: None takes the session's, or the environment's.
        reason: shown in the session's history.
        endpoint_url: address of the Systems Manager API.
        stream_endpoint_url: address of the message gateway, where PrivateLink gives it another name.
        document_name: session document; it must carry a single stream to the port.
        timeout: seconds for the session to begin; None leaves it to the limits inside, of some minutes. It is not the
            socket's own timeout, which is that of any new socket.

    Returns:
        A real socket: see `Connection` for what it adds. Whether something listens on the port shows when receiving:
        the agent tells a refused connection after the session has begun, and late.

    Raises:
        UsageError, ConfigurationError: arguments, region, credentials.
        TargetError: `TargetNotConnected` and others.
        ControlPlaneError: `AccessDenied`, `Throttled`, `DocumentRejected`.
        TransportError: no way to the service; `TransportTimeout` if it took longer than ``timeout``.
        SsmProxyError: anything else that kept the session from beginning.
    """
    service = Service(
        session=session,
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
    )
    return service.dial(
        target, port, reason=reason, document_name=document_name, timeout=timeout, release=service.close
    )
