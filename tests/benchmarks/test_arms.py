"""Experiment files of arms.py: every option exists, every arm is a valid config, pairs name arms."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer.main
from click import Context

from seguro import api
from seguro.cli.main import app
from seguro.core.errors import ConfigError
from seguro.core.files import write_text
from seguro.core.settings import read_yaml, settings_from
from seguro.core.types import ScoreRow
from seguro.data import check, phantom
from seguro.data.formats import read_label, write_label
from seguro.networks import ClassicUNet, UNet
from seguro.networks.mixing import points_of

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
PLANS = {p.parent.name: read_yaml(p) for p in sorted(EXPERIMENTS.glob("*/experiment.yaml"))}
OTHERS = {"kinds", "phases", "settings", "worlds"}
NAMES = [n for n, plan in PLANS.items() if "arms" in plan and not OTHERS & set(plan)]
"""Those of arms.py; others are read by scripts of their own."""
FIELDS = {
    "data", "check", "plan", "edit", "train", "seeds", "folds", "cases", "checkpoints", "arms", "pairs",
    "full", "probabilities", "workspace", "subjects",
}  # fmt: skip
SEMI = ("roam_brain_slabs", "roam_ablation", "semi_acdc", "semi_acdc_coarse", "semi_covid")


@pytest.fixture
def arms(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("arms")


def parsed(command: str, words: list[str]) -> dict:
    """Return the values that the command line of seguro understands."""
    group = typer.main.get_command(app)
    return group.get_command(Context(group), command).make_context(command, ["DATA", *words]).params


def config_of(arms, plan, name):
    """Return the resolved config of an arm, as `seguro train` resolves it."""
    given = parsed("train", arms.options(arms.merged(plan["train"], plan["arms"][name])))
    picked = {k: given[k] for k in ("method", "preset", "network", "updates", "budget", "labelled", "batch")}
    return api.configure(api.TrainOptions(settings=settings_from(given["set_"]), **picked), gpu=False)[1]


def test_there_are_experiments():
    assert {"roam_brain_slabs", "roam_ablation", "semi_acdc", "semi_covid"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_valid(name, arms):
    plan = PLANS[name]
    assert set(plan) <= FIELDS
    assert plan["cases"] in ("test", "validation") and set(arms.checkpoints(plan)) <= {"chosen", "last"}
    check = plan.get("check", {})
    parsed("check", arms.options(check))
    assert "patients" not in check or (EXPERIMENTS / name / check["patients"]).is_file()
    folds = parsed("plan", arms.options(plan.get("plan", {}))).get("folds")
    assert all(0 <= f < folds for f in plan.get("folds", []))
    for one, other in plan["pairs"].items():
        assert one in plan["arms"] and other in plan["arms"] and one != other
    for one, other in plan.get("full", {}).items():
        assert one in plan["pairs"].values() and other in plan["arms"]
        configs = [config_of(arms, plan, arm) for arm in (one, other)]
        assert configs[0] == configs[1]  # more labels and nothing else
    for arm in plan["arms"]:
        config_of(arms, plan, arm)


@pytest.mark.parametrize(
    "wrong", ["set: [layer=2]", "set: [alpha=-1]", "preset: huge"], ids=["field", "value", "preset"]
)
def test_a_wrong_arm_is_found(wrong, arms, tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(f"train: {{updates: 1}}\narms: {{a: {{method: roam, {wrong}}}}}")
    with pytest.raises(ConfigError):
        config_of(arms, read_yaml(file), "a")


def test_the_ablation_tries_every_layer_and_policy_that_differ(arms):
    plan = PLANS["roam_ablation"]
    alone = {*plan["full"], *plan["full"].values()}
    configs = [config_of(arms, plan, a) for a in plan["arms"] if a not in alone]
    tried = [(c.layers, c.skips) for c in configs]
    policies = {(2,): ("official", "all"), (1, 2, "L"): ("official", "all")}
    every = [("none",), ("I",), ("I", 1, "L"), *policies]
    assert sorted(map(str, tried)) == sorted(
        str((layers, s)) for layers in every for s in policies.get(layers, ("official",))
    )
    same = {"layers", "skips"}
    assert len({c.model_dump_json(exclude=same) for c in configs}) == 1


def exposure(arms, plan, name):
    """Return labelled patches per update, updates, and the decay of averaged weights."""
    given = parsed("train", arms.options(arms.merged(plan["train"], plan["arms"][name])))
    config = config_of(arms, plan, name)
    batch = given["batch"] or plan["edit"]["batch"]
    assert batch % getattr(config, "group", 2) == 0
    alone = given["method"] == "supervised" or getattr(config, "share", 0.5) == 1
    return batch if alone else batch // 2, given["updates"], config.average


@pytest.mark.parametrize("name", SEMI)
def test_arms_that_are_compared_see_as_many_labelled_patches(name, arms):
    """In as many updates, with averaged weights; batches of half unlabelled patches are twice as large."""
    plan = PLANS[name]
    for one, other in (*plan["pairs"].items(), *plan.get("full", {}).items()):
        assert exposure(arms, plan, one) == exposure(arms, plan, other), (one, other)


@pytest.mark.parametrize("name", SEMI)
def test_a_method_is_compared_with_its_own_recipe(name, arms):
    recipe = {"optimiser", "learning_rate", "weight_decay", "schedule", "augment", "p_foreground"}
    for pair in PLANS[name]["pairs"].items():
        one, other = (config_of(arms, PLANS[name], arm) for arm in pair)
        have = recipe & set(type(other).model_fields)
        assert {"learning_rate", "augment", "p_foreground"} <= have
        assert one.model_dump(include=have) == other.model_dump(include=have), pair
        shares = {c.dice_weight / (c.dice_weight + c.cross_entropy_weight) for c in (one, other)}
        assert len(shares) == 1, pair  # AdamW does not see their scale


@pytest.mark.parametrize("kind", [UNet, ClassicUNet])
def test_policies_differ_only_where_a_skip_passes_over_the_layer(kind):
    network = kind(classes=2, strides=[(2, 2)] * 3, kernels=[(3, 3)] * 4, width=2, in_channels=1)
    points = points_of(network, in_channels=1, size=(16, 16))
    same = {
        n: points.mixed_at(points.resolve(n), "official") == points.mixed_at(points.resolve(n), "all")
        for n in ("I", 1, 2, "L")
    }
    assert same == {"I": True, 1: True, 2: False, "L": True}


def test_each_checkpoint_of_each_fold_has_its_place(arms):
    plan = {
        "arms": {"a": {}, "b": {}},
        "cases": "validation",
        "checkpoints": ["chosen", "last"],
        "folds": [0, 2],
    }
    assert arms.settings(plan) == {
        "a": ("a", "chosen"), "a, last": ("a", "last"), "b": ("b", "chosen"), "b, last": ("b", "last"),
    }  # fmt: skip
    runs = arms.runs_of(plan, Path("w"), "a", 1)
    assert {r.name: o for r, o in runs.items()} == {
        "a-fold0-seed1": ["--folds", "0"], "a-fold2-seed1": ["--folds", "2"],
    }  # fmt: skip
    assert arms.predictions(plan, Path("r"), "last") == Path("r/predictions/validation-last")
    del plan["folds"], plan["checkpoints"]
    assert [*arms.settings(plan)] == ["a", "b"]
    assert {r.name: o for r, o in arms.runs_of(plan, Path("w"), "a", 1).items()} == {"a-seed1": []}


def test_an_arm_is_made_from_all_that_it_starts_from(arms):
    made = {"s": {"init": "f"}, "a": {"init": "s"}, "b": {"u": 1}}
    plan = {"phases": {"f": {"set": ["x=1"]}}, "arms": made}
    assert arms.made_from(plan, "a") == {"init": {"init": {"set": ["x=1"]}}}
    assert arms.made_from(plan, "b") == {"u": 1}


def rows(values, patients=None):
    """Return Dice of one class by case, as `seguro evaluate` has them."""
    return [ScoreRow(c, (patients or {}).get(c, c), "site", "a", "dice", v, "") for c, v in values.items()]


def test_the_closed_part_of_the_gap_is_that_of_the_means(arms):
    below, full = {"a": 0.2, "b": 0.5, "c": 0.4}, {"a": 0.8, "b": 0.7, "c": 0.8}
    half = {c: (below[c] + full[c]) / 2 for c in below}
    found = arms.closed(rows(below), rows(half), rows(full))
    assert found == pytest.approx({"gap": 0.4, "closed": 0.5, "low": 0.5, "high": 0.5})
    some = {"a": 0.2, "b": 0.7, "c": 0.6}  # nothing, all and half of it
    found = arms.closed(rows(below), rows(some), rows(full))
    assert found["closed"] == pytest.approx(0.4 / 1.2)
    assert found["low"] == pytest.approx(0.0) and found["high"] == pytest.approx(1.0)
    same = arms.closed(*(rows(v, dict.fromkeys("abc", "one")) for v in (below, some, full)))
    assert same["low"] == same["high"] == same["closed"]  # one patient: nothing is drawn


def test_where_more_labels_may_not_help_nothing_is_called_closed(arms):
    below, full = {"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.45}
    found = arms.closed(rows(below), rows({"a": 0.6, "b": 0.6}), rows(full))
    assert found["closed"] == pytest.approx(4.0) and found["low"] is found["high"] is None
    assert arms.closed(rows(full), rows(full), rows(below))["closed"] is None


def test_gaps_are_of_the_pairs_whose_second_arm_has_one_with_all_labels(arms):
    plan = {
        "seeds": [0, 1], "checkpoints": ["chosen", "last"], "arms": {n: {} for n in "xyzw"},
        "pairs": {"x": "y", "w": "x"}, "full": {"y": "z"},
    }  # fmt: skip
    scores = {n: {0: rows({"a": v, "b": v})} for n, v in (("x", 0.5), ("y", 0.4), ("z", 0.8))}
    scores["x"][1] = rows({"a": 0.9, "b": 0.9})  # a seed that the others have not
    (found,) = arms.gaps_closed(plan, scores)
    assert (found["setting"], found["against"], found["full"], found["seeds"]) == ("x", "y", "z", [0])
    assert found["closed"] == pytest.approx(0.25)


def test_slices_of_a_subject_count_together(arms, tmp_path):
    data = phantom.write_png(tmp_path / "flat", n_labelled=3, seed=3)
    ids = sorted(p.stem for p in (data / "labels").iterdir())
    owner = dict(zip(ids, ("p", "p", "q"), strict=True))
    write_text(data / "patients.csv", "id,patient\n" + "".join(f"{i},{p}\n" for i, p in owner.items()))
    found = check.ensure(data, tmp_path / "w")
    folder = tmp_path / "predictions"
    folder.mkdir()
    labels = {c.id: Path(found.root) / c.label.path for c in found.cases}
    for label in labels.values():
        shutil.copyfile(label, folder / label.name)
    empty = read_label(labels[ids[1]])  # the second slice of p: nothing is found there
    write_label(folder / labels[ids[1]].name, np.zeros_like(empty.array), empty.source)
    scored = arms.scored({"subjects": True}, tmp_path / "w", folder / "scores" / "scores.csv")
    rows = {(r.case, r.cls): r.value for r in scored}
    assert {case for case, _ in rows} == {"p", "q"}
    assert found.classes is not None
    for i, name in enumerate(found.classes.foreground, start=1):
        first, second = ((read_label(labels[c]).array == i).sum() for c in ids[:2])
        assert rows["q", name] == 1
        assert rows["p", name] == pytest.approx(2 * first / (2 * first + second))


def test_probabilities_are_kept_and_calibrated_where_asked(arms, monkeypatch):
    called = []
    monkeypatch.setattr(arms, "seguro", lambda *words: called.append([str(w) for w in words]))
    plan = {"arms": {"a": {}}, "cases": "test"}
    for more in ({}, {"probabilities": True}):
        arms.perform({**plan, **more}, Path("w"), "a", 0, 1)
    without, with_them = called[:3], called[3:]
    assert [c[0] for c in without] == ["train", "predict", "evaluate"]
    assert set(with_them[1]) - set(without[1]) == {"--probabilities"}
    assert (without[2][3], with_them[2][3]) == ("dice,hd95,assd", "dice,hd95,assd,ece")


def test_an_experiment_lies_in_the_workspace_that_it_shares(arms, monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr(arms, "seguro", lambda *words: called.append([str(w) for w in words]))
    monkeypatch.setattr(arms, "planned", lambda *a: None)
    monkeypatch.setattr(arms, "collect", lambda *a: None)
    for name in ("roam_brain_slabs", "roam_ablation"):
        only = ["--only", "plain-mixmatch", "--seed", "0", "--work", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["arms.py", name, *only])
        assert arms.main() == 0
    half = len(called) // 2
    assert called[0] == called[half]  # the same split, data and workspace
    assert [sorted(c) for c in called[:half]] == [sorted(c) for c in called[half:]]


def test_arms_of_a_shared_workspace_are_the_same_there(arms):
    shared = {n: p["workspace"] for n, p in PLANS.items() if n in NAMES and "workspace" in p}
    assert shared == {"roam_ablation": "roam_brain_slabs"}
    for name, other in shared.items():
        mine, theirs = PLANS[name], PLANS[other]
        assert all(mine.get(k) == theirs.get(k) for k in ("data", "plan", "edit", "probabilities"))
        paths = [(EXPERIMENTS / n / PLANS[n]["check"]["patients"]).resolve() for n in (name, other)]
        assert paths[0] == paths[1]
        common = set(mine["arms"]) & set(theirs["arms"])
        assert common
        for arm in common:
            given = [
                parsed("train", arms.options(arms.merged(p["train"], p["arms"][arm]))) for p in (mine, theirs)
            ]
            assert config_of(arms, mine, arm) == config_of(arms, theirs, arm), arm
            settled = {"preset", "set_"}
            assert len({str({k: g[k] for k in sorted(set(g) - settled)}) for g in given}) == 1, arm


def test_a_left_out_volume_is_never_scored_by_the_checkpoint_it_chose():
    plan = PLANS["semi_covid"]
    assert plan["cases"] == "validation" and plan["checkpoints"] == ["last"]
    assert plan["folds"] == list(range(plan["plan"]["folds"]))
