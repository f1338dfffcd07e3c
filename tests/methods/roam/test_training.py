"""Whole trainings: files nobody may read may go, a lost class is noted, presets train."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from seguro import api
from seguro.core.files import read_json, write_json, write_text
from seguro.core.seeds import derive
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.engine.limits import Limits
from seguro.engine.log import RunLog
from seguro.engine.loop import Loop
from seguro.engine.runtime import Runtime
from seguro.methods.roam.config import PRESETS, RoamConfig
from seguro.methods.roam.method import Roam
from seguro.networks import build

OPTIONS = {"method": "roam", "preset": "tiny", "batch": 2, "validations": 1, "threads": 1}
PLANNED = PlanOptions(memory_gib=0.01, batch=2)


def losses(run):
    return [line["loss"] for line in RunLog(run).lines() if line["kind"] == "train"]


def train(data, out, **more):
    options = api.TrainOptions(**{**OPTIONS, "updates": 4, **more})
    return api.train(data, options, out=out, plan_options=PLANNED)


def test_the_trace_is_the_same_when_the_labels_nobody_may_see_are_deleted(phantom_folder, tmp_path):
    workspace, manifest, plan = api.plan(phantom_folder, out=tmp_path / "w", options=PLANNED)
    store = prepare(workspace, manifest, plan)
    cases, _ = api.cases_of_fold(manifest, plan, "0", "some")
    labelled = [c for c in cases if c.label is not None]
    hidden = {c.id for c in labelled[2:]}
    assert hidden
    traces = []
    for name in ("with", "without"):
        torch.manual_seed(derive(0, "init"))
        method = Roam(RoamConfig.model_validate(PRESETS["tiny"]), plan, build)
        given = Cases(store, cases, plan.classes, hidden=hidden)
        Loop(method, given, tmp_path / name, Runtime("cpu"), Limits(updates=4), batch=4, seed=0).fit()
        traces.append(losses(tmp_path / name))
        for case in labelled[2:]:
            for kind in ("label", "locations"):
                (store / f"{case.hash}.{kind}.npy").unlink(missing_ok=True)
    assert traces[0] == traces[1] and len(traces[0]) == 4


@pytest.mark.parametrize("file", ["as it was", "noise", "absent"])
def test_no_file_of_a_label_that_is_told_to_be_unlabelled_is_opened(phantom_folder, tmp_path, file):
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    labels = sorted((data / "labelsTr").glob("*.nii.gz"))
    ids = [p.name.removesuffix(".nii.gz") for p in labels]
    write_text(
        data / "patients.csv", "id,patient,split\n" + "".join(f"{i},{i},unlabelled\n" for i in ids[3:])
    )
    for label in labels[3:]:
        if file == "noise":
            label.write_bytes(b"noise")
        if file == "absent":
            label.unlink()
    run = train(data, tmp_path / "run")
    assert losses(run) == losses_of_three(phantom_folder)


@cache
def losses_of_three(folder):
    """Return the trace of the first three cases with labels and the others in `imagesUn`."""
    with TemporaryDirectory() as place:
        data = Path(place) / "data"
        shutil.copytree(folder, data)
        told = read_json(data / "dataset.json")
        for entry in told["training"][3:]:
            image = data / entry["image"]
            image.rename(data / "imagesUn" / image.name)
            (data / entry["label"]).unlink()
        write_json(data / "dataset.json", {**told, "training": told["training"][:3], "numTraining": 3})
        return losses(train(data, Path(place) / "run"))


def test_shares_are_logged_and_a_lost_class_is_noted(phantom_folder, tmp_path, monkeypatch):
    plain = train(phantom_folder, tmp_path)
    logged = [line for line in RunLog(plain).lines() if line["kind"] == "train"]
    shares = sorted({key for line in logged for key in line if key.startswith("share.")})
    assert len(shares) == 2
    update = Roam.update

    def lost(self, batch, run):
        out = {k: v for k, v in update(self, batch, run).items() if k not in shares}
        seen = {shares[0]: torch.tensor(0.03), shares[1]: torch.tensor(0.15)}  # in every second update alone
        return {**out, **(seen if run.update % 2 else {})}

    monkeypatch.setattr(Roam, "update", lost)
    run = train(phantom_folder, tmp_path, name="lost")
    notes = [line["message"] for line in RunLog(run).lines() if line["kind"] == "note"]
    names = [key.removeprefix("share.") for key in shares]
    assert len(notes) == 1 and f"{names[0]} (3%)" in notes[0] and names[1] not in notes[0]


@pytest.mark.parametrize("preset", ["paper", "paper-supervised", "recommended"])
def test_presets_train(flat_folder, tmp_path, preset):
    settings = {"network_options": {"width": 4}, "group": 2}
    run = train(flat_folder, tmp_path, preset=preset, settings=settings, updates=2)
    assert len(losses(run)) == 2


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ("unet-classic", {"network_options": {"width": 4}, "layers": ["I", 2, "L"], "skips": "all"}),
        ("resunet", {"network_options": {"width": 4}, "layers": ["I", 2, "dec0", "L"], "skips": "all"}),
        pytest.param(
            "superres",
            {"network_options": {"width": 4}, "layers": ["I", "L"], "skips": "official"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "lattice",
            {"network_options": {"width": 4}, "layers": ["I", 3, "L1d1", "L"]},
            marks=pytest.mark.slow,
        ),
        (
            "monai:SegResNet",
            {"network_options": {"init_filters": 8}, "layers": ["I", "convInit", "L"]},
        ),
    ],
)
def test_any_network_that_names_its_layers_trains(phantom_folder, tmp_path, network, settings):
    if network.startswith("monai"):
        pytest.importorskip("monai")
    run = train(phantom_folder, tmp_path, network=network, settings=settings, updates=3)
    assert len(losses(run)) == 3 and None not in losses(run)
