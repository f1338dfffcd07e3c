"""docs/federation.md as it stands: every step is run, three SuperNodes on the loopback, no other network.

Then what came out of it is looked at: the weights are those of the simulator, the logs say what left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the package flwr (extra federated) is not installed")
pytest.importorskip("cryptography", reason="the package cryptography (extra federated) is not installed")

from seguro.core.errors import ConfigError, ExtraMissing, RunError
from seguro.core.files import write_json
from seguro.data import phantom
from seguro.federated import deployment
from seguro.federated.audit import verify
from seguro.federated.deployment import tail

PAGE = Path(__file__).parents[2] / "docs" / "federation.md"
SITES = ("north", "south", "west")
BLOCK = re.compile(r"^```(\S+)[ ]?(.*?)\n(.*?)^```$", re.M | re.S)
ROUND_S = 5.0
"""Of a round over the network beyond its training, where three sites and a server have two idle cores."""
PATIENT = "Mustermann"
PORTS = ("8443", "8000", "9441", "9442", "9443", "9191", "9192", "9193")


def blocks() -> list[tuple[str, str, str]]:
    """Return (language, rest of the fence, text) of every block of the page."""
    return [(m[1], m[2], m[3]) for m in BLOCK.finditer(PAGE.read_text())]


WATCH = """
import os, sys
LOG = os.open(os.environ["CONNECT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def note(event, args):
    if event in ("socket.connect", "socket.sendto"):
        os.write(LOG, f"{event} {args[1]!r}\\n".encode())
    elif event == "socket.getaddrinfo":
        os.write(LOG, f"{event} {args[:1]!r}\\n".encode())
sys.addaudithook(note)
"""
"""Imported by every Python that starts with it in its path: notes where the process turns to."""
OURS = re.compile(
    r"socket.(connect|sendto) (\('127.0.0.1', \d+\)|'/[^']*')"
    r"|socket.getaddrinfo \(('127.0.0.1'|'localhost'|None),\)"
)


def busy() -> float:
    """Return by how much a small program takes longer here and now than on an idle machine, 1 at least."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return max(1.0, (time.monotonic() - started) / 0.3)


class Reader:
    """Does what the page says, in a folder."""

    def __init__(self, folder: Path, prefix: list[str], ports: list[int]) -> None:
        self.folder, self.prefix = folder, prefix
        self.ports = dict(zip(PORTS, map(str, ports), strict=True))
        self.server: subprocess.Popen | None = None
        self.sites: list[subprocess.Popen] = []
        self.said: dict[str, str] = {}
        self.busy = busy()
        self.connect_log = folder / "connects"
        (folder / "watch").mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(WATCH)
        watched = [str(folder / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CONNECT_LOG": str(self.connect_log),
            "PYTHONPATH": os.pathsep.join(watched),
        }

    def start(self, text: str, log: str) -> subprocess.Popen:
        tools = f'seguro() {{ "{sys.executable}" -m seguro "$@"; }}\n'
        tools += f'python() {{ "{sys.executable}" "$@"; }}\n'
        with (self.folder / log).open("wb") as stream:
            return subprocess.Popen(
                [*self.prefix, "bash", "-ec", tools + text],
                cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
                env=self.environment,
                # in a shell's background it is ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def step(self, number: int, kind: str, how: str, text: str) -> None:
        log = f"step-{number}.log"
        if kind == "yaml":
            for known, free in self.ports.items():
                text = re.sub(rf"\b{known}\b", free, text)
            path = self.folder / how
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif how == "runs until the end":
            self.server = self.start(text, log)
        elif how == "keeps running":
            self.sites.append(self.start(text, log))
        else:
            if how == "with the server":
                self.until_open(log)
            elif self.sites:
                self.until_over(number)
            assert self.start(text, log).wait(900) == 0, text + tail(self.folder / log)
            self.said[text.split("\n")[0]] = (self.folder / log).read_text()

    def until_open(self, log: str) -> None:
        """Wait for the server's line that sites may connect."""
        server = next(self.folder.glob("step-*.log"))
        for _ in range(600):
            server = next(
                (p for p in self.folder.glob("step-*.log") if "may connect" in p.read_text()), server
            )
            if "may connect" in server.read_text():
                return
            assert self.server is not None and self.server.poll() is None, tail(server)
            time.sleep(0.5)
        raise TimeoutError(tail(server))

    def until_over(self, number: int) -> None:
        assert self.server is not None
        assert self.server.wait(1500) == 0, "\n".join(tail(p) for p in self.folder.glob("step-*.log"))
        for process in self.sites:
            os.killpg(process.pid, signal.SIGINT)
        assert [p.wait(120 * self.busy) for p in self.sites] == [0, 0, 0]
        self.sites = []

    def stop(self) -> None:
        for process in (*self.sites, *([self.server] if self.server else [])):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


TOGETHER = pytest.mark.xdist_group("deployment")  # one worker, so that it is deployed once


@pytest.fixture(scope="module")
def lonely():
    """A prefix that puts commands where there is a loopback and no other network, if that is allowed."""
    name = f"seguro-lonely-{os.getpid()}"
    if (
        shutil.which("ip") is None
        or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode
    ):
        warnings.warn(
            "network namespaces are not allowed here (ip netns add): the page is read beside other networks",
            stacklevel=1,
        )
        yield []
        return
    prefix = ["ip", "netns", "exec", name]
    subprocess.run([*prefix, "ip", "link", "set", "lo", "up"], check=True)
    yield prefix
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture(scope="module")
def read(tmp_path_factory, lonely, free_ports):
    if shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        pytest.skip("haproxy is not installed (apt-get install haproxy)")
    folder = tmp_path_factory.mktemp("page")
    for k, name in enumerate(SITES):
        data = phantom.write_msd(folder / name, n_labelled=2 + k, n_test=0, seed=k)
        for path in [p for part in ("imagesTr", "labelsTr") for p in (data / part).glob("*.nii.gz")]:
            path.rename(path.with_name(f"{PATIENT}-{k}-{path.name}"))
        text = (data / "dataset.json").read_text()
        (data / "dataset.json").write_text(text.replace("Tr/", f"Tr/{PATIENT}-{k}-"))
    reader = Reader(folder, lonely, free_ports(len(PORTS)))
    try:
        for number, block in enumerate(blocks()):
            reader.step(number, *block)
        yield reader
    finally:
        reader.stop()


def lines(run: Path) -> list[dict]:
    return [json.loads(x) for x in (run / "rounds.jsonl").read_text().splitlines()]


@TOGETHER
@pytest.mark.slow
def test_every_step_of_the_page_works(read):
    assert (read.folder / "runs/liver-1/model").is_dir()
    assert (read.folder / "runs/liver-1/report/report.html").is_file()
    assert len(list((read.folder / "predicted").rglob("*.nii.gz"))) == 2
    assert all(x["took_part"] == list(SITES) for x in lines(read.folder / "runs/liver-1")[:2])


@TOGETHER
@pytest.mark.slow
def test_over_the_network_the_weights_are_those_of_the_rehearsal(read):
    """Sites of the same names and data: equal to the bit on one machine, 1e-6 is what is asked for."""
    from safetensors.numpy import load_file

    deployed = load_file(next((read.folder / "runs/liver-1/model").glob("*.safetensors")))
    rehearsed = load_file(next((read.folder / "rehearsal/try/model").glob("*.safetensors")))
    assert deployed.keys() == rehearsed.keys()
    for name, value in deployed.items():
        assert abs(value.astype(float) - rehearsed[name]).max() <= 1e-6, name


@TOGETHER
@pytest.mark.slow
def test_sites_recorded_what_left_and_the_page_shows_it(read):
    log = list(verify(read.folder / "north.seguro/federated/audit.jsonl"))
    assert [x["action"] for x in log if x["direction"] == "out"][:3] == ["join", "agree", "train"]
    assert not any(x["refused"] for x in log)
    printed = next(v for k, v in read.said.items() if k.startswith("python"))
    assert len(printed.splitlines()) == len(log)


@TOGETHER
@pytest.mark.slow
def test_nobody_but_sites_was_at_the_port_and_flower_stayed_quiet(read):
    work, north = (read.folder / "liver.federation" / p / "work" for p in ("server", "sites/north"))
    calls = (work / "haproxy.log").read_text().splitlines()
    seen = {m[1] for x in calls if (m := re.search(r'"(\w+)" 200 ', x))}
    assert seen == set(SITES)
    for log in (work / "superlink.log", north / "supernode.log"):
        assert not re.search(r"update available|telemetry|uv sync|pypi", log.read_text(), re.I)


@TOGETHER
@pytest.mark.slow
def test_no_name_of_a_patient_or_a_file_is_in_what_the_network_wrote(read):
    """Logs of the SuperLink, the SuperNodes, their executors and all proxies, and all that the server has.

    Not of the training, whose log is the site's own and names its cases.
    """
    fed = read.folder / "liver.federation"
    written = [p for p in (fed / "server").rglob("*") if p.is_file()]
    written += [p for p in (read.folder / "runs/liver-1").rglob("*") if p.is_file()]
    for site in SITES:
        work = fed / "sites" / site / "work"
        written += [p for p in work.rglob("*") if p.is_file() and p.name != "training.log"]
    names = {p.name for p in written}
    assert {
        "superlink.log",
        "supernode.log",
        "executor.log",
        "haproxy.log",
        "run.log",
        "rounds.jsonl",
    } <= names
    cases = {p.name.partition(".")[0] for s in SITES for p in (read.folder / s / "imagesTr").iterdir()}
    assert len(cases) == 2 + 3 + 4 and all(PATIENT in c for c in cases)
    for word in (PATIENT, "imagesTr", "labelsTr", ".nii", *sorted(cases)):
        assert [p for p in written if word.encode() in p.read_bytes()] == [], word
    manifest = read.folder / "north.seguro/check/manifest.json"
    assert PATIENT in manifest.read_text()  # it could be found


@TOGETHER
@pytest.mark.slow
def test_no_row_of_an_image_is_in_what_the_network_wrote(read, pixels):
    """No 16 pixels of an image or mask, as bytes of three kinds, in any log or anything the server has."""
    import nibabel as nib
    import numpy as np

    fed = read.folder / "liver.federation"
    logs = sorted(p for p in fed.rglob("*.log") if p.name != "training.log")
    texts = [p.read_bytes() for p in [*logs, *(read.folder / "runs/liver-1").rglob("*")] if p.is_file()]
    sent = b"".join(texts)
    looked = 0
    for path in sorted(p for s in SITES for p in (read.folder / s).glob("*Tr/*.nii.gz")):
        volume = np.asarray(nib.load(path).dataobj)
        for kind in (np.uint8, np.int16, np.float32):
            runs = pixels.pieces(volume.astype(kind))
            looked += len(runs)
            assert not len(runs) or not pixels.holds(sent, runs), (path.name, kind)
    assert looked > 5_000


@TOGETHER
@pytest.mark.slow
def test_the_page_was_read_where_there_is_no_other_network(read, lonely):
    if not lonely:
        pytest.skip("network namespaces are not allowed here (ip netns add)")
    assert lonely[:3] == ["ip", "netns", "exec"]
    found = subprocess.run([*lonely, "ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert [line.split(": ")[1] for line in found.splitlines()] == ["lo"]


@TOGETHER
@pytest.mark.slow
def test_no_process_turned_to_an_address_outside(read):
    """Check 9. Every Python of the run notes its connections; HAProxy's are in its configuration."""
    seen = read.connect_log.read_text().splitlines()
    assert [x for x in seen if not OURS.fullmatch(x)] == []
    to = {m[1] for x in seen if (m := re.search(r"connect .*, (\d+)\)", x))}
    superlink, sidecars = read.ports["8000"], {read.ports[p] for p in ("9441", "9442", "9443")}
    assert {superlink, *sidecars} <= to  # what was to be seen was seen
    assert any(x.startswith("socket.connect '/") for x in seen)  # the apps' sockets to their sites


@TOGETHER
@pytest.mark.slow
def test_a_round_takes_little_more_than_its_training(read):
    """Where the machine is busy with other things, a small program that only starts says by how much."""
    found = lines(read.folder / "runs/liver-1")[1:]
    over = [x["seconds"] - max(m["seconds"] for m in x["metrics"].values()) for x in found]
    assert min(over) < ROUND_S * read.busy, (over, read.busy)


@TOGETHER
@pytest.mark.slow
def test_the_rehearsal_said_beforehand_what_would_leave(read):
    said = next(v for k, v in read.said.items() if "--dry-run" in k and "simulate" in k)
    sent = sum(x["bytes_up"]["north"] for x in lines(read.folder / "rehearsal/try"))
    foretold = float(re.search(r"sends at most ([\d.]+) MB", said)[1]) * 1e6
    assert sent <= foretold + 50_000 + 20_000  # it is printed to 0.1 MB; heads of messages


# without a network ---------------------------------------------------------------------------------------


def test_the_page_names_every_command_and_no_other():
    text = "".join(text for kind, _, text in blocks() if kind == "sh")
    assert set(re.findall(r"seguro federate (\w+)", text)) == {"simulate", "provision", "server", "site"}
    assert [how for kind, how, _ in blocks() if kind == "yaml"] == [
        "project.yaml", "federation.yaml", "liver.federation/sites/north/policy.yaml",
    ]  # fmt: skip


def test_without_flower_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"seguro\[federated\]"):
        deployment.needed()


def test_sites_without_certificates_are_refused_before_anything_starts(tmp_path):
    from seguro.api.federation import FederateOptions, federation
    from seguro.federated.provision import Project, provision

    provision(Project(name="x", server="127.0.0.1", sites=["north"]), tmp_path / "fed")
    wanted = federation(FederateOptions(preset="tiny"), ["north", "east"])
    with pytest.raises(ConfigError, match="sites east are not of project x"):
        deployment.serve(tmp_path / "fed/server", wanted, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_not_begun_again_and_never_with_other_settings(tmp_path):
    """A server's own processes would refuse it, and the old end in its folder would look like a new one."""
    from seguro.api.federation import FederateOptions, federation
    from seguro.federated.provision import Project, provision

    provision(Project(name="x", server="127.0.0.1", sites=["north", "east"]), tmp_path / "fed")
    wanted = federation(FederateOptions(preset="tiny", name="r"), ["north", "east"])
    run, said = tmp_path / "runs" / "r", []
    run.mkdir(parents=True)
    write_json(run / "federation.json", wanted.model_dump(mode="json"))
    write_json(run / "finished.json", {})
    assert deployment.serve(tmp_path / "fed/server", wanted, tmp_path / "runs", say=said.append) == run
    assert "finished already" in said[-1]
    more = wanted.model_copy(update={"rounds": 99})
    with pytest.raises(ConfigError, match="rounds: was 20, is 99"):
        deployment.serve(tmp_path / "fed/server", more, tmp_path / "runs")


def test_a_federation_file_is_read_and_misspelled_keys_are_named(tmp_path):
    from seguro.api.federation import options_in

    path = tmp_path / "federation.yaml"
    path.write_text("name: a\nmethod: roam\nrounds: 3\nsites: [n, s]\nstrategy: {coding: int8}\n")
    options, sites = options_in(path)
    assert (options.method, options.rounds, sites) == ("roam", 3, ("n", "s"))
    assert options.strategy == {"coding": "int8"}
    path.write_text("round: 3\n")
    with pytest.raises(ConfigError, match=r"unknown round; its keys are sites, method"):
        options_in(path)


def test_a_site_that_the_server_refuses_does_not_start(tmp_path, free_ports):
    from seguro.federated.provision import Project, provision

    (port,) = free_ports(1)
    provision(Project(name="x", server="127.0.0.1", port=port, sites=["a"]), tmp_path / "fed")
    with pytest.raises(RunError, match="cannot be reached"):
        deployment.take_part(tmp_path / "fed/sites/a", tmp_path, tmp_path / "w")
    assert not (tmp_path / "fed/sites/a/work").exists()
