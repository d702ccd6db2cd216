"""What the user's ssh_config, and the options of a command, say about the SSH connection to a host."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ssm_proxy.errors import ConfigurationError, UsageError
from ssm_proxy.ssh.config_files import ConfigFile, Found, Value, find_values
from ssm_proxy.ssh.proxy_command import read_proxy_command
from ssm_proxy.ssh.tokens import Names, expand_path, expand_tokens, jump_host, tokens_of

NO_CONFIG: Final = "none"
"""Given as the configuration file: read none."""
_SYSTEM_FOLDER: Final = Path("/etc/ssh")
_YES: Final = ("yes", "true")
_NO: Final = ("no", "false")
_STRICTNESS: Final = {
    "yes": "yes",
    "true": "yes",
    "no": "no",
    "false": "no",
    "off": "no",
    "accept-new": "accept-new",
    "ask": "ask",
}
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DEFAULT_IDENTITIES: Final = ("id_rsa", "id_ecdsa", "id_ed25519")
"""In the order of ssh, without the kinds that paramiko cannot use from a file."""
_ALL_METHODS: Final = "publickey,keyboard-interactive,password"


@dataclass(frozen=True, kw_only=True)
class SshSettings:
    """How to connect to one host, everything expanded.

    Args:
        target: where the session goes: HostName, or what the ProxyCommand names.
        port: of sshd on the node.
        user: the account there.
        host_key_name: under which known_hosts has the key: HostKeyAlias, or the name with the port if that is not 22.
        plain_host_key_name: the same without the port; ssh looks there too.
        identity_files: private keys to try, in order.
        has_own_identities: whether the user chose them; else they are the usual ones, which need not exist.
        certificate_files: of CertificateFile; KEY-cert.pub beside a key is found without it.
        identities_only: of the keys in the agent use only those that are among ``identity_files``.
        identity_agent: socket of the agent; None for no agent.
        user_known_hosts_files: a new key is added to the first.
        global_known_hosts_files: read only.
        revoked_host_keys_files: lists of keys that are not accepted whatever known_hosts says.
        strict_host_key_checking: ``yes``, ``no``, ``ask`` or ``accept-new``.
        hash_known_hosts: whether a name is added in its hashed form.
        is_batch: never ask.
        methods: of authentication that may be used, as SSH names them.
        password_prompts: how often a password may be asked for.
        keepalive: seconds without a word after which one is sent to the server (ServerAliveInterval); 0 for never.
        proxy_options: what the host's ProxyCommand gives to ``ssm-proxy proxy``, by option (``--profile`` …); empty if
            it is another command.
    """

    target: str
    port: int
    user: str
    host_key_name: str
    plain_host_key_name: str
    identity_files: tuple[Path, ...]
    has_own_identities: bool
    certificate_files: tuple[Path, ...] = ()
    identities_only: bool = False
    identity_agent: str | None = None
    user_known_hosts_files: tuple[Path, ...] = ()
    global_known_hosts_files: tuple[Path, ...] = ()
    revoked_host_keys_files: tuple[Path, ...] = ()
    strict_host_key_checking: str = "accept-new"
    hash_known_hosts: bool = False
    is_batch: bool = False
    methods: tuple[str, ...] = ("publickey", "keyboard-interactive", "password")
    password_prompts: int = 3
    keepalive: int = 0
    proxy_options: Mapping[str, str] = field(default_factory=dict)


def read_settings(
    host: str,
    *,
    user: str | None = None,
    port: int | None = None,
    identity_files: Sequence[str | os.PathLike[str]] = (),
    config_file: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> SshSettings:
    """Find out how to connect to a host, as ssh would.

    What differs from ssh: without StrictHostKeyChecking a new host key is accepted; the home folder is that of HOME;
    CanonicalizeHostname, and choices of ciphers and the like, are not looked at.

    Args:
        host: as the user typed it, without account and port.
        user: instead of User.
        port: instead of Port.
        identity_files: tried before those of the files, which then count as well.
        config_file: read instead of ~/.ssh/config and /etc/ssh/ssh_config; ``none`` reads nothing.
        environment: instead of the process's own.

    Raises:
        ConfigurationError: a file cannot be read or understood, or wants a host key to be checked in a way that is not
            known here; the text names file and line.
        UsageError: host, account or port are none.
    """
    variables = os.environ if environment is None else environment
    names = Names(
        host=_checked_host(host),
        user=None if user is None else _checked_user(user),
        local_user=_local_user(),
        home=variables.get("HOME") or os.path.expanduser("~"),
        environment=variables,
    )
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"{port} is not a port", hint="use a number from 1 to 65535")
    own_folder = Path(names.home) / ".ssh"
    if config_file is None:
        files = [
            ConfigFile(own_folder / "config", own_folder, must_exist=False, is_checked=True),
            ConfigFile(_SYSTEM_FOLDER / "ssh_config", _SYSTEM_FOLDER, must_exist=False, is_checked=False),
        ]
    elif os.fspath(config_file) == NO_CONFIG:
        files = []
    else:
        files = [ConfigFile(Path(config_file).expanduser(), own_folder, must_exist=True, is_checked=False)]
    found = find_values(files, names)
    return _Reading(names, found, own_folder).settings(port, identity_files)


class _Reading:
    """Gives each value of the files its meaning."""

    def __init__(self, names: Names, found: Found, folder: Path) -> None:
        self._names = names
        self._found = found
        self._folder = folder
        self._tokens: dict[str, str] = {}

    def settings(self, port: int | None, identity_files: Sequence[str | os.PathLike[str]]) -> SshSettings:
        self._check_known_hosts_command()
        names = self._names
        user = self._found.user or names.local_user
        target = self._found.host_name
        number = port if port is not None else self._port(self._value("port"))
        alias = self._value("hostkeyalias")
        plain = (alias.words[0] if alias is not None else target).lower()
        jump = self._value("proxyjump")
        self._tokens = tokens_of(
            names,
            host=target.lower(),  # as ssh has it by now; while the files were read, it was as in them
            port=str(number),
            user=user,
            key_name=plain if alias is not None else names.host,
            jump="" if jump is None else jump_host(jump.words[0]),
        )
        own = [*(Path(each).expanduser() for each in identity_files), *self._identities("identityfile")]
        has_own = bool(identity_files) or any(each.keyword == "identityfile" for each in self._found.several)
        options: Mapping[str, str] = {}
        key_port = number
        command = self._value("proxycommand")
        if command is not None and command.text.strip().lower() != "none":
            understood = read_proxy_command(command.text)
            if understood is not None:
                target = self._expanded(understood.host, command)
                options = {name: self._expanded(text, command) for name, text in understood.options.items()}
                number = self._number(
                    self._expanded(understood.port, command), "port of the ProxyCommand", command.place
                )
        return SshSettings(
            target=target,
            port=number,
            user=user,
            host_key_name=plain if alias is not None or key_port == 22 else f"[{plain}]:{key_port}",
            plain_host_key_name=plain,
            identity_files=tuple(dict.fromkeys(own))
            if has_own
            else tuple(self._folder / name for name in _DEFAULT_IDENTITIES),
            has_own_identities=has_own,
            certificate_files=tuple(self._identities("certificatefile")),
            identities_only=self._is_on("identitiesonly", default=False),
            identity_agent=self._agent(),
            user_known_hosts_files=self._files("userknownhostsfile", self._folder, ("known_hosts", "known_hosts2")),
            global_known_hosts_files=self._files(
                "globalknownhostsfile", _SYSTEM_FOLDER, ("ssh_known_hosts", "ssh_known_hosts2")
            ),
            revoked_host_keys_files=self._files("revokedhostkeys", self._folder, ()),
            strict_host_key_checking=self._strictness(),
            hash_known_hosts=self._is_on("hashknownhosts", default=False),
            is_batch=self._is_on("batchmode", default=False),
            methods=self._methods(),
            password_prompts=self._prompts(),
            keepalive=self._seconds("serveraliveinterval"),
            proxy_options=options,
        )

    def _value(self, keyword: str) -> Value | None:
        return self._found.values.get(keyword)

    def _path(self, word: str, place: str) -> Path:
        return Path(expand_path(word, self._names, self._tokens, place))

    def _expanded(self, word: str, value: Value) -> str:
        tokens = {**self._tokens, "h": self._found.host_name}  # names of nodes have small and capital letters
        return expand_tokens(word, tokens, value.place)

    def _identities(self, keyword: str) -> list[Path]:
        return [
            self._path(each.words[0], each.place)
            for each in self._found.several
            if each.keyword == keyword and each.words[0].lower() != "none"
        ]

    def _files(self, keyword: str, folder: Path, usual: tuple[str, ...]) -> tuple[Path, ...]:
        value = self._value(keyword)
        if value is None:
            return tuple(folder / name for name in usual)
        return tuple(self._path(word, value.place) for word in value.words if word.lower() != "none")

    def _is_on(self, keyword: str, *, default: bool) -> bool:
        value = self._value(keyword)
        if value is None:
            return default
        word = value.words[0].lower()
        if word not in (*_YES, *_NO):
            raise ConfigurationError(f"{value.place}: {keyword} is {value.words[0]!r}, and not yes or no")
        return word in _YES

    def _strictness(self) -> str:
        value = self._value("stricthostkeychecking")
        if value is None:
            return "accept-new"
        try:
            return _STRICTNESS[value.words[0].lower()]
        except KeyError:
            raise ConfigurationError(
                f"{value.place}: StrictHostKeyChecking is {value.words[0]!r}",
                hint="use yes, no, ask or accept-new",
            ) from None

    def _check_known_hosts_command(self) -> None:
        value = self._value("knownhostscommand")
        if value is not None and value.text.strip().lower() != "none":  # without its answer any key would pass as new
            raise ConfigurationError(
                f"{value.place}: KnownHostsCommand is not supported",
                cause="the host keys that the command knows are those that may be accepted",
                hint="put the keys into a file of UserKnownHostsFile, and KnownHostsCommand none before that line; "
                "or use ssh itself, through ssm-proxy proxy",
            )

    def _agent(self) -> str | None:
        variables = self._names.environment
        value = self._value("identityagent")
        if value is None or value.words[0] == "SSH_AUTH_SOCK":
            return variables.get("SSH_AUTH_SOCK") or None
        word = value.words[0]
        if word.lower() == "none":
            return None
        if found := re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", word):
            return variables.get(found[1]) or None
        return str(self._path(word, value.place))

    def _methods(self) -> tuple[str, ...]:
        value = self._value("preferredauthentications")
        words = (value.words[0] if value is not None else _ALL_METHODS).split(",")
        switches = {
            "publickey": ("pubkeyauthentication",),
            "password": ("passwordauthentication",),
            "keyboard-interactive": ("kbdinteractiveauthentication", "challengeresponseauthentication"),
        }
        return tuple(
            word for word in words if word in switches and all(self._is_not_off(keyword) for keyword in switches[word])
        )

    def _is_not_off(self, keyword: str) -> bool:
        value = self._value(keyword)  # PubkeyAuthentication has more values than two
        return value is None or value.words[0].lower() not in _NO

    def _prompts(self) -> int:
        value = self._value("numberofpasswordprompts")
        return 3 if value is None else self._number(value.words[0], "number of password prompts", value.place)

    def _port(self, value: Value | None) -> int:
        return 22 if value is None else self._number(value.words[0], "port", value.place)

    def _seconds(self, keyword: str) -> int:
        value = self._value(keyword)
        if value is None:
            return 0
        word = value.words[0].lower()
        if not re.fullmatch(r"([0-9]{1,9}[smhdw]?)+", word, re.ASCII):
            raise ConfigurationError(f"{value.place}: {keyword} is {value.words[0]!r}, and not a time")
        return sum(int(count) * _UNITS[unit] for count, unit in re.findall("([0-9]+)([smhdw]?)", word))

    def _number(self, word: str, what: str, place: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) <= 5 and 0 < int(word) < 65536):
            raise ConfigurationError(f"{place}: the {what} is {word!r}, and not a number from 1 to 65535")
        return int(word)


def _local_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        pass  # in a container there may be no entry for the number
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _checked_host(host: str) -> str:
    # Names come from other programs too, and go into files and commands: what ssh refuses is refused here
    # (openssh-portable, ssh.c, valid_hostname).
    if not host or host.startswith("-") or not host.isprintable() or re.search(r"[\s'`\"$\\;&<>|(){}]", host):
        raise UsageError(f"{host[:80]!r} is not the name of a host", hint="an example: i-0123456789abcdef0")
    return host


def _checked_user(user: str) -> str:
    # As ssh does (openssh-portable, ssh.c, valid_ruser).
    if not user or user.startswith("-") or not user.isprintable() or re.search(r"['`\";&<>|(){}]|\s-|\\$", user):
        raise UsageError(
            f"{user[:80]!r} is not the name of an account", hint="an example: ec2-user@i-0123456789abcdef0"
        )
    return user
