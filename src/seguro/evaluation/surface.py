"""Distances between the surfaces of two masks.

The surface of a mask is its border voxels: those with at least one face neighbour outside the mask, where
everything beyond the image is outside. An axis of length 1 has no neighbours, so that a 2-D image has a
contour and not a face. Distances run between voxel centers and are exact.

The nearest border voxel is found by a k-d tree over the border alone. Measured on organs of a 200 x 512 x 512
volume this beats a distance transform of the joint bounding box (scipy's by 6x or more, `edt`'s by 2x), stays
in float64, and does not grow with the empty space between the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from seguro.evaluation.overlap import Mask

ROUNDING = 1e-6
"""Slack in the unit of length when a distance is compared with a tolerance: 3 x 0.1 must not exceed 0.3."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each border voxel of one mask to the other's surface: (N,) float64, in no set order."""

    from_truth: NDArray[np.float64]
    from_prediction: NDArray[np.float64]

    @property
    def hd(self) -> float:
        """Hausdorff distance: the largest of all."""
        return float(max(self.from_truth.max(), self.from_prediction.max()))

    @property
    def hd95(self) -> float:
        """The larger of the two directed 95th percentiles (linear interpolation)."""
        return float(max(np.percentile(self.from_truth, 95), np.percentile(self.from_prediction, 95)))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: the mean over the border voxels of both masks together."""
        n = self.from_truth.size + self.from_prediction.size
        return float((np.sort(self.from_truth).sum() + np.sort(self.from_prediction).sum()) / n)

    def nsd(self, tolerance: float) -> float:
        """Return the share of all border voxels within `tolerance` of the other surface, in [0, 1]."""
        within = sum(
            int(np.count_nonzero(d <= tolerance + ROUNDING)) for d in (self.from_truth, self.from_prediction)
        )
        return within / (self.from_truth.size + self.from_prediction.size)


def surface_distances(truth: Mask, prediction: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Return the distances between the surfaces of two masks, in the unit of `spacing`.

    Args:
        truth: (Z, Y, X) or (Y, X) bool, not empty.
        prediction: same shape, not empty.
        spacing: voxel size per array axis.

    Raises:
        ValueError: shapes differ, a mask is empty, or the spacing does not fit the axes.

    Example:
        >>> a, b = np.zeros((2, 1, 9, 9), bool)
        >>> a[0, 2, 2] = b[0, 2, 7] = True
        >>> surface_distances(a, b, (1.0, 1.0, 0.5)).hd
        2.5
    """
    if truth.shape != prediction.shape or truth.ndim != len(spacing):
        raise ValueError(
            f"truth {truth.shape}, prediction {prediction.shape} and spacing {tuple(spacing)} do not fit"
        )
    box = joint_box(truth, prediction)
    edges_truth, edges_prediction = border(truth[box]), border(prediction[box])
    if not edges_truth.any() or not edges_prediction.any():
        raise ValueError("a surface distance needs two masks that are not empty")
    shared = int(np.count_nonzero(edges_truth & edges_prediction))
    return SurfaceDistances(
        _distances(edges_truth, edges_prediction, spacing, shared),
        _distances(edges_prediction, edges_truth, spacing, shared),
    )


def _distances(source: Mask, target: Mask, spacing: Sequence[float], shared: int) -> NDArray[np.float64]:
    """Return the distance of each voxel of `source` to the nearest of `target`; shared ones are zero."""
    asked = _points(source & ~target, spacing)
    # Lattice points: not balancing builds twice as fast; 48 to a leaf answers 1.5x faster than 16 do.
    tree = cKDTree(_points(target, spacing), leafsize=48, balanced_tree=False, compact_nodes=False)
    found = tree.query(asked)[0] if len(asked) else np.zeros(0)
    return np.concatenate([np.zeros(shared), found])


def _points(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the centers of the mask's voxels, (N, axes)."""
    index = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return np.stack([i * s for i, s in zip(index, map(float, spacing), strict=True)], axis=1)


def border(mask: Mask) -> Mask:
    """Return the voxels of `mask` with a face neighbour outside; beyond the array all is outside."""
    if mask.size == 1:
        return mask.copy()
    inner = mask.copy()
    for axis, size in enumerate(mask.shape):
        if size == 1:
            continue
        moved, still = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        moved[1:] &= still[:-1]
        moved[:-1] &= still[1:]
        moved[0] = moved[-1] = False
    inner ^= mask
    return inner


def joint_box(a: Mask, b: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds both masks; the whole array when both are empty.

    An axis longer than 1 keeps at least two entries, so that cropping never turns a volume into an image.
    """
    box = []
    occupied_a, occupied_b = _occupied(a), _occupied(b)
    for axis, size in enumerate(a.shape):
        hits = np.flatnonzero(occupied_a[axis] | occupied_b[axis])
        if not hits.size:
            return tuple(slice(0, n) for n in a.shape)
        start, stop = int(hits[0]), int(hits[-1]) + 1
        if stop - start == 1 and size > 1:
            start, stop = (start - 1, stop) if start else (start, stop + 1)
        box.append(slice(start, stop))
    return tuple(box)


def _occupied(mask: Mask) -> list[Mask]:
    """Return, per axis, which entries contain a voxel of the mask; the large axis is reduced once."""
    first: Mask = np.asarray(mask.reshape(mask.shape[0], -1).any(axis=1))
    if mask.ndim == 1:
        return [first]
    rest: Mask = np.asarray(mask[first].any(axis=0))
    return [first, *_occupied(rest)]


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the largest distance that two voxel centers of an image can have, in the unit of `spacing`."""
    return float(np.linalg.norm([(n - 1) * s for n, s in zip(shape, spacing, strict=True)]))
