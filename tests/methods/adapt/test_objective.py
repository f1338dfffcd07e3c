"""Distances of images: closed forms, and all are zero for equal images."""

from __future__ import annotations

import pytest
import torch

from seguro.core.types import IGNORE, Classes
from seguro.methods.adapt.objective import (
    TERMS,
    absolute,
    batch_dice,
    dissimilarity,
    edges,
    image_loss,
    squared,
)


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


TWO = Classes(names=("background", "organ"), values=((0,), (1,)))


def test_dice_of_a_batch_is_of_all_its_pixels_together():
    """Even odds on four pixels, one of them of the organ; what is ignored counts nowhere."""
    label = torch.tensor([[[0, 0]], [[0, 1]], [[IGNORE, IGNORE]]], dtype=torch.uint8)
    logits, known = torch.zeros(3, 2, 1, 2), torch.ones(3, 1)
    organ, background = 1 / (2 + 1), 3 / (2 + 3)
    found = batch_dice(logits, label, known, TWO, torch.Tensor.detach)
    assert float(found) == pytest.approx(1 - (organ + background) / 2, abs=1e-4)
    nobody_looked = batch_dice(logits, label, torch.zeros(3, 1), TWO, torch.Tensor.detach)
    assert float(nobody_looked) == pytest.approx(1 - (1 + background) / 2, abs=1e-4)


def test_two_ranks_have_the_gradient_of_the_joined_batch():
    rng = torch.Generator().manual_seed(0)
    label, known = torch.randint(0, 2, (4, 3, 3), generator=rng, dtype=torch.uint8), torch.ones(4, 1)
    logits = torch.randn(4, 2, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    joined = batch_dice(logits, label, known, TWO, torch.Tensor.detach)
    (expected,) = torch.autograd.grad(joined, logits)
    halves = [slice(0, 2), slice(2, 4)]
    sums: list[torch.Tensor] = []
    for half in halves:  # what each rank would send: overlap and total
        batch_dice(logits[half], label[half], known[half], TWO, lambda x: sums.append(x) or x.detach())
    shared = [(sums[i] + sums[i + 2]).detach() / 2 for i in range(2)]
    losses = []
    for half in halves:
        means = iter(shared)
        losses.append(batch_dice(logits[half], label[half], known[half], TWO, lambda _, m=means: next(m), 2))
    (found,) = torch.autograd.grad((losses[0] + losses[1]) / 2, logits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    for loss in losses:
        torch.testing.assert_close(loss.detach(), joined.detach(), atol=1e-12, rtol=0)
