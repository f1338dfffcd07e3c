"""`seguro attack`: from a trained run to curves and guards, resumed where it was stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from seguro import api
from seguro.api.attack import attack
from seguro.api.attack_options import AttackOptions
from seguro.api.corrupt import CorruptOptions, corrupt
from seguro.api.selection import manifest_for, same_classes
from seguro.cli.main import main
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json
from seguro.data.formats import read_image
from seguro.data.planner import PlanOptions
from seguro.evaluation.robustness import read_csv, read_minimum
from seguro.methods.patches import NetworkPredictor

pytestmark = pytest.mark.xdist_group("attack command")  # its run is trained once, by one worker

QUICK = ("--suite", "quick", "--eps", "0,16,64", "--iters", "3", "--check", "1", "--threads", "1")


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    """A run of the supervised method, trained for long enough to have something to lose."""
    return api.train(
        phantom_folder,
        api.TrainOptions(preset="tiny", updates=60, batch=2, validations=1, threads=1),
        out=tmp_path_factory.mktemp("attack") / "w",
        plan_options=PlanOptions(memory_gib=0.01),
    )


def call(capsys, *arguments, code=0):
    assert main(["attack", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_curves_guards_and_examples_are_written_and_not_made_again(run, capsys):
    first = call(capsys, run, *QUICK)
    folder = run / "attacks" / "quick-validation"
    assert first["folder"] == str(folder) and not first["skipped"]
    rows = read_csv(folder / "robustness.csv")
    assert {r.eps for r in rows} == {0, 16, 64}
    assert {r.attack for r in rows} == {"worst", "noise", "fpgd-margin-then-dice"}
    worst = {(r.case, r.cls, r.eps): r.dice for r in rows if r.attack == "worst"}
    for (case, cls, eps), dice in worst.items():
        others = [r.dice for r in rows if (r.case, r.cls, r.eps) == (case, cls, eps) and r.dice is not None]
        assert dice is None or dice <= min(others) + 1e-6
        assert dice is None or dice <= (worst[case, cls, 0] or 1) + 1e-6
    assert len(read_minimum(folder / "minimum.csv")) == first["cases"]
    passed = {g["name"]: g["passed"] for g in first["guards"]}
    assert set(passed) >= {"ball and box", "noise control", "convergence"} and passed["repeatable"]
    assert first["cost"]["backwards"] > 0 and first["setting"]["eps_unit"].startswith("255ths")
    assert (folder / "examples" / "0.npz").exists() and read_json(folder / "curves.json")["areas"]
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    assert call(capsys, run, *QUICK)["skipped"]
    after = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    assert {f: t for f, t in after.items() if f.name != ".lock"} == {
        f: t for f, t in before.items() if f.name != ".lock"
    }


def test_a_killed_attack_goes_on_and_ends_the_same(run):
    options = AttackOptions(suite="quick", eps="0,16,32", steps=2, check=1)
    told = []
    whole = attack(run, options, name="whole", progress=lambda done, total, _: told.append((done, total)))
    assert told == [(i, len(told)) for i in range(len(told))]
    seen = []

    def stop(done: int, total: int, what: str) -> None:
        seen.append(what)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(run, options, name="stopped", progress=stop)
    folder = run / "attacks" / "stopped"
    kept = {f: f.stat().st_mtime_ns for f in (folder / "cases").glob("*.json")}
    assert kept and not (folder / "stage.json").exists()
    again = attack(run, options, name="stopped")
    assert all(f.stat().st_mtime_ns == t for f, t in kept.items())
    assert again.rows == whole.rows
    stages = [read_json(run / "attacks" / n / "stage.json")["outputs"] for n in ("whole", "stopped")]
    assert stages[0] == stages[1]


def test_a_model_that_answers_at_random_is_not_reliable(run, monkeypatch):
    """FAULTS 42."""
    steady = NetworkPredictor.forward

    def shaken(self, x, support=None):
        logits = steady(self, x, support)
        return logits + 5 * torch.randn_like(logits)

    monkeypatch.setattr(NetworkPredictor, "forward", shaken)
    found = attack(run, AttackOptions(suite="quick", eps="0,8", steps=3, check=0), name="random")
    assert not found.reliable
    assert [g["passed"] for g in found.summary["guards"] if g["name"] == "repeatable"] == [False]


def test_options_of_the_api_are_checked_as_those_of_the_command():
    for bad in ({"box": "mine"}, {"center": "left"}, {"check": -1}, {"steps": 0}):
        with pytest.raises(ConfigError):
            AttackOptions(**bad)


def test_labels_of_other_classes_are_refused(run):
    _, manifest = manifest_for(run)
    classes = manifest.classes
    same_classes(manifest, classes)
    swapped = classes.model_copy(update={"values": (classes.values[0], *classes.values[:0:-1])})
    with pytest.raises(DataError, match="values of the training data"):
        same_classes(manifest.model_copy(update={"classes": swapped}), classes)
    others = classes.model_copy(update={"names": ("background", "moon", "mars")})
    with pytest.raises(DataError, match="none in common"):
        same_classes(manifest.model_copy(update={"classes": others}), classes)


def test_a_model_that_breaks_down_on_a_corrupted_image_is_an_error_not_a_score(run, monkeypatch):
    steady = NetworkPredictor.forward
    monkeypatch.setattr(NetworkPredictor, "forward", lambda s, x, support=None: steady(s, x) * torch.nan)
    with pytest.raises(DataError, match="NaN"):
        corrupt(run, CorruptOptions(names=("blur",), severities=(1,), limit=1), name="nan")


def test_whole_volumes_and_black_box(run, capsys):
    result = call(
        capsys, run, "--suite", "blackbox", "--eps", "32", "--queries", "4", "--whole-volume", "--check", "0",
        "--limit", "1", "--save",
    )  # fmt: skip
    volumes = run / "attacks" / "blackbox-validation-volume" / "volumes"
    clean, bad = (
        read_image([f]).array for f in sorted(volumes.iterdir(), key=lambda f: "clean" not in f.name)
    )
    bound = result["native_eps"]["MRI, file"]["32"]
    assert 0.9 * bound < np.abs(bad - clean).max() <= bound * 1.001
    assert main(["attack", str(run), "--save"]) == 1
    assert "--whole-volume" in capsys.readouterr().err
    assert result["setting"]["where"] == "volume" and result["cases"] == 1
    assert result["attacks"] == ["worst", "noise", "square"] and result["cost"]["backwards"] == 0
    checked = AttackOptions(
        suite="blackbox", eps="32", queries=4, whole_volume=True, check=1, limit=1, save=True
    )
    again = attack(run, checked, name="checked").folder / "volumes"  # the guards' own attacks are not saved
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {
        f.name: f.read_bytes() for f in volumes.iterdir()
    }


def test_a_field_of_an_attack_is_set_and_told(run, capsys):
    few = ("--suite", "quick", "--eps", "0,16", "--iters", "4", "--check", "1", "--limit", "1")
    plain = call(capsys, run, *few)
    larger = ("--set", "fpgd-margin-then-dice.step=1.0")
    result = call(capsys, run, *few, *larger, "--name", "larger")
    assert "set" not in plain["setting"]
    assert result["setting"]["set"] == "fpgd-margin-then-dice.step=1.0"
    folders = [run / "attacks" / n for n in ("quick-validation", "larger")]
    keys = [{f.name for f in (folder / "cases").glob("*.json")} for folder in folders]
    assert keys[0] and not keys[0] & keys[1] - clean_keys(run, folders)
    assert main(["compare", *map(str, folders)]) == 1
    assert "set is None" in " ".join(capsys.readouterr().err.split())


def clean_keys(run, folders):
    """Names of records without an attack, which no field changes."""
    records = [f for folder in folders for f in (folder / "cases").glob("*.json")]
    return {f.name for f in records if not read_json(f)["attacks"]}


def test_corruptions_at_severities(run, capsys):
    result = call(capsys, run, "--corruptions", "--limit", "1")
    rows = read_csv(run / "attacks" / "corruptions-validation" / "robustness.csv")
    assert result["eps"] == [0, 1, 2, 3, 4, 5] and len(result["attacks"]) == 12
    clean = {r.dice for r in rows if r.eps == 0 and r.cls == rows[0].cls}
    assert len(clean) == 1 and any(r.dice != rows[0].dice for r in rows if r.cls == rows[0].cls)
    assert call(capsys, run, "--corruptions", "--limit", "1")["skipped"]


def test_the_report_shows_the_curves(run, capsys):
    assert main(["report", str(run)]) == 0
    page = (run / "report" / "report.html").read_text()
    assert "Robustness" in page and "fpgd-margin-then-dice" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--eps", "0.03"), "unit"),
        (("--eps", "20HU"), "Hounsfield"),
        (("--suite", "mighty"), "strong"),
        (("--box", "window"), "--box own"),
        (("--cases", "nobody"), "validation"),
        (("--threshold", "2"), "threshold"),
        (("--center", "left"), "expected foreground, middle"),
        (("--device", "bogus"), "--device bogus: not a device"),
        (("--set", "fab.trust"), "expected key=value"),
        (("--set", "fab=3"), "expected ATTACK.FIELD=VALUE"),
        (("--set", "apgd-js.radii=[2,1.5,1]"), "no attack of this suite; it has fpgd-margin-then-dice"),
        (("--set", "fab.trusty=1"), "unknown; fab has warm_start, margin"),
        (("--set", "fab.steps=3"), "use --iters"),
        (("--set", "square.p=2"), "p in (0, 1]"),
        (("--set", "square.oracle=hard"), "square.oracle=hard"),
        (("--set", "fab.trust=.nan"), "finite"),
        (("--corruptions", "--set", "fab.trust=1"), "--set has no effect"),
        (("--whole-volume", "--memory", "0.001"), "0.001 GiB are free"),
        (("--memory", "4"), "no effect without --whole-volume"),
        (("--corruptions", "--iters", "3"), "--iters has no effect"),
    ],
)
def test_bad_options_are_refused_with_what_to_do(run, capsys, arguments, told):
    assert main(["attack", str(run), *arguments]) == 1
    assert told in capsys.readouterr().err
