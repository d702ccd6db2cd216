"""All fuzz targets by name. A target takes bytes, and raises when something is wrong."""

from __future__ import annotations

from collections.abc import Callable

from fuzz import (
    channel_target,
    emulator_targets,
    mux_target,
    pair_target,
    service_targets,
    sftp_target,
    websocket_target,
    wire_targets,
)

TARGETS: dict[str, Callable[[bytes], None]] = {
    **wire_targets.TARGETS,
    **websocket_target.TARGETS,
    **service_targets.TARGETS,
    **emulator_targets.TARGETS,
    **channel_target.TARGETS,
    **pair_target.TARGETS,
    **mux_target.TARGETS,
    **sftp_target.TARGETS,
}

LARGEST_INPUT = {"json_text": 8192, "websocket": 2048, "channel": 250, "pair": 200, "mux": 250, "sftp": 250}
"""Bytes; where it is not the default."""
DEFAULT_LARGEST_INPUT = 512
