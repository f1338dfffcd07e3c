"""A tiny factory on a toy plan, and the run that the loop lends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from seguro.core.seeds import derive, generator
from seguro.core.types import UNKNOWN
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods.factory.config import PRESETS, FactoryConfig
from seguro.methods.factory.method import Factory, Slice
from seguro.networks import build

SPREAD = Spread(low=1, median=1, high=1)
PLAN = Plan(
    name="toy",
    dims=2,
    spacing=(1, 1, 1),
    unit="mm",
    channels=(Intensity(name="x", scheme="zscore"),),
    classes=UNKNOWN,
    patch=(16, 16),
    strides=((2, 2),),
    kernels=((3, 3), (3, 3)),
    batch=4,
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=0, shape=(6, 16, 12), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({},), volume_ml={}, present={},
    ),
    folds=(),
)  # fmt: skip


@dataclass
class Toy:
    """A factory and its run; `turn` does one update and says what was logged."""

    method: Factory
    run: LoopRun

    def turn(self, update: int) -> set[str]:
        self.run.update = update
        return set(self.method.update(self.batch(update), self.run))

    def batch(self, update: int) -> Slice:
        """Two noisy slices of the first domain."""
        rng = generator(0, "toy", update)
        n, size = 2, self.method.config.size
        return Slice(
            torch.from_numpy(rng.normal(size=(n, 1, size, size)).astype("float32")).clamp(-1, 1),
            torch.zeros(n, dtype=torch.long),
            torch.from_numpy(rng.integers(0, self.method.config.z_bins, n)),
        )


@pytest.fixture
def toy():
    """Make a factory with these settings over a preset smaller than tiny."""

    def make(**config: Any) -> Toy:
        torch.manual_seed(derive(0, "init"))
        fields = PRESETS["tiny"] | {"size": 8, "width": 4, "full": 4, "latent": 8} | config
        method = Factory(FactoryConfig.model_validate(fields), PLAN, build)
        return Toy(method, LoopRun(method, Runtime("cpu"), seed=0, batch=2, updates=100))

    return make
