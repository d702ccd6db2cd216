"""Proves to the server who the user is, and remembers by what: further connections of one copy use that at once.

paramiko calls ``authenticate`` where it takes an ``AuthStrategy``. Its own strategy class is not used: it goes on after
a connection has died, and knows nothing of methods that have to be combined.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from paramiko import AuthenticationException, BadAuthenticationType, PKey, SSHException, Transport

from ssm_proxy.errors import AuthenticationFailed, SshConnectFailed
from ssm_proxy.secret import Secret
from ssm_proxy.ssh.agent import AgentConnection
from ssm_proxy.ssh.identities import find_identities
from ssm_proxy.ssh.prompts import NobodyToAsk, Prompter, TerminalPrompter, printable
from ssm_proxy.ssh.settings import SshSettings

_GRACE: Final = 120.0
"""sshd waits so long for a proof (LoginGraceTime)."""

logger = logging.getLogger("ssm_proxy.ssh")


class _Proof(Protocol):
    """Something to prove oneself with."""

    @property
    def label(self) -> str:
        """How to call it in messages."""

    @property
    def method(self) -> str:
        """The method of SSH that it is for."""

    def present(self, transport: Transport, user: str) -> list[str]:
        """Offer it to the server; give the methods that are wanted beside it, none once the server is content.

        Raises:
            AuthenticationException: the server does not take it.
        """


class _KeyProof:
    method = "publickey"

    def __init__(self, label: str, key: PKey) -> None:
        self.label = label
        self._key = key

    def present(self, transport: Transport, user: str) -> list[str]:
        return transport.auth_publickey(user, self._key)


class _PasswordProof:
    method = "password"
    label = "password"

    def __init__(self, password: Secret) -> None:
        self._password = password

    def present(self, transport: Transport, user: str) -> list[str]:
        return transport.auth_password(user, self._password.reveal(), fallback=False)


class _AnswersProof:
    """Answers to what the server asks, of a person the first time."""

    method = "keyboard-interactive"
    label = "answers to the server's questions"

    def __init__(self, prompter: Prompter, whom: str, password: Secret | None = None) -> None:
        self._prompter = prompter
        self._whom = whom
        self._password = password
        self._answers: dict[str, Secret] = {}
        self.is_given_up = False

    def present(self, transport: Transport, user: str) -> list[str]:
        with _patience(transport):
            return transport.auth_interactive(user, self._answer)

    def _answer(self, title: str, instructions: str, questions: list[tuple[str, bool]]) -> list[str]:
        heading = "".join(f"{printable(each.strip())}\n" for each in (title, instructions) if each.strip())
        answers = []
        for question, is_shown in questions:
            answer = self._answers.get(question)
            if answer is None and not is_shown and len(questions) == 1:
                answer = self._password  # a program gave it: the only hidden question is for the password
            if answer is None:
                text = f"{heading}({self._whom}) {question}"
                line = self._prompter.ask(text) if is_shown else None
                answer = self._prompter.ask_secret(text) if not is_shown else None if line is None else Secret(line)
            if answer is None:
                self.is_given_up = True
                answer = Secret("")
            else:
                self._answers[question] = answer
            heading = ""
            answers.append(answer.reveal())
        return answers


class _NoProof:
    """For accounts that are open to everybody."""

    method = "none"
    label = "nothing"

    def present(self, transport: Transport, user: str) -> list[str]:
        return transport.auth_none(user)


class Authenticator:
    """Gets connections to one host through authentication. Threads may share it: only the first one asks the user.

    Args:
        settings: account, keys, agent.
        prompter: asked for passphrases and passwords; None is the terminal.
        password: used instead of asking, and for keys' passphrases as well; for programs.
    """

    def __init__(
        self, settings: SshSettings, *, prompter: Prompter | None = None, password: Secret | None = None
    ) -> None:
        self._settings = settings
        self._prompter: Prompter = NobodyToAsk() if settings.is_batch else prompter or TerminalPrompter()
        self._password = password
        self._lock = threading.Lock()
        self._agent: AgentConnection | None = None
        self._proofs: list[_Proof] | None = None
        self._failure: AuthenticationFailed | None = None

    def __repr__(self) -> str:
        return f"Authenticator({self._whom})"

    def __enter__(self) -> Authenticator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def authenticate(self, transport: Transport) -> list[str]:
        """Get one connection in.

        Raises:
            AuthenticationFailed: the server takes nothing of what there is.
            SshConnectFailed: the connection ended meanwhile, or another thread's first one takes too long.
            paramiko.SSHException: the connection is broken.
        """
        if not self._lock.acquire(timeout=_GRACE):
            raise SshConnectFailed(f"authentication as {self._whom} took longer than the server waits")
        try:
            if self._failure is not None:
                failure = self._failure
                raise AuthenticationFailed(failure.message, cause=failure.cause, hint=failure.hint)
            if self._proofs is None:
                try:
                    self._proofs = _Attempt(self, transport).run()
                except AuthenticationFailed as error:
                    self._failure = error
                    raise
                return []
            proofs = self._proofs
        finally:
            self._lock.release()
        for proof in proofs:
            with self._lock if isinstance(proof, _AnswersProof) else contextlib.nullcontext():
                try:
                    proof.present(transport, self._settings.user)
                except AuthenticationException as error:
                    check_alive(transport, error)
                    raise AuthenticationFailed(
                        f"the server does not let {self._whom} in again",
                        cause=f"it took {proof.label} before, and does not now",
                    ) from error
        return []

    def close(self) -> None:
        """Let go of the agent; connections that are open stay so."""
        with self._lock:
            if self._agent is not None:
                self._agent.close()
            self._agent = None
            self._proofs = None

    @property
    def _whom(self) -> str:
        return f"{self._settings.user}@{self._settings.target}"


class _Attempt:
    """The first authentication: finds out what the server takes."""

    def __init__(self, owner: Authenticator, transport: Transport) -> None:
        self._owner = owner
        self._settings = owner._settings
        self._prompter = owner._prompter
        self._transport = transport
        self._tried: list[str] = []
        self._taken: list[_Proof] = []
        self._allowed: list[str] = []
        self._locked_file: Path | None = None

    def run(self) -> list[_Proof]:
        if self._is_open_account():
            return [_NoProof()]
        while (proof := self._next_taken()) is not None:
            self._taken.append(proof)
            if not self._allowed:
                return self._taken
            # What is wanted beside it, of another kind or another key.
        raise self._failure()

    def _is_open_account(self) -> bool:
        """Ask the server for its methods by offering nothing, as ssh does."""
        try:
            wanted = self._transport.auth_none(self._settings.user)
        except BadAuthenticationType as error:
            self._allowed = list(error.allowed_types)
            return False
        except AuthenticationException as error:
            check_alive(self._transport, error)
            self._allowed = list(self._settings.methods)  # it did not say which
            return False
        self._allowed = list(wanted)
        return not wanted

    def _next_taken(self) -> _Proof | None:
        """Offer one thing after the other until the server takes one."""
        used = {proof.label for proof in self._taken}
        for method in self._settings.methods:
            if method not in self._allowed:
                continue
            for proof in self._proofs_for(method):
                if proof.label in used:
                    continue
                try:
                    self._allowed = proof.present(self._transport, self._settings.user)
                except BadAuthenticationType as error:
                    self._allowed = list(error.allowed_types)
                    break
                except AuthenticationException as error:
                    self._tried.append(proof.label)
                    self._check_alive(error)
                else:
                    logger.info("%s: the server took %s", self._settings.target, proof.label)
                    return proof
        return None

    def _proofs_for(self, method: str) -> Iterator[_Proof]:
        if method == "publickey":
            agent = self._connect_agent()
            for label, key in find_identities(self._settings, agent, self._ask_passphrase, self._tried.append):
                yield _KeyProof(label, key)
        elif method == "password":
            if self._owner._password is not None:
                yield _PasswordProof(self._owner._password)
                return
            for _ in range(self._settings.password_prompts if self._prompter.can_ask() else 0):
                password = self._prompter.ask_secret(f"{self._owner._whom}'s password: ")
                if not password:
                    return
                yield _PasswordProof(password)
        elif self._owner._password is not None or self._prompter.can_ask():
            for _ in range(self._settings.password_prompts if self._owner._password is None else 1):
                answers = _AnswersProof(self._prompter, self._owner._whom, self._owner._password)
                yield answers
                if answers.is_given_up:
                    return

    def _connect_agent(self) -> AgentConnection | None:
        address = self._settings.identity_agent
        if self._owner._agent is None and address is not None:
            try:
                self._owner._agent = AgentConnection(address)
            except (OSError, SSHException) as error:
                self._tried.append(f"the agent at {address} (it does not answer: {error})")
        return self._owner._agent

    def _ask_passphrase(self, path: Path) -> Secret | None:
        if self._owner._password is not None:
            return self._owner._password
        if not self._prompter.can_ask():
            self._locked_file = path
            return None
        return self._prompter.ask_secret(f"passphrase for {path}: ")

    def _check_alive(self, error: AuthenticationException) -> None:
        try:
            check_alive(self._transport, error)
        except SshConnectFailed as lost:
            if len(self._tried) < 2:
                raise
            raise AuthenticationFailed(
                f"the server ended the connection before {self._owner._whom} was let in",
                cause=f"after {self._list_tried()}: {lost.cause}",
                hint="name the right key with -i KEY, and have no others offered: IdentitiesOnly yes in ~/.ssh/config",
            ) from error

    def _failure(self) -> AuthenticationFailed:
        wanted = ", ".join(self._allowed) or "nothing that is known here"
        hint = (
            f"run: ssh-add {self._locked_file}"
            if self._locked_file is not None
            else "is it the right account, with your public key in its ~/.ssh/authorized_keys? name a key with -i KEY; "
            f"see how ssh fares: ssh -v {self._owner._whom}"
        )
        taken = f"it took {', '.join(proof.label for proof in self._taken)}; " if self._taken else ""
        return AuthenticationFailed(
            f"the server does not let {self._owner._whom} in",
            cause=f"{taken}tried: {self._list_tried()}; the server accepts: {printable(wanted)}",
            hint=hint,
        )

    def _list_tried(self) -> str:
        return ", ".join(dict.fromkeys(map(printable, self._tried))) or "nothing, for there is no key and nobody to ask"


def check_alive(transport: Transport, error: AuthenticationException) -> None:
    """Tell a refusal from a connection that ended or fell silent, which paramiko reports as one.

    Raises:
        SshConnectFailed: it is no refusal.
    """
    if not transport.is_active():
        reason: str = getattr(transport, "goodbye", "")
        raise SshConnectFailed(
            "the connection ended during authentication",
            cause=f"the server said: {printable(reason)}" if reason else "the server hung up",
        ) from error
    if "timeout" in str(error).lower():
        raise SshConnectFailed(
            "the server did not answer during authentication", cause=f"nothing came in {transport.auth_timeout:.0f} s"
        ) from error


@contextlib.contextmanager
def _patience(transport: Transport) -> Iterator[None]:
    """Wait for a person meanwhile, not for the server only."""
    before = transport.auth_timeout
    transport.auth_timeout = _GRACE
    try:
        yield
    finally:
        transport.auth_timeout = before
