"""Losses against hand computations, and what they must not see."""

from __future__ import annotations

import math

import pytest
import torch

from seguro.core.types import IGNORE, Classes
from seguro.losses import DICE_SMOOTH, cross_entropy, soft_dice

THREE = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
ALL = torch.ones(1, 2)


def test_cross_entropy_of_uniform_logits_is_log_n():
    label = torch.tensor([[[0, 1], [2, 1]]])
    assert cross_entropy(torch.zeros(1, 3, 2, 2), label, ALL, THREE).item() == pytest.approx(math.log(3))
    assert cross_entropy(torch.zeros(1, 2, 2, 2), label, ALL, REGIONS).item() == pytest.approx(math.log(2))


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much():
    label = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    right = 50 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    known = torch.ones(2, 2)
    for loss in (cross_entropy, soft_dice):
        assert loss(right, label, known, THREE).item() == pytest.approx(0, abs=1e-6)
        assert loss(right.roll(1, dims=1), label, known, THREE).item() > 0.9


def test_soft_dice_by_hand():
    label = torch.tensor([[[1, 1, 0, 0]]])
    logits = torch.zeros(1, 3, 1, 4)
    a = 1 - (2 * 2 / 3 + DICE_SMOOTH) / (4 / 3 + 2 + DICE_SMOOTH)
    b = 1 - DICE_SMOOTH / (4 / 3 + DICE_SMOOTH)
    assert soft_dice(logits, label, ALL, THREE).item() == pytest.approx((a + b) / 2)


@pytest.mark.parametrize("classes", [THREE, REGIONS])
@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_ignored_voxels_do_not_count(loss, classes):
    g = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (1, 6, 6), generator=g)
    label[:, :2] = IGNORE
    logits = torch.randn(1, classes.n, 6, 6, generator=g)
    other = logits.clone()
    other[:, :, :2] = torch.randn(1, classes.n, 2, 6, generator=g)
    assert loss(logits, label, ALL, classes).item() == pytest.approx(loss(other, label, ALL, classes).item())


def test_a_class_nobody_looked_for_is_not_pushed_down_where_the_label_says_background():
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    known = torch.tensor([[1.0, 0.0]])
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    (cross_entropy(logits, label, known, THREE) + soft_dice(logits, label, known, THREE)).backward()
    gradient = logits.grad.mean(dim=(0, 2, 3))
    assert gradient[2] == pytest.approx(gradient[0].item())  # taken together with the background
    assert gradient[1] > 0  # the annotated class is pushed down
    certain = torch.zeros(1, 3, 4, 4)
    certain[:, 2] = 50
    assert cross_entropy(certain, label, known, THREE).item() == pytest.approx(0, abs=1e-6)
    assert cross_entropy(certain, label, ALL, THREE).item() > 10


def test_an_unannotated_region_has_no_gradient():
    label = torch.full((1, 4, 4), 2)
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    known = torch.tensor([[1.0, 0.0]])
    (cross_entropy(logits, label, known, REGIONS) + soft_dice(logits, label, known, REGIONS)).backward()
    assert logits.grad[:, 1].abs().max() == 0 and logits.grad[:, 0].abs().max() > 0


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_the_batch_is_the_mean_of_its_samples(loss):
    g = torch.Generator().manual_seed(2)
    label = torch.randint(0, 3, (2, 5, 5), generator=g)
    label[1, :4] = IGNORE
    logits, known = torch.randn(2, 3, 5, 5, generator=g), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    parts = [loss(logits[i : i + 1], label[i : i + 1], known[i : i + 1], THREE) for i in range(2)]
    assert loss(logits, label, known, THREE).item() == pytest.approx(sum(parts).item() / 2)
