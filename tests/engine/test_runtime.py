"""What is looked at before a step."""

from __future__ import annotations

import math

import pytest
import torch

from seguro.engine.runtime import finite


@pytest.mark.parametrize(
    ("values", "good"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # finite, though their sum is not
        ([1.0, math.nan], False),
        ([math.inf, 0.0], False),
        ([math.inf, -math.inf], False),
    ],
    ids=["plain", "overflowing sum", "nan", "inf", "both infinities"],
)
def test_gradients_are_finite_or_not(values, good):
    assert finite([torch.ones(3, 2), torch.tensor(values)]) == good
    assert finite([])
