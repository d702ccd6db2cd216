"""Many connections in one port session: smux, the client's side, without sockets, threads or clocks."""
