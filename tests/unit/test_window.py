from __future__ import annotations

from ssm_proxy.channel.window import FIXED_WINDOW_BYTES, FixedWindow, Window


def test_the_fixed_window_stays_as_it_is() -> None:
    window: Window = FixedWindow()
    for _ in range(100):
        window.on_acknowledged(1024, 0.01, 1.0)
        window.on_acknowledged(1024, None, 1.0)
        window.on_lost(1.0)
    assert window.limit_bytes == FIXED_WINDOW_BYTES


def test_the_default_is_far_below_what_receivers_can_reorder() -> None:
    assert FIXED_WINDOW_BYTES / 1024 < 10_000 / 10  # (10.4)


def test_a_size_can_be_given() -> None:
    assert FixedWindow(4096).limit_bytes == 4096
