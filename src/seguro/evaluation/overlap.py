"""Voxel counts of two masks, and the scores that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Voxels in both masks, in the prediction only, in the truth only; every 0/0 is None, never NaN."""

    both: int
    prediction_only: int
    truth_only: int

    @property
    def n_truth(self) -> int:
        """Voxels of the truth."""
        return self.both + self.truth_only

    @property
    def n_prediction(self) -> int:
        """Voxels of the prediction."""
        return self.both + self.prediction_only

    @property
    def dice(self) -> float | None:
        """2 |T and P| / (|T| + |P|), in [0, 1]."""
        return _ratio(2 * self.both, self.n_truth + self.n_prediction)

    @property
    def iou(self) -> float | None:
        """|T and P| / |T or P|, in [0, 1]."""
        return _ratio(self.both, self.both + self.prediction_only + self.truth_only)

    @property
    def precision(self) -> float | None:
        """|T and P| / |P|, in [0, 1]; None without a prediction."""
        return _ratio(self.both, self.n_prediction)

    @property
    def recall(self) -> float | None:
        """|T and P| / |T|, in [0, 1]; None without a truth."""
        return _ratio(self.both, self.n_truth)

    def volume_error_ml(self, voxel_ml: float) -> float:
        """Return prediction minus truth in millilitres: positive means too much was segmented."""
        return (self.n_prediction - self.n_truth) * voxel_ml

    @property
    def volume_error_rel(self) -> float | None:
        """(|P| - |T|) / |T|, at least -1; None without a truth."""
        return _ratio(self.n_prediction - self.n_truth, self.n_truth)


def overlap(truth: Mask, prediction: Mask) -> Overlap:
    """Return the voxel counts of two boolean masks of one shape.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> overlap(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool)).dice
        0.5
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; they must be equal")
    both = int(np.count_nonzero(truth & prediction))
    return Overlap(both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(truth)) - both)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
