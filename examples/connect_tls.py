"""Ask a web server on a managed node for a page. Its port is open to nobody but the node itself.

    python examples/connect_tls.py i-0123456789abcdef0 80
    python examples/connect_tls.py i-0123456789abcdef0 443 ca.pem

With a file of certificates the connection is TLS, from here to the server: the service sees ciphertext only.
"""

from __future__ import annotations

import http.client
import ssl
import sys

import ssm_proxy


def main(target: str, port: str, ca_file: str | None = None) -> int:
    try:
        with ssm_proxy.connect(target, port=int(port), reason="a look at the status page") as connection:
            client = http.client.HTTPConnection("localhost")
            if ca_file is None:
                client.sock = connection
            else:
                context = ssl.create_default_context(cafile=ca_file)
                client.sock = context.wrap_socket(connection, server_hostname="localhost")
            client.request("GET", "/")
            answer = client.getresponse()
            print(answer.status, answer.read().decode())
            client.close()
    except ssm_proxy.SsmProxyError as error:
        print(f"{error} ({error.cause}); {error.hint}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
