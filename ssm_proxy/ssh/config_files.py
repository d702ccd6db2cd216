"""Gives paramiko's parser of ssh_config files what it does not do by itself.

paramiko decides which blocks apply to a host and which of several values is the first. It does not know ``Include``,
comments behind a value, several quoted words, or most tokens; for CanonicalizeHostname it would look names up in DNS
(ssh does not, behind a ProxyCommand); and for ``Match exec`` it starts a program that reads our standard input. So the
files are read here, as ssh reads them, and written anew for paramiko: one text, every ``Include`` unfolded, the
conditions of all blocks around a line in one ``Match``, and in place of a value the number of it in a list, so that no
value is changed on its way and each is known by its file and line.

Source: ssh_config(5); openssh-portable readconf.c (``process_config_line_depth``, ``match_cfg_line``), misc.c
(``argv_split``).
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ssm_proxy.errors import ConfigurationError
from ssm_proxy.ssh.tokens import Names, expand_tokens, expand_variables, jump_host, shown, tokens_of, with_home

if TYPE_CHECKING:
    from paramiko import SSHConfig

_DEEPEST_INCLUDE: Final = 16
_LARGEST_FILE: Final = 4 * 1024 * 1024
_EXEC_TIMEOUT: Final = 30.0
_LINE: Final = re.compile(r'"?([A-Za-z0-9]+)"?(?:[ \t]*=[ \t]*|[ \t]+|$)(.*)', re.DOTALL)
_PLAIN: Final = ("user", "hostname")
"""What ``Match user`` and ``Match host`` look at has to be seen by paramiko."""
_SEVERAL: Final = ("identityfile", "certificatefile")
"""All values count, not the first one; paramiko knows this of IdentityFile, so both go by that name."""
_NOT_OURS: Final = (
    "canonicalizehostname",
    "canonicaldomains",
    "canonicalizemaxdots",
    "canonicalizefallbacklocal",
    "canonicalizepermittedcnames",
    "addressfamily",
)
_RAW: Final = ("proxycommand", "localcommand", "remotecommand", "knownhostscommand")
"""Commands for a shell: ssh takes the rest of the line as it is."""
_NEVER: Final = ("!originalhost", "*")
_PROBE: Final = "ssmproxyprobe"


@dataclass(frozen=True, kw_only=True)
class Value:
    """What one line of a configuration file says.

    Args:
        keyword: in small letters.
        words: what stands behind it, without quotes and comment.
        text: the same as it was written.
        place: file and line, for messages.
    """

    keyword: str
    words: tuple[str, ...]
    text: str
    place: str


class ConfigFile(NamedTuple):
    """A file to read.

    Args:
        path: its place.
        folder: what ``Include`` in it is relative to.
        must_exist: whether it is an error that it does not.
        is_checked: whether it has to belong to the user or to root, and not to be writable by others. As with ssh that
            is so for the user's usual file, and for what is included from any file: it may hold commands to run.
    """

    path: Path
    folder: Path
    must_exist: bool
    is_checked: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the files say for one host."""

    user: str | None
    host_name: str
    """As it was typed, if the files give no other."""
    values: Mapping[str, Value]
    several: tuple[Value, ...]
    """IdentityFile and CertificateFile, in order."""


def find_values(files: list[ConfigFile], names: Names) -> Found:
    """Read configuration files for one host; the first value of each keyword wins.

    Args:
        files: in order.
        names: who asks for which host.

    Raises:
        ConfigurationError: a file cannot be read, or is no ssh_config.
    """
    unfolding = _Unfolding(names)
    for file in files:
        unfolding.read(file)
    options = unfolding.look_up([])
    values = unfolding.values
    chosen = {
        key: values[int(text)]
        for key, text in options.items()
        if key not in (*_PLAIN, "identityfile") and text.isdigit()
    }
    return Found(
        user=options.get("user"),
        host_name=options["hostname"],
        values=chosen,
        several=tuple(values[int(text)] for text in options.get("identityfile", ())),
    )


@dataclass
class _Unfolding:
    """The text for paramiko, while it grows."""

    names: Names
    lines: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def read(self, file: ConfigFile, *, around: tuple[tuple[str, ...], ...] = (), depth: int = 0) -> None:
        text = _read_file(file)
        if text is None:
            return
        inside = around
        self._open_block(inside)
        for number, line in enumerate(text.split("\n"), 1):
            place = f"{file.path}, line {number}"
            line = line.strip(" \t\r\f")
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None or not found[2]:
                raise ConfigurationError(
                    f"{place}: {shown(line)} is not a keyword with a value",
                    hint="see: man ssh_config; ssh -G HOST checks the file too",
                )
            keyword, rest = found[1].lower(), found[2]
            words = (rest,) if keyword in _RAW else _split(rest, place)
            if not words:
                raise ConfigurationError(f"{place}: {found[1]} has no value")
            if keyword == "host":
                patterns = ",".join(word.replace("[", "[[]") for word in words)
                inside = (*around, ("originalhost", patterns))
                self._open_block(inside)
            elif keyword == "match":
                inside = self._settled((*around, *self._match(words, around, place)))
                self._open_block(inside)
            elif keyword == "include":
                if depth == _DEEPEST_INCLUDE:
                    raise ConfigurationError(f"{place}: files include each other more than {depth} deep")
                for path in self._included(words, file.folder, place):
                    included = ConfigFile(path, file.folder, must_exist=False, is_checked=True)
                    self.read(included, around=inside, depth=depth + 1)
                self._open_block(inside)
            elif keyword not in _NOT_OURS:
                self._add(Value(keyword=keyword, words=words, text=rest, place=place))

    def look_up(self, more: list[str]) -> Mapping[str, str]:
        """Ask paramiko what the lines so far, and these, say for the host."""
        from paramiko import SSHConfig, SSHException

        first = [f"user {_quoted(self.names.user)}"] if self.names.user is not None else []
        try:
            config: SSHConfig = SSHConfig.from_text("\n".join([*first, *self.lines, *more]) + "\n")
            options: Mapping[str, str] = config.lookup(self.names.host)
        except (SSHException, ValueError, KeyError, OSError, ImportError) as error:
            raise ConfigurationError("the ssh_config cannot be understood", cause=str(error)) from error
        return options

    def _add(self, value: Value) -> None:
        self.values.append(value)
        if value.keyword in _PLAIN:
            word = value.words[0]
            if value.keyword == "hostname":
                word = re.sub("%[%h]", lambda found: "%" if found[0] == "%%" else self.names.host, word)
            _check_plain(word, value)
            self.lines.append(f"{value.keyword} {_quoted(word)}")
        else:
            keyword = "identityfile" if value.keyword in _SEVERAL else value.keyword
            self.lines.append(f"{keyword} {len(self.values) - 1}")

    def _open_block(self, conditions: tuple[tuple[str, ...], ...]) -> None:
        self.lines.append(_block(conditions))

    def _settled(self, conditions: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        """Decide what depends on HostName and User by what they are here, as ssh does.

        paramiko would ask again at the end of an Include, and all in a second pass.
        """
        names = {condition[0].lstrip("!") for condition in conditions}
        if names & {"final", "canonical"} or not names & {"host", "user"}:
            return conditions
        return () if self._is_met(conditions) else (_NEVER,)

    def _included(self, words: tuple[str, ...], folder: Path, place: str) -> Iterator[Path]:
        for word in words:
            pattern = with_home(expand_variables(word, self.names.environment, place), self.names.home)
            yield from map(Path, sorted(glob.glob(os.path.join(folder, pattern))))

    def _match(
        self, words: tuple[str, ...], around: tuple[tuple[str, ...], ...], place: str
    ) -> tuple[tuple[str, ...], ...]:
        """Give the conditions of a ``Match`` line as paramiko understands them."""
        left = [part for word in words for part in _attribute(word)]
        conditions: list[tuple[str, ...]] = []
        while left:
            attribute = left.pop(0).lower()
            negation, name = ("!", attribute[1:]) if attribute.startswith("!") else ("", attribute)
            if name == "all":
                if len(words) > 1 and [word.lower() for word in words] not in (["canonical", "all"], ["final", "all"]):
                    raise ConfigurationError(f"{place}: Match all goes with nothing else")
                continue
            if name in ("canonical", "final"):
                conditions.append((negation + name,))
                continue
            if name not in _ATTRIBUTES:
                raise ConfigurationError(f"{place}: Match does not know {shown(name)}")
            if not left:
                raise ConfigurationError(f"{place}: Match {name} has no value")
            value = left.pop(0)
            if name == "exec":
                is_met = self._is_met((*around, *conditions)) and self._succeeds(value, place)
                conditions += [] if is_met == (not negation) else [_NEVER]
            elif name == "localuser":
                conditions.append((negation + name, value))
            elif name == "user":
                conditions.append((negation + name, value.replace("[", "[[]")))
            elif name in ("host", "originalhost"):  # unlike Host, without regard to small and capital letters
                either = re.sub(r"[a-zA-Z[]", _either_case, value)
                conditions.append((negation + name, either))
            else:  # what we cannot tell applies to nobody
                conditions.append(_NEVER)
        return tuple(conditions)

    def _is_met(self, conditions: tuple[tuple[str, ...], ...]) -> bool:
        return _PROBE in self.look_up([_block(conditions), f"{_PROBE} 0"])

    def _succeeds(self, command: str, place: str) -> bool:
        """Run the command of a ``Match exec``, with nothing to read, and nothing that it says shown."""
        known = self.look_up([])
        given = {key: self.values[int(known[key])] for key in ("port", "hostkeyalias", "proxyjump") if key in known}
        host = known.get("hostname", self.names.host)
        tokens = tokens_of(
            self.names,
            host=host,
            port=given["port"].words[0] if "port" in given else "22",
            user=known.get("user", self.names.local_user),
            key_name=given["hostkeyalias"].words[0] if "hostkeyalias" in given else host,
            jump=jump_host(given["proxyjump"].words[0]) if "proxyjump" in given else "",
        )
        shell = self.names.environment.get("SHELL") or "/bin/sh"
        try:
            return (
                subprocess.run(
                    [shell, "-c", expand_tokens(command, tokens, place)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    timeout=_EXEC_TIMEOUT,
                    check=False,
                ).returncode
                == 0
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(
                f"{place}: the command of Match exec did not end in {_EXEC_TIMEOUT:.0f} seconds"
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{place}: the command of Match exec cannot run", cause=str(error)) from error


_ATTRIBUTES: Final = (
    "host",
    "originalhost",
    "user",
    "localuser",
    "exec",
    "localnetwork",
    "tagged",
    "command",
    "sessiontype",
    "version",
)


def _read_file(file: ConfigFile) -> str | None:
    path = file.path
    try:
        with path.open("rb") as opened:
            if file.is_checked:
                _check_writers(os.fstat(opened.fileno()), path)
            data = opened.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if file.must_exist:
            raise ConfigurationError(f"the ssh_config {path} does not exist") from error
        return None
    except OSError as error:
        if isinstance(error, IsADirectoryError) and not file.must_exist:
            return None  # ssh finds no line in it: Include ~/.ssh/conf.d/* may meet a folder
        raise ConfigurationError(f"the ssh_config {path} cannot be read", cause=error.strerror) from error
    if len(data) > _LARGEST_FILE:
        raise ConfigurationError(f"{path} is too large for an ssh_config")
    if b"\0" in data:
        raise ConfigurationError(f"{path} is no ssh_config: it holds bytes that are no text")
    return data.decode(errors="surrogateescape")


def _check_writers(status: os.stat_result, path: Path) -> None:
    if status.st_uid not in (0, os.getuid()):
        raise ConfigurationError(f"{path} belongs to another account, so it is not trusted", hint=f"see: ls -l {path}")
    is_open = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_of_one(status))
    if is_open:
        raise ConfigurationError(
            f"{path} may be written by others, so it is not trusted", hint=f"run: chmod go-w {path}"
        )


def _is_of_one(status: os.stat_result) -> bool:
    """Tell whether nobody but the owner is in a file's group.

    So it is where every account has a group of its own, and files that the group may write are usual. ssh of Debian and
    Ubuntu asks this too, and ssh of others refuses all such files.

    Source: Debian's openssh, user-group-modes.patch (``secure_permissions``).
    """
    import grp
    import pwd

    try:
        group = grp.getgrgid(status.st_gid)
        owner = pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    primary = [each.pw_uid for each in pwd.getpwall() if each.pw_gid == status.st_gid]
    if any(uid != os.getuid() for uid in primary) or any(name != owner.pw_name for name in group.gr_mem):
        return False
    return bool(primary or group.gr_mem)  # a group without members is for programs that run with it


def _split(text: str, place: str) -> tuple[str, ...]:
    """Split as ssh does: quotes of both kinds, a backslash before quote, backslash or blank, comments."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    index = 0
    while index < len(text):
        character = text[index]
        following = text[index + 1 : index + 2]
        if character == "\\" and following and (following in "'\"\\" or (not quote and following == " ")):
            word = (word or "") + following
            index += 1
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = (word or "") + character
        elif character in "'\"":
            quote, word = character, word or ""
        elif character in " \t":
            if word is not None:
                words.append(word)
            word = None
        elif character == "#" and word is None:
            break
        else:
            word = (word or "") + character
        index += 1
    if quote:
        raise ConfigurationError(f"{place}: a quotation mark is not closed")
    if word is not None:
        words.append(word)
    return tuple(words)


def _attribute(word: str) -> list[str]:
    """Give the attribute and the value of ``user=root``, and any other word as it is."""
    name, is_split, value = word.partition("=")
    return [name, value] if is_split and name.lower().lstrip("!") in _ATTRIBUTES else [word]


def _either_case(found: re.Match[str]) -> str:
    """Give a pattern for a letter, or for a bracket, which only paramiko takes for more than that."""
    return f"[{found[0].lower()}{found[0].upper()}]" if found[0] != "[" else "[[]"


def _block(conditions: tuple[tuple[str, ...], ...]) -> str:
    if not conditions:
        return "Match all"
    return "Match " + " ".join(shlex.quote(word) for condition in conditions for word in condition)


def _quoted(word: str) -> str:
    return f'"{word}"'


def _check_plain(word: str, value: Value) -> None:
    if not word or not word.isprintable() or '"' in word:
        raise ConfigurationError(f"{value.place}: {shown(word)} cannot be a {value.keyword}")
