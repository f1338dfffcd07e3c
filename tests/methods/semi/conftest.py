"""A toy plan, network and batch for semi-supervised methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seguro.core.seeds import derive
from seguro.core.types import IGNORE, Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods import get
from seguro.methods.streams import TwoStream
from seguro.networks.unet import UNet

SPREAD = Spread(low=1, median=1, high=1)
PLAN = Plan(
    name="toy",
    dims=2,
    spacing=(1, 1, 1),
    unit="mm",
    channels=(Intensity(name="x", scheme="zscore"),),
    classes=Classes(names=("background", "a", "b"), values=((0,), (1,), (2,))),
    patch=(12, 12),
    strides=((2, 2),),
    kernels=((3, 3), (3, 3)),
    batch=4,
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=1, shape=(1, 12, 12), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({},), volume_ml={}, present={},
    ),
    folds=(),
)  # fmt: skip


def build(name: str, *, in_channels: int, classes: int, plan: Plan, **options: Any) -> nn.Module:
    return UNet(in_channels=in_channels, classes=classes, strides=plan.strides, kernels=plan.kernels, width=4)


def make_batch(n: int, seed: int = 0, views: int = 2) -> TwoStream:
    """Even rows are labelled, as the slots are."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, 1, 12, 12)).astype(np.float32)
    label = rng.integers(0, 3, (n, 12, 12)).astype(np.uint8)
    label[1::2] = IGNORE
    labelled = (np.arange(n) % 2 == 0).astype(np.float32)
    more = image[:, None] + 0.1 * rng.normal(size=(n, views, 1, 12, 12)).astype(np.float32)
    parts = (image, more, label, np.repeat(labelled[:, None], 2, 1), labelled)
    return TwoStream(*(torch.from_numpy(p) for p in parts))


@dataclass
class Toy:
    """A method on the toy plan, and what the loop lends it."""

    method: Any
    run: LoopRun

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.method.modules.parameters()])


@pytest.fixture
def toy():
    """Make a method by name with these settings."""

    def make(
        name: str, *, updates: int = 100, batch: int = 4, classes: Classes = PLAN.classes, **config: Any
    ) -> Toy:
        torch.manual_seed(derive(0, "init"))
        kind = get(name)
        method = kind(kind.Config(**config), PLAN.model_copy(update={"classes": classes}), build)
        return Toy(method, LoopRun(method, Runtime("cpu"), seed=0, batch=batch, updates=updates))

    return make


@pytest.fixture
def batch():
    """Make a batch of `n` rows, even ones labelled."""
    return make_batch
