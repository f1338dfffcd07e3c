"""Small plans, cases and supports for the few-shot method."""

from __future__ import annotations

from pathlib import Path

import pytest

from seguro import api
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases
from seguro.data.superpixels import compute
from seguro.methods.alpnet.config import PRESETS, AlpnetConfig


@pytest.fixture(scope="session")
def stacks(tmp_path_factory):
    """(store, manifest, plan) of six volumes planned slice by slice."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("alpnet")
    data = phantom.write_msd(
        folder / "data", n_labelled=6, n_test=0, shape=(6, 40, 48), spacing=(8.0, 1.0, 1.0), seed=3
    )
    options = PlanOptions(dims=2, memory_gib=0.01, batch=2)
    store = api.prepare(data, out=folder / "w", options=options)
    _, manifest, plan = api.plan(data, out=folder / "w")
    return store, manifest, plan


@pytest.fixture(scope="session")
def config() -> AlpnetConfig:
    return AlpnetConfig.model_validate(PRESETS["tiny"])


@pytest.fixture
def cases_of(stacks):
    """Opens the training cases with their labels hidden and the superpixels of a config computed."""

    def opened(config: AlpnetConfig, store: Path | None = None) -> Cases:
        folder, manifest, plan = stacks
        found = Cases(
            store or folder,
            manifest.of("train"),
            plan.classes,
            hide_labels=True,
            regions=config.superpixels,
        )
        compute(found, config.superpixels, axis=plan.slice_axis)
        return found

    return opened
