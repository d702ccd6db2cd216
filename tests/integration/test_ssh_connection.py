"""The SSH connection under a copy: keys, agent, host keys and what goes wrong; sshd and ssh-agent are real."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import paramiko
import pytest
from nodes import Key, Sshd, tool, wait_until
from terminals import terminal

from ssm_proxy.errors import (
    AuthenticationFailed,
    ChannelClosed,
    ConfigurationError,
    HostKeyChanged,
    HostKeyUnknown,
    SshConnectFailed,
)
from ssm_proxy.secret import Secret
from ssm_proxy.ssh.auth import Authenticator
from ssm_proxy.ssh.client import open_client
from ssm_proxy.ssh.host_keys import HostKeyCheck
from ssm_proxy.ssh.login import Login
from ssm_proxy.ssh.prompts import NobodyToAsk
from ssm_proxy.ssh.settings import SshSettings, read_settings

pytestmark = pytest.mark.integration

HOST = "i-0123456789abcdef0"
PASSPHRASE = "open sesame"
LOGIN = Path(__file__).parent / "ssh_login.py"
KINDS = {"ed25519": (), "ecdsa": (), "rsa": ("-b", "2048")}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    """Keys of all kinds, all let in; ``locked`` has a passphrase, and ``stranger`` is let in nowhere."""
    tool("ssh-keygen")
    folder = tmp_path_factory.mktemp("keys")
    made = {kind: Key.make_of_kind(folder / kind, kind, *options) for kind, options in KINDS.items()}
    made["pem"] = Key.make_of_kind(folder / "pem", "rsa", "-b", "2048", "-m", "PEM")
    made["locked"] = Key.make_of_kind(folder / "locked", "ed25519", "-a", "4", passphrase=PASSPHRASE)
    made["stranger"] = Key.make(folder / "stranger")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Key]) -> Iterator[Sshd]:
    """An sshd with host keys of two kinds that lets all keys in but ``stranger``."""
    tool("sshd")
    folder = tmp_path_factory.mktemp("server")
    authority = Key.make(folder / "authority")
    (folder / "authorized_keys").write_text(
        "".join(key.public.read_text() for name, key in keys.items() if name != "stranger")
        + f"cert-authority {authority.public.read_text()}"
    )
    rsa = Key.make_of_kind(folder / "host_rsa", "rsa", "-b", "2048")
    with Sshd(folder, folder / "authorized_keys", [f"HostKey {rsa.private}"]) as running:
        yield running


class Place:
    """A user's files, and a way to the server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.known_hosts = folder / "known_hosts"
        self.config = folder / "config"
        self.notices: list[str] = []
        self.configure()

    def configure(self, *lines: str) -> None:
        usual = [f"UserKnownHostsFile {self.known_hosts}", "GlobalKnownHostsFile none", "IdentityAgent none"]
        self.config.write_text("\n".join([*lines, *usual]) + "\n")

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def settings(self, **options: object) -> SshSettings:
        return read_settings(HOST, config_file=self.config, **options)  # type: ignore[arg-type]

    def authenticator(self) -> Authenticator:
        return Authenticator(self.settings(), prompter=NobodyToAsk())

    def connect(self, authenticator: Authenticator | None = None, timeout: float = 20) -> paramiko.SSHClient:
        settings = self.settings()
        check = HostKeyCheck(settings, NobodyToAsk(), self.notices.append)
        with contextlib.ExitStack() as stack:
            if authenticator is None:
                authenticator = stack.enter_context(self.authenticator())
            return open_client(self.dial(), settings, authenticator, check, timeout=timeout)

    def login(self, authenticator: Authenticator | None = None) -> None:
        with self.connect(authenticator) as client:
            _, output, _ = client.exec_command("echo $((20 + 22))")
            assert output.read() == b"42\n"


@pytest.fixture
def place(tmp_path: Path, server: Sshd) -> Place:
    return Place(tmp_path, server.port)


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Start agents with some keys in them; gives the address."""
    with contextlib.ExitStack() as stack:

        def start(*keys: Key) -> str:
            # Not pytest's folder: its path may be too long for a socket.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ssm-"))
            address = f"{folder}/agent"
            process = subprocess.Popen(
                [tool("ssh-agent"), "-D", "-a", address],
                env={**os.environ, "SSH_ASKPASS": tool("false")},  # whoever runs the tests is not to be asked
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            wait_until(lambda: listens(address), "the agent listens")
            for key in keys:
                subprocess.run(
                    [tool("ssh-add"), "-q", key.private], env={**os.environ, "SSH_AUTH_SOCK": address}, check=True
                )
            return address

        yield start


def listens(address: str) -> bool:
    """Whether somebody answers at a socket: it is there for a moment before its program listens."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address) == 0


@contextlib.contextmanager
def server_that(does: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections with this behaviour; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        does(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def paramiko_threads() -> list[threading.Thread]:
    """Give what could hold the process: connections, and paramiko's timer of the handshake."""
    return [each for each in threading.enumerate() if isinstance(each, paramiko.Transport | threading.Timer)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not paramiko_threads(), "no thread is left")


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "pem"])
def test_a_key_of_each_kind(place: Place, keys: dict[str, Key], kind: str) -> None:
    place.configure(f"IdentityFile {keys[kind].private}")
    place.login()


def test_the_right_one_of_several_keys(place: Place, keys: dict[str, Key], tmp_path: Path) -> None:
    place.configure(
        f"IdentityFile {keys['stranger'].private}",
        f"IdentityFile {tmp_path}/none",
        f"IdentityFile {keys['rsa'].private}",
    )
    place.login()


def test_a_key_that_is_not_let_in(place: Place, keys: dict[str, Key], tmp_path: Path) -> None:
    open_key = tmp_path / "open"
    open_key.write_bytes(keys["rsa"].private.read_bytes())
    open_key.chmod(0o644)
    (tmp_path / "broken").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n")
    (tmp_path / "broken").chmod(0o600)
    place.configure(
        f"IdentityFile {keys['stranger'].private}",
        f"IdentityFile {tmp_path}/missing",
        f"IdentityFile {open_key}",
        f"IdentityFile {tmp_path}/broken",
        f"IdentityFile {keys['locked'].private}",
    )
    with pytest.raises(AuthenticationFailed) as caught:
        place.connect()
    error = caught.value
    assert error.message == f"the server does not let {getpass.getuser()}@{HOST} in"
    assert error.cause is not None
    for part in (
        str(keys["stranger"].private),
        "missing (not there",
        f"run: chmod 600 {open_key}",
        "broken (no private key",
        "locked (it has a passphrase, and there was nobody to ask)",
        "the server accepts: publickey",
    ):
        assert part in error.cause
    assert error.hint == f"run: ssh-add {keys['locked'].private}"
    assert PASSPHRASE not in error.cause


def certify(key: Key, server: Sshd) -> Path:
    """Make a certificate that the server accepts, beside the key."""
    authority = server.host_key.private.with_name("authority")
    command = [tool("ssh-keygen"), "-q", "-s", authority, "-I", "test", "-n", getpass.getuser(), key.public]
    subprocess.run(command, check=True)
    return Path(f"{key.private}-cert.pub")


def test_a_certificate_beside_the_key(place: Place, tmp_path: Path, server: Sshd) -> None:
    key = Key.make(tmp_path / "certified")
    place.configure(f"IdentityFile {key.private}")
    with pytest.raises(AuthenticationFailed):
        place.connect()
    certificate = certify(key, server)
    place.login()
    elsewhere = certificate.rename(tmp_path / "elsewhere-cert.pub")
    place.configure(f"IdentityFile {key.private}", f"CertificateFile {elsewhere}")
    place.login()


def test_two_keys_where_the_server_wants_two(tmp_path: Path, keys: dict[str, Key]) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "keys").write_text("".join(keys[kind].public.read_text() for kind in KINDS))
    with Sshd(folder, folder / "keys", ["AuthenticationMethods publickey,publickey"]) as strict:
        place = Place(tmp_path, strict.port)
        place.configure(f"IdentityFile {keys['ed25519'].private}")
        with pytest.raises(AuthenticationFailed, match="does not let") as caught:
            place.connect()
        assert (caught.value.cause or "").startswith("it took ")
        place.configure(f"IdentityFile {keys['ed25519'].private}", f"IdentityFile {keys['rsa'].private}")
        with place.authenticator() as authenticator:
            place.login(authenticator)
            place.login(authenticator)


# --- the agent ------------------------------------------------------------------------------------------------------


def test_a_key_in_the_agent(
    place: Place, keys: dict[str, Key], agent: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = agent(keys["rsa"])
    monkeypatch.setenv("SSH_AUTH_SOCK", address)
    place.configure("IdentityAgent SSH_AUTH_SOCK", "IdentityFile none")
    place.login()
    monkeypatch.setenv("SSH_AUTH_SOCK", "/not/there")
    with pytest.raises(AuthenticationFailed) as caught:
        place.connect()
    assert "/not/there (it does not answer" in (caught.value.cause or "")
    place.configure(f"IdentityAgent {address}", "IdentityFile none")
    place.login()


def test_identities_only_leaves_other_keys_of_the_agent_alone(
    place: Place, keys: dict[str, Key], agent: Callable[..., str], tmp_path: Path
) -> None:
    address = agent(keys["rsa"], keys["ecdsa"])
    public = tmp_path / "id.pub"
    place.configure(f"IdentityAgent {address}", "IdentitiesOnly yes", f"IdentityFile {keys['stranger'].private}")
    with pytest.raises(AuthenticationFailed) as caught:
        place.connect()
    assert "agent key" not in (caught.value.cause or "")
    public.write_text(keys["ecdsa"].public.read_text())
    for name in ("id", "id.pub"):  # either way of naming a key that is in the agent only
        place.configure(f"IdentityAgent {address}", "IdentitiesOnly yes", f"IdentityFile {tmp_path / name}")
        place.login()


def test_a_named_key_goes_before_the_many_of_the_agent(
    place: Place, keys: dict[str, Key], agent: Callable[..., str], tmp_path: Path
) -> None:
    address = agent(*(Key.make(tmp_path / f"other{number}") for number in range(7)))
    place.configure(f"IdentityAgent {address}", f"IdentityFile {keys['ed25519'].private}")
    place.login()
    place.configure(f"IdentityAgent {address}", f"IdentityFile {keys['stranger'].private}")
    with pytest.raises(AuthenticationFailed) as caught:  # six at most (MaxAuthTries)
        place.connect()
    assert "Too many authentication failures" in (caught.value.cause or "")
    assert "IdentitiesOnly" in (caught.value.hint or "")


def test_sixteen_connections_at_once_by_one_key_of_an_agent(
    place: Place, keys: dict[str, Key], agent: Callable[..., str]
) -> None:
    place.configure(f"IdentityAgent {agent(keys['ed25519'])}", "IdentityFile none")
    with place.authenticator() as authenticator, ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(place.login, authenticator) for _ in range(16)]:
            done.result(60)


def test_an_agent_that_refuses_costs_one_key_only(
    place: Place, keys: dict[str, Key], agent: Callable[..., str]
) -> None:
    address = agent()
    subprocess.run(  # asks before each signature, and there is nobody to say yes
        [tool("ssh-add"), "-q", "-c", keys["rsa"].private], env={**os.environ, "SSH_AUTH_SOCK": address}, check=True
    )
    place.configure(f"IdentityAgent {address}", f"IdentityFile {keys['rsa'].private}.pub", "IdentitiesOnly no")
    with pytest.raises(AuthenticationFailed) as caught:
        place.connect()
    assert "agent key ssh-rsa" in (caught.value.cause or "")
    place.configure(
        f"IdentityAgent {address}", f"IdentityFile {keys['rsa'].private}.pub", f"IdentityFile {keys['ecdsa'].private}"
    )
    place.login()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_certificate_of_a_key_in_the_agent(
    place: Place, server: Sshd, agent: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    key = Key.make_of_kind(tmp_path / "certified", kind)
    address = agent(key)  # the plain key only: there is no certificate yet
    certificate = certify(key, server)
    place.configure(f"IdentityAgent {address}", f"IdentityFile {key.private}")
    place.login()
    elsewhere = certificate.rename(tmp_path / "elsewhere-cert.pub")
    place.configure(f"IdentityAgent {address}", f"IdentityFile {key.private}", f"CertificateFile {elsewhere}")
    place.login()
    place.configure(f"IdentityAgent {address}", "IdentityFile none", f"CertificateFile {elsewhere}")
    place.login()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_in_the_agent(
    place: Place, server: Sshd, agent: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    key = Key.make_of_kind(tmp_path / "certified", kind)
    plain = tmp_path / "plain.pub"
    plain.write_bytes(key.public.read_bytes())
    certificate = certify(key, server)
    address = agent(key)  # with the certificate beside it
    certificate.unlink()
    place.configure(f"IdentityAgent {address}", "IdentityFile none")
    place.login()
    environment = {**os.environ, "SSH_AUTH_SOCK": address}
    subprocess.run([tool("ssh-add"), "-q", "-d", plain], env=environment, check=True)
    listed = subprocess.run([tool("ssh-add"), "-L"], env=environment, capture_output=True, text=True, check=True)
    assert [line.partition(" ")[0].endswith("-cert-v01@openssh.com") for line in listed.stdout.splitlines()] == [True]
    place.login()


def test_a_certificate_that_an_agent_has_too_is_offered_once(
    place: Place, keys: dict[str, Key], agent: Callable[..., str], tmp_path: Path
) -> None:
    key = Key.make(tmp_path / "certified")
    command = [tool("ssh-keygen"), "-q", "-s", keys["stranger"].private, "-I", "test", key.public]
    subprocess.run(command, check=True)
    place.configure(f"IdentityAgent {agent(key)}", f"IdentityFile {key.private}")
    with pytest.raises(AuthenticationFailed) as caught:
        place.connect()
    assert (caught.value.cause or "").count("agent key") == 2


# --- questions ------------------------------------------------------------------------------------------------------


def login_command(place: Place, times: int = 2) -> list[str]:
    return [sys.executable, str(LOGIN), HOST, str(place.port), str(place.config), str(times)]


def test_the_passphrase_is_asked_for_once(place: Place, keys: dict[str, Key]) -> None:
    place.configure(f"IdentityFile {keys['locked'].private}")
    with terminal(login_command(place), os.environ) as screen:
        screen.expect(b"passphrase for .*locked: ")
        screen.type(b"wrong\n")
        screen.expect(b"passphrase for .*locked: ")
        screen.type(PASSPHRASE.encode() + b"\n")
        shown = screen.expect(b"login 0: 42.*login 1: 42")[0]
        assert b"sesame" not in shown
        assert screen.end() == 0
        assert screen.is_as_before


def test_three_wrong_passphrases(place: Place, keys: dict[str, Key]) -> None:
    place.configure(f"IdentityFile {keys['locked'].private}")
    with terminal(login_command(place), os.environ) as screen:
        for _ in range(3):
            screen.expect(b"passphrase for .*locked: ")
            screen.type(b"wrong\n")
        screen.expect(b"AuthenticationFailed: .*its passphrase was not given")
        assert screen.end() == AuthenticationFailed.exit_status


@pytest.mark.parametrize("batch", ["yes", "no"])
def test_nobody_to_ask(place: Place, keys: dict[str, Key], batch: str) -> None:
    place.configure(f"IdentityFile {keys['locked'].private}", f"BatchMode {batch}")
    if batch == "yes":
        with terminal(login_command(place), os.environ) as screen:
            found = screen.expect(b"AuthenticationFailed: .*hint: run: ssh-add .*locked")[0]
            assert b"passphrase for" not in found
        return
    done = subprocess.run(
        login_command(place), input=b"data", capture_output=True, start_new_session=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (AuthenticationFailed.exit_status, b"")
    assert b"nobody to ask" in done.stdout
    assert b"ssh-add" in done.stdout


def test_standard_input_is_not_touched(place: Place, keys: dict[str, Key]) -> None:
    place.configure(f"IdentityFile {keys['ed25519'].private}")
    done = subprocess.run(
        login_command(place), input=b"data", capture_output=True, start_new_session=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"notice: .*\nlogin 0: 42\nlogin 1: 42\ndata", done.stdout)


class AskingServer(asyncssh.SSHServer):
    """Lets in by a password, or by two answers; the real sshd would need an account with a password, and PAM."""

    def __init__(self, method: str, connections: list[asyncssh.SSHServerConnection]) -> None:
        self._method = method
        self._connections = connections

    def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
        self._connections.append(connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return self._method == "password"

    def validate_password(self, username: str, password: str) -> bool:
        return password == PASSPHRASE

    def kbdint_auth_supported(self) -> bool:
        return self._method != "password"

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> object:
        if self._method == "one":
            return "", "", "en", [("Password: ", False)]
        return "Door", "Two questions.", "en", [("Password: ", False), ("Colour\x1b[2J: ", True)]

    def validate_kbdint_response(self, username: str, responses: Sequence[str]) -> bool:
        return list(responses) == [PASSPHRASE, "blue"][: len(responses)]


@contextlib.contextmanager
def asking_server(method: str) -> Iterator[int]:
    """Run such a server; gives the port."""
    connections: list[asyncssh.SSHServerConnection] = []

    def answer(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write("42\n")
        process.exit(0)

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: AskingServer(method, connections),
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            process_factory=answer,
        )

    async def end(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        await acceptor.wait_closed()
        for connection in connections:
            connection.abort()
            await connection.wait_closed()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(20)
        yield acceptor.get_port()
        asyncio.run_coroutine_threadsafe(end(acceptor), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_a_password_is_asked_for_once(tmp_path: Path) -> None:
    with asking_server("password") as port:
        place = Place(tmp_path, port)
        with terminal(login_command(place), os.environ) as screen:
            screen.expect(b"@i-0123456789abcdef0's password: ")
            screen.type(b"wrong\n")
            screen.expect(b"password: ")
            screen.type(PASSPHRASE.encode() + b"\n")
            assert b"sesame" not in screen.expect(b"login 0: 42.*login 1: 42")[0]
            assert screen.end() == 0
        with terminal(login_command(place), os.environ) as screen:
            for _ in range(3):
                screen.expect(b"password: ")
                screen.type(b"wrong\n")
            screen.expect(b"AuthenticationFailed: .*tried: password; the server accepts: password")
        with pytest.raises(AuthenticationFailed):
            place.connect()
        log_in(HOST, password=PASSPHRASE, config_file=place.config, dial=lambda _: place.dial()).close()


def test_what_the_server_asks_is_shown_and_answered_once(tmp_path: Path) -> None:
    with asking_server("two") as port, terminal(login_command(Place(tmp_path, port)), os.environ) as screen:
        screen.expect(rb"Door\r\nTwo questions.\r\n\(.*@i-0123456789abcdef0\) Password: ")
        screen.type(PASSPHRASE.encode() + b"\n")
        question = screen.expect(rb"Colour[^:]*: ")[0]
        assert b"\x1b" not in question
        screen.type(b"blue\n")
        screen.expect(b"blue.*login 0: 42.*login 1: 42")
        assert screen.end() == 0
    with asking_server("one") as port:
        place = Place(tmp_path, port)
        place.configure(f"UserKnownHostsFile {tmp_path / 'other'}")
        log_in(HOST, password=PASSPHRASE, config_file=place.config, dial=lambda _: place.dial()).close()


def test_without_a_terminal_nothing_is_asked() -> None:
    program = (
        "import sys\nfrom ssm_proxy.ssh.prompts import TerminalPrompter\nwho = TerminalPrompter()\n"
        "print(who.can_ask(), who.ask('a'), who.ask_secret('b'), sys.stdin.read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"data", capture_output=True, start_new_session=True, check=False
    )
    assert (done.stdout, done.stderr) == (b"False None None data\n", b"")


# --- host keys ------------------------------------------------------------------------------------------------------


def test_a_new_host_key_is_added_and_a_changed_one_refused(
    place: Place, keys: dict[str, Key], server: Sshd, tmp_path: Path
) -> None:
    place.known_hosts = tmp_path / "new folder" / "known_hosts"
    place.configure(f"IdentityFile {keys['ed25519'].private}", f'UserKnownHostsFile "{place.known_hosts}"')
    place.login()
    place.login()
    assert len(place.notices) == 1
    assert place.known_hosts.read_text().split()[:2] == [HOST, "ssh-ed25519"]
    other = Key.make(tmp_path / "other").public.read_text()
    place.known_hosts.write_text(f"# mine\n{HOST} {other}")
    with pytest.raises(HostKeyChanged) as caught:
        place.connect()
    assert f"{place.known_hosts}, line 2" in (caught.value.cause or "")
    assert f"ssh-keygen -f {place.known_hosts} -R {HOST}" in (caught.value.hint or "")


def test_a_key_that_was_revoked_and_files_that_cannot_be_read(
    place: Place, keys: dict[str, Key], server: Sshd, tmp_path: Path
) -> None:
    revoked = tmp_path / "revoked"
    place.configure(f"IdentityFile {keys['ed25519'].private}", f"RevokedHostKeys {revoked}")
    with pytest.raises(ConfigurationError, match="the revoked host keys in"):
        place.connect()
    revoked.write_text(keys["ed25519"].public.read_text())
    place.login()
    revoked.write_text(server.host_key.public.read_text())
    with pytest.raises(HostKeyChanged, match="was revoked"):
        place.connect()
    place.configure(f"IdentityFile {keys['ed25519'].private}", f"GlobalKnownHostsFile {tmp_path}")
    with pytest.raises(ConfigurationError, match="the known host keys in"):
        place.connect()


def test_the_type_of_the_known_key_is_asked_for(place: Place, keys: dict[str, Key], server: Sshd) -> None:
    rsa = server.host_key.private.with_name("host_rsa.pub").read_text()
    place.known_hosts.write_text(f"{HOST} {rsa}")
    place.configure(f"IdentityFile {keys['ed25519'].private}", "StrictHostKeyChecking yes")
    place.login()
    assert place.known_hosts.read_text() == f"{HOST} {rsa}"


def test_an_unknown_key_where_only_known_ones_are_accepted(place: Place, keys: dict[str, Key]) -> None:
    place.configure(f"IdentityFile {keys['ed25519'].private}", "StrictHostKeyChecking yes")
    with pytest.raises(HostKeyUnknown, match="SHA256:"):
        place.connect()


def test_a_host_key_is_asked_about(place: Place, keys: dict[str, Key]) -> None:
    place.configure(f"IdentityFile {keys['ed25519'].private}", "StrictHostKeyChecking ask")
    with terminal(login_command(place), os.environ) as screen:
        screen.expect(rb"is not known: ssh-ed25519 SHA256:.*\(yes/no\)\? ")
        screen.type(b"no\n")
        screen.expect(b"HostKeyUnknown")
    with terminal(login_command(place), os.environ) as screen:
        screen.expect(rb"\(yes/no\)\? ")
        screen.type(b"yes\n")
        screen.expect(b"login 1: 42")
        assert screen.end() == 0


# --- what goes wrong ------------------------------------------------------------------------------------------------


def refuse(place: Place, timeout: float = 20) -> SshConnectFailed:
    with pytest.raises(SshConnectFailed) as caught:
        place.connect(timeout=timeout)
    return caught.value


def test_a_server_that_drops_connections_is_busy(tmp_path: Path, keys: dict[str, Key]) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with Sshd(folder, keys["ed25519"].public, ["MaxStartups 1", "LoginGraceTime 60"]) as small:
        place = Place(tmp_path, small.port)
        place.configure(f"IdentityFile {keys['ed25519'].private}")

        def is_greeted() -> socket.socket | None:
            connection = place.dial()
            if connection.recv(4) == b"SSH-":
                return connection
            connection.close()
            return None

        with wait_until(is_greeted, "sshd forgets the connection by which it was seen to run"):
            error = refuse(place)
            assert error.is_busy
            assert "hung up before it said a word" in error.message

        def is_let_in() -> bool:
            with contextlib.suppress(SshConnectFailed):
                place.login()
                return True
            return False

        wait_until(is_let_in, "sshd sees that the first has gone", 20)


def silence(connection: socket.socket) -> None:
    connection.settimeout(30)
    while connection.recv(1 << 16):
        pass


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    with server_that(silence) as port:
        error = refuse(Place(tmp_path, port), timeout=0.5)
    assert "said nothing within" in error.message
    assert not error.is_busy


def test_a_server_of_something_else(tmp_path: Path) -> None:
    def does(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 200)

    with server_that(does) as port:
        error = refuse(Place(tmp_path, port))
    assert "is no SSH server" in error.message
    assert "HTTP/1.1 400" in (error.cause or "")


def test_a_server_that_hangs_up_during_the_exchange_of_keys(tmp_path: Path) -> None:
    def does(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        connection.recv(2000)

    with server_that(does) as port:
        error = refuse(Place(tmp_path, port))
    assert "the exchange of keys" in error.message
    assert not error.is_busy


def test_a_server_that_falls_silent_during_the_exchange_of_keys(tmp_path: Path) -> None:
    def does(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        silence(connection)

    class Greeted(Place):
        def dial(self) -> socket.socket:
            connection = super().dial()
            connection.recv(1, socket.MSG_PEEK)  # the time does not run before the greeting is there
            return connection

    with server_that(does) as port:
        error = refuse(Greeted(tmp_path, port), timeout=2)
    assert "was not finished within" in (error.cause or "")


def test_a_server_without_a_common_algorithm(tmp_path: Path, keys: dict[str, Key]) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    with Sshd(folder, keys["ed25519"].public, ["Ciphers chacha20-poly1305@openssh.com"]) as odd:
        error = refuse(Place(tmp_path, odd.port))
    assert "no algorithm in common" in error.message


def nonsense(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-x\r\n" + bytes(range(256)) * 50)
    connection.recv(2000)


def test_a_server_that_sends_nonsense(tmp_path: Path) -> None:
    with server_that(nonsense) as port:
        assert "the exchange of keys" in refuse(Place(tmp_path, port)).message


def test_the_sessions_own_error_comes_out(place: Place, keys: dict[str, Key]) -> None:
    ended = ChannelClosed("the service ended the session", cause="because")
    ours, theirs = socket.socketpair()
    theirs.close()
    settings = place.settings()
    with pytest.raises(ChannelClosed) as caught:
        open_client(
            ours,
            settings,
            place.authenticator(),
            HostKeyCheck(settings, NobodyToAsk(), place.notices.append),
            why_ended=lambda: ended,
        )
    assert caught.value is ended


# --- the function ---------------------------------------------------------------------------------------------------


def log_in(
    host: str,
    user: str | None = None,
    *,
    dial: Callable[[SshSettings], socket.socket],
    port: int | None = None,
    key_filename: Path | None = None,
    password: str | None = None,
    config_file: Path,
) -> paramiko.SSHClient:
    files = [] if key_filename is None else [key_filename]
    settings = read_settings(host, user=user, port=port, identity_files=files, config_file=config_file)
    secret = None if password is None else Secret(password)
    with Login(settings, lambda: dial(settings), password=secret, notify=lambda _: None) as login:
        return login.open_client()


def test_one_line_gives_a_client_and_closing_it_closes_the_connection(place: Place, keys: dict[str, Key]) -> None:
    sockets: list[socket.socket] = []

    def dial(settings: SshSettings) -> socket.socket:
        assert (settings.target, settings.port) == (HOST, 2022)
        sockets.append(place.dial())
        return sockets[0]

    with log_in(
        HOST, getpass.getuser(), port=2022, key_filename=keys["ed25519"].private, config_file=place.config, dial=dial
    ) as client:
        assert client.open_sftp().normalize(".")
    assert place.known_hosts.read_text().startswith(f"[{HOST}]:2022 ssh-ed25519 ")
    assert sockets[0].fileno() == -1


def test_the_passphrase_can_be_given(place: Place, keys: dict[str, Key]) -> None:
    options = {"key_filename": keys["locked"].private, "config_file": place.config}
    log_in(HOST, password=PASSPHRASE, dial=lambda _: place.dial(), **options).close()  # type: ignore[arg-type]
    with pytest.raises(AuthenticationFailed):
        log_in(HOST, dial=lambda _: place.dial(), **options)  # type: ignore[arg-type]


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server_that(nonsense) as port:
        program = (
            "import socket\nfrom ssm_proxy.ssh.login import Login\nfrom ssm_proxy.ssh.settings import read_settings\n"
            "settings = read_settings('x', config_file='none')\n"
            f"dial = lambda: socket.create_connection(('127.0.0.1', {port}))\n"
            "try: Login(settings, dial, notify=print).open_client()\n"
            "except Exception as error: print(type(error).__name__)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"SshConnectFailed\n", b"")
