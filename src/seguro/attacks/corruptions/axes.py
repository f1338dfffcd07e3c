"""Which axis of a volume is what to a scanner: slices, imaging plane, phase-encoding direction."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.types import Three, ThreeF

Channel = NDArray[np.float32]
"""One channel (Z, Y, X) in units of its own range: 0 where there is no signal, 1 at the bright end."""


def slice_axis(shape: Three, spacing: ThreeF) -> int:
    """Return the axis (0 z, 1 y, 2 x) that the slices of an MR acquisition lie along.

    It is the axis of one voxel where there is one (a picture), else the coarsest, z among equals.

    Example:
        >>> slice_axis((30, 18, 40), (1.0, 5.0, 1.0)), slice_axis((1, 18, 40), (1.0, 5.0, 1.0))
        (1, 0)
    """
    if 1 in shape:
        return shape.index(1)
    return int(np.argmax(spacing))


def stacked_axis(shape: Three, spacing: ThreeF) -> int:
    """Return the coarsest axis of more than one voxel, z among equals: slices, or the rows of a picture."""
    return max(range(3), key=lambda axis: (shape[axis] > 1, spacing[axis], -axis))


def plane(shape: Three, spacing: ThreeF) -> tuple[int, int]:
    """Return the two axes of the MR imaging plane, the phase-encoding axis first.

    Phase encoding runs along the side that is shorter in mm, as it does to save time, y among equals.
    """
    first, second = (axis for axis in range(3) if axis != slice_axis(shape, spacing))
    extent = [n * d if n > 1 else np.inf for n, d in zip(shape, spacing, strict=True)]
    return (first, second) if extent[first] <= extent[second] else (second, first)


def from_centre(n: int, step: float) -> NDArray[np.float64]:
    """Return the positions in mm of `n` voxel centres `step` apart, 0 in their middle."""
    return np.asarray((np.arange(n) - (n - 1) / 2) * step, np.float64)


def column(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a vector shaped so that it runs along `axis` of a (Z, Y, X) array."""
    shape = [1, 1, 1]
    shape[axis] = len(values)
    return values.reshape(shape)
