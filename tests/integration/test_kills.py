"""Whoever is killed, at whatever moment: no process or session stays, nobody hangs, and somebody says what happened.

The moments are drawn from a seed. What exactly a kill hits is up to the machine's scheduling, so the tests assert what
must hold at every moment. Kills at one chosen moment are in test_ends.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nodes import REAL, Key, MakeUser, Process, Sshd, User, free_port, quiet, tool, wait_until

pytestmark = pytest.mark.integration

GONE_WITHIN = 20.0
"""Bounds every end on a busy machine. The proxy's own bound is about 5 s, where the service cannot be told."""
READY_WITHIN = 30.0
COMMANDS = {
    "nothing": "exec cat",
    "upload": "exec cat >/dev/null",
    "download": "exec cat /dev/zero",
    "both": "exec cat",
}
BLOCK = bytes(32 * 1024)
OUR_LINE = re.compile(r"ssm-proxy: (error|cause|hint): \S.*|ssm-proxy: (connection lost, trying|the session goes on).*")


class Service:
    """An emulator in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._node = f"{REAL}=127.0.0.1:{sshd.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] = {}
        self.url = ""

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ssm_proxy", "emulator", "--json", "--port", str(self._port), "--node", self._node],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self._folder)},  # what a killed one leaves there goes with the test
        )
        assert self._process.stdout is not None
        announced = json.loads(self._process.stdout.readline())
        self.environment = announced["environment"]
        self.url = announced["endpoint_url"]

    def kill(self) -> None:
        assert self._process is not None
        with self._process:
            self._process.kill()

    def ask(self, what: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Use the control endpoint; with values it changes something."""
        data = None if values is None else json.dumps(values).encode()
        with urllib.request.urlopen(f"{self.url}/_emulator/{what}", data, GONE_WITHIN) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def statuses(self) -> list[str]:
        return [session["status"] for session in self.ask("statistics")["sessions"]]

    def count_open(self) -> int:
        count: int = self.ask("statistics")["open_sessions"]
        return count

    def check_sessions(self, orphans: int = 0) -> None:
        """Check that no session stays, but for those whose proxy could not end them: they end with the idle timeout.

        Args:
            orphans: how many of those there may be.
        """
        wait_until(lambda: self.count_open() <= orphans, f"no more than {orphans} sessions are open")
        self.ask("faults", {"idle_timeout_s": 0.1})
        wait_until(lambda: not self.count_open(), "the idle timeout ends the rest")
        self.ask("faults?reset", {})
        assert self.ask("statistics")["client_defects"] == {}


class Victim:
    """One ssh through the proxy, with traffic; its process is to be killed, or one that it depends on.

    Args:
        user: whose ssh it is. Each victim has a user of its own, whose mark finds its processes.
        traffic: one of `COMMANDS`.
    """

    def __init__(self, user: User, traffic: str) -> None:
        self.user = user
        self.traffic = traffic
        self.moved = 0
        """Bytes written and read so far."""
        self.node_pids: list[int] = []
        """What runs on the node for it: the command, and the process of sshd that serves this connection."""
        self._errors = user.folder / "stderr"
        with self._errors.open("wb") as errors:
            command = f"echo $$ $PPID; {COMMANDS[traffic]}"
            self.ssh = user.start("-o", "ConnectTimeout=60", user.host, command, stderr=errors)
        self._ends_input = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        """Move bytes until ssh closes its output; it is all the same what they are."""
        assert self.ssh.stdin is not None
        assert self.ssh.stdout is not None
        head = bytearray()
        sink, source = self.ssh.stdin.fileno(), self.ssh.stdout.fileno()
        os.set_blocking(sink, False)
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            writes = False
            while True:
                wants = self.is_ready and self.traffic in ("upload", "both") and not self._ends_input.is_set()
                if wants != writes:
                    writes = wants
                    selector.register(sink, selectors.EVENT_WRITE) if writes else selector.unregister(sink)
                for key, _ in selector.select(0.05):
                    try:
                        if key.fd == sink:
                            self.moved += os.write(sink, BLOCK)
                            continue
                        data = os.read(source, 65536)
                    except BlockingIOError:
                        continue
                    except OSError:  # ssh has gone
                        return
                    if not data:
                        return
                    self.moved += len(data)
                    if not self.is_ready:
                        head += data
                        if b"\n" in head:
                            self.node_pids = [int(word) for word in head.partition(b"\n")[0].split()]

    @property
    def is_ready(self) -> bool:
        return bool(self.node_pids)

    def wait_ready(self) -> None:
        wait_until(lambda: self.is_ready or self.ssh.poll() is not None, "the command runs", READY_WITHIN)
        assert self.is_ready, self.errors()

    def wait_moved(self, count: int) -> None:
        """Wait until so many more bytes were moved, if any are at all."""
        if self.traffic != "nothing":
            goal = self.moved + count
            wait_until(lambda: self.moved >= goal, "the traffic flows", READY_WITHIN)

    def end_input(self) -> None:
        self._ends_input.set()
        assert self.ssh.stdin is not None
        if self.traffic in ("upload", "both"):
            with contextlib.suppress(BrokenPipeError):
                self.ssh.stdin.close()
        else:
            self.ssh.stdin.close()

    def kill_proxy(self, number: int) -> None:
        """Send a signal to the proxy, as soon as ssh has started it."""

        def kill() -> bool:
            for proxy in self.user.proxies():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(proxy.pid, number)
                return True
            return self.ssh.poll() is not None

        wait_until(kill, "there is a proxy", READY_WITHIN)

    def kill_sshd(self) -> None:
        """Kill the process of sshd that serves this connection."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.node_pids[1], signal.SIGKILL)

    def errors(self) -> str:
        return self._errors.read_text()

    def ending(self, within: float = GONE_WITHIN) -> tuple[int, str]:
        """Wait for the end of ssh and of all that it started on this side; give its status and its words."""
        try:
            status = self.ssh.wait(within)
        except subprocess.TimeoutExpired:
            left = self.user.processes()
            raise AssertionError(f"ssh does not end; there are {left}, it says {self.errors()!r}") from None
        wait_until(lambda: not self.user.processes(), f"nothing is left of {self.user.processes()}", within)
        self.clean_up()
        errors = self.errors()
        assert "Traceback" not in errors
        assert "bug of ssm-proxy" not in errors
        for line in errors.splitlines():
            assert not line.startswith("ssm-proxy") or OUR_LINE.fullmatch(line), line
        return status, errors

    def has_node_processes(self) -> bool:
        """Whether something still runs on the node; it may until the session is over."""
        return any(Process(pid=pid, arguments=()).exists() for pid in self.node_pids)

    def clean_up(self) -> None:
        """Stop at once; after an orderly end it only closes the pipes."""
        self.ssh.kill()
        self.ssh.wait(GONE_WITHIN)
        self._thread.join(GONE_WITHIN)
        for pipe in (self.ssh.stdin, self.ssh.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


StartVictim = Callable[..., Victim]


class KillableSshd(Sshd):
    """Dies as a whole or without its connections, and comes back on the same port."""

    def kill_listener(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(GONE_WITHIN)

    def restart(self) -> None:
        self.__enter__()


@pytest.fixture
def own_sshd(tmp_path: Path, key: Key) -> Iterator[KillableSshd]:
    """An sshd that a test may kill."""
    tool("sshd")
    (tmp_path / "sshd").mkdir()
    with KillableSshd(tmp_path / "sshd", key.public) as server:
        yield server


@pytest.fixture
def service(own_sshd: Sshd, tmp_path: Path) -> Iterator[Service]:
    service = Service(own_sshd, tmp_path)
    service.start()
    yield service
    service.kill()


@pytest.fixture
def start(service: Service, own_sshd: Sshd, new_user: MakeUser) -> Iterator[StartVictim]:
    """Start victims, from any thread. At the end, when no session is left, nothing may be left on the node."""
    making = threading.Lock()
    victims: list[Victim] = []
    with contextlib.ExitStack() as stack:

        def start(traffic: str) -> Victim:
            with making:
                user = new_user(None, REAL, sshd=own_sshd, environment=service.environment)
            victim = Victim(user, traffic)
            victims.append(victim)
            stack.callback(victim.clean_up)
            return victim

        yield start
        service.check_sessions(len(victims))
        wait_until(lambda: not any(each.has_node_processes() for each in victims), "the node's processes are gone")


# --- one tunnel -----------------------------------------------------------------------------------------------------

KILLS: Mapping[str, Callable[[Victim], None]] = {
    "ssh": lambda victim: victim.ssh.kill(),
    "SIGTERM": lambda victim: victim.kill_proxy(signal.SIGTERM),
    "SIGHUP": lambda victim: victim.kill_proxy(signal.SIGHUP),
    "SIGKILL": lambda victim: victim.kill_proxy(signal.SIGKILL),
    "sshd": Victim.kill_sshd,
}
MOMENTS = ("begin", "transfer", "end")


def await_moment(victim: Victim, moment: str, chance: random.Random) -> None:
    if moment == "begin":  # the interpreter starts, StartSession, the WebSocket, both handshakes, the command
        time.sleep(chance.uniform(0.0, 1.5))
        return
    victim.wait_ready()
    victim.wait_moved(chance.randrange(1_000_000))
    if moment == "end":
        victim.end_input()
        time.sleep(chance.uniform(0.0, 0.2))


def kill_one(start: StartVictim, who: str, moment: str, chance: random.Random) -> None:
    """Start a tunnel, kill at the moment, and look at what is left."""
    victim = start(chance.choice(sorted(COMMANDS)))
    await_moment(victim, moment, chance)
    KILLS[who](victim)
    status, errors = victim.ending()
    if who == "ssh":
        assert status == -signal.SIGKILL or (moment == "end" and status == 0)
    elif moment == "end" and status == 0:
        assert errors == ""  # the end came before the kill
    else:
        # The proxy that is told to go says nothing, and the one that is killed cannot: ssh knows what it lost.
        assert status == 255, errors
        assert errors


def make_kills(chance: random.Random, count: int) -> list[tuple[str, str]]:
    """Give who is killed and when: each of them before any comes again."""
    every = [(who, moment) for who in KILLS for moment in MOMENTS if (who, moment) != ("sshd", "begin")]
    kills: list[tuple[str, str]] = []
    while len(kills) < count:
        kills += chance.sample(every, len(every))
    return kills[:count]


def kill_many(service: Service, start: StartVictim, seed: int, count: int) -> None:
    chance = random.Random(seed)
    kills = make_kills(chance, count)
    with ThreadPoolExecutor(2) as lanes:
        jobs = [
            lanes.submit(kill_one, start, *kill, random.Random(f"{seed}/{kill}/{n}")) for n, kill in enumerate(kills)
        ]
        for kill, job in zip(kills, jobs, strict=True):
            try:
                job.result()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {kill}: {error}") from error
    orphans = sum(who == "SIGKILL" or (who != "ssh" and moment == "begin") for who, moment in kills)
    service.check_sessions(orphans)


def test_a_tunnel_is_killed_at_random_moments(service: Service, start: StartVictim) -> None:
    kill_many(service, start, seed=1, count=14)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 5))
def test_many_tunnels_are_killed_at_random_moments(service: Service, start: StartVictim, seed: int) -> None:
    kill_many(service, start, seed=seed, count=56)


def test_kills_while_a_reconnect_is_in_progress(service: Service, start: StartVictim) -> None:
    chance = random.Random(5)
    victims = {who: start(traffic) for who, traffic in zip(KILLS, (*COMMANDS, "both"), strict=True)}
    for victim in victims.values():
        victim.wait_ready()
    service.ask("faults", {"refuse_resume": "throttle"})
    service.ask("drop", {"manner": "reset"})
    wait_until(lambda: service.statuses() == ["Disconnected"] * len(victims), "all are disconnected")
    for who, victim in victims.items():
        time.sleep(chance.uniform(0.0, 0.3))
        KILLS[who](victim)
    for who, victim in victims.items():
        if who == "sshd":  # behind a connection that is lost nobody hears of it yet
            service.ask("faults", {"refuse_resume": ""})
        status, errors = victim.ending()
        assert status == (-signal.SIGKILL if who == "ssh" else 255)
        assert errors or who == "ssh"
    service.check_sessions(orphans=1)


# --- the service ----------------------------------------------------------------------------------------------------


def kill_service(service: Service, start: StartVictim, chance: random.Random) -> None:
    """Kill the service while tunnels are at all stages, and start another that knows none of them."""
    old = [start(traffic) for traffic in ("upload", "download", "both")]
    for victim in old:
        victim.wait_ready()
    old[-1].wait_moved(chance.randrange(500_000))
    new = start("nothing")
    time.sleep(chance.uniform(0.1, 1.2))
    service.kill()
    time.sleep(chance.uniform(0.0, 1.0))
    service.start()
    for victim in old:
        status, errors = victim.ending()
        assert status == 255
        assert f"ssm-proxy: error: the session to {REAL} is over\n" in errors
        assert "ssm-proxy: cause: the service does not know it any more" in errors
        assert "ssm-proxy: hint: connect again" in errors
    # One that was beginning may have begun with the second service: who calls StartSession tries more than once.
    wait_until(lambda: new.is_ready or new.ssh.poll() is not None, "it works or has ended", READY_WITHIN)
    if new.ssh.poll() is None:
        new.end_input()
        assert new.ending() == (0, "")
    else:
        status, errors = new.ending()
        assert status == 255
        assert "ssm-proxy: error: " in errors
    service.check_sessions()


def test_the_service_is_killed_and_comes_back(service: Service, start: StartVictim) -> None:
    kill_service(service, start, random.Random(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 5))
def test_the_service_is_killed_and_comes_back_many_times(service: Service, start: StartVictim, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        kill_service(service, start, chance)


def test_the_service_is_killed_while_it_reconnects_somebody(service: Service, start: StartVictim) -> None:
    victim = start("both")
    victim.wait_ready()
    service.ask("faults", {"refuse_resume": "error"})
    service.ask("drop", {"manner": "close-1000"})
    wait_until(lambda: service.statuses() == ["Disconnected"], "it is disconnected")
    service.kill()
    service.start()
    status, errors = victim.ending()
    assert status == 255
    assert f"ssm-proxy: error: the session to {REAL} is over\n" in errors
    service.check_sessions()


# --- the node -------------------------------------------------------------------------------------------------------


def test_the_listener_of_sshd_is_killed_and_comes_back(
    service: Service, start: StartVictim, own_sshd: KillableSshd
) -> None:
    """What goes on goes on, what begins meanwhile is told why it cannot, and what begins later works."""
    old = start("both")
    old.wait_ready()
    own_sshd.kill_listener()
    old.wait_moved(500_000)
    status, errors = start("nothing").ending()
    assert status == 255
    assert f"ssm-proxy: error: port 22 of {REAL} did not answer\n" in errors
    assert "ssm-proxy: hint: check that sshd runs there" in errors
    own_sshd.restart()
    new = start("nothing")
    new.wait_ready()
    for victim in (old, new):
        victim.end_input()
        assert victim.ending() == (0, "")
    service.check_sessions()


# --- shared connections ---------------------------------------------------------------------------------------------


def start_master(service: Service, sshd: Sshd, new_user: MakeUser) -> tuple[User, Path]:
    """Give a user with a master in the background, and the proxy's log file."""
    user = new_user(None, REAL, sshd=sshd, environment=service.environment)
    log = user.folder / "log"
    settings = [
        f"ProxyCommand ssm-proxy proxy --log-file {log} %h %p",
        "ControlMaster auto",
        f"ControlPath {user.folder}/c",
        "ControlPersist 60",
    ]
    user.config.write_text("\n".join(settings) + "\n" + user.config.read_text())
    assert quiet(user.ssh("echo first")) == b"first\n"
    return user, log


def the_master(user: User) -> Process:
    """Give the ssh that stays in the background. Its mark cannot be read: it writes its title over its environment."""
    found = re.search(rb"Master running \(pid=(\d+)\)", user.run("ssh", "-O", "check", user.host).stderr)
    assert found
    return Process(pid=int(found[1]), arguments=())


@pytest.mark.parametrize("who", ["master", "proxy", "service"])
def test_a_master_or_what_it_depends_on_is_killed(
    service: Service, own_sshd: Sshd, new_user: MakeUser, who: str
) -> None:
    user, log = start_master(service, own_sshd, new_user)
    master = the_master(user)
    if who == "master":
        os.kill(master.pid, signal.SIGKILL)
    elif who == "proxy":
        os.kill(user.proxy().pid, signal.SIGTERM)
    else:
        service.kill()
        service.start()
    wait_until(lambda: not user.processes() and not master.exists(), "master and proxy are gone", GONE_WITHIN)
    text = log.read_text()
    assert "Traceback" not in text
    if who == "service":  # nobody reads standard error any more: the file has to tell
        assert f": ssm-proxy: error: the session to {REAL} is over\n" in text
        assert ": ssm-proxy: hint: connect again" in text
    else:
        assert " bytes in, " in text.splitlines()[-1], "the end is the last thing it tells"
    service.check_sessions()
    # The next command starts anew, and is not held up by what the killed master left.
    done = user.ssh("echo second")
    assert (done.returncode, done.stdout) == (0, b"second\n")
    assert user.run("ssh", "-O", "exit", user.host).returncode == 0
    wait_until(lambda: not user.processes(), "the proxy is gone", GONE_WITHIN)
    service.check_sessions()
