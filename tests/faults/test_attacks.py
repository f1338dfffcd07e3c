"""FAULTS 42, and attacks that are killed or stopped, and models that break down: the same end, or told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from seguro.api import attack_job
from seguro.api.corrupt import CorruptOptions, corrupt
from seguro.cli.main import main
from seguro.core.files import read_json
from seguro.evaluation.robustness import read_csv
from seguro.methods.patches import NetworkPredictor

pytestmark = pytest.mark.xdist_group("attack faults")

MANY = ("--suite", "pgd-ce", "--eps", "0,4,8,16,32", "--iters", "8", "--cases", "train", "--limit", "3",
        "--check", "0")  # fmt: skip
FEW = ("--suite", "pgd-ce", "--eps", "0,16", "--iters", "3", "--cases", "train", "--limit", "2",
       "--check", "0")  # fmt: skip


@pytest.fixture(scope="module")
def run(untrained, phantom_folder, tmp_path_factory):
    return untrained(phantom_folder, tmp_path_factory.mktemp("attacked") / "w", memory_gib=0.01)


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_killed_attack_goes_on_and_ends_the_same(run):
    """No signal is caught: what is on the disk must do."""
    command = ["attack", str(run), *MANY, "--threads", "1"]
    folder, whole = run / "attacks" / "killed", run / "attacks" / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from seguro.cli.main import main; sys.exit(main(sys.argv[1:]))",
         *command, "--name", "killed"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 120
    while len(list((folder / "cases").glob("*.json"))) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
    kept = {f: f.stat().st_mtime_ns for f in (folder / "cases").glob("*.json")}
    assert len(kept) >= 5 and not (folder / "stage.json").exists()
    assert main([*command, "--name", "killed"]) == main([*command, "--name", "whole"]) == 0
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    assert len(list((folder / "cases").glob("*.json"))) > len(kept)
    outputs = [read_json(f / "stage.json")["outputs"] for f in (folder, whole)]
    assert outputs[0] == outputs[1] and len(read_csv(whole / "robustness.csv")) == 3 * 5 * 2 * 3


def test_stopped_corruptions_go_on_and_end_the_same(run):
    options = CorruptOptions(names=("blur", "gaussian noise"), severities=(1, 3), cases="train", limit=3)

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corrupt(run, options, name="stopped", progress=stop)
    folder = run / "attacks" / "stopped"
    kept = {f: f.stat().st_mtime_ns for f in (folder / "cases").glob("*.json")}
    assert len(kept) == 2 and not (folder / "stage.json").exists()
    again, whole = corrupt(run, options, name="stopped"), corrupt(run, options, name="undisturbed")
    assert {f: f.stat().st_mtime_ns for f in kept} == kept and not again.skipped
    assert again.rows == whole.rows and len(whole.rows) == 3 * 2 * 2 * 3


@pytest.mark.parametrize(
    ("seen", "guard"),
    [
        (lambda x: (4 * x).round() / 4, "gradients and outputs"),
        (lambda x: 0 * x, "the attack has an effect"),
    ],
    ids=["steps", "constant"],
)
def test_an_attack_that_sees_no_gradient_or_changes_nothing_is_not_reliable(
    run, monkeypatch, capsys, request, seen, guard
):
    """FAULTS 42."""
    steady = NetworkPredictor.forward
    monkeypatch.setattr(NetworkPredictor, "forward", lambda self, x, support=None: steady(self, seen(x)))
    command = ["attack", str(run), *FEW, "--name", request.node.callspec.id]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    failed = {g["name"]: g["detail"] for g in found["guards"] if g["passed"] is False}
    assert guard in failed
    if guard == "gradients and outputs":
        assert failed[guard] == "2 of 2 cases: zero gradient"
    assert any(line.startswith(f"not reliable: {guard}") for line in found["warnings"])


def test_a_model_that_breaks_down_on_a_clean_case_names_it(run, monkeypatch, capsys):
    """The second image is the one."""
    steady, calls = NetworkPredictor.forward, []

    def broken(self, x, support=None):
        calls.append(x)
        return steady(self, x) * (torch.nan if len(calls) > 1 else 1)

    monkeypatch.setattr(NetworkPredictor, "forward", broken)
    assert main(["attack", str(run), *FEW[:-4], "--name", "nan"]) == 2
    told = said(capsys)
    assert "case_001 at 0/255: the model returns NaN or infinity for the clean image" in told
    assert "seguro check" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--eps", "10HU,20HU"), "epsilon 20HU: channel MRI is not in Hounsfield units"),
        (("--box", "window"), "use --box own"),
    ],
)
def test_units_are_refused_before_any_case_is_read(run, monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(attack_job, "read_case", lambda *a: pytest.fail("a case was read"))
    assert main(["attack", str(run), *arguments]) == 1
    assert told in said(capsys)
