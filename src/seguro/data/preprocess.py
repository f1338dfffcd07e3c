"""From a volume as read to the planned grid and intensities: the one path for training and prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.types import IGNORE, Classes, Grid, Volume
from seguro.data.geometry import planned_grid, resample, resample_label
from seguro.data.plan import Intensity, Plan

CLIP = (0.5, 99.5)
"""Percentiles to which the z-score scheme clips each case."""


def to_planned(volume: Volume, plan: Plan) -> tuple[NDArray[np.float32], Grid]:
    """Return the image scaled and resampled to the planned grid, (C, Z, Y, X) float32, and that grid.

    Raises:
        DataError: another number of channels than planned, non-finite values, or a constant channel.
    """
    image = volume.array
    if image.shape[0] != len(plan.channels):
        names = ", ".join(c.name for c in plan.channels)
        raise DataError(f"the image has {image.shape[0]} channels, the plan {len(plan.channels)} ({names})")
    grid = grid_of(volume.grid, plan)
    scaled = np.stack([scale(image[i], c) for i, c in enumerate(plan.channels)])
    if grid.shape != volume.grid.shape:
        scaled = resample(scaled, grid.shape, order=3)
    return np.ascontiguousarray(scaled, dtype=np.float32), grid


def grid_of(grid: Grid, plan: Plan) -> Grid:
    """Return the planned grid over the field of view of `grid`; 2-D plans keep the slices as they are."""
    return planned_grid(grid, plan.spacing, fixed_axes=(plan.slice_axis,) if plan.dims == 2 else ())


def scale(channel: NDArray[np.floating], how: Intensity) -> NDArray[np.float32]:
    """Return one channel (Z, Y, X) scaled as `how` says."""
    x = np.asarray(channel, dtype=np.float32)
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        raise DataError(
            f"channel {how.name} has {bad} NaN or infinite voxels; run `seguro check` for the choices"
        )
    if how.scheme == "none":
        return x
    if how.scheme == "unit":
        return x / np.float32(255)
    if how.scheme == "ct":
        x = x if how.low is None and how.high is None else np.clip(x, how.low, how.high)
        return (x - np.float32(how.mean)) / np.float32(max(how.sd, 1e-6))
    low, high = np.percentile(x, CLIP)
    if high <= low:
        low, high = x.min(), x.max()
    if high <= low:
        raise DataError(f"channel {how.name} is constant ({float(low):g} everywhere): no image to segment")
    x = np.clip(x, low, high)
    return np.asarray((x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64), dtype=np.float32)


def native_scale(channel: NDArray[np.floating], how: Intensity) -> tuple[float, float]:
    """Return the file units of one unit of the scaled channel (Z, Y, X), and the file value of its zero."""
    if how.scheme == "ct":
        return max(how.sd, 1e-6), how.mean
    if how.scheme == "zscore":
        low, high = np.percentile(channel, CLIP)
        clipped = np.clip(channel, low, high) if high > low else channel
        return float(np.asarray(clipped).std(dtype=np.float64)), float(clipped.mean(dtype=np.float64))
    return (255.0, 0.0) if how.scheme == "unit" else (1.0, 0.0)


def encode_label(label: NDArray[np.integer], classes: Classes) -> NDArray[np.uint8]:
    """Return stored labels of file values: class indices (exclusive) or the values themselves (regions).

    Raises:
        DataError: values that the task does not know, with their counts.
    """
    values, counts = np.unique(label, return_counts=True)
    known = {v: (v if classes.regions else i) for i, vs in enumerate(classes.values) for v in vs}
    if classes.regions:
        known[0] = 0
    if classes.ignore is not None:
        known[classes.ignore] = IGNORE
    unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in known}
    if unknown:
        raise DataError(f"label values {unknown} (value: voxels) are not among the task's {sorted(known)}")
    out = np.zeros(label.shape, dtype=np.uint8)
    for v in values:
        out[label == v] = known[int(v)]
    return out


def label_to_planned(label: NDArray[np.integer], grid: Grid, plan: Plan) -> NDArray[np.uint8]:
    """Return stored labels (Z, Y, X) on the planned grid `grid`."""
    return np.ascontiguousarray(resample_label(encode_label(label, plan.classes), grid.shape), dtype=np.uint8)
