"""Experiment files of pfseg_systems.py: every arm is valid, the ablation's steps add a loss each."""

from __future__ import annotations

import importlib
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from click import Context
from scipy import ndimage

from seguro import api
from seguro.cli.bench import folder_of
from seguro.cli.main import app
from seguro.core.files import read_json, write_json
from seguro.core.settings import read_yaml, settings_from
from seguro.core.types import Classes, ScoreRow
from seguro.data import phantom
from seguro.data.formats import read_label
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.evaluation.scores import write_csv
from seguro.methods import get
from seguro.methods.contract import Whole, Windows
from seguro.methods.pfseg.config import PRESETS, PfsegConfig
from seguro.networks import build

METHOD = Path(__file__).parents[2] / "src" / "seguro" / "methods" / "pfseg"
EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
NAMES = sorted(p.parent.name for p in EXPERIMENTS.glob("pfseg_*/experiment.yaml"))
PLANS = {name: read_yaml(EXPERIMENTS / name / "experiment.yaml") for name in NAMES}
ABLATED = [name for name in NAMES if "us" in PLANS[name]["arms"]]


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
    parsed("check", ["DATA", *systems.options({**plan.get("check", {}), "patients": "split.csv"})])
    folds = parsed("plan", ["DATA", *systems.options(plan["plan"])])["folds"]
    if "folds" in plan:  # tested on what is left out, which then must not choose the model
        assert plan["folds"] == list(range(folds)) and plan["checkpoint"] == "last"
    else:
        rows = (EXPERIMENTS / name / "split.csv").read_text().splitlines()
        assert folds <= sum(r.endswith(",train") for r in rows)
    total = np.prod(plan["grid"]["strides"], axis=0)
    assert all((np.array(edit["patch"]) % total == 0).all() for edit in plan["workspaces"].values())
    for one, others in plan["pairs"].items():
        assert {one, *others} <= set(configs)
    if bench := plan.get("bench"):
        told = {**bench, "with": ["RUN"], "second": "RUN"}
        parsed("bench", ["pfseg", told.pop("run"), *systems.options(told)])
        assert {bench["run"], bench["second"], *bench["with"]} <= set(configs)
        assert all(0 in plan["arms"][a]["seeds"] for a in (bench["run"], *bench["with"]))
    for field in ("learning_rate", "average", "schedule", "clip", "weight_decay", "augment"):
        assert all(c[field] == configs["pfseg"][field] for c in configs.values()), field
    for config in configs.values():  # neither has what the other lacks
        assert config.get("warmup", 0) == 0 and config.get("p_shift", 0) == 0
        assert config.get("prior", "none") == "none" and config.get("rotate", "all") == "all"
    for asked in plan["margins"]:
        assert asked["against"] in plan["pairs"][asked["setting"]]


def test_the_commands_that_compare_baselines_are_valid():
    """Those of the method's README: what is trained exists, and the bench is given what was trained."""
    readme = (METHOD / "README.md").read_text().split("**Compare with baselines**")[1]
    block = readme.split("```")[1].replace("\\\n", "")
    lines = [shlex.split(line) for line in block.splitlines()[1:]]
    trained, kinds = set(), []
    workspace = ""
    for _, command, *words in lines:
        given = parsed(command, words)
        if command == "train":
            method = given["method"]
            options = api.TrainOptions(
                method=method,
                network=given["network"],
                preset=given["preset"],
                settings=settings_from(given["set_"]),
            )
            kinds.append(api.configure(options, gpu=False)[1].model_dump())
            workspace = str(given["out"] or given["data"])
            trained.add(f"{workspace}/runs/{given['name']}")
        else:
            told = {str(p) for p in (given["run"], given["second"], *given["others"])}
            assert told == trained
    resolutions = [k["network_options"].get("resolution", "full") for k in kinds if "network" in k]
    assert sorted(resolutions) == ["decomposed", "full", "full", "low"]


def plan_of(**told) -> Plan:
    """Return a plan of CHAOS with what the experiment sets."""
    spread = Spread(low=1, median=1, high=1)
    shape = told["patch"]
    fingerprint = Fingerprint(
        n_cases=1, n_labelled=1, shape=shape, spacing=(spread,) * 3, extent=(spread,) * 3, intensity=({},),
        volume_ml={}, present={},
    )  # fmt: skip
    return Plan(
        name="chaos", dims=3, unit="mm", channels=(Intensity(name="t2", scheme="zscore"),),
        classes=Classes(names=("background", *"abcd"), values=((0,), (1,), (2,), (3,), (4,))),
        fingerprint=fingerprint, folds=(), **told,
    )  # fmt: skip


def built(systems, plan, arm):
    """Return the method of an arm on the plan that its workspace has."""
    told = plan["workspaces"][systems.arm_of(plan, arm)["workspace"]]
    method = get(systems.arm_of(plan, arm)["method"])
    config = method.Config.model_validate(config_of(systems, plan, arm))
    return method(config, plan_of(**plan["grid"], **told), build)


def count(*modules) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize("name", ABLATED)
def test_the_arms_have_the_same_network_at_the_resolution_they_work_at(name, systems):
    made = {arm: built(systems, PLANS[name], arm) for arm in PLANS[name]["arms"]}
    own = {arm: m.modules["network"] for arm, m in made.items()}
    ours = own["us"]
    body = [ours.encoder, ours.segment.up, ours.segment.blocks]  # without what enlarges the output
    for arm in ("low", "decomposed"):
        core = own[arm].network
        assert core.encoder.pools == ours.encoder.pools and own[arm].scale == ours.scale
        assert count(core.up, core.dec) == count(ours.segment.up, ours.segment.blocks)
    low = own["low"].network
    assert count(low.encoder, low.up, low.dec) == count(*body)
    assert count(own["pfseg"].encoder, own["pfseg"].guide, own["pfseg"].segment) > count(low)
    for arm in ("full", "windows"):  # as many pools, the first ones of the plan
        assert len(own[arm].encoder.pools) == len(ours.encoder.pools)
        assert own[arm].encoder.pools[0] == ours.scale
        assert count(own[arm]) == pytest.approx(count(ours), rel=0.35)  # four of them halve, three of ours
    assert count(own["low"]) == pytest.approx(count(ours), rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_only_windows_are_predicted_in_windows(name, systems):
    for arm in PLANS[name]["arms"]:
        made = built(systems, PLANS[name], arm)
        tiling = made.predictor(made.modules).tiling
        assert isinstance(tiling, Windows if arm == "windows" else Whole), arm


@pytest.mark.parametrize("name", ABLATED)
def test_each_step_of_the_ablation_adds_one_thing(name, systems):
    plan = PLANS[name]
    arms = ("us", "sr", "tel", "ssl", "sgm", "varied", "pfseg")
    chain = [config_of(systems, plan, arm) for arm in arms]
    weights = [
        {k: v for k, v in c.items() if k.endswith("_weight") or k in ("guidance", "inject")} for c in chain
    ]
    steps = [sorted(k for k in b if a[k] != b[k]) for a, b in pairwise(weights)]
    assert steps == [
        ["restoration_weight"], ["target_weight"], ["similarity_weight"], ["guidance", "guided_weight"],
        ["guidance"], ["inject"],
    ]  # fmt: skip
    published, default = (PfsegConfig.model_validate(m) for m in (PRESETS["paper"], PRESETS["small"]))
    places = [(c["guidance"], c["inject"]) for c in chain]
    assert places[4] == (published.guidance, published.inject)
    assert places[6] == (default.guidance, default.inject)
    apart = [{k: v for k, v in c.items() if k not in w} for c, w in zip(chain, weights, strict=True)]
    assert all(c == apart[0] for c in apart)


def test_restoration_is_compared_with_the_enlarged_image(systems, monkeypatch):
    """It begins as that image; a brighter one is further off, by a known number of decibels."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    restoration = importlib.import_module("restoration")
    method = built(systems, PLANS["pfseg_chaos_small"], "pfseg")
    method.modules.eval()
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((17, 50, 48), np.float32), 2)
    image = torch.from_numpy(image)[None, None]
    found, enlarged = restoration.restored(method, image)
    assert found == pytest.approx(enlarged, abs=1e-3) and 10 < enlarged < 60
    with torch.no_grad():
        method.modules["restorer"].tail.head.bias.add_(0.1)
    assert restoration.restored(method, image)[0] == pytest.approx(20, abs=1)


def test_the_folds_are_trained_as_the_small_experiment():
    small, folds = (PLANS[f"pfseg_chaos_{n}"] for n in ("small", "folds"))
    for field in ("data", "merge", "grid", "workspaces", "kinds"):
        assert folds[field] == small[field], field
    assert folds["train"]["updates"] == small["train"]["updates"]
    both = set(folds["arms"]) & set(small["arms"])
    assert set(folds["arms"]) - both == {"weak", "without"}
    assert all({**folds["arms"][a], "seeds": []} == {**small["arms"][a], "seeds": []} for a in both)


def test_what_is_there_is_collected_seed_by_seed(systems, tmp_path, monkeypatch):
    name = "pfseg_chaos_small"
    plan, folder = PLANS[name], tmp_path / name
    folder.mkdir()
    dice = {("pfseg", 0): 0.8, ("pfseg", 2): 0.6, ("low", 0): 0.5, ("us", 1): 0.9}
    for (arm, seed), value in dice.items():
        [run] = systems.arm_runs(tmp_path, name, plan, arm, seed)
        rows = [
            ScoreRow(f"chaos_3{i}", f"chaos_3{i}", "", "liver", "dice", value + i / 100) for i in range(3)
        ]
        write_csv(systems.predicted(plan, run) / "scores" / "scores.csv", rows)
        write_json(run / "stage.json", {"recorded": {"minutes": 1.0, "updates": 250, "machine": "m"}})
    systems.collect(folder, plan, tmp_path)
    found = read_json(folder / "result.json")
    assert found["seed"] == {"low": [0], "pfseg": [0, 2], "us": [1]}
    assert "pfseg, seed 1" in found["not_run"] and "low, seed 0" not in found["not_run"]
    n_runs = sum(len(a["seeds"]) for a in plan["arms"].values())
    assert len(found["not_run"]) == n_runs - len(dice)
    row = next(r for r in found["rows"] if r["setting"] == "pfseg")
    assert row["value"] == pytest.approx(0.71) and row["seeds"] == [0, 2]
    # of seed 0, which both have: 0.8 against 0.5, not the mean of 0.8 and 0.6; and no seed shared with us
    assert {(p["setting"], p["against"], *p["seeds"]) for p in found["pairs"]} == {("pfseg", "low", 0)}
    assert all(p["difference"] == pytest.approx(0.3) for p in found["pairs"])
    [margin] = found["margins"]
    assert margin["against"] == "low" and margin["seeds"] == [0] and margin["kept"]
    assert margin["difference"] == pytest.approx(0.3)


def test_the_cascade_and_the_controls_are_compared_with_the_run_of_the_bench(systems, tmp_path):
    """Those that are no arm; what was measured stays when it is collected in another workspace."""
    name = "pfseg_chaos_small"
    plan, folder = PLANS[name], tmp_path / name
    folder.mkdir()
    [run] = systems.arm_runs(tmp_path, name, plan, "pfseg", 0)
    dice = {
        "pfseg-seed0": 0.8,
        "us-seed0": 0.5,
        "pfseg-seed0 + 4 blocks of windows-seed0": 0.9,
        "pfseg-seed0, guidance zeroed": 0.7,
    }
    for system, value in dice.items():
        rows = [ScoreRow(f"c{i}", f"c{i}", "", "liver", "dice", value + i / 100) for i in range(3)]
        write_csv(folder_of(run / "bench", system) / "scores" / "scores.csv", rows)
    write_json(run / "bench" / "bench.json", {"rows": [{"system": s} for s in dice]})
    (run / "bench" / "bench.svg").write_text("<svg/>")
    write_csv(systems.predicted(plan, run) / "scores" / "scores.csv", rows)
    write_json(run / "stage.json", {"recorded": {"minutes": 1.0, "updates": 400, "machine": "m"}})
    systems.collect(folder, plan, tmp_path)
    found = read_json(folder / "result.json")["bench_pairs"]
    told = {(p["setting"], p["against"]): p["difference"] for p in found if p["cls"] == "mean"}
    assert told == {
        ("pfseg-seed0 + 4 blocks of windows-seed0", "pfseg-seed0"): pytest.approx(0.1),
        ("pfseg-seed0, guidance zeroed", "pfseg-seed0"): pytest.approx(-0.1),
    }
    systems.collect(folder, plan, tmp_path / "elsewhere")
    assert read_json(folder / "result.json")["bench_pairs"] == found


def test_what_another_machine_ran_is_collected_too_unless_the_recipe_changed(systems, tmp_path, capsys):
    name = "pfseg_chaos_small"
    plan, folder = PLANS[name], tmp_path / name
    folder.mkdir()
    for work, arm in (("one", "low"), ("other", "us")):
        [run] = systems.arm_runs(tmp_path / work, name, plan, arm, 0)
        rows = [ScoreRow("c", "c", "", "liver", "dice", 0.5, "")]
        write_csv(systems.predicted(plan, run) / "scores" / "scores.csv", rows)
        write_json(run / "stage.json", {"recorded": {"minutes": 1.0, "updates": 250, "machine": work}})
        systems.collect(folder, plan, tmp_path / work)
    found = read_json(folder / "result.json")
    assert found["seed"] == {"low": [0], "us": [0]} and found["minutes"] == {"low": [1.0], "us": [1.0]}
    changed = {**plan, "arms": {**plan["arms"], "us": {**plan["arms"]["us"], "set": ["width=9"]}}}
    systems.collect(folder, changed, tmp_path / "one")
    assert read_json(folder / "result.json")["seed"] == {"low": [0]}
    assert "us-seed0.csv is of another recipe" in capsys.readouterr().out


def test_an_arm_counts_once_all_its_folds_are_scored(systems, tmp_path):
    name = "pfseg_chaos_folds"
    plan, folder = PLANS[name], tmp_path / name
    folder.mkdir()
    runs = {arm: list(systems.arm_runs(tmp_path, name, plan, arm, 0)) for arm in ("pfseg", "windows")}
    for fold, run in [*enumerate(runs["pfseg"]), *enumerate(runs["windows"][:3])]:
        rows = [ScoreRow(f"c{fold}", f"c{fold}", "", "liver", "dice", fold / 10, "")]
        write_csv(run / "predictions" / "validation-last" / "scores" / "scores.csv", rows)
        write_json(run / "stage.json", {"recorded": {"minutes": 1.0, "updates": 400, "machine": "m"}})
    systems.collect(folder, plan, tmp_path)
    found = read_json(folder / "result.json")
    assert found["seed"] == {"pfseg": [0]} and found["minutes"] == {"pfseg": [4.0]}
    mean = next(r for r in found["rows"] if r["class"] == "mean")
    assert mean["value"] == pytest.approx(0.15) and mean["n"] == 4
    assert found["bench"] is None


@pytest.mark.parametrize(
    ("limit", "difference", "kept"),
    [
        ("at_least", -0.004, True),
        ("at_least", -0.006, False),
        ("at_most", -0.01, True),
        ("at_most", 0, False),
    ],
    ids=["little less", "less", "lower", "not lower"],
)
def test_a_margin_is_kept_or_not(systems, limit, difference, kept):
    asked = {"setting": "a", "against": "b", "metric": "dice"}
    row = {**asked, "cls": "mean", "difference": difference, "low": None, "high": None, "seeds": [0]}
    other = {**row, "cls": "liver", "difference": -difference}
    found = systems.margins({"margins": [{**asked, limit: -0.005}]}, [other, row])
    assert [(m["difference"], m["kept"]) for m in found] == [(difference, kept)]


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
