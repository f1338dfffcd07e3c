"""`seguro adapt` is `seguro train --method adapt` with the sites as options."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from seguro.cli import adapt as command
from seguro.core.errors import ConfigError
from seguro.core.files import write_json, write_text
from seguro.data import phantom


def start(folder, method, **config):
    write_json(folder / "model" / "model.json", {"method": method, "config": config})
    return folder


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr("seguro.cli.train.train", lambda data, **given: calls.append((data, given)))
    monkeypatch.setattr("seguro.api.adaptation.foreseen", lambda data, options, **given: [])
    monkeypatch.setattr("seguro.api.adaptation.frame_as_begun", lambda data, start, **given: {"side": 9})
    return calls


def test_sites_become_settings_and_the_start_decides_the_stage(called, tmp_path):
    factory, source = start(tmp_path / "f", "factory"), start(tmp_path / "s", "adapt")
    command.adapt(tmp_path / "data", factory, source="3")
    command.adapt(tmp_path / "data", source, source="3", target="B", set_=["cycle=false"], updates=7)
    first, second = (given for _, given in called)
    assert first["set_"] == ["stage=source", 'source="3"', "side=9"] and first["name"] == "adapt-source-3"
    assert second["set_"] == ["stage=adapt", 'source="3"', 'target="B"', "side=9", "cycle=false"]
    assert (second["method"], second["init"], second["dims"], second["updates"]) == ("adapt", source, 2, 7)
    assert second["name"] == "adapt-adapt-B"


def test_after_stage_adapt_a_network_of_its_own_learns_from_painted_slices(called, tmp_path):
    adapted = start(tmp_path / "a", "adapt", stage="adapt")
    command.adapt(tmp_path / "data", adapted, target="B", set_=["network=lattice"])
    command.adapt(tmp_path / "data", adapted, target="C", stage="adapt")
    first, second = (given for _, given in called)
    assert first["set_"] == ['target="B"', "side=9", "network=lattice"]
    assert (first["method"], first["name"]) == ("repaint", "adapt-repaint-B")
    assert second["method"] == "adapt" and second["set_"][0] == "stage=adapt"


def test_a_file_of_settings_comes_before_what_is_said(called, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "seguro.api.adaptation.foreseen", lambda data, options, **given: looked.append(options) or []
    )
    write_text(tmp_path / "own.yaml", "side: 40\ncycle: false\nsource: X\n")
    command.adapt(
        tmp_path / "data", start(tmp_path / "f", "factory"), source="A", config=tmp_path / "own.yaml"
    )
    assert called[0][1]["config"] == tmp_path / "own.yaml"
    assert called[0][1]["set_"] == ["stage=source", 'source="A"']  # the file says the side
    assert looked[0].settings == {"side": 40, "cycle": False, "source": "A", "stage": "source"}


def test_a_stage_may_be_named(called, tmp_path):
    command.adapt(tmp_path / "data", start(tmp_path / "f", "factory"), stage="adapt")
    assert called[0][1]["set_"] == ["stage=adapt", "side=9"] and called[0][1]["name"] == "adapt-adapt"


@pytest.mark.parametrize(("stage", "method"), [("other", "adapt"), ("auto", "supervised")])
def test_other_stages_and_starts_are_refused(stage, method, tmp_path):
    with pytest.raises(
        ConfigError, match=r"expected source, adapt, repaint or auto|made by method supervised"
    ):
        command.stage_of(stage, start(tmp_path / "r", method))


@pytest.mark.slow
def test_a_tiny_pipeline_takes_minutes_and_little_memory(tmp_path):
    """Check 29: a federation of three sites, all stages, volumes and a prediction in 5 minutes and 3 GB.

    Counted are processor seconds, which other work on the machine changes least; half of two cores' five
    minutes are allowed.
    """
    data = phantom.write_msd(
        tmp_path / "data", n_labelled=12, n_test=2, shape=(6, 24, 28), sites=3, jitter=2, seed=2
    )
    work = tmp_path / "w"
    tiny = ["--out", work, "--preset", "tiny", "--batch", 4]
    common = [*tiny, "--validations", 1, "--threads", 1]
    runs = work / "runs"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    rounds = ["--rounds", 2, "--updates", 10, "--name", "factory"]
    seguro("federate", "simulate", data, "--method", "factory", *rounds, *tiny)
    start = ["adapt", data, "--from", runs / "factory", "--source", "site1"]
    seguro(*start, "--updates", 20, "--name", "source", *common)
    made = ["--domain", "site1", "--volumes", 2, "--steps", 3, "--beside", data, "--out", tmp_path / "both"]
    seguro("generate", runs / "source", *made)
    both = ["--out", tmp_path / "v", *common[2:]]
    adapts = ["adapt", tmp_path / "both", "--from", runs / "source", "--source", "site1", "--target", "site2"]
    adapts += ["--labelled", "site1=all"]
    seguro(*adapts, "--updates", 20, "--name", "adapted", *both)
    own = ["adapt", tmp_path / "both", "--from", tmp_path / "v" / "runs" / "adapted", *adapts[-2:]]
    seguro(*own, "--updates", 20, "--name", "repainted", *both)
    for run in ("adapted", "repainted"):
        seguro("predict", tmp_path / "v" / "runs" / run, data / "imagesTs", "--out", tmp_path / run)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert sum(getattr(after, t) - getattr(before, t) for t in ("ru_utime", "ru_stime")) < 300
    assert after.ru_maxrss < 3e6  # kB
    for run in ("adapted", "repainted"):
        found = {p.name for p in (tmp_path / run).glob("case_*.nii.gz")}
        assert found == {"case_012.nii.gz", "case_013.nii.gz"}


def seguro(*arguments: object) -> None:
    """Run one command in a process of one thread."""
    command = [sys.executable, "-m", "seguro", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
