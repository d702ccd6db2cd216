"""One module for each sub-command: ``add_parser`` and ``run``. What is slow to import is imported in ``run``."""
