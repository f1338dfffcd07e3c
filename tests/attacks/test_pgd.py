"""PGD and the noise control: the closed form of one step, momentum, ball and box, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seguro.attacks.pgd import PGD, Noise, _unit, falling
from seguro.attacks.threat import SLACK, Threat
from seguro.attacks.victim import Truth, Victim
from seguro.core.errors import ConfigError
from seguro.core.types import Classes

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

TWO = Classes(names=("background", "a"), values=((0,), (1,)))
EPS = 8 / 255
TOY = pytest.mark.parametrize("toy", ["flat3", "solid2"])


@pytest.fixture
def nets(request, toy):
    """The toy by its name."""
    return request.getfixturevalue(toy)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 2)], ids=["2d", "3d"])
@pytest.mark.parametrize("objective", ["ce", "margin", "dice", "masked-ce", "js"])
def test_one_step_on_a_linear_model_is_the_closed_form(size, objective) -> None:
    """C10: x + epsilon * sign(gradient) exactly, cut off by the box; the sign is known by hand.

    Every voxel is "a" with a score of weight . x + 0.1 > 0; to be wrong it must fall against the weight.
    """
    weight = torch.tensor([1.0, -2.0])
    shape = (1, 2, *[1] * len(size))

    def linear(x: Tensor) -> Tensor:
        a = (x * weight.reshape(shape)).sum(1, keepdim=True) + 0.1
        return torch.cat([torch.zeros_like(a), a], 1)

    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2, 2, *size, generator=generator) * torch.tensor([1.0, 0.3]).reshape(shape)
    x[:, 0] = 0.7 + 0.3 * x[:, 0]
    truth = Truth(torch.ones(2, *size, dtype=torch.uint8), torch.ones(2, 1), TWO)
    threat = Threat(torch.tensor([[0.9, 0.5], [0.2, 0.4]]), torch.zeros(2, 2), torch.ones(2, 2))
    found = PGD(objective, steps=1, step=1.0, start="clean")(Victim(linear, truth), x, threat, [0, 1])
    signs = -weight.sign().reshape(shape)
    expected = (x + threat.eps.reshape(2, 2, *[1] * len(size)) * signs).clamp(0, 1)
    assert torch.equal(found.x, expected)
    assert (found.backwards, found.forwards) == (2, 6)


@TOY
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stays_in_ball_and_box_and_lowers_dice(nets, momentum) -> None:
    threat = nets.threat(EPS)
    found = PGD("dice", steps=8, momentum=momentum)(nets.victim(), nets.x, threat, nets.seeds)
    change = (found.x - nets.x).abs().flatten(2).amax(2)
    assert bool((change <= threat.eps + SLACK * (threat.high - threat.low)).all())
    assert bool((found.x.flatten(2).amin(2) >= threat.low).all())
    assert bool((found.x.flatten(2).amax(2) <= threat.high).all())
    noise = Noise()(nets.victim(), nets.x, threat, nets.seeds)
    assert float(found.score.mean()) < float(noise.score.mean()) - 0.05
    assert bool((found.trace.diff(dim=0) >= 0).all())


@TOY
def test_restarts_only_help_and_seeds_decide(nets) -> None:
    threat = nets.threat(EPS)
    one = PGD("ce", steps=3)(nets.victim(), nets.x, threat, nets.seeds)
    again = PGD("ce", steps=3)(nets.victim(), nets.x, threat, nets.seeds)
    more = PGD("ce", steps=3, restarts=3)(nets.victim(), nets.x, threat, nets.seeds)
    assert torch.equal(one.x, again.x) and bool((more.score <= one.score).all())
    assert more.backwards == 3 * one.backwards


def test_momentum_carries_on_against_the_last_gradient() -> None:
    """A gradient of +1, then one of -1: with momentum 2 the second step goes on, without it goes back."""
    x = torch.zeros(1, 1, 1, 1)
    truth = Truth(torch.ones(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1), TWO)
    threat = Threat(torch.ones(1, 1), -torch.ones(1, 1), torch.ones(1, 1))
    visited: list[float] = []

    def peaked(z: Tensor) -> Tensor:
        """Cross entropy rises up to z = .1 and falls after; every point visited is noted."""
        visited.append(float(z.detach()))
        a = (z - 0.1).abs()
        return torch.cat([torch.zeros_like(a), a], 1)

    for momentum, last in ((0.0, 0.0), (2.0, 0.5)):
        visited.clear()
        PGD("ce", steps=2, step=0.25, momentum=momentum, start="clean")(Victim(peaked, truth), x, threat, [0])
        assert visited == pytest.approx([0.0, 0.0, 0.25, last])


def test_the_step_falls_linearly_from_twice_epsilon() -> None:
    """On a slope that never ends: cut off by the ball at once; in a wide one .2, .15, .1 and .05."""
    x = torch.zeros(1, 1, 1, 1)
    truth = Truth(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1), TWO)
    visited: list[float] = []

    def slope(z: Tensor) -> Tensor:
        visited.append(float(z.detach()))
        return torch.cat([torch.zeros_like(z), z], 1)

    threat = Threat(torch.ones(1, 1), -torch.ones(1, 1), torch.ones(1, 1))
    falling("ce", 4, 1)(Victim(slope, truth), x, threat.scaled(0.1), [0])
    assert visited == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.1, 0.1])
    visited.clear()
    PGD("ce", 4, 1, 0.2, "linear", start="clean")(Victim(slope, truth), x, threat, [0])
    assert visited == pytest.approx([0.0, 0.0, 0.2, 0.35, 0.45, 0.5])


@TOY
def test_restarts_of_a_search_from_the_image_are_random(nets) -> None:
    """The first is that of one search alone; further ones begin elsewhere, by the seed."""
    threat = nets.threat(EPS)
    one = falling("balanced-margin", 3, 1)(nets.victim(), nets.x, threat, nets.seeds)
    two = falling("balanced-margin", 3, 2)(nets.victim(), nets.x, threat, nets.seeds)
    again = falling("balanced-margin", 3, 2)(nets.victim(), nets.x, threat, nets.seeds)
    assert torch.equal(two.trace[:3], one.trace) and torch.equal(two.x, again.x)
    assert bool((two.score <= one.score).all()) and two.backwards == 2 * one.backwards


def test_gradients_are_scaled_for_momentum() -> None:
    gradient = torch.tensor([[[[3.0, -1.0]]], [[[0.0, 0.0]]]])
    assert _unit(gradient).tolist() == [[[[1.5, -0.5]]], [[[0.0, 0.0]]]]


@TOY
def test_noise_is_at_full_size_and_asks_for_no_gradient(nets) -> None:
    """Each value lies at +-epsilon or at the box; counted by a model that keeps what it was asked."""
    asked: list[Tensor] = []
    victim = Victim(lambda x: (asked.append(x), nets.net(x))[1], nets.truth)
    threat = nets.threat(EPS)
    found = Noise(draws=2)(victim, nets.x, threat, nets.seeds)
    assert (found.forwards, found.backwards) == (3 * len(nets.x), 0)
    for tried in asked[1:]:
        size, low, high = (threat.spread(v, tried) for v in (threat.eps, threat.low, threat.high))
        corner = (tried - nets.x).abs().isclose(size, rtol=1e-4)
        assert bool((corner | (tried == low) | (tried == high)).all())
        assert 0.4 < float((tried > nets.x).float().mean()) < 0.6
    assert not torch.equal(asked[1], asked[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"step": 0.0}, "above 0"),
        ({"momentum": -1.0}, "momentum"),
        ({"objective": "dise"}, "expected one of"),
    ],
)
def test_senseless_settings_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PGD(**settings)


def test_noise_needs_a_draw() -> None:
    with pytest.raises(ConfigError, match="at least one draw"):
        Noise(draws=0)
