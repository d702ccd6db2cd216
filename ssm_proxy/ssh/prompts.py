"""Asks the person at the terminal, and never standard input: that may be what is copied."""

from __future__ import annotations

import getpass
import os
import threading
from typing import Protocol

from ssm_proxy.secret import Secret

_TERMINAL = "/dev/tty"


class Prompter(Protocol):
    """Somebody to ask. Any thread may; one question at a time is asked."""

    def can_ask(self) -> bool:
        """Whether there is anybody."""

    def ask_secret(self, question: str) -> Secret | None:
        """Ask for what must not be seen; None if there is no answer."""

    def ask(self, question: str) -> str | None:
        """Ask for a line; None if there is no answer."""


class TerminalPrompter:
    """The controlling terminal of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def can_ask(self) -> bool:
        try:
            os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY))
        except OSError:
            return False
        return True

    def ask_secret(self, question: str) -> Secret | None:
        with self._lock:
            if not self.can_ask():  # getpass would read standard input then
                return None
            try:
                return Secret(getpass.getpass(printable(question)))
            except (EOFError, OSError):
                return None

    def ask(self, question: str) -> str | None:
        with self._lock:
            try:
                with (
                    open(_TERMINAL, "w", encoding="utf-8", errors="replace") as screen,
                    open(_TERMINAL, encoding="utf-8", errors="replace") as keys,
                ):
                    screen.write(printable(question))
                    screen.flush()
                    line = keys.readline()
            except OSError:
                return None
            return line.rstrip("\r\n") if line else None


class NobodyToAsk:
    """For BatchMode, and for programs."""

    def can_ask(self) -> bool:
        return False

    def ask_secret(self, question: str) -> Secret | None:
        return None

    def ask(self, question: str) -> str | None:
        return None


def printable(text: str) -> str:
    """Give the text without what would move the cursor: some of it comes from the server."""
    return "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)
