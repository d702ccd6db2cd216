"""Layer 3: what a session document means, still without IO."""
