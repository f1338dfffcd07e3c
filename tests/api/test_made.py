"""A factory trained by the same call as any method: domains from the sites, previews, scores, audit."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file

from seguro import api
from seguro.api import made
from seguro.core.files import read_json, write_json
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine import checkpoint
from seguro.engine.log import RunLog

SITES = ["site1", "site2", "site3"]
LOOK = {"n_test": 0, "sites": len(SITES), "seed": 7, "shape": (4, 20, 24)}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Compare fewer slices than the published scores do; the weights do not depend on it."""
    monkeypatch.setattr(made, "WATCHED", 16)
    monkeypatch.setattr(made, "AUDITED", 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return phantom.write_msd(tmp_path_factory.mktemp("factory") / "data", n_labelled=6, **LOOK)


def run_on(data, out, *, updates=2, **more):
    options = api.TrainOptions(
        method="factory", preset="tiny", updates=updates, validations=1, threads=1, **({"batch": 2} | more)
    )
    return api.train(data, options, out=out, plan_options=PlanOptions(dims=2, memory_gib=0.02))


def sha(run):
    return read_json(run / "model" / "model.json")["weights_sha256"]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "WATCHED", 16)
        patch.setattr(made, "AUDITED", 16)
        return run_on(data, tmp_path_factory.mktemp("factory-run") / "w")


def test_previews_scores_and_audit_of_every_site(run):
    assert read_json(run / "model" / "model.json")["config"]["domains"] == SITES
    for site in SITES:
        assert sorted(p.name for p in (run / "previews" / site).iterdir()) == ["00000000.png", "00000002.png"]
    looks = [e for e in RunLog(run).lines() if e["kind"] == "validation"]
    assert [e["update"] for e in looks] == [0, 2]
    assert all({*(f"distance.{s}" for s in SITES), "recognized"} <= set(e) for e in looks)
    audit = read_json(run / "audit.json")
    assert list(audit["domains"]) == SITES
    assert audit["releasable"] == all(d["passed"] for d in audit["domains"].values())


def test_the_model_is_the_generator_and_the_discriminator_stays_in_the_checkpoints(run):
    weights = load_file(run / "model" / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"generator"}
    kept = checkpoint.load(run / "checkpoints", 2).tensors
    assert any(name.startswith("modules.discriminator.") for name in kept)


def test_a_site_without_held_out_slices_is_not_released(run):
    cases = read_json(run / "cases.json")
    assert cases["validation"] == ["case_001", "case_005"]  # of the second and third site
    audit = read_json(run / "audit.json")
    assert audit["domains"]["site1"] == {"passed": False, "reason": "no held-out slice to compare with"}
    assert {"made", "held_out", "ratio"} <= set(audit["domains"]["site2"])
    assert not audit["releasable"]


def test_without_any_mask_on_disk_the_weights_are_the_same(data, run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(data, bare)
    shutil.rmtree(bare / "labelsTr")
    (bare / "imagesTr").rename(bare / "imagesUn")
    facts = read_json(bare / "dataset.json")
    write_json(bare / "dataset.json", facts | {"training": [], "numTraining": 0})
    found = run_on(bare, tmp_path / "w")
    assert read_json(found / "cases.json") == read_json(run / "cases.json")
    assert sha(found) == sha(run)


@pytest.mark.slow
def test_with_noise_for_masks_the_weights_are_the_same(data, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    rng = np.random.default_rng(0)
    for path in sorted((other / "labelsTr").iterdir()):
        shape = nib.load(path).shape[::-1]
        phantom.write_nifti(path, rng.integers(0, 3, shape).astype(np.uint8))
    assert sha(run_on(other, tmp_path / "w")) == sha(run)


def three_looks(folder):
    """A data set whose second site sees everything inverted and whose third has much noise."""
    phantom.write_msd(folder, n_labelled=30, **(LOOK | {"shape": (8, 32, 32)}))
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted((folder / "imagesTr").iterdir())):
        image = np.asarray(nib.load(path).dataobj, np.float32).T
        noisy = (image + rng.normal(0, 0.15 * image.max(), image.shape)).astype(np.float32)
        phantom.write_nifti(path, (image, image.max() - image, noisy)[number % 3])
    return folder


@pytest.mark.slow
def test_three_sites_are_approached_and_audited(tmp_path, monkeypatch):
    """In 300 updates the made slices of each site come to less than half of their first distance."""
    monkeypatch.setattr(made, "WATCHED", 64)
    run = run_on(three_looks(tmp_path / "data"), tmp_path / "w", updates=300, batch=8)
    first, *_, last = [e for e in RunLog(run).lines() if e["kind"] == "validation"]
    assert (first["update"], last["update"]) == (0, 300)
    for site in SITES:
        assert last[f"distance.{site}"] < 0.5 * first[f"distance.{site}"]
        assert (run / "previews" / site / "00000300.png").stat().st_size > 1000
    audit = read_json(run / "audit.json")
    assert list(audit["domains"]) == SITES
    assert all(d["n_made"] == 16 and d["n_held_out"] >= 8 for d in audit["domains"].values())
    assert audit["releasable"]  # a young factory remembers nothing
