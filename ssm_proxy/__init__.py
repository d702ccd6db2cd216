"""SSH, scp, rsync and Ansible to managed nodes through AWS Systems Manager Session Manager, in pure Python.

What programs use is named in ``__all__`` and described in docs/api.md; all else may change. Nothing is loaded before
it is used.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm_proxy.api.connecting import connect as connect
    from ssm_proxy.api.connection import Connection as Connection
    from ssm_proxy.errors import AccessDenied as AccessDenied
    from ssm_proxy.errors import ConfigurationError as ConfigurationError
    from ssm_proxy.errors import ControlPlaneError as ControlPlaneError
    from ssm_proxy.errors import CopyError as CopyError
    from ssm_proxy.errors import DocumentRejected as DocumentRejected
    from ssm_proxy.errors import EncryptionError as EncryptionError
    from ssm_proxy.errors import PortError as PortError
    from ssm_proxy.errors import ProtocolError as ProtocolError
    from ssm_proxy.errors import RemotePortRefused as RemotePortRefused
    from ssm_proxy.errors import SessionEnded as SessionEnded
    from ssm_proxy.errors import SsmProxyError as SsmProxyError
    from ssm_proxy.errors import TargetError as TargetError
    from ssm_proxy.errors import TargetNotConnected as TargetNotConnected
    from ssm_proxy.errors import TargetNotFound as TargetNotFound
    from ssm_proxy.errors import Throttled as Throttled
    from ssm_proxy.errors import TransportError as TransportError
    from ssm_proxy.errors import TransportTimeout as TransportTimeout
    from ssm_proxy.errors import UsageError as UsageError

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "ConfigurationError",
    "Connection",
    "ControlPlaneError",
    "CopyError",
    "DocumentRejected",
    "EncryptionError",
    "PortError",
    "ProtocolError",
    "RemotePortRefused",
    "SessionEnded",
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
]

# Public name -> the module that has it. Those that are not here are errors.
_HOMES = {
    "Connection": "ssm_proxy.api.connection",
    "connect": "ssm_proxy.api.connecting",
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
