"""The parts of semi-supervised methods, on tensors made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seguro.core.types import IGNORE, Classes
from seguro.losses import one_hot
from seguro.methods.consistency import (
    certainty,
    draw_cut_box,
    draw_zero_box,
    inside,
    largest_components,
    paste,
    pseudo_label,
    ramp,
    squared_difference,
    where_sure,
)

THREE = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(box: tuple[slice, ...] | None) -> int:
    return 0 if box is None else math.prod(s.stop - s.start for s in box)


def test_the_ramp_is_exp_of_minus_five_squares():
    assert ramp(0, 1) == pytest.approx(math.exp(-5)) and ramp(1, 1) == 1 and ramp(0.7, 0.5) == 1
    assert ramp(0.25, 0.5) == pytest.approx(math.exp(-1.25)) and ramp(0, 0) == 1
    values = [ramp(i / 20, 0.8) for i in range(21)]
    assert values == sorted(values)


def test_equal_teacher_and_student_disagree_by_nothing_and_opposite_ones_by_one():
    logits = torch.randn(2, 3, 4, 5, generator=rng(0))
    assert squared_difference(logits, logits.softmax(1), THREE) == 0
    sure = torch.tensor([100.0, -100.0]).reshape(1, 2, 1, 1)
    assert squared_difference(sure, 1 - sure.softmax(1), THREE) == pytest.approx(1)
    # uniform over three classes against one-hot: (4 + 1 + 1) / 9 over three
    hot = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    assert squared_difference(torch.zeros(1, 3, 1, 1), hot, THREE) == pytest.approx(6 / 27)


def test_pseudo_labels_are_the_likeliest_class_and_carry_no_gradient():
    p = torch.tensor([[0.2, 0.5], [0.7, 0.1], [0.1, 0.4]]).reshape(1, 3, 2).requires_grad_()
    label, sure = pseudo_label(p, THREE), certainty(p, THREE)
    assert label.tolist() == [[1, 0]] and label.dtype == torch.uint8
    torch.testing.assert_close(sure, torch.tensor([[0.7, 0.5]]))
    assert not label.requires_grad and not sure.requires_grad
    assert where_sure(label, sure, 0.6).tolist() == [[1, IGNORE]]
    assert where_sure(label, sure, 0.0).tolist() == [[1, 0]]


def test_pseudo_labels_of_regions_are_painted_in_order_and_as_sure_as_their_least_sure_region():
    p = torch.tensor([[0.9, 0.9, 0.1, 0.4], [0.8, 0.3, 0.2, 0.6]]).reshape(1, 2, 4)
    assert pseudo_label(p, REGIONS).tolist() == [[2, 1, 0, 2]]
    torch.testing.assert_close(certainty(p, REGIONS), torch.tensor([[0.8, 0.7, 0.8, 0.6]]))


def test_nested_regions_come_back_from_their_pseudo_label():
    core = torch.rand(2, 8, 8, generator=rng(0))
    p = torch.stack([torch.maximum(core, torch.rand(2, 8, 8, generator=rng(1))), core], dim=1)
    assert torch.equal(one_hot(pseudo_label(p, REGIONS), REGIONS), (p > 0.5).float())


@pytest.mark.parametrize("shape", [(1, 9, 9), (1, 3, 9, 9)])
def test_of_each_class_the_largest_piece_stays(shape):
    label = torch.zeros(shape, dtype=torch.uint8)
    label[..., 0:3, 0:3] = 1
    label[..., 6:8, 6:8] = 1
    label[..., 4, 0:2] = 2
    label[..., 3, 2] = 2  # touches by an edge only, in its plane
    label[..., 8, 0] = IGNORE
    wanted = label.clone()
    wanted[..., 6:8, 6:8] = 0
    wanted[..., 3, 2] = 0
    found = largest_components(torch.cat([label, torch.zeros_like(label)]))
    assert torch.equal(found[:1], wanted) and not found[1].any()


@pytest.mark.parametrize("size", [(30, 24), (12, 30, 24)])
def test_the_zero_box_has_the_published_volume_and_goes_everywhere(size):
    boxes = [draw_zero_box(size, 2 / 3, rng(i)) for i in range(60)]
    assert {volume(b) for b in boxes} == {math.prod(2 * n // 3 for n in size)}
    mask = inside(boxes, size, torch.device("cpu"))
    assert mask.float().mean() == pytest.approx((2 / 3) ** len(size))
    for axis, n in enumerate(size):
        starts = {b[axis].start for b in boxes}
        assert min(starts) == 0 and max(starts) == n - 2 * n // 3


def test_a_box_in_an_axis_of_one_voxel_is_that_voxel():
    assert draw_zero_box((1, 9), 2 / 3, rng(0))[0] == slice(0, 1)


@pytest.mark.parametrize("size", [(64, 64), (32, 48, 48)])
def test_cut_boxes_have_the_published_sizes_and_frequency(size):
    boxes = [draw_cut_box(size, rng(i), p=0.5) for i in range(400)]
    cut = [b for b in boxes if b is not None]
    assert 0.42 < len(cut) / len(boxes) < 0.58  # 3 standard deviations
    shares = np.array([volume(b) for b in cut]) / math.prod(size)
    assert shares.min() > 0.01 and shares.max() <= 0.4 and 0.15 < shares.mean() < 0.24  # rounded down
    for b in cut:
        assert all(0 <= s.start < s.stop <= n for s, n in zip(b, size, strict=True))
        ratio = (b[-1].stop - b[-1].start) / size[-1] / ((b[-2].stop - b[-2].start) / size[-2])
        assert 0.2 < ratio < 5  # 0.3 to 3.3 before rounding
    assert draw_cut_box(size, rng(0), p=0.0) is None


def test_what_is_pasted_is_the_box_in_image_and_label_alike():
    mask = inside([(slice(0, 2), slice(1, 3)), None], (4, 4), torch.device("cpu"))
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    image = torch.zeros(2, 3, 4, 4)
    told, seen = paste(label, label + 7, mask), paste(image, image + 7, mask)
    assert torch.equal(seen, told[:, None].expand_as(seen).float())
    assert told[0].sum() == 28 and not told[1].any()
