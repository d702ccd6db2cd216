"""What the emulator counts, and how a session looks from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class ChannelCounts:
    """What passed through the agent's end of one session; grows while the session lives."""

    input_messages: int = 0
    input_bytes: int = 0
    output_messages: int = 0
    output_bytes: int = 0
    resends: int = 0
    repeats_received: int = 0
    out_of_order_received: int = 0
    refused_input: int = 0


@dataclass(frozen=True, kw_only=True)
class SessionSnapshot:
    """One session at one moment."""

    session_id: str
    target: str
    document_name: str
    status: str
    details: str
    connections: int
    """WebSockets of the client so far."""
    input_bytes: int
    input_messages: int
    output_bytes: int
    output_messages: int
    resends: int
    repeats_received: int
    out_of_order_received: int
    refused_input: int
    client_defects: Mapping[str, int]
    """What the client did wrong, by name, even where the agent forgives it."""
