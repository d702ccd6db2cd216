"""What sessions do, one plugin for each kind; the session around it keeps handshake, numbers, acknowledges and its end.

Source: amazon-ssm-agent, agent/session/plugins/sessionplugin/sessionplugin.go; docs/PROTOCOL.md section 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ssm_proxy.emulator.addresses import Address
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.wire.constants import PayloadType

PIECE_BYTES: Final = 1024
"""Largest payload of output (10.1), but for the bytes of a character that were held back."""

SUCCESS: Final = "Success"
FAILED: Final = "Failed"

Outcome = tuple[str, str]
"""FinalTaskStatus and Output of ``agent_task_complete`` (9.3)."""

Dial = Callable[[int], Address]
"""Gives the address behind a port of the node."""


class PluginHost(Protocol):
    """What a plugin may ask of its session."""

    @property
    def session_id(self) -> str: ...

    @property
    def session_type(self) -> str: ...

    @property
    def properties(self) -> Any:
        """The document's properties after substitution: what its JSON holds, or None."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The document's preferences (1.3)."""

    @property
    def agent_version(self) -> str: ...

    @property
    def client_version(self) -> str:
        """From the HandshakeResponse; empty without a handshake."""

    @property
    def address_of(self) -> Dial: ...

    @property
    def hosts(self) -> Mapping[str, Address | str]:
        """What names of remote hosts stand for, see ``Node.hosts``."""

    @property
    def defects(self) -> Counter[str]:
        """Counts by name what the client did wrong."""

    @property
    def faults(self) -> Callable[[], Faults]:
        """Asked anew each time, as faults may change."""

    @property
    def read_bytes(self) -> int:
        """How much to read from a source at once: a message's worth, or more where the agent makes no pauses."""

    @property
    def is_paused(self) -> bool:
        """Whether the service told the agent to pause (5.7)."""

    def send(self, payload_type: int, payload: bytes) -> None:
        """Number and send one message."""

    def send_pieces(self, data: bytes, payload_type: int = PayloadType.OUTPUT) -> None:
        """Send data as messages of at most :data:`PIECE_BYTES`."""

    async def room(self) -> None:
        """Wait until output may flow; before each read from a source."""

    async def awake(self) -> None:
        """Wait until the agent does anything at all (the fault ``stall_agent_s``); between a read and its message."""

    async def pace(self) -> None:
        """Make the agent's pause, and wait for the client's connection; after each message or batch of them."""

    async def drain(self) -> None:
        """Wait until all output is acknowledged, for 2 s at most (9.1)."""

    def tell_terminating(self) -> None:
        """Tell the service that the session ends by itself: shells and commands only (9.1)."""

    async def wait_for_change(self, deadline: float | None) -> bool:
        """Wait until something came from the client; False when the deadline (of the loop's clock) has passed."""

    def log(self, text: str) -> None: ...


class Plugin(Protocol):
    """The inside of one session. All calls come from one event loop."""

    async def serve(self) -> Outcome:
        """Do the work; return at the end of the session by itself."""

    def take_input(self, payload_type: int, payload: bytes) -> bool:
        """Take the next payload in order; False refuses it: no acknowledge, so that it comes again (5.3)."""

    async def write_pending(self) -> bool:
        """Hand on what was taken; the acknowledges go only after that. False: it was lost, acknowledge nothing."""

    def terminate(self) -> None:
        """The service ends the session: :meth:`hang_up` follows, and what ``serve`` returns does not matter."""

    async def hang_up(self) -> None:
        """Leave no process, socket or descriptor behind; in bounded time, whatever happened before."""
