"""The hand-made embedding: closed forms on plain images, and gradients to every part."""

from __future__ import annotations

import pytest
import torch

from seguro.networks.descriptor import EDGES, INTENSITIES, LENGTH, SCALES, descriptor


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_rows_have_unit_length_and_depend_on_their_own_image():
    x = images()
    rows = descriptor(x)
    assert rows.shape == (3, LENGTH) == (3, 32)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(descriptor(x[1:2]), rows[1:2])


@pytest.mark.parametrize(
    ("level", "place"), [(-1.0, 0), (1.0, 15), (0.2, 9)], ids=["black", "white", "between"]
)
def test_a_plain_image_has_one_intensity_and_the_weakest_edges(level, place):
    row = descriptor(torch.full((1, 1, 8, 8), level))[0]
    below, edges = row[:INTENSITIES], row[INTENSITIES : INTENSITIES + EDGES]
    assert (below > 1e-4).tolist() == [k >= place for k in range(INTENSITIES)]
    torch.testing.assert_close(edges, edges[:1].expand(EDGES))  # all lie at or below the weakest
    assert float(row[-2 * SCALES :].max()) < 0.01


def test_levels_between_two_places_are_shared_out():
    row = descriptor(torch.full((1, 1, 8, 8), -1 + 2 * 3.25 / 15))[0, :INTENSITIES]
    assert float(row[3] / row[4]) == pytest.approx(0.75, rel=1e-4)
    assert float(row[:3].max()) < 1e-4


def test_an_intensity_far_away_is_approached():
    """What bins of a histogram cannot tell: which way to go."""
    wanted = descriptor(torch.full((1, 1, 8, 8), 0.8))
    nearness = [
        float((descriptor(torch.full((1, 1, 8, 8), x)) * wanted).sum()) for x in (-0.9, -0.5, 0.0, 0.5)
    ]
    assert nearness == sorted(nearness) and len({round(x, 4) for x in nearness}) == 4


def test_every_pixel_has_a_slope():
    x = images(1).requires_grad_(True)
    (slope,) = torch.autograd.grad((descriptor(x) * torch.randn(1, LENGTH)).sum(), x)
    assert slope.isfinite().all() and float((slope != 0).float().mean()) > 0.99
    flat = torch.zeros(1, 1, 8, 8, requires_grad=True)
    assert torch.autograd.grad(descriptor(flat).sum(), flat)[0].isfinite().all()
