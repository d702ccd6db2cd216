"""The ProxyCommand, which leaves its use of the machine in a file: ``measured_proxy.py FILE proxy HOST PORT``."""

import json
import sys
import time

from ssm_proxy.cli.main import main

if __name__ == "__main__":
    report = sys.argv[1]
    status = main(sys.argv[2:])
    import resource  # afterwards: the proxy itself does without

    use = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1 if sys.platform == "darwin" else 1024
    with open(report, "a") as file:
        json.dump({"cpu_s": time.process_time(), "peak_bytes": use.ru_maxrss * scale}, file)
        file.write("\n")
    sys.exit(status)
