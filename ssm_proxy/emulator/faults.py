"""What can go wrong on purpose: one value, the same for the command line, the tests and the control endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from ssm_proxy.errors import UsageError

MANNERS: Final = ("reset", "fin", "close-1000", "close-1001", "blackhole")
SIDES: Final = ("client", "agent")
DIRECTIONS: Final = ("both", "input", "output")
SESSION_ENDS: Final = ("silent", "closed")
"""What clients learn of a node that goes down: nothing at all, or that the service has ended their sessions. Which of
them the service does is not known (docs/PROTOCOL.md section 13)."""
RESUME_REFUSALS: Final = ("", "gone", "error", "throttle")

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "drop_manner": MANNERS,
    "drop_side": SIDES,
    "direction": DIRECTIONS,
    "refuse_resume": RESUME_REFUSALS,
}
_PROBABILITIES: Final = frozenset({"lose", "duplicate", "reorder", "drop_acknowledges", "fragment"})


def _fault(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Every fault and its strength; the default is none of them (but for the service's own idle timeout)."""

    drop_after_bytes: int = _fault(0, "cut after every so many bytes of messages on a connection, both ways together")
    drop_every_s: float = _fault(0.0, "cut every so many seconds after a connection was opened")
    drop_times: int = _fault(0, "cut a session at most so often; 0: no limit")
    drop_manner: str = _fault("reset", f"how connections are cut: {', '.join(MANNERS)}")
    drop_side: str = _fault("client", "which side's connection is cut: client, agent")
    agent_away_s: float = _fault(0.15, "how long an agent whose connection was cut stays away")
    direction: str = _fault("both", "where messages suffer from the next seven: both, input (to the node), output")
    lose: float = _fault(0.0, "probability that a message is lost")
    duplicate: float = _fault(0.0, "probability that a message arrives twice")
    reorder: float = _fault(0.0, "probability that a message arrives some 20 ms late, after its successors")
    drop_acknowledges: float = _fault(0.0, "probability that an acknowledge is lost")
    delay_ms: float = _fault(0.0, "delay of everything on the client's connection, each way")
    bandwidth: int = _fault(0, "bytes per second of the client's connection, each way; 0: no limit")
    queue_bytes: int = _fault(262_144, "bytes that wait in front of a bandwidth limit before senders block")
    fragment: float = _fault(0.0, "probability that a message to the client comes in several WebSocket frames")
    refuse_resume: str = _fault("", "answer ResumeSession with: gone (no token), error (HTTP 500), throttle")
    refuse_resume_times: int = _fault(0, "refuse ResumeSession at most so often; 0: no limit")
    resume_delay_s: float = _fault(0.0, "answer ResumeSession so late")
    refuse_open: int = _fault(0, "answer so many WebSocket openings with HTTP 403; -1: all")
    throttle_start: int = _fault(0, "answer so many StartSession calls with ThrottlingException; -1: all")
    start_rate: float = _fault(0.0, "StartSession calls per second that are answered, the rest throttled; 0: no limit")
    start_burst: int = _fault(1, "StartSession calls that are answered at once when there were none before")
    deny: str = _fault("", "operations answered with AccessDeniedException, joined by commas")
    pause_publication_s: float = _fault(0.0, "tell agent and client to pause, once in each session, for so long")
    stall_agent_s: float = _fault(0.0, "let the agent do nothing, once in each session, for so long")
    idle_timeout_s: float = _fault(1200.0, "end sessions without stream data for so long, unless their document says")
    refused_delay_s: float = _fault(0.0, "report a refused port so late; the real agent takes 60")
    agent_waits: float = _fault(
        1.0, "factor for the agent's own waits: 1 s before a shell's output, 1 to 3 s before a failed start is told"
    )
    dial_delay_s: float = _fault(0.0, "wait so long before each connection to the port")
    discard_after_handshake_ms: float = _fault(
        0.0, "acknowledge input and throw it away for so long after HandshakeComplete, as the real agent may"
    )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"fault {name} cannot be '{getattr(self, name)}'", hint=f"one of: {', '.join(choices)}"
                )
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in _PROBABILITIES and not 0 <= value <= 1:
                raise UsageError(f"fault {each.name} is a probability, from 0 to 1, not {value}")
            if isinstance(value, int | float) and value < 0 and each.name not in ("refuse_open", "throttle_start"):
                raise UsageError(f"fault {each.name} cannot be negative")
        for name in ("queue_bytes", "start_burst"):
            if getattr(self, name) < 1:
                raise UsageError(f"fault {name} must be at least 1")

    def shapes(self, direction: str) -> bool:
        """Say whether messages of this direction (``input`` or ``output``) are to be touched at all."""
        if self.direction not in ("both", direction):
            return False
        return bool(
            self.lose or self.duplicate or self.reorder or self.drop_acknowledges or self.delay_ms or self.bandwidth
        )


def change_faults(faults: Faults, changes: Mapping[str, Any]) -> Faults:
    """Give the faults with some of them changed; values may be text, as on a command line.

    Raises:
        UsageError: an unknown name, or a value that does not fit.
    """
    plain = Faults()
    kinds: dict[str, type[int] | type[float] | type[str]] = {
        each.name: type(getattr(plain, each.name)) for each in fields(Faults)
    }
    converted: dict[str, Any] = {}
    for name, value in changes.items():
        kind = kinds.get(name)
        if kind is None:
            raise UsageError(f"there is no fault '{name}'", hint=f"one of: {', '.join(kinds)}")
        try:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError
            converted[name] = kind(value)
        except (ValueError, OverflowError):
            raise UsageError(f"fault {name} cannot be '{value}'", hint=f"it takes {_KIND_TEXT[kind]}") from None
    return replace(faults, **converted)


_KIND_TEXT: Final[Mapping[type, str]] = {int: "a whole number", float: "a number", str: "a word"}


def parse_faults(texts: Iterable[str]) -> Faults:
    """Read ``name=value`` texts.

    Raises:
        UsageError: see :func:`change_faults`.
    """
    changes = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"'{text}' is no fault", hint="an example: --fault drop_after_bytes=1000000")
        changes[name.replace("-", "_")] = value
    return change_faults(Faults(), changes)


def describe_faults() -> str:
    """Give one line for each fault, for a help text."""
    plain = Faults()
    lines = ((f"{each.name}={getattr(plain, each.name)}", each.metadata["help"]) for each in fields(Faults))
    return "\n".join(f"  {left:<30} {right}" for left, right in lines)
