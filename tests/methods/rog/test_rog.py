"""ROG's updates: what the noise does, how often the network is asked, and when it equals clean training."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from seguro.core.seeds import derive
from seguro.core.types import Classes
from seguro.data.plan import Fingerprint, Intensity, Plan, Spread
from seguro.engine.run import LoopRun
from seguro.engine.runtime import Runtime
from seguro.methods.patches import Labelled
from seguro.methods.rog.config import RogConfig
from seguro.methods.rog.method import Rog
from seguro.methods.rog.noise import Ball

CLASSES = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
SPREAD = Spread(low=1, median=1, high=1)
PLAN = Plan(
    name="toy",
    dims=2,
    spacing=(1, 1, 1),
    unit="mm",
    channels=tuple(Intensity(name=n, scheme="zscore") for n in "xy"),
    classes=CLASSES,
    patch=(12, 12),
    strides=(),
    kernels=((3, 3),),
    batch=2,
    fingerprint=Fingerprint(
        n_cases=1, n_labelled=1, shape=(1, 12, 12), spacing=(SPREAD,) * 3, extent=(SPREAD,) * 3,
        intensity=({}, {}), volume_ml={}, present={},
    ),
    folds=(),
)  # fmt: skip


def build(name: str, *, in_channels: int, classes: int, plan: Plan, **options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.SiLU(), nn.Conv2d(8, classes, 1)
    )


def batch(seed: int = 0, scale: float = 1.0) -> Labelled:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (2, 12, 12)).astype(np.uint8)
    image = (rng.normal(size=(2, 2, 12, 12)) * scale + label[:, None]).astype(np.float32)
    image[:, 1] *= 5  # channels of different range
    return Labelled(torch.from_numpy(image), torch.from_numpy(label), torch.ones(2, 2))


def made(precision: str = "32", seed: int = 0, **config: object) -> tuple[Rog, LoopRun]:
    torch.manual_seed(derive(seed, "init"))
    method = Rog(RogConfig(**config), PLAN, build)
    run = LoopRun(method, Runtime("cpu", precision), seed=seed, batch=2, updates=10)
    return method, run


def weights(method: Rog) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.modules.parameters()])


@pytest.mark.parametrize("length", [1.0, 0.5])
def test_after_one_batch_the_noise_is_there_and_inside_each_channels_ball(length):
    method, run = made(noise_step=length)
    data = batch()
    method.update(data, run)
    noise = method.state()["noise"]
    ball = Ball.around(data.image, 8 / 255)
    assert (noise.abs() <= ball.eps * (1 + 1e-6)).all()
    assert (noise.abs().amax((2, 3)) >= 0.99 * length * ball.eps[..., 0, 0]).all()
    assert ball.eps[:, 1].min() > 2 * ball.eps[:, 0].max()  # each channel by its own range


def test_one_replay_without_epsilon_is_clean_training_bit_for_bit():
    free, clean = made(replays=1, epsilon=0.0), made(adversary="none")
    for i in range(4):
        for method, run in (free, clean):
            run.update = i
            method.update(batch(i), run)
    assert torch.equal(weights(free[0]), weights(clean[0]))


@pytest.mark.parametrize(
    ("config", "backwards", "steps"),
    [
        ({"replays": 5}, 5, 5),
        ({"replays": 3}, 3, 3),
        ({"adversary": "pgd", "attack_steps": 4}, 5, 1),
        ({"adversary": "none"}, 1, 1),
        ({"clean": 1.0}, 1, 1),
    ],
)
def test_backward_passes_and_weight_steps_are_as_published(config, backwards, steps):
    method, run = made(**config)
    seen = {"forward": 0, "backward": 0, "step": 0}
    network = method.modules["network"]
    network.register_forward_hook(lambda *a: seen.__setitem__("forward", seen["forward"] + 1))
    network[-1].register_full_backward_hook(lambda *a: seen.__setitem__("backward", seen["backward"] + 1))
    step = run.step
    run.step = lambda *names: (seen.__setitem__("step", seen["step"] + 1), step(*names))[1]
    method.update(batch(), run)
    assert seen == {"forward": backwards, "backward": backwards, "step": steps}


def test_an_overflow_leaves_the_noise_as_it_was():
    method, run = made(precision="16-mixed")
    run.autocast = nullcontext  # the scale alone makes the overflow
    method.update(batch(), run)
    before, trained = method.state()["noise"].clone(), weights(method)
    run.scale = 1e45
    data = batch(1)
    method.update(data, run)
    assert torch.equal(weights(method), trained)
    assert torch.equal(method.state()["noise"], before)
    run.scale = 1.0
    method.update(data, run)
    assert torch.isfinite(method.state()["noise"]).all() and not torch.equal(weights(method), trained)


def test_a_gradient_that_is_not_finite_moves_no_noise():
    ball = Ball.around(batch().image, 0.1)
    noise = torch.full((2, 2, 12, 12), 0.01)
    gradient = torch.full_like(noise, torch.nan)
    gradient[..., 0] = torch.inf
    assert torch.equal(ball.step(noise, gradient, 1.0), noise)


def test_the_first_part_of_the_run_is_clean():
    method, run = made(clean=0.5)
    for run.update in range(5):
        assert "noise" not in method.update(batch(run.update), run)
    run.update = 5
    assert "noise" in method.update(batch(5), run)


def test_the_noise_is_restored():
    one, run = made()
    one.update(batch(), run)
    two, _ = made()
    two.load_state(one.state())
    two.modules.load_state_dict(one.modules.state_dict())
    assert torch.equal(one.state()["noise"], two.state()["noise"])
    assert two.state()["noise"] is not one.state()["noise"]


def test_the_papers_dice_gives_an_absent_class_no_gradient_and_the_smooth_one_does():
    data = batch()
    absent = Labelled(data.image, torch.zeros_like(data.label), data.annotated)
    grads = {}
    for kind in ("paper", "smooth"):
        method, _ = made(dice=kind)
        logits = torch.zeros(2, 3, 12, 12, requires_grad=True)
        from seguro.losses import soft_dice
        from seguro.methods.rog.method import PAPER_SMOOTH

        smooth = PAPER_SMOOTH if method.config.dice == "paper" else (1.0, 1.0)
        soft_dice(logits, absent.label, absent.annotated, CLASSES, smooth=smooth).backward()
        grads[kind] = logits.grad.abs().sum()
    assert grads["paper"] == 0 < grads["smooth"]


def test_epsilon_is_read_with_its_unit_and_refused_without():
    assert RogConfig(epsilon="8/255").epsilon == RogConfig(epsilon=8 / 255).epsilon
    assert RogConfig(epsilon="3%").epsilon == pytest.approx(0.03)
    with pytest.raises(ValidationError):
        RogConfig(epsilon=8)


def test_robust_selection_asks_for_the_robust_score():
    assert made(select="robust")[0].needs.monitor == "max:robust"
    assert made()[0].needs.monitor == Rog.needs.monitor == "max:dice"
