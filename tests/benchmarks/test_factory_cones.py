"""benchmarks/factory_cones.py: what it counts is there in real slices."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def cones(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("factory_cones")


def test_cones_shrink_along_the_slices_at_every_site(cones):
    position = np.tile(np.arange(cones.SLICES), 4)
    for site in cones.SITES:
        real = np.concatenate([cones.cone(site, i) for i in range(4)])[:, None]
        assert cones.shrinking(site, real, position, real) > 0.85
        assert cones.shrinking(site, real[::-1], position, real) < -0.85
