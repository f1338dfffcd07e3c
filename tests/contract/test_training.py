"""Every method trains, resumes, repeats itself, and means the same on one rank and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seguro.core.errors import RunError
from seguro.core.seeds import generator
from seguro.engine import checkpoint
from seguro.engine.loop import Stopped
from seguro.methods import TABLE, get
from seguro.methods.contract import Method

RANKS_AGREE = 1e-5
"""Relative to the largest weight: float32 sums in another order over a few updates."""


def weights(loop) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in loop.method.modules.state_dict().items()}


def everything(folder: Path) -> dict[str, torch.Tensor]:
    last = checkpoint.updates(folder / "checkpoints")[-1]
    return dict(checkpoint.load(folder / "checkpoints", last).tensors)


def test_it_fulfils_the_protocol(row):
    name, setting = row
    method = setting.method(name)
    assert isinstance(method, Method)
    assert "paper" in get(name).presets and "tiny" in get(name).presets
    assert set(method.shared()) <= set(method.modules.state_dict())


def test_every_trainable_parameter_moves(row, tmp_path):
    name, setting = row
    loop = setting.loop(name, tmp_path, updates=4)
    before = weights(loop)
    loop.fit()
    for key, parameter in loop.method.modules.named_parameters():
        moved = not torch.equal(parameter, before[key])
        assert moved == parameter.requires_grad, (
            f"{key}: requires_grad {parameter.requires_grad}, moved {moved}"
        )
    for key, value in weights(loop).items():
        assert torch.isfinite(value.float()).all(), key


def test_same_seed_same_numbers_other_seed_other_numbers(row, tmp_path):
    name, setting = row
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        setting.loop(name, tmp_path / folder, updates=3, seed=seed).fit()
    a, b, c = (everything(tmp_path / f) for f in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_it_resumes_bit_equal(row, tmp_path, stop_at):
    name, setting = row
    setting.loop(name, tmp_path / "whole", updates=5).fit()
    broken = setting.loop(name, tmp_path / "broken", updates=5)
    broken.progress = lambda p: broken._stop.set() if p.update == stop_at else None
    with pytest.raises(Stopped):
        broken.fit()
    setting.loop(name, tmp_path / "broken", updates=5).fit()
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    unequal = [k for k in whole if not torch.equal(whole[k], resumed[k])]
    assert not unequal
    logs = [
        [(e["update"], e["kind"], e.get("loss")) for e in log_lines(tmp_path / f)]
        for f in ("whole", "broken")
    ]
    assert logs[0] == logs[1]


def log_lines(folder: Path):
    from seguro.engine.log import RunLog

    return RunLog(folder).lines()


def test_a_resume_with_another_batch_size_is_refused(row, tmp_path):
    name, setting = row
    setting.loop(name, tmp_path, updates=2).fit()
    with pytest.raises(RunError, match="batch"):
        setting.loop(name, tmp_path, updates=4, batch=4).fit()


def test_a_sample_is_a_function_of_cases_slot_and_generator(row):
    name, setting = row
    method = setting.method(name)
    cases = setting.cases(method.needs)
    one, two = (method.draw(cases, 0, generator(5, "draw")) for _ in range(2))
    other = method.draw(cases, 0, generator(6, "draw"))
    same = [np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one)]
    differs = [not np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    assert all(same) and any(differs)


def test_state_survives_a_round_trip(row, tmp_path):
    name, setting = row
    loop = setting.loop(name, tmp_path, updates=2)
    loop.fit()
    before = {k: v.clone() for k, v in loop.method.state().items()}
    fresh = setting.method(name)
    fresh.load_state(before)
    after = fresh.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", TABLE)
def test_two_ranks_equal_one_on_the_joined_batch(name, three_d, tmp_path):
    script = Path(__file__).with_name("train_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for world in (1, 2):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"),
            *(str(script), name, str(three_d.workspace), str(tmp_path / str(world))),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / w / "final.safetensors") for w in "12")
    assert one.keys() == two.keys()
    for key, value in one.items():
        largest = value.abs().max().item()
        assert (value - two[key]).abs().max().item() <= RANKS_AGREE * max(largest, 1e-3), key
