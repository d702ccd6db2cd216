"""Attempts to break a tunnel by anything short of the end of its session. ``scripts/chaos --help`` tells which."""
