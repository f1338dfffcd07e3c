"""Distances of images: closed forms, and all are zero for equal images."""

from __future__ import annotations

import pytest
import torch

from seguro.methods.adapt.objective import TERMS, absolute, dissimilarity, edges, image_loss, squared


@pytest.mark.parametrize("name", TERMS)
def test_equal_images_are_not_apart_and_others_are(name):
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    assert float(TERMS[name](x, x)) == pytest.approx(0, abs=1e-5)
    assert float(TERMS[name](x, x.flip(-1))) > 0.01


def test_a_constant_difference():
    x = torch.zeros(2, 1, 16, 16)
    y = x + 0.5
    assert float(squared(x, y)) == pytest.approx(0.25)
    assert float(absolute(x, y)) == pytest.approx(0.5)
    assert float(edges(x, y)) == 0


def test_structural_similarity_of_constants_is_that_of_their_means():
    x, y = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), -0.25)
    c = 0.02**2
    assert float(dissimilarity(x, y)) == pytest.approx(
        1 - (2 * 0.5 * -0.25 + c) / (0.25 + 0.0625 + c), abs=1e-5
    )


def test_opposite_structure_is_worse_than_none():
    wave = 0.3 * torch.sin(torch.arange(32.0)).repeat(1, 1, 32, 1)
    flat = torch.full_like(wave, 0.5)
    assert float(dissimilarity(flat + wave, flat - wave)) > 1.8
    assert 0.9 < float(dissimilarity(flat + wave, flat)) < 1.1


def test_the_loss_is_the_weighted_sum_at_the_resolution_that_is_seen():
    a, b = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    small = [torch.nn.functional.avg_pool2d(x, 2) for x in (a, b)]
    weights = {"l2": 2.0, "l1": 0.0, "ssim": 0.5, "gradient": 0.0}
    expected = 2 * squared(*small) + 0.5 * dissimilarity(*small)
    torch.testing.assert_close(image_loss(a, b, weights, 16), expected)
