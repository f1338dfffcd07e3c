"""Whether predicted probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seguro.evaluation.overlap import Mask
from seguro.evaluation.surface import joint_box

BINS = 15
MARGIN = 10.0
"""Margin around truth and prediction, in mm (or px), of the box in which calibration is measured."""


def expected_calibration_error(probability: NDArray[np.floating], truth: Mask, *, bins: int = BINS) -> float:
    """Return the expected calibration error of one class, in [0, 1].

    Voxels are sorted into `bins` equal bins of their probability; the error is the mean over bins, weighted
    by their number of voxels, of |mean probability - share of voxels that are truth|.

    Args:
        probability: any shape, in [0, 1].
        truth: same shape, bool.
        bins: number of equal bins over [0, 1]; 1.0 belongs to the last.

    Raises:
        ValueError: shapes differ, nothing to count, or values outside [0, 1].
    """
    if probability.shape != truth.shape or truth.size == 0:
        raise ValueError(f"probability {probability.shape} and truth {truth.shape} do not fit or are empty")
    p = np.asarray(probability, np.float64).ravel()
    if not (np.isfinite(p).all() and p.min() >= -1e-4 and p.max() <= 1 + 1e-4):  # float16 files round past 1
        raise ValueError(f"probabilities lie in [{p.min():g}, {p.max():g}], expected [0, 1]")
    index = np.clip((p * bins).astype(np.intp), 0, bins - 1)
    claimed = np.bincount(index, weights=p, minlength=bins)
    found = np.bincount(index, weights=truth.ravel(), minlength=bins)
    return float(np.abs(claimed - found).sum() / p.size)


def region(
    truth: Mask, prediction: Mask, spacing: Sequence[float], *, margin: float = MARGIN
) -> tuple[slice, ...]:
    """Return the box around both masks widened by `margin`: far background proves nothing."""
    return tuple(
        slice(max(s.start - int(np.ceil(margin / d)), 0), min(s.stop + int(np.ceil(margin / d)), n))
        for s, d, n in zip(joint_box(truth, prediction), spacing, truth.shape, strict=True)
    )
