"""SSH, scp, rsync and Ansible to managed nodes through AWS Systems Manager Session Manager, in pure Python."""

__version__ = "0.1.0"
__all__ = ["__version__"]
