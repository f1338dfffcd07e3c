"""The model of a run's last update: the weights of the last checkpoint, whatever validation chose."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from seguro import api
from seguro.api.last import last_model
from seguro.cli.main import main
from seguro.core.errors import RunError
from seguro.data.planner import PlanOptions
from seguro.engine import checkpoint as checkpoints
from seguro.engine.model import load_model


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    """A run of two updates with averaged weights."""
    options = api.TrainOptions(
        method="mean-teacher", preset="tiny", updates=2, batch=2, validations=1, device="cpu", labelled=2
    )
    return api.train(
        phantom_folder, options, out=tmp_path_factory.mktemp("last") / "w.seguro",
        plan_options=PlanOptions(memory_gib=0.02, dims=2),
    )  # fmt: skip


def test_it_is_that_of_the_last_update_with_its_averages(run):
    found = checkpoints.load(run / "checkpoints", 2)
    weights = load_file(last_model(run) / "weights.safetensors")
    averaged = {k: v for k, v in found.tensors.items() if k.startswith("averaged.")}
    raw = {k: v for k, v in found.tensors.items() if k.startswith("modules.")}

    def holds(tensors):
        floats = [v for v in tensors.values() if v.is_floating_point()]
        return all(any(w.shape == v.shape and torch.equal(w, v) for w in weights.values()) for v in floats)

    assert holds(averaged) and not holds(raw)
    assert load_model(run / "last").plan == load_model(run).plan


def test_predict_takes_it_and_writes_beside_the_chosen_ones(run, capsys):
    words = ["predict", str(run), "--cases", "test", "--threads", "1", "--json"]
    assert main([*words, "--last", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["out"] == str(run / "predictions" / "test-last")
    assert main([*words, "--last"]) == 0
    capsys.readouterr()
    said = json.loads((run / "predictions" / "test-last" / "predictions.json").read_text())
    assert load_model(run / "last").sha256 in json.dumps(said)
    assert not (run / "predictions" / "test").exists()


def test_a_run_without_its_last_checkpoint_has_no_last_model(run, tmp_path):
    with pytest.raises(RunError, match="no finished run"):
        last_model(tmp_path)
    file = run / "checkpoints" / "update-00000002.json"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(RunError, match="of update 2, the last, is gone"):
        last_model(run)
    file.write_bytes(kept)
