"""The score that selects robust models while training: closed form, seeds, and the model left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seguro.attacks.validate import MAX_CASES, robust_validation
from seguro.core.types import Classes
from seguro.data.plan import Intensity
from seguro.engine.runtime import Runtime
from seguro.methods.contract import Predictor, Windows

CLASSES = Classes(names=("background", "x"), values=((0,), (1,)))
SHAPE = (4, 5, 6)


@dataclass(frozen=True)
class Stored:
    """As much of a stored case as a validation reads."""

    id: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    annotated: NDArray[np.float32]

    def patch(self, where):
        return self.image[(slice(None), *where)]


class Few(list):
    """As much of `Cases`."""

    @property
    def labelled(self):
        return tuple(range(len(self)))


class Planned:
    """As much of a plan."""

    channels = (Intensity(name="x", scheme="zscore"),)


class Threshold(Predictor):
    """Foreground where the voxel is above one half; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.tiling, self.asked = CLASSES, Windows(SHAPE), []
        self.slope = torch.nn.Parameter(torch.tensor(4.0))
        self.train()

    def forward(self, x, support=None):
        assert not self.training
        self.asked.append(x.detach().clone())
        return torch.cat([torch.zeros_like(x), self.slope * (x - 0.5)], 1)


def case(name: str, near: int, false: int) -> Stored:
    """30 foreground voxels, `near` of them just above the threshold, and `false` others just below it."""
    values, label = np.zeros(np.prod(SHAPE), np.float32), np.zeros(np.prod(SHAPE), np.uint8)
    values[:30], label[:30] = 1.0, 1
    values[:near], values[40 : 40 + false] = 0.55, 0.45
    return Stored(name, values.reshape(1, *SHAPE), label.reshape(SHAPE), np.ones(1, np.float32))


def validated(predictor: Predictor, cases, epsilon: float, seed: int = 0) -> float:
    validate = robust_validation(cases, Planned, Runtime("cpu"), epsilon=epsilon, seed=seed)
    found = validate(predictor)
    assert list(found) == ["robust"]
    return found["robust"]


def dice(hit: int, false: int) -> float:
    return 2 * hit / (hit + false + 30)


def test_what_lies_within_epsilon_of_the_threshold_is_lost_and_nothing_else():
    cases, predictor = Few([case("a", 10, 4), case("b", 3, 0)]), Threshold()
    expected = (dice(20, 4) + dice(27, 0)) / 2
    assert validated(predictor, cases, 0.1) == pytest.approx(expected, abs=1e-6)
    assert validated(predictor, cases, 0.04) == 1  # too little to reach it
    assert predictor.training and predictor.slope.requires_grad and predictor.slope.grad is None


def test_the_starts_are_those_of_the_seed_at_every_validation():
    cases, asked = Few([case("a", 10, 4), case("b", 10, 4)]), []
    for seed in (0, 0, 1):
        predictor = Threshold()
        validated(predictor, cases, 0.1, seed)
        asked.append(torch.stack([x[0] for x in predictor.asked]))
    assert torch.equal(asked[0], asked[1]) and not torch.equal(asked[0], asked[2])
    first, second = asked[0].tensor_split(2)
    assert torch.equal(first[0], second[0]) and not torch.equal(
        first[1], second[1]
    )  # clean, then its own start


def test_many_cases_are_sampled_over_the_whole_list():
    n = 3 * MAX_CASES
    cases, predictor = Few([case(f"c{i}", 30 if i in (0, n - 1) else 0, 0) for i in range(n)]), Threshold()
    assert validated(predictor, cases, 0.1) == pytest.approx((MAX_CASES - 2) / MAX_CASES, abs=1e-6)
