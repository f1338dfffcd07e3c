"""Auto-PGD: closed forms, ball and box, monotone bests, more is not weaker, independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from seguro.attacks.apgd import APGD, SEA_RADII, _Climb, checkpoints
from seguro.attacks.pgd import Noise
from seguro.attacks.threat import SLACK, Threat
from seguro.attacks.victim import Found, Truth, Victim, frozen
from seguro.core.errors import ConfigError
from seguro.core.types import IGNORE, Classes

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

EPS = 8 / 255
TOY = pytest.mark.parametrize("toy", ["flat3", "solid2"])
TWO = Classes(names=("background", "a"), values=((0,), (1,)))


def attack(nets, attacker, eps: float = EPS) -> Found:
    """Attack the images of `nets` with a fresh victim."""
    return attacker(nets.victim(), nets.x, nets.threat(eps), nets.seeds)


@pytest.fixture
def nets(request, toy):
    """The toy by its name."""
    return request.getfixturevalue(toy)


@TOY
@pytest.mark.parametrize(
    "objective", ["ce", "balanced-masked-ce", "margin", "dice", "cospgd", "segpgd", "js"]
)
def test_stays_in_ball_and_box_and_lowers_dice(nets, objective) -> None:
    """C1. Each channel in its own ball and box, which differ between channels and samples."""
    found, threat = attack(nets, APGD(objective, steps=5)), nets.threat(EPS)
    change = (found.x - nets.x).abs().flatten(2).amax(2)
    width = threat.high - threat.low
    assert bool((change <= threat.eps + SLACK * width).all())
    assert bool((found.x.flatten(2).amin(2) >= threat.low).all())
    assert bool((found.x.flatten(2).amax(2) <= threat.high).all())
    assert float(found.score.mean()) < float(attack(nets, Noise()).score.mean()) - 0.01


@TOY
def test_lowers_dice_where_noise_does_not(nets) -> None:
    """C2."""
    clean = nets.victim().score(nets.net(nets.x)).mean()
    eps = 16 / 255 if nets.x.ndim == 4 else EPS
    assert float(clean - attack(nets, Noise(draws=1), eps).score.mean()) <= 0.03
    assert float(clean - attack(nets, APGD("dice", steps=20), eps).score.mean()) >= 0.20


@TOY
@pytest.mark.parametrize("restarts", [1, 2])
def test_best_objective_never_falls_and_the_score_is_attained(nets, restarts) -> None:
    """C3."""
    found = attack(nets, APGD("dice", steps=12, restarts=restarts))
    assert found.trace.shape == (12 * restarts, len(nets.x))
    assert bool((found.trace.diff(dim=0) >= 0).all()) and bool((found.trace[-1] > found.trace[0]).all())
    victim = nets.victim()
    torch.testing.assert_close(victim.score(victim.logits(found.x)), found.score, rtol=0, atol=1e-5)
    torch.testing.assert_close(victim.class_dice(victim.logits(found.x)), found.dice, rtol=0, atol=1e-5)
    assert bool((found.lowest <= found.dice).all())


@TOY
def test_calls_are_what_the_settings_say(nets) -> None:
    """A gradient per step and restart; forwards besides: the clean image and the last point of each."""
    found, n = attack(nets, APGD("ce", steps=5, restarts=3)), len(nets.x)
    assert (found.backwards, found.forwards) == (15 * n, (15 + 3 + 1) * n)


@TOY
def test_more_is_not_weaker(nets) -> None:
    """C4."""
    few, many = (float(attack(nets, APGD("dice", steps=s)).score.mean()) for s in (5, 20))
    assert many <= few + 0.01
    one, three = (attack(nets, APGD("dice", steps=5, restarts=r)).score for r in (1, 3))
    assert bool((three <= one).all())
    scores = [float(attack(nets, APGD("dice", steps=10), e / 255).score.mean()) for e in (0, 2, 4, 8, 16)]
    assert all(b <= a + 0.01 for a, b in pairwise(scores))


@TOY
@pytest.mark.parametrize("objective", ["dice", "tversky"])
def test_overlap_beats_cross_entropy_with_half_the_calls(nets, objective) -> None:
    """At equal gradient calls it leaves a lower Dice by .01, and with half of them none higher."""
    published = float(attack(nets, APGD("ce", steps=20)).score.mean())
    assert float(attack(nets, APGD(objective, steps=20)).score.mean()) <= published - 0.01
    assert float(attack(nets, APGD(objective, steps=10)).score.mean()) <= published


@TOY
def test_the_whole_range_leaves_nothing(nets) -> None:
    """C4: otherwise gradients are masked or the attack is broken."""
    assert float(attack(nets, APGD("dice", steps=20), 1.0).score.mean()) <= 0.05


@TOY
def test_no_change_allowed_leaves_the_clean_image(nets) -> None:
    found = attack(nets, APGD("dice", steps=3), 0.0)
    torch.testing.assert_close(found.x, nets.x, rtol=0, atol=0)


@TOY
def test_same_seed_same_result_and_nothing_else_touched(nets) -> None:
    """C8."""
    before, parameters = torch.random.get_rng_state(), [p.clone() for p in nets.net.parameters()]
    nets.net.train().requires_grad_(True)
    try:
        with frozen(nets.net):
            first = attack(nets, APGD("dice", steps=4, restarts=2))
            second = attack(nets, APGD("dice", steps=4, restarts=2))
        assert all(m.training for m in nets.net.modules())
        assert all(p.requires_grad and p.grad is None for p in nets.net.parameters())
    finally:
        nets.net.eval().requires_grad_(False)
    assert torch.equal(first.x, second.x) and torch.equal(first.trace, second.trace)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(parameters, nets.net.parameters(), strict=True))
    other = APGD("dice", steps=4)(nets.victim(), nets.x, nets.threat(EPS), [s + 1 for s in nets.seeds])
    assert not torch.equal(first.x, other.x)


@TOY
def test_a_sample_does_not_depend_on_its_batch(nets) -> None:
    """C9: alone and in another order."""
    together = attack(nets, APGD("dice", steps=10))
    for i in (0, len(nets.x) - 1):
        alone = attack_part(nets.select([i]), nets, [i])
        torch.testing.assert_close(alone.score, together.score[[i]], rtol=0, atol=1e-5)
    order = list(reversed(range(len(nets.x))))
    torch.testing.assert_close(
        attack_part(nets.select(order), nets, order).score, together.score[order], rtol=0, atol=1e-5
    )


def attack_part(part, nets, index: list[int]) -> Found:
    """Attack some of the samples."""
    threat = nets.threat(EPS).select(torch.tensor(index))
    return APGD("dice", steps=10)(part.victim(), part.x, threat, part.seeds)


class Linear(nn.Module):
    """Logits (0, w * x + b summed over channels) at each voxel: every gradient has the sign of w."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> (N, 2, *size)."""
        a = (x * self.weight.reshape(-1, *[1] * (x.ndim - 2))).sum(1, keepdim=True) + self.bias
        return torch.cat([torch.zeros_like(a), a], 1)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 2)], ids=["2d", "3d"])
def test_linear_model_is_driven_to_the_corner(size) -> None:
    """The highest cross entropy of a linear model is at the corner of the ball, cut off by the box."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 2, *size, generator=generator)
    label = torch.ones(2, *size, dtype=torch.uint8)
    weight = torch.tensor([1.0, -2.0])
    threat = Threat(torch.tensor([[0.1, 0.3]] * 2), torch.zeros(2, 2), torch.ones(2, 2))
    victim = Victim(Linear(weight, 0.0), Truth(label, torch.ones(2, 1), TWO))
    clean, sign = x, -weight.sign().reshape(1, 2, *[1] * len(size))
    corner = threat.project(clean + threat.spread(threat.eps, x) * sign, clean)
    best = victim.ascend(corner, lambda logits, t, p: -logits[:, 1].flatten(1).sum(1), 0)[0]
    climb = _Climb(clean, threat, clean)
    for _ in range(2):
        value, gradient, _ = victim.ascend(climb.at, lambda logits, t, p: -logits[:, 1].flatten(1).sum(1), 0)
        climb.record(value, gradient)
        climb.move()
    torch.testing.assert_close(climb.at, corner)
    assert bool((value <= best + 1e-5).all())


def test_checkpoints_are_those_of_the_paper() -> None:
    """100 steps: the intervals of the published rule."""
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(100))[:4] == [22, 41, 57, 70]
    assert set(checkpoints(5).values()) == {1}
    assert list(checkpoints(20).items())[:4] == [(4, 4), (7, 3), (9, 2), (10, 1)]  # the docstring's example


def test_step_halves_per_sample_and_never_grows() -> None:
    """Sample 0 always rises and keeps its step; sample 1 never does and halves at every checkpoint."""
    x = torch.zeros(2, 1, 2, 2)
    threat = Threat(torch.ones(2, 1), -torch.ones(2, 1), torch.ones(2, 1))
    climb, steps = _Climb(x, threat, x), []
    for i in range(9):
        climb.record(torch.tensor([float(i), -float(i)]), torch.ones_like(x))
        if i and i % 4 == 0:
            climb.reconsider(4)
        steps.append(climb.step.clone())
        climb.move()
    steps = torch.stack(steps)
    assert steps[:, 0].tolist() == [2.0] * 9
    assert steps[:, 1].tolist() == [2.0] * 4 + [1.0] * 4 + [0.5]
    torch.testing.assert_close(climb.best, torch.tensor([8.0, 0.0]))


def test_a_halved_sample_goes_back_to_its_best_point() -> None:
    x = torch.zeros(1, 1, 1, 2)
    threat = Threat(torch.ones(1, 1), -torch.ones(1, 1), torch.ones(1, 1))
    climb = _Climb(x, threat, torch.full_like(x, 0.25))
    climb.record(torch.tensor([1.0]), torch.tensor([[[[1.0, -1.0]]]]))
    climb.move()
    climb.record(torch.tensor([0.0]), torch.zeros_like(x))
    climb.reconsider(1)
    assert torch.equal(climb.at, torch.full_like(x, 0.25))
    assert torch.equal(climb.gradient, torch.tensor([[[[1.0, -1.0]]]]))


@TOY
def test_radius_schedule_counts_only_the_last_ball(nets) -> None:
    """All calls are spent, nothing from a larger ball is returned, and the trace is of the last ball."""
    found = attack(nets, APGD("dice", steps=10, radii=SEA_RADII))
    assert found.backwards == 10 * len(nets.x) and len(found.trace) == 4
    change = (found.x - nets.x).abs().flatten(2).amax(2)
    assert bool((change <= nets.threat(EPS).eps * (1 + 1e-5)).all())
    assert float(found.score.mean()) < float(attack(nets, Noise()).score.mean()) - 0.01


class Quantised(nn.Module):
    """A network behind a hard quantiser: its gradients are zero, its outputs nearly the same."""

    def __init__(self, net: nn.Module, step: float) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: Tensor) -> Tensor:
        """Round the image, keeping it in the graph."""
        return self.net(torch.round(x / self.step) * self.step)


@TOY
def test_masked_gradients_are_flagged(nets) -> None:
    """C12: of a quantiser yes, of the network itself no."""
    masked = Victim(Quantised(nets.net, 0.1), nets.truth)
    found = APGD("ce", steps=4)(masked, nets.x, nets.threat(EPS), nets.seeds)
    assert all("zero gradient" in flags for flags in found.flags)
    assert attack(nets, APGD("ce", steps=4)).flags == ((),) * len(nets.x)


def test_a_finished_sample_is_not_flagged(flat3) -> None:
    """Once all is wrong a masked objective has no gradient left; that is success, not masking."""
    found = attack(flat3, APGD("masked-ce", steps=20), 1.0)
    assert float(found.score.max()) < 0.2
    assert not any("zero gradient" in flags for flags in found.flags)


class BreaksDown(nn.Module):
    """Returns NaN for sample 0 as soon as it is changed by more than a little."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.x = net, x

    def forward(self, x: Tensor) -> Tensor:
        """NaN in the logits of the first sample once it has moved."""
        logits, moved = self.net(x), (x - self.x).detach().abs().flatten(1).amax(1) > 1e-3
        moved[1:] = False
        return torch.where(moved.reshape(-1, *[1] * (x.ndim - 1)), torch.nan, 1.0) * logits


@TOY
def test_nan_during_the_attack_is_flagged_and_does_not_win(nets) -> None:
    victim = Victim(BreaksDown(nets.net, nets.x), nets.truth)
    found = APGD("dice", steps=4)(victim, nets.x, nets.threat(EPS), nets.seeds)
    assert "nan" in found.flags[0] and not any("nan" in f for f in found.flags[1:])
    assert torch.equal(found.x[0], nets.x[0]) and bool(torch.isfinite(found.x).all())
    normal = attack(nets, APGD("dice", steps=4))
    torch.testing.assert_close(found.score[1:], normal.score[1:], rtol=0, atol=1e-5)


@TOY
def test_an_image_outside_its_box_is_refused(nets) -> None:
    threat = nets.threat(EPS)
    narrow = replace(threat, low=torch.zeros_like(threat.low), high=torch.ones_like(threat.high))
    with pytest.raises(ConfigError, match="outside the box"):
        APGD("ce", steps=2)(nets.victim(), nets.x, narrow, nets.seeds)


@TOY
def test_a_model_without_gradients_is_refused(nets) -> None:
    victim = Victim(lambda x: nets.net(x.detach()), nets.truth)
    with pytest.raises(ConfigError, match="no gradient"):
        APGD("ce", steps=2)(victim, nets.x, nets.threat(EPS), nets.seeds)


def test_dlr_refuses_two_classes(solid2) -> None:
    with pytest.raises(ConfigError, match="margin"):
        attack(solid2, APGD("dlr", steps=2))


def test_empty_foreground_ignored_voxels_and_unknown_classes(flat3) -> None:
    """C9: an empty case is attacked by false alarms; an ignored or unknown case has nothing to lose."""
    label = torch.zeros_like(flat3.label)
    label[1] = IGNORE
    annotated = torch.ones(len(label), 2)
    annotated[2] = 0
    victim = Victim(flat3.net, Truth(label, annotated, flat3.classes))
    quiet = torch.full_like(flat3.x, 0.0)
    threat = Threat(
        torch.full((len(label), 2), 1.5), torch.full((len(label), 2), -4.0), torch.full((6, 2), 4.0)
    )
    found = APGD("dice", steps=5)(victim, quiet, threat, flat3.seeds)
    assert float(found.score[0]) < 1 and float(found.score[1]) == float(found.score[2]) == 1
    assert bool(found.dice[2].isnan().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "cross-entropy"}, "expected one of"),
        ({"steps": 0}, "at least 1 step"),
        ({"restarts": 0}, "one restart"),
        ({"steps": 2, "radii": SEA_RADII}, "at least 3 steps"),
        ({"radii": (1.0, 1.5, 2.0)}, "must fall to 1"),
    ],
)
def test_senseless_settings_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        APGD(**settings)


def test_names() -> None:
    assert (APGD().name, APGD("dice").name, APGD("dice", name="mine").name) == (
        "apgd-ce",
        "apgd-dice",
        "mine",
    )
    assert replace(APGD("dice"), steps=40).name == "apgd-dice"
