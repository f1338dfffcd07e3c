"""Soft targets and their losses: closed forms, and the marginal loss where classes were not looked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from seguro.core.types import IGNORE, Classes
from seguro.losses import cross_entropy
from seguro.methods.roam.objective import dice_of_soft, ramp, soft_cross_entropy, squared_error
from seguro.methods.roam.targets import completed, guess, incomplete, known, mixed, mode, sharpen
from seguro.networks.mixing import MixPlan

TWO = Classes(names=("background", "a"), values=((0,), (1,)))
THREE = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
ALL = torch.ones(1, 4, 4)


def spread(*p: float) -> torch.Tensor:
    return torch.tensor(p).reshape(1, -1, 1, 1).expand(1, len(p), 4, 4).clone()


@pytest.mark.parametrize(
    ("p", "wanted"), [((0.6, 0.4), (0.6923, 0.3077)), ((0.5, 0.3, 0.2), (0.6579, 0.2368, 0.1053))]
)
def test_sharpening_at_one_half(p, wanted):
    classes = TWO if len(p) == 2 else THREE
    assert torch.allclose(sharpen(spread(*p), 0.5, classes), spread(*wanted), atol=5e-5)
    assert torch.equal(sharpen(spread(*p), 1.0, classes), spread(*p))


def test_sharpening_sums_to_one_also_of_certain_guesses():
    sharp = sharpen(spread(0.0, 1.0, 0.0), 0.5, THREE)
    assert torch.equal(sharp, spread(0.0, 1.0, 0.0))
    p = torch.randn(2, 3, 5, 5).softmax(1)
    assert torch.allclose(sharpen(p, 0.3, THREE).sum(1), torch.ones(2, 5, 5), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.005])
def test_an_unsure_guess_stays_one_at_any_temperature(temperature):
    assert torch.allclose(sharpen(torch.full((1, 3, 2, 2), 1 / 3), temperature, THREE).sum(1), torch.ones(1))
    assert torch.allclose(sharpen(spread(0.5, 0.5), temperature, REGIONS), spread(0.5, 0.5))
    assert torch.allclose(sharpen(spread(0.4, 0.6), 0.005, TWO), spread(0.0, 1.0))


def test_a_region_is_sharpened_against_its_complement():
    assert torch.allclose(sharpen(spread(0.6, 0.1), 0.5, REGIONS), spread(0.6923, 0.01 / 0.82), atol=5e-5)


def test_a_guess_has_no_gradient_and_in_evaluation_mode_moves_no_statistics():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    net[2].eval()
    views = torch.randn(2, 3, 1, 8, 8)
    before = net[1].running_mean.clone()
    with mode(net, False):
        quiet = guess(net, views, THREE)
    assert not quiet.requires_grad and torch.equal(net[1].running_mean, before)
    assert [m.training for m in net] == [True, True, False]
    with mode(net, True):
        loud = guess(net, views, THREE)
    assert not torch.equal(net[1].running_mean, before) and not torch.allclose(quiet, loud)
    assert [m.training for m in net] == [True, True, False]


def test_several_guesses_are_averaged():
    net = nn.Conv2d(1, 3, 1)
    views = torch.randn(2, 3, 1, 8, 8)
    each = [net(views[:, k]).softmax(1) for k in range(3)]
    assert torch.allclose(guess(net, views, THREE), (each[0] + each[1] + each[2]) / 3, atol=1e-6)


def test_a_uniform_answer_against_one_hot():
    logits, target = torch.zeros(1, 2, 4, 4), spread(1.0, 0.0)
    assert soft_cross_entropy(logits, target, ALL, TWO).item() == pytest.approx(math.log(2))
    assert squared_error(logits, target, ALL, TWO).item() == pytest.approx(0.25)
    assert squared_error(logits, target, ALL, TWO, summed=True).item() == pytest.approx(0.5)


def test_the_published_weight_is_the_same_in_either_norm():
    logits, target = torch.randn(1, 28, 4, 4), torch.randn(1, 28, 4, 4).softmax(1)
    names = tuple(f"c{i}" for i in range(28))
    classes = Classes(names=names, values=tuple((i,) for i in range(28)))
    mean = squared_error(logits, target, ALL, classes)
    summed = squared_error(logits, target, ALL, classes, summed=True)
    assert (75 * mean).item() == pytest.approx((75 / 28 * summed).item(), rel=1e-5)


@pytest.mark.parametrize(("epoch", "wanted"), [(0, 0.0), (40, 37.5), (79, 74.06)])
def test_the_ramp_is_that_of_the_paper(epoch, wanted):
    for iteration in (0, 1, 374):
        progress = (epoch * 375 + iteration) / 30_000
        assert 75 * ramp(progress, steps=80) == pytest.approx(wanted, abs=0.005)


def test_a_shorter_ramp_and_none():
    assert [ramp(p, until=0.5) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(0.0, until=0.0) == 1.0


def test_dice_of_soft_targets_is_smallest_where_they_agree():
    target = torch.randn(2, 3, 6, 6).softmax(1)
    counts = torch.ones(2, 6, 6)
    best = dice_of_soft(target.log(), target, counts, THREE)
    assert best.item() == pytest.approx(0.0, abs=1e-6)
    for shift in (0.5, -0.5):
        logits = target.log().clone()
        logits[:, 1] += shift
        assert dice_of_soft(logits, target, counts, THREE) > best


def test_voxels_that_do_not_count_change_nothing():
    logits = torch.randn(2, 3, 6, 6)
    target = torch.randn(2, 3, 6, 6).softmax(1)
    counts = torch.ones(2, 6, 6)
    counts[:, 3:] = 0
    other = logits.clone()
    other[:, :, 3:] += 5
    for loss in (soft_cross_entropy, squared_error, dice_of_soft):
        assert torch.equal(loss(logits, target, counts, THREE), loss(other, target, counts, THREE))
        assert not torch.equal(loss(logits, target, counts, THREE), loss(logits * 2, target, counts, THREE))
        empty = loss(logits[:0], target[:0], counts[:0], THREE)
        assert empty.item() == 0


@pytest.mark.parametrize("loss", [soft_cross_entropy, squared_error, dice_of_soft])
def test_in_a_group_a_sample_weighs_as_much_as_of_it_counts(loss):
    logits, target = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4).softmax(1)
    counts = torch.ones(4, 4, 4)
    counts[0], counts[1, 1:], counts[3, 2:] = 0, 0, 0  # 0 and 4 voxels; 16 and 8
    each = [loss(*(x[i : i + 1] for x in (logits, target, counts)), THREE) for i in range(4)]
    pairs = (each[1] + (2 * each[2] + each[3]) / 3) / 2
    assert loss(logits, target, counts, THREE, group=2).item() == pytest.approx(pairs.item(), rel=1e-5)
    whole = (4 * each[1] + 16 * each[2] + 8 * each[3]) / 28
    assert loss(logits, target, counts, THREE, group=4).item() == pytest.approx(whole.item(), rel=1e-5)
    assert loss(logits, target, counts, THREE).item() == pytest.approx(sum(each).item() / 4, rel=1e-5)
    assert loss(logits, target, 0 * counts, THREE, group=2).item() == 0


@pytest.mark.parametrize("annotated", [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_with_hard_labels_it_has_the_gradient_of_the_marginal_loss(annotated):
    torch.manual_seed(0)
    label = torch.randint(0, 2, (1, 6, 6), dtype=torch.uint8) * int(annotated[0])
    label[0, 0, 0] = IGNORE
    looked = torch.tensor([annotated])
    grads = []
    for soft in (True, False):
        logits = torch.linspace(-2, 2, 3 * 36).sin().reshape(1, 3, 6, 6).requires_grad_()
        if soft:
            p = logits.detach().softmax(1)
            target = completed(label, looked, THREE, p)
            loss = soft_cross_entropy(logits, target, (label != IGNORE).float(), THREE)
        else:
            loss = cross_entropy(logits, label, looked, THREE)
        loss.backward()
        grads.append(logits.grad)
    assert torch.allclose(*grads, atol=1e-8)


def test_a_region_nobody_looked_for_takes_its_guess():
    label = torch.tensor([[[0, 1], [2, 2]]], dtype=torch.uint8)
    p = torch.full((1, 2, 2, 2), 0.3)
    target = completed(label, torch.tensor([[1.0, 0.0]]), REGIONS, p)
    assert torch.equal(target[0, 0], torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert torch.equal(target[0, 1], torch.full((2, 2), 0.3))
    looked, labelled = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([True, True, False])
    assert incomplete(looked, labelled).tolist() == [True, False, False]


def test_a_mixed_voxel_counts_where_both_of_its_parts_are_known():
    target = torch.randn(2, 3, 4, 4).softmax(1)
    counts = torch.ones(2, 4, 4)
    counts[0, 0] = 0  # a row of the first sample
    swap = torch.tensor([1, 0])
    got, whole = mixed(target, counts, MixPlan("input", torch.tensor(0.7), swap))
    assert torch.allclose(got[1], 0.7 * target[1] + 0.3 * target[0])
    assert not whole[:, 0].any() and whole[:, 1:].all()
    mask = torch.ones(2, 1, 4, 4)
    mask[:, :, :, :2] = 0
    _, cut = mixed(target, counts, MixPlan("input", torch.tensor(0.7), swap, mask=mask))
    assert cut[0, 0].tolist() == [1, 1, 0, 0] and cut[1, 0].tolist() == [0, 0, 1, 1] and cut[:, 1:].all()
    _, alone = mixed(target, counts, MixPlan("input", torch.tensor(1.0), swap))
    assert torch.equal(alone, counts)
    assert mixed(target, counts, None)[0] is target


def test_unsure_guesses_and_ignored_labels_do_not_count():
    label = torch.full((2, 1, 2), IGNORE, dtype=torch.uint8)
    label[0, 0, 0] = 1
    guessed = torch.zeros(2, 3, 1, 2)
    guessed[1, :, 0, 0] = torch.tensor([0.1, 0.85, 0.05])
    guessed[1, :, 0, 1] = torch.tensor([0.4, 0.3, 0.3])
    labelled = torch.tensor([True, False])
    assert known(label, labelled, guessed, 0.8, THREE).tolist() == [[[1, 0]], [[1, 0]]]
    assert known(label, labelled, guessed, 0.0, THREE).tolist() == [[[1, 0]], [[1, 1]]]
