"""Objectives: closed forms on two voxels, finite differences, invariances, and what must not count."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from seguro.attacks.objectives import OBJECTIVES, objective_of
from seguro.attacks.victim import Truth
from seguro.core.errors import ConfigError
from seguro.core.types import IGNORE, Classes

TWO = Classes(names=("background", "a"), values=((0,), (1,)))
THREE = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
HELD = ("cospgd", "masked-ce", "balanced-masked-ce", "margin-then-dice")
"""Objectives that hold a weight or a part of the value fixed."""
SMOOTHLY = [n for n in OBJECTIVES if n != "dlr"]
EXACT = 1e-6


def truth(label: list, classes: Classes, annotated: list | None = None) -> Truth:
    """Truth of one or more samples."""
    stored = torch.tensor(label, dtype=torch.uint8)
    looked = torch.tensor(annotated) if annotated else torch.ones(len(stored), len(classes.foreground))
    return Truth(stored, looked.float(), classes)


def value(name: str, logits: Tensor, of: Truth, progress: float = 0.0) -> Tensor:
    """Value as the victim computes it: merged logits first."""
    return OBJECTIVES[name](of.merged(logits), of, progress)


def pair(background: float, foreground: float) -> Tensor:
    """Logits (1, 2, 1, 2) of two voxels whose classes differ by these: a - background."""
    return torch.tensor([[[[0.0, 0.0]], [[background, foreground]]]])


P = 1 / (1 + exp(-1.0))  # probability of a logit difference of one
CE_RIGHT, CE_WRONG = log(1 + exp(-1.0)), log(1 + exp(1.0))
LENGTH = (P**2 + (1 - P) ** 2) ** 0.5


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        # Both voxels are taken for background by a logit of one; the first rightly, the second is "a".
        ("ce", 0.0, (CE_RIGHT + CE_WRONG) / 2),
        ("balanced-ce", 0.0, (CE_RIGHT + CE_WRONG) / 2),
        ("masked-ce", 0.0, (CE_RIGHT + CE_WRONG) / 2),
        ("balanced-masked-ce", 0.0, (CE_RIGHT + CE_WRONG) / 2),
        ("margin", 0.0, (-1.0 + 0.0) / 2),
        ("balanced-margin", 0.0, (-1.0 + 0.0) / 2),
        ("dice", 0.0, 1 - (2 * (1 - P) + 1) / (2 * (1 - P) + 1 + 1)),
        ("margin-then-dice", 0.0, 1 - (2 * (1 - P) + 1) / (2 * (1 - P) + 1 + 1)),
        ("tversky", 0.0, 1 - (1 - P + 0.5) / (1 - P + 0.3 * (1 - P) + 0.7 * P + 0.5)),
        ("segpgd", 0.0, CE_RIGHT / 2),
        ("segpgd", 1.0, (CE_RIGHT / 2 + CE_WRONG / 2) / 2),
        ("segpgd", 0.5, (CE_RIGHT * 0.75 + CE_WRONG * 0.25) / 2),
        ("cospgd", 0.0, (CE_RIGHT * P + CE_WRONG * (1 - P)) / LENGTH / 2),
        (
            "js",
            0.0,
            log(2) + (P * log(P) - (1 + P) * log(1 + P) + (1 - P) * log(1 - P) - (2 - P) * log(2 - P)) / 4,
        ),
    ],
)
def test_two_voxels_by_hand(name: str, progress: float, expected: float) -> None:
    got = value(name, pair(-1.0, -1.0), truth([[[0, 1]]], TWO), progress)
    assert got.item() == pytest.approx(expected, abs=EXACT)


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[[[3.0]], [[1.0]], [[-1.0]]]])
    assert value("dlr", logits, truth([[[0]]], THREE)).item() == pytest.approx((1 - 3) / 4, abs=EXACT)
    assert value("dlr", logits, truth([[[2]]], THREE)).item() == pytest.approx((3 + 1) / 4, abs=EXACT)


def test_js_is_between_zero_and_log_two() -> None:
    of = truth([[[0, 1]]], TWO)
    assert value("js", pair(-200.0, 200.0), of).item() == pytest.approx(0, abs=EXACT)
    assert value("js", pair(200.0, -200.0), of).item() == pytest.approx(log(2), abs=EXACT)


def test_balance_gives_each_class_the_same_weight() -> None:
    """Seven voxels of background, all with loss x, and one of "a" with loss y: the mean of x and y."""
    logits = torch.zeros(1, 2, 1, 8)
    logits[0, 1, 0, :7], logits[0, 1, 0, 7] = -2.0, 3.0
    got = value("balanced-ce", logits, truth([[[0] * 7 + [1]]], TWO))
    assert got.item() == pytest.approx((log(1 + exp(-2.0)) + log(1 + exp(-3.0))) / 2, abs=EXACT)


def test_regions_by_hand() -> None:
    """One voxel inside "whole" but not "core", with logits 1 and 1: right and wrong by one."""
    logits, of = torch.ones(1, 2, 1, 1), truth([[[1]]], REGIONS)
    assert value("ce", logits, of).item() == pytest.approx((CE_RIGHT + CE_WRONG) / 2, abs=EXACT)
    assert value("masked-ce", logits, of).item() == pytest.approx((CE_RIGHT + CE_WRONG) / 2, abs=EXACT)
    assert value("margin", logits, of).item() == pytest.approx(-0.5, abs=EXACT)
    dice = 1 - ((2 * P + 1) / (P + 2) + 1 / (P + 1)) / 2
    assert value("dice", logits, of).item() == pytest.approx(dice, abs=EXACT)


def sample(classes: Classes, size: tuple[int, ...], n: int = 2) -> tuple[Tensor, Truth]:
    """Double-precision logits and a truth in which all classes occur."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes.n, *size, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3 if classes.regions else classes.n, (n, *size), generator=generator)
    return logits, Truth(label.to(torch.uint8), torch.ones(n, len(classes.foreground)), classes)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 2)], ids=["2d", "3d"])
@pytest.mark.parametrize("classes", [TWO, THREE, REGIONS], ids=["two", "three", "regions"])
@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n not in HELD])
def test_gradient_is_the_finite_difference(name: str, classes: Classes, size: tuple[int, ...]) -> None:
    if name == "dlr" and (classes.regions or classes.n < 3):
        pytest.skip("dlr needs three exclusive classes")
    logits, of = sample(classes, size)
    logits.requires_grad_(True)
    objective = OBJECTIVES[name]
    (gradient,) = torch.autograd.grad(objective(logits, of, 0.4).sum(), logits)
    step = 1e-6
    with torch.no_grad():
        for i in range(0, logits.numel(), 5):
            delta = torch.zeros_like(logits).view(-1)
            delta[i] = step
            delta = delta.view_as(logits)
            difference = objective(logits + delta, of, 0.4).sum() - objective(logits - delta, of, 0.4).sum()
            assert float(difference) / (2 * step) == pytest.approx(float(gradient.view(-1)[i]), abs=1e-6)


def test_cospgd_is_cross_entropy_with_a_fixed_weight() -> None:
    """The gradient at a voxel is that of cross entropy times the cosine there."""
    logits, of = sample(THREE, (3, 4), n=1)
    logits.requires_grad_(True)
    (ce,) = torch.autograd.grad(OBJECTIVES["ce"](logits, of, 0).sum(), logits)
    (cos,) = torch.autograd.grad(OBJECTIVES["cospgd"](logits, of, 0).sum(), logits)
    p = logits.detach().softmax(1)
    cosine = (p * of.hot).sum(1, keepdim=True) / p.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cos, ce * cosine)


@pytest.mark.parametrize("name", ["ce", "balanced-ce"])
def test_masked_cross_entropy_has_the_value_of_all_voxels_and_the_gradient_of_right_ones(name: str) -> None:
    logits, of = sample(THREE, (3, 4))
    logits.requires_grad_(True)
    masked = OBJECTIVES["balanced-masked-ce" if name == "balanced-ce" else "masked-ce"](logits, of, 0)
    whole = OBJECTIVES[name](logits, of, 0)
    torch.testing.assert_close(masked, whole)
    (ours,) = torch.autograd.grad(masked.sum(), logits)
    (theirs,) = torch.autograd.grad(whole.sum(), logits)
    right = logits.argmax(1, keepdim=True) == of.label.unsqueeze(1)
    assert 0 < int(right.sum()) < right.numel()
    torch.testing.assert_close(ours, theirs * right)


@pytest.mark.parametrize(
    ("progress", "steered_by"), [(0.0, "balanced-margin"), (0.59, "balanced-margin"), (0.6, "dice")]
)
def test_the_margin_steers_first_and_dice_then(progress: float, steered_by: str) -> None:
    logits, of = sample(THREE, (3, 4))
    logits.requires_grad_(True)
    got = OBJECTIVES["margin-then-dice"](logits, of, progress)
    torch.testing.assert_close(got, OBJECTIVES["dice"](logits, of, progress))
    (ours,) = torch.autograd.grad(got.sum(), logits)
    (theirs,) = torch.autograd.grad(OBJECTIVES[steered_by](logits, of, progress).sum(), logits)
    torch.testing.assert_close(ours, theirs)


def test_the_balanced_margin_gives_each_class_the_same_weight() -> None:
    """Seven voxels of background right by 2, one of "a" right by 3; wrong ones count nothing."""
    logits = torch.zeros(1, 2, 1, 8)
    logits[0, 1, 0, :7], logits[0, 1, 0, 7] = -2.0, 3.0
    of = truth([[[0] * 7 + [1]]], TWO)
    assert value("balanced-margin", logits, of).item() == pytest.approx(-2.5, abs=EXACT)
    logits[0, 1, 0, 7] = -5.0
    assert value("balanced-margin", logits, of).item() == pytest.approx(-1.0, abs=EXACT)


def test_dlr_does_not_change_with_shift_and_scale() -> None:
    logits, of = sample(THREE, (4, 4))
    reference = OBJECTIVES["dlr"](logits, of, 0)
    shift = torch.linspace(-3, 3, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    torch.testing.assert_close(OBJECTIVES["dlr"](7.5 * logits + shift, of, 0), reference)


@pytest.mark.parametrize("classes", [TWO, REGIONS], ids=["two", "regions"])
def test_dlr_refuses_what_has_no_third_class(classes: Classes) -> None:
    logits, of = sample(classes, (2, 2))
    with pytest.raises(ConfigError, match="margin"):
        OBJECTIVES["dlr"](logits, of, 0)


@pytest.mark.parametrize("classes", [THREE, REGIONS], ids=["three", "regions"])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_ignored_voxels_have_no_influence(name: str, classes: Classes) -> None:
    """Value and gradient are those of the crop without the ignored column."""
    if name == "dlr" and classes.regions:
        pytest.skip("dlr needs exclusive classes")
    logits, of = sample(classes, (3, 4))
    label = of.label.clone()
    label[..., -1] = IGNORE
    whole = logits.clone().requires_grad_(True)
    got = OBJECTIVES[name](whole, Truth(label, of.annotated, classes), 0.4)
    cropped = Truth(of.label[..., :-1], of.annotated, classes)
    torch.testing.assert_close(got, OBJECTIVES[name](logits[..., :-1], cropped, 0.4))
    (gradient,) = torch.autograd.grad(got.sum(), whole)
    assert float(gradient[..., -1].abs().max()) == 0 < float(gradient.abs().max())


@pytest.mark.parametrize("name", SMOOTHLY)
def test_a_region_nobody_looked_for_has_no_influence(name: str) -> None:
    logits, of = sample(REGIONS, (3, 4))
    unknown = Truth(of.label, torch.tensor([[1.0, 0.0]] * 2), REGIONS)
    moved = logits.clone()
    moved[:, 1] += torch.linspace(-4, 4, 24, dtype=torch.float64).reshape(2, 3, 4)
    torch.testing.assert_close(value(name, moved, unknown), value(name, logits, unknown), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_class_nobody_looked_for_counts_as_background(name: str) -> None:
    """Moving score between the background and the unknown class changes nothing."""
    logits, of = sample(THREE, (3, 4))
    label = torch.where(of.label == 2, 0, of.label)
    unknown = Truth(label, torch.tensor([[1.0, 0.0]] * 2), THREE)
    swapped = logits[:, [2, 1, 0]]
    torch.testing.assert_close(value(name, swapped, unknown), value(name, logits, unknown))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_an_unknown_class_is_as_if_the_task_had_not_got_it(name: str) -> None:
    """Four classes of which one was not looked for are the three others, in value and gradient."""
    four = Classes(names=("background", "a", "b", "c"), values=((0,), (1,), (2,), (3,)))
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 3, 4), generator=generator).to(torch.uint8)
    partial = Truth(label, torch.tensor([[1.0, 1.0, 0.0]] * 2), four)
    joint = torch.logsumexp(logits[:, [0, 3]], 1, keepdim=True)
    three = torch.cat([joint, logits[:, 1:3]], 1).requires_grad_(True)
    whole = logits.clone().requires_grad_(True)
    got = value(name, whole, partial, 0.4)
    expected = OBJECTIVES[name](three, Truth(label, torch.ones(2, 2), THREE), 0.4)
    torch.testing.assert_close(got, expected)
    (ours,) = torch.autograd.grad(got.sum(), whole)
    (theirs,) = torch.autograd.grad(expected.sum(), three)
    torch.testing.assert_close(ours[:, 1:3], theirs[:, 1:])
    torch.testing.assert_close(ours[:, 0] + ours[:, 3], theirs[:, 0])


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_voxels_labelled_as_a_class_nobody_looked_for_are_background(name: str) -> None:
    logits, of = sample(THREE, (3, 4))
    assert bool((of.label == 2).any())
    annotated = torch.tensor([[1.0, 0.0]] * 2)
    got, plain = (
        value(name, logits, Truth(label, annotated, THREE), 0.4)
        for label in (of.label, torch.where(of.label == 2, 0, of.label))
    )
    torch.testing.assert_close(got, plain, rtol=0, atol=0)
    assert float(got.abs().max()) < 100  # and no score that stands for "absent" is in it


def test_dlr_of_two_known_classes_is_the_margin_and_can_be_climbed() -> None:
    """A third class that nobody looked for gives no scale: its score would drown the gradient."""
    logits, of = sample(THREE, (3, 4), n=3)
    label = torch.where(of.label == 2, 0, of.label)
    mixed = Truth(label, torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), THREE)
    logits.requires_grad_(True)
    dlr, margin = value("dlr", logits, mixed), value("margin", logits, mixed)
    torch.testing.assert_close(dlr[[0, 2]], margin[[0, 2]])
    every = Truth(label, torch.ones(3, 2), THREE)
    torch.testing.assert_close(dlr[1], OBJECTIVES["dlr"](logits, every, 0)[1])
    (gradient,) = torch.autograd.grad(dlr.sum(), logits)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient.abs().flatten(1).amax(1) > 1e-3).all())


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_scores_as_low_as_they_get_do_not_bring_an_unknown_class_back(name: str) -> None:
    """The voxel is right by one, whatever is added to all logits."""
    logits = torch.tensor([[[[1.0]], [[0.0]], [[-50.0]]]], dtype=torch.float64)
    of = Truth(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.tensor([[1.0, 0.0]]), THREE)
    torch.testing.assert_close(value(name, logits - 1e5, of), value(name, logits, of))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_where_nothing_was_looked_for_nothing_is_to_be_gained(name: str) -> None:
    logits, of = sample(THREE, (3, 4))
    logits.requires_grad_(True)
    got = value(name, logits, Truth(of.label, torch.zeros(2, 2), THREE))
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert float(got.detach().abs().max()) < EXACT
    assert float(gradient.abs().max()) < EXACT


@pytest.mark.parametrize("classes", [TWO, THREE, REGIONS], ids=["two", "three", "regions"])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_values_are_per_sample(name: str, classes: Classes) -> None:
    if name == "dlr" and (classes.regions or classes.n < 3):
        pytest.skip("dlr needs three exclusive classes")
    logits, of = sample(classes, (3, 4), n=3)
    together = OBJECTIVES[name](logits, of, 0.4)
    for i in range(3):
        only = torch.tensor([i])
        alone = OBJECTIVES[name](logits[only], of.select(only), 0.4)
        torch.testing.assert_close(alone, together[only])


@pytest.mark.parametrize("name", ["dice", "tversky", "ce", "margin"])
def test_an_absent_class_is_attacked_by_false_alarms(name: str) -> None:
    """Where nothing is to be found the gradient raises the foreground."""
    logits = torch.full((1, 2, 3, 3), 0.0)
    logits[:, 0] = 2.0
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(name, logits, truth([[[0] * 3] * 3], TWO)).sum(), logits)
    assert bool((gradient[:, 1] > 0).all())


@pytest.mark.parametrize("name", SMOOTHLY)
def test_confident_logits_give_finite_gradients(name: str) -> None:
    logits, of = sample(THREE, (3, 4))
    logits = (logits * 1e4).float().requires_grad_(True)
    got = value(name, logits, of)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert bool(torch.isfinite(got).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", SMOOTHLY)
def test_everything_ignored_gives_zero_gradient_not_nan(name: str) -> None:
    logits, of = sample(THREE, (2, 2))
    logits.requires_grad_(True)
    nothing = Truth(torch.full_like(of.label, IGNORE), of.annotated, THREE)
    got = value(name, logits, nothing)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    assert bool(torch.isfinite(got).all()) and float(gradient.abs().max()) == 0


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="balanced-ce"):
        objective_of("cross-entropy")
