"""What must not be seen is not seen: in logs of any level, in the arguments and in the environment of processes."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from copies import Copier
from nodes import REAL, MakeUser, StartEmulator, User, exchange

from ssm_proxy.emulator import Credentials

pytestmark = pytest.mark.integration
CREDENTIALS = Credentials(
    access_key_id="AKIAVISIBLE", secret_access_key="the-secret-key-itself", session_token="the-session-token-itself"
)
PASSWORD = "hunter2-is-the-payload"


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the tokens that the emulator gives out."""
    issued: list[str] = []
    make: Callable[[int | None], str] = secrets.token_urlsafe

    def collect(size: int | None = None) -> str:
        issued.append(make(size))
        return issued[-1]

    monkeypatch.setattr(secrets, "token_urlsafe", collect)
    return issued


def with_process(user: User) -> Path:
    """Give the user a credential_process, that writes down what it was started with; give the file."""
    seen, script = user.folder / "seen", user.folder / "credentials.py"
    answer = json.dumps(
        {
            "Version": 1,
            "AccessKeyId": CREDENTIALS.access_key_id,
            "SecretAccessKey": CREDENTIALS.secret_access_key,
            "SessionToken": CREDENTIALS.session_token,
            "Expiration": "2000-01-01T00:00:00Z",
        }
    ).replace("2000-01-01", "2999-01-01")
    script.write_text(
        "import os, sys\n"
        f"with open({str(seen)!r}, 'a') as file: print(dict(os.environ), sys.argv, file=file)\n"
        "print('noise of a library', file=sys.stderr)\n"
        f"print({answer!r})\n"
    )
    (user.folder / "aws_config").write_text(f"[profile work]\ncredential_process = {sys.executable} {script}\n")
    return seen


def test_no_secret_is_shown_at_any_level(
    start_emulator: StartEmulator, new_user: MakeUser, tokens: list[str], tmp_path: Path
) -> None:
    emulator = start_emulator(credentials=CREDENTIALS, require_signed_open=True)
    user = new_user(emulator)
    assert isinstance(user.environment, dict)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        del user.environment[name]
    user.environment["AWS_PROFILE"] = "work"
    seen = with_process(user)
    log = tmp_path / "log"
    logged = f"ProxyCommand=ssm-proxy proxy -vvv --log-file {log} %h %p"
    shown = "ProxyCommand=ssm-proxy proxy -vvv --timing %h %p"

    texts = [user.ssh(f"echo {PASSWORD}", "-o", shown).stderr.decode()]
    with user.open("echo ready; exec cat", "-o", logged) as process:
        emulator.drop_connections("client", "reset")
        exchange(process, PASSWORD.encode(), size=len(PASSWORD))
        proxy = user.proxy()
        texts.append(" ".join(proxy.arguments))
        texts.append(Path(f"/proc/{proxy.pid}/environ").read_bytes().decode())
    texts += [log.read_text(), seen.read_text()]

    assert "session started" in texts[0]
    assert "connected again" in texts[3]
    assert len(tokens) == 3, "two sessions, and one of them resumed"
    secret = [*tokens, str(CREDENTIALS.secret_access_key), str(CREDENTIALS.session_token), PASSWORD]
    # The parts of a token count too: logs cut long lines.
    secret += [token[:20] for token in tokens] + [token.encode().hex()[:40] for token in tokens]
    assert [(each, text[:60]) for each in secret for text in texts if each in text] == []


def test_verbose_lines_stay_out_of_the_stream(
    start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path
) -> None:
    user = new_user(start_emulator())
    done = user.ssh("cat", "-o", "ProxyCommand=ssm-proxy proxy -vv %h %p", data=b"data")
    assert (done.returncode, done.stdout) == (0, b"data")
    assert b"input_stream_data" in done.stderr
    log = tmp_path / "log"
    assert user.output("cat", "-o", f"ProxyCommand=ssm-proxy proxy -v --log-file {log} %h %p", data=b"data") == b"data"
    assert "session started" in log.read_text()


def test_no_secret_of_a_copy_is_shown_at_any_level(
    start_emulator: StartEmulator, new_user: MakeUser, tokens: list[str], tmp_path: Path
) -> None:
    emulator = start_emulator(credentials=CREDENTIALS, require_signed_open=True)
    copier = Copier(user=new_user(emulator, REAL), emulator=emulator)
    source = tmp_path / "source"
    source.write_text(PASSWORD * 10_000)
    status, output, errors = copier.run("-vvv", "--json", source, copier.remote(tmp_path / "target"))
    assert status == 0
    log = tmp_path / "log"
    status, data, _ = copier.run("-vvv", "--log-file", log, copier.remote(tmp_path / "target"), "-")
    assert (status, data) == (0, source.read_bytes())
    texts = [output.decode(), errors, log.read_text()]
    assert "session started" in errors
    assert len(tokens) >= 2
    key = next(line for line in copier.user.config.read_text().splitlines() if line.startswith("IdentityFile"))
    secret = [*tokens, str(CREDENTIALS.secret_access_key), str(CREDENTIALS.session_token), PASSWORD]
    secret += Path(key.split()[1]).read_text().splitlines()[1:-1]
    secret += [token[:20] for token in tokens] + [token.encode().hex()[:40] for token in tokens]
    assert [(each, text[:60]) for each in secret for text in texts if each in text] == []
