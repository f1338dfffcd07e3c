"""Experiments of adaptation.py: simulated scanners as sites, and files whose every arm is a valid config."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seguro import api
from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.core.files import read_json
from seguro.core.seeds import generator
from seguro.core.settings import read_yaml, settings_from
from seguro.core.types import ScoreRow
from seguro.data import check, manifest, phantom
from seguro.data.manifest import read_case, read_case_label

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
PLANS = {p.parent.name: read_yaml(p) for p in sorted(EXPERIMENTS.glob("adaptation_*/experiment.yaml"))}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return {name: importlib.import_module(name) for name in ("adaptation", "arms", "scanners", "vessels")}


@pytest.mark.parametrize("name", PLANS)
def test_every_phase_and_arm_is_a_valid_config(name, scripts):
    plan = PLANS[name]
    sites = set(scripts["vessels"].SITES) if "vessels" in plan else {"plain", *plan["scanners"]}
    assert plan.get("vessels", "plain") in sites
    assert set(plan.get("scanners", ())) <= set(scripts["scanners"].SCANNERS)
    runs = {**plan["phases"], **plan["arms"]}
    for own in runs.values():
        given = scripts["arms"].merged(plan["train"], own)
        assert given.get("kind", "federate") == "federate" and given.get("volumes", 1) > 0
        assert given.get("init", "factory") in runs and given.get("labelled", "source") in plan["labels"]
        options = {k: given[k] for k in ("method", "preset", "updates", "batch") if k in given}
        api.configure(api.TrainOptions(settings=settings_from(given["set"]), **options), gpu=False)
    for one, other in scripts["arms"].pairs_of(plan):
        assert one in plan["arms"] and other in plan["arms"] and one != other
    assert all(set(who) <= sites for who in plan["labels"].values())
    assert plan["target"] in sites - set(plan["labels"]["source"])


@pytest.mark.parametrize("name", PLANS)
def test_adaptation_is_compared_with_every_other_way_and_with_the_oracle(name, scripts):
    """All see 64 pixels and as many updates as their like; the gap is that of source-only to the oracle."""
    plan = PLANS[name]
    pairs = scripts["arms"].pairs_of(plan)
    nets = {a for a, own in plan["arms"].items() if own["method"] in ("supervised", "restyle")}
    for ours in {"adapt", "adapt-3-slices"} & set(plan["arms"]):
        assert (nets - {"oracle"}) | {"source-branch"} <= {b for a, b in pairs if a == ours}
    assert plan["full"] == {"source-only": "oracle"}
    assert {("adapt", "source-only"), ("oracle", "adapt")} <= set(pairs)
    assert plan["edit"]["patch"] == [64, 64] and "side=64" in plan["phases"]["factory"]["set"]
    assert len({plan["arms"][a]["updates"] for a in nets}) == 1
    assert all("learning_rate=0.003" in plan["arms"][a]["set"] for a in nets)


def test_every_experiment_says_what_it_is_and_whether_it_was_run():
    kinds = {"inverted", "inverted_small", "blurred_small", "brain", "vessels", "vessels_back"}
    assert set(PLANS) == {f"adaptation_{k}" for k in kinds}
    for name in PLANS:
        text = (EXPERIMENTS / name / "README.md").read_text()
        assert f"adaptation.py {name} " in text
        assert ("Not yet run" in text) != (EXPERIMENTS / name / "result.json").exists()


def label_of(case, found):
    return read_case_label(case, found, like=read_case(case, found).grid).array


def eyes(root):
    """Two subjects with a photograph of each eye, and three angiographies, as they are handed out."""
    rng = np.random.default_rng(0)
    for name in ("01L", "01R", "02L", "02R"):
        path = root / "vessels_chase" / f"Image_{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (21, 30, 3), dtype=np.uint8)).save(path)
        mask = np.zeros((21, 30), bool)
        mask[4:8, 6:20] = True
        Image.fromarray(mask).save(path.with_name(f"Image_{name}_1stHO.png"))
    for number in range(3):
        folder = root / "vessels_octa_synthetic"
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(
            folder / "images" / f"G_{number}.png"
        )
        mask = np.zeros((64, 64), bool)
        mask[8:24, 32:48] = True
        Image.fromarray(mask).save(folder / "labels" / f"{number}.png")
    return root


def test_vessels_become_two_sites(scripts, tmp_path):
    out = scripts["vessels"].write(eyes(tmp_path / "raw"), tmp_path / "sites", "octa")
    found = check.ensure(out, tmp_path / "w")
    assert {(c.site, c.split) for c in found.cases} == {
        ("chase", "train"),
        ("chase", "test"),
        ("octa", "train"),
        ("octa", "test"),
    }
    assert {c.patient for c in found.cases if c.site == "chase"} == {"chase_Image_01", "chase_Image_02"}
    assert [c.id for c in found.of("test")] == ["chase_Image_01L", "chase_Image_01R", "octa_0"]
    labels = {c.id: label_of(c, found)[0] for c in found.cases}
    assert labels["chase_Image_01L"].shape == (10, 15) and labels["chase_Image_01L"].sum() == 2 * 7
    assert labels["octa_1"].shape == (16, 16) and labels["octa_1"][2:6, 8:12].all()
    assert labels["octa_1"].sum() == 16
    with pytest.raises(DataError, match="no image of chase, octa"):
        scripts["vessels"].write(tmp_path / "none", tmp_path / "other", "octa")


def test_all_classes_become_one(scripts, tmp_path):
    data = phantom.write_msd(tmp_path / "raw", n_labelled=4, n_test=0)
    found = check.ensure(data, tmp_path / "raw.seguro")
    out = scripts["scanners"].write(found, tmp_path / "sites", ["inverted"], one="brain")
    made = check.ensure(out, tmp_path / "sites.seguro")
    assert made.classes.names == ("background", "brain")
    assert {int(v) for c in made.cases for v in np.unique(label_of(c, made))} == {0, 1}


def test_sites_share_no_patient_and_every_scanner_sees_the_test_patients(scripts, tmp_path):
    data = phantom.write_msd(tmp_path / "raw", n_labelled=8, n_test=0)
    found = check.ensure(data, tmp_path / "raw.seguro")
    out = scripts["scanners"].write(found, tmp_path / "sites", ["inverted", "blurred"])
    made = check.ensure(out, tmp_path / "sites.seguro")
    train, test = made.of("train"), made.of("test")
    assert {c.site for c in train} == {"plain", "inverted", "blurred"}
    assert not {c.patient for c in train} & {c.patient for c in test}
    assert all(sum(c.patient == d.patient for d in train) == 1 for c in train)
    for patient in {c.patient for c in test}:
        assert {c.site for c in test if c.patient == patient} == {"plain", "inverted", "blurred"}
    assert all(c.label is not None for c in (*train, *test))


@pytest.mark.parametrize("name", ["inverted", "blurred"])
def test_what_a_scanner_does(name, scripts):
    image = generator(0, "s").uniform(size=(1, 4, 24, 24)).astype(np.float32)
    image[:, :, 6:18, 6:18] += 1
    seen = scripts["scanners"].seen(image, (1.0, 1.0, 1.0), name, generator(1, "s"))
    again = scripts["scanners"].seen(image, (1.0, 1.0, 1.0), name, generator(1, "s"))
    assert np.array_equal(seen, again) and np.isfinite(seen).all()
    inside, outside = seen[:, :, 8:16, 8:16].mean(), seen[:, :, :3].mean()
    assert (inside < outside) == (name == "inverted")
    assert np.array_equal(scripts["scanners"].seen(image, (1.0, 1.0, 1.0), "plain", generator(1, "s")), image)


def test_labels_and_starts_are_told_by_path(scripts, tmp_path):
    data = phantom.write_msd(tmp_path / "raw", n_labelled=4, n_test=0, sites=2)
    found = check.ensure(data, tmp_path / "w")
    labels = {"source": {"site1": "all"}, "few": {"site1": "all", "site2": 1}}
    files = scripts["adaptation"].labelled_files(found, labels, tmp_path)
    source, few = (files[n].read_text().split() for n in ("source", "few"))
    assert len(source) == 2 and len(few) == 3 and set(source) < set(few)
    arm = scripts["adaptation"].resolved({"init": "a", "labelled": "few", "updates": 2}, tmp_path, 7, files)
    assert arm == {"init": tmp_path / "a-seed7", "labelled": files["few"], "updates": 2}


def test_three_labelled_slices_are_three(scripts, tmp_path):
    """Two scans of each patient, as ACDC has them: those with a label at the target have one."""
    data = phantom.write_msd(tmp_path / "raw", n_labelled=24, n_test=0)
    found = check.ensure(data, tmp_path / "raw.seguro")
    twice = tuple(c.model_copy(update={"patient": f"p{i // 2:02d}"}) for i, c in enumerate(found.cases))
    out = scripts["scanners"].write(
        found.model_copy(update={"cases": twice}), tmp_path / "sites", ["inverted"], crop=16
    )
    made = check.ensure(out, tmp_path / "sites.seguro")
    at_target = [c for c in made.of("train") if c.site == "inverted"]
    assert read_case(at_target[0], made).grid.shape[1:] == (16, 16)
    labels = {"few": {"plain": "all", "inverted": 3}}
    chosen = scripts["adaptation"].labelled_files(made, labels, tmp_path)["few"].read_text().split()
    shown = [c for c in at_target if c.patient in chosen]
    assert len(shown) == len({c.patient for c in shown}) == 3
    assert len(at_target) > len({c.patient for c in at_target})  # the others have both scans
    with pytest.raises(SystemExit, match="4 patients of inverted with one scan, there are 3"):
        scripts["adaptation"].labelled_files(made, {"few": {"inverted": 4}}, tmp_path)


def test_a_crop_leaves_voxels_where_they_are(scripts, tmp_path):
    data = phantom.write_msd(tmp_path / "raw", n_labelled=1, n_test=0)
    found = check.ensure(data, tmp_path / "raw.seguro")
    whole = read_case(found.cases[0], found)
    label = label_of(found.cases[0], found)
    small, cut = scripts["scanners"].cropped(whole, label, 10)
    z, y, x = whole.grid.shape
    first = np.array([(x - 10) // 2, (y - 10) // 2, 0, 1])
    np.testing.assert_allclose(small.grid.affine[:, 3], whole.grid.affine @ first)
    assert small.array.shape == (1, z, 10, 10) and cut.shape == (z, 10, 10)
    assert np.array_equal(small.array[0, 0, 0], whole.array[0, 0, first[1], first[0] : first[0] + 10])


def test_only_what_an_arm_starts_from_is_trained_before_it(scripts, monkeypatch, tmp_path):
    plan = {
        "phases": {"f": {}, "g": {}, "h": {"init": "f"}},
        "arms": {"a": {"init": "h"}, "b": {}, "c": {"init": "a"}},
    }
    needed = scripts["adaptation"].needed
    assert needed(plan, ["b"]) == ["b"]
    assert needed(plan, ["c", "b"]) == ["f", "h", "a", "c", "b"]
    assert needed(plan, list(plan["arms"])) == ["f", "h", "a", "b", "c"]

    name, done = "adaptation_inverted", []
    monkeypatch.setattr(scripts["adaptation"], "made", lambda *a: tmp_path)
    monkeypatch.setattr(scripts["adaptation"], "seguro", lambda *a: None)
    monkeypatch.setattr(scripts["adaptation"], "planned", lambda *a: None)
    monkeypatch.setattr(scripts["adaptation"], "collect", lambda *a: sys.exit("collected"))
    monkeypatch.setattr(
        scripts["adaptation"], "perform", lambda plan, work, name, seed, *a: done.append((name, seed))
    )
    words = ["--only", "histogram", "--only", "source-branch", "--seed", "1", "--work", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["adaptation.py", name, *words])
    with pytest.raises(SystemExit, match="collected"):
        scripts["adaptation"].main()
    assert done == [("histogram", 1), ("factory", 1), ("source-branch", 1)]
    monkeypatch.setattr("sys.argv", ["adaptation.py", name, "--seed", "7"])
    with pytest.raises(SystemExit, match="no seed 7"):
        scripts["adaptation"].main()


def row(case, site, value):
    return ScoreRow(case, case.split("_")[0], site, "RV", "dice", value)


def test_sites_have_rows_of_their_own_and_pairs_are_of_the_target(scripts):
    arms = scripts["arms"]
    plan = {
        "data": "d", "cases": "test", "target": "t", "seeds": [0], "full": {"low": "top"},
        "arms": {
            "low": {"method": "supervised"}, "adapt": {"method": "adapt"}, "branch": {"method": "adapt"},
            "other": {"method": "restyle"}, "top": {"method": "supervised"},
        },
        "pairs": {"adapt": ["low", "other", "branch"], "top": ["adapt"]},
    }  # fmt: skip
    values = {"low": 0.2, "adapt": 0.5, "other": 0.4, "branch": 0.45, "top": 0.8}
    scores = {
        n: {0: [row(f"p{i}_{s}", s, v if s == "t" else 1 - v) for i in range(3) for s in "st"]}
        for n, v in values.items()
    }
    rows = [r for n in scores for r in arms.rows_of(plan, n, scores[n])]
    assert {(r["setting"], r["site"]): r["value"] for r in rows if r["class"] == "mean"} == pytest.approx(
        {(n, s): v if s == "t" else 1 - v for n, v in values.items() for s in "st"}
    )
    assert scripts["adaptation"].best_baseline(plan, rows) == "other"  # a part of ours is none
    assert arms.pairs_of(plan) == [*(("adapt", n) for n in ("low", "other", "branch")), ("top", "adapt")]
    target = {n: {0: arms.of_target(plan, scores[n][0])} for n in scores}
    (gap,) = arms.gaps_closed(plan, target)
    assert (gap["setting"], gap["against"], gap["gap"]) == ("adapt", "low", pytest.approx(0.6))
    assert gap["closed"] == pytest.approx(0.5)
    del plan["target"]
    assert all("site" not in r and r["n"] == 6 for r in arms.rows_of(plan, "low", scores["low"]))


@pytest.mark.slow
def test_a_federated_factory_and_a_synthetic_source_are_trained_and_scored(scripts, monkeypatch, tmp_path):
    data = phantom.write_msd(tmp_path / "raw", n_labelled=16, n_test=0, shape=(4, 24, 28))
    found = check.ensure(data, tmp_path / "raw.seguro")
    out = scripts["scanners"].write(found, tmp_path / "sites", ["inverted"], crop=16)
    ours = ["source=plain", "target=inverted"]
    plan = {
        "data": "raw", "target": "inverted", "cases": "test", "seeds": [0], "plan": {"dims": 2},
        "edit": {
            "spacing": [1.0, 1.0, 1.0], "patch": [16, 16], "batch": 4,
            "strides": [[2, 2]] * 2, "kernels": [[3, 3]] * 3,
        },
        "labels": {"source": {"plain": "all"}, "few": {"inverted": 3}},
        "train": {"preset": "tiny", "folds": "none", "updates": 2, "validations": 1},
        "phases": {
            "factory": {
                "kind": "federate", "method": "factory", "rounds": 1, "updates": 2, "batch": 4,
                "set": ["side=16"],
            },
            "source": {
                "method": "adapt", "init": "factory", "labelled": "source", "set": ["stage=source", *ours]
            },
        },
        "arms": {
            "adapt": {"method": "adapt", "init": "source", "labelled": "source", "volumes": 2, "set": ours}
        },
    }  # fmt: skip
    monkeypatch.setattr(scripts["arms"], "seguro", called)
    monkeypatch.setattr(scripts["adaptation"], "seguro", called)
    workspace = tmp_path / "w.seguro"
    called("check", out, "--out", workspace)
    scripts["arms"].planned(workspace, plan["plan"], plan["edit"])
    for name in scripts["adaptation"].needed(plan, ["adapt"]):
        scripts["adaptation"].perform(plan, workspace, name, 0, 1)
    runs = workspace / "runs"
    sites = read_json(runs / "source-seed0" / "stage.json")["config"]["config"]["domains"]
    assert sorted(sites) == ["inverted", "plain"]
    made = manifest.load(tmp_path / "w-synthetic-source-seed0.seguro")
    assert {c.patient for c in made.of("train") if c.site == "plain"} == {"synthetic_000", "synthetic_001"}
    scripts["arms"].collect(tmp_path, plan, workspace)
    result = read_json(tmp_path / "result.json")
    assert {r["site"] for r in result["rows"]} == {"inverted"} and not result["not_run"]
    assert all(r["patients"] == 4 for r in result["rows"])


def called(*words):
    assert main([str(w) for w in words]) == 0, words


def test_an_adapted_model_is_scored_in_every_way(scripts, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(scripts["adaptation"], "seguro", lambda *words: done.append([str(w) for w in words]))
    monkeypatch.setattr(scripts["adaptation"], "labelled_files", lambda *a: {"source": tmp_path / "s.txt"})
    monkeypatch.setattr(scripts["adaptation"].manifest, "load", lambda *a: None)
    plan = PLANS["adaptation_inverted_small"]
    scripts["adaptation"].perform(plan, tmp_path, "adapt", 0, 1)
    asked = [words[words.index("--way") + 1] for words in done if "--way" in words]
    scored = [Path(words[1]).name for words in done if words[0] == "evaluate"]
    assert asked == ["intra", "ensemble"] and scored == ["test", "test-intra", "test-ensemble"]
    known = scripts["arms"].settings(plan)
    assert known["adapt, intra"] == ("adapt", "intra") and known["adapt"] == ("adapt", "chosen")
    assert "source-only, intra" not in known
