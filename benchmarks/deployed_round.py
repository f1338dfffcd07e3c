"""Rounds of a federation as it is deployed, all of it on this machine, for `benchmarks/speed.py`.

HAProxy, the SuperLink, and for every site its sidecar, SuperNode, executor and training, as the two commands
start them; every message goes through both proxies. What a site says that it trained, scored and saved is
taken off a round's time, the slowest site's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROUNDS = 40
"""More than are timed: one to warm up and the repeats of two jobs."""
PATIENCE_S = 1800.0


class Deployed:
    """A running federation whose rounds are counted from outside.

    Args:
        n_sites: all on this machine.
        width: of the network; 45 gives 2.6 M parameters.
    """

    def __init__(self, n_sites: int = 4, *, width: int = 45) -> None:
        from seguro.core.files import write_text
        from seguro.data import phantom
        from seguro.federated.provision import Project, provision

        self.n_sites = n_sites
        self.folder = folder = Path(tempfile.mkdtemp(prefix="deployed-"))
        ports = free_ports(2 + 2 * n_sites)
        names = [f"site{i}" for i in range(n_sites)]
        sites = {
            name: {"sidecar_port": ports[2 + 2 * i], "runtime_port": ports[3 + 2 * i]}
            for i, name in enumerate(names)
        }
        provision(
            Project(name="speed", server="127.0.0.1", port=ports[0], superlink_port=ports[1], sites=sites),
            folder / "fed",
        )
        text = (
            f"name: speed\nmethod: supervised\npreset: small\nrounds: {ROUNDS}\nupdates: 1\nbatch: 1\n"
            f"settings: {{network_options: {{width: {width}}}, average: null}}\n"
            f"strategy: {{evaluate_every: {ROUNDS}}}\n"
        )
        write_text(folder / "federation.yaml", text)
        command = [sys.executable, "-m", "seguro", "federate"]
        started = [[*command, "server", "fed/server", "federation.yaml"]]
        for i, name in enumerate(names):
            phantom.write_msd(folder / name, n_labelled=2, n_test=0, seed=i)
            started.append([*command, "site", f"fed/sites/{name}", name])
        self.processes: list[subprocess.Popen[bytes]] = []
        self.seen = 0
        for k, words in enumerate(started):
            self._start(words, folder / f"{k}.log")
            if not k:
                self.until(lambda: "may connect" in (folder / "0.log").read_text())
        self.next_round()

    def _start(self, words: list[str], log: Path) -> None:
        with log.open("wb") as stream:
            self.processes.append(
                subprocess.Popen(
                    words, cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
                )
            )

    def alive(self) -> None:
        """Raise where one of the commands ended."""
        for k, process in enumerate(self.processes):
            if process.poll() is not None:
                raise RuntimeError((self.folder / f"{k}.log").read_text()[-2000:])

    def until(self, there: Callable[[], bool]) -> None:
        """Return when `there` is true; whatever goes wrong before stops everything."""
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not there():
                self.alive()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nothing happened within {PATIENCE_S:g} s")
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise

    def rounds(self) -> list[dict]:
        """Return what the server wrote of its finished rounds."""
        path = self.folder / "runs/speed/rounds.jsonl"
        raw = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in raw]

    def next_round(self) -> None:
        """Return when one more round is finished than when this returned last."""
        self.until(lambda: len(self.rounds()) > self.seen)
        self.seen = len(self.rounds())

    def beyond_training(self) -> float:
        """Return the seconds of all finished rounds less those that the slowest site of each worked."""
        seen = self.rounds()[: self.seen]
        return sum(r["seconds"] - max(m["seconds"] for m in r["metrics"].values()) for r in seen)

    def parameters(self) -> float:
        """Return the millions of parameters that travel."""
        return json.loads((self.folder / "runs/speed/federation.json").read_text())["arrays_bytes"] / 4e6

    def processor_s(self) -> float:
        """Return the processor time so far of all processes but those that train."""
        tick = os.sysconf("SC_CLK_TCK")
        return sum(ticks for ticks, words in tree(os.getpid()) if "federated.resident" not in words) / tick

    def stop(self) -> None:
        """Stop the sites, then the server."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(120)


def free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def tree(pid: int) -> Iterator[tuple[int, str]]:
    """Yield processor ticks, those of ended children included, and the words of everything `pid` started."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended just now
                continue
            yield sum(map(int, fields[11:15])), words
            yield from tree(int(child))
