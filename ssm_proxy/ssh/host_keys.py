"""The check of the server's host key against the known_hosts files, and the adding of a new one.

As ssh, and safer in two places. A key that is not the known one ends the connection also with
``StrictHostKeyChecking no``, where ssh would go on without passwords. And a host of which only keys of other types are
known counts as changed: those types are asked for first, so a server that has none of the known keys is another server.
A certificate authority for hosts is not looked at: as with ssh a host without a certificate, its key has to be known.
And a known_hosts file that cannot be read ends the connection, unless all keys are accepted: what it has could be that
another key is the right one.

Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT; ssh_config(5), RevokedHostKeys; openssh-portable sshconnect.c
(``check_host_key``), hostfile.c, authfile.c (``sshkey_check_revoked``).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ssm_proxy.errors import ConfigurationError, HostKeyChanged, HostKeyUnknown
from ssm_proxy.ssh.prompts import Prompter
from ssm_proxy.ssh.settings import SshSettings

if TYPE_CHECKING:
    from paramiko import PKey

_REVOKED: Final = "@revoked"
_MARKERS: Final = (_REVOKED, "@cert-authority")
_BINARY_LIST: Final = b"SSHKRL\n\0"
_RSA_ALGORITHMS: Final = ("rsa-sha2-512", "rsa-sha2-256")

logger = logging.getLogger("ssm_proxy.ssh")


class KnownKey(NamedTuple):
    """One line of a known_hosts file that is about our host."""

    path: Path
    line: int
    marker: str
    key_type: str
    blob: bytes


class HostKeyCheck:
    """Decides about the host keys of the connections to one host. Threads may share it: a new key is added once.

    Args:
        settings: which files, and how strict.
        prompter: asked with ``StrictHostKeyChecking ask``.
        notice: told one line for a person.
    """

    def __init__(self, settings: SshSettings, prompter: Prompter, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._prompter = prompter
        self._notice = notice
        self._lock = threading.Lock()
        self._accepted: bytes | None = None

    def algorithms(self, preferred: tuple[str, ...]) -> tuple[str, ...]:
        """Give the algorithms for host keys with those of the known keys in front.

        Args:
            preferred: all that may be used, the best first.

        Raises:
            ConfigurationError: a known_hosts file cannot be read.
        """
        known: set[str] = set()
        for each in self._lines_about(self._settings.host_key_name):
            if not each.marker:
                known |= set(_RSA_ALGORITHMS) if each.key_type == "ssh-rsa" else {each.key_type}
        return tuple(sorted(preferred, key=lambda algorithm: algorithm not in known))  # sorting keeps the order

    def check(self, key: PKey) -> None:
        """Accept the key that a server has proved to have.

        Raises:
            HostKeyChanged: another one is known, or this one was revoked.
            HostKeyUnknown: none is known, and a new one is not to be accepted.
            ConfigurationError: a file of known or revoked keys cannot be read.
        """
        with self._lock:
            if self._accepted is not None and self._accepted == key.asbytes():
                return
            self._check(key)
            self._accepted = key.asbytes()

    def _check(self, key: PKey) -> None:
        settings = self._settings
        blob = key.asbytes()
        shown = f"{key.get_name()} {fingerprint(blob)}"
        known = list(self._lines_about(settings.host_key_name))
        revoked = (each for each in known if each.marker == _REVOKED)
        for path, line, _, _, revoked_blob in itertools.chain(revoked, self._revoked_everywhere()):
            if revoked_blob == blob:
                raise HostKeyChanged(
                    f"the host key of {settings.host_key_name} was revoked: {shown}",
                    cause=f"{path}, line {line}",
                    hint="do not connect; ask who runs the node for a new host key",
                )
        plain = [each for each in known if not each.marker]
        if any(each.blob == blob for each in plain):
            return
        if plain:
            first = next((each for each in plain if each.key_type == key.get_name()), plain[0])
            raise HostKeyChanged(
                f"the host key of {settings.host_key_name} has changed: it is {shown} now",
                cause=f"{first.path}, line {first.line}, has {first.key_type} {fingerprint(first.blob)}; "
                "somebody may be between you and the node, or the node was made anew",
                hint="if you know why it changed, forget the old key: "
                f"ssh-keygen -f {first.path} -R {_quoted(settings.host_key_name)}",
            )
        if self._is_known_without_port(blob):
            return
        self._accept_new(shown, key, has_authority=bool(known))

    def _accept_new(self, shown: str, key: PKey, *, has_authority: bool) -> None:
        settings = self._settings
        name = settings.host_key_name
        strictness = settings.strict_host_key_checking
        if strictness == "ask" and not self._is_confirmed(shown):
            strictness = "yes"
        if strictness == "yes":
            files = settings.user_known_hosts_files[0] if settings.user_known_hosts_files else "a file"
            certified = "; certificates of hosts (@cert-authority) are not looked at" if has_authority else ""
            raise HostKeyUnknown(
                f"the host key of {name} is not known: {shown}",
                cause=f"StrictHostKeyChecking is {settings.strict_host_key_checking}, and the key is not in {files}"
                f"{certified}",
                hint="compare the fingerprint with the node's own (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub there), "
                "then add the key, or set StrictHostKeyChecking accept-new",
            )
        if not settings.user_known_hosts_files:
            return
        path = settings.user_known_hosts_files[0]
        try:
            _append(path, self._line(key))
        except OSError as error:
            self._notice(f"the host key of {name} ({shown}) could not be kept in {path}: {error.strerror or error}")
        else:
            self._notice(f"the host key of {name} ({shown}) is new and was added to {path}")

    def _is_confirmed(self, shown: str) -> bool:
        if self._settings.is_batch or not self._prompter.can_ask():
            return False
        question = (
            f"the host key of {self._settings.host_key_name} is not known: {shown}\nconnect and remember it (yes/no)? "
        )
        for _ in range(3):
            answer = self._prompter.ask(question)
            if answer is None or answer.strip().lower() == "no":
                return False
            if answer.strip() == fingerprint_in(shown) or answer.strip().lower() == "yes":
                return True
            question = "please type yes, no or the fingerprint: "
        return False

    def _line(self, key: PKey) -> str:
        from paramiko import HostKeys

        name = self._settings.host_key_name
        if self._settings.hash_known_hosts:
            name = HostKeys.hash_host(name)
        return f"{name} {key.get_name()} {key.get_base64()}"

    def _is_known_without_port(self, blob: bytes) -> bool:
        name = self._settings.plain_host_key_name
        if name == self._settings.host_key_name:
            return False
        return any(each.blob == blob and not each.marker for each in self._lines_about(name))

    def _lines_about(self, name: str) -> Iterator[KnownKey]:
        for path in (*self._settings.user_known_hosts_files, *self._settings.global_known_hosts_files):
            try:
                yield from read_known_hosts(path, name)
            except ConfigurationError as error:
                if self._settings.strict_host_key_checking != "no":
                    raise
                logger.warning("%s: %s", error.message, error.cause)

    def _revoked_everywhere(self) -> Iterator[KnownKey]:
        for path in self._settings.revoked_host_keys_files:
            yield from read_revoked_keys(path)


def read_known_hosts(path: Path, name: str) -> Iterator[KnownKey]:
    """Give the lines of a file that are about a name; a file that is not there has none.

    Lines that cannot be understood are passed over, as ssh does.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigurationError(
            f"the known host keys in {path} cannot be read",
            cause=error.strerror,
            hint="correct that file, or UserKnownHostsFile and GlobalKnownHostsFile in ssh_config",
        ) from error
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0] in _MARKERS else ""
        if len(words) < 3 or words[0].startswith(("#", "@")) or not _is_about(words[0], name):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError):
            logger.info("%s, line %d: no key", path, number)
            continue
        yield KnownKey(path, number, marker, words[1], blob)


def read_revoked_keys(path: Path) -> Iterator[KnownKey]:
    """Give the keys of a file of RevokedHostKeys: public keys, one per line.

    Raises:
        ConfigurationError: the file cannot be read or understood as a whole; ssh refuses all keys then, too.
    """
    hint = "correct that file, or RevokedHostKeys in ssh_config"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the revoked host keys in {path} cannot be read", cause=error.strerror, hint=hint
        ) from error
    if data.startswith(_BINARY_LIST):
        raise ConfigurationError(
            f"the revoked host keys in {path} cannot be read",
            cause="it is a binary list (KRL); only a text file with one public key per line is supported",
            hint="list the keys in a text file for RevokedHostKeys; or use ssh itself, through ssm-proxy proxy",
        )
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        blob = _key_in(words)
        if blob is None:
            raise ConfigurationError(f"{path}, line {number}: this is no public key to revoke", hint=hint)
        yield KnownKey(path, number, _REVOKED, words[0], blob)


def _key_in(words: list[str]) -> bytes | None:
    """Give the key of a line of a public key file; None for anything else, certificates included."""
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        return None
    name = words[0].encode()
    is_key = blob.startswith(len(name).to_bytes(4, "big") + name) and b"-cert-v0" not in name
    return blob if is_key else None


def fingerprint(blob: bytes) -> str:
    """Give the fingerprint of a public key as ssh shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def fingerprint_in(shown: str) -> str:
    return shown.rpartition(" ")[2]


def _is_about(patterns: str, name: str) -> bool:
    if patterns.startswith("|"):
        return _is_hash_of(patterns, name)
    is_match = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        expression = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, name.lower(), re.DOTALL):
            if negated:
                return False
            is_match = True
    return is_match


def _is_hash_of(hashed: str, name: str) -> bool:
    from paramiko import HostKeys

    try:
        return hmac.compare_digest(HostKeys.hash_host(name, hashed), hashed)
    except (AssertionError, IndexError, ValueError, TypeError):  # another kind of hash, or damaged
        return False


def _append(path: Path, line: str) -> None:
    """Add a line in one write, so that lines of several processes do not mix."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.lseek(fd, 0, os.SEEK_END)
        is_open = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (("\n" if is_open else "") + line + "\n").encode())
    finally:
        os.close(fd)


def _quoted(name: str) -> str:
    return f"'{name}'" if name.startswith("[") else name
