"""FAB: exact projections, the closed form of a linear model, and minima as small as a gradient search's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from seguro.attacks.fab import FAB, minimum_by_bisection, project_plane
from seguro.attacks.pgd import PGD
from seguro.attacks.threat import Threat
from seguro.attacks.victim import Truth, Victim
from seguro.core.errors import ConfigError
from seguro.core.types import Classes

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

BATCH = 1e-5
"""Convolutions of another batch size may round differently."""


def test_projection_is_the_optimum_of_the_linear_program() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        m = int(rng.integers(2, 9))
        g = rng.normal(size=m) * (rng.random(m) > 0.2)
        low, high = -rng.random(m) * 2, rng.random(m) * 2
        reach = np.where(g > 0, g * high, g * low).sum()
        target = float(rng.uniform(-0.1, 0.95) * reach)
        target = max(target, 0.95 * np.where(g > 0, g * low, g * high).sum())
        args = [torch.tensor(v[None]) for v in (g, np.array(target), low, high)]
        d = project_plane(args[0], args[1].reshape(1), args[2], args[3])[0].numpy()
        assert g @ d == pytest.approx(target, abs=1e-9)
        assert (d >= low - 1e-12).all() and (d <= high + 1e-12).all()
        wide = np.ones((m, 1))
        limits = np.block([[np.eye(m), -wide], [-np.eye(m), -wide]])
        solved = linprog(
            np.r_[np.zeros(m), 1],
            A_ub=limits,
            b_ub=np.zeros(2 * m),
            A_eq=np.r_[g, 0][None],
            b_eq=[target],
            bounds=[*zip(low, high, strict=True), (0, None)],
        )
        assert np.abs(d).max() == pytest.approx(solved.fun, abs=1e-8)


def test_projection_beyond_the_box_ends_in_its_corner() -> None:
    d = project_plane(
        torch.tensor([[2.0, -1.0, 0.0]]),
        torch.tensor([50.0]),
        torch.tensor([[-1.0, -3.0, -1.0]]),
        torch.tensor([[4.0, 1.0, 1.0]]),
    )
    assert d.tolist() == [[4.0, -3.0, 0.0]]


def linear(w: Tensor, offset: float) -> Victim:
    """A model whose every voxel is foreground where <w, x> + offset > 0; the truth is foreground."""
    classes = Classes(names=("background", "organ"), values=((0,), (1,)))

    def logits(x: Tensor) -> Tensor:
        value = (x * w).flatten(1).sum(1) + offset
        one = value.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return torch.cat([torch.zeros_like(one), one], 1)

    return Victim(logits, Truth(torch.ones(1, 4, 4, dtype=torch.uint8), torch.ones(1, 1), classes))


def test_linear_model_has_the_norm_of_the_closed_form() -> None:
    w = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    x = torch.zeros(1, 2, 4, 4)
    threat = Threat(torch.full((1, 2), 0.1), torch.full((1, 2), -9.0), torch.full((1, 2), 9.0))
    closed = 2.0 / float(w.abs().sum()) / 0.1  # f / ||w||_1, in units of epsilon
    found = FAB(steps=20, restarts=1, warm_start=False, bisections=20).minimum(linear(w, 2.0), x, threat, [0])
    assert float(found.size) == pytest.approx(closed, rel=1e-3)
    assert float(found.size) >= closed * (1 - 1e-5)


def bisected(nets: Any, threat: Threat) -> Tensor:
    attack = PGD("dice", steps=20)
    return minimum_by_bisection(nets.victim(), nets.x, threat, nets.seeds, attack, largest=4.0, steps=6).size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flat3", "solid2"])
def test_success_and_norm_against_a_bisection_of_gradient_descent(
    name: str, request: pytest.FixtureRequest
) -> None:
    nets = request.getfixturevalue(name)
    eps = 12 / 255 if name == "flat3" else 8 / 255
    threat, bar = nets.threat(eps), nets.victim().score(nets.net(nets.x)) / 2
    broken = PGD("dice", steps=20)(nets.victim(), nets.x, nets.threat(2 * eps), nets.seeds).score < bar
    assert int(broken.sum()) >= len(nets.x) / 2, "the test needs cases that descent breaks"
    descent = bisected(nets, threat)
    for warm in (False, True):
        found = FAB(warm_start=warm).minimum(nets.victim(), nets.x, threat, nets.seeds)
        assert float((found.size <= 2)[broken].float().mean()) >= 0.8
        assert float((found.size / descent).median()) <= 1.25
        again = nets.victim().score(nets.net(found.x))
        assert torch.allclose(again, found.score, atol=BATCH) and bool((again < found.bar).all())
        change = ((found.x - nets.x).abs() / threat.spread(threat.eps, nets.x)).flatten(1).amax(1)
        assert torch.allclose(change, found.size, atol=1e-4)


def test_mean_logit_difference_is_no_boundary(flat3: Any) -> None:
    threat, victim, bar = flat3.threat(16 / 255), flat3.victim(), flat3.victim().score(flat3.net(flat3.x)) / 2
    eps = threat.spread(threat.eps, flat3.x)
    start = flat3.net(flat3.x).topk(2, dim=1).indices

    def gap(logits: Tensor, truth: Truth, progress: float) -> Tensor:
        pair = logits.gather(1, start)
        return (pair[:, :1] - pair[:, 1:]).flatten(1).mean(1)

    at, success = flat3.x.clone(), torch.zeros(len(bar), dtype=torch.bool)
    for _ in range(30):
        f, g, logits = victim.ascend(at, gap, 0.0)
        inside = ((at - flat3.x).abs() <= eps * (1 + 1e-6)).flatten(1).all(1)
        success |= (victim.score(logits) < bar) & inside
        g, u = (g * eps).flatten(1), ((at - flat3.x) / eps).flatten(1)
        room = [((threat.spread(b, at) - at) / eps).flatten(1) for b in (threat.low, threat.high)]
        ahead = project_plane(g, -f, room[0].clamp(max=0), room[1].clamp(min=0))
        base = project_plane(g, (g * u).sum(1) - f, room[0] + u, room[1] + u)
        a = (ahead.abs().amax(1) / (ahead.abs().amax(1) + base.abs().amax(1))).clamp(max=0.1).unsqueeze(1)
        at = flat3.x + eps * ((1 - a) * (u + 1.05 * ahead) + a * 1.05 * base).reshape(at.shape)
    assert not bool(success.any())
    ours = FAB(warm_start=False).minimum(flat3.victim(), flat3.x, threat, flat3.seeds)
    descent = PGD("dice", steps=20)(flat3.victim(), flat3.x, flat3.threat(32 / 255), flat3.seeds)
    assert bool((ours.size <= 2)[descent.score < bar].all()) and bool((descent.score < bar).any())


@pytest.mark.parametrize("name", ["flat3", "solid2"])
def test_ball_box_and_repeatability(name: str, request: pytest.FixtureRequest) -> None:
    nets = request.getfixturevalue(name)
    threat, attack = nets.threat(8 / 255), FAB(steps=8, restarts=2)
    state = torch.get_rng_state()
    first, second = (attack(nets.victim(), nets.x, threat, nets.seeds) for _ in range(2))
    assert torch.equal(first.x, second.x) and torch.equal(torch.get_rng_state(), state)
    eps, low, high = (threat.spread(v, nets.x) for v in (threat.eps, threat.low, threat.high))
    assert bool(((first.x - nets.x).abs() <= eps + 1e-6).all())
    assert bool((first.x >= low).all() and (first.x <= high).all())
    again = nets.victim().score(nets.net(first.x))
    assert torch.allclose(again, first.score, atol=BATCH)
    alone = nets.select([1])
    single = attack(alone.victim(), alone.x, alone.threat(8 / 255), alone.seeds)
    assert torch.allclose(single.score, first.score[1:2], atol=BATCH)
    assert torch.allclose(single.x, first.x[1:2], atol=BATCH)
    assert first.minimum is not None
    assert bool(
        (
            first.score[first.minimum <= 1] < nets.victim().score(nets.net(nets.x))[first.minimum <= 1] / 2
        ).all()
    )


def test_broken_and_unbreakable_samples(flat3: Any) -> None:
    broken = FAB(steps=2, restarts=1, bar=1.0).minimum(
        flat3.victim(), flat3.x, flat3.threat(8 / 255), flat3.seeds
    )
    assert bool((broken.size == 0).all()) and torch.equal(broken.x, flat3.x)
    none = replace(flat3.threat(8 / 255), eps=torch.zeros(len(flat3.x), 2))
    never = FAB(steps=2, restarts=2).minimum(flat3.victim(), flat3.x, none, flat3.seeds)
    assert bool(torch.isinf(never.size).all()) and torch.equal(never.x, flat3.x)


def test_no_gradient_is_flagged(flat3: Any) -> None:
    masked = Victim(lambda x: flat3.net((x * 4).round() / 4), flat3.truth)
    found = FAB(steps=4, restarts=1)(masked, flat3.x, flat3.threat(8 / 255), flat3.seeds)
    assert all("zero gradient" in flags for flags in found.flags)


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="restarts"):
        FAB(restarts=0)
