"""SSH, scp, rsync and Ansible to managed nodes through AWS Systems Manager Session Manager, in pure Python."""

import logging

__version__ = "0.1.0"
__all__ = ["__version__"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what a program does not ask for is not printed
