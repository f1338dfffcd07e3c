"""The published few-shot protocol, driven on a phantom: settings, arms, seeds, what is reported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage

from seguro.core.files import read_json
from seguro.core.settings import read_yaml
from seguro.data import phantom
from seguro.data.formats import read_label
from seguro.methods.alpnet.config import PRESETS, AlpnetConfig

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
NAMES = sorted(p.parent.name for p in EXPERIMENTS.glob("alpnet_*/experiment.yaml"))
ARMS = {"as is": {}, "global prototypes": {"foreground": "global", "background": "global"}}


@pytest.fixture(scope="module")
def folds():
    sys.path.insert(0, str(EXPERIMENTS))
    yield importlib.import_module("alpnet_folds")
    sys.path.remove(str(EXPERIMENTS))


def perform(folds, folder: Path, data: Path, *more: str) -> dict:
    """Run the script in this process and return its result.json."""
    before = sys.argv
    sys.argv = [
        "alpnet_folds.py",
        str(folder),
        "--data-root",
        str(data.parent),
        "--work",
        str(data.parent),
        *more,
    ]
    try:
        assert folds.main() == 0
    finally:
        sys.argv = before
    return read_json(folder / "result.json")


@pytest.fixture(scope="module")
def made(folds, tmp_path_factory):
    """(folder, data, result) of settings 1 and 2 on one fold, two arms, untrained but for two updates."""
    pytest.importorskip("skimage")
    root = tmp_path_factory.mktemp("folds")
    data = phantom.write_msd(
        root / "phantom", n_labelled=4, n_test=0, shape=(8, 24, 32), spacing=(8.0, 1.0, 1.0), seed=3
    )
    folder = root / "quick"
    folder.mkdir()
    plan = {
        "data": "phantom", "ids": [f"case_{i:03d}" for i in range(4)], "n_folds": 3, "folds": ["0"],
        "settings": {"1": {"all": [1, 2]}, "2": {"one": [1]}}, "excluding": ["2"],
        "plan": {"dims": 2, "memory_gib": 0.01},
        "train": {"preset": "tiny", "updates": 2, "batch": 2, "validations": 1, "threads": 1},
        "arms": ARMS, "seeds": [0],
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(plan))
    return folder, data, perform(folds, folder, data)


def mean(result, setting: str) -> float:
    return next(r["value"] for r in result["rows"] if r["setting"] == setting and r["class"] == "mean")


@pytest.mark.slow
def test_every_setting_and_arm_is_reported_beside_its_baselines(made):
    _, _, result = made
    assert result["not_run"] == []
    for setting in ("1", "2"):
        for arm in ARMS:
            for what in ("ep1 alp", "ep1 copied mask", "ep1 untrained", "ep2 default", "ep2 everywhere"):
                value = mean(result, f"setting {setting}, {arm}, {what}")
                assert 0 <= value <= 1
                if what in ("ep1 alp", "ep2 default"):
                    told = result["by_seed"][f"setting {setting}, {arm}, {what}"]
                    assert told == {"0": pytest.approx(value)}
    # the arm that knows global prototypes alone is scored by them
    trained = "setting 1, global prototypes, ep1"
    assert mean(result, f"{trained} alp") == mean(result, f"{trained} global prototype")
    assert mean(result, "setting 1, as is, ep1 alp") != mean(result, f"{trained} alp")
    # a copied mask knows no model
    assert mean(result, f"{trained} copied mask") == mean(result, "setting 1, as is, ep1 copied mask")


@pytest.mark.slow
def test_setting_2_trains_without_any_slice_that_shows_an_organ_of_the_group(made):
    _, data, _ = made
    runs = data.parent / "quick.seguro" / "runs"
    run = runs / "fold0-set2-one-seed0-as-is"
    excluded = read_yaml(run / "config.yaml")["config"]["excluded"]
    assert sorted(excluded) == sorted(read_json(run / "cases.json")["train"]) == ["case_002", "case_003"]
    for case, slices in excluded.items():
        label = read_label(data / "labelsTr" / f"{case}.nii.gz").array
        assert slices == np.flatnonzero((label == 1).any((1, 2))).tolist() != []
    assert read_yaml(runs / "fold0-set1-all-seed0-as-is" / "config.yaml")["config"]["excluded"] == {}


@pytest.mark.slow
def test_corrections_are_told_scan_by_scan_with_their_seconds(made):
    _, _, result = made
    found = result["correction"]
    scans = found["scans"]
    assert len(scans) == len(ARMS) * 2  # one query in each setting
    assert all(s["change"] == pytest.approx(s["after"] - s["before"]) and s["seconds"] > 0 for s in scans)
    assert found["median_seconds"] == pytest.approx(np.median([s["seconds"] for s in scans]))
    assert found["mean_change"] == pytest.approx(np.mean([s["change"] for s in scans]))
    assert found["fell"] == sum(s["change"] < 0 for s in scans)


@pytest.mark.slow
def test_what_is_scored_is_kept_and_what_changed_is_done_again(made, folds):
    folder, data, first = made
    scores = sorted((data.parent / "quick.seguro" / "scores").glob("*.json"))
    stamps = {p: p.stat().st_mtime_ns for p in scores}
    assert len(scores) == 2 * len(ARMS)
    again = perform(folds, folder, data)
    assert again["rows"] == first["rows"]
    assert {p: p.stat().st_mtime_ns for p in scores} == stamps
    plan = read_yaml(folder / "experiment.yaml")
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**plan, "seeds": [0, 1]}))
    with_more = perform(folds, folder, data, "--collect")
    assert sorted(with_more["not_run"]) == sorted(p.stem.replace("seed0", "seed1") for p in scores)
    assert with_more["rows"] == first["rows"]


def posed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (12, 64, 64) and its label: a body with three organs of their own texture, turned.

    Brightness alone tells too little: a smooth field changes it, and the body around is patched.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[-1:1:12j, -1:1:64j, -1:1:64j]
    coarse = rng.normal(size=(12, 10, 10))
    patches = ndimage.zoom(coarse, (1, 6.4, 6.4), order=1)[:, :64, :64]
    image = np.where((y / 0.9) ** 2 + (x / 0.95) ** 2 <= 1, 60 + 14 * (patches > 0), 0.0)
    label = np.zeros(image.shape, np.uint8)
    turn = rng.uniform(-0.8, 0.8)
    for k, (bright, wave) in enumerate(((110, 9.0), (85, 22.0), (135, 14.0)), start=1):
        angle = turn + 2 * np.pi * k / 3
        cy, cx = 0.45 * np.sin(angle) + rng.normal(0, 0.04), 0.45 * np.cos(angle) + rng.normal(0, 0.04)
        ry, rx = rng.uniform(0.2, 0.3, 2)
        inside = (z / 0.75) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        image = np.where(inside, bright + 12 * np.sin(wave * np.pi * (y + x)), image)
        label[inside] = k
    field = 1 + 0.15 * rng.uniform(-1, 1) * y + 0.15 * rng.uniform(-1, 1) * x
    return (image * field + rng.normal(0, 4, image.shape)).astype(np.float32), label


@pytest.mark.slow
def test_on_a_phantom_local_prototypes_beat_a_copied_mask_and_global_ones(folds, tmp_path):
    """Organs are anyhow turned, so that where they were in the support says little.

    Measured: 0.35 local prototypes, 0.04 the mask copied, 0.16 global prototypes, 0.20 untrained.
    """
    pytest.importorskip("skimage")
    data = tmp_path / "posed"
    for i in range(8):
        image, label = posed(i)
        for part, array in (("images", image), ("labels", label)):
            phantom.write_nifti(data / part / f"case_{i:03d}.nii.gz", array, spacing=(8.0, 1.0, 1.0))
    folder = tmp_path / "effect"
    folder.mkdir()
    plan = {
        "data": "posed", "ids": [f"case_{i:03d}" for i in range(8)], "n_folds": 4, "folds": ["0"],
        "settings": {"1": {"all": [1, 2, 3]}}, "plan": {"dims": 2, "memory_gib": 0.1},
        "train": {
            "preset": "small", "updates": 120, "batch": 4, "validations": 1, "threads": 1,
            "settings": {"size": 64, "width": 16, "train_window": 2.0, "test_window": 1.0, "gate": 2.0},
        },
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(plan))
    result = perform(folds, folder, data)
    alp = mean(result, "setting 1, ep1 alp")
    assert alp >= mean(result, "setting 1, ep1 copied mask") + 0.10
    assert alp >= mean(result, "setting 1, ep1 global prototype") + 0.10
    assert alp >= mean(result, "setting 1, ep1 untrained") + 0.10


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_experiment_is_valid(name, folds):
    plan = read_yaml(EXPERIMENTS / name / "experiment.yaml")
    splits = {s.name for s in folds.protocol.splits([str(i) for i in plan["ids"]], plan["n_folds"])}
    assert set(plan["folds"]) <= splits and set(plan["excluding"]) <= {"2"}
    preset = PRESETS[plan["train"]["preset"]]
    configs = [
        AlpnetConfig.model_validate({**preset, **plan["train"].get("settings", {}), **changes})
        for changes in plan.get("arms", {"": {}}).values()
    ]
    assert len({c.model_dump_json() for c in configs}) == len(configs)  # arms differ


def test_the_committed_figures_keep_the_gates():
    """Issue 5: EP1 at least 66, EP2 at least 58, and 8 above the published rule on every slice."""
    result = read_json(EXPERIMENTS / "alpnet_chaos" / "result.json")
    assert mean(result, "setting 1, ep1 alp") >= 0.66
    ep2 = mean(result, "setting 1, ep2 default")
    assert ep2 >= 0.58
    assert ep2 >= mean(result, "setting 1, ep2 everywhere") + 0.08
