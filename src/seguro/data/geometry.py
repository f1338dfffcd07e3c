"""Voxel order, grids and resampling: the only place that knows about axis order and affines."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import GeometryError
from seguro.core.types import Grid, Source, Three, ThreeF, Unit

MAX_SHEAR_DEG = 0.1
"""Largest angle between an axis and the nearest rotation that is taken for rounding in the header."""
NOTED_SHEAR_DEG = 0.005
"""Below this, four decimals in a header explain it, and nothing is said."""
SAME_MM = 0.01
"""Grids whose corners lie closer than this are the same."""

Flips = tuple[bool, bool, bool]


def canonical(affine: NDArray[np.float64]) -> tuple[Three, Flips]:
    """Return the axis order and flips that bring a file's voxels closest to RAS+.

    Args:
        affine: (4, 4), from voxel (i, j, k) in file order to RAS+.

    Returns:
        `axes`: canonical axis k (x, y, z) comes from file axis axes[k]; ties go to the lower axis number.
        `flips`: whether canonical axis k runs against its file axis.

    Example:
        >>> canonical(np.diag([-1.0, 1.0, 2.0, 1.0]))
        ((0, 1, 2), (True, False, False))
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best: Three = (0, 1, 2)
    most = -1.0
    for i, j, k in permutations(range(3)):
        fit = float(abs(unit[0, i]) + abs(unit[1, j]) + abs(unit[2, k]))
        if fit > most + 1e-6:  # equal but for rounding: the earlier order stays
            best, most = (i, j, k), fit
    negative = [bool(unit[world, axis] < 0) for world, axis in enumerate(best)]
    return best, (negative[0], negative[1], negative[2])


def to_canonical(
    array: NDArray[Any], affine: NDArray[np.float64], unit: Unit = "mm"
) -> tuple[NDArray[Any], Grid, Three, Flips]:
    """Return a file's array in canonical order, its grid, and the axes and flips that were applied.

    Args:
        array: (x, y, z) or (x, y, z, C) in file order.
        affine: (4, 4) of the file.
        unit: unit of the affine.

    Returns:
        array (Z, Y, X) or (C, Z, Y, X), a view of the input; its grid; axes; flips.
    """
    axes, flips = canonical(affine)
    ordered = np.transpose(array, (*axes, *range(3, array.ndim)))
    ordered = ordered[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    step = np.eye(4)
    step[:3, :3] = 0.0
    for axis, (source, flip) in enumerate(zip(axes, flips, strict=True)):
        step[source, axis] = -1.0 if flip else 1.0
        step[source, 3] = array.shape[source] - 1 if flip else 0.0
    x, y, z = ordered.shape[:3]
    return ordered.T, Grid((z, y, x), affine @ step, unit), axes, flips


def to_file(array: NDArray[Any], source: Source) -> NDArray[Any]:
    """Return a canonical array in the axis order of the file it belongs to.

    Args:
        array: (Z, Y, X) or (C, Z, Y, X).
        source: of the file.

    Returns:
        (x, y, z) or (x, y, z, C) for NIfTI, (rows, columns) or (rows, columns, C) for rasters.

    Raises:
        GeometryError: the array does not have the file's shape.
    """
    if source.kind == "raster":
        back = array[0] if array.ndim == 3 else np.moveaxis(array[:, 0], 0, -1)
        expected = source.shape
    else:
        ordered = array.T[tuple(slice(None, None, -1 if f else 1) for f in source.flips)]
        inverse = np.argsort(source.axes)
        back = np.transpose(ordered, (*inverse, *range(3, array.ndim)))
        expected = source.shape
    if back.shape[: len(expected)] != tuple(expected):
        raise GeometryError(
            f"array of {back.shape} does not fit the file's shape {tuple(expected)}: "
            "bring it back to the image's own grid before writing"
        )
    return back


def rigid(affine: NDArray[np.float64], where: str) -> tuple[NDArray[np.float64], str | None]:
    """Return an affine whose axes are at right angles, and a note if it had to be straightened.

    Args:
        affine: (4, 4).
        where: name of the file, for messages.

    Raises:
        GeometryError: not finite, singular, or sheared by MAX_SHEAR_DEG or more; the matrix is printed.
    """
    matrix = affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise GeometryError(
            f"{where}: the affine is not usable:\n{text(affine)}\ngive the voxel size with --spacing"
        )
    unit = matrix / spacing
    left, scale, right = np.linalg.svd(unit)
    if scale[-1] < 1e-3:
        raise GeometryError(
            f"{where}: the affine is singular (two axes coincide):\n{text(affine)}\nwrite the file again"
        )
    rotation = left @ right
    angle = float(np.degrees(np.arccos(np.clip((rotation * unit).sum(axis=0), -1.0, 1.0))).max())
    if angle >= MAX_SHEAR_DEG:
        raise GeometryError(
            f"{where}: sheared affine, {angle:.2f} degrees from the nearest rotation "
            f"(limit {MAX_SHEAR_DEG}):\n{text(affine)}\nresample the file to a grid with right angles first"
        )
    if angle < NOTED_SHEAR_DEG:
        return affine, None
    straight = affine.copy()
    straight[:3, :3] = rotation * spacing
    return straight, f"affine sheared by {angle:.3f} degrees, nearest rotation used"


def same_grid(a: Grid, b: Grid) -> float:
    """Return the largest distance in mm between corresponding corners; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return displacement(a.affine, b.affine, a.shape[::-1])


def displacement(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance between the corners of an (x, y, z) `shape` under two affines."""
    corners = np.array([[*c, 1.0] for c in product(*((0.0, n - 1.0) for n in shape))]).T
    return float(np.linalg.norm((a @ corners - b @ corners)[:3], axis=0).max())


def text(affine: NDArray[np.float64]) -> str:
    """Return the first three rows of an affine, one line each."""
    return "\n".join("  [" + " ".join(f"{v:10.4f}" for v in row) + "]" for row in affine[:3])


def planned_grid(grid: Grid, spacing: ThreeF, fixed_axes: tuple[int, ...] = ()) -> Grid:
    """Return the grid of about `spacing` whose field-of-view edges coincide with those of `grid`.

    The size is the nearest whole number of voxels, n = max(1, round(extent / spacing)); what results is
    the effective spacing, extent / n, and the affine says so.

    Args:
        grid: of the image.
        spacing: target (z, y, x) in the grid's unit.
        fixed_axes: canonical array axes (0 = z, 1 = y, 2 = x) that keep their size.

    Example:
        >>> g = planned_grid(Grid((10, 10, 10), np.eye(4)), (2.0, 1.0, 3.0))
        >>> g.shape, g.spacing
        ((5, 10, 3), (2.0, 1.0, 3.3333333333333335))
    """
    size = list(grid.shape)
    for axis, (n, now, target) in enumerate(zip(grid.shape, grid.spacing, spacing, strict=True)):
        if axis not in fixed_axes:
            size[axis] = max(
                1, int(np.floor(n * now / target + 0.5 + 1e-6))
            )  # headers hold float32: half counts as half
    shape = (size[0], size[1], size[2])
    return Grid(shape, grid.affine @ _scaling(grid.shape, shape), grid.unit)


def _scaling(old: Three, new: Three) -> NDArray[np.float64]:
    """Return the (4, 4) map from new to old voxel (x, y, z) with coinciding outer edges."""
    factor = np.array(old[::-1], float) / np.array(new[::-1], float)
    out = np.diag([*factor, 1.0])
    out[:3, 3] = 0.5 * factor - 0.5
    return out


def resample(array: NDArray[Any], shape: Three, *, order: int) -> NDArray[Any]:
    """Return `array` on a grid of another size with the same outer edges.

    The centre of output voxel i lies at (i + 0.5) * n_in / n_out - 0.5; beyond the outermost centres the
    border value holds. One axis after the other, so that few arrays live at once.

    Args:
        array: (Z, Y, X) or (C, Z, Y, X).
        shape: (Z, Y, X) of the result.
        order: 0 nearest (any dtype, kept); floats from 1 linear, 3 cubic (Catmull-Rom, exact for parabolas).
    """
    if order not in (0, 1, 3):
        raise ValueError(f"order {order}: only 0 (nearest), 1 (linear) and 3 (cubic) exist")
    if order and array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    first = array.ndim - 3
    growth = [shape[a] / array.shape[first + a] for a in range(3)]
    for axis in sorted(range(3), key=lambda a: growth[a]):  # shrink first: fewer voxels for the rest
        array = _resample_axis(array, first + axis, shape[axis], order)
    return np.ascontiguousarray(array)


def _resample_axis(array: NDArray[Any], axis: int, size: int, order: int) -> NDArray[Any]:
    n = array.shape[axis]
    if n == size:
        return array
    if order == 0:
        nearest: NDArray[Any] = array.take((2 * np.arange(size) + 1) * n // (2 * size), axis=axis)
        return nearest
    position = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0.0, n - 1.0)
    base = np.floor(position).astype(np.intp)
    t = position - base
    taps = {0: 1.0 - t, 1: t} if order == 1 else _cubic(t)
    column = [1] * array.ndim
    column[axis] = size
    out: NDArray[Any] | None = None
    for offset, weight in taps.items():
        part = array.take(np.clip(base + offset, 0, n - 1), axis=axis)
        part *= weight.astype(array.dtype).reshape(column)
        out = part if out is None else np.add(out, part, out=out)
    if out is None:
        raise ValueError("no taps")
    return out


def _cubic(t: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """Return the four Catmull-Rom weights at fraction `t` after the base voxel."""
    return {
        -1: ((-0.5 * t + 1.0) * t - 0.5) * t,
        0: (1.5 * t - 2.5) * t * t + 1.0,
        1: ((-1.5 * t + 2.0) * t + 0.5) * t,
        2: (0.5 * t - 0.5) * t * t,
    }


def resample_label(label: NDArray[Any], shape: Three) -> NDArray[Any]:
    """Return an integer label map on a grid of another size: each class linearly, then the largest wins.

    Works class by class with two float volumes, never classes x volume; ties go to the smaller value.

    Args:
        label: (Z, Y, X) integers.
        shape: (Z, Y, X) of the result.
    """
    if label.shape == shape:
        return label.copy()
    values = np.unique(label)
    out = np.full(shape, values[0], label.dtype)
    if len(values) == 1:
        return out
    best = resample((label == values[0]).astype(np.float32), shape, order=1)
    for value in values[1:]:
        score = resample((label == value).astype(np.float32), shape, order=1)
        better = score > best
        out[better] = value
        np.maximum(best, score, out=best)
    return out


def file_index(source: Source, axis: int, index: int) -> int:
    """Return the number of a slice in its file, given its canonical number, or the reverse.

    Args:
        source: of the file.
        axis: canonical array axis (0 = z, 1 = y, 2 = x) that the slices lie along.
        index: of the slice.
    """
    if source.kind == "raster":
        return index
    world = 2 - axis
    size = source.shape[source.axes[world]]
    return size - 1 - index if source.flips[world] else index
