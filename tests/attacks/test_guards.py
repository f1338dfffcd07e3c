"""What a failed guard advises."""

from __future__ import annotations

import numpy as np

from seguro.attacks import guards


def test_a_whole_range_that_leaves_something_is_told_with_what_to_do():
    failed, passed = guards.unbounded(np.array([0.2, 0.1])), guards.unbounded(np.array([0.01]))
    assert not failed.passed and "expected at most 0.05" in failed.detail and "--iters" in failed.detail
    assert passed.passed and "--iters" not in passed.detail
