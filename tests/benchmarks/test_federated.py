"""Experiments of federated.py: patients dealt to hospitals, equal looks, bytes, differences per seed."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from seguro import api
from seguro.api import federation
from seguro.cli.main import app
from seguro.core.files import read_json
from seguro.core.settings import read_yaml, settings_from
from seguro.core.types import ScoreRow
from seguro.data import check, phantom
from seguro.data.layouts.naming import read_patients
from seguro.data.planner import PlanOptions
from seguro.federated.record import append
from seguro.methods import get

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
PLANS = {p.parent.name: read_yaml(p) for p in sorted(EXPERIMENTS.glob("federated_*/experiment.yaml"))}
SITES = {
    "north": {},
    "east": {"contrast": {"invert": True, "gamma": 0.7}},
    "south": {"labels": "none"},
    "west": {"classes": ["a"]},
}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return {name: importlib.import_module(name) for name in ("federated", "federated_scores", "hospitals")}


@pytest.mark.parametrize("name", PLANS)
def test_every_arm_is_a_valid_config(name, scripts):
    plan, federated = PLANS[name], scripts["federated"]
    federated.refuse_unknown(plan)
    federated.refuse_unknown(federated.rehearsed(plan))
    PlanOptions.model_validate(plan["plan"])
    for arm in (federated.arm_of(plan, a) for a in plan["arms"]):
        given = {"method": arm["method"], "preset": arm["preset"], "settings": settings_from(arm["set"])}
        config = api.configure(api.TrainOptions(network=arm["network"], **given), gpu=False)[1]
        assert arm["batch"] % getattr(config, "group", get(arm["method"]).needs.group) == 0
        strategy = arm.get("strategy", {})
        federation.federation(
            federation.FederateOptions(**given, strategy=strategy), plan["worlds"][arm["world"]]
        )
        assert not {"best", "evaluate_every"} & set(strategy)  # no arm is chosen by a score
        assert arm["kind"] == "federated" or not {"strategy", "hostile"} & set(arm)
    assert "patients" not in plan or (EXPERIMENTS / name / plan["patients"]).is_file()


def test_every_experiment_says_what_it_is_and_whether_it_was_run():
    assert set(PLANS) == {"federated_acdc", "federated_hippocampus_small"}
    for name in PLANS:
        text = (EXPERIMENTS / name / "README.md").read_text()
        assert f"federated.py {name} " in text
        assert ("Not yet run" in text) != (EXPERIMENTS / name / "result.json").exists()


@pytest.mark.parametrize("name", PLANS)
def test_arms_that_are_compared_do_as_many_updates_in_all(name, scripts):
    """Pooled as the sites that learn together; with and without a code, honest and hostile, the same.

    A longer federation is compared with what does as many updates one after another.
    """
    plan = PLANS[name]
    arms = {a: scripts["federated"].arm_of(plan, a) for a in plan["arms"]}
    learn = sum(s.get("labels") != "none" for s in plan["worlds"]["hospitals"].values())
    assert arms["pooled"]["parts"] == learn
    for one, other in plan["pairs"]:
        a, b = (arms[n] for n in (one, other))
        same = ("preset", "network", "set", "batch", "updates", "world")
        assert all(a[k] == b[k] for k in same), (one, other)
        assert a["rounds"] in (b["rounds"], b["rounds"] * b.get("parts", 1)), (one, other)


def test_blocks_of_patients_go_to_the_sites_in_turn(scripts):
    people = [f"p{i:02d}" for i in range(9)]
    places = scripts["hospitals"].dealt([*people, *people], ["a", "b"], 3)
    assert [places[p].site for p in people] == list("aaabbbaaa")
    assert [p for p in people if places[p].test] == ["p02", "p05", "p08"]


def test_acdc_has_the_test_patients_of_its_other_experiment(scripts):
    plan = PLANS["federated_acdc"]
    known = read_patients(EXPERIMENTS / "federated_acdc" / plan["patients"])
    places = scripts["hospitals"].dealt(
        [p.patient for p in known.values()], list(plan["worlds"]["hospitals"]), plan["test_every"]
    )
    assert {p for p, place in places.items() if place.test} == {
        p.patient for p in known.values() if p.split == "test"
    }
    scans = [places[p.patient] for p in known.values()]
    assert {s.site: scans.count(s) for s in scans if not s.test} == dict.fromkeys(SITES, 30)


def raw(folder, **look):
    """Two scans of each of 12 patients, and who they are of."""
    look = {"n_labelled": 24, "n_test": 0, "scans_per_patient": 2, "shape": (6, 16, 16), **look}
    return phantom.write_msd(folder, **look)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return raw(tmp_path_factory.mktemp("raw") / "data")


@pytest.fixture
def world(data, scripts, tmp_path):
    """The manifest of the four hospitals, and who is whose patient."""
    first = read_json(data / "dataset.json")["labels"]["1"]
    sites = {**SITES, "west": {"classes": [first]}}
    out = scripts["hospitals"].write(
        data, tmp_path / "world", sites, test_every=3, patients=data / "patients.csv"
    )
    return check.ensure(out, tmp_path / "w"), {c: p.patient for c, p in known(data).items()}, first


def known(data):
    return read_patients(data / "patients.csv")


def test_no_patient_is_at_two_sites_or_in_two_splits(world):
    found, patient, _ = world
    assert len(found.cases) == 24 and {c.patient for c in found.cases} == set(patient.values())
    for person in set(patient.values()):
        scans = [c for c in found.cases if c.patient == person]
        assert len(scans) == 2 and {patient[c.id] for c in scans} == {person}
        assert len({(c.site, c.split) for c in scans}) == 1
    assert {(c.site, c.split) for c in found.cases} == {
        *((s, "test") for s in SITES),
        *((s, "train") for s in ("north", "east", "west")),
        ("south", "unlabelled"),
    }


def test_hospitals_differ_as_they_are_told(world, data, tmp_path):
    found, _, first = world
    labels = {name: int(v) for v, name in read_json(data / "dataset.json")["labels"].items()}
    for case in found.cases:
        image, old, truth, before = (
            nib.load(folder / kind / f"{case.id}.nii.gz").get_fdata()
            for kind in ("imagesTr", "labelsTr")
            for folder in (tmp_path / "world", data)
        )
        if case.site == "east":
            assert np.corrcoef(image.ravel(), old.ravel())[0, 1] < -0.9
            assert np.allclose([image.min(), image.max()], [old.min(), old.max()], atol=1e-3)
        else:
            assert np.array_equal(image, old)
        if case.site == "west" and case.split == "train":
            assert set(np.unique(truth)) <= {0, labels[first]} and case.annotated == (first,)
        else:
            assert np.array_equal(truth, before)


def test_a_site_alone_has_its_own_training_and_all_tests(world, scripts, tmp_path):
    found = world[0]
    shutil.copytree(tmp_path / "w", tmp_path / "w.seguro")
    alone = scripts["hospitals"].alone(tmp_path / "w.seguro", "east")
    own = scripts["hospitals"].manifests.load(alone / "check" / "manifest.json")
    assert {c.id for c in own.of("test")} == {c.id for c in found.of("test")}
    assert {c.site for c in own.of("train")} == {"east"}
    assert len(own.of("train")) == sum(c.site == "east" for c in found.of("train"))


def test_a_world_of_other_sites_is_refused(data, scripts, tmp_path):
    write = scripts["hospitals"].write
    write(data, tmp_path / "w", {"a": {}, "b": {}}, test_every=3, limit=6)
    assert len(list((tmp_path / "w" / "imagesTr").iterdir())) == 6  # without a table a scan is a patient
    assert write(data, tmp_path / "w", {"a": {}, "b": {}}, test_every=3, limit=6) == tmp_path / "w"
    with pytest.raises(SystemExit, match="other sites or patients"):
        write(data, tmp_path / "w", {"a": {}, "c": {}}, test_every=3, limit=6)


def test_a_case_that_is_nobodys_is_refused(scripts, tmp_path):
    (tmp_path / "p.csv").write_text("id,patient\nx,one\n")
    with pytest.raises(SystemExit, match="no patient for case 'y'"):
        scripts["hospitals"].patients_of(["x", "y"], tmp_path / "p.csv")


def test_a_hostile_change_is_scaled(scripts):
    old = {"w": np.array([1, 2], np.float32), "n": np.array(3)}
    new = {"w": np.array([2, 0], np.float32), "n": np.array(5)}
    out = scripts["federated"].scaled(old, new, -10)
    assert out["w"].tolist() == [-9, 22] and out["w"].dtype == np.float32 and out["n"] == 5


PLAN = {
    "data": "d", "worlds": {"w": {"a": {}, "b": {}}}, "seeds": [0, 1], "preset": "tiny", "set": [],
    "batch": 2, "rounds": 3, "updates": 4, "metrics": ["dice"], "plan": {"dims": 2},
    "arms": {
        "fed": {"world": "w", "kind": "federated", "method": "supervised"},
        "int8": {"world": "w", "kind": "federated", "method": "supervised", "strategy": {"coding": "int8"}},
        "pooled": {"world": "w", "kind": "pooled", "method": "supervised", "parts": 2, "seeds": [0]},
        "isolated": {"world": "w", "kind": "isolated", "method": "supervised", "sites": ["a", "b"]},
    },
    "pairs": [["fed", "pooled"], ["fed", "isolated"], ["int8", "fed"]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("arm", "word"),
    [
        ({"kind": "central"}, "kind 'central'"),
        ({"world": "x"}, "no world 'x'"),
        ({"hostile": {"z": -1}}, "no site 'z' in w; there are a, b"),
        ({"sites": ["z"]}, "no site 'z'"),
    ],
    ids=["kind", "world", "hostile", "site"],
)
def test_names_that_are_not_there_are_refused(arm, word, scripts):
    wrong = {**PLAN, "arms": {**PLAN["arms"], "fed": {**PLAN["arms"]["fed"], **arm}}}
    with pytest.raises(SystemExit, match=word):
        scripts["federated"].refuse_unknown(wrong)


@pytest.mark.parametrize(
    "more",
    [
        {"pairs": [["fed", "isolated, c"]]},
        {"margins": [{"setting": "feed", "against": "fed", "at_least": 0}]},
    ],
    ids=["pair", "margin"],
)
def test_pairs_and_margins_name_settings(more, scripts):
    scripts["federated"].refuse_unknown(PLAN)
    with pytest.raises(SystemExit, match="there are fed, int8, pooled, isolated, a, isolated, b"):
        scripts["federated"].refuse_unknown({**PLAN, **more})


def test_an_unknown_arm_is_refused_before_anything_is_made(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["f", "federated_acdc", "--only", "nobody", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="no arm 'nobody'; there are federated, pooled"):
        scripts["federated"].main()
    assert not any(tmp_path.iterdir())


def test_no_arm_is_chosen_by_a_score(scripts, monkeypatch, tmp_path):
    """Pooled and isolated look once and deploy the last update, the federation too."""
    federated, called, asked = scripts["federated"], [], []
    monkeypatch.setattr(federated, "seguro", lambda *words: called.append([str(w) for w in words]))
    monkeypatch.setattr(federated, "planned", lambda w, options, say: asked.append(options))
    federated.perform(PLAN, "pooled", tmp_path / "w.seguro", 0, 1)
    train, predict, evaluate = called
    assert train[train.index("--validations") + 1] == "1" and "--last" in predict
    assert train[train.index("--updates") + 1] == "24" and asked == [PlanOptions(dims=2)]
    assert evaluate[1].endswith("pooled-seed0/predictions/test-last")

    class Enough(Exception):
        pass

    def sites_of(data, run, options, say):
        asked.append(options)
        raise Enough

    monkeypatch.setattr(federated.api, "sites_of", sites_of)
    with pytest.raises(Enough):
        federated.perform(PLAN, "int8", tmp_path / "w.seguro", 0, 1)
    assert asked[-1].strategy == {"best": "last", "evaluate_every": 3, "coding": "int8"}
    assert asked[-1].plan == {"dims": 2} and (asked[-1].rounds, asked[-1].updates) == (3, 4)


def test_the_bytes_of_a_round_and_of_the_run(scripts, tmp_path):
    told = {"action": "train", "bytes_up": {"a": 10, "b": 30}, "bytes_down": {"a": 100, "b": 100}}
    for line in (told, {**told, "bytes_up": {"a": 20}}):
        append(tmp_path, line)
    append(tmp_path, {"action": "evaluate", "bytes_up": {"a": 1}, "bytes_down": {"a": 100, "b": 100}})
    assert scripts["federated_scores"].traffic(tmp_path) == {
        "up_per_round": 30, "up": 61, "down_per_round": 200, "down": 600, "total": 661,
    }  # fmt: skip


def test_bytes_are_compared_where_only_the_first_is_coded(scripts):
    sent = {
        "fed": {"up_per_round": 40.0, "down_per_round": 40.0, "total": 80.0},
        "int8": {"up_per_round": 10.0, "down_per_round": 40.0, "total": 50.0},
    }
    pairs = [*PLAN["pairs"], ["fed", "int8"], ["fed", "fed"]]
    (found,) = scripts["federated_scores"].shares({**PLAN, "pairs": pairs}, sent)
    assert found == {
        "setting": "int8", "against": "fed", "coding": "int8",
        "up_per_round": 0.25, "down_per_round": 1.0, "total": 0.625,
    }  # fmt: skip


def rows(values):
    """Return Dice of one class by case, whose site is its first letter."""
    return [ScoreRow(c, c, c[0], "organ", "dice", v, "") for c, v in values.items()]


def test_differences_are_of_common_seeds_one_by_one_and_at_the_neighbors(scripts):
    cases = ("a1", "a2", "b1", "b2")
    ours = {s: rows({c: 0.5 + 0.1 * (c[0] == "b") + 0.1 * s for c in cases}) for s in (0, 1, 2)}
    theirs = {s: rows(dict.fromkeys(cases, 0.5)) for s in (1, 2)}
    found = scripts["federated_scores"].pairs_of("fed", "isolated, a", ours, theirs)
    mean = {r["at"]: r for r in found if r["cls"] == "mean"}
    assert set(mean) == {"all", "a", "b", "neighbors"} and mean["all"]["seeds"] == [1, 2]
    assert mean["all"]["by_seed"] == pytest.approx([0.15, 0.25])
    assert mean["all"]["difference"] == pytest.approx(0.2)
    assert mean["all"]["sd_of_seeds"] == pytest.approx(0.1 / 2**0.5)
    assert mean["neighbors"]["difference"] == mean["b"]["difference"] == pytest.approx(0.25)
    assert mean["neighbors"]["n_cases"] == 2
    one = scripts["federated_scores"].pairs_of("fed", "pooled", {0: ours[0]}, {0: ours[0]})
    assert {r["at"] for r in one} == {"all", "a", "b"} and all(r["sd_of_seeds"] is None for r in one)
    assert scripts["federated_scores"].pairs_of("fed", "pooled", {0: ours[0]}, theirs) == []


def test_every_pair_of_settings_is_compared(scripts):
    scores = {n: {0: rows({"a1": 0.1, "b1": 0.2})} for n in ("fed", "isolated, a", "isolated, b")}
    found = scripts["federated"].compared(PLAN, scores)
    assert {(r["setting"], r["against"]) for r in found} == {("fed", "isolated, a"), ("fed", "isolated, b")}


def test_a_margin_is_kept_by_the_whole_interval(scripts):
    row = {
        "setting": "fed", "against": "isolated, a", "at": "neighbors", "cls": "mean", "metric": "dice",
        "difference": 0.01, "low": -0.01, "high": 0.03, "seeds": [0], "by_seed": [0.01],
    }  # fmt: skip
    others = [{**row, "at": "all"}, {**row, "cls": "organ"}, {**row, "against": "isolated2"}]
    asked = {"setting": "fed", "against": "isolated", "at": "neighbors"}
    bounds = [{"at_least": 0.0}, {"at_least": -0.01}, {"at_most": 0.03}, {"at_most": 0.02}]
    found = scripts["federated_scores"].margins([asked | b for b in bounds], [row, *others])
    assert [m["kept"] for m in found] == [False, True, True, False]
    assert {m["against"] for m in found} == {"isolated, a, at neighbors"}


def test_sites_have_rows_of_their_own(scripts):
    runs = {s: rows({"a1": 0.4, "b1": 0.6 + 0.2 * s}) for s in (0, 1)}
    found = {r["setting"]: r for r in scripts["federated_scores"].rows_of(PLAN, "fed", "fed", runs)}
    assert {n: r["value"] for n, r in found.items()} == pytest.approx(
        {"fed": 0.55, "fed at a": 0.4, "fed at b": 0.7}
    )
    assert found["fed"]["sd_of_seeds"] == pytest.approx(0.1 / 2**0.5)


@pytest.mark.slow
def test_an_experiment_runs_to_its_end_and_goes_on(scripts, monkeypatch, tmp_path):
    pytest.importorskip("flwr")
    federated = scripts["federated"]
    data = raw(tmp_path / "data")
    plan = {
        **PLAN, "data": "data", "patients": str(data / "patients.csv"), "test_every": 3, "seeds": [0],
        "rounds": 2, "updates": 1, "set": ["network_options.width=2"], "plan": {"dims": 2, "patch": [16, 16]},
        "margins": [{"setting": "fed", "against": "pooled", "at_least": -1}],
        "rehearsal": {"limit": 6},
    }  # fmt: skip
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "experiment.yaml").write_text(yaml.safe_dump(plan))
    called = []

    def here(*words):
        called.append(words[0])
        done = CliRunner().invoke(app, [str(w) for w in words])
        assert done.exit_code == 0, done.output

    monkeypatch.setattr(federated, "seguro", here)
    monkeypatch.setattr(federated, "HERE", tmp_path)
    words = ["f", "x", "--data-root", str(tmp_path), "--work", str(tmp_path / "work"), "--rehearse"]
    monkeypatch.setattr("sys.argv", words)
    assert federated.main() == 0
    result = read_json(tmp_path / "work" / "x-rehearsal" / "result.json")
    names = {"fed", "int8", "pooled", "isolated, a", "isolated, b"}
    assert set(result["minutes"]) == names and result["not_run"] == []
    assert {r["setting"] for r in result["rows"]} == names | {f"{n} at {s}" for n in names for s in "ab"}
    assert {r["n"] for r in result["rows"] if r["site"] == "all"} == {4}  # two scans of a patient a site
    assert {(p["setting"], p["against"]) for p in result["pairs"]} == {
        ("fed", "pooled"), ("fed", "isolated, a"), ("fed", "isolated, b"), ("int8", "fed"),
    }  # fmt: skip
    assert {p["at"] for p in result["pairs_at_sites"]} == {"a", "b", "neighbors"}
    assert [m["kept"] for m in result["margins"]] == [True]
    (share,) = result["bytes_shares"]
    (tmp_path / "work" / "x-rehearsal" / "README.md").write_text("# x\n\nWhat is asked.")
    monkeypatch.syspath_prepend(str(EXPERIMENTS.parent))
    page = importlib.import_module("results").experiment(tmp_path / "work" / "x-rehearsal" / "result.json")
    assert sum(line.startswith("| fed |") for line in page) == 8  # scores 3, pairs 3, margin, bytes
    assert share["up_per_round"] < 0.5 and share["down_per_round"] == pytest.approx(1, abs=1e-3)
    runs = tmp_path / "work" / "x-rehearsal" / "w.seguro" / "runs"
    rounds = [x["action"] for x in scripts["federated_scores"].lines(runs / "fed-seed0")]
    assert rounds == ["train", "train", "evaluate"]
    (runs / "fed-seed0" / "predictions" / "test" / "scores" / "scores.csv").unlink()
    monkeypatch.setattr("sys.argv", [*words, "--collect"])
    assert federated.main() == 0
    again = read_json(tmp_path / "work" / "x-rehearsal" / "result.json")
    assert again == result  # the scores are kept beside it
    other = {**plan, "test_every": plan["test_every"] + 1}
    (tmp_path / "x" / "experiment.yaml").write_text(yaml.safe_dump(other))
    (tmp_path / "work" / "x-rehearsal" / "w.seguro").rename(tmp_path / "gone")
    assert federated.main() == 0
    left_out = read_json(tmp_path / "work" / "x-rehearsal" / "result.json")["not_run"]
    assert left_out == ["fed, seed 0", "int8, seed 0", "pooled, seed 0"]  # those alone are still scored
