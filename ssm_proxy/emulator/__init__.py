"""A stand-in for Session Manager on this machine: the service, its agents and their managed nodes.

For anyone who tests software against Session Manager. Of this package it shares the codec and the errors only, so
that one mistake cannot agree with itself.
"""

from ssm_proxy.emulator.counts import SessionSnapshot
from ssm_proxy.emulator.documents import Parameter, SessionDocument
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.emulator.options import Credentials, EmulatorOptions, Node
from ssm_proxy.emulator.runner import Emulator

__all__ = [
    "Credentials",
    "Emulator",
    "EmulatorOptions",
    "Faults",
    "Node",
    "Parameter",
    "SessionDocument",
    "SessionSnapshot",
]
