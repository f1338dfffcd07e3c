"""benchmarks/large_volume.py: both ways label every voxel, and windows left out are counted in."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from seguro.methods.contract import Whole
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.predictor import WholePredictor
from seguro.networks.superres import SuperRes


@pytest.fixture
def large(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("large_volume")
    monkeypatch.setattr(module, "WINDOW", (16, 16, 16))
    return module


def test_the_label_is_that_of_the_network_at_every_voxel(large):
    torch.manual_seed(0)
    network = SuperRes(in_channels=1, classes=2, width=2)
    predictor = WholePredictor(network, large.two_classes(), PfsegConfig(width=2)).eval()
    x = torch.randn(1, 32, 33, 64)
    with torch.inference_mode():
        expected = predictor(x[None])[0].argmax(dim=0).numpy()
    found = large.labelled(predictor, x)
    assert found.dtype == np.uint8 and found.shape == (32, 33, 64)
    assert (found == expected).mean() > 0.999  # padded on other sides for odd sizes
    assert isinstance(predictor.tiling, Whole)


def test_a_voxel_without_a_label_stops_the_measurement(large, monkeypatch):
    monkeypatch.setattr(large, "labelled", lambda predictor, x: np.full(x.shape[1:], large.UNSET, np.uint8))
    with pytest.raises(SystemExit, match="64 voxels of 64"):
        large.measured(None, (4, 4, 4))


@pytest.mark.parametrize(("most", "run"), [(None, 21), (4, 4)], ids=["all", "some"])
def test_windows_that_were_not_run_are_counted_in(large, monkeypatch, most, run):
    """By a clock that goes on half a second a look: a second within each window, one around it, one more."""
    ticks = (i / 2 for i in range(1000))
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: next(ticks))
    monkeypatch.setattr(large, "time", clock)
    found = large.windows((16, 32, 64), 2, most)
    assert (found["windows"], found["windows_run"], found["measured_whole"]) == (21, run, most is None)
    assert found["seconds"] == found["cpu_s"] == 1 + 2 * run + (21 - run)


def test_other_windows_are_blended_all_the_same(large):
    class Ones(nn.Module):
        def forward(self, x):
            return torch.cat([torch.zeros_like(x), torch.ones_like(x)], dim=1)

    predictor = large.windowed(Ones(), 1)
    label = large.labelled(predictor, torch.zeros(1, 16, 16, 40))
    assert predictor.calls == 4 and predictor.run == 1
    assert label[..., :8].all() and not label[..., -8:].any()  # the first window's answer, then zeros
