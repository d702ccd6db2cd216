"""Measurements that anyone can repeat: ``python -m bench``. Every figure is also a ratio within the same run."""
