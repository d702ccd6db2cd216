"""Layer 1: bytes to values and back. No state, no clock."""
