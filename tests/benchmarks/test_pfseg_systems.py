"""Experiment files of pfseg_systems.py: every arm is valid, the ablation's steps add a loss each."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer.main
from click import Context

from seguro import api
from seguro.cli.main import app
from seguro.core.files import read_json, write_json
from seguro.core.settings import read_yaml, settings_from
from seguro.core.types import ScoreRow
from seguro.data import phantom
from seguro.data.formats import read_label
from seguro.evaluation.scores import write_csv

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
NAMES = sorted(p.parent.name for p in EXPERIMENTS.glob("pfseg_*/experiment.yaml"))
PLANS = {name: read_yaml(EXPERIMENTS / name / "experiment.yaml") for name in NAMES}


@pytest.fixture
def systems(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("pfseg_systems")


def parsed(command: str, words: list[str]) -> dict:
    """Return the values that the command line of seguro understands."""
    group = typer.main.get_command(app)
    return group.get_command(Context(group), command).make_context(command, words).params


def config_of(systems, plan, arm) -> dict:
    """Return the resolved config of an arm, as `seguro train` resolves it."""
    words = systems.options(systems.merged(plan["train"], systems.train_options(plan, arm)))
    given = parsed("train", ["DATA", *words])
    picked = {k: given[k] for k in ("method", "preset", "network", "updates", "budget", "batch")}
    options = api.TrainOptions(settings=settings_from(given["set_"]), **picked)
    return api.configure(options, gpu=False)[1].model_dump()


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_command_and_pair_is_valid(name, systems):
    plan = PLANS[name]
    configs = {arm: config_of(systems, plan, arm) for arm in plan["arms"]}
    parsed("check", ["DATA", *systems.options({**plan["check"], "patients": "split.csv"})])
    folds = parsed("plan", ["DATA", *systems.options(plan["plan"])])["folds"]
    rows = (EXPERIMENTS / name / "split.csv").read_text().splitlines()
    assert folds <= sum(r.endswith(",train") for r in rows)
    total = np.prod(plan["grid"]["strides"], axis=0)
    assert all((np.array(edit["patch"]) % total == 0).all() for edit in plan["workspaces"].values())
    for one, others in plan["pairs"].items():
        assert {one, *others} <= set(configs)
    told = {**plan["bench"], "with": ["RUN"], "second": "RUN"}
    parsed("bench", ["pfseg", told.pop("run"), *systems.options(told)])
    assert {plan["bench"]["run"], plan["bench"]["second"], *plan["bench"]["with"]} <= set(configs)
    assert all(0 in plan["arms"][a]["seeds"] for a in (plan["bench"]["run"], *plan["bench"]["with"]))
    rates = {c["learning_rate"] for c in configs.values()}
    assert len(rates) == 1 and len({c["average"] for c in configs.values()}) == 1  # one recipe


@pytest.mark.parametrize("name", NAMES)
def test_each_step_of_the_ablation_adds_one_thing(name, systems):
    plan = PLANS[name]
    chain = [config_of(systems, plan, arm) for arm in ("us", "sr", "tel", "ssl", "pfseg")]
    weights = [
        {k: v for k, v in c.items() if k.endswith("_weight") or k in ("guidance", "inject")} for c in chain
    ]
    on = [{k for k, v in w.items() if v not in (0, "none", "concat")} for w in weights]
    steps = [sorted(b - a) for a, b in pairwise(on)]
    assert steps == [
        ["restoration_weight"], ["target_weight"], ["similarity_weight"],
        ["guidance", "guided_weight", "inject"],
    ]  # fmt: skip
    apart = [{k: v for k, v in c.items() if k not in w} for c, w in zip(chain, weights, strict=True)]
    assert all(c == apart[0] for c in apart)


def test_what_is_there_is_collected_seed_by_seed(systems, tmp_path, monkeypatch):
    name = "pfseg_chaos_small"
    plan, folder = PLANS[name], tmp_path / name
    folder.mkdir()
    dice = {("pfseg", 0): 0.8, ("pfseg", 2): 0.6, ("low", 0): 0.5}
    for (arm, seed), value in dice.items():
        run = systems.run_of(tmp_path, name, plan, arm, seed)
        rows = [
            ScoreRow(f"chaos_3{i}", f"chaos_3{i}", "", "liver", "dice", value + i / 100) for i in range(3)
        ]
        write_csv(systems.scores_of(run, plan["cases"]), rows)
        write_json(run / "stage.json", {"recorded": {"minutes": 1.0, "updates": 250, "machine": "m"}})
    systems.collect(folder, plan, tmp_path)
    found = read_json(folder / "result.json")
    assert found["seed"] == {"low": [0], "pfseg": [0, 2]}
    assert "pfseg, seed 1" in found["not_run"] and "low, seed 0" not in found["not_run"]
    n_runs = sum(len(a["seeds"]) for a in plan["arms"].values())
    assert len(found["not_run"]) == n_runs - len(dice)
    row = next(r for r in found["rows"] if r["setting"] == "pfseg")
    assert row["value"] == pytest.approx(0.71) and row["seeds"] == [0, 2]
    assert found["pairs"]
    assert {(p["setting"], p["against"]) for p in found["pairs"]} == {("pfseg", "low")}


def test_merged_classes_count_as_one_and_are_written_once(systems, tmp_path):
    source = phantom.write_msd(tmp_path / "in", n_labelled=2, n_test=0, shape=(8, 12, 10), seed=1)
    told = read_json(source / "dataset.json")
    names = {name: int(value) for value, name in told["labels"].items()}
    first, second = [n for n, v in names.items() if v][:2]
    out = systems.merged_classes(source, tmp_path / "out", {"both": [first, second]})
    found = read_json(out / "dataset.json")["labels"]
    assert found[str(names[first])] == "both" and second not in found.values()
    for case in told["training"]:
        before, after = (read_label(f / case["label"]).array for f in (source, out))
        assert ((after == names[first]) == np.isin(before, [names[first], names[second]])).all()
        kept = ~np.isin(before, [names[first], names[second]])
        assert (after[kept] == before[kept]).all()
        assert (out / case["image"]).read_bytes() == (source / case["image"]).read_bytes()
    stamps = [p.stat().st_mtime_ns for p in sorted((out / "labelsTr").iterdir())]
    systems.merged_classes(source, out, {"both": [first, second]})
    assert [p.stat().st_mtime_ns for p in sorted((out / "labelsTr").iterdir())] == stamps
