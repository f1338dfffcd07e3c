"""`seguro train --method rog`: on another network, from a clean run, and selected by the robust score."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from seguro.cli.main import main
from seguro.core.files import read_json

COMMON = ("--method", "rog", "--preset", "tiny", "--batch", "2", "--memory", "0.01", "--threads", "1")


def train(data, out, name, *arguments):
    assert main(["train", str(data), "--out", str(out), "--name", name, *COMMON, *map(str, arguments)]) == 0
    return out / "runs" / name


def weights(run):
    (path,) = (run / "model").glob("*.safetensors")
    return load_file(path)


def changed(one, two) -> float:
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).abs().max()) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "dims"), [("flat_folder", 2), ("phantom_folder", 3)])
def test_a_clean_unet_is_hardened_by_free_training(folder, dims, request, tmp_path, capsys):
    """In 2-D and 3-D: the weights of a clean run are where Free training begins, and its noise moves them."""
    data, few = request.getfixturevalue(folder), ("--network", "unet", "--validations", "1")
    clean = train(data, tmp_path / "w", "clean", *few, "--updates", "2", "--set", "adversary=none")
    capsys.readouterr()
    still = ("--updates", "1", "--set", "learning_rate=1e-12", "--set", "weight_decay=0")
    begun = train(data, tmp_path / "w", "begun", *few, *still, "--init", clean)
    assert "weights loaded, 0 not: none" in " ".join(capsys.readouterr().out.split())
    assert changed(weights(clean), weights(begun)) < 1e-6
    free = train(data, tmp_path / "w", "free", *few, "--updates", "2", "--init", clean)
    noiseless = train(
        data, tmp_path / "w", "no", *few, "--updates", "2", "--init", clean, "--set", "epsilon=0"
    )
    assert changed(weights(free), weights(begun)) > 1e-4 < changed(weights(free), weights(noiseless))
    model = read_json(free / "model" / "model.json")
    assert model["plan"]["dims"] == dims and model["config"]["network"] == "unet"


def test_the_robust_score_selects_the_model(flat_folder, tmp_path):
    few = ("--network", "unet", "--updates", "2", "--validations", "2", "--set", "select=robust")
    run = train(flat_folder, tmp_path / "w", "robust", *few)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = {line["update"]: line for line in lines if "robust" in line}
    assert sorted(scores) == [0, 1, 2] and len({s["robust"] for s in scores.values()}) > 1
    recorded = read_json(run / "stage.json")["recorded"]
    best = max(s["robust"] for s in scores.values())
    assert recorded["best"] == pytest.approx(best)
    assert scores[recorded["chosen_update"]]["robust"] == pytest.approx(best)
    assert torch.isfinite(torch.cat([w.flatten() for w in weights(run).values()])).all()
