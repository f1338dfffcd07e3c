"""Published planning rules that decide patch and strides in place of our own.

`rog`: Daza, Pérez and Arbeláez, MICCAI 2021, after the numbers of their ten published plans. The rules treat
the axes alike, so any axis order will do, as long as it is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log2, prod

import numpy as np
from numpy.typing import NDArray

from seguro.core.errors import DataError

Size = tuple[int, ...]

LARGE = 128
"""Axes longer than this are planned for seven tenths of their length."""
SMALL_VOLUME = 32**3
"""Classes of smaller mean volume are halved four times instead of five."""
MARGIN = 20
"""Voxels that the crop before augmentation is larger than the patch, where the volume has them."""
DEEPER_FROM, CAPPED_FROM = 12 * 12 * 6, 12 * 12 * 4
"""Voxels on the coarsest level from which a fifth halving, then a smaller patch, is taken."""
FIXED = 4
"""The lattice's own last two halvings, whatever the plan says."""
LONGEST_SLICE_AXIS = 160
"""The median length along the slices counts up to here."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe plans; all sizes in voxels of the planned grid."""

    train: Size
    """Patch of training."""
    crop: Size
    """Patch before augmentation by rotation and scaling."""
    val: Size
    """Patch of validation and prediction."""
    strides: tuple[Size, Size, Size]
    """Per-axis factors of stem 1, stem 2 and level 0 to 1; two halvings of every axis follow."""
    total: Size
    """Total downsampling per axis."""


def rog(
    median: Sequence[float], small_box: Sequence[float], small_volume: float, *, official: bool = False
) -> Recipe:
    """Return ROG's plan for a data set.

    Args:
        median: median shape of the cases in the planned grid.
        small_box: mean extents of a component of the class whose components are smallest.
        small_volume: mean voxels of such a component.
        official: sizes exactly as the published code has them. Its validation patch of half the median shape
            is often no multiple of the total stride (two fifths of random data sets), which the network then
            cannot process; by default training and validation sizes are rounded up to one.
    """
    stages, cap = (4 if small_volume < SMALL_VOLUME else 5), 7
    axes = _axes(median, small_box, stages, cap)
    if _coarsest(axes) >= DEEPER_FROM:
        stages = 5
        axes = _axes(median, small_box, stages, cap)
    if _coarsest(axes) >= CAPPED_FROM:
        cap = 6
        axes = _axes(median, small_box, stages, cap)
    first, second, third = (tuple(a.stride(i, stages) for a in axes) for i in range(3))
    total = tuple(a * b * c * FIXED for a, b, c in zip(first, second, third, strict=True))
    whole = [1] * len(total) if official else total
    train = tuple(_up(int(a.train), m) for a, m in zip(axes, whole, strict=True))
    return Recipe(
        train=train,
        crop=tuple(t + MARGIN if t + MARGIN < a.planned else t for t, a in zip(train, axes, strict=True)),
        val=tuple(_up(max(int(a.median // 2), int(a.val)), m) for a, m in zip(axes, whole, strict=True)),
        strides=(first, second, third),
        total=total,
    )


@dataclass(frozen=True)
class _Axis:
    """One axis: its lengths, and how often it is halved."""

    median: float
    planned: float
    train: float
    val: float
    halvings: int

    def stride(self, i: int, stages: int) -> int:
        """Return the factor of the network's stride `i` of 3; late stages keep their 2."""
        stage = i + stages - 5  # with four stages, one of factor 1 comes before them
        return 2 if stage >= stages - self.halvings else 1


def _axes(median: Sequence[float], box: Sequence[float], stages: int, cap: int) -> list[_Axis]:
    return [_axis(m, b, stages, cap) for m, b in zip(median, box, strict=True)]


def _axis(median: float, box: float, stages: int, cap: int) -> _Axis:
    planned = 0.7 * median if median > LARGE else float(median)
    longest = max(floor(log2(planned)), 0) if planned > 0 else 0
    power = min(longest, cap)
    train, val = float(2**power), float(2 ** min(longest, 7))
    halvings = max(0, min(floor(log2(max(box, 1))), stages, power - 2))
    if 1.5 * train < planned and not (stages == 5 and train / 2**halvings >= 8):
        train *= 1.5
    if 1.5 * val < planned:
        val *= 1.5
    return _Axis(median, planned, train, val, halvings)


def _coarsest(axes: Sequence[_Axis]) -> float:
    return float(prod(a.train / 2**a.halvings for a in axes))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def rog_of(
    components: Sequence[Mapping[str, NDArray[np.float64]]],
    median: Sequence[int],
    spacing: Sequence[float],
    reasons: list[str],
) -> Recipe:
    """Return ROG's plan for measured cases.

    Args:
        components: per case and class, the large components' extents and volumes (`fingerprint.measure`).
        median: median shape (z, y, x) on the planned grid.
        spacing: (z, y, x) of that grid.
        reasons: takes what was chosen and why.

    Raises:
        DataError: no case has a labelled voxel.
    """
    found = {name: [c[name] for c in components if len(c.get(name, ()))] for c in components for name in c}
    means = {name: np.concatenate(rows).mean(axis=0) for name, rows in found.items() if rows}
    if not means:
        raise DataError("--recipe rog plans after the smallest class, but no case has a labelled voxel")
    smallest = min(means, key=lambda name: float(means[name][3]))
    box = [float(v) for v in means[smallest][:3] / np.asarray(spacing)]
    volume = float(means[smallest][3] / np.prod(spacing))
    made = rog([min(median[0], LONGEST_SLICE_AXIS), *median[1:]], box, volume)
    size = " x ".join(f"{b:.0f}" for b in box)
    reasons.append(
        f"recipe rog: {smallest} has the smallest components, {size} voxels around {volume:.0f} (mean); "
        f"median spacing, 3-D; its validation patch would be {' x '.join(map(str, made.val))}, strides of "
        f"the lattice {' '.join(''.join(map(str, s)) for s in made.strides)}"
    )
    return made


def plan_strides(recipe: Recipe) -> tuple[Size, ...]:
    """Return the strides of `recipe` as a plan lists them: with the fixed two, without leading ones of 1."""
    dims = len(recipe.train)
    listed = [*recipe.strides, (2,) * dims, (2,) * dims]
    while set(listed[0]) == {1}:
        listed.pop(0)
    return tuple(listed)
