"""`seguro predict --pictures`: volumes and pictures, with the truth of the workspace or without."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from seguro import api
from seguro.cli.main import main
from seguro.data.planner import PlanOptions
from seguro.engine.model import save_model
from seguro.methods import get
from seguro.networks import build
from seguro.report.overlay import TRUTH


def untrained(data, folder, **options):
    """A run with an untrained tiny model of a data set."""
    _, _, plan = api.plan(data, out=folder, options=PlanOptions(memory_gib=0.01, batch=2, **options))
    kind = get("supervised")
    config = kind.Config.model_validate(kind.presets["tiny"])
    torch.manual_seed(0)
    method = kind(config, plan, build)
    run = folder / "runs" / "run"
    save_model(
        run / "model",
        method="supervised",
        config=config.model_dump(mode="json"),
        plan=plan,
        predictor=method.predictor(method.modules),
    )
    (run / "config.yaml").write_text("fold: '0'\n")
    return run


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    return untrained(phantom_folder, tmp_path_factory.mktemp("pictures") / "w")


def blue(path):
    """Pixels of the truth's color."""
    return int((np.abs(np.asarray(Image.open(path)).astype(int) - TRUTH).max(axis=-1) <= 40).sum())


def test_cases_with_truth_and_files_without(run, phantom_folder, tmp_path, capsys):
    assert main(["predict", str(run), "--cases", "test", "--pictures", "--out", str(tmp_path / "a")]) == 0
    names = sorted(p.relative_to(tmp_path / "a").as_posix() for p in tmp_path.glob("a/pictures/*/*"))
    assert len(names) >= 2 and {n.split("/")[1] for n in names} == {"case_006", "case_007"}
    files = [str(run), str(phantom_folder / "imagesTs"), "--pictures", "--out", str(tmp_path / "b")]
    assert main(["predict", *files]) == 0
    assert sorted(p.relative_to(tmp_path / "b").as_posix() for p in tmp_path.glob("b/pictures/*/*")) == names
    assert sum(blue(tmp_path / "a" / n) for n in names) > 100
    assert sum(blue(tmp_path / "b" / n) for n in names) == 0
    stages = [json.loads((tmp_path / f / "stage.json").read_text())["outputs"] for f in "ab"]
    assert stages[0] == stages[1]  # pictures are no part of the prediction


def test_every_nth_slice_replaces_the_middle_ones(run, tmp_path):
    command = ["predict", str(run), "--cases", "test", "--out", str(tmp_path / "a")]
    assert main([*command, "--pictures"]) == 0
    before = {p.name for p in tmp_path.glob("a/pictures/case_006/*")}
    assert main([*command, "--pictures", "--every", "5"]) == 0
    after = sorted(p.name for p in tmp_path.glob("a/pictures/case_006/*"))
    numbers = [int(n.split("_")[1].removesuffix(".png")) for n in after]
    assert numbers == list(range(0, max(numbers) + 1, 5)) and set(after) != before
    assert main([*command, "--every", "5"]) == 1


def test_pictures_of_pictures(flat_folder, tmp_path):
    run = untrained(flat_folder, tmp_path / "w")
    command = ["predict", str(run), "--cases", "train", "--pictures", "--out", str(tmp_path / "a")]
    assert main(command) == 0
    drawn = sorted(tmp_path.glob("a/pictures/*/picture.png"))
    assert len(drawn) == 6 and sum(map(blue, drawn)) > 100


def test_a_data_set_with_other_classes_is_drawn_without_truth(run, tmp_path, capsys):
    from seguro.data import phantom

    data = phantom.write_msd(tmp_path / "other", n_labelled=2, n_test=0, n_classes=1, seed=5)
    api.plan(data, out=tmp_path / "o", options=PlanOptions(memory_gib=0.01))
    command = ["predict", str(run), "--data", str(tmp_path / "o"), "--cases", "train", "--pictures"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "other classes than the model" in " ".join(capsys.readouterr().out.split())
    assert all(blue(p) == 0 for p in tmp_path.glob("a/pictures/*/*.png"))
