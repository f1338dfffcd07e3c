"""What the tests of PFSeg share: a plan, volumes with a bright irregular lesion, a method in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from seguro.core.seeds import derive, generator
from seguro.core.types import Classes, Three
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods.pfseg.config import PfsegConfig
from seguro.methods.pfseg.method import Pfseg
from seguro.methods.pfseg.sample import WholeVolume
from seguro.networks import build

LESION = Classes(names=("background", "lesion"), values=((0,), (1,)))
SMALL: dict[str, Any] = {"width": 4, "tail_width": 4, "pool": 4}


def spread(median: float) -> Spread:
    return Spread(low=median, median=median, high=median)


def plan_of(shape: Three = (32, 32, 64), classes: Classes = LESION, channels: int = 1, **more: Any) -> Plan:
    spacing = more.pop("spacing", (1.0, 1.0, 1.0))
    return Plan(
        name="toy",
        dims=3,
        spacing=spacing,
        unit="mm",
        channels=tuple(Intensity(name=f"c{i}", scheme="zscore") for i in range(channels)),
        classes=classes,
        patch=more.pop("patch", (64, 64, 64)),
        strides=((2, 2, 2),),
        kernels=((3, 3, 3),) * 2,
        batch=2,
        fingerprint=Fingerprint(
            n_cases=2, n_labelled=2, shape=shape, spacing=tuple(spread(s) for s in spacing),
            extent=tuple(spread(n * s) for n, s in zip(shape, spacing, strict=True)),
            intensity=({},) * channels,
            volume_ml={n: spread(0.03 * float(np.prod(shape)) / 1000) for n in classes.foreground},
            present=dict.fromkeys(classes.foreground, 2),
        ),
        folds=(),
        **more,
    )  # fmt: skip


def lesion(seed: int, shape: Three) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with texture, a bright irregular lesion with satellites, and a smooth body as bright.

    No threshold tells the lesion from that body, which stands for a ventricle.

    Returns:
        image (1, *shape), label (*shape).
    """
    rng = generator(seed, "lesion")
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 2.0)
    brain = ball(at, (0.0, 0.0, 0.0)) < 0.9
    side = rng.choice([-1.0, 1.0])
    middle = np.array([*rng.uniform(-0.1, 0.1, 2), 0.35 * side])
    bumps = 2 * ndimage.gaussian_filter(rng.normal(size=shape), 3.0)
    label = ball(at, middle) * (1 + bumps) < 0.14
    for _ in range(rng.integers(1, 3)):
        away = np.array([*rng.choice([-1.0, 1.0], 2), rng.uniform(-1, 0) * side])
        label |= ball(at, middle + 0.42 * away) < 0.02
    ventricle = ball(at, (0.0, 0.0, -0.4 * side), (0.35, 0.45, 0.25)) < 1
    bright = 0.4 * (label | ventricle)
    image = ndimage.gaussian_filter(brain * (1 + texture) + bright, 0.6) + rng.normal(0, 0.03, shape)
    return image[None].astype(np.float32), (label & brain).astype(np.uint8)


def ball(at: np.ndarray, middle: Sequence[float], radius: Sequence[float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """The squared distance of places (3, *shape) from `middle`, each axis in units of `radius`."""
    parts = [((x - m) / r) ** 2 for x, m, r in zip(at, middle, radius, strict=True)]
    return np.sum(parts, axis=0)


def batch_of(shape: Three = (32, 32, 64), n: int = 2, crops: int = 1) -> WholeVolume:
    """n lesions as a batch of tensors."""
    pairs = [lesion(i, shape) for i in range(n)]
    return WholeVolume(
        torch.from_numpy(np.stack([i for i, _ in pairs])),
        torch.from_numpy(np.stack([k for _, k in pairs])),
        torch.ones(n, 1),
        torch.from_numpy(np.random.default_rng(0).random((n, crops, 3), dtype=np.float32)),
    )


def made(plan: Plan | None = None, seed: int = 0, **config: Any) -> tuple[Pfseg, LoopRun]:
    """A method with its optimizer."""
    torch.manual_seed(derive(seed, "init"))
    method = Pfseg(PfsegConfig(**(SMALL | config)), plan or plan_of(), build)
    return method, LoopRun(method, Runtime("cpu", "32"), seed=seed, batch=2, updates=150)


@pytest.fixture(name="plan_of")
def _plan_of():
    return plan_of


@pytest.fixture(name="batch_of")
def _batch_of():
    return batch_of


@pytest.fixture(name="made")
def _made():
    return made
