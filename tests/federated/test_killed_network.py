"""kill -9 over a network on the loopback: of a SuperNode in a round, and of all that runs at the server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.core.files import write_text
from seguro.data import phantom
from seguro.federated.provision import Project, provision

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("deployment"),
    pytest.mark.skipif(
        shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
        reason="haproxy is not installed (apt-get install haproxy)",
    ),
]
SITES = ("north", "south")
WAIT_S = 1200.0
SILENCE_S = 15.0
"""Time-out of a round whose site was killed; longer where the machine is busy."""
AGREE = 1e-6


def children(pid: int) -> Iterator[int]:
    """Yield everything that `pid` started, the youngest first."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from children(int(child))
            yield int(child)


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def busy() -> float:
    """Return by how much this machine is slower than an idle one, at starting Flower."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import flwr.supernode.runtime.run_clientapp"], check=True)
    return max(1.0, (time.monotonic() - started) / 2)


class Network:
    """A server and two sites as their commands start them."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        sites = {
            name: {"sidecar_port": ports[2 + 2 * k], "runtime_port": ports[3 + 2 * k]}
            for k, name in enumerate(SITES)
        }
        project = Project(name="x", server="127.0.0.1", port=ports[0], superlink_port=ports[1], sites=sites)
        provision(project, folder / "fed")
        for k, name in enumerate(SITES):
            phantom.write_msd(folder / name, n_labelled=2 + k, n_test=0, seed=k)
        self.running: list[subprocess.Popen[bytes]] = []
        self.sites: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *told: str, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "seguro", "federate", *told],
                cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.running.append(process)
        return process

    def serve(self, name: str) -> subprocess.Popen[bytes]:
        """Start the server, and return when sites may connect; the sites, where they do not run yet."""
        log = self.folder / f"{name}.log"
        opened = log.read_text().count("may connect") if log.exists() else 0
        server = self.start("server", "fed/server", f"{name}.yaml", log=log.name)
        self.until(lambda: log.read_text().count("may connect") > opened, server)
        for site in SITES:
            if site not in self.sites:
                self.sites[site] = self.start("site", f"fed/sites/{site}", site, log=f"{site}.log")
        return server

    def until(self, there: Callable[[], bool], *needed: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not there():
            for process in (*needed, *self.sites.values()):
                assert process.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)

    def rounds(self, name: str) -> list[dict]:
        path = self.folder / "runs" / name / "rounds.jsonl"
        raw = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in raw]

    def one(self, site: str, what: str) -> int:
        """Return the process of a site whose words hold `what`."""
        return next(pid for pid in children(self.sites[site].pid) if what in words(pid))

    def logs(self) -> str:
        return "\n".join(f"{p.name}:\n{p.read_text()[-1500:]}" for p in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


@pytest.fixture(scope="module")
def network(tmp_path_factory, free_ports):
    made = Network(tmp_path_factory.mktemp("killed"), free_ports(6))
    try:
        yield made
    finally:
        made.stop()


def told(network: Network, name: str, rounds: int, strategy: dict) -> None:
    text = f"name: {name}\npreset: tiny\nrounds: {rounds}\nupdates: 2\nbatch: 2\nplan: {{memory_gib: 0.01}}\n"
    write_text(network.folder / f"{name}.yaml", f"{text}strategy: {json.dumps(strategy)}\n")


def test_a_server_that_is_killed_with_all_its_services_goes_on_to_the_same_weights(network):
    """The same command again; both sites find it by themselves. The run that nobody killed is simulated."""
    from safetensors.numpy import load_file

    from seguro.api import federation as api

    told(network, "server", 6, {"quorum": 2})
    server = network.serve("server")
    network.until(lambda: len(network.rounds("server")) >= 2, server)
    for pid in [*children(server.pid), server.pid]:
        os.kill(pid, signal.SIGKILL)
    server.wait()
    before = network.rounds("server")
    assert 2 <= len(before) < 6
    again = network.serve("server")
    network.until(lambda: again.poll() is not None)
    assert again.returncode == 0, network.logs()
    after = network.rounds("server")
    # none was done again, but the last if it was killed between the line of the log and the weights
    assert after[: len(before) - 1] == before[:-1]
    assert [e["round"] for e in after] == [1, 2, 3, 4, 5, 6, 7]
    assert all(e["took_part"] == list(SITES) for e in after[:6])
    options, _ = api.options_in(network.folder / "server.yaml")
    whole = api.simulate([network.folder / s for s in SITES], options, out=network.folder / "whole")
    found, wanted = (
        load_file(next((run / "model").glob("*.safetensors")))
        for run in (network.folder / "runs/server", whole)
    )
    assert found.keys() == wanted.keys()
    assert max(abs(v.astype(float) - wanted[k]).max() for k, v in found.items()) <= AGREE


def test_a_node_that_is_killed_in_a_round_is_missed_and_welcomed_back(network):
    """Its training is held while the node is killed, so that no answer is on its way."""
    told(network, "node", 500, {"quorum": 1, "timeout_s": SILENCE_S * busy()})
    server = network.serve("node")
    network.until(lambda: len(network.rounds("node")) >= 1, server)
    training, log = network.one("south", "federated.resident"), network.folder / "fed/sites/south/work"
    os.kill(training, signal.SIGSTOP)
    done = len(network.rounds("node"))
    seen = (log / "supernode.log").read_text().count("Received successfully")
    network.until(
        lambda: (
            (log / "supernode.log").read_text().count("Received successfully") > seen
            or len(network.rounds("node")) > done
        ),
        server,
    )
    node = network.one("south", "federated.supernode")
    os.kill(node, signal.SIGKILL)
    os.kill(training, signal.SIGCONT)
    network.until(lambda: any("south" in e["missing"] for e in network.rounds("node")), server)
    missed = next(e for e in network.rounds("node") if "south" in e["missing"])
    assert missed["took_part"] == ["north"]

    def back() -> bool:
        later = [e for e in network.rounds("node") if e["round"] > missed["round"]]
        return any("south" in e["took_part"] for e in later)

    network.until(back, server)
    assert network.one("south", "federated.supernode") != node  # the site's command started another
    assert network.one("south", "federated.resident") == training  # and kept the training
    server.terminate()
    server.wait(120)
    assert len(network.rounds("node")) < 500
