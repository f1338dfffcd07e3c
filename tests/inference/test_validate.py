"""The score that selects a model: Dice by hand, and what does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seguro.core.types import IGNORE, Classes, Grid
from seguro.data.store import Stored
from seguro.engine.runtime import Runtime
from seguro.inference import validate
from seguro.methods.contract import Predictor, Slices, Whole, Windows

TASK = Classes(names=("background", "a", "b"), values=((0,), (1,), (2,)))
REGIONS = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))


class Fixed(Predictor):
    """Says class 1 where the image is 1, class 2 where it is 2."""

    def __init__(self, tiling) -> None:
        super().__init__()
        self.classes, self.tiling = TASK, tiling

    def forward(self, x, support=None):
        return torch.cat([10.0 * (x == v) for v in range(3)], dim=1)


def case(image: np.ndarray, label: np.ndarray, annotated=(1.0, 1.0)) -> Stored:
    grid = Grid(label.shape, np.eye(4))
    nothing = np.zeros((0, 4), np.int32)
    return Stored(
        "c", image[None].astype(np.float32), None, label, np.array(annotated, np.float32), nothing, grid
    )


class Few(list):
    """As much of `Cases` as a validation needs."""

    @property
    def labelled(self):
        return tuple(range(len(self)))


def test_dice_by_hand_without_ignored_voxels():
    label = np.array([[[1, 1, 0, IGNORE, 2, 2]]], np.uint8)
    masks = np.array([[[[1, 0, 1, 1, 0, 0]]], [[[0, 0, 0, 0, 0, 0]]]], bool)
    dice = validate.class_dice(label, masks, TASK)
    assert dice.tolist() == [2 * 1 / (2 + 2), 0.0]
    empty = validate.class_dice(np.zeros_like(label), np.zeros_like(masks), TASK)
    assert np.isnan(empty).all()
    overlapping = validate.class_dice(label, masks, REGIONS)
    assert overlapping.tolist() == [2 * 1 / (4 + 2), 0.0]


@pytest.mark.parametrize("tiling", [Windows((4, 4, 4)), Slices(1, (4, 4)), Whole((4, 4, 4))], ids=repr)
def test_the_mean_is_over_annotated_classes_and_cases(tiling):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    wrong = np.where(truth == 2, 0, truth)
    cases = Few([case(truth, truth), case(wrong, truth), case(wrong, truth, annotated=(1.0, 0.0))])
    scores = validate.dice_validation(cases, Runtime("cpu"))(Fixed(tiling).eval())
    assert scores["dice.a"] == 1.0
    assert scores["dice.b"] == 0.5  # right in one case, missed in another, not looked for in the third
    assert scores["dice"] == 0.75


def test_many_cases_are_sampled_evenly():
    chosen = validate._spread(100, 16)
    assert len(set(chosen)) == 16 and (chosen[0], chosen[-1]) == (0, 99)
    assert list(validate._spread(5, 16)) == [0, 1, 2, 3, 4]
