"""Layer 4: the only threads, sockets and clocks. Connects the sans-IO core to the world."""
