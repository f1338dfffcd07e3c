"""Experiment files of arms.py: every option exists, every arm is a valid config, pairs name arms."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import typer.main
from click import Context

from seguro import api
from seguro.cli.main import app
from seguro.core.errors import ConfigError
from seguro.core.settings import read_yaml, settings_from
from seguro.methods.roam.config import RoamConfig
from seguro.networks import ClassicUNet, UNet
from seguro.networks.mixing import points_of

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
PLANS = {p.parent.name: read_yaml(p) for p in sorted(EXPERIMENTS.glob("*/experiment.yaml"))}
NAMES = [n for n, plan in PLANS.items() if "arms" in plan and not {"kinds", "phases", "worlds"} & set(plan)]
"""Those of arms.py; others are read by scripts of their own."""
FIELDS = {"data", "check", "plan", "edit", "train", "seeds", "folds", "cases", "checkpoints", "arms", "pairs"}


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
    configs = [config_of(arms, plan, a) for a in plan["arms"]]
    tried = [(c.layers, c.skips) for c in configs]
    policies = {(2,): ("official", "all"), (1, 2, "L"): ("official", "all")}
    every = [("none",), ("I",), ("I", 1, "L"), *policies]
    assert sorted(map(str, tried)) == sorted(
        str((layers, s)) for layers in every for s in policies.get(layers, ("official",))
    )
    same = {"layers", "skips"}
    assert len({c.model_dump_json(exclude=same) for c in configs}) == 1


@pytest.mark.parametrize("name", ["roam_brain_slabs", "semi_acdc", "semi_covid"])
def test_every_arm_sees_as_many_labelled_patches(name, arms):
    """In as many updates, with averaged weights; batches of half unlabelled patches are twice as large."""
    plan, seen = PLANS[name], set()
    for arm in plan["arms"]:
        given = parsed("train", arms.options(arms.merged(plan["train"], plan["arms"][arm])))
        config = config_of(arms, plan, arm)
        batch = given["batch"] or plan["edit"]["batch"]
        alone = given["method"] == "supervised" or getattr(config, "share", 0.5) == 1
        seen.add((batch if alone else batch // 2, given["updates"], config.average))
        assert batch % getattr(config, "group", 2) == 0
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["roam_brain_slabs", "semi_acdc", "semi_covid"])
def test_roam_is_compared_with_its_own_recipe(name, arms):
    recipe = {"optimiser", "learning_rate", "cross_entropy_weight", "dice_weight", "augment", "p_foreground"}
    pairs = [[config_of(arms, PLANS[name], arm) for arm in pair] for pair in PLANS[name]["pairs"].items()]
    of_roam = [(one, other) for one, other in pairs if isinstance(one, RoamConfig)]
    assert of_roam
    for one, other in of_roam:
        assert one.model_dump(include=recipe) == other.model_dump(include=recipe)


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


def test_a_left_out_volume_is_never_scored_by_the_checkpoint_it_chose():
    plan = PLANS["semi_covid"]
    assert plan["cases"] == "validation" and plan["checkpoints"] == ["last"]
    assert plan["folds"] == list(range(plan["plan"]["folds"]))
