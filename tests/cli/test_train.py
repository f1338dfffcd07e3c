"""`seguro train`: what it says, several folds, starting from another run, YAML, torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from seguro.cli.main import main

SMALL = [
    "--preset",
    "tiny",
    "--updates",
    "2",
    "--batch",
    "2",
    "--validations",
    "1",
    "--memory",
    "0.02",
    "--threads",
    "1",
]


def train(data, out, *more: str) -> int:
    return main(["train", str(data), "--out", str(out), *SMALL, *more])


def test_the_first_lines_say_where_what_why_and_until_when(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"workspace {tmp_path / 'w'}/"
    text = "\n".join(lines)
    for word in ("3-D", "patch", "folds: 5 by patient", "supervised (tiny) on cpu", "ends after 2 updates"):
        assert word in text
    assert lines[-1].startswith("next: seguro predict")


def test_a_finished_run_is_not_trained_again(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w") == 0
    weights = tmp_path / "w" / "runs" / "supervised-unet-fold0" / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert train(phantom_folder, tmp_path / "w") == 0
    assert weights.stat().st_mtime_ns == before and "finished already" in capsys.readouterr().out


def test_all_folds_and_an_ensemble_of_them(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w", "--folds", "0,1") == 0
    runs = sorted((tmp_path / "w" / "runs").iterdir())
    assert [r.name for r in runs] == ["supervised-unet-fold0", "supervised-unet-fold1"]
    configs = [json.loads((r / "stage.json").read_text())["reads"] for r in runs]
    assert configs[0].keys() == configs[1].keys()  # the same cases, on other sides
    images = str(phantom_folder / "imagesTs")
    assert main(["predict", *map(str, runs), images, "--out", str(tmp_path / "p"), "--threads", "1"]) == 0
    table = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert len(table["models"]) == 2 and len(table["cases"]) == 2


def test_starting_from_another_run(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w", "--name", "first") == 0
    first = tmp_path / "w" / "runs" / "first"
    still = ["--set", "learning_rate=1e-12", "--set", "weight_decay=0"]
    assert train(phantom_folder, tmp_path / "w", "--name", "second", "--init", str(first), *still) == 0
    assert " weights loaded, 0 not: none" in capsys.readouterr().out
    one, two = (
        load_file(tmp_path / "w" / "runs" / n / "model" / "weights.safetensors") for n in ("first", "second")
    )
    assert all((one[k] - two[k]).abs().max() < 1e-6 for k in one)  # two steps of 1e-12


def test_options_from_yaml_and_from_the_line(phantom_folder, tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rate: 0.5\naugment:\n  p_noise: 0.9\n")
    more = ["--config", str(tmp_path / "c.yaml"), "--set", "augment.p_blur=0.8", "--dry-run", "--json"]
    for folds in ("0", "all"):
        assert train(phantom_folder, tmp_path / "w", *more, "--folds", folds) == 0
        assert not (tmp_path / "w").exists()
    assert train(phantom_folder, tmp_path / "w", *more[:4]) == 0
    config = json.loads((tmp_path / "w" / "runs" / "supervised-unet-fold0" / "stage.json").read_text())[
        "config"
    ]["config"]
    assert (config["learning_rate"], config["augment"]["p_noise"], config["augment"]["p_blur"]) == (
        0.5,
        0.9,
        0.8,
    )


def test_json_on_standard_output_is_one_object(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [str(tmp_path / "w" / "runs" / "supervised-unet-fold0")] and found["next"]


def test_updates_and_budget_exclude_each_other(phantom_folder, tmp_path, capsys):
    assert train(phantom_folder, tmp_path / "w", "--budget", "1h") == 1
    assert "exclude each other" in capsys.readouterr().err


def test_nothing_is_written_into_the_data_folder(phantom_folder, capsys):
    before = sorted(p for p in phantom_folder.rglob("*"))
    assert train(phantom_folder, phantom_folder / "w") == 1
    assert "never written to" in capsys.readouterr().err
    assert sorted(p for p in phantom_folder.rglob("*")) == before


@pytest.mark.slow
def test_the_whole_command_under_torchrun(phantom_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "seguro", "train", str(phantom_folder), "--out", str(tmp_path / "two"), *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert train(phantom_folder, tmp_path / "one") == 0
    name = "runs/supervised-unet-fold0/model/weights.safetensors"
    one, two = (load_file(tmp_path / w / name) for w in ("one", "two"))
    for key, value in one.items():
        assert (value - two[key]).abs().max() <= 1e-5 * max(float(value.abs().max()), 1e-3), key
