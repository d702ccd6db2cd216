"""The user's private keys: in files, in an agent, with certificates; in the order in which they are offered."""

from __future__ import annotations

import base64
import copy
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_public_identity,
)
from paramiko import Message, PKey, SSHException
from paramiko.pkey import PublicBlob, UnknownKeyType

from ssm_proxy.ssh.agent import AgentConnection
from ssm_proxy.ssh.host_keys import fingerprint

if TYPE_CHECKING:
    from ssm_proxy.secret import Secret
    from ssm_proxy.ssh.settings import SshSettings

_MAGIC: Final = b"openssh-key-v1\0"
_BEGIN: Final = b"-----BEGIN "
_LARGEST_FILE: Final = 1024 * 1024
_PASSPHRASE_TRIES: Final = 3

logger = logging.getLogger("ssm_proxy.ssh")

AskPassphrase = Callable[[Path], "Secret | None"]
"""Asks for the passphrase of a file; None if there is nobody to ask, or no answer."""
Note = Callable[[str], None]
"""Told of each key that could not be offered, and why."""


class Identity(NamedTuple):
    """A key that can be offered, and how to call it in messages."""

    label: str
    key: PKey


class _File(NamedTuple):
    """A file that the user calls an identity."""

    path: Path
    public: bytes | None
    """The public key, where it can be known without the passphrase."""
    is_private: bool
    is_encrypted: bool = False


def find_identities(
    settings: SshSettings, agent: AgentConnection | None, ask_passphrase: AskPassphrase, note: Note
) -> Iterator[Identity]:
    """Give the keys in the order in which they are offered, each when it is asked for: no passphrase without need.

    First what is in the agent and was named by the user, then unencrypted files that were named; then all else in the
    agent (unless IdentitiesOnly), the usual files, and last what needs a passphrase. A server ends the connection after
    six keys or so; ssh itself offers the agent's other keys before the named files.
    """
    files = [file for path in settings.identity_files if (file := _look_at(path, settings, note)) is not None]
    certificates = _certificates(settings, files, note)
    held = {key.blob: key for key in agent.signing_keys()} if agent is not None else {}
    offered: set[bytes] = set()

    def offer(label: str, key: PKey, public: bytes) -> Iterator[Identity]:
        offered.add(public)
        for path, blob in certificates.get(public, []):
            certified = copy.copy(key)
            certified.public_blob = blob
            offered.add(blob.key_blob)  # an agent may list it, too
            yield Identity(f"{label} with certificate {path}", certified)
        yield Identity(label, key)

    def in_agent(blob: bytes) -> Iterator[Identity]:
        key = held[blob]
        yield from offer(f"agent key {key.get_name()} {fingerprint(blob)} {key.comment}".rstrip(), key, blob)

    for file in files:
        if file.public is not None and file.public in held and file.public not in offered:
            yield from in_agent(file.public)
    encrypted: list[_File] = []

    def in_files() -> Iterator[Identity]:
        for file in files:
            if file.public in offered or not file.is_private:
                continue
            if file.is_encrypted:
                encrypted.append(file)
            elif (key := _load(file.path, None, note)) is not None:
                yield from offer(str(file.path), key, key.asbytes())

    if settings.has_own_identities:
        yield from in_files()
    if not settings.identities_only:
        for blob in held:
            if blob not in offered:
                yield from in_agent(blob)
    if not settings.has_own_identities:
        yield from in_files()
    for file in encrypted:
        if file.public not in offered and (unlocked := _unlock(file.path, ask_passphrase, note)) is not None:
            yield from offer(str(file.path), unlocked, unlocked.asbytes())
    for file in files:
        if not file.is_private and file.public not in offered:
            note(f"{file.path} (the agent does not have its private key)")


def _look_at(path: Path, settings: SshSettings, note: Note) -> _File | None:
    """Read what can be read of an identity without its passphrase."""
    data = _read(path)
    if data is None:
        public = _public_in(_read(Path(f"{path}.pub")) or b"")
        if public is not None:  # the private key may be in the agent
            return _File(path, public, is_private=False)
        if settings.has_own_identities:
            note(f"{path} (not there, or not readable)")
        return None
    if (public := _public_in(data)) is not None:
        return _File(path, public, is_private=False)
    if _is_open_to_others(path):
        note(f"{path} (ignored: others may read it; run: chmod 600 {path})")
        return None
    cipher, public = _header(data)
    return _File(
        path, public or _public_in(_read(Path(f"{path}.pub")) or b""), is_private=True, is_encrypted=cipher != b"none"
    )


def _certificates(settings: SshSettings, files: list[_File], note: Note) -> dict[bytes, list[tuple[Path, PublicBlob]]]:
    """Give the certificates by the public key that they are for."""
    found: dict[bytes, list[tuple[Path, PublicBlob]]] = {}
    beside = [path for file in files if (path := Path(f"{file.path}-cert.pub")).exists()]
    for path in dict.fromkeys((*settings.certificate_files, *beside)):
        try:
            data = path.read_bytes()
            certificate = load_ssh_public_identity(data)
            if not isinstance(certificate, SSHCertificate):
                raise ValueError("not a certificate")
            plain = certificate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            public = _public_in(plain)
            assert public is not None
            found.setdefault(public, []).append((path, PublicBlob.from_string(data.decode())))
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            note(f"{path} (no certificate: {error})")
    return found


def _load(path: Path, passphrase: Secret | None, note: Note) -> PKey | None:
    """Load a private key; None if it cannot be used, or not with this passphrase."""
    try:
        key = PKey.from_path(path, None if passphrase is None else passphrase.reveal().encode())  # type: ignore[arg-type]
    except (ValueError, TypeError, SSHException, UnknownKeyType, UnsupportedAlgorithm, OSError) as error:
        if passphrase is None:
            note(f"{path} (no private key that can be used: {type(error).__name__})")
        return None
    key.public_blob = None  # certificates are offered apart
    return key


def _unlock(path: Path, ask_passphrase: AskPassphrase, note: Note) -> PKey | None:
    for _ in range(_PASSPHRASE_TRIES):
        passphrase = ask_passphrase(path)
        if passphrase is None:
            note(f"{path} (it has a passphrase, and there was nobody to ask)")
            return None
        if not passphrase:
            break
        key = _load(path, passphrase, note)
        if key is not None:
            return key
    note(f"{path} (its passphrase was not given)")
    return None


def _read(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError:
        return None


def _is_open_to_others(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == os.getuid() and bool(status.st_mode & 0o077)  # as ssh: of other owners nothing is said


def _public_in(data: bytes) -> bytes | None:
    """Give the key of a public key file."""
    try:
        return PublicBlob.from_string(data.decode()).key_blob if data[:1].isalpha() else None
    except (ValueError, SSHException, IndexError):
        return None


def _header(data: bytes) -> tuple[bytes, bytes | None]:
    """Give the cipher of a private key file, ``none`` where there is none, and the public key if it can be seen.

    Source: openssh-portable PROTOCOL.key; RFC 1421 and RFC 5958 for the older formats.
    """
    if not data.startswith(_BEGIN + b"OPENSSH"):
        return (b"PEM" if b"ENCRYPTED" in data else b"none"), None
    try:
        body = base64.b64decode(b"".join(data.split(b"-----")[2].split()))
    except (ValueError, IndexError):
        return b"none", None
    if not body.startswith(_MAGIC):
        return b"none", None
    message = Message(body[len(_MAGIC) :])
    cipher = message.get_binary()
    for _ in range(2):  # key derivation, its options
        message.get_binary()
    return cipher, message.get_binary() if message.get_int() == 1 else None
