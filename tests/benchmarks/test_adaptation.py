"""Experiments of adaptation.py: simulated scanners as sites, and files whose every arm is a valid config."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from seguro import api
from seguro.core.seeds import generator
from seguro.core.settings import read_yaml, settings_from
from seguro.data import check, phantom

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
PLANS = {p.parent.name: read_yaml(p) for p in sorted(EXPERIMENTS.glob("adaptation_*/experiment.yaml"))}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return {name: importlib.import_module(name) for name in ("adaptation", "arms", "scanners")}


@pytest.mark.parametrize("name", PLANS)
def test_every_phase_and_arm_is_a_valid_config(name, scripts):
    plan = PLANS[name]
    assert set(plan["scanners"]) <= set(scripts["scanners"].SCANNERS)
    runs = {**plan["phases"], **plan["arms"]}
    for own in runs.values():
        given = scripts["arms"].merged(plan["train"], own)
        assert given.get("init", "factory") in runs and given.get("labelled", "source") in plan["labels"]
        options = {k: given[k] for k in ("method", "preset", "updates", "batch") if k in given}
        api.configure(api.TrainOptions(settings=settings_from(given["set"]), **options), gpu=False)
    for one, other in plan["pairs"].items():
        assert one in plan["arms"] and other in plan["arms"] and one != other
    sites = {"plain", *plan["scanners"]}
    assert all(set(who) <= sites for who in plan["labels"].values())


def test_there_are_two():
    assert set(PLANS) == {"adaptation_inverted", "adaptation_blurred"}


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
        assert {c.site for c in test if c.patient == patient} == {"inverted", "blurred"}
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
