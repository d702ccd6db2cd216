"""``ssm-proxy cp`` as a person and as a script meet it: lines, bars, JSON, pipes, signals, options, exit statuses."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from copies import Copier, json_lines, parts, tree
from nodes import EMBEDDED, MIB, REAL, WITHIN, MakeUser, Sshd, StartEmulator, open_sessions, wait_until
from terminals import terminal

from ssm_proxy.cli.main import main
from ssm_proxy.emulator.faults import Faults
from ssm_proxy.errors import CopyError

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def paced(start_emulator: StartEmulator, new_user: MakeUser) -> Copier:
    """Somebody whose node's agent sends as slowly as a real one."""
    emulator = start_emulator(agent_pace_s=0.001)
    return Copier(user=new_user(emulator, REAL), emulator=emulator)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(2 * MIB))
    (folder / "small").write_bytes(b"small")
    (folder / "new\nline").write_bytes(b"odd")
    (folder / "nothing").symlink_to("is not there")
    return folder


# --- what is shown --------------------------------------------------------------------------------------------------


def test_lines_for_a_person_and_for_a_program(real: Copier, here: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    status, output, errors = real.run("-r", here, real.remote(there))
    assert (status, output) == (11, b"")
    lines = errors.splitlines()
    assert f"{here}/small -> {there}/small  5 B" in lines
    assert f"{here}/large -> {there}/large  2.1 MB, verified" in lines
    assert f"{here}/new line -> {there}/new line  3 B" in lines
    why = "it is a link to nothing: it cannot be read: No such file or directory"
    assert f"ssm-proxy: {here}/nothing: {why}" in lines
    (summary,) = [line for line in lines if line.startswith("copied ")]
    assert re.fullmatch(
        r"copied 3 files, 2\.1 MB in \d+\.\d s \(\d+\.\d\d MB/s, [12] sessions?\); 1 file not copied", summary
    )
    assert lines[-3:] == [
        f"ssm-proxy: error: {here}/nothing was not copied",
        f"ssm-proxy: cause: {why}",
        "ssm-proxy: hint: 3 other files are in place",
    ]
    assert len(lines) == 8

    status, output, errors = real.run("--json", "-r", real.remote(here), back)
    assert status == 11
    assert [line.partition(":")[0] for line in errors.splitlines()] == ["ssm-proxy"] * 3
    *files, summary_values, error = json_lines(output)
    assert {(each["type"], each["source"], each["target"], each["state"], each["bytes"]) for each in files} == {
        ("file", f"{here}/{name}", f"{back}/{name}", *rest)
        for name, *rest in (
            ("large", "copied", 2 * MIB),
            ("small", "copied", 5),
            ("new\nline", "copied", 3),
            ("nothing", "failed", 0),
        )
    }
    assert [each["error"] for each in files if each["error"]] == ["it is a link to nothing"]
    assert {each["source"] for each in files if each["verified"]} == {f"{here}/large"}
    counts = {name: summary_values[name] for name in ("type", "files", "unchanged", "failed", "bytes", "total_bytes")}
    assert counts == {
        "type": "summary",
        "files": 3,
        "unchanged": 0,
        "failed": 1,
        "bytes": 2 * MIB + 8,
        "total_bytes": 2 * MIB + 8,
    }
    assert summary_values["mb_per_s"] == pytest.approx((2 * MIB + 8) / summary_values["seconds"] / 1e6, rel=0.01)
    assert summary_values["sessions"] in (1, 2)
    assert error["type"] == "error"
    assert tree(back) == tree(there)


def program(copier: Copier, *arguments: str | Path) -> list[str]:
    command = [str(each) for each in copier.command(*arguments)]
    found = shutil.which(command[0], path=copier.user.environment["PATH"])
    assert found is not None
    return [found, *command[1:]]


def test_a_bar_on_a_terminal_and_ctrl_c(paced: Copier, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(8 * MIB))
    there.write_bytes(b"old")
    environment = paced.user.environment
    paced.emulator.set_faults(Faults(bandwidth=100_000))  # of a session: it is far from over when the key is typed
    with terminal(program(paced, paced.remote(here), there), environment, columns=120) as screen:
        bar = rb"here: +([3-9]\d)%\S* *\S*\| [\d.]+M/8.39M \[00:\d\d<0\d:\d\d, +[\d.]+[kM]B/s, \d sessions\]"
        screen.expect(bar)
        screen.type(b"\x03")
        assert screen.end() == 130
        said = screen.screen.decode()
        assert "interrupted" in said
        assert "--resume" in said
        assert screen.is_as_before
    assert there.read_bytes() == b"old"
    (part,) = parts(tmp_path)
    assert part.name in said
    paced.emulator.set_faults(Faults())
    wait_until(lambda: not open_sessions(paced.emulator), "no session is left")

    with terminal(program(paced, "--resume", paced.remote(here), there), environment, columns=120) as screen:
        screen.expect(rb"\d+ of 8388608 bytes are there already")
        assert screen.end() == 0
        said = screen.screen.decode()
    assert re.search(r"copied 1 file, [\d.]+ MB in [\d.]+ s \([\d.]+ MB/s, \d sessions?\)", said)
    assert there.read_bytes() == here.read_bytes()
    assert parts(tmp_path) == []


def test_a_failure_stands_above_the_bar(real: Copier, here: Path, tmp_path: Path) -> None:
    with terminal(program(real, "-r", real.remote(here), tmp_path / "there"), real.user.environment) as screen:
        assert screen.end() == 11
        said = screen.screen.decode()
    assert re.search(r"\rssm-proxy: \S+/nothing: it is a link to nothing\r?\n", said)
    assert "small ->" not in said
    assert re.search(r"\rcopied 3 files, .*; 1 file not copied\r?\n", said)
    with terminal(
        program(real, "-q", real.remote(here / "small"), tmp_path / "small"), real.user.environment
    ) as screen:
        assert screen.end() == 0
        said = screen.screen.decode()
    assert said.startswith(f"{here}/small -> {tmp_path}/small  5 B\r")
    assert "%" not in said


# --- pipes ----------------------------------------------------------------------------------------------------------


def test_pipes(real: Copier, tmp_path: Path) -> None:
    target = tmp_path / "target"
    data = os.urandom(20 * MIB)
    real.emulator.set_faults(Faults(bandwidth=1_000_000))  # of a session, so that others have the time to join
    status, output, errors = real.run("-", real.remote(target), data=data)
    assert (status, output) == (0, b""), errors
    assert target.read_bytes() == data
    assert re.search(r", verified\ncopied 1 file, 21\.0 MB in .*, [2-8] sessions\)", errors)
    status, output, errors = real.run(real.remote(target), "-")
    assert (status, output == data) == (0, True), errors
    assert re.search(r", verified\ncopied 1 file, 21\.0 MB in .*, [2-8] sessions\)", errors), "in order over several"
    assert parts(tmp_path) == []


def test_streams_of_any_size(real: Copier, tmp_path: Path) -> None:
    source, target, back = (tmp_path / name for name in ("source", "target", "back"))
    for size in (0, 1, 5 * MIB + 1):
        source.write_bytes(os.urandom(size))
        with source.open("rb") as standard_input, back.open("wb") as standard_output:
            streams = standard_input.fileno(), standard_output.fileno()
            result = real.copy_stream("-", real.remote(target), streams)
            assert (result.copied_bytes, result.files) == (size, 1)
            assert size > 1 or result.sessions == 1
            before = len(real.emulator.sessions())
            result = real.copy_stream(real.remote(target), "-", streams)
            assert (result.copied_bytes, result.files) == (size, 1)
            assert size > 1 or len(real.emulator.sessions()) == before + 1, "one session for what is small"
        assert target.read_bytes() == back.read_bytes() == source.read_bytes()
    version = Path("/proc/version")
    if version.exists():
        with back.open("wb") as standard_output:
            real.copy_stream(real.remote(version), "-", (-1, standard_output.fileno()))
        assert back.read_bytes() == version.read_bytes()


def test_pipes_that_end_too_early_or_lead_nowhere(real: Copier, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(8 * MIB))
    target.write_bytes(b"old")
    with real.start(real.remote(source), "-") as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        assert reader.stdout.read(1000) == source.read_bytes()[:1000]
        reader.stdout.close()
        assert (reader.wait(WITHIN), reader.stderr.read()) == (141, b""), "head has seen enough"
    wait_until(lambda: not open_sessions(real.emulator), "no session is left")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full, real.start(real.remote(source), "-", stdout=full) as reader:
            assert reader.stderr is not None
            assert reader.wait(WITHIN) == 11
            assert b"standard output cannot be written: No space left on device" in reader.stderr.read()
    with source.open("rb") as standard_input:
        for destination, words in (
            (f"{tmp_path}/", "is a folder"),
            (f"{tmp_path}", "is a folder"),
            (f"{tmp_path}/no/folder", "- was not copied"),
        ):
            with pytest.raises(CopyError, match=words):
                real.copy_stream("-", real.remote(destination), (standard_input.fileno(), -1))
    for name, words in (("nothing", "is nothing on the node"), ("*", "several files"), ("", "was not copied")):
        with pytest.raises(CopyError, match=words):
            real.copy_stream(real.remote(tmp_path / name), "-", (-1, -1))

    # Interrupted: standard input cannot be had again, so nothing of it is kept.
    with real.start("-", real.remote(target), stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(bytes(MIB))
        writer.stdin.flush()
        wait_until(lambda: [each for each in parts(tmp_path) if each.stat().st_size >= MIB // 2], "some has arrived")
        writer.send_signal(signal.SIGINT)
        assert writer.wait(WITHIN) == 130
    assert parts(tmp_path) == []
    assert target.read_bytes() == b"old"


NOISY = """\
import json, sys
sys.stdin.buffer.read()
print(json.dumps({"Version": 1, "AccessKeyId": "emulator", "SecretAccessKey": "emulator"}))
"""


def test_a_credential_program_takes_nothing_from_a_pipe(real: Copier, tmp_path: Path) -> None:
    script = tmp_path / "credentials.py"
    script.write_text(NOISY)
    (real.user.folder / "aws_config").write_text(f"[profile own]\ncredential_process = {sys.executable} {script}\n")
    assert isinstance(real.user.environment, dict)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        real.user.environment.pop(name, None)
    status, _, errors = real.run("--profile", "own", "-", real.remote(tmp_path / "target"), data=b"data")
    assert status == 0, errors
    assert (tmp_path / "target").read_bytes() == b"data"


# --- signals --------------------------------------------------------------------------------------------------------


def test_a_signal_in_a_large_upload(paced: Copier, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(os.urandom(32 * MIB))
    there.write_bytes(b"old")

    def written() -> int:
        return sum(each.stat().st_blocks * 512 for each in parts(tmp_path))

    paced.emulator.set_faults(Faults(bandwidth=300_000))  # of a session: it takes many seconds
    with paced.start(here, paced.remote(there)) as process:
        assert process.stderr is not None
        wait_until(lambda: written() > 2 * MIB, "some has arrived")
        process.terminate()
        assert process.wait(WITHIN) == 143
        said = process.stderr.read().decode()
    assert there.read_bytes() == b"old"
    (part,) = parts(tmp_path)
    assert part.name in said
    assert "the same command with --resume goes on from it" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_is_told_to_a_program_last(paced: Copier, tmp_path: Path, number: signal.Signals, status: int) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    here.write_bytes(os.urandom(32 * MIB))
    (tmp_path / "small").write_bytes(b"small")

    def written() -> int:
        return sum(each.stat().st_blocks * 512 for each in parts(tmp_path))

    with paced.start("--json", paced.remote(tmp_path / "small"), paced.remote(here), there) as process:
        assert process.stdout is not None
        wait_until(lambda: written() > MIB and (there / "small").exists(), "some has arrived", within=60)
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(60) == status
    (part,) = parts(tmp_path)
    *_, notice, summary, error = json_lines(output)
    assert notice["text"].startswith("interrupted; ")
    assert (summary["type"], summary["files"], summary["failed"], summary["total_bytes"]) == ("summary", 1, 0, 5)
    assert MIB < summary["bytes"] < 32 * MIB
    assert (error["type"], error["message"], error["cause"]) == ("error", f"interrupted by {number.name}", None)
    assert part.name in error["hint"]
    assert "the same command with --resume goes on from it" in error["hint"]
    wait_until(lambda: not open_sessions(paced.emulator), "no session is left")


def test_a_signal_before_anything_is_copied(start_emulator: StartEmulator, new_user: MakeUser, tmp_path: Path) -> None:
    """While no session can be started: there is nothing to sum up."""
    emulator = start_emulator(faults=Faults(throttle_start=-1))
    copier = Copier(user=new_user(emulator, REAL), emulator=emulator)
    (tmp_path / "small").write_bytes(b"small")
    with copier.start("--json", tmp_path / "small", copier.remote(tmp_path / "there")) as process:
        assert process.stdout is not None
        notice = process.stdout.readline()
        assert b"StartSession" in notice
        process.send_signal(signal.SIGINT)
        *notices, error = json_lines(notice + process.stdout.read())
        assert process.wait(60) == 130
    assert {each["type"] for each in notices} == {"notice"}
    assert (error["type"], error["message"]) == ("error", "interrupted by SIGINT")
    assert "begins anew" in error["hint"]
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("is_upload", [True, False], ids=["up", "down"])
def test_a_signal_among_many_small_files(real: Copier, tmp_path: Path, is_upload: bool) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for index in range(1000):
        file = here / str(index % 30) / str(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(2000))
    arguments = [here, real.remote(there)] if is_upload else [real.remote(here), there]

    def count() -> int:
        return sum(1 for path in there.rglob("*") if path.is_file()) - len(parts(there))

    real.emulator.set_faults(Faults(bandwidth=20_000, queue_bytes=20_000))  # of a session: it takes many seconds
    with real.start("-r", *arguments) as process:
        assert process.stderr is not None
        wait_until(lambda: there.exists() and count() > 20, "some have arrived")
        process.send_signal(signal.SIGINT)
        real.emulator.set_faults(Faults())
        said = process.stderr.read().decode()
        status = process.wait(WITHIN)
    assert status == 130
    assert parts(tmp_path) == []
    done = count()
    assert "interrupted; the same command with --resume leaves out what is in place" in said
    for path in there.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (here / path.relative_to(there)).read_bytes()

    wait_until(lambda: not open_sessions(real.emulator), "no session is left")
    if is_upload:
        result = real.copy(f"{here}/.", real.remote(there), recursive=True, resume=True)
    else:
        result = real.copy(real.remote(f"{here}/."), there, recursive=True, resume=True)
    assert (result.files, result.unchanged) == (1000 - done, done)
    assert tree(there) == tree(here)


# --- options --------------------------------------------------------------------------------------------------------


def test_ssh_config_and_the_options_of_scp(real: Copier, sshd: Sshd, here: Path, tmp_path: Path) -> None:
    """A name of ssh_config, whose ProxyCommand says which account it is."""
    there = tmp_path / "there"
    there.mkdir()
    assert isinstance(real.user.environment, dict)
    (real.user.folder / "aws_config").write_text(
        "[profile prod]\naws_access_key_id = emulator\naws_secret_access_key = emulator\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        real.user.environment.pop(name, None)
    config = tmp_path / "config"
    usual = real.user.config.read_text().partition("Include")[0]
    config.write_text(
        f"Host web\n  HostName {REAL}\n  ProxyCommand ssm-proxy proxy --profile prod --region eu-west-1 %h %p\n"
        f"Host elsewhere\n  HostName {EMBEDDED}\n  Port 1\n"
        "  ProxyCommand ssm-proxy proxy --profile prod --region eu-west-1 %h %p\nHost *\n" + usual
    )
    status, output, errors = real.run("-F", config, here / "small", f"web:{there}/one")
    assert (status, output) == (0, b""), errors
    # All ports of a node are those of this machine, with the emulator; so another of its sshds answers there.
    key = tmp_path / "key"
    shutil.copy(re.search(r"IdentityFile (\S+)", usual)[1], key)  # type: ignore[index]
    config.write_text(config.read_text().replace("IdentityFile", "#"))
    arguments = ["-F", config, "-P", str(sshd.port), "-i", key, "-rp", "--sessions", "1", "--no-checksum"]
    status, output, errors = real.run(*arguments, here / "small", here / "large", f"elsewhere:{there}")
    assert (status, output) == (0, b""), errors
    assert {path.name for path in there.iterdir()} == {"one", "small", "large"}
    assert (there / "large").stat().st_mtime_ns // 10**9 == (here / "large").stat().st_mtime_ns // 10**9
    assert "1 session)" in errors
    assert "verified" not in errors
    assert f"[{EMBEDDED}]:{sshd.port}" in (real.user.folder / "known_hosts").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["file", "other"], "name the node"),
        (["a:file", "b:file"], "copy to here first"),
        (["a:file", "file", "b:"], "copy to here first"),
        (["--sessions", "0", "file", "a:"], "use 1 to 32"),
        (["--sessions", "many", "file", "a:"], "invalid int value"),
        (["file"], "required: DST"),
        ([], "required: SRC"),
        (["--json", "a:file", "-"], "exclude each other"),
        (["--resume", "-", "a:file"], "leave out --resume"),
        (["-", "file", "a:folder"], "only be copied by itself"),
        (["a:one", "a:two", "-"], "only one file"),
        (["-P", "70000", "file", "a:"], "from 1 to 65535"),
        (["-P", "ssh", "file", "a:"], "invalid int value"),
        (["-o", "User=me", "file", "a:"], "unrecognized arguments"),
        ([":file", "."], "USER@TARGET:PATH"),
        (["", "a:"], "empty"),
        (["-F", "/nothing/of/that/name", "file", "a:"], "/nothing/of/that/name does not exist"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["cp", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    output, errors = capfd.readouterr()
    assert status == (3 if "does not exist" in words else 2)
    assert words in errors
    assert "Traceback" not in errors
    assert all(line.startswith("{") for line in output.splitlines())


def test_a_wrong_port_is_told_to_a_program(real: Copier) -> None:
    status, output, _ = real.run("--json", "-P", "70000", "file", "i-0123456789abcdef0:")
    (error,) = json_lines(output)
    assert (status, error["type"], error["message"]) == (2, "error", "70000 is not a port")


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["cp", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for words in ("SRC... DST", "--sessions N", "--resume", "--no-checksum", "-F FILE", "Exit status"):
        assert words in text, words
    assert "left alone if all of it is equal, and copied as a whole otherwise" in " ".join(text.split()), "--resume"
