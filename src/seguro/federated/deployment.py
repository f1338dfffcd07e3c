"""A federation over a network: starts from a start-up folder what runs at the server, or at a site."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import yaml

from seguro.core.errors import ConfigError, ExtraMissing, RunError
from seguro.core.files import write_text
from seguro.core.stage import locked
from seguro.federated import resident, startup
from seguro.federated.record import FINISHED, same_or_refuse
from seguro.federated.strategies import Federation

Say = Callable[[str], None]
APP = """\
[project]
name = "seguro-federation"
version = "1.0.0"
description = "The apps of seguro, which is installed wherever they run; this bundle holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "seguro"

[tool.flwr.app.components]
serverapp = "seguro.federated.server_app:app"
clientapp = "seguro.federated.client_app:app"

[tool.flwr.app.config]
federation = ""
folder = ""
"""
START_S = 120.0
"""How long a service may take until it listens."""
STOP_S = 10.0
"""How long a service may take to end before it is killed."""
SOON_S = 30.0
"""A program that ends so soon after its start, with a code above 0, has a fault that stays."""
COUNTED = "[code: 2004]"
"""In the last words of a SuperNode that may not start yet: for up to a minute the SuperLink takes one that
was killed for still there, and lets no second one of its key in. A key that it does not know has the same."""
AGAIN_S = 3.0
PATIENCE_S = 75.0
"""How long a program that may start later is tried."""
_LINES = 15
_PR_SET_PDEATHSIG = 1


class Service:
    """A program in the background, with all that it starts, until the `with` block ends.

    Args:
        name: for people.
        command: what is started.
        log: file of its output.
        environment: of the program; this process's where None.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.command, self.log, self.environment = name, command, log, environment
        self.waits_since = 0.0
        """When it was first found that it may start only later; 0 where it was not."""

    def __enter__(self) -> Service:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                preexec_fn=_dies_with_parent,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self._signal(signal.SIGKILL)  # what it started and left behind
        self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def revive(self, say: Say, *, ready: Callable[[], None] = lambda: None, later: str = "") -> None:
        """Start the program again if it is no longer there.

        Args:
            say: takes a line about it.
            ready: called before, and returns when the program can do its work.
            later: in the last words of a program that may start later, and is tried for `PATIENCE_S`.

        Raises:
            RunError: it ended with a fault soon after it was started, and would do so again.
        """
        if self.process.poll() is None:
            return
        now = time.monotonic()
        soon, fault = now - self.started < SOON_S, self.process.returncode > 0
        waiting = bool(later) and soon and fault and later in tail(self.log)
        if waiting:
            self.waits_since = self.waits_since or now
        if soon and fault and not (waiting and now - self.waits_since < PATIENCE_S):
            self.check()
        if not waiting:
            self.waits_since = 0.0
            say(f"{self.name} ended with code {self.process.returncode} and is started again; see {self.log}")
        elif self.waits_since == now:
            say(
                f"{self.name} is not let in: the one before still counts as there, or its key is not "
                f"registered; tried again for {PATIENCE_S:g} s; see {self.log}"
            )
        self._signal(signal.SIGKILL)
        time.sleep(AGAIN_S if waiting else 0.0)
        ready()
        self.__enter__()

    def check(self) -> None:
        """Raise RunError with the end of its log if the program is no longer there."""
        if self.process.poll() is not None:
            raise RunError(f"{self.name} ended with code {self.process.returncode}:\n{tail(self.log)}")

    def listening(self, port: int, *, timeout_s: float = START_S) -> Service:
        """Return when the program listens on `port` of the loopback.

        Raises:
            RunError: it ended, or does not listen in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return self
            except OSError:
                time.sleep(0.2)
        raise RunError(f"{self.name} does not listen on port {port} after {timeout_s:g} s:\n{tail(self.log)}")


def serve(folder: Path, federation: Federation, out: Path, *, say: Say = lambda line: None) -> Path:
    """Run a federation as its server and return the run's folder; the same call goes on where it stopped.

    Starts HAProxy and the SuperLink, registers the sites' keys, submits the run and waits for its end.

    Args:
        folder: the server's start-up folder.
        federation: every choice; its sites are of the project, its noise is never from a seed.
        out: the run goes to `out`/<run>.
        say: takes lines for people.

    Raises:
        ConfigError: something is missing, expired or does not fit together.
        RunError: a service ends, or the run fails; with the end of its log.
    """
    needed()
    start = startup.server_start(folder)
    expected(federation, start)
    say(f"certificates are valid until {startup.check(folder):%Y-%m-%d}")
    run = (out / federation.run).resolve()
    work = folder.resolve() / "work"
    wanted = federation.model_copy(update={"noise_seed": None})
    same_or_refuse(run, wanted)
    if (run / FINISHED).exists():
        say(f"{run}/ is finished already, nothing to do")
        return run
    write_text(work / "federation.yaml", yaml.safe_dump(wanted.model_dump(mode="json"), sort_keys=False))
    environment = startup.environment(work / "flower")
    write_text(work / "flower" / "config.toml", startup.flower_config(folder.resolve()))
    write_text(work / "app" / "pyproject.toml", APP)
    with stoppable(), locked(run), ExitStack() as stack:
        link = Service(
            "the SuperLink", startup.superlink_command(folder.resolve()), work / "superlink.log", environment
        )
        stack.enter_context(link).listening(start.superlink_port)
        command = startup.executor_command(folder.resolve())
        hands = stack.enter_context(Service("the executor", command, work / "executor.log", environment))
        for command in startup.register_commands(folder.resolve()):
            _done("registering a site's key", command, environment)
        say(f"registered the keys of {', '.join(start.sites)}")
        proxy = Service("HAProxy", startup.proxy_command(folder.resolve()), work / "haproxy.log")
        stack.enter_context(proxy).listening(start.port)
        say(f"sites may connect to {start.host}:{start.port}")
        submit = Service(
            "the run",
            startup.run_command(work / "app", work / "federation.yaml", run),
            work / "run.log",
            environment,
        )
        _watch(stack.enter_context(submit), (link, hands, proxy), run / "rounds.jsonl", say)
    if not (run / FINISHED).exists():
        raise RunError(f"run {federation.run} did not finish; the same command goes on:\n{tail(submit.log)}")
    return run


def expected(federation: Federation, start: startup.ServerStart) -> None:
    """Raise ConfigError where a site of the federation is not of the project."""
    if strangers := sorted(set(federation.sites) - set(start.sites)):
        raise ConfigError(
            f"run {federation.run}: sites {', '.join(strangers)} are not of project {start.project}, "
            f"whose sites are {', '.join(start.sites)}"
        )


def take_part(
    folder: Path,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    precision: str = "32",
    say: Say = lambda line: None,
) -> None:
    """Take part as a site until the process is stopped.

    Sees that the server lets the site in, then starts the training, the sidecar and the SuperNode. A training
    that is killed is started again and goes on from its disk; so is the SuperNode, which ends when the server
    was started anew.

    Args:
        folder: the site's start-up folder; its policy.yaml holds.
        data: the site's data folder.
        out: its workspace; `federated/audit.jsonl` in it has every message.
        device: of its training.
        precision: of its training.
        say: takes lines for people.

    Raises:
        ConfigError: something is missing or expired.
        RunError: the server refuses the site or cannot be reached, or a service ends.
    """
    needed()
    folder, start = folder.resolve(), startup.site_start(folder)
    until = startup.check(folder)
    startup.reach(folder)
    say(f"{start.host}:{start.port} lets site {start.site} in; certificates are valid until {until:%Y-%m-%d}")
    work = folder / "work"
    settings = {"data": str(data.resolve()), "out": str(out.resolve()), "policy": str(folder / "policy.yaml")}
    settings |= {"device": device, "precision": precision}
    with stoppable(), TemporaryDirectory(prefix="seguro-") as room, ExitStack() as stack:
        door = Path(room) / "site"  # not below the workspace: the path of a socket has 107 bytes at most
        command = resident.command(door, {"site": start.site, **settings})
        training = stack.enter_context(Service("the training", command, work / "training.log"))
        sidecar = Service("the sidecar", startup.proxy_command(folder), work / "haproxy.log")
        stack.enter_context(sidecar).listening(start.sidecar_port)
        environment = startup.environment(work / "flower")
        command = startup.executor_command(folder)
        hands = stack.enter_context(Service("the executor", command, work / "executor.log", environment))
        command = startup.supernode_command(folder, {"socket": str(door)})
        node = stack.enter_context(Service("the SuperNode", command, work / "supernode.log", environment))
        say(f"takes part; every message is in {out / 'federated' / 'audit.jsonl'}; Ctrl-C stops")
        while True:
            sidecar.check()
            training.revive(say)
            hands.revive(say)
            # a site whose first key is unknown is told so at once
            later = COUNTED if (out / "federated" / "audit.jsonl").exists() else ""
            try:
                node.revive(say, ready=lambda: let_in_again(folder, say), later=later)
            except RunError as error:
                if COUNTED not in str(error):
                    raise
                raise RunError(
                    f"{start.host}:{start.port} does not know the key of site {start.site}: start the server "
                    "of the same project, or, where this site was killed a moment ago, try again in a minute"
                    f"\n{error}"
                ) from error
            time.sleep(1.0)


def let_in_again(folder: Path, say: Say, *, every_s: float = 3.0) -> None:
    """Return when the server lets the site of a start-up folder in; says why it does not yet.

    A server that was started anew knows no node any more, and Flower's SuperNode ends when it learns of it.
    """
    said = ""
    while True:
        try:
            startup.reach(folder)
        except RunError as error:
            if str(error) != said:
                said = str(error)
                say(f"{said}; waits for it")
            time.sleep(every_s)
        else:
            return


@contextmanager
def stoppable() -> Iterator[None]:
    """End the block on SIGTERM as on Ctrl-C, so that what was started is stopped too."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dies_with_parent() -> None:
    """Have Linux end the program when this process is killed, which could not stop it any more."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def tail(log: Path, n: int = _LINES) -> str:
    """Return the last lines of a log, indented."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-n:]) or "  (its log is empty)"


def needed() -> None:
    """Raise ExtraMissing where Flower is not installed."""
    from importlib.util import find_spec

    if find_spec("flwr") is None:
        raise ExtraMissing("flwr", "federated", "a federation over a network")


def _watch(submit: Service, services: Sequence[Service], rounds: Path, say: Say) -> None:
    """Wait for the run's end; say each round as it is written."""
    told = rounds.read_bytes().count(b"\n") if rounds.exists() else 0
    while submit.process.poll() is None:
        for service in services:
            service.check()
        done = rounds.read_bytes().count(b"\n") if rounds.exists() else 0
        if done > told:
            say(f"round {done} is done")
            told = done
        time.sleep(1.0)


def _done(what: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    found = subprocess.run(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    if found.returncode:
        said = "\n".join(f"  {x}" for x in (found.stdout + found.stderr).splitlines()[-_LINES:])
        raise RunError(f"{what} failed with code {found.returncode}:\n{said}")
