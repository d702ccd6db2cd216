"""Layer 6: arguments, messages, exit status."""
