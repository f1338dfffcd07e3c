"""Checkpoints rotate, keep the best, and a damaged one is passed over and named."""

from __future__ import annotations

import pytest
import torch

from seguro.core.errors import RunError
from seguro.engine import checkpoint
from seguro.engine.checkpoint import Checkpoint


def write(folder, update: int, *, best=None) -> None:
    checkpoint.save(
        folder, Checkpoint(update, {"w": torch.full((3,), float(update))}, {"note": "x"}), best=best
    )


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    for update in (10, 20, 30, 40, 50):
        write(tmp_path, update, best=20)
    assert checkpoint.updates(tmp_path) == [20, 40, 50]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_round_trip_is_exact(tmp_path):
    write(tmp_path, 7)
    back = checkpoint.load(tmp_path, 7)
    assert back.update == 7 and torch.equal(back.tensors["w"], torch.full((3,), 7.0))


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    for update in (10, 20):
        write(tmp_path, update)
    file = tmp_path / "update-00000020.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-2] ^= 1
    file.write_bytes(raw)
    said: list[str] = []
    found = checkpoint.latest(tmp_path, say=said.append)
    assert found is not None and found.update == 10
    assert "update-00000020" in said[0] and "corrupt" in said[0]


def test_when_all_are_damaged_training_does_not_start_anew_in_silence(tmp_path):
    write(tmp_path, 10)
    (tmp_path / "update-00000010.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="corrupt"):
        checkpoint.latest(tmp_path, say=lambda line: None)


def test_weights_without_their_json_do_not_count(tmp_path):
    write(tmp_path, 10)
    write(tmp_path, 20)
    (tmp_path / "update-00000020.json").unlink()
    assert checkpoint.updates(tmp_path) == [10]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_an_optimiser_goes_on_as_if_never_stopped(kind):
    def steps(parameter, optimiser, n):
        for i in range(n):
            optimiser.zero_grad()
            ((parameter - i) ** 2).sum().backward()
            optimiser.step()

    more = {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    whole = torch.nn.Parameter(torch.ones(4))
    one = kind([whole], lr=0.1, **more)
    steps(whole, one, 3)
    half = torch.nn.Parameter(whole.detach().clone())
    two = kind([half], lr=0.1, **more)
    checkpoint.restore_optimiser("o", two, checkpoint.optimiser_tensors("o", one))
    steps(whole, one, 3)
    steps(half, two, 3)
    assert torch.equal(whole, half)
