"""The door where exceptions of botocore, and of all that it stands on, become ours; none passes it.

botocore is not imported here: its classes are told by name, which costs nothing and does not ask which version has
which. Texts are written for somebody who sees nothing but the standard error of a ProxyCommand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ssm_proxy.aws.call import Call
from ssm_proxy.aws.network_errors import from_network, one_line
from ssm_proxy.aws.service_errors import from_answer
from ssm_proxy.errors import ConfigurationError, ControlPlaneError, NotRenewable, SsmProxyError, UsageError

_CONFIG_FILES = "~/.aws/config and ~/.aws/credentials"
_SHOWN_PROFILES = 20


@contextmanager
def mapped_errors(call: Call) -> Iterator[None]:
    """Raise one of our errors for any foreign one, chained to it.

    Args:
        call: what is being done, for the text.
    """
    try:
        yield
    except SsmProxyError:
        raise
    except Exception as error:
        raise _translate(error, call) from error


def needs_mfa_code(error: SsmProxyError) -> bool:
    """Tell whether an error made here is about credentials that only a new MFA code could refresh."""
    return type(error.__cause__).__name__ == "RefreshWithMFAUnsupportedError"


def _translate(error: Exception, call: Call) -> SsmProxyError:
    names = frozenset(kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("botocore."))
    response = getattr(error, "response", None)
    if "ClientError" in names and isinstance(response, dict):
        return from_answer(response, str(getattr(error, "operation_name", "")), call)
    details = getattr(error, "kwargs", None) or {}
    return (
        from_network(error, names)
        or _from_credentials(error, names, details, call)
        or _from_configuration(error, names, details, call)
        or _from_the_rest(error, names, call)
    )


def _from_credentials(
    error: Exception, names: frozenset[str], details: dict[str, Any], call: Call
) -> ConfigurationError | None:
    text = one_line(str(error))
    provider = details.get("provider")
    if "NoCredentialsError" in names:
        return ConfigurationError(
            f"no AWS credentials found ({call.place})",
            cause="environment, profile and instance metadata give none",
            hint="run: aws configure, or name a profile that has some with --profile or AWS_PROFILE",
        )
    if "PartialCredentialsError" in names:
        return ConfigurationError(
            f"the AWS credentials are incomplete ({call.place})",
            cause=f"the source '{provider}' has no {details.get('cred_var')}",
            hint="set access key and secret key in the same place, or neither",
        )
    if names & {"SSOError", "TokenRetrievalError"}:
        name = call.sso_profile()
        return ConfigurationError(
            f"the SSO login of profile '{name or call.settings.profile or 'default'}' has expired or was never made",
            cause=text,
            hint=f"run: aws sso login{f' --profile {name}' if name else call.profile_option}",
        )
    if "LoginError" in names:
        return ConfigurationError("the AWS login has expired", cause=text, hint=f"run: aws login{call.profile_option}")
    if "CredentialRetrievalError" in names and provider == "custom-process":
        return ConfigurationError(
            f"the credential_process of profile '{call.settings.profile or 'default'}' failed",
            cause=one_line(str(details.get("error_msg", "")).strip().rpartition("\n")[2]) or "it printed no reason",
            hint=f"run by hand what this prints: aws configure get credential_process{call.profile_option}",
        )
    if "RefreshWithMFAUnsupportedError" in names:
        return NotRenewable(
            "the credentials of the role have expired",
            cause="a new MFA code is needed, and a running tunnel cannot ask for one",
            hint="connect again",
        )
    if names & {"CredentialRetrievalError", "UnknownCredentialError", "MetadataRetrievalError"}:
        return ConfigurationError(
            f"could not get AWS credentials ({call.place})",
            cause=text,
            hint=f"check the profile, with: aws sts get-caller-identity{call.profile_option}",
        )
    return None


def _from_configuration(
    error: Exception, names: frozenset[str], details: dict[str, Any], call: Call
) -> SsmProxyError | None:
    text = one_line(str(error))
    if "ProfileNotFound" in names:
        known = sorted(call.settings.profiles())
        shown = ", ".join(known[:_SHOWN_PROFILES]) + (", ..." if len(known) > _SHOWN_PROFILES else "")
        return ConfigurationError(
            f"there is no AWS profile '{details.get('profile')}'",
            cause=f"the profiles there are: {shown or 'none'}",
            hint=f"choose one with --profile or AWS_PROFILE, or add it to {_CONFIG_FILES}",
        )
    if "NoRegionError" in names:
        return no_region()
    if names & {"ConfigParseError", "ConfigNotFound"}:
        return ConfigurationError(
            f"the AWS configuration file '{details.get('path')}' cannot be read",
            cause="it is malformed" if "ConfigParseError" in names else "it does not exist",
            hint="look for lines outside of a [section], and lines without '='",
        )
    if "ParamValidationError" in names:
        return UsageError(
            f"{call.operation} cannot be asked for like this", cause=text, hint="check target and options"
        )
    if names & {
        "BaseEndpointResolverError",
        "EndpointProviderError",
        "InvalidConfigError",
        "InvalidDefaultsMode",
        "InvalidRegionError",
        "InvalidRetryConfigurationError",
        "MissingDependencyException",
        "UnsupportedSignatureVersionError",
    }:
        return ConfigurationError(
            f"the AWS configuration does not work ({call.place})",
            cause=text,
            hint=f"correct {_CONFIG_FILES}, or the AWS_ variable of the environment that it is about",
        )
    return None


def _from_the_rest(error: Exception, names: frozenset[str], call: Call) -> SsmProxyError:
    text = one_line(str(error))
    if isinstance(error, OSError):  # the network's own come wrapped; bare ones are files and programs of the profile
        return ConfigurationError(
            f"a file or program that the AWS configuration names does not work ({call.place})",
            cause=text,
            hint=f"look for it in {_CONFIG_FILES} (credential_process, web_identity_token_file, ca_bundle)",
        )
    if isinstance(error, EOFError):  # getpass, at the end of an input that is no terminal
        return ConfigurationError(
            f"the profile needs an MFA code, and there is no terminal to ask for it ({call.place})",
            cause="a credential provider asked, and met the end of its input",
            hint="connect once from a terminal, or use a profile with temporary credentials",
        )
    if isinstance(error, ValueError):  # botocore lets these through from settings and credential programs
        return ConfigurationError(
            f"a setting of AWS, or what a credential program answered, is not valid ({call.place})",
            cause=text or type(error).__name__,
            hint=f"check --endpoint-url, AWS_ variables of the environment and {_CONFIG_FILES}",
        )
    if names & {"ResponseParserError", "HTTPClientError"}:
        return ControlPlaneError(
            f"the answer to {call.operation} could not be read",
            cause=text,
            hint="check that the endpoint is the one of Systems Manager, and that no captive portal or proxy answers",
        )
    return ControlPlaneError(
        f"{call.operation} failed unexpectedly", cause=f"{type(error).__name__}: {text}", hint="run again with -vv"
    )


def no_region() -> ConfigurationError:
    """Make the error for a missing region, which we find before botocore does."""
    return ConfigurationError(
        "no AWS region is configured",
        cause="none of --region, AWS_REGION, AWS_DEFAULT_REGION and the profile names one",
        hint="add --region eu-west-1 (or yours), or run: aws configure set region eu-west-1",
    )
