"""Files to a managed node and back, over several sessions at once."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from ssm_proxy.api.ssh import Access, Path, login_to, make_access
from ssm_proxy.errors import CopyError, SsmProxyError, UsageError
from ssm_proxy.file_copy.engine import Engine, incomplete
from ssm_proxy.file_copy.locations import Location, parse_location
from ssm_proxy.file_copy.names import shown
from ssm_proxy.file_copy.reporter import Reporter
from ssm_proxy.file_copy.values import (
    SESSIONS_LIMIT,
    CopyIncomplete,
    CopyOptions,
    CopyResult,
    FileOutcome,
    FileState,
    Progress,
    ProgressCallback,
    SourceFile,
)
from ssm_proxy.ssh.login import STEP_TIMEOUT

if TYPE_CHECKING:
    import boto3

__all__ = ["CopyIncomplete", "CopyResult", "Progress", "copy"]

_INPUT, _OUTPUT = 0, 1


def copy(
    sources: Path | Sequence[Path],
    destination: Path,
    *,
    recursive: bool = False,
    preserve: bool = False,
    resume: bool = False,
    checksum: bool | None = None,
    sessions: int | None = None,
    progress: ProgressCallback | None = None,
    session: boto3.Session | None = None,
    profile: str | None = None,
    region: str | None = None,
    reason: str | None = None,
    endpoint_url: str | None = None,
    stream_endpoint_url: str | None = None,
    document_name: str | None = None,
    port: int | None = None,
    key_filename: Path | Sequence[Path] = (),
    password: str | None = None,
    config_file: Path | None = None,
    timeout: float = STEP_TIMEOUT,
) -> CopyResult:
    """Copy files to a managed node, or from one, as ``ssm-proxy cp`` does.

    Each file is written under another name and renamed when it is complete: under its own name there is the old file or
    the new one, at any moment. Blocks; may be called from any thread, and from several at once. Nobody is asked
    anything: a key with a passphrase needs an agent, or ``password``.

    Args:
        sources: paths here, or ``[USER@]TARGET:PATH`` with patterns (``*``, ``?``, ``[…]``) in the path, where a
            backslash takes the character behind it as it is. A path object is always a path here.
        destination: the same; a folder for several sources.
        recursive: copy folders.
        preserve: keep permissions and times.
        resume: go on with the part that an interrupted copy left of a large file, of which the blocks that differ are
            copied; leave out files that are there and equal. Others are copied as a whole.
        checksum: compare SHA-256 on both sides before a file gets its name; None: of files above 1 MiB that several
            sessions may have copied.
        sessions: at most so many, 1 to 32; None: as many as are worth it, up to 8.
        progress: called several times a second from the thread that called this, and for each file at its end. What it
            raises ends the copy, of all nodes, and comes out as it is; it is not called again.
        session: whose credentials, region and settings are used; else those of the environment.
        profile: of the AWS configuration, where no session is given; else of the host's ProxyCommand in ssh_config.
        region: see ``connect``, as for the four that follow.
        reason: see there.
        endpoint_url: see there.
        stream_endpoint_url: see there.
        document_name: see there.
        port: of sshd on the node.
        key_filename: private keys, tried first.
        password: of the account, or of the keys.
        config_file: instead of the user's and the system's ssh_config; ``none`` reads none.
        timeout: seconds for each step of a connection.

    Returns:
        What was copied.

    Raises:
        CopyIncomplete: something was not copied; ``result`` has what was, and why the rest was not.
        CopyError: nothing can be copied to this destination.
        UsageError: sources and destination do not go together.
        SsmProxyError: as ``ssh_client``.
    """
    access = make_access(
        session=session,
        port=port,
        key_filename=key_filename,
        password=password,
        config_file=config_file,
        profile=profile,
        region=region,
        reason=reason,
        endpoint_url=endpoint_url,
        stream_endpoint_url=stream_endpoint_url,
        document_name=document_name,
        timeout=timeout,
    )
    options = CopyOptions(recursive=recursive, preserve=preserve, resume=resume, checksum=checksum, sessions=sessions)
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    return copy_with([_no_stream(each) for each in several], _no_stream(destination), options, access, progress)


def _no_stream(path: Path) -> Path:
    """Take ``-`` for a name: standard input and output are the command line's."""
    return pathlib.PurePath(path) if path == "-" else path


class Standing:
    """How far a copy is: for those whom a signal keeps from getting its result."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        """One for each node, until now."""
        self.lost: list[CopyResult] = []
        """What could not be had, because its node was lost."""

    def result(self) -> CopyResult | None:
        """Give what was copied until now; None: nothing could begin."""
        begun = [each for each in (engine.result() for engine in self.engines) if each.sessions]
        return _together([*begun, *self.lost]) if begun else None

    def what_is_left(self) -> str:
        """Say what to do about the rest."""
        if not self.engines:
            return "nothing was copied yet: the same command begins anew"
        if len(self.engines) > 1 and not self.engines[-1].has_parts:
            return "the same command with --resume leaves out what is in place"
        return self.engines[-1].what_is_left()


def copy_with(
    sources: Sequence[Path],
    destination: Path,
    options: CopyOptions,
    access: Access,
    progress: ProgressCallback | None,
    *,
    streams: tuple[int, int] = (_INPUT, _OUTPUT),
    standing: Standing | None = None,
) -> CopyResult:
    """Copy; arguments and errors as for ``copy``. What ``-`` stands for are two descriptors.

    Args:
        standing: is told how far it is.
    """
    standing = standing or Standing()
    froms = [parse_location(source) for source in sources]
    to = parse_location(destination)
    _check(froms, to, options)
    reporter = Reporter(progress)
    if to.host is not None:
        with _engine(to, options, access, reporter, set(), standing) as engine:
            if froms[0].is_stream:
                return engine.upload_stream(streams[0], to.path)
            return engine.upload([each.path for each in froms], to.path)
    if to.is_stream:
        with _engine(froms[0], options, access, reporter, set(), standing) as engine:
            return engine.download_stream(froms[0].path, streams[1])
    return _download_from_each(froms, to, options, access, reporter, standing)


def _download_from_each(
    froms: Sequence[Location],
    to: Location,
    options: CopyOptions,
    access: Access,
    reporter: Reporter,
    standing: Standing,
) -> CopyResult:
    """Copy from one node after the other; as with scp, one that is lost does not stop the others."""
    results: list[CopyResult] = []
    errors: list[SsmProxyError] = []
    taken: set[bytes] = set()
    by_node = [list(group) for _, group in groupby(froms, key=lambda each: (each.host, each.user))]
    for number, same in enumerate(by_node, 1):
        reporter.go_on()
        reporter.is_more_to_come = number < len(by_node)
        engine: Engine | None = None
        try:
            with _engine(same[0], options, access, reporter, taken, standing) as engine:
                results.append(engine.download([each.path for each in same], to.path))
        except SsmProxyError as error:
            if error is reporter.error:  # no node has failed: the caller wants no more
                raise
            if isinstance(error, CopyIncomplete):
                results.append(error.result)
                continue
            errors.append(error)
            if len(errors) == len(by_node):
                raise errors[0] from None
            left = None
            if engine is not None:
                results.append(engine.result())  # what it had given before
                left = engine.unfinished()
            lost = _no_more_of(same, to, left, error, reporter)
            standing.lost.append(lost)
            results.append(lost)
    result = _together(results)
    if result.failures:
        raise incomplete(result)
    return result


def _no_more_of(
    froms: Sequence[Location],
    to: Location,
    left: Sequence[SourceFile] | None,
    error: SsmProxyError,
    reporter: Reporter,
) -> CopyResult:
    """Tell that nothing more can be had from one of several nodes; give that as a result."""
    text = error.in_a_line
    lost = sorted((shown(each.source), shown(each.target)) for each in left or ())
    lost = lost or [(each.shown, to.shown) for each in froms]  # not all files of it are known; or its folders were last
    failures = [
        FileOutcome(source=source, target=target, state=FileState.FAILED, error=text) for source, target in lost
    ]
    result = CopyResult(copied_bytes=0, total_bytes=0, files=0, unchanged=0, failures=failures, seconds=0.0, sessions=0)
    reporter.go_on()
    now = Progress(
        total_bytes=0,
        done_bytes=0,
        total_files=0 if left else len(failures),  # what had been found was counted then
        done_files=len(failures),
        sessions=0,
        is_counting=False,
        current="",
    )
    for failure in failures:
        reporter.tell(replace(now, outcome=failure))
    reporter.tell(replace(now, notice=f"{froms[0].host}: {error.hint}" if error.hint else None))
    return result


def _check(froms: Sequence[Location], to: Location, options: CopyOptions) -> None:
    """Check that sources and destination go together.

    Raises:
        UsageError, CopyError: they do not.
    """
    if not froms:
        raise UsageError("there is nothing to copy")
    if options.sessions is not None and not 1 <= options.sessions <= SESSIONS_LIMIT:
        raise UsageError(f"{options.sessions} sessions cannot be used", hint=f"use 1 to {SESSIONS_LIMIT}")
    are_here = {each.host is None for each in froms}
    if to.host is not None and False in are_here:
        raise UsageError(
            "sources and destination are both on nodes",
            hint="copy to here first; or log in to one of them and copy from there",
        )
    if to.host is None and True in are_here:
        raise UsageError(
            "sources and destination are both here",
            hint="name the node, as in: ssm-proxy cp FILE ec2-user@i-0123456789abcdef0:",
        )
    if any(each.is_stream for each in froms) and len(froms) > 1:
        raise UsageError("standard input (-) can only be copied by itself")
    if to.is_stream and len(froms) > 1:
        raise UsageError("only one file can be copied to standard output (-)")
    if options.resume and (to.is_stream or froms[0].is_stream):
        raise UsageError("standard input and output cannot be resumed", hint="leave out --resume")
    if to.host is None and len(froms) > 1 and not os.path.isdir(to.path):
        raise CopyError(f"{shown(to.path)} is no folder here", hint="several sources need one as their destination")


@contextlib.contextmanager
def _engine(
    location: Location,
    options: CopyOptions,
    access: Access,
    reporter: Reporter,
    taken: set[bytes],
    standing: Standing,
) -> Iterator[Engine]:
    """Give an engine that copies to or from a node."""
    assert location.host is not None
    with login_to(location.host, location.user, access) as login:
        engine = Engine(login, options, reporter, taken)
        standing.engines.append(engine)
        yield engine


def _together(results: Sequence[CopyResult]) -> CopyResult:
    if len(results) == 1:
        return results[0]
    return CopyResult(
        copied_bytes=sum(each.copied_bytes for each in results),
        total_bytes=sum(each.total_bytes for each in results),
        files=sum(each.files for each in results),
        unchanged=sum(each.unchanged for each in results),
        failures=[failure for each in results for failure in each.failures],
        seconds=sum(each.seconds for each in results),
        sessions=max(each.sessions for each in results),
    )
