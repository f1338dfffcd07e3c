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


def trained(method: Rog, updates: int, stream: str) -> Rog:
    run = LoopRun(method, Runtime("cpu"), seed=0, batch=BATCH, updates=updates)
    for run.update in range(updates):
        image, label = pictures(BATCH, stream, run.update)
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_free_training_is_more_robust_than_its_start_and_than_clean_training(seed):
    def made(**config: object) -> Rog:
        torch.manual_seed(derive(seed, "init"))
        return Rog(RogConfig(schedule="constant", epsilon=EPSILON, **config), PLAN, build)

    start = trained(made(adversary="none"), 1000, f"start {seed}")
    weights = {k: v.clone() for k, v in start.modules.state_dict().items()}
    clean, free = made(adversary="none"), made(adversary="free", replays=5)
    for method, updates in ((clean, 1500), (free, 300)):
        method.modules.load_state_dict(weights)
        trained(method, updates, f"more {seed}")
    before, other, robust = dice(start, seed), dice(clean, seed), dice(free, seed)
    told = f"start {before}, clean {other}, free {robust}"
    assert robust[1] >= max(before[1], other[1]) + 0.05, told
    assert robust[0] >= before[0] - 0.05, told
