"""The grids and intensities that SSL-ALPNet published for abdominal MR (CHAOS) and CT (BTCV, "SABS").

Ouyang et al. (ECCV 2020; TMI 2022), after the constants of their published preparation; arrays are canonical.
Two of its by-products are left out: CT comes out at exactly 256 x 256, not one more and then cut, and an axis
whose voxel size stays keeps its size, where the published rule appends an empty slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError
from seguro.core.types import Grid, Three, ThreeF

MR_SPACING: ThreeF = (7.7, 1.25, 1.25)
"""(z, y, x) in mm."""
MR_TAIL = 99.5
"""Percentile of the whole volume that brighter voxels are brought down to."""
PLANE = 256
"""Rows and columns of the result."""
CT_WINDOW = (-125.0, 275.0)
"""Hounsfield units."""
CT_PLANE = 512
"""Rows and columns of the scanner."""
CT_MARGIN = 32
"""Voxels cut from each side of a slice."""
SAME_SPACING = 1e-4
"""Relative difference of voxel sizes that headers of 32 bits leave."""

Image = NDArray[np.float32]
Label = NDArray[np.uint8]


def mr(image: Image, label: Label, grid: Grid) -> tuple[Image, Label, Grid]:
    """Return an MR volume as published: tail cut, 1.25 x 1.25 x 7.7 mm, 256 x 256 around the center.

    Args:
        image: (Z, Y, X) float32, as scanned.
        label: (Z, Y, X) uint8 on the same grid.
        grid: in mm.
    """
    image = np.minimum(image, np.float32(np.percentile(image, MR_TAIL)))
    shape = published_shape(grid, MR_SPACING)
    affine = grid.affine.copy()
    affine[:3, :3] *= np.divide(MR_SPACING, grid.spacing)[::-1]
    new = resampled(image, grid.spacing, MR_SPACING, shape)
    painted = resampled_label(label, grid.spacing, MR_SPACING, shape)
    start = [n // 2 - PLANE // 2 for n in shape[1:]]
    affine[:3, 3] += affine[:3, :3] @ [start[1], start[0], 0]
    return (
        centered(new, fill=float(new.min())),
        centered(painted, fill=0),
        Grid((shape[0], PLANE, PLANE), affine, grid.unit),
    )


def ct(image: Image, label: Label, grid: Grid, what: str) -> tuple[Image, Label, Grid]:
    """Return a CT volume as published: windowed, 0 ... 255 by its own range, cut by 32 and halved about.

    Args:
        image: (Z, Y, X) float32 in Hounsfield units, 512 x 512 in plane.
        label: (Z, Y, X) uint8 on the same grid.
        grid: in mm.
        what: name of the case, for messages.

    Raises:
        DataError: other than 512 x 512, or one value everywhere within the window.
    """
    if grid.shape[1:] != (CT_PLANE, CT_PLANE):
        raise DataError(
            f"{what}: slices of {grid.shape[1]} x {grid.shape[2]}, the published preparation is for "
            f"{CT_PLANE} x {CT_PLANE}; import with --as-scanned"
        )
    image = np.clip(image, *CT_WINDOW)
    low, high = float(image.min()), float(image.max())
    if high <= low:
        raise DataError(f"{what}: nothing between {CT_WINDOW[0]:g} and {CT_WINDOW[1]:g} Hounsfield units")
    image = (image - np.float32(low)) * np.float32(255.0 / (high - low))
    cut = slice(CT_MARGIN, CT_PLANE - CT_MARGIN)
    coarser = (CT_PLANE - 2 * CT_MARGIN) / PLANE
    spacing = grid.spacing
    target = (spacing[0], spacing[1] * coarser, spacing[2] * coarser)
    shape = (grid.shape[0], PLANE, PLANE)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [CT_MARGIN, CT_MARGIN, 0]
    affine[:3, :2] *= coarser
    return (
        resampled(image[:, cut, cut], spacing, target, shape),
        resampled_label(label[:, cut, cut], spacing, target, shape),
        Grid(shape, affine, grid.unit),
    )


def published_shape(grid: Grid, spacing: ThreeF) -> Three:
    """Return int(size * old / new + 1) for each axis whose voxel size changes."""
    z, y, x = (
        n if _same(old, new) else int(n * old / new + 1)
        for n, old, new in zip(grid.shape, grid.spacing, spacing, strict=True)
    )
    return z, y, x


def _same(old: float, new: float) -> bool:
    return abs(old - new) <= SAME_SPACING * new


def resampled(array: Image, old: ThreeF, new: ThreeF, shape: Three) -> Image:
    """Return `array` (Z, Y, X) sampled linearly every `new` mm from its first voxel on.

    Up to half a voxel beyond the last center its value holds; farther out lies 0.
    """
    for axis, (a, b, size) in enumerate(zip(old, new, shape, strict=True)):
        array = _axis(array, axis, 1.0 if _same(a, b) else b / a, size)
    return np.ascontiguousarray(array, np.float32)


def _axis(array: Image, axis: int, step: float, size: int) -> Image:
    n = array.shape[axis]
    if step == 1.0 and size == n:
        return array
    places = np.arange(size) * step
    inside = places < n - 0.5
    places = np.minimum(places, n - 1)
    lower = np.minimum(places.astype(np.intp), max(n - 2, 0))
    column = [1, 1, 1]
    column[axis] = size
    t = (places - lower).astype(np.float32).reshape(column)
    upper = array.take(np.minimum(lower + 1, n - 1), axis=axis)
    out = array.take(lower, axis=axis) * (1 - t) + upper * t
    return np.asarray(out * inside.reshape(column), np.float32)


def resampled_label(label: Label, old: ThreeF, new: ThreeF, shape: Three) -> Label:
    """Return a label resampled as published: each class linearly, rounded, painted in rising order."""
    out = np.zeros(shape, np.uint8)
    for value in np.unique(label)[1:] if (label == 0).any() else np.unique(label):
        share = resampled((label == value).astype(np.float32), old, new, shape)
        out[share > 0.5] = value  # an exact half rounds to the even number, 0
    return out


def centered(array: NDArray[Any], *, fill: float) -> NDArray[Any]:
    """Return `array` (Z, Y, X) cut or filled up to PLANE x PLANE around (Y // 2, X // 2)."""
    out = np.full((array.shape[0], PLANE, PLANE), fill, array.dtype)
    to, of = [slice(None)], [slice(None)]
    for n in array.shape[1:]:
        start = n // 2 - PLANE // 2
        of.append(slice(max(start, 0), min(start + PLANE, n)))
        to.append(slice(max(-start, 0), min(n - start, PLANE)))
    out[tuple(to)] = array[tuple(of)]
    return out
