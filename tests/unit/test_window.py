from __future__ import annotations

import math

from ssm_proxy.channel.window import FixedWindow, Window


def test_the_fixed_window_stays_as_it_is() -> None:
    window: Window = FixedWindow(4096)
    for _ in range(100):
        window.on_acknowledged(1024, 0.01, 1.0, 4096)
        window.on_acknowledged(1024, None, 1.0, 4096)
        window.forget(1.0)
    assert window.limit_bytes == 4096
    assert window.pace == math.inf
