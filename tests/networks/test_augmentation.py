"""Augmentation before a discriminator: nothing at p = 0, known moves exactly, twice differentiable."""

from __future__ import annotations

import pytest
import torch

from seguro.networks.augmentation import Drawn, apply, draw

N, SIZE = 6, 16


def rngs(n: int = N) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def images(channels: int = 2) -> torch.Tensor:
    return torch.randn(N, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


def moved(matrix: list[list[float]]) -> Drawn:
    return Drawn(
        torch.tensor(matrix).expand(N, 2, 3), torch.ones(N, dtype=torch.bool), torch.ones(N), torch.zeros(N)
    )


def test_at_probability_zero_every_bit_stays():
    x = images()
    assert torch.equal(apply(x, draw(0.0, rngs(), SIZE)), x)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[-1.0, 0, 0], [0, 1, 0]], lambda x: x.flip(-1)),
        ([[0.0, 1, 0], [-1, 0, 0]], lambda x: torch.rot90(x, -1, (-2, -1))),
        ([[1.0, 0, 2 / SIZE], [0, 1, 0]], lambda x: torch.cat([x[..., 1:], x[..., -1:]], -1)),
    ],
    ids=["flip", "quarter", "shift"],
)
def test_whole_moves_are_exact(matrix, expected):
    x = images()
    assert torch.allclose(apply(x, moved(matrix)), expected(x), atol=1e-5)


def test_each_transform_comes_about_as_often_as_asked():
    drawn = draw(0.3, rngs(3000), SIZE)
    stays = (1 - 0.3) ** 6 * (1 - 0.3)  # six moves, and a pair of rotations with one chance together
    assert float(drawn.moved.float().mean()) == pytest.approx(1 - stays, abs=0.02)
    assert float((drawn.gain < 0).float().mean()) == pytest.approx(0.15, abs=0.02)
    assert float((drawn.offset != 0).float().mean()) == pytest.approx(0.3, abs=0.03)


def test_the_same_numbers_are_used_whatever_the_probability():
    after = []
    for p in (0.0, 1.0):
        one = rngs(1)
        draw(p, one, SIZE)
        after.append(float(torch.rand(1, generator=one[0])))
    assert after[0] == after[1]


def test_it_can_be_differentiated_twice():
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    drawn = draw(0.9, rngs(2), 4)
    assert torch.autograd.gradgradcheck(lambda x: apply(x, drawn) ** 2, x)
