"""``python -m ssm_proxy``."""

import sys

from ssm_proxy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
