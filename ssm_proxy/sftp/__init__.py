"""SFTP version 3 as a client speaks it: many requests under way at once, names as bytes. No IO."""
