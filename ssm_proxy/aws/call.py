"""What an error text can say about the call that failed: who asked for what, where, with which profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Settings(Protocol):
    """The user's configuration as far as it can be read; nothing here raises."""

    @property
    def profile(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    def profiles(self) -> Mapping[str, Mapping[str, Any]]: ...


class Call(NamedTuple):
    """One call to the control plane, or the signing of one opening."""

    operation: str
    """As IAM names it without the service; ``OpenDataChannel`` for the opening of the WebSocket."""
    settings: Settings
    target: str | None = None
    document_name: str | None = None
    service: str = "ssm"
    """As IAM and botocore name it."""
    kms_key_id: str | None = None

    @property
    def document(self) -> str:
        """The session document; the account's preferences, under their own name, if none was named (1.1)."""
        return self.document_name or "SSM-SessionManagerRunShell"

    @property
    def place(self) -> str:
        """Where, as a part of a sentence: ``region eu-west-1, profile 'work'``."""
        profile = self.settings.profile
        return f"region {self.settings.region}, " + (f"profile '{profile}'" if profile else "no profile chosen")

    @property
    def profile_option(self) -> str:
        """The option that tells the AWS CLI the same profile: `` --profile work``, or nothing."""
        return f" --profile {self.settings.profile}" if self.settings.profile else ""

    def sso_profile(self) -> str | None:
        """Name the profile to log in with: the chosen one, or the one that it borrows credentials from.

        ``aws sso login`` takes only a profile that has the SSO settings itself.
        """
        profiles = self.settings.profiles()
        name: str | None = self.settings.profile or "default"
        seen: set[str] = set()
        while name is not None and name not in seen:
            seen.add(name)
            profile = profiles.get(name, {})
            if "sso_session" in profile or "sso_start_url" in profile:
                return name
            name = profile.get("source_profile")
        return None

    def renewal_hint(self) -> str:
        """Say how to get fresh credentials, by the way that the profile gets them."""
        name = self.sso_profile()
        if name is not None:
            return f"run: aws sso login --profile {name}"
        profile = self.settings.profiles().get(self.settings.profile or "default", {})
        if "login_session" in profile:
            return f"run: aws login{self.profile_option}"
        return f"renew the credentials, then check them with: aws sts get-caller-identity{self.profile_option}"
