"""What the user's ssh_config says; ssh itself is asked whether it reads it so."""

from __future__ import annotations

import argparse
import grp
import hashlib
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from bench.sshd import find_program
from ssm_proxy.cli.commands import proxy
from ssm_proxy.errors import ConfigurationError, UsageError
from ssm_proxy.ssh.proxy_command import OPTIONS, OTHER_OPTIONS, read_proxy_command
from ssm_proxy.ssh.settings import SshSettings, read_settings

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ssh_config"

# Each is read for each of HOSTS by us and by ssh.
HOSTS = ("web", "db1", "db2", "WEB")
CONFIGS = {
    "empty": "",
    "plain": "User bob\nPort 2222\nIdentityFile /k1\nIdentityFile /k2\nUserKnownHostsFile /a /b\n",
    "first value wins": "Host web\n User one\nHost *\n User two\n Port 3\nHost web\n Port 4\n",
    "negation": "Host db* !db2\n Port 5\n User x\n",
    "question mark": "Host db?\n Port 5\n",
    "several patterns": "Host web db1\n User w\n",
    "equals signs": "User=bob\nPort = 77\nHostName =\tother\n",
    "quotes": 'IdentityFile "/with space/k"\nUserKnownHostsFile "/a b" /c\nUser "bob"\n',
    "comments behind values": "Port 23 # the port\nIdentityFile /k # the key\n",
    "a hash inside": "IdentityFile /k#1\n",
    "blanks and returns": "  \t User bob  \r\n\r\n# comment\r\n\tPort 24\t\r\n",
    "small letters": "user bob\nIDENTITYFILE /k\nhostname x\n",
    "hostname with the name in it": "HostName %h.example.com\n",
    "hostname with a percent sign": "HostName a%%b\n",
    "no keys": "IdentityFile none\n",
    "keys of several blocks": "Host web\n IdentityFile /web\nHost *\n IdentityFile /all\n IdentityFile /web\n",
    "switches": "IdentitiesOnly yes\nBatchMode yes\nHashKnownHosts yes\nStrictHostKeyChecking yes\n",
    "more switches": "IdentitiesOnly no\nStrictHostKeyChecking off\n",
    "accept-new": "StrictHostKeyChecking accept-new\n",
    "ask": "StrictHostKeyChecking ask\n",
    "alias": "HostKeyAlias other\n",
    "no known hosts": "UserKnownHostsFile none\nGlobalKnownHostsFile /dev/null\n",
    "match originalhost": "Match originalhost web\n HostName i-1\n User m\nMatch host i-1\n Port 9\n",
    "match host after hostname": "HostName %h.example\nMatch host web.example\n Port 9\n",
    "match user": "User bob\nMatch user bob\n Port 9\nMatch user alice\n Port 10\n",
    "match with two conditions": "User bob\nMatch host db* user bob\n Port 9\n",
    "match with negation": "Match !host web\n Port 9\n",
    "match all": "Host web\n User a\nMatch all\n Port 9\n",
    "match exec": 'Match exec "test %h = web"\n Port 9\n',
    "match not exec": 'Match !exec "test %h = web"\n Port 9\n',
    "match exec behind a condition": 'Match host db1 exec "true"\n Port 9\n',
    "match exec with host name": 'Host web\n HostName node\nMatch exec "test %h = node -a %n = web"\n Port 9\n',
    "match before what it looks for": "Match host x\n Port 9\n IdentityFile /k\nMatch all\n HostName x\n",
    "match list": "Match host web,db*,!db2\n Port 9\n",
    "methods": "PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
    "prompts": "NumberOfPasswordPrompts 1\n",
    "keepalive": "ServerAliveInterval 300\n",
    "keepalive in minutes": "ServerAliveInterval 1m30s\n",
    "agent": "IdentityAgent none\n",
    "agent by path": "IdentityAgent /run/agent\n",
    "certificates": "CertificateFile /c1\nCertificateFile /c2\nIdentityFile /k\n",
    "include": "Include inner\nUser outer\n",
    "include in a block that applies to web": "Host web\n Include inner\n Port 7\nHost *\n User last\n",
    "include of blocks in a block": "Host web db1\n Include blocks\n User u\n",
    "include of blocks, then more": "Include blocks\nUser u\n",
    "include in a match": "Match host db*\n Include blocks\nMatch all\n User z\n",
    "include where the condition ceases to hold": "Match host web\n HostName x\n User u\n Include inner\n Port 7\n",
    "include of several": "Include inner blocks\nUser z\n",
    "include by pattern": "Include part*\n",
    "include of nothing": "Include /not/there/*\nUser a\n",
    "include within include": "Include nested\n",
}
INCLUDED = {
    "inner": "User inner\nIdentityFile /inner\n",
    "blocks": "Host web\n Port 11\n IdentityFile /b1\nHost db*\n Port 12\n",
    "part1": "Host web\n User p1\n",
    "part2": "Host *\n User p2\n",
    "nested": "Host db1\n Include blocks\nHost *\n Include inner\n",
}


@pytest.fixture
def home_of_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh asks the password database for its home folder; so that ours is the same."""
    monkeypatch.setenv("HOME", pwd.getpwuid(os.getuid()).pw_dir)


def by_ssh(path: Path, host: str) -> dict[str, list[str]]:
    ssh = find_program("ssh")
    if ssh is None:
        pytest.skip("ssh is not installed")
    done = subprocess.run([ssh, "-G", "-F", path, host], capture_output=True, text=True, check=True)
    answer: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        answer.setdefault(keyword, []).append(value)
    return answer


def shown(paths: tuple[Path, ...]) -> list[str]:
    return [str(path) for path in paths]


@pytest.mark.usefixtures("home_of_ssh")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_ssh_reads_it_so_too(tmp_path: Path, name: str, host: str) -> None:
    for file, text in INCLUDED.items():
        (tmp_path / file).write_text(text)
    config = tmp_path / "config"
    lines = []
    for line in CONFIGS[name].split("\n"):  # ssh -F takes ~/.ssh as the folder of what is included
        before, is_include, files = line.partition("Include ")
        lines.append(
            before + is_include + " ".join(str(tmp_path / file) for file in files.split()) if is_include else line
        )
    config.write_text("\n".join(lines))
    ours = read_settings(host, config_file=config)
    theirs = by_ssh(config, host)
    assert ours.user == theirs["user"][0]
    assert ours.port == int(theirs["port"][0])
    assert ours.target.lower() == theirs["hostname"][0]
    files = theirs.get("identityfile", [])
    if ours.has_own_identities:
        assert [str(path) for path in ours.identity_files] == [file for file in files if file != "none"]
    else:
        usual = [str(Path(file).expanduser()) for file in files]
        assert [file for file in usual if file in shown(ours.identity_files)] == shown(ours.identity_files)
    assert shown(ours.certificate_files) == theirs.get("certificatefile", [])
    assert ours.identities_only == (theirs["identitiesonly"][0] == "yes")
    assert ours.is_batch == (theirs["batchmode"][0] == "yes")
    assert ours.hash_known_hosts == (theirs["hashknownhosts"][0] == "yes")
    known = " ".join(str(Path(file).expanduser()) for file in theirs["userknownhostsfile"][0].split(" "))
    assert " ".join(shown(ours.user_known_hosts_files)) == ("" if known == "none" else known)
    strictness = {"true": "yes", "false": "no"}.get(
        theirs["stricthostkeychecking"][0], theirs["stricthostkeychecking"][0]
    )
    if "stricthostkeychecking" in CONFIGS[name].lower():
        assert ours.strict_host_key_checking == strictness
    assert ("password" in ours.methods) == (theirs["passwordauthentication"][0] == "yes")
    assert ("keyboard-interactive" in ours.methods) == (theirs["kbdinteractiveauthentication"][0] == "yes")
    assert ours.password_prompts == int(theirs["numberofpasswordprompts"][0])
    if "serveralive" in CONFIGS[name].lower():  # Debian's ssh sets it for BatchMode, too
        assert ours.keepalive == int(theirs["serveraliveinterval"][0])
    if "identityagent" in theirs:
        assert (ours.identity_agent or "none") == theirs["identityagent"][0]
    if "hostkeyalias" in theirs:
        assert ours.host_key_name == theirs["hostkeyalias"][0]


def read(tmp_path: Path, text: str, host: str = "web", **options: object) -> SshSettings:
    config = tmp_path / "config"
    config.write_text(text)
    return read_settings(host, config_file=config, **options)  # type: ignore[arg-type]


def test_tokens_and_home_in_paths(tmp_path: Path) -> None:
    text = (
        "HostName node\nUser bob\nPort 23\nIdentityFile ~/.ssh/k_%h_%n_%r_%p_%%\nIdentityFile %d/x~y\n"
        "IdentityFile ${KEYS}/k\nUserKnownHostsFile %d/kh_%k\nIdentityAgent ${AGENT}/socket\n"
    )
    settings = read(tmp_path, text, environment={"HOME": "/h", "KEYS": "/keys", "AGENT": "/a"})
    assert shown(settings.identity_files) == ["/h/.ssh/k_node_web_bob_23_%", "/h/x~y", "/keys/k"]
    assert shown(settings.user_known_hosts_files) == ["/h/kh_web"]
    assert settings.identity_agent == "/a/socket"


TOKENS = "%C_%d_%h_%i_%k_%L_%l_%n_%p_%r_%u_%%"
FOR_TOKENS = {
    "nothing": "",
    "all": "HostName %h.Example\nPort 2222\nUser bob\nHostKeyAlias Alias\n",
    "no alias": "HostName Other\n",
}


@pytest.mark.usefixtures("home_of_ssh")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", FOR_TOKENS)
def test_tokens_stand_for_the_same_as_for_ssh(tmp_path: Path, name: str, host: str) -> None:
    said = tmp_path / "said"
    path = "/f/" + TOKENS.replace("%d_", "")  # a path in the middle
    text = (
        f'{FOR_TOKENS[name]}Match exec "echo {TOKENS} > {said}"\n IdentitiesOnly yes\nMatch all\n'
        f"UserKnownHostsFile {path}\nIdentityAgent {path}\nIdentityFile {path}\nCertificateFile {path}\n"
    )
    ours = read(tmp_path, text, host)
    ours_said = said.read_text()
    said.unlink()
    theirs = by_ssh(tmp_path / "config", host)
    assert ours_said == said.read_text()
    assert shown(ours.user_known_hosts_files) == theirs["userknownhostsfile"]
    assert [ours.identity_agent] == theirs["identityagent"]
    assert ours.identity_files == ours.certificate_files == ours.user_known_hosts_files  # which ssh -G does not expand


def test_the_name_of_this_machine_with_and_without_its_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.uname_result(("Linux", "laptop.example.com", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: here)
    text = 'UserKnownHostsFile /%L/%l\nMatch exec "test %L_%l = laptop_laptop.example.com"\n Port 9\n'
    settings = read(tmp_path, text)
    assert (shown(settings.user_known_hosts_files), settings.port) == (["/laptop/laptop.example.com"], 9)


@pytest.mark.parametrize(
    ("jump", "host"),
    [
        ("none", ""),
        ("jump", "jump"),
        ("me@jump:2222", "jump"),
        ("first,me@second", "second"),
        ("ssh://me@jump:22/", "jump"),
        ("[2001:db8::1]:22", "2001:db8::1"),
    ],
)
def test_the_host_to_jump_over(tmp_path: Path, jump: str, host: str) -> None:
    text = f'ProxyJump {jump}\nUserKnownHostsFile /%j_%C\nMatch exec "test x%j = x{host}"\n Port 9\n'
    settings = read(tmp_path, text, user="bob")
    whole = f"{os.uname().nodename}web9bob{host}"
    (path,) = shown(settings.user_known_hosts_files)
    assert (path, settings.port) == (f"/{host}_{hashlib.sha1(whole.encode()).hexdigest()}", 9)


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("", "/run/agent"),
        ("IdentityAgent SSH_AUTH_SOCK\n", "/run/agent"),
        ("IdentityAgent $OTHER\n", "/run/other"),
        ("IdentityAgent $UNSET\n", None),
        ("IdentityAgent none\n", None),
        ("IdentityAgent ~/agent\n", "/h/agent"),
    ],
)
def test_where_the_agent_is(tmp_path: Path, text: str, agent: str | None) -> None:
    environment = {"HOME": "/h", "SSH_AUTH_SOCK": "/run/agent", "OTHER": "/run/other"}
    assert read(tmp_path, text, environment=environment).identity_agent == agent


def test_the_name_in_known_hosts(tmp_path: Path) -> None:
    assert read(tmp_path, "HostName Node\n").host_key_name == "node"
    assert read(tmp_path, "HostName node\nPort 23\n").host_key_name == "[node]:23"
    assert read(tmp_path, "HostKeyAlias alias\nPort 23\n").host_key_name == "alias"


def test_host_keys_that_ssh_would_refuse(tmp_path: Path) -> None:
    assert read(tmp_path, "RevokedHostKeys none\nKnownHostsCommand none\n").revoked_host_keys_files == ()
    settings = read(tmp_path, "RevokedHostKeys ~/revoked_%r\n", user="bob", environment={"HOME": "/h"})
    assert shown(settings.revoked_host_keys_files) == ["/h/revoked_bob"]
    with pytest.raises(ConfigurationError, match="line 2: KnownHostsCommand is not supported"):
        read(tmp_path, "Host web\n KnownHostsCommand /bin/keys %H\n")
    assert read(tmp_path, "Host db\n KnownHostsCommand /bin/keys %H\n").target == "web"


def test_options_of_the_command_come_first(tmp_path: Path) -> None:
    text = "User bob\nPort 23\nIdentityFile /config\nMatch user alice\n IdentityFile /alice_%r\n"
    settings = read(tmp_path, text, user="alice", port=24, identity_files=["/option"])
    assert (settings.user, settings.port) == ("alice", 24)
    assert shown(settings.identity_files) == ["/option", "/config", "/alice_alice"]


def test_the_users_file_goes_before_the_systems_and_neither_must_exist(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    assert not read_settings("web", environment=environment).has_own_identities
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "config").write_text("User mine\nInclude more\n")
    (folder / "more").write_text("Port 23\n")
    settings = read_settings("web", environment=environment)
    assert (settings.user, settings.port) == ("mine", 23)
    settings = read_settings("web", environment=environment, config_file="none")
    assert (settings.user == "mine", settings.port) == (False, 22)
    (folder / "config").chmod(0o646)
    with pytest.raises(ConfigurationError, match="may be written by others"):
        read_settings("web", environment=environment)


MODES = (0o600, 0o644, 0o620, 0o664, 0o642, 0o646, 0o666)


@pytest.mark.parametrize("group", ["own", "another"])
@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_ssh_trusts_the_same_included_files(tmp_path: Path, mode: int, group: str) -> None:
    if group == "another" and os.getuid() != 0:
        pytest.skip("only root can give a file to any group")
    config, included = tmp_path / "config", tmp_path / "included"
    included.write_text("User inner\n")
    if group == "another":
        os.chown(included, -1, grp.getgrnam("daemon").gr_gid)
    included.chmod(mode)
    config.write_text(f"Include {included}\n")
    config.chmod(0o666)  # what -F names is not looked at
    ssh = find_program("ssh")
    if ssh is None:
        pytest.skip("ssh is not installed")
    version = subprocess.run([ssh, "-V"], capture_output=True, text=True, check=True).stderr
    done = subprocess.run([ssh, "-G", "-F", config, "web"], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ("Bad owner or permissions" not in done.stderr)
    if mode & 0o020 and not mode & 0o002 and "Debian" not in version and "Ubuntu" not in version:
        assert done.returncode != 0  # only they know groups of one account
    elif done.returncode == 0:
        assert read_settings("web", config_file=config).user == "inner"
    else:
        with pytest.raises(ConfigurationError, match="may be written by others"):
            read_settings("web", config_file=config)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_ssh_does_not_trust_an_included_file_of_another_account_either(tmp_path: Path) -> None:
    config, included = tmp_path / "config", tmp_path / "included"
    included.write_text("User inner\n")
    included.chmod(0o644)
    os.chown(included, pwd.getpwnam("nobody").pw_uid, -1)
    config.write_text(f"Include {included}\n")
    with pytest.raises(subprocess.CalledProcessError):
        by_ssh(config, "web")
    with pytest.raises(ConfigurationError, match="belongs to another account"):
        read_settings("web", config_file=config)


@pytest.mark.parametrize(
    ("accounts", "members", "is_trusted"),
    [
        ([("me", True)], [], True),
        ([("me", True)], ["me"], True),
        ([], ["me"], True),
        ([], [], False),
        ([("me", True)], ["me", "other"], False),
        ([("me", True), ("other", False)], [], False),
        ([("other", False)], ["me"], False),
    ],
)
def test_a_file_that_the_group_may_write_is_trusted_if_nobody_else_is_in_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accounts: list[tuple[str, bool]],
    members: list[str],
    is_trusted: bool,
) -> None:
    group = os.stat(tmp_path).st_gid

    def account(name: str, is_me: bool) -> pwd.struct_passwd:
        uid = os.getuid() if is_me else os.getuid() + 1
        return pwd.struct_passwd((name, "x", uid, group, "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwall", lambda: [account(*each) for each in accounts])
    monkeypatch.setattr(pwd, "getpwuid", lambda _: account("me", True))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("g", "x", gid, members)))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    config = folder / "config"
    config.write_text("User mine\n")
    os.chown(config, -1, group)
    config.chmod(0o664)
    environment = {"HOME": str(tmp_path)}
    if is_trusted:
        assert read_settings("web", environment=environment).user == "mine"
    else:
        with pytest.raises(ConfigurationError, match="may be written by others"):
            read_settings("web", environment=environment)


def test_ssh_skips_the_same_of_what_a_pattern_includes(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    (folder / "a folder").mkdir(parents=True)
    (folder / "a folder" / "deep").write_text("User deep\n")
    (folder / "gone").symlink_to("nowhere")
    (folder / "last").write_text("Port 99\n")
    config = tmp_path / "config"
    for included in (f"{folder}/*", f"{folder} {folder}/last"):
        config.write_text(f"Include {included}\nUser after\n")
        ours, theirs = read_settings("web", config_file=config), by_ssh(config, "web")
        assert (ours.user, ours.port) == (theirs["user"][0], int(theirs["port"][0])) == ("after", 99)


@pytest.mark.parametrize("kind", ["loop", "unreadable"])
def test_neither_does_ssh_skip_what_it_cannot_read(tmp_path: Path, kind: str) -> None:
    included = tmp_path / "included"
    if kind == "loop":
        included.symlink_to("included")
    elif os.getuid() == 0:
        pytest.skip("root can read all files")
    else:
        included.write_text("User inner\n")
        included.chmod(0)
    config = tmp_path / "config"
    config.write_text(f"Include {tmp_path}/incl*\n")
    with pytest.raises(subprocess.CalledProcessError):
        by_ssh(config, "web")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings("web", config_file=config)


def test_our_example_is_read(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # a checkout may belong to another account
    copy.write_bytes(EXAMPLE.read_bytes())
    settings = read(tmp_path, f"User me\nInclude {copy}\n", "i-0123456789abcdef0")
    assert (settings.target, settings.user, settings.strict_host_key_checking) == (
        "i-0123456789abcdef0",
        "me",
        "accept-new",
    )
    assert settings.proxy_options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("User\n", "line 1: 'User' is not a keyword with a value"),
        ("\n?!\n", r"line 2: '\?!' is not a keyword"),
        ('User "bob\n', "line 1: a quotation mark is not closed"),
        ("Port 99999\n", "line 1: the port is '99999'"),
        ("Port ssh\n", "line 1: the port is 'ssh'"),
        ("IdentityFile %Q\n", "line 1: the token %Q"),
        ("IdentityFile /k%\n", "line 1: the token %"),
        ("IdentityFile ${NOT_SET}/k\n", "line 1: the variable NOT_SET is not set"),
        ("StrictHostKeyChecking maybe\n", "line 1: StrictHostKeyChecking is 'maybe'"),
        ("ServerAliveInterval often\n", "line 1: serveraliveinterval is 'often'"),
        ("BatchMode maybe\n", "line 1: batchmode is 'maybe'"),
        ("Match\n", "line 1: 'Match' is not a keyword"),
        ("Match host\n", "line 1: Match host has no value"),
        ("Match weather rain\n", "line 1: Match does not know 'weather'"),
        ("Match all host web\n", "line 1: Match all goes with nothing else"),
        ("User # nothing\n", "line 1: User has no value"),
        ("User bob\0\n", "no ssh_config"),
        ("HostName a\x01b\n", "line 1: 'a\\\\x01b' cannot be a hostname"),
    ],
)
def test_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_settings("web", config_file=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings("web", config_file=tmp_path)
    with pytest.raises(ConfigurationError, match="include each other"):
        read(tmp_path, f"Include {tmp_path / 'config'}\n")


def test_what_match_exec_prints_and_reads_is_not_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert read(tmp_path, 'Match exec "echo noise; cat"\n Port 9\n').port == 9
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a;b", "a$b", "a\nb", 'a"b'])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a host"):
        read_settings(host, config_file="none")


@pytest.mark.parametrize("user", ["", "-x", "a\nb", 'a"b', "a;b"])
def test_what_is_no_account(user: str) -> None:
    with pytest.raises(UsageError, match="is not the name of an account"):
        read_settings("web", user=user, config_file="none")


# --- the ProxyCommand ----------------------------------------------------------------------------------------------


def test_the_proxy_command_of_a_host_counts(tmp_path: Path) -> None:
    text = "Host web\n HostName i-0a\n Port 23\n ProxyCommand ssm-proxy proxy --profile prod --region eu-west-1 %h %p\n"
    settings = read(tmp_path, text)
    assert (settings.target, settings.port, settings.host_key_name) == ("i-0a", 23, "[i-0a]:23")
    assert settings.proxy_options == {"--profile": "prod", "--region": "eu-west-1"}
    other = read(tmp_path, text, "db")
    assert (other.target, other.proxy_options) == ("db", {})


def test_the_name_of_a_node_keeps_its_capital_letters(tmp_path: Path) -> None:
    assert read(tmp_path, "ProxyCommand ssm-proxy proxy %h %p\n", "Web-1").target == "Web-1"


def test_tokens_of_other_commands_are_not_ours(tmp_path: Path) -> None:
    assert read(tmp_path, "ProxyCommand date +%s; nc %h %p\n").target == "web"
    with pytest.raises(ConfigurationError, match="line 1: the token %s"):
        read(tmp_path, "ProxyCommand ssm-proxy proxy --reason %s %h %p\n")
    assert read(tmp_path, "ProxyCommand ssm-proxy proxy --reason %%%r %h\n", user="u").proxy_options == {
        "--reason": "%u"
    }


def test_words_of_the_proxy_command_are_the_target_and_the_port(tmp_path: Path) -> None:
    settings = read(tmp_path, "ProxyCommand ssm-proxy proxy i-0b 2022\n")
    assert (settings.target, settings.port, settings.host_key_name) == ("i-0b", 2022, "web")
    assert read(tmp_path, "Port 23\nProxyCommand ssm-proxy proxy %h\n").port == 22
    with pytest.raises(ConfigurationError, match="line 1: the port of the ProxyCommand is 'x'"):
        read(tmp_path, "ProxyCommand ssm-proxy proxy %h x\n")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("ssm-proxy proxy h 22", {}),
        ("/opt/bin/ssm-proxy proxy h 22", {}),
        ("exec ssm-proxy proxy h 22", {}),
        ("python3 -m ssm_proxy proxy --profile p h 22", {"--profile": "p"}),
        ("/usr/bin/python3.12 -I -m ssm_proxy proxy --region r h 22", {"--region": "r"}),
        ("/venv/bin/python /venv/bin/ssm-proxy proxy h 22", {}),
        ("ssm-proxy proxy -vv --log-file /l --timing --reason 'for a copy' h 22", {"--reason": "for a copy"}),
        ("ssm-proxy proxy h 22 --profile=p", {"--profile": "p"}),
        ("ssm-proxy proxy --endpoint-url http://x --stream-endpoint-url ws://y --document-name D -- h 22", None),
        ("AWS_PROFILE=p AWS_REGION=r ssm-proxy proxy h 22", {"--profile": "p", "--region": "r"}),
        ("env AWS_PROFILE=p ssm-proxy proxy --profile q h 22", {"--profile": "q"}),
    ],
)
def test_our_proxy_commands(command: str, options: dict[str, str] | None) -> None:
    found = read_proxy_command(command)
    assert found is not None
    assert (found.host, found.port) == ("h", "22")
    if options is None:
        options = {"--endpoint-url": "http://x", "--stream-endpoint-url": "ws://y", "--document-name": "D"}
    assert found.options == options


@pytest.mark.parametrize(
    "command",
    [
        "",
        "none",
        "nc %h %p",
        "ssm-proxy",
        "ssm-proxy shell h",
        "ssm-proxy proxy",
        "ssm-proxy proxy a b c",
        "ssm-proxy proxy h --profile",
        "sh -c 'aws ssm start-session --target h'",
        "python -m other proxy h",
        "python script.py proxy h",
        "ssm-proxy proxy 'h",
    ],
)
def test_other_proxy_commands(command: str) -> None:
    assert read_proxy_command(command) is None


def test_no_option_of_proxy_is_unknown_here() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    proxy.add_parser(commands)
    (parser,) = commands.choices.values()
    with_value = {
        option for action in parser._actions if action.nargs is None for option in action.option_strings if option
    }
    assert with_value == {*OPTIONS, *OTHER_OPTIONS}
