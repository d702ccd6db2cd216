"""The host key against known_hosts; ssh-keygen is asked which lines are about a host."""

from __future__ import annotations

import base64
import re
import stat
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from bench.sshd import Key, find_program
from ssm_proxy.errors import ConfigurationError, HostKeyChanged, HostKeyUnknown
from ssm_proxy.ssh.host_keys import HostKeyCheck, fingerprint, read_known_hosts
from ssm_proxy.ssh.prompts import NobodyToAsk
from ssm_proxy.ssh.settings import SshSettings, read_settings

NAMES = ("web", "web.example.com", "db1", "[web]:2022", "i-0123456789abcdef0")
LISTS = (
    "web",
    "db1,web",
    "*.example.com",
    "*.example.com,!web.example.com",
    "!web,*",
    "w?b",
    "WEB",
    "[web]:2022",
    "*",
    "[web]:*",
    "i-*",
    "web2",
    "we.b",
)


class Person:
    """Answers in turn."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.questions: list[str] = []

    def can_ask(self) -> bool:
        return True

    def ask(self, question: str) -> str | None:
        self.questions.append(question)
        return self._answers.pop(0)

    def ask_secret(self, question: str) -> None:
        raise AssertionError(question)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    if find_program("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    folder = tmp_path_factory.mktemp("keys")
    made = {name: Key.make(folder / name) for name in ("one", "two")}
    made["rsa"] = Key.make_of_kind(folder / "rsa", "rsa", "-b", "1024")
    made["ecdsa"] = Key.make_of_kind(folder / "ecdsa", "ecdsa")
    return made


def public(key: Key) -> str:
    return " ".join(key.public.read_text().split()[:2])


def served(key: Key) -> paramiko.PKey:
    """Give the key as a server shows it."""
    kind, blob, *_ = key.public.read_text().split()
    return paramiko.PKey.from_type_string(kind, base64.b64decode(blob))


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


@pytest.fixture
def settings(known_hosts: Path) -> SshSettings:
    return replace(
        read_settings("web", config_file="none"), user_known_hosts_files=(known_hosts,), global_known_hosts_files=()
    )


def check(settings: SshSettings, key: Key, *answers: str) -> list[str]:
    notices: list[str] = []
    prompter = Person(*answers) if answers else NobodyToAsk()
    HostKeyCheck(settings, prompter, notices.append).check(served(key))
    return notices


# --- whose line is it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", LISTS)
def test_ssh_keygen_finds_the_same_lines(known_hosts: Path, keys: dict[str, Key], names: str) -> None:
    known_hosts.write_text(f"# a comment\n\n{names} {public(keys['one'])} a comment\n")
    for name in NAMES:
        found = subprocess.run(["ssh-keygen", "-F", name, "-f", known_hosts], capture_output=True, check=False)
        ours = [each.line for each in read_known_hosts(known_hosts, name)]
        assert ours == ([3] if found.returncode == 0 else []), name


def test_names_that_ssh_keygen_has_hashed(known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"web {public(keys['one'])}\n[web]:2022 {public(keys['two'])}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", known_hosts], capture_output=True, check=True)
    assert "web" not in known_hosts.read_text()
    assert [each.line for each in read_known_hosts(known_hosts, "web")] == [1]
    assert [each.line for each in read_known_hosts(known_hosts, "[web]:2022")] == [2]
    assert [each.line for each in read_known_hosts(known_hosts, "db1")] == []


def test_fingerprints_are_those_of_ssh_keygen(keys: dict[str, Key]) -> None:
    for key in keys.values():
        done = subprocess.run(["ssh-keygen", "-lf", key.public], capture_output=True, text=True, check=True)
        assert fingerprint(served(key).asbytes()) in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "web",
        "web ssh-ed25519",
        "web ssh-ed25519 !!!",
        "|1|x|y ssh-ed25519 AAAA",
        "|2|a|b x AAAA",
        "|",
        "@other web x AAAA",
    ],
)
def test_damaged_lines_are_passed_over(known_hosts: Path, keys: dict[str, Key], line: str) -> None:
    known_hosts.write_bytes(line.encode() + b"\n\xff\xfe\n" + f"web {public(keys['one'])}\n".encode())
    assert [each.line for each in read_known_hosts(known_hosts, "web")] == [3]


# --- what is decided ------------------------------------------------------------------------------------------------


def test_a_known_key(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"web {public(keys['two'])}\nweb {public(keys['one'])}\n")
    before = known_hosts.read_bytes()
    for strictness in ("yes", "no", "ask", "accept-new"):
        changed = replace(settings, strict_host_key_checking=strictness)
        assert check(changed, keys["one"]) == []
        assert check(changed, keys["two"]) == []
    assert known_hosts.read_bytes() == before


def test_a_new_key_is_added(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    (notice,) = check(settings, keys["one"])
    assert re.fullmatch(
        rf"the host key of web \(ssh-ed25519 SHA256:\S+\) is new and was added to {known_hosts}", notice
    )
    assert known_hosts.read_text() == f"web {public(keys['one'])}\n"
    assert stat.S_IMODE(known_hosts.stat().st_mode) == 0o600
    assert check(settings, keys["one"]) == []


def test_a_line_without_end_is_ended_first(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"db1 {public(keys['two'])}")
    check(settings, keys["one"])
    assert known_hosts.read_text() == f"db1 {public(keys['two'])}\nweb {public(keys['one'])}\n"


def test_the_folder_is_made_for_the_user_alone(settings: SshSettings, tmp_path: Path, keys: dict[str, Key]) -> None:
    path = tmp_path / ".ssh" / "known_hosts"
    check(replace(settings, user_known_hosts_files=(path, tmp_path / "second")), keys["one"])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not (tmp_path / "second").exists()


def test_a_hashed_name_is_added(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    check(replace(settings, hash_known_hosts=True), keys["one"])
    assert known_hosts.read_text().startswith("|1|")
    found = subprocess.run(["ssh-keygen", "-F", "web", "-f", known_hosts], capture_output=True, check=False)
    assert found.returncode == 0


def test_a_place_where_nothing_can_be_written_is_no_obstacle(
    settings: SshSettings, tmp_path: Path, keys: dict[str, Key]
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "known_hosts"
    (notice,) = check(replace(settings, user_known_hosts_files=(path,)), keys["one"])
    assert f"could not be kept in {path}: " in notice
    assert check(replace(settings, user_known_hosts_files=()), keys["one"]) == []


@pytest.mark.parametrize("strictness", ["yes", "no", "ask", "accept-new"])
@pytest.mark.parametrize("other", ["two", "rsa"], ids=["the same type", "another type"])
def test_a_changed_key_never(
    settings: SshSettings, known_hosts: Path, keys: dict[str, Key], strictness: str, other: str
) -> None:
    known_hosts.write_text(f"db1 {public(keys['one'])}\nweb {public(keys[other])}\n")
    with pytest.raises(HostKeyChanged, match="the host key of web has changed") as caught:
        check(replace(settings, strict_host_key_checking=strictness), keys["one"])
    assert f"{known_hosts}, line 2, has {keys[other].public.read_text().split()[0]} SHA256:" in str(caught.value.cause)
    command = str(caught.value.hint).partition("old key: ")[2]
    subprocess.run(command, shell=True, capture_output=True, check=True)
    assert len(check(settings, keys["one"])) == 1


def test_the_command_for_another_port_works_as_it_is(
    settings: SshSettings, known_hosts: Path, keys: dict[str, Key]
) -> None:
    known_hosts.write_text(f"[web]:2022 {public(keys['two'])}\n")
    with pytest.raises(HostKeyChanged) as caught:
        check(replace(settings, host_key_name="[web]:2022"), keys["one"])
    subprocess.run(str(caught.value.hint).partition("old key: ")[2], shell=True, capture_output=True, check=True)
    assert known_hosts.read_text() == ""


@pytest.mark.parametrize("file", ["user", "global"])
def test_a_key_in_any_of_the_files(settings: SshSettings, tmp_path: Path, keys: dict[str, Key], file: str) -> None:
    second, everybody = tmp_path / "second", tmp_path / "global"
    (second if file == "user" else everybody).write_text(f"web {public(keys['one'])}\n")
    changed = replace(
        settings,
        user_known_hosts_files=(*settings.user_known_hosts_files, second),
        global_known_hosts_files=(everybody,),
        strict_host_key_checking="yes",
    )
    assert check(changed, keys["one"]) == []
    with pytest.raises(HostKeyChanged):
        check(changed, keys["two"])


def test_a_revoked_key_never(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"web {public(keys['one'])}\n@revoked * {public(keys['one'])}\n")
    with pytest.raises(HostKeyChanged, match="was revoked"):
        check(replace(settings, strict_host_key_checking="no"), keys["one"])


@pytest.mark.parametrize("before", ["", "# a list\n\n", "{two}\n"])
def test_a_key_that_a_list_of_revoked_ones_has_never(
    settings: SshSettings, known_hosts: Path, tmp_path: Path, keys: dict[str, Key], before: str
) -> None:
    known_hosts.write_text(f"web {public(keys['one'])}\nweb {public(keys['ecdsa'])}\n")
    revoked = tmp_path / "revoked"
    revoked.write_text(before.format(two=public(keys["two"])) + f"  {public(keys['one'])} a comment\n")
    for strictness in ("yes", "no", "ask", "accept-new"):
        listed = replace(settings, revoked_host_keys_files=(revoked,), strict_host_key_checking=strictness)
        with pytest.raises(HostKeyChanged, match="was revoked") as caught:
            check(listed, keys["one"])
        assert f"{revoked}, line " in str(caught.value.cause)
        assert check(listed, keys["ecdsa"]) == []


def test_a_list_of_revoked_keys_that_is_none_lets_no_key_in(
    settings: SshSettings, known_hosts: Path, tmp_path: Path, keys: dict[str, Key]
) -> None:
    known_hosts.write_text(f"web {public(keys['one'])}\n")
    revoked = tmp_path / "revoked"
    for strictness in ("yes", "no"):
        listed = replace(settings, revoked_host_keys_files=(revoked,), strict_host_key_checking=strictness)
        revoked.unlink(missing_ok=True)
        with pytest.raises(ConfigurationError, match="the revoked host keys in"):
            check(listed, keys["one"])
        revoked.mkdir()
        with pytest.raises(ConfigurationError, match="cannot be read") as caught:
            check(listed, keys["one"])
        assert caught.value.cause == "Is a directory"
        revoked.rmdir()
        kind, text = public(keys["two"]).split()
        for line in ("nonsense", f"web {kind} {text}", f"{kind} {text[:-8]}!", f"ssh-rsa {text}", f'from="x" {kind}'):
            revoked.write_text(f"{public(keys['two'])}\n{line}\n")
            with pytest.raises(ConfigurationError, match="line 2: this is no public key"):
                check(listed, keys["one"])
        revoked.write_text("")
        assert check(listed, keys["one"]) == []
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", revoked, keys["two"].public], check=True)
        with pytest.raises(ConfigurationError, match="cannot be read") as caught:
            check(listed, keys["one"])
        assert "a binary list" in str(caught.value.cause)


def test_an_authority_is_no_host_key(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"@cert-authority * {public(keys['one'])}\n")
    with pytest.raises(HostKeyUnknown) as caught:
        check(replace(settings, strict_host_key_checking="yes"), keys["one"])
    assert "@cert-authority" in str(caught.value.cause)
    assert len(check(settings, keys["two"])) == 1


def test_an_unknown_key_where_only_known_ones_are_accepted(
    settings: SshSettings, known_hosts: Path, keys: dict[str, Key]
) -> None:
    with pytest.raises(HostKeyUnknown, match="is not known: ssh-ed25519 SHA256:"):
        check(replace(settings, strict_host_key_checking="yes"), keys["one"])
    assert not known_hosts.exists()


@pytest.mark.parametrize(
    ("answers", "is_accepted"),
    [(("yes",), True), (("no",), False), (("what?", "YES"), True), (("a", "b", "c"), False), (("SHA256",), True)],
)
def test_a_person_is_asked(
    settings: SshSettings, known_hosts: Path, keys: dict[str, Key], answers: tuple[str, ...], is_accepted: bool
) -> None:
    asking = replace(settings, strict_host_key_checking="ask")
    if answers == ("SHA256",):
        answers = (fingerprint(served(keys["one"]).asbytes()),)
    if is_accepted:
        assert len(check(asking, keys["one"], *answers)) == 1
    else:
        with pytest.raises(HostKeyUnknown):
            check(asking, keys["one"], *answers)
    assert known_hosts.exists() == is_accepted


def test_nobody_is_asked_in_batch_mode(settings: SshSettings, keys: dict[str, Key]) -> None:
    for changed in (
        replace(settings, strict_host_key_checking="ask"),
        replace(settings, strict_host_key_checking="ask", is_batch=True),
    ):
        with pytest.raises(HostKeyUnknown):
            HostKeyCheck(changed, Person("yes") if changed.is_batch else NobodyToAsk(), print).check(
                served(keys["one"])
            )


def test_a_key_known_without_the_port_is_known(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    known_hosts.write_text(f"web {public(keys['one'])}\n")
    other_port = replace(settings, host_key_name="[web]:2022", strict_host_key_checking="yes")
    assert check(other_port, keys["one"]) == []
    with pytest.raises(HostKeyUnknown):
        check(other_port, keys["two"])


def test_algorithms_of_known_keys_come_first(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    all_of_them = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
    preferred: Callable[[], tuple[str, ...]] = lambda: HostKeyCheck(  # noqa: E731
        settings, NobodyToAsk(), print
    ).algorithms(all_of_them)
    assert preferred() == all_of_them
    known_hosts.write_text(f"web {public(keys['rsa'])}\n@cert-authority web {public(keys['one'])}\n")
    assert preferred() == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256")
    known_hosts.write_text(f"web {public(keys['ecdsa'])}\nweb {public(keys['rsa'])}\n")
    assert preferred() == ("ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")


def test_connections_at_once_add_a_key_once(settings: SshSettings, known_hosts: Path, keys: dict[str, Key]) -> None:
    notices: list[str] = []
    shared = HostKeyCheck(settings, NobodyToAsk(), notices.append)
    key = served(keys["one"])
    threads = [threading.Thread(target=shared.check, args=(key,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(notices) == 1
    assert known_hosts.read_text().count("\n") == 1


def test_a_file_that_is_not_there_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert list(read_known_hosts(tmp_path / "missing", "web")) == []
    assert list(read_known_hosts(tmp_path / "file" / "missing", "web")) == []


@pytest.mark.parametrize("kind", ["user", "global"])
def test_a_file_that_cannot_be_read_could_have_another_key(
    settings: SshSettings, tmp_path: Path, keys: dict[str, Key], kind: str
) -> None:
    unreadable = tmp_path / "folder"
    unreadable.mkdir()
    second = (*settings.user_known_hosts_files, unreadable)
    files = (
        replace(settings, user_known_hosts_files=second)
        if kind == "user"
        else replace(settings, global_known_hosts_files=(unreadable,))
    )
    for strictness in ("yes", "ask", "accept-new"):
        with pytest.raises(ConfigurationError, match=f"the known host keys in {unreadable} cannot be read") as caught:
            check(replace(files, strict_host_key_checking=strictness), keys["one"], "yes")
        assert caught.value.cause == "Is a directory"
        with pytest.raises(ConfigurationError):
            HostKeyCheck(files, NobodyToAsk(), print).algorithms(("ssh-ed25519",))
    assert len(check(replace(files, strict_host_key_checking="no"), keys["one"])) == 1
