"""SSH, scp, rsync and Ansible to managed nodes through AWS Systems Manager Session Manager, in pure Python.

What programs use is named in ``__all__`` and described in docs/api.md; all else may change. Nothing is loaded before
it is used.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm_proxy.api.asyncio_streams import open_connection as open_connection
    from ssm_proxy.api.commands import CommandResult as CommandResult
    from ssm_proxy.api.commands import run as run
    from ssm_proxy.api.connecting import connect as connect
    from ssm_proxy.api.connection import Connection as Connection
    from ssm_proxy.api.copying import copy as copy
    from ssm_proxy.api.forwarding import BoundAddress as BoundAddress
    from ssm_proxy.api.forwarding import forward as forward
    from ssm_proxy.api.ssh import ssh_client as ssh_client
    from ssm_proxy.errors import AccessDenied as AccessDenied
    from ssm_proxy.errors import AuthenticationFailed as AuthenticationFailed
    from ssm_proxy.errors import CommandFailed as CommandFailed
    from ssm_proxy.errors import ConfigurationError as ConfigurationError
    from ssm_proxy.errors import ControlPlaneError as ControlPlaneError
    from ssm_proxy.errors import CopyError as CopyError
    from ssm_proxy.errors import DocumentRejected as DocumentRejected
    from ssm_proxy.errors import EncryptionError as EncryptionError
    from ssm_proxy.errors import HostKeyChanged as HostKeyChanged
    from ssm_proxy.errors import HostKeyUnknown as HostKeyUnknown
    from ssm_proxy.errors import PortError as PortError
    from ssm_proxy.errors import ProtocolError as ProtocolError
    from ssm_proxy.errors import RemotePortRefused as RemotePortRefused
    from ssm_proxy.errors import SessionEnded as SessionEnded
    from ssm_proxy.errors import SshConnectFailed as SshConnectFailed
    from ssm_proxy.errors import SshError as SshError
    from ssm_proxy.errors import SsmProxyError as SsmProxyError
    from ssm_proxy.errors import TargetError as TargetError
    from ssm_proxy.errors import TargetNotConnected as TargetNotConnected
    from ssm_proxy.errors import TargetNotFound as TargetNotFound
    from ssm_proxy.errors import Throttled as Throttled
    from ssm_proxy.errors import TransportError as TransportError
    from ssm_proxy.errors import TransportTimeout as TransportTimeout
    from ssm_proxy.errors import UsageError as UsageError
    from ssm_proxy.file_copy.values import CopyIncomplete as CopyIncomplete
    from ssm_proxy.file_copy.values import CopyResult as CopyResult
    from ssm_proxy.file_copy.values import FileOutcome as FileOutcome
    from ssm_proxy.file_copy.values import FileState as FileState
    from ssm_proxy.file_copy.values import Progress as Progress

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AuthenticationFailed",
    "BoundAddress",
    "CommandFailed",
    "CommandResult",
    "ConfigurationError",
    "Connection",
    "ControlPlaneError",
    "CopyError",
    "CopyIncomplete",
    "CopyResult",
    "DocumentRejected",
    "EncryptionError",
    "FileOutcome",
    "FileState",
    "HostKeyChanged",
    "HostKeyUnknown",
    "PortError",
    "Progress",
    "ProtocolError",
    "RemotePortRefused",
    "SessionEnded",
    "SshConnectFailed",
    "SshError",
    "SsmProxyError",
    "TargetError",
    "TargetNotConnected",
    "TargetNotFound",
    "Throttled",
    "TransportError",
    "TransportTimeout",
    "UsageError",
    "__version__",
    "connect",
    "copy",
    "forward",
    "open_connection",
    "run",
    "ssh_client",
]

# Public name -> the module that has it. Those that are not here are errors.
_HOMES = {
    "BoundAddress": "ssm_proxy.api.forwarding",
    "CommandResult": "ssm_proxy.api.commands",
    "Connection": "ssm_proxy.api.connection",
    "CopyIncomplete": "ssm_proxy.file_copy.values",
    "CopyResult": "ssm_proxy.file_copy.values",
    "FileOutcome": "ssm_proxy.file_copy.values",
    "FileState": "ssm_proxy.file_copy.values",
    "Progress": "ssm_proxy.file_copy.values",
    "connect": "ssm_proxy.api.connecting",
    "copy": "ssm_proxy.api.copying",
    "forward": "ssm_proxy.api.forwarding",
    "open_connection": "ssm_proxy.api.asyncio_streams",
    "run": "ssm_proxy.api.commands",
    "ssh_client": "ssm_proxy.api.ssh",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what a program does not ask for is not printed


def __getattr__(name: str) -> Any:
    """Load what is public when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "ssm_proxy.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
