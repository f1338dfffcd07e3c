"""What Free adversarial training is for: robust Dice against a clean fine-tune of equal updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seguro.attacks.pgd import PGD
from seguro.attacks.threat import Epsilon, threat_of
from seguro.attacks.victim import Truth, Victim
from seguro.core.seeds import derive, generator
from seguro.core.types import Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods.patches import Labelled
from seguro.methods.rog.config import RogConfig
from seguro.methods.rog.method import Rog
from seguro.methods.rog.noise import Ball

SIZE, BATCH, EPSILON = 32, 8, 8 / 255
CLASSES = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
SPREAD = Spread(low=1, median=1, high=1)
PLAN = Plan(
    name="toy", dims=2, spacing=(1, 1, 1), unit="mm", channels=(Intensity(name="x", scheme="zscore"),),
    classes=CLASSES, patch=(SIZE, SIZE), strides=(), kernels=((3, 3),), batch=BATCH, folds=(),
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=1, shape=(1, SIZE, SIZE), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({},), volume_ml={}, present={},
    ),
)  # fmt: skip


def build(name: str, *, in_channels: int, classes: int, plan: Plan) -> nn.Module:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.InstanceNorm2d(b, affine=True), nn.SiLU()]

    return nn.Sequential(*layer(in_channels, 16), *layer(16, 16), nn.Conv2d(16, classes, 1))


def pictures(n: int, *key: int | str) -> tuple[Tensor, Tensor]:
    """Return (n, 1, SIZE, SIZE) images in [0, 1] of two faint disks in smooth noise, and their labels."""
    from scipy import ndimage

    rng = generator(0, *key)
    at = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"))
    images, labels = np.empty((n, 1, SIZE, SIZE), np.float32), np.zeros((n, SIZE, SIZE), np.uint8)
    for i in range(n):
        for value in (1, 2):
            middle, radius = rng.uniform(8, SIZE - 8, (2, 1, 1)), rng.uniform(4, 7)
            labels[i][((at - middle) ** 2).sum(0) < radius**2] = value
        texture = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.5) * 0.35
        shade = np.array([0.4, 0.55, 0.7])[labels[i]]
        images[i, 0] = np.clip(shade + texture + rng.normal(0, 0.02, (SIZE, SIZE)), 0, 1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def trained(method: Rog, updates: int, stream: str, times: int = 1) -> Rog:
    """Train on fresh pictures, the same ones for `times` updates in a row."""
    run = LoopRun(method, Runtime("cpu"), seed=0, batch=BATCH, updates=updates)
    for run.update in range(updates):
        image, label = pictures(BATCH, stream, run.update // times)
        method.update(Labelled(image, label, torch.ones(BATCH, 2)), run)
    return method


def dice(method: Rog, seed: int) -> tuple[float, float]:
    """Return clean Dice and Dice under PGD-20 on soft Dice over 32 held-out pictures."""
    image, label = pictures(32, "held out", seed)
    net = method.modules["network"].eval()
    victim = Victim(net, Truth(label, torch.ones(32, 2), CLASSES))
    threat = threat_of(image, Epsilon(EPSILON, "range"), PLAN)
    found = PGD("dice", steps=20)(victim, image, threat, list(range(32)))
    return float(victim.score(victim.logits(image)).mean()), float(found.score.mean())


def released(ball: Ball, noise: Tensor, gradient: Tensor, length: float) -> Tensor:
    """The last published step: half an epsilon rounded down, which is nothing for any epsilon below two."""
    moved = noise + (ball.eps / 2).floor() * gradient.sign()
    return torch.minimum(torch.maximum(moved, -ball.eps), ball.eps)


def passes(start: tuple[float, float], clean: tuple[float, float], arm: tuple[float, float]) -> bool:
    """The gate: more robust than both by 0.05, and clean Dice within 0.05 of the start (clean, attacked)."""
    return arm[1] >= max(start[1], clean[1]) + 0.05 and arm[0] >= start[0] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_free_training_passes_the_gate_that_replays_without_a_step_fail(seed, monkeypatch):
    """Against the start and a clean fine-tune of equal updates on the same pictures, brief D5.

    All arms see the pictures five times in a row: what replays alone do is not to count as robustness.
    """

    def made(**config: object) -> Rog:
        torch.manual_seed(derive(seed, "init"))
        return Rog(RogConfig(schedule="constant", epsilon=EPSILON, **config), PLAN, build)

    start = trained(made(adversary="none"), 1000, f"start {seed}")
    weights = {k: v.clone() for k, v in start.modules.state_dict().items()}
    clean, free = made(adversary="none"), made(adversary="free", replays=5)
    still = made(adversary="free", replays=5)
    for method in (clean, free, still):
        method.modules.load_state_dict(weights)
    trained(clean, 1500, f"more {seed}", times=5)
    trained(free, 300, f"more {seed}")
    monkeypatch.setattr(Ball, "step", released)
    trained(still, 300, f"more {seed}")
    assert bool((still.state()["noise"] == 0).all()) and bool((free.state()["noise"] != 0).any())
    before, other, robust, unmoved = (dice(m, seed) for m in (start, clean, free, still))
    told = f"start {before}, clean {other}, free {robust}, without a step {unmoved}"
    assert passes(before, other, robust), told
    assert not passes(before, other, unmoved), told
    assert unmoved == pytest.approx(other, abs=0.01), told  # it is the clean fine-tune, whatever its name
