"""Whole trainings: files nobody may read may go, a lost class is noted, presets train."""

from __future__ import annotations

import shutil

import pytest
import torch

from seguro import api
from seguro.data.planner import PlanOptions
from seguro.engine.log import RunLog
from seguro.methods.roam.method import Roam

OPTIONS = {"method": "roam", "preset": "tiny", "batch": 2, "validations": 1, "threads": 1}
PLANNED = PlanOptions(memory_gib=0.01, batch=2)


def losses(run):
    return [line["loss"] for line in RunLog(run).lines() if line["kind"] == "train"]


def train(data, out, **more):
    options = api.TrainOptions(**{**OPTIONS, "updates": 4, **more})
    return api.train(data, options, out=out, plan_options=PLANNED)


def test_the_trace_is_the_same_without_the_files_nobody_may_read(phantom_folder, tmp_path):
    """Unlabelled cases keep stray label files, and lose them: nothing changes."""
    traces = []
    for name in ("with", "without"):
        data = tmp_path / name
        shutil.copytree(phantom_folder, data)
        stray = data / "labelsUn"
        if name == "with":
            stray.mkdir()
            for image in (data / "imagesUn").iterdir():
                (stray / image.name).write_bytes(b"must not be opened")
        traces.append(losses(train(data, tmp_path / f"w-{name}")))
    assert traces[0] == traces[1] and len(traces[0]) == 4


def test_shares_are_logged_and_a_lost_class_is_noted(phantom_folder, tmp_path, monkeypatch):
    plain = train(phantom_folder, tmp_path)
    logged = [line for line in RunLog(plain).lines() if line["kind"] == "train"]
    shares = sorted({key for line in logged for key in line if key.startswith("share.")})
    assert len(shares) == 2
    update = Roam.update

    def lost(self, batch, run):
        return {**update(self, batch, run), shares[0]: torch.tensor(0.03), shares[1]: torch.tensor(0.5)}

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
