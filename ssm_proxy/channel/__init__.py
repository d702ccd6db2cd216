"""Layer 2: reliability and handshake of the data channel. Time is an argument; no sockets, clocks or threads."""
