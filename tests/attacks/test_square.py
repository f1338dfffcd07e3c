"""Square: only outputs are asked for, each sample has its own cuboids, and it beats gradients that lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seguro.attacks.apgd import APGD
from seguro.attacks.pgd import Noise
from seguro.attacks.square import Square, cuboids, overlap, published, share_at
from seguro.attacks.threat import Threat, range_box
from seguro.attacks.victim import Truth, Victim
from seguro.core.errors import ConfigError
from seguro.core.types import Classes

pytestmark = pytest.mark.xdist_group("toy nets")  # trained once, by one worker

BATCH = 1e-5
"""Convolutions of another batch size may round differently."""
KINDS = {"tiles": Square(60), "single": Square(60, tiles=False), "dice": published(60)}


def test_schedule_is_the_published_one() -> None:
    at = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    unscaled = [share_at(0.8, q, 500, None) for q in at]
    assert unscaled == [0.8 / 2**k for k in range(10)]
    assert [share_at(0.8, q / 20, 500, 10_000) for q in at] == unscaled


def test_cuboids_keep_the_shape_of_flat_volumes() -> None:
    draw = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    inside, _, _ = cuboids(draw, 0.001, (96, 96, 8), tiles=False)
    assert inside.flatten(1).sum(1).tolist() == [10 * 10 * 1] * 5
    inside, _, _ = cuboids(draw, 0.8, (96, 96, 8), tiles=False)
    assert inside.flatten(1).sum(1).tolist() == [89 * 89 * 7] * 5
    assert (
        len({tuple(n.nonzero()[0].tolist()) for n in cuboids(draw, 0.001, (96, 96, 8), tiles=False)[0]}) > 1
    )


def test_tiles_cover_every_voxel_once_and_are_no_larger_than_asked() -> None:
    draw = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    inside, which, count = cuboids(draw, 0.01, (21, 13, 8), tiles=True)
    assert bool(inside.all()) and int(which.max()) < count
    side = [5, 3, 2]
    for sample in which:
        for tile in sample.unique():
            extent = (sample == tile).nonzero()
            size = extent.amax(0) - extent.amin(0) + 1
            assert len(extent) == int(size.prod()) and all(
                int(a) <= b for a, b in zip(size, side, strict=True)
            )
    assert not torch.equal(which[0], which[1])


def test_soft_dice_slope_is_its_derivative(flat3: Any) -> None:
    logits = flat3.net(flat3.x).requires_grad_(True)
    here = overlap(logits, flat3.truth)
    (exact,) = torch.autograd.grad(here.value.sum(), here.p)
    assert torch.allclose(exact, here.slope, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["flat3", "solid2"])
def test_ball_box_repeatability_and_batches(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    nets, attack = request.getfixturevalue(name), KINDS[kind]
    threat, state = nets.threat(16 / 255), torch.get_rng_state()
    grads: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        grads.append(torch.is_grad_enabled() or x.requires_grad)
        return nets.net(x)  # type: ignore[no-any-return]

    first = attack(Victim(watched, nets.truth), nets.x, threat, nets.seeds)
    assert not any(grads) and first.backwards == 0
    most = (attack.queries + 1) * len(nets.x)
    assert first.forwards == most if bool((first.score > 0).any()) else first.forwards <= most
    second = attack(nets.victim(), nets.x, threat, nets.seeds)
    assert torch.equal(first.x, second.x) and torch.equal(torch.get_rng_state(), state)
    eps, low, high = (threat.spread(v, nets.x) for v in (threat.eps, threat.low, threat.high))
    assert bool(((first.x - nets.x).abs() <= eps + 1e-6).all())
    assert bool((first.x >= low).all() and (first.x <= high).all())
    assert torch.allclose(nets.victim().score(nets.net(first.x)), first.score, atol=BATCH)
    assert first.trace is not None and bool((first.trace.diff(dim=0) >= 0).all())
    alone = nets.select([1])
    single = attack(alone.victim(), alone.x, alone.threat(16 / 255), alone.seeds)
    assert torch.allclose(single.score, first.score[1:2], atol=BATCH)


@pytest.mark.parametrize("kind", KINDS)
def test_flat_volumes_are_attacked(kind: str) -> None:
    """C6: 96 x 96 x 8, where the published cube would be longer than the volume."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 96, 96, 8, dtype=torch.uint8)
    label[:, 30:60, 40:70, 2:6] = 1
    x = label[:, None] + 0.2 * torch.randn(2, 1, 96, 96, 8, generator=generator)

    def logits(x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), 4 * (x - 0.5)], 1)

    low, high = range_box(x)
    threat = Threat((high - low) * 0.15, low, high)
    two = Classes(names=("background", "a"), values=((0,), (1,)))
    victim = Victim(logits, Truth(label, torch.ones(2, 1), two))
    found = replace(KINDS[kind], queries=6)(victim, x, threat, [1, 2])
    assert bool((found.score < victim.score(logits(x))).all())
    changes = (found.x - x).sign()
    assert not torch.equal(changes[0], changes[1])
    assert bool(((found.x - x).abs() <= threat.spread(threat.eps, x) + 1e-6).all())


@pytest.mark.parametrize("kind", KINDS)
def test_moves_are_accepted_and_beat_noise(kind: str, flat3: Any) -> None:
    threat = flat3.threat(16 / 255)
    found = replace(KINDS[kind], queries=200)(flat3.victim(), flat3.x, threat, flat3.seeds)
    noise = Noise()(flat3.victim(), flat3.x, threat, flat3.seeds)
    assert found.trace is not None
    assert bool(((found.trace.diff(dim=0) > 0).sum(0) > 0).all())
    assert float(found.score.mean()) < float(noise.score.mean()) - 0.1
    changes = (found.x - flat3.x).sign()
    assert not torch.equal(changes[0], changes[1])


def test_soft_dice_as_oracle_beats_the_published_attack(flat3: Any) -> None:
    threat = flat3.threat(16 / 255)
    ours = Square(150)(flat3.victim(), flat3.x, threat, flat3.seeds).score.mean()
    theirs = published(150)(flat3.victim(), flat3.x, threat, flat3.seeds).score.mean()
    assert float(ours) < float(theirs) - 0.02


@pytest.mark.parametrize("name", ["flat3", "solid2"])
def test_gradients_beat_outputs_alone(name: str, request: pytest.FixtureRequest) -> None:
    """C5, where nothing is masked."""
    nets = request.getfixturevalue(name)
    threat = nets.threat(8 / 255)
    white = APGD("dice", steps=20)(nets.victim(), nets.x, threat, nets.seeds).score.mean()
    black = Square(200)(nets.victim(), nets.x, threat, nets.seeds).score.mean()
    assert float(white) <= float(black) + 0.02


def test_gradients_are_masked_and_square_beats_them(flat3: Any) -> None:
    """C12, at half the calls of the model."""

    def quantized(x: Tensor) -> Tensor:
        return flat3.net((x * 8).round() / 8)  # type: ignore[no-any-return]

    threat = flat3.threat(16 / 255)
    square = Square(150)(Victim(quantized, flat3.truth), flat3.x, threat, flat3.seeds)
    descent = APGD("dice", steps=75)(Victim(quantized, flat3.truth), flat3.x, threat, flat3.seeds)
    assert all("zero gradient" in flags for flags in descent.flags)
    assert float(square.score.mean()) < float(descent.score.mean()) - 0.1


@pytest.mark.parametrize("regions", [True, False])
def test_empty_foreground_absent_class_and_nan(regions: bool) -> None:
    classes = (
        Classes(names=("a", "b"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
        if regions
        else Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
    )
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(3, 8, 8, dtype=torch.uint8)
    label[1:, 2:5, 2:5] = 1
    annotated = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])

    def logits(x: Tensor) -> Tensor:
        out = torch.cat([x * k for k in range(1, classes.n + 1)], 1)
        return torch.where((x.sum((1, 2, 3)) > 1e3).reshape(-1, 1, 1, 1), torch.nan, out)

    low, high = range_box(x)
    found = Square(30)(
        Victim(logits, Truth(label, annotated, classes)), x, Threat((high - low) * 0.1, low, high), [1, 2, 3]
    )
    assert bool(torch.isfinite(found.score).all()) and float(found.score[2]) == 1.0


def test_settings_without_sense_are_refused(flat3: Any) -> None:
    with pytest.raises(ConfigError, match="queries"):
        Square(0)(flat3.victim(), flat3.x, flat3.threat(0.01), flat3.seeds)
