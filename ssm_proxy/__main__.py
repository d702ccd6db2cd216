"""``python -m ssm_proxy``."""

from ssm_proxy.cli.main import main

if __name__ == "__main__":
    main()
