"""What several of these tests talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sftp_peer import SFTP_SERVER, Client, OpenSshServer


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of OpenSSH's SFTP server, whose folder is the test's."""
    if SFTP_SERVER is None:
        pytest.skip("no sftp-server")
    server = OpenSshServer(tmp_path)
    yield Client(server)
    server.close()
