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

from seguro.core.errors import DataError, RunError
from seguro.core.seeds import generator
from seguro.engine import checkpoint
from seguro.engine.signals import Stopped
from seguro.methods import TABLE, get
from seguro.methods.contract import Method

RANKS_AGREE = 1e-9
"""Relative to the largest weight, in double precision."""


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


def test_it_resumes_bit_equal(row, tmp_path, validation):
    """Stopped three times, also between an update and the look that is due (2 and 4; looks at 2, 4, 5)."""
    name, setting = row
    whole = setting.loop(name, tmp_path / "whole", updates=5, validate=validation(setting, name))
    chosen = whole.fit()
    for stop_at in (1, 2, 4):
        broken = setting.loop(name, tmp_path / "broken", updates=5, validate=validation(setting, name))
        broken.progress = lambda p, at=stop_at, loop=broken: loop._stop.set() if p.update == at else None
        with pytest.raises(Stopped):
            broken.fit()
    again = setting.loop(name, tmp_path / "broken", updates=5, validate=validation(setting, name))
    resumed = again.fit()
    one, two = everything(tmp_path / "whole"), everything(tmp_path / "broken")
    assert one.keys() == two.keys()
    assert not [k for k in one if not torch.equal(one[k], two[k])]
    assert (resumed.update, again.best, again.since_best) == (chosen.update, whole.best, whole.since_best)
    logs = [
        [(e["update"], e["kind"], e.get("loss"), e.get("dice")) for e in log_lines(tmp_path / f)]
        for f in ("whole", "broken")
    ]
    assert logs[0] == logs[1]


def test_it_trains_at_half_precision_with_a_loss_scale(row, tmp_path):
    name, setting = row
    loop = setting.loop(name, tmp_path, updates=3, precision="16-mixed")
    loop.fit()
    assert loop.run.scale > 1
    assert all(torch.isfinite(v.float()).all() for v in weights(loop).values())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("supervised", "alpnet"))) for n in TABLE]
)
def test_a_time_budget_ends_also_when_stopped_in_its_first_updates(
    name, three_d, two_d, tmp_path, validation
):
    from seguro.engine.limits import Limits

    setting = three_d if 3 in get(name).needs.dims else two_d
    for stop_at in (2, None):
        loop = setting.loop(name, tmp_path, updates=1, validate=validation(setting, name))
        loop.limits = Limits(budget_s=1.0, validations=2)
        loop.run.updates = 10**9
        if stop_at:
            loop.progress = lambda p, loop=loop, at=stop_at: loop._stop.set() if p.update == at else None
            with pytest.raises(Stopped):
                loop.fit()
        else:
            chosen = loop.fit()
    assert chosen.update >= 4
    assert 0.5 < loop.seconds < 20.0  # a second, give or take a busy machine
    tiny = setting.loop(name, tmp_path / "tiny", updates=1, validate=validation(setting, name))
    tiny.limits = Limits(budget_s=0.01)
    tiny.run.updates = 10**9
    assert tiny.fit().update >= 1


def log_lines(folder: Path):
    from seguro.engine.log import RunLog

    return RunLog(folder).lines()


def test_a_resume_with_another_batch_size_is_refused(row, tmp_path):
    name, setting = row
    setting.loop(name, tmp_path, updates=2).fit()
    with pytest.raises(RunError, match="batch"):
        setting.loop(name, tmp_path, updates=4, batch=2).fit()


def test_a_checkpoint_of_another_version_is_refused(two_d, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("seguro.engine.loop.SCHEMA", 1)
        two_d.loop("supervised", tmp_path, updates=1).fit()
    with pytest.raises(RunError, match="another version of seguro"):
        two_d.loop("supervised", tmp_path, updates=2).fit()


def test_a_checkpoint_of_another_network_is_refused(two_d, tmp_path):
    two_d.loop("supervised", tmp_path, updates=1).fit()
    loop = two_d.loop("supervised", tmp_path, updates=2)
    loop.method.modules["network"].extra = torch.nn.Linear(3, 2)
    with pytest.raises(DataError, match=r"checkpoints: .* 2 weights differ, first .*extra.bias \(noth"):
        loop.fit()


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


@pytest.fixture(scope="module")
def on_ranks(three_d, two_d, tmp_path_factory) -> Path:
    """Where every method's runs on one rank (folder 1) and on two (folder 2) lie, made in one start each."""
    folder, script = tmp_path_factory.mktemp("ranks"), Path(__file__).with_name("train_ranks.py")
    spaces = {n: (three_d if 3 in get(n).needs.dims else two_d).workspace for n in TABLE}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for world, launcher in (("1", []), ("2", torchrun)):
        asked = [f"{name}={workspace}" for name, workspace in spaces.items()]
        command = [sys.executable, *launcher, str(script), str(folder / world), *asked]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", TABLE)
def test_two_ranks_equal_one_on_the_joined_batch(name, on_ranks):
    """Weights, averages, optimiser and state; the second half is a resume, so that gathering is tried too."""
    one, two = (everything(on_ranks / world / name) for world in "12")
    joined = [t for t in two if t.startswith("state.1.")]
    one, two = ({k: v for k, v in t.items() if not k.startswith("state.")} for t in (one, two))
    assert len(joined) == len([t for t in everything(on_ranks / "2" / name) if t.startswith("state.0.")])
    assert one.keys() == two.keys()
    for key, value in one.items():
        largest = value.abs().max().item()
        away = (value.double() - two[key].double()).abs().max().item()
        assert away <= RANKS_AGREE * max(largest, 1e-3), key
